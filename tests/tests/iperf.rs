//! What people measure with comes through as well: iperf3, bounded, over TCP and UDP, both ways.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::demo::command::text;
use control::demo::process::Process;
use control::demo::topology::{Host, PODS, Pod, SERVER};
use serde_json::Value;
use spillway_tests::fixture::Fixture;

const TRANSFER: u64 = 8 << 20;
const DATAGRAMS: u64 = 500;
const DATAGRAM_BYTES: u64 = 1200;

#[test]
fn iperf_carries_a_few_megabytes_over_tcp_both_ways() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    for (pod, way) in [(&PODS[0], &[][..]), (&PODS[3], &["--reverse"])] {
        // The window bounds what is still on its way when the sender is done: the receiver does not count that.
        let arguments = ["--window", "128K", "--bytes", &TRANSFER.to_string()];
        let report = measure(&fixture, pod, &[&arguments, way].concat())?;
        let received = report["end"]["sum_received"]["bytes"].as_u64().context("bytes received")?;
        assert!(received > TRANSFER / 2, "pod {}: {received} bytes, {way:?}", pod.address);
    }
    Ok(())
}

#[test]
fn iperf_carries_datagrams_both_ways_and_the_gateway_drops_none() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let (blocks, length) = (DATAGRAMS.to_string(), DATAGRAM_BYTES.to_string());
    let udp = ["--udp", "--bitrate", "8M", "--blockcount", &blocks, "--length", &length];
    for (pod, way) in [(&PODS[1], &[][..]), (&PODS[2], &["--reverse"])] {
        let report = measure(&fixture, pod, &[&udp, way].concat())?;
        let end = &report["end"]["sum"];
        let count = |key: &str| end[key].as_u64().with_context(|| format!("{key} in {end}"));
        let received = count("packets")? - count("lost_packets")?;
        // A receiver that is not scheduled in time may lose some by itself.
        assert!(received > DATAGRAMS / 2, "pod {}: {received} datagrams, {way:?}: {end}", pod.address);
    }
    let status = fixture.gateway.status()?;
    let drops = status["drops"].as_object().context("status has drops")?;
    let dropped: u64 = drops.values().filter_map(Value::as_u64).sum();
    assert_eq!(dropped, 0, "{drops:?}");
    Ok(())
}

/// Runs iperf3 between a pod and the server; returns the pod's report.
fn measure(fixture: &Fixture, pod: &Pod, arguments: &[&str]) -> Result<Value> {
    let server = SERVER.to_string();
    let log = fixture.lab.directory().join(format!("iperf-{}.log", pod.host.name()));
    let mut command = fixture.lab.namespace(Host::Server).command("iperf3");
    command.args(["--server", "--one-off", "--forceflush", "--bind", &server]);
    let mut listening = Process::start(&mut command, &log)?;
    listening.until_printed("Server listening", Duration::from_secs(10))?;
    let output = fixture.in_pod(pod, "iperf3", &[&["--json", "--client", &server], arguments].concat())?;
    let report = text(&output.stdout);
    ensure!(output.status.success(), "pod {}: {report}\nserver:\n{}", pod.address, listening.output());
    serde_json::from_str(&report).with_context(|| format!("iperf3 printed `{report}`"))
}

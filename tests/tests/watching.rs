//! What is explained before, captured and traced is what happens; tshark reads the captures.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::demo::command::text;
use control::demo::process::Process;
use control::demo::topology::{BLUE, PODS, Pod, RED};
use serde_json::{Value, json};
use spillway_tests::fixture::Fixture;
use spillway_tests::peers::{Peer, exchange_with};

/// Longest time that a program may take to begin.
const BEGINS: Duration = Duration::from_secs(10);

fn open(fixture: &Fixture, pod: &Pod) -> Result<UdpSocket> {
    let socket = fixture.lab.namespace(pod.host).enter(|| UdpSocket::bind((pod.address, 0)))??;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// Starts a command that looks at frames, and waits until the daemon lets it.
fn start_looking(fixture: &Fixture, arguments: &[&str], log: &Path, begins: &str) -> Result<Process> {
    let looking = Process::start(&mut fixture.gateway.installation().command(arguments), log)?;
    control::demo::wait::until("the daemon begins to look", BEGINS, || {
        Ok(fixture.gateway.log().contains(begins).then_some(()))
    })?;
    Ok(looking)
}

/// Returns fields of each packet of a capture, as tshark reads them.
fn fields(capture: &Path, names: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(capture).args(["-T", "fields", "-E", "separator=|"]);
    for name in names {
        tshark.args(["-e", name]);
    }
    let output = tshark.output().context("tshark")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = text(&output.stdout);
    Ok(lines.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect())
}

#[test]
fn what_is_explained_is_what_happens_and_leaves_nothing() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let echo = Peer::udp_echo(&fixture.lab, 7)?;
    fixture.require_service()?;
    let tool = fixture.gateway.installation();
    let (pod, remote) = (&PODS[0], echo.address().to_string());
    let socket = open(&fixture, pod)?;
    let source = format!("{}:{}", pod.address, socket.local_addr()?.port());
    let flow = ["--tenant", BLUE.name, "--proto", "udp", &source, &remote];
    let sessions = || -> Result<Value> { Ok(fixture.gateway.status()?["sessions"].clone()) };
    let before = (sessions()?, fixture.gateway.status()?["drops"].clone());

    let new = tool.json(&[&["explain"], &flow[..]].concat())?;
    ensure!(new["verdict"] == "forward" && new["tenant"] == BLUE.name, "{new}");
    let stages: Vec<_> = new["stages"].as_array().context("stages")?.iter().map(|it| &it["stage"]).collect();
    let expected = ["steer", "parse", "classify", "limits", "session", "route", "rewrite", "send"];
    ensure!(stages.iter().zip(expected).all(|(told, name)| *told == name), "{stages:?}");
    ensure!(new["stages"][4]["decision"].as_str().is_some_and(|it| it.starts_with("new: ")), "{new}");
    ensure!((sessions()?, fixture.gateway.status()?["drops"].clone()) == before, "nothing is left behind");

    let (seen_as, _) = exchange_with(&socket, &echo, b"x")?;
    let known = tool.cli(&[&["explain"], &flow[..]].concat())?;
    ensure!(known.contains(&format!("source {source} becomes {seen_as}")), "{known}");
    let back = tool.cli(&["explain", "--outside", "--proto", "udp", &remote, &seen_as.to_string()])?;
    ensure!(back.contains(&format!("destination {seen_as} becomes {source}")), "{back}");
    let stranger = format!("198.51.100.9:{}", echo.address().port());
    let refused = tool.json(&["explain", "--outside", "--proto", "udp", &stranger, &seen_as.to_string()])?;
    ensure!(refused["verdict"] == "drop" && refused["reason"] == "no_session", "{refused}");
    let foreign = tool.json(&["explain", "--tenant", RED.name, "172.16.0.1:1000", "198.51.100.7:443"])?;
    ensure!(foreign["verdict"] == "reject" && foreign["reason"] == "unknown_source", "{foreign}");
    let leak =
        tool.json(&["explain", "--mac", "02:00:00:00:00:99", "10.132.0.5:1000", "198.51.100.7:443"])?;
    ensure!(leak["reason"] == "leak", "{leak}");
    let nonsense = tool.output(&["explain", "--tenant", BLUE.name, "10.132.0.5", "198.51.100.7:443"])?;
    ensure!(text(&nonsense.stderr).contains("source: \"10.132.0.5\" has no port"), "{nonsense:?}");
    Ok(())
}

#[test]
fn tshark_reads_a_capture_and_the_verdicts_in_it() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let echo = Peer::udp_echo(&fixture.lab, 7)?;
    fixture.require_service()?;
    let directory = tempfile::tempdir()?;
    let (file, log) = (directory.path().join("capture.pcapng"), directory.path().join("log"));
    let name = file.to_string_lossy().into_owned();
    let socket = open(&fixture, &PODS[0])?;
    let pod = format!("{}:{}", PODS[0].address, socket.local_addr()?.port());
    let arguments = ["capture", "--tenant", BLUE.name, "--pod", &pod, "-c", "4", "--for", "30s", "-w", &name];
    let mut capture = start_looking(&fixture, &arguments, &log, "a capture begins")?;
    let (seen_as, _) = exchange_with(&socket, &echo, b"captured")?;
    capture.until_ended(Duration::from_secs(20))?;
    ensure!(capture.output().contains("4 packets in "), "{}", capture.output());

    let packets = fields(
        &file,
        &["frame.interface_name", "ip.src", "udp.srcport", "ip.dst", "udp.dstport", "frame.comment"],
    )?;
    let status = fixture.gateway.status()?;
    let interface =
        |place: usize| status["interfaces"][place]["name"].as_str().unwrap_or_default().to_owned();
    let (inside, outside) = (interface(0), interface(1));
    let pod_ends = [PODS[0].address.to_string(), socket.local_addr()?.port().to_string()];
    let seen_ends = [seen_as.ip().to_string(), seen_as.port().to_string()];
    let server_ends = [echo.address().ip().to_string(), echo.address().port().to_string()];
    let expected = [
        [std::slice::from_ref(&inside), &pod_ends[..], &server_ends[..]].concat(),
        [std::slice::from_ref(&outside), &seen_ends[..], &server_ends[..]].concat(),
        [std::slice::from_ref(&outside), &server_ends[..], &seen_ends[..]].concat(),
        [std::slice::from_ref(&inside), &server_ends[..], &pod_ends[..]].concat(),
    ];
    ensure!(packets.len() == 4, "{packets:?}");
    for (packet, expected) in packets.iter().zip(expected) {
        ensure!(packet[..5] == expected, "{packets:?}");
        let comment = &packet[5];
        ensure!(comment.contains("tenant ns-blue: forwarded") && comment.contains("session"), "{comment}");
    }
    Ok(())
}

#[test]
fn drops_are_captured_with_their_reason_and_traced_stage_by_stage() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    fixture.require_service()?;
    let directory = tempfile::tempdir()?;
    let (file, log) = (directory.path().join("drops.pcapng"), directory.path().join("log"));
    let name = file.to_string_lossy().into_owned();
    let arguments = ["capture", "--drops", "--side", "inside", "-c", "1", "--for", "30s", "-w", &name];
    let mut capture = start_looking(&fixture, &arguments, &log, "a capture begins")?;
    let trace_log = directory.path().join("trace");
    let arguments = ["trace", "--drops", "-c", "1", "--for", "30s", "--json"];
    let mut trace = start_looking(&fixture, &arguments, &trace_log, "a trace begins")?;
    // One hop for the node, and none is left for the gateway.
    let socket = open(&fixture, &PODS[0])?;
    socket.set_ttl(2)?;
    socket.send_to(b"x", ("192.168.55.13", 9))?;
    capture.until_ended(Duration::from_secs(20))?;
    trace.until_ended(Duration::from_secs(20))?;
    let packets = fields(&file, &["ip.src", "frame.comment"])?;
    ensure!(packets[0][0].starts_with(&PODS[0].address.to_string()), "{packets:?}");
    ensure!(packets[0][1].contains("rejected (ttl_exceeded) with ICMP type 11 code 0"), "{packets:?}");
    let output = trace.output();
    let told: Value = serde_json::from_str(output.lines().next().context("a line")?)?;
    ensure!(told["verdict"] == "reject" && told["reason"] == "ttl_exceeded", "{told}");
    let last = told["stages"].as_array().and_then(|stages| stages.last()).context("stages")?;
    ensure!(last["stage"] == "limits" && last["passed"] == json!(false), "{told}");
    Ok(())
}

#[test]
fn what_cannot_be_looked_at_is_refused_and_a_fifth_look_too() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let tool = fixture.gateway.installation();
    for (arguments, field) in [
        (&["trace", "--side", "up"][..], "side: \"up\""),
        (&["trace", "--for", "2h"], "for: \"2h\""),
        (&["trace", "--rate", "0"], "rate: 0"),
        (&["trace", "--bytes", "10"], "bytes: 10"),
        (&["trace", "--count", "0"], "count: 0"),
        (&["trace", "--tenant", "nobody"], "\"nobody\" does not exist"),
    ] {
        let refused = tool.output(arguments)?;
        ensure!(!refused.status.success() && text(&refused.stderr).contains(field), "{refused:?}");
    }
    let mut looks = Vec::new();
    for number in 0..4 {
        let log = directory.path().join(number.to_string());
        let command = &mut tool.command(&["trace", "--for", "5m"]);
        looks.push(Process::start(command, &log)?);
        let begun = || fixture.gateway.log().matches("a trace begins").count();
        control::demo::wait::until("a trace begins", BEGINS, || Ok((begun() > number).then_some(())))?;
    }
    let refused = tool.output(&["trace", "--for", "1s"])?;
    ensure!(text(&refused.stderr).contains("4 captures and traces run already"), "{refused:?}");
    looks.pop().context("a look")?.kill()?;
    control::demo::wait::until("the place of one that went away is free", BEGINS, || {
        Ok(tool.output(&["trace", "--for", "100ms"])?.status.success().then_some(()))
    })
}

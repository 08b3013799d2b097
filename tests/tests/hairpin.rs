//! Pods that talk to each other through the gateway: by an egress address and a port that a pod has opened there.

use std::net::{SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::demo::command::text;
use control::demo::gateway::add_tenant_arguments;
use control::demo::server;
use control::demo::topology::{BLUE, PODS, Pod, RED};
use control::demo::wait;
use spillway_tests::fixture::Fixture;
use spillway_tests::peers::{Peer, converse, exchange_with};

/// Who answers.
const SERVING: &Pod = &PODS[0];
const PORT: u16 = 5000;

#[test]
fn pods_reach_a_udp_service_of_a_pod_by_its_egress_address() -> Result<()> {
    let Some(fixture) = serving_fixture()? else { return Ok(()) };
    let echo = Peer::udp_echo(&fixture.lab, 7)?;
    let service =
        fixture.lab.namespace(SERVING.host).enter(|| UdpSocket::bind((SERVING.address, PORT)))??;
    service.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (outside, _) = exchange_with(&service, &echo, b"who am I?")?;
    assert_eq!(*outside.ip(), BLUE.egress);
    for pod in &PODS[1..] {
        let client = fixture.lab.namespace(pod.host).enter(|| UdpSocket::bind((pod.address, 0)))??;
        client.set_read_timeout(Some(Duration::from_secs(5)))?;
        client.send_to(b"question", outside)?;
        let mut buffer = [0; 64];
        let (length, seen_as) = service
            .recv_from(&mut buffer)
            .with_context(|| format!("from pod {}: {:?}", pod.address, fixture.gateway.status()))?;
        assert_eq!(&buffer[..length], b"question");
        assert_eq!(seen_as.ip(), pod.tenant.egress, "pod {}", pod.address);
        service.send_to(b"answer", seen_as)?;
        let (length, answered_by) = client.recv_from(&mut buffer)?;
        assert_eq!((&buffer[..length], answered_by), (&b"answer"[..], outside.into()), "pod {}", pod.address);
    }
    Ok(())
}

#[test]
fn pods_reach_a_tcp_service_of_a_pod_by_its_egress_address() -> Result<()> {
    let Some(fixture) = serving_fixture()? else { return Ok(()) };
    let outside = open_tcp(&fixture)?;
    assert_eq!(*outside.ip(), BLUE.egress);
    // The port is free once the server has acknowledged the end of the connection.
    let _service = wait::until("the pod's port is free", Duration::from_secs(5), || {
        Ok(Peer::tcp_echo(&fixture.lab, SERVING.host, SERVING.address, PORT).ok())
    })?;
    for pod in &PODS[1..] {
        converse(&fixture.lab, pod.host, outside, 1 << 18)
            .with_context(|| format!("pod {}: {:?}", pod.address, fixture.gateway.status()))?;
    }
    Ok(())
}

/// Returns a gateway on which blue's pods keep one outside port for each of theirs, to which anybody may send.
fn serving_fixture() -> Result<Option<Fixture>> {
    let Some(fixture) = Fixture::without_tenants()? else { return Ok(None) };
    let mut arguments = add_tenant_arguments(&BLUE);
    arguments.extend(
        ["--mapping", "endpoint-independent", "--filtering", "endpoint-independent"].map(str::to_owned),
    );
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    fixture.gateway.installation().cli(&words)?;
    fixture.gateway.add_tenant(&RED)?;
    Ok(Some(fixture))
}

/// Fetches a page from the serving pod's port; returns which address and port stand for it outside from then on.
fn open_tcp(fixture: &Fixture) -> Result<SocketAddrV4> {
    let (port, url) = (PORT.to_string(), server::url("whoami"));
    // Whoever closes the connection first, the pod can listen on the port soon.
    let no_time_wait = "echo 0 > /proc/sys/net/ipv4/tcp_max_tw_buckets";
    ensure!(fixture.in_pod(SERVING, "sh", &["-c", no_time_wait])?.status.success(), "{no_time_wait}");
    let output = fixture.in_pod(SERVING, "curl", &["-sS", "--http1.0", "--local-port", &port, &url])?;
    ensure!(output.status.success(), "curl: {}", text(&output.stderr));
    let page = text(&output.stdout);
    page.trim().parse().with_context(|| format!("the page says `{page}`"))
}

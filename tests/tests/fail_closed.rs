//! What never happens: a pod's address outside, a kernel that answers for tenants, one tenant hurt by another.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Result;
use control::demo::capture::Capture;
use control::demo::command::{self, text};
use control::demo::server;
use control::demo::topology::{BLUE, GATEWAY_INSIDE, Host, PODS, RED, SERVER, Tenant};
use control::demo::wait;
use spillway_tests::fixture::{Fixture, LIMIT, received};
use spillway_tests::peers::Peer;
use spillway_tests::stream::{Stream, Summary};

#[test]
fn removing_a_tenant_under_traffic_costs_the_other_nothing() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let peer = Peer::udp_echo(&fixture.lab, 7)?;
    let capture = Capture::of_outside_link(&fixture.lab)?;
    let streams = start_streams(&fixture, &peer)?;
    streams.iter().try_for_each(|stream| stream.until_answered(100))?;
    fixture.gateway.remove_tenant(&RED)?;
    let stays = |index: usize| *PODS[index].tenant == BLUE;
    streams
        .iter()
        .enumerate()
        .filter(|(index, _)| stays(*index))
        .try_for_each(|(_, it)| it.until_answered(500))?;
    fixture.gateway.add_tenant(&RED)?;
    streams.iter().try_for_each(|stream| stream.until_answered(100))?;
    let summaries: Vec<Summary> = streams.into_iter().map(Stream::finish).collect();
    for (pod, summary) in PODS.iter().zip(&summaries) {
        if *pod.tenant == BLUE {
            assert!(
                summary.missing.is_empty(),
                "pod {}: {summary:?}, {}",
                pod.address,
                fixture.gateway.status()?
            );
            assert_eq!(summary.seen_as.len(), 1, "pod {} changed its port: {summary:?}", pod.address);
        } else {
            assert!(
                !summary.missing.is_empty() || summary.refused > 0,
                "pod {} noticed nothing: {summary:?}",
                pod.address
            );
        }
    }
    assert_eq!(capture.finish()?.pod_sources()?, 0);
    fixture.require_service()
}

#[test]
fn a_killed_daemon_leaks_nothing_and_the_kernel_does_not_answer_for_it() -> Result<()> {
    let Some(mut fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let peer = Peer::udp_echo(&fixture.lab, 7)?;
    let (inside, outside) = (Capture::of_inside_link(&fixture.lab)?, Capture::of_outside_link(&fixture.lab)?);
    let streams = start_streams(&fixture, &peer)?;
    streams.iter().try_for_each(|stream| stream.until_answered(100))?;
    fixture.gateway.kill()?;
    streams.iter().try_for_each(|stream| stream.until_sent(300))?;
    for tenant in [&BLUE, &RED] {
        require_silence(&fixture, tenant)?;
    }
    fixture.start_again()?;
    streams.iter().try_for_each(|stream| stream.until_answered(100))?;
    let recording = outside.finish()?;
    assert_eq!(recording.pod_sources()?, 0);
    assert!(inside.finish()?.pod_sources()? > 0, "pods' addresses would not have been noticed");
    assert!(
        recording.count(&format!("udp and src host {}", BLUE.egress))? > 0,
        "the capture missed the traffic"
    );
    fixture.require_service()
}

#[test]
fn a_stop_a_detach_and_a_start_leak_nothing_under_traffic() -> Result<()> {
    let Some(mut fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let peer = Peer::udp_echo(&fixture.lab, 7)?;
    let streams = start_streams(&fixture, &peer)?;
    let outside = Capture::of_outside_link(&fixture.lab)?;
    fixture.gateway.stop()?;
    streams.iter().try_for_each(|stream| stream.until_sent(200))?;
    let detached = fixture.gateway.installation().detach(&fixture.lab)?;
    assert!(detached.status.success(), "{}", text(&detached.stderr));
    streams.iter().try_for_each(|stream| stream.until_sent(200))?;
    fixture.start_again()?;
    streams.iter().try_for_each(|stream| stream.until_answered(100))?;
    assert_eq!(outside.finish()?.pod_sources()?, 0);
    Ok(())
}

#[test]
fn behind_a_lost_xdp_program_a_second_line_stands_and_nothing_leaks() -> Result<()> {
    let Some(mut fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let peer = Peer::udp_echo(&fixture.lab, 7)?;
    let streams = start_streams(&fixture, &peer)?;
    fixture.gateway.kill()?;
    take_pins(&fixture, &["link"])?;
    let inside = Capture::of_inside_link(&fixture.lab)?;
    let capture = Capture::of_outside_link(&fixture.lab)?;
    streams.iter().try_for_each(|stream| stream.until_sent(300))?;
    for tenant in [&BLUE, &RED] {
        require_silence(&fixture, tenant)?;
    }
    // A pod's packets to the NIC's own MAC are what the kernel would forward.
    PODS.iter().try_for_each(|pod| fixture.lab.route_pod(pod, GATEWAY_INSIDE))?;
    streams.iter().try_for_each(|stream| stream.until_sent(300))?;
    assert_eq!(capture.finish()?.pod_sources()?, 0);
    assert!(inside.finish()?.pod_sources()? > 1000, "pods' addresses would not have been noticed");
    PODS.iter().try_for_each(|pod| fixture.lab.route_pod(pod, pod.tenant.gateway))?;
    fixture.start_again()?;
    fixture.require_service()
}

/// Shows that the tests here would fail: the gateway's kernel forwards, and the capture sees what it forwards.
#[test]
fn a_gateway_without_its_programs_leaks_and_the_capture_shows_it() -> Result<()> {
    let Some(mut fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let peer = Peer::udp_echo(&fixture.lab, 7)?;
    let streams = start_streams(&fixture, &peer)?;
    fixture.gateway.kill()?;
    take_pins(&fixture, &["link", "guard"])?;
    let capture = Capture::of_outside_link(&fixture.lab)?;
    streams.iter().try_for_each(|stream| stream.until_sent(100))?;
    assert_eq!(capture.finish()?.pod_sources()?, 0, "tenants' links forward nothing");
    let capture = Capture::of_outside_link(&fixture.lab)?;
    PODS.iter().try_for_each(|pod| fixture.lab.route_pod(pod, GATEWAY_INSIDE))?;
    streams.iter().try_for_each(|stream| stream.until_sent(100))?;
    let recording = capture.finish()?;
    for pod in &PODS {
        let leaked = recording.count(&format!("udp and src host {}", pod.address))?;
        assert!(leaked > 0, "no packet from {}", pod.address);
    }
    assert!(recording.pod_sources()? > 0);
    Ok(())
}

#[test]
fn no_daemon_means_no_way_around_it() -> Result<()> {
    let Some(mut fixture) = Fixture::with_tenants()? else { return Ok(()) };
    fixture.require_service()?;
    fixture.gateway.kill()?;
    let capture = Capture::of_outside_link(&fixture.lab)?;
    for next_hop in [BLUE.gateway, GATEWAY_INSIDE] {
        fixture.lab.route_pod(&PODS[0], next_hop)?;
        let output = fixture.in_pod(&PODS[0], "curl", &["-sS", "--max-time", "2", &server::url("whoami")])?;
        assert!(!output.status.success(), "{next_hop} still leads out: {}", text(&output.stdout));
    }
    let recording = capture.finish()?;
    assert_eq!(recording.pod_sources()?, 0);
    assert_eq!(recording.count(&format!("ip and src host {}", BLUE.egress))?, 0);
    Ok(())
}

#[test]
fn a_pods_packet_to_the_gateways_own_mac_is_refused_counted_and_forgotten() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let (pod, url) = (&PODS[0], server::url("whoami"));
    let capture = Capture::of_outside_link(&fixture.lab)?;
    let counted_before = fixture.drops("leak")?;
    fixture.lab.route_pod(pod, GATEWAY_INSIDE)?;

    let curl = ["-sS", "--max-time", "15", "--local-port", "40000", &url];
    let started = Instant::now();
    let refused = fixture.in_pod(pod, "curl", &curl)?;
    assert!(!refused.status.success(), "the server answered: {}", text(&refused.stdout));
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "not refused but left waiting: {}",
        text(&refused.stderr)
    );
    assert_ne!(udp_outcome(&fixture)?, ErrorKind::WouldBlock, "UDP was not refused");
    assert!(fixture.drops("leak")? >= counted_before + 2);

    fixture.lab.route_pod(pod, BLUE.gateway)?;
    let works = fixture.in_pod(pod, "curl", &curl)?;
    assert!(works.status.success(), "the same flow fails afterwards: {}", text(&works.stderr));
    let recording = capture.finish()?;
    assert_eq!(recording.pod_sources()?, 0);
    assert!(
        recording.count(&format!("tcp and src host {}", BLUE.egress))? > 0,
        "the capture missed the traffic"
    );
    Ok(())
}

#[test]
fn a_source_outside_the_cluster_is_refused_on_the_tenants_mac() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let capture = Capture::of_outside_link(&fixture.lab)?;
    let node = fixture.lab.namespace(Host::Node1);
    node.ip(&format!("route add {}/32 via {}", SERVER, BLUE.gateway))?;
    let mut curl = node.command("curl");
    let output = command::run(curl.args(["-sS", "--max-time", "15", &server::url("whoami")]), LIMIT)?;
    assert!(!output.status.success(), "the server answered: {}", text(&output.stdout));
    assert!(fixture.drops("node_source")? > 0);
    assert_eq!(capture.finish()?.count("src net 192.168.99.0/24")?, 0);
    Ok(())
}

/// Starts a stream from every pod, once all next hops are resolved.
fn start_streams(fixture: &Fixture, peer: &Peer) -> Result<Vec<Stream>> {
    fixture.require_service()?;
    PODS.iter().map(|pod| Stream::start(&fixture.lab, pod, peer.address())).collect()
}

/// Removes pins of a killed daemon, on both sides, and waits until what they held is detached.
fn take_pins(fixture: &Fixture, names: &[&str]) -> Result<()> {
    for directory in std::fs::read_dir(fixture.lab.pin_dir())? {
        let directory = directory?.path();
        names.iter().try_for_each(|name| std::fs::remove_file(directory.join(name)))?;
    }
    // The kernel detaches a program some time after its last pin is gone.
    wait::until("the programs are detached", LIMIT, || {
        Ok((fixture.attached()? == [false, false]).then_some(()))
    })
}

/// Fails if anything answers for a tenant's egress address: echo, TCP or UDP.
fn require_silence(fixture: &Fixture, tenant: &Tenant) -> Result<()> {
    let server = fixture.lab.namespace(Host::Server);
    let egress = tenant.egress;
    let mut ping = server.command("ping");
    let pinged =
        command::run(ping.args(["-n", "-c", "2", "-i", "0.2", "-W", "1", &egress.to_string()]), LIMIT)?;
    assert_eq!(received(&pinged)?, 0, "{egress} answers echo requests");
    let limit = Duration::from_secs(1);
    let tcp =
        server.enter(|| TcpStream::connect_timeout(&SocketAddr::from((egress, 22)), limit).map(drop))?;
    assert_eq!(tcp.map_err(|error| error.kind()), Err(ErrorKind::TimedOut), "{egress} answers TCP");
    let udp = server.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(limit))?;
        socket.connect((egress, 9))?;
        socket.send(b"anyone?")?;
        socket.recv(&mut [0; 16])
    })?;
    assert_eq!(udp.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock), "{egress} answers UDP");
    Ok(())
}

/// Sends a datagram from the first pod to the server's DNS and tells how the wait for an answer ends.
fn udp_outcome(fixture: &Fixture) -> Result<ErrorKind> {
    let outcome = fixture.lab.namespace(PODS[0].host).enter(|| {
        let socket = UdpSocket::bind((PODS[0].address, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect((SERVER, 53))?;
        socket.send(b"refuse me")?;
        socket.recv(&mut [0; 64])
    })?;
    Ok(outcome.expect_err("nothing answers a datagram that holds no query").kind())
}

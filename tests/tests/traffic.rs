//! What tenants get: TCP, UDP, ping and traceroute through the gateway, under their own egress addresses.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use control::demo::capture::Capture;
use control::demo::command::text;
use control::demo::server::{NAME, Seen};
use control::demo::topology::{
    BLUE, GATEWAY_INSIDE, GATEWAY_OUTSIDE, Host, INTERNET, PODS, RED, ROUTER, SERVER,
};
use spillway_tests::fixture::{Fixture, hops};
use spillway_tests::peers::{Peer, converse, exchange, noise};
use spillway_tests::stream::Stream;

#[test]
fn a_megabyte_over_tcp_arrives_unchanged_at_every_pod() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let page = noise(1 << 20);
    let url = fixture.server.publish("megabyte", &page)?;
    for pod in &PODS {
        let got = fixture.fetch(pod, &url)?;
        assert!(got == page, "pod {} got {} bytes, and not the page's", pod.address, got.len());
    }
    Ok(())
}

#[test]
fn a_megabyte_over_tcp_arrives_unchanged_at_the_server() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let peer = Peer::tcp_echo(&fixture.lab, Host::Server, SERVER, 2222)?;
    for pod in &PODS {
        converse(&fixture.lab, pod.host, peer.address(), 1 << 20)?;
    }
    Ok(())
}

#[test]
fn every_pod_is_seen_under_its_tenants_egress_address() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let capture = Capture::of_outside_link(&fixture.lab)?;
    fixture.require_service()?;
    let recording = capture.finish()?;
    for pod in &PODS {
        let packets = recording.count(&format!("tcp and src host {}", pod.tenant.egress))?;
        assert!(packets > 0, "nothing came from {}", pod.tenant.egress);
    }
    assert_eq!(recording.pod_sources()?, 0);
    Ok(())
}

#[test]
fn datagrams_of_every_size_come_back_unchanged() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let peer = Peer::udp_echo(&fixture.lab, 7)?;
    for pod in &PODS {
        for length in [0, 1, 17, 18, 19, 512, 1300, 1480, 4000, 20_000, 65_000] {
            let sent = noise(length);
            let (client, got) = exchange(&fixture.lab, pod.host, &peer, &sent)
                .with_context(|| format!("{length} bytes from pod {}", pod.address))?;
            assert_eq!(client, pod.tenant.egress, "pod {}", pod.address);
            assert!(got == sent, "{length} bytes from pod {} came back changed", pod.address);
        }
    }
    Ok(())
}

#[test]
fn names_are_resolved_over_udp() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    for pod in &PODS {
        let server = format!("@{SERVER}");
        let output = fixture.in_pod(pod, "dig", &["+short", "+tries=1", "+timeout=5", &server, NAME])?;
        assert_eq!(text(&output.stdout).trim(), SERVER.to_string(), "pod {}", pod.address);
    }
    let mut clients: Vec<Ipv4Addr> =
        fixture.server.queries_seen().iter().map(|seen: &Seen| *seen.client.ip()).collect();
    let mut expected: Vec<Ipv4Addr> = PODS.iter().map(|pod| pod.tenant.egress).collect();
    clients.sort();
    expected.sort();
    assert_eq!(clients, expected);
    Ok(())
}

#[test]
fn every_ping_is_answered() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    for pod in &PODS {
        for bytes in [56, 4000, 60_000] {
            assert_eq!(fixture.ping(pod, 3, bytes)?, 3, "{bytes} bytes from pod {}", pod.address);
        }
    }
    Ok(())
}

#[test]
fn traceroute_shows_the_gateway_and_what_is_behind_it() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let target = INTERNET.to_string();
    for pod in &PODS {
        for method in ["--udp", "--icmp"] {
            let output = fixture.in_pod(
                pod,
                "traceroute",
                &["-n", "-q", "1", "-N", "1", "-w", "3", "-m", "6", method, &target],
            )?;
            let found = hops(&output);
            let printed = text(&output.stdout);
            ensure!(found.len() == 4, "{method} from pod {}:\n{printed}", pod.address);
            assert_eq!(found[0], pod.node.pod_gateway, "{printed}");
            assert_eq!(found[1..], [pod.tenant.gateway, ROUTER, INTERNET], "{printed}");
        }
    }
    Ok(())
}

#[test]
fn both_tenants_are_served_at_once_from_both_nodes() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let peer = Peer::udp_echo(&fixture.lab, 7)?;
    let page = noise(1 << 20);
    let url = fixture.server.publish("megabyte", &page)?;
    fixture.require_service()?;
    let streams = PODS
        .iter()
        .map(|pod| Stream::start(&fixture.lab, pod, peer.address()))
        .collect::<Result<Vec<_>>>()?;
    let pages: Vec<Result<Vec<u8>>> = std::thread::scope(|scope| {
        let (fixture, url) = (&fixture, url.as_str());
        let fetches: Vec<_> = PODS.iter().map(|pod| scope.spawn(move || fixture.fetch(pod, url))).collect();
        fetches.into_iter().map(|fetch| fetch.join().expect("a fetch does not panic")).collect()
    });
    for got in pages {
        assert!(got? == page, "a pod got other bytes");
    }
    for (pod, stream) in PODS.iter().zip(streams) {
        stream.until_answered(200)?;
        let summary = fixture.finish_without_loss(pod, stream)?;
        let clients: Vec<_> = summary.seen_as.iter().map(|client| *client.ip()).collect();
        assert_eq!(clients, [pod.tenant.egress], "pod {}", pod.address);
    }
    Ok(())
}

#[test]
fn flows_that_start_before_the_next_hops_are_known_lose_nothing() -> Result<()> {
    let Some(fixture) = Fixture::without_tenants()? else { return Ok(()) };
    let peer = Peer::udp_echo(&fixture.lab, 7)?;
    fixture.lab.namespace(Host::Gateway).ip("neigh flush all")?;
    fixture.gateway.add_tenant(&BLUE)?;
    fixture.gateway.add_tenant(&RED)?;
    let streams = PODS
        .iter()
        .map(|pod| Stream::start(&fixture.lab, pod, peer.address()))
        .collect::<Result<Vec<_>>>()?;
    streams.iter().try_for_each(|stream| stream.until_answered(100))?;
    for (pod, stream) in PODS.iter().zip(streams) {
        fixture.finish_without_loss(pod, stream)?;
    }
    Ok(())
}

#[test]
fn the_gateways_own_tcp_services_are_untouched() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let inside = Peer::tcp_echo(&fixture.lab, Host::Gateway, GATEWAY_INSIDE, 22)?;
    let outside = Peer::tcp_echo(&fixture.lab, Host::Gateway, GATEWAY_OUTSIDE, 22)?;
    let echo = Peer::udp_echo(&fixture.lab, 7)?;
    fixture.require_service()?;
    let stream = Stream::start(&fixture.lab, &PODS[0], echo.address())?;
    stream.until_answered(50)?;
    for (from, with) in [
        (Host::Node1, inside.address()),
        (Host::Node2, inside.address()),
        (Host::Server, outside.address()),
        (Host::Internet, outside.address()),
    ] {
        converse(&fixture.lab, from, with, 1 << 18)?;
    }
    stream.until_answered(50)?;
    let summary = stream.finish();
    assert!(summary.missing.is_empty(), "{summary:?}, {}", fixture.gateway.status()?);
    Ok(())
}

#[test]
fn the_tenants_gateway_address_answers_its_nodes() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let target = BLUE.gateway.to_string();
    for node in [Host::Node1, Host::Node2] {
        let printed =
            fixture.lab.namespace(node).run("ping", &["-n", "-c", "3", "-i", "0.2", "-W", "2", &target])?;
        assert!(printed.contains(" 3 received"), "{printed}");
        let neighbour = fixture.lab.namespace(node).ip(&format!("neigh show {target}"))?;
        assert!(neighbour.contains("02:53:c0:a8:63:0d"), "{neighbour}");
    }
    Ok(())
}

//! Path MTU discovery through the gateway, in both directions: ICMP errors reach whoever sent what was too large.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::demo::capture::Capture;
use control::demo::topology::{Host, INTERNET, POD_MTU, PODS, Pod, SERVER};
use control::demo::wait;
use nix::sys::socket::{getsockopt, sockopt};
use spillway_tests::fixture::{Fixture, LIMIT};
use spillway_tests::peers::{Peer, converse, noise};

/// Source of the errors that OVN-Kubernetes sends about packets that are too large for a pod's link: a join address.
const JOIN_ADDRESS: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 3);

/// A network card's MTU, and that of every link but the pods'.
const CARD_MTU: u32 = 1500;

#[test]
fn a_server_learns_from_a_node_what_fits_a_pods_link() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let page = noise(1 << 20);
    let url = fixture.server.publish("megabyte", &page)?;
    for (pod, source) in [(&PODS[0], Some(JOIN_ADDRESS)), (&PODS[3], None)] {
        let speaker = narrow_link(&fixture, pod, source)?;
        let (inside, outside) =
            (Capture::of_inside_link(&fixture.lab)?, Capture::of_outside_link(&fixture.lab)?);
        let got = fixture.fetch(pod, &url)?;
        assert!(got == page, "pod {} got {} bytes, and not the page's", pod.address, got.len());
        let (inside, outside) = (inside.finish()?, outside.finish()?);
        let errors = "icmp[icmptype] == icmp-unreach and icmp[icmpcode] == 4";
        assert!(inside.count(&format!("{errors} and src host {speaker}"))? > 0, "{speaker} sent no error");
        let told =
            outside.count(&format!("{errors} and src host {} and dst host {SERVER}", pod.tenant.egress))?;
        assert!(told > 0, "the server was not told by {}", pod.tenant.egress);
        assert_eq!(outside.pod_sources()?, 0);
        assert_eq!(path_mtu(&fixture, Host::Server, pod.tenant.egress)?, POD_MTU, "pod {}", pod.address);
    }
    Ok(())
}

#[test]
fn a_server_that_sends_datagrams_learns_what_fits_a_pods_link() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let pod = &PODS[0];
    narrow_link(&fixture, pod, Some(JOIN_ADDRESS))?;
    let server = fixture.lab.namespace(Host::Server).enter(|| UdpSocket::bind((SERVER, 7)))??;
    let client = fixture.lab.namespace(pod.host).enter(|| UdpSocket::bind((pod.address, 0)))??;
    server.set_read_timeout(Some(LIMIT))?;
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    client.send_to(b"how much fits?", (SERVER, 7))?;
    let (_, seen_as) = server.recv_from(&mut [0; 64])?;
    server.connect(seen_as)?;
    assert_eq!(getsockopt(&server, sockopt::IpMtu)?, i32::try_from(CARD_MTU)?, "nothing is known yet");
    wait::until("the server learns the path's MTU", LIMIT, || {
        // Linux forbids that this be fragmented until it knows better. A failure tells of an earlier one's error.
        let _ = server.send(&datagram(CARD_MTU));
        Ok((getsockopt(&server, sockopt::IpMtu)? == i32::try_from(POD_MTU)?).then_some(()))
    })?;
    let mut buffer = [0; 2048];
    let length = wait::until("what fits arrives", LIMIT, || {
        let _ = server.send(&datagram(POD_MTU));
        Ok(client.recv(&mut buffer).ok())
    })?;
    assert!(buffer[..length] == datagram(POD_MTU), "{length} bytes arrived first");
    Ok(())
}

#[test]
fn a_pod_learns_from_a_router_what_fits_the_way_ahead() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let narrow = 1300;
    fixture
        .lab
        .namespace(Host::Router)
        .ip(&format!("route replace {INTERNET}/32 dev internet mtu {narrow}"))?;
    let peer = Peer::tcp_echo(&fixture.lab, Host::Internet, INTERNET, 2222)?;
    for pod in &PODS {
        converse(&fixture.lab, pod.host, peer.address(), 1 << 18)?;
        assert_eq!(path_mtu(&fixture, pod.host, INTERNET)?, narrow, "pod {}", pod.address);
    }
    Ok(())
}

/// Lets a pod believe that packets may be as large as a network card's, while its node's end of the link takes only
/// [`POD_MTU`] bytes and tells the server so from `source`, or else from its own address. Returns that address.
fn narrow_link(fixture: &Fixture, pod: &Pod, source: Option<Ipv4Addr>) -> Result<Ipv4Addr> {
    let node = fixture.lab.namespace(pod.node.host);
    fixture.lab.namespace(pod.host).ip(&format!("link set eth0 mtu {CARD_MTU}"))?;
    let source = source.unwrap_or(pod.node.address);
    if source != pod.node.address {
        node.ip(&format!("addr add {source}/32 dev lo"))?;
    }
    node.ip(&format!("route add {SERVER} via {} src {source}", pod.tenant.gateway))?;
    Ok(source)
}

/// Returns what a host knows of the path to an address.
fn path_mtu(fixture: &Fixture, host: Host, to: Ipv4Addr) -> Result<u32> {
    let route = fixture.lab.namespace(host).ip(&format!("route get {to}"))?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    let mtu = words.next().with_context(|| format!("{host:?} has learned no MTU: {route}"))?;
    ensure!(route.contains("cache"), "{host:?} did not learn it: {route}");
    Ok(mtu.parse()?)
}

/// Returns what a UDP datagram carries in a packet of `packet_bytes`.
fn datagram(packet_bytes: u32) -> Vec<u8> {
    noise(packet_bytes as usize - 20 - 8)
}

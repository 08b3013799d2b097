//! Whom a tenant's packets may come from: networks, live pods or nodes; and what all others hear.

use std::net::Ipv4Addr;

use conntrack::Protocol::Udp;
use conntrack::{Filtering, Mapping, TcpFlags};
use ipnet::Ipv4Net;

use super::{POD, RED_EGRESS, SYN_ACK, answer, come_back, ends, leave, leave_by, only};
use crate::io::sim::Faults;
use crate::snapshot::Side::{Inside, Outside};
use crate::snapshot::{RouteSpec, SnapshotSpec, SourceKind};
use crate::testing::fragments::{fragments, packet};
use crate::testing::rig::{Rig, check_sent};
use crate::testing::{
    BLUE, BLUE_MAC, Gateway, INSIDE_MAC, gateway, icmp_error_about, red, tcp_frame, udp_frame,
};
use crate::verdict::DropReason;

const SERVER: &str = "192.168.55.13:53";
const NODE: &str = "192.168.99.21";

fn nets(prefixes: &[&str]) -> Vec<Ipv4Net> {
    prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect()
}

/// A gateway whose blue tenant may send from some addresses.
fn with_sources(source_kind: SourceKind, sources: Vec<Ipv4Net>) -> Gateway {
    gateway().change(|spec| {
        let blue = &mut spec.tenants[0];
        (blue.source_kind, blue.sources) = (source_kind, sources);
    })
}

fn live_pods(pods: &[&str]) -> Gateway {
    with_sources(
        SourceKind::LivePods,
        pods.iter().map(|pod| Ipv4Net::from(pod.parse::<Ipv4Addr>().unwrap())).collect(),
    )
}

fn nodes() -> Gateway {
    with_sources(SourceKind::Nodes, nets(&["192.168.99.21/32", "192.168.99.22/32"]))
}

/// The first packet of a flow of UDP and of TCP.
fn first_packets(source: &str) -> [Vec<u8>; 2] {
    let source = format!("{source}:40000");
    [udp_frame(&source, SERVER, b"x"), tcp_frame(&source, SERVER, TcpFlags::SYN)]
}

#[test]
fn what_a_tenant_may_not_send_from_is_told_apart() {
    let networks = with_sources(SourceKind::Networks, nets(&["10.132.0.0/24"]));
    let pods = live_pods(&[POD]);
    let cases = [
        (&networks, "10.132.1.7", DropReason::UnknownSource),
        (&networks, "172.16.0.5", DropReason::UnknownSource),
        (&networks, NODE, DropReason::NodeSource),
        (&pods, "10.132.0.6", DropReason::UnknownPod),
        (&pods, "172.16.0.5", DropReason::UnknownSource),
        (&pods, NODE, DropReason::NodeSource),
        (&nodes(), POD, DropReason::PodSource),
        (&nodes(), "172.16.0.5", DropReason::UnknownSource),
        (&nodes(), "192.168.99.77", DropReason::UnknownSource),
    ];
    for workers in [1, 4] {
        for (gateway, source, reason) in &cases {
            for (frame, is_tcp) in first_packets(source).iter().zip([false, true]) {
                let mut rig = Rig::with(gateway.spec(), workers, Faults::default(), 1);
                let answers = rig.send(Inside, frame, Inside);
                assert!(rig.take(Outside).is_empty());
                let counted = (rig.drops_of(BLUE, *reason), rig.all_drops(), rig.sessions());
                assert_eq!(counted, (1, 1, 0), "{source}: {}", reason.name());
                if *reason == DropReason::UnknownPod {
                    assert!(answers.is_empty(), "an unknown pod hears nothing");
                    continue;
                }
                let answer = only(answers);
                check_sent(Inside, &answer, &[]);
                match is_tcp {
                    true => assert_eq!((answer[23], answer[47] & 4), (6, 4), "RST"),
                    false => assert_eq!((answer[34], answer[35]), (3, 13)),
                }
            }
        }
    }
}

#[test]
fn sources_of_every_kind_pass_both_ways() {
    let many: Vec<String> = (0..1000).map(|pod| format!("10.132.{}.{}", pod / 250, pod % 250)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let cases = [
        (with_sources(SourceKind::Networks, nets(&["10.132.0.0/24"])), POD),
        (live_pods(&[POD, "10.132.0.6"]), POD),
        (live_pods(&many), "10.132.0.249"),
        (nodes(), NODE),
    ];
    for workers in [1, 4] {
        for (gateway, source) in &cases {
            let mut rig = Rig::with(gateway.spec(), workers, Faults::default(), 1);
            for frame in first_packets(source) {
                let out = leave(&mut rig, &frame);
                let back = come_back(&mut rig, &answer(&out, SYN_ACK));
                assert_eq!(ends(&back).destination, (source.parse().unwrap(), 40000));
            }
            assert_eq!((rig.sessions(), rig.all_drops()), (2, 0), "{source}");
        }
    }
}

#[test]
fn a_pod_that_becomes_known_gets_through_when_it_tries_again() {
    let mut rig = Rig::new(live_pods(&[POD]).spec());
    for frame in first_packets("10.132.0.6") {
        assert!(rig.send(Inside, &frame, Inside).is_empty());
    }
    rig.publish(live_pods(&[POD, "10.132.0.6"]).epoch(2).spec());
    for frame in first_packets("10.132.0.6") {
        leave(&mut rig, &frame);
    }
    assert_eq!((rig.drops(DropReason::UnknownPod), rig.all_drops()), (2, 2));
}

#[test]
fn a_pod_that_is_gone_loses_its_sessions_and_others_keep_theirs() {
    for workers in [1, 4] {
        let mut rig = Rig::with(live_pods(&[POD, "10.132.0.6"]).spec(), workers, Faults::default(), 1);
        let [stays, goes] = [POD, "10.132.0.6"].map(|pod| first_packets(pod)[0].clone());
        let out = [&stays, &goes].map(|frame| leave(&mut rig, frame));
        rig.publish(live_pods(&[POD]).epoch(2).spec());
        assert!(rig.send(Outside, &answer(&out[1], TcpFlags::default()), Inside).is_empty());
        assert!(rig.send(Inside, &goes, Inside).is_empty() && rig.take(Outside).is_empty());
        come_back(&mut rig, &answer(&out[0], TcpFlags::default()));
        assert_eq!(ends(&leave(&mut rig, &stays)), ends(&out[0]));
        let counted = (rig.drops(DropReason::NoSession), rig.drops(DropReason::UnknownPod));
        assert_eq!((rig.sessions(), counted), (1, (1, 1)));
    }
}

#[test]
fn nobody_is_let_in_to_a_mapping_of_a_pod_that_is_gone() {
    let open = |gateway: Gateway| {
        gateway.change(|spec| {
            spec.tenants[0].policy.mapping = Mapping::EndpointIndependent;
            spec.tenants[0].policy.filtering = Filtering::EndpointIndependent;
        })
    };
    let mut rig = Rig::new(open(live_pods(&[POD, "10.132.0.6"])).spec());
    let (egress, port) = ends(&leave(&mut rig, &first_packets("10.132.0.6")[0])).source;
    let stranger = udp_frame("203.0.113.9:80", &format!("{egress}:{port}"), b"x");
    rig.publish(open(live_pods(&[POD])).epoch(2).spec());
    assert!(rig.send(Outside, &stranger, Inside).is_empty());
    assert_eq!((rig.drops(DropReason::NoSession), rig.all_drops()), (1, 1));
}

#[test]
fn an_error_from_inside_is_matched_by_what_it_quotes_whatever_its_source() {
    for (gateway, source) in [(live_pods(&[POD]), POD), (nodes(), NODE)] {
        for speaker in ["100.64.0.3", "10.132.0.6", "192.168.99.22", "172.16.0.5"] {
            let mut rig = Rig::new(gateway.spec());
            let out = leave(&mut rig, &first_packets(source)[0]);
            let back = come_back(&mut rig, &answer(&out, TcpFlags::default()));
            let mut error = icmp_error_about(speaker, &back, 3, 8);
            error[..6].copy_from_slice(BLUE_MAC.as_bytes());
            let error = leave(&mut rig, &error);
            assert_eq!(error[30..34], [192, 168, 55, 13], "to the server, about what it sent");
            assert_eq!(rig.all_drops(), 0, "{speaker}");
        }
    }
}

#[test]
fn fragments_of_an_unknown_pod_are_dropped_without_a_word_and_keep_no_place() {
    for workers in [1, 4] {
        let mut rig = Rig::with(live_pods(&[POD]).spec(), workers, Faults::default(), 1);
        let pieces = fragments(&packet(Udp, "10.132.0.6:40000", SERVER, &[7; 2500], false), 1000);
        for (index, piece) in pieces.iter().rev().enumerate() {
            rig.inject(index % usize::from(workers), Inside, piece);
        }
        rig.run();
        assert!(rig.take(Inside).is_empty() && rig.take(Outside).is_empty());
        assert_eq!(rig.drops(DropReason::UnknownPod), pieces.len() as u64);
        assert!(rig.workers.iter().all(|worker| worker.fragments_waiting() == 0));
    }
}

#[test]
fn a_tenants_sources_are_its_own() {
    let mut rig = Rig::new(live_pods(&[POD]).spec());
    let [frame, _] = first_packets("10.132.0.6");
    leave_by(&mut rig, &red(frame.clone()), &[RED_EGRESS]);
    assert!(rig.send(Inside, &frame, Outside).is_empty());
    assert_eq!((rig.drops_of(BLUE, DropReason::UnknownPod), rig.all_drops()), (1, 1));
}

#[test]
fn the_longest_inside_route_tells_whether_a_source_is_a_node() {
    let behind = |spec: &mut SnapshotSpec| {
        let (prefix, gateway) = ("192.168.99.64/26".parse().unwrap(), Some(NODE.parse().unwrap()));
        spec.routes.push(RouteSpec { side: Inside, prefix, gateway });
        spec.pod_cidrs.push("192.168.99.128/25".parse().unwrap());
    };
    for (source, reason) in [
        ("192.168.99.63", DropReason::NodeSource),
        ("192.168.99.64", DropReason::UnknownSource),
        ("192.168.99.128", DropReason::UnknownPod),
        ("192.168.55.20", DropReason::UnknownSource),
    ] {
        let mut rig = Rig::new(live_pods(&[POD]).change(behind).spec());
        rig.send(Inside, &first_packets(source)[0], Inside);
        assert_eq!((rig.drops(reason), rig.all_drops()), (1, 1), "{source}: {}", reason.name());
    }
}

#[test]
fn a_leak_is_seen_among_hundreds_of_pod_networks() {
    let networks = || (0..600u32).map(|node| Ipv4Addr::from_bits(0x0a80_0000 + (node << 8)));
    let all = networks().map(|network| Ipv4Net::new(network, 24).unwrap()).collect();
    let mut rig = Rig::new(gateway().change(|spec| spec.pod_cidrs = all).spec());
    for network in networks().chain(["10.127.0.0".parse().unwrap()]) {
        let mut frame = first_packets(&Ipv4Addr::from_bits(network.to_bits() + 7).to_string())[0].clone();
        frame[..6].copy_from_slice(INSIDE_MAC.as_bytes());
        rig.send(Inside, &frame, Inside);
    }
    assert_eq!((rig.drops(DropReason::Leak), rig.drops(DropReason::UnknownTenant)), (600, 1));
}

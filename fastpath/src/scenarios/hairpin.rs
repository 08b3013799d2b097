//! Pods that talk to egress addresses of the gateway reach the pods behind them (RFC 4787 REQ-9).
//!
//! ```text
//!   red's pod 10.132.0.6 ──▶ 192.168.55.113:PORT ── blue's mapping ──▶ blue's pod 10.132.0.5:7000
//!                  └─ seen as 192.168.55.114:X ─┘
//! ```

use std::net::Ipv4Addr;

use conntrack::Protocol::Udp;
use conntrack::{Filtering, Mapping, TcpFlags};

use super::{EGRESS, Ends, POD, RED_EGRESS, SYN_ACK, ends, leave, only, with_ttl};
use crate::io::sim::Faults;
use crate::snapshot::Side::{Inside, Outside};
use crate::snapshot::SnapshotSpec;
use crate::testing::fragments::{fragments, packet, reassemble};
use crate::testing::rig::{Rig, check_checksums, check_sent};
use crate::testing::{BLUE_MAC, RED_MAC, echo_frame, gateway, icmp_error_about, tcp_frame, udp_frame};
use crate::verdict::DropReason;

const BLUE_POD: &str = "10.132.0.5:7000";
const RED_POD: &str = "10.132.0.6:8000";
const RED_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 132, 0, 6);

/// A gateway where strangers may talk to blue's mappings.
fn open_gateway() -> SnapshotSpec {
    let open = |spec: &mut SnapshotSpec| {
        spec.tenants[0].policy.mapping = Mapping::EndpointIndependent;
        spec.tenants[0].policy.filtering = Filtering::EndpointIndependent;
    };
    gateway().change(open).spec()
}

/// Lets blue's pod open its port; returns where it is seen.
fn open_port(rig: &mut Rig, frame: &[u8]) -> String {
    let (address, port) = ends(&leave(rig, frame)).source;
    format!("{address}:{port}")
}

fn of_red(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(RED_MAC.as_bytes());
    frame
}

/// Sends a frame in from a pod; exactly one comes out, to a pod.
fn turn(rig: &mut Rig, frame: &[u8]) -> Vec<u8> {
    let sent = only(rig.send(Inside, frame, Inside));
    check_sent(Inside, &sent, &[]);
    assert!(rig.take(Outside).is_empty(), "it never leaves by the outside");
    sent
}

fn text(end: (Ipv4Addr, u16)) -> String {
    format!("{}:{}", end.0, end.1)
}

fn check_counts(rig: &Rig) {
    let report = rig.all_tenants();
    let forwarded = report.outbound_packets + report.inbound_packets;
    assert_eq!(
        rig.accepted() + rig.hairpinned(),
        forwarded + rig.all_drops(),
        "every packet is counted once"
    );
}

#[test]
fn a_pod_reaches_another_tenants_pod_by_its_egress_address_and_is_seen_by_its_own() {
    for workers in [1, 4] {
        let mut rig = Rig::with(open_gateway(), workers, Faults::default(), 1);
        let blue = open_port(&mut rig, &udp_frame(BLUE_POD, "192.168.55.13:53", b"x"));
        let there = turn(&mut rig, &of_red(udp_frame(RED_POD, &blue, b"hello")));
        let Ends { source, destination } = ends(&there);
        assert_eq!((source.0, destination), (RED_EGRESS, (Ipv4Addr::new(10, 132, 0, 5), 7000)));
        assert_eq!(&there[6..12], BLUE_MAC.as_bytes(), "from blue's gateway");
        let back = turn(&mut rig, &udp_frame(BLUE_POD, &text(source), b"hello"));
        assert_eq!(text(ends(&back).source), blue);
        assert_eq!(ends(&back).destination, (RED_ADDRESS, 8000));
        assert_eq!(&back[6..12], RED_MAC.as_bytes(), "from red's gateway");
        assert_eq!((rig.all_drops(), rig.hairpinned()), (0, 2));
        check_counts(&rig);
    }
}

#[test]
fn a_pod_reaches_a_pod_of_its_own_tenant_by_their_egress_address() {
    let mut rig = Rig::new(open_gateway());
    let seen = open_port(&mut rig, &udp_frame(BLUE_POD, "192.168.55.13:53", b"x"));
    let there = turn(&mut rig, &udp_frame("10.132.0.9:9000", &seen, b"hello"));
    assert_eq!(ends(&there).source.0, EGRESS);
    let back = turn(&mut rig, &udp_frame(BLUE_POD, &text(ends(&there).source), b"hello"));
    assert_eq!(ends(&back).destination, (Ipv4Addr::new(10, 132, 0, 9), 9000));
}

#[test]
fn a_connection_between_pods_is_opened_by_the_tenants_egress_addresses() {
    let mut rig = Rig::new(open_gateway());
    let blue = open_port(&mut rig, &tcp_frame(BLUE_POD, "192.168.55.13:80", TcpFlags::SYN));
    let syn = turn(&mut rig, &of_red(tcp_frame(RED_POD, &blue, TcpFlags::SYN)));
    let red = text(ends(&syn).source);
    turn(&mut rig, &tcp_frame(BLUE_POD, &red, SYN_ACK));
    turn(&mut rig, &of_red(tcp_frame(RED_POD, &blue, TcpFlags::ACK)));
    assert_eq!(rig.all_drops(), 0);
}

#[test]
fn filtering_holds_for_pods_as_for_the_world() {
    let mut rig = Rig::new(gateway().spec());
    let blue = open_port(&mut rig, &udp_frame(BLUE_POD, "192.168.55.13:53", b"x"));
    assert!(rig.send(Inside, &of_red(udp_frame(RED_POD, &blue, b"x")), Inside).is_empty());
    assert!(rig.take(Outside).is_empty());
    assert_eq!(rig.drops(DropReason::NoSession), 1);
    check_counts(&rig);
}

#[test]
fn an_error_about_a_hairpinned_packet_comes_home_with_the_packet_as_it_was_sent() {
    let mut rig = Rig::new(open_gateway());
    let blue = open_port(&mut rig, &udp_frame(BLUE_POD, "192.168.55.13:53", b"x"));
    let sent = of_red(udp_frame(RED_POD, &blue, b"hello"));
    let there = turn(&mut rig, &sent);
    let mut error = icmp_error_about("100.64.0.3", &there, 3, 13);
    error[..6].copy_from_slice(BLUE_MAC.as_bytes());
    let home = turn(&mut rig, &error);
    assert_eq!(home[26..30], EGRESS.octets(), "from blue's egress address");
    assert_eq!(home[30..34], RED_ADDRESS.octets());
    assert_eq!(home[42 + 12..42 + 20], sent[14 + 12..14 + 20], "it quotes the addresses that red's pod used");
    assert_eq!(home[62..66], sent[34..38], "and its ports");
    assert_eq!(rig.all_drops(), 0);
}

#[test]
fn fragments_are_hairpinned_in_any_order() {
    for workers in [1, 4] {
        for is_reversed in [false, true] {
            let mut rig = Rig::with(open_gateway(), workers, Faults::default(), 1);
            let blue = open_port(&mut rig, &udp_frame(BLUE_POD, "192.168.55.13:53", b"x"));
            let whole = packet(Udp, RED_POD, &blue, &[7; 3000], true);
            let mut parts = fragments(&of_red(whole), 1000);
            if is_reversed {
                parts.reverse();
            }
            let mut sent = Vec::new();
            for (index, part) in parts.iter().enumerate() {
                rig.inject(index % usize::from(workers), Inside, part);
                rig.run();
                sent.extend(rig.take(Inside));
            }
            let whole = reassemble(&sent);
            check_checksums(&whole);
            assert_eq!(ends(&whole).destination, (Ipv4Addr::new(10, 132, 0, 5), 7000));
            assert_eq!((rig.all_drops(), rig.take(Outside).len()), (0, 0));
        }
    }
}

#[test]
fn a_hairpinned_packet_takes_two_hops_and_fits_both_links() {
    let mut rig = Rig::new(open_gateway());
    let blue = open_port(&mut rig, &udp_frame(BLUE_POD, "192.168.55.13:53", b"x"));
    let expired = only(rig.send(Inside, &with_ttl(of_red(udp_frame(RED_POD, &blue, b"x")), 2), Inside));
    assert_eq!((expired[34], rig.drops(DropReason::TtlExceeded)), (11, 1));
    assert_eq!(expired[26..30], [192, 168, 99, 14], "red's own gateway says so");
    let there = turn(&mut rig, &with_ttl(of_red(udp_frame(RED_POD, &blue, b"x")), 3));
    assert_eq!(there[22], 1);

    let mut spec = open_gateway();
    spec.inside.mtu = 1400;
    let mut rig = Rig::new(spec);
    let blue = open_port(&mut rig, &udp_frame(BLUE_POD, "192.168.55.13:53", b"x"));
    let refused = only(rig.send(Inside, &of_red(udp_frame(RED_POD, &blue, &[0; 1440])), Inside));
    assert_eq!((refused[34], refused[35]), (3, 4));
    assert_eq!(u16::from_be_bytes([refused[40], refused[41]]), 1400, "the smaller of both");
}

#[test]
fn the_world_cannot_speak_as_an_egress_address() {
    let mut rig = Rig::new(open_gateway());
    let blue = open_port(&mut rig, &udp_frame(BLUE_POD, "192.168.55.13:53", b"x"));
    let red = text(ends(&turn(&mut rig, &of_red(udp_frame(RED_POD, &blue, b"x")))).source);
    // Red lets nobody in but whom its pod has sent to: blue's egress address and port.
    assert!(rig.send(Outside, &udp_frame(&blue, &red, b"x"), Inside).is_empty());
    let parts = fragments(&packet(Udp, &blue, &red, &[7; 2000], true), 1000);
    assert!(parts.iter().rev().all(|part| rig.send(Outside, part, Inside).is_empty()));
    assert_eq!(rig.drops(DropReason::MartianAddress), 1 + parts.len() as u64);
    turn(&mut rig, &udp_frame(BLUE_POD, &red, b"x"));
}

#[test]
fn nothing_about_a_hairpinned_packet_leaves_by_the_outside() {
    let mut rig = Rig::new(open_gateway());
    let blue = open_port(&mut rig, &udp_frame(BLUE_POD, "192.168.55.13:53", b"x"));
    turn(&mut rig, &of_red(udp_frame(RED_POD, &blue, b"x")));
    let next = |change: fn(&mut SnapshotSpec), epoch| {
        let mut spec = SnapshotSpec { epoch: conntrack::Epoch(epoch), ..open_gateway() };
        change(&mut spec);
        spec
    };
    rig.publish(next(|spec| spec.neighbours.retain(|neighbour| neighbour.side == Outside), 2));
    rig.send(Inside, &of_red(udp_frame(RED_POD, &blue, &[0; 1300])), Inside);
    rig.publish(next(|spec| spec.inside.mtu = 1000, 3));
    assert!(rig.take(Outside).is_empty(), "the link became too narrow while it waited");
    assert_eq!(rig.drops(DropReason::TooBig), 1);
}

#[test]
fn an_egress_address_does_not_answer_pings_of_pods() {
    let mut rig = Rig::new(open_gateway());
    let ping = echo_frame(POD, "192.168.55.114", 7, false);
    assert!(rig.send(Inside, &ping, Inside).is_empty() && rig.take(Outside).is_empty());
    assert_eq!(rig.drops(DropReason::NoSession), 1);
    check_counts(&rig);
}

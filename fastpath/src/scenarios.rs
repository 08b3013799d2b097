//! The whole pipeline on simulated wires: what goes in, what comes out, and that nothing is lost between.

use std::net::Ipv4Addr;
use std::time::Duration;

use conntrack::{TcpFlags, TenantId};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use crate::io::sim::Faults;
use crate::snapshot::Side::{Inside, Outside};
use crate::snapshot::{NeighbourSpec, Side, SnapshotSpec};
use crate::testing::rig::{Rig, check_checksums, check_sent, check_source};
use crate::testing::{
    BLUE_MAC, INSIDE_MAC, NODE_MAC, OUTSIDE_MAC, ROUTER_MAC, SERVER_MAC, corrupt, echo_frame, gateway,
    icmp_error_about, tcp_frame, udp_frame,
};
use crate::verdict::DropReason;

const POD: &str = "10.132.0.5";
const EGRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 113);
const SYN_ACK: TcpFlags = TcpFlags(TcpFlags::SYN.0 | TcpFlags::ACK.0);

/// Ends of a packet: source and destination address and port.
#[derive(Clone, Debug, PartialEq)]
struct Ends {
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
}

fn ends(frame: &[u8]) -> Ends {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!("{packet:?}") };
    let (source_port, destination_port) = match packet.transport {
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        _ => (0, 0),
    };
    Ends {
        source: (ip.header().source_addr(), source_port),
        destination: (ip.header().destination_addr(), destination_port),
    }
}

/// Returns the frame that answers one that left the gateway outside.
fn answer(frame: &[u8], flags: TcpFlags) -> Vec<u8> {
    let Ends { source, destination } = ends(frame);
    let (from, to) = (format!("{}:{}", destination.0, destination.1), format!("{}:{}", source.0, source.1));
    let mut reply = match frame[23] {
        6 => tcp_frame(&from, &to, flags),
        _ => udp_frame(&from, &to, b"reply"),
    };
    reply[..6].copy_from_slice(OUTSIDE_MAC.as_bytes());
    reply[6..12].copy_from_slice(SERVER_MAC.as_bytes());
    reply
}

fn only(mut frames: Vec<Vec<u8>>) -> Vec<u8> {
    assert_eq!(frames.len(), 1, "exactly one frame leaves");
    frames.remove(0)
}

fn leave(rig: &mut Rig, frame: &[u8]) -> Vec<u8> {
    let sent = only(rig.send(Inside, frame, Outside));
    check_sent(Outside, &sent, &[EGRESS]);
    sent
}

fn come_back(rig: &mut Rig, frame: &[u8]) -> Vec<u8> {
    let sent = only(rig.send(Outside, frame, Inside));
    check_sent(Inside, &sent, &[]);
    sent
}

#[test]
fn a_udp_exchange_is_translated_both_ways() {
    let mut rig = Rig::new(gateway().spec());
    let out = leave(&mut rig, &udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"query"));
    assert_eq!(ends(&out).source.0, EGRESS);
    assert_eq!(ends(&out).destination, (Ipv4Addr::new(192, 168, 55, 13), 53));
    assert_eq!((&out[..6], &out[6..12]), (SERVER_MAC.as_bytes(), OUTSIDE_MAC.as_bytes()));
    assert_eq!(out[22], 63, "time to live");

    let back = come_back(&mut rig, &answer(&out, TcpFlags::default()));
    assert_eq!(ends(&back).destination, (POD.parse().unwrap(), 40000));
    assert_eq!((&back[..6], &back[6..12]), (NODE_MAC.as_bytes(), BLUE_MAC.as_bytes()));
    let blue = rig.blue();
    assert_eq!((blue.outbound_packets, blue.inbound_packets, blue.sessions), (1, 1, 1));
    assert_eq!(rig.all_drops(), 0);
}

#[test]
fn a_tcp_connection_is_translated_from_syn_to_fin_and_its_port_is_freed() {
    let mut rig = Rig::new(gateway().spec());
    let pod = |flags| tcp_frame("10.132.0.5:40000", "192.168.55.13:80", flags);
    let out = leave(&mut rig, &pod(TcpFlags::SYN));
    for (from_pod, flags) in
        [(false, SYN_ACK), (true, TcpFlags::ACK), (true, TcpFlags(0x11)), (false, TcpFlags(0x11))]
    {
        let sent =
            if from_pod { leave(&mut rig, &pod(flags)) } else { come_back(&mut rig, &answer(&out, flags)) };
        assert_eq!(sent[47] & 0x17, flags.0);
    }
    rig.wait(Duration::from_secs(239));
    assert_eq!(rig.sessions(), 1);
    rig.wait(Duration::from_secs(1));
    assert_eq!(rig.sessions(), 0);
    assert_eq!(rig.blue().sessions, 0);
}

#[test]
fn a_ping_keeps_its_identifier_towards_the_pod() {
    let mut rig = Rig::new(gateway().spec());
    let out = leave(&mut rig, &echo_frame(POD, "192.168.55.13", 4711, false));
    let identifier = u16::from_be_bytes([out[38], out[39]]);
    let reply = echo_frame("192.168.55.13", "192.168.55.113", identifier, true);
    let back = come_back(&mut rig, &reply);
    assert_eq!(u16::from_be_bytes([back[38], back[39]]), 4711);
    let request = echo_frame("192.168.55.13", "192.168.55.113", identifier, false);
    assert!(rig.send(Outside, &request, Inside).is_empty(), "a query from outside is not a reply");
}

#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    let mut rig = Rig::new(gateway().spec());
    let frame = corrupt(&udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x"), &[(40, 0), (41, 0)]);
    assert_eq!(leave(&mut rig, &frame)[40..42], [0, 0]);
}

#[test]
fn an_error_of_a_router_reaches_the_pod_about_its_own_packet() {
    let mut rig = Rig::new(gateway().spec());
    for kind in [3, 11] {
        for quoted in [8, 28] {
            let out = leave(
                &mut rig,
                &udp_frame("10.132.0.5:40000", "198.51.100.7:33434", b"0123456789abcdefghij"),
            );
            let back = come_back(&mut rig, &icmp_error_about("192.168.55.1", &out, kind, quoted));
            assert_eq!(ends(&back).source.0, Ipv4Addr::new(192, 168, 55, 1));
            assert_eq!(ends(&back).destination.0, POD.parse::<Ipv4Addr>().unwrap());
            assert_eq!(back[54..58], [10, 132, 0, 5], "source of the quoted packet");
            assert_eq!(u16::from_be_bytes([back[62], back[63]]), 40000, "its port");
            assert_eq!(conntrack::checksum::checksum(0, &back[42..62]), 0, "its header checksum");
        }
    }
    let stray = udp_frame("192.168.55.113:1", "198.51.100.7:33434", b"");
    assert!(rig.send(Outside, &icmp_error_about("192.168.55.1", &stray, 3, 8), Inside).is_empty());
    assert_eq!(rig.drops(DropReason::NoSession), 1);
}

#[test]
fn an_error_from_inside_leaves_with_the_egress_address_whatever_its_source_was() {
    let mut rig = Rig::new(gateway().spec());
    let out = leave(&mut rig, &udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"query"));
    let back = come_back(&mut rig, &answer(&out, TcpFlags::default()));
    let mut error = icmp_error_about("100.64.0.3", &back, 3, 8);
    error[..6].copy_from_slice(BLUE_MAC.as_bytes());
    let sent = leave(&mut rig, &error);
    assert_eq!(ends(&sent).source.0, EGRESS);
    assert_eq!(sent[58..62], EGRESS.octets(), "destination of the quoted packet");
}

#[test]
fn a_trace_sees_the_gateway_as_a_hop() {
    let mut rig = Rig::new(gateway().spec());
    let mut frame = udp_frame("10.132.0.5:40000", "198.51.100.7:33434", b"0123456789");
    frame[22] = 1;
    frame[24..26].fill(0);
    let sum = conntrack::checksum::checksum(0, &frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let error = only(rig.send(Inside, &frame, Inside));
    check_sent(Inside, &error, &[]);
    assert_eq!(ends(&error).source.0, Ipv4Addr::new(192, 168, 99, 13), "the tenant's gateway address");
    assert_eq!((error[34], error[35]), (11, 0));
    assert_eq!(error[42..], frame[14..], "the packet as it was sent");
    assert_eq!(rig.sessions(), 0, "nothing is left behind");
}

#[test]
fn what_may_not_pass_is_refused_counted_and_leaves_nothing_behind() {
    let to_nic = |frame: Vec<u8>| {
        let mut frame = frame;
        frame[..6].copy_from_slice(INSIDE_MAC.as_bytes());
        frame
    };
    let udp = udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x");
    let syn = tcp_frame("10.132.0.5:40000", "192.168.55.13:80", TcpFlags::SYN);
    type Case = (&'static str, Vec<u8>, DropReason, Option<(u8, u8)>);
    let cases: Vec<Case> = vec![
        ("leak, UDP", to_nic(udp.clone()), DropReason::Leak, Some((3, 13))),
        ("leak, TCP", to_nic(syn.clone()), DropReason::Leak, None),
        (
            "unknown source",
            udp_frame("172.16.0.5:1", "192.168.55.13:53", b"x"),
            DropReason::UnknownSource,
            Some((3, 13)),
        ),
        ("hairpin", udp_frame("10.132.0.5:1", "192.168.55.114:53", b"x"), DropReason::Hairpin, Some((3, 13))),
        (
            "no session",
            tcp_frame("10.132.0.5:1", "192.168.55.13:80", TcpFlags::ACK),
            DropReason::NoSession,
            None,
        ),
        (
            "too big",
            udp_frame("10.132.0.5:1", "192.168.55.13:53", &[0; 1480]),
            DropReason::TooBig,
            Some((3, 4)),
        ),
    ];
    for (name, mut frame, reason, icmp) in cases {
        let mut rig = Rig::new(gateway().spec());
        if reason == DropReason::TooBig {
            frame = corrupt(&frame, &[(20, 0x40)]);
            frame[24..26].fill(0);
            let sum = conntrack::checksum::checksum(0, &frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        let answer = only(rig.send(Inside, &frame, Inside));
        check_sent(Inside, &answer, &[]);
        assert_eq!(answer[..6], frame[6..12], "{name}: back to where it came from");
        match icmp {
            Some(error) => assert_eq!((answer[34], answer[35]), error, "{name}"),
            None => assert_eq!((answer[23], answer[47] & 0x04), (6, 0x04), "{name}: RST"),
        }
        assert!(rig.take(Outside).is_empty(), "{name}");
        assert_eq!((rig.drops(reason), rig.all_drops(), rig.sessions()), (1, 1, 0), "{name}");
    }
}

#[test]
fn a_reset_is_believable_to_the_client_that_it_refuses() {
    let mut rig = Rig::new(gateway().spec());
    let syn = corrupt(&tcp_frame("10.132.0.5:40000", "192.168.55.13:80", TcpFlags::SYN), &[(0, 6)]);
    let rst = only(rig.send(Inside, &syn, Inside));
    assert_eq!(
        ends(&rst),
        Ends { source: ("192.168.55.13".parse().unwrap(), 80), destination: (POD.parse().unwrap(), 40000) }
    );
    assert_eq!(u32::from_be_bytes(rst[42..46].try_into().unwrap()), 1001, "it acknowledges the SYN");
    let reset = tcp_frame("10.132.0.5:40000", "192.168.55.13:80", TcpFlags::RST);
    assert!(rig.send(Inside, &reset, Inside).is_empty(), "a RST is not answered");
}

#[test]
fn the_world_gets_no_answer_to_what_it_was_not_asked_for() {
    let mut rig = Rig::new(gateway().spec());
    for frame in [
        udp_frame("192.168.55.13:53", "192.168.55.113:40000", b"x"),
        tcp_frame("192.168.55.13:80", "192.168.55.113:40000", TcpFlags::SYN),
    ] {
        assert!(rig.send(Outside, &frame, Outside).is_empty());
        assert!(rig.take(Inside).is_empty());
    }
    assert_eq!(rig.drops(DropReason::NoSession), 2);
}

#[test]
fn a_flood_of_refused_packets_gets_a_bounded_number_of_answers() {
    let mut rig = Rig::new(gateway().spec());
    let mut answers = 0;
    for port in 1..=3000 {
        answers += rig
            .send(Inside, &udp_frame(&format!("172.16.0.5:{port}"), "192.168.55.13:53", b"x"), Inside)
            .len();
    }
    assert_eq!(answers, 1000);
    rig.wait(Duration::from_millis(500));
    assert_eq!(rig.send(Inside, &udp_frame("172.16.0.5:1", "192.168.55.13:53", b"x"), Inside).len(), 1);
}

fn without_server(epoch: u32) -> SnapshotSpec {
    gateway().without_neighbour("192.168.55.13").epoch(epoch).spec()
}

#[test]
fn a_frame_waits_for_its_neighbour_and_then_leaves() {
    let mut rig = Rig::new(without_server(1));
    let frame = udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x");
    assert!(rig.send(Inside, &frame, Outside).is_empty());
    assert!(rig.send(Inside, &frame, Outside).is_empty());
    let asked: Vec<_> = rig.requests().into_iter().map(|request| (request.side, request.address)).collect();
    assert_eq!(asked, [(Outside, "192.168.55.13".parse().unwrap())], "asked once");
    assert_eq!(rig.sessions(), 0);
    rig.publish(gateway().epoch(2).spec());
    let sent = rig.take(Outside);
    assert_eq!(sent.len(), 2);
    assert_eq!(rig.sessions(), 1);
}

#[test]
fn a_frame_whose_neighbour_never_answers_is_given_up_with_a_word_to_the_pod() {
    let mut rig = Rig::new(without_server(1));
    rig.send(Inside, &udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x"), Outside);
    rig.wait(Duration::from_secs(2));
    rig.publish(without_server(2));
    assert!(rig.take(Inside).is_empty());
    rig.wait(Duration::from_secs(1));
    let error = only(rig.take(Inside));
    assert_eq!((error[34], error[35]), (3, 1), "another snapshot does not prolong the wait");
    assert_eq!(rig.drops(DropReason::NeighbourUnresolved), 1);
}

#[test]
fn few_frames_wait_for_one_address_and_the_rest_are_dropped() {
    let mut rig = Rig::new(without_server(1));
    for port in 0..120 {
        rig.inject(0, Inside, &udp_frame(&format!("10.132.0.5:{}", 40000 + port), "192.168.55.13:53", b"x"));
    }
    rig.run();
    assert_eq!(rig.drops(DropReason::NeighbourUnresolved), 120 - 100);
}

#[test]
fn sessions_survive_a_policy_change_that_does_not_concern_them() {
    let mut rig = Rig::new(gateway().spec());
    let frame = udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x");
    let before = leave(&mut rig, &frame);
    let moved = NeighbourSpec { side: Outside, address: "192.168.55.13".parse().unwrap(), mac: ROUTER_MAC };
    rig.publish(
        gateway()
            .without_red()
            .without_neighbour("192.168.55.13")
            .epoch(2)
            .change(|spec| spec.neighbours.insert(0, moved))
            .spec(),
    );
    let after = leave(&mut rig, &frame);
    assert_eq!(ends(&before), ends(&after), "same egress address and port");
    assert_eq!(&after[..6], ROUTER_MAC.as_bytes(), "to the neighbour's new MAC");
    assert_eq!(rig.sessions(), 1);
}

#[test]
fn sessions_end_with_the_right_to_have_them() {
    let frame = udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x");
    let mut rig = Rig::new(gateway().spec());
    let out = leave(&mut rig, &frame);
    rig.publish(
        gateway()
            .epoch(2)
            .change(|spec| spec.tenants[0].sources = vec!["10.140.0.0/16".parse().unwrap()])
            .spec(),
    );
    assert!(rig.send(Outside, &answer(&out, TcpFlags::default()), Inside).is_empty());
    assert_eq!((rig.sessions(), rig.drops(DropReason::NoSession)), (0, 1));

    let mut rig = Rig::new(gateway().spec());
    leave(&mut rig, &frame);
    let other = Ipv4Addr::new(192, 168, 55, 120);
    rig.publish(gateway().epoch(2).change(|spec| spec.tenants[0].egress_addresses = vec![other]).spec());
    rig.take(Outside); // the announcement of the new address
    let sent = only(rig.send(Inside, &frame, Outside));
    assert_eq!(ends(&sent).source.0, other, "a new session by the new address");
    assert_eq!(rig.sessions(), 1);
}

#[test]
fn a_full_table_refuses_new_sessions_and_keeps_the_old() {
    let mut rig = Rig::new(gateway().spec());
    let frame = |port: u32| udp_frame(&format!("10.132.0.5:{}", 2000 + port), "192.168.55.13:53", b"x");
    for port in 0..256 {
        leave(&mut rig, &frame(port));
    }
    assert_eq!(rig.send(Inside, &frame(256), Inside).len(), 1);
    assert_eq!(rig.drops(DropReason::SessionsFull), 1);
    leave(&mut rig, &frame(0));
}

#[test]
fn a_full_tx_ring_is_a_counted_drop() {
    let mut rig = Rig::new(gateway().spec());
    let open = |rig: &mut Rig, port: u32| {
        leave(rig, &udp_frame(&format!("10.132.0.5:{}", 2000 + port), "192.168.55.13:53", b"x"))
    };
    let out: Vec<_> = (0..64).map(|port| open(&mut rig, port)).collect();
    // Both ports receive a batch towards the same side before the ring is flushed.
    for frame in &out {
        rig.inject(0, Outside, &answer(frame, TcpFlags::default()));
    }
    for port in 0..10u32 {
        rig.inject(0, Inside, &udp_frame(&format!("172.16.0.5:{}", 2000 + port), "192.168.55.13:53", b"x"));
    }
    rig.run();
    let sent = rig.take(Inside).len() as u64;
    assert_eq!(sent + rig.drops(DropReason::TxRingFull), 74, "replies that found room after ten answers");
    assert_eq!(rig.drops(DropReason::TxRingFull), 10);
}

#[test]
fn any_worker_may_receive_and_the_owner_forwards() {
    let mut rig = Rig::with(gateway().spec(), 4, Faults::default(), 1);
    let mut outside = Vec::new();
    for pod in 0..60u8 {
        let frame = udp_frame(&format!("10.132.0.{pod}:40000"), "192.168.55.13:53", b"x");
        rig.inject(usize::from(pod % 4), Inside, &frame);
        rig.run();
        outside.push(only(rig.take(Outside)));
    }
    let ports: std::collections::HashSet<_> = outside.iter().map(|frame| ends(frame).source).collect();
    assert_eq!(ports.len(), 60, "no two pods share an outside tuple");
    for (arrival, frame) in outside.iter().enumerate() {
        rig.inject(arrival * 7 % 4, Outside, &answer(frame, TcpFlags::default()));
        rig.run();
        let pod = u8::try_from(arrival).unwrap();
        assert_eq!(ends(&only(rig.take(Inside))).destination, (Ipv4Addr::new(10, 132, 0, pod), 40000));
    }
    assert_eq!((rig.sessions(), rig.all_drops()), (60, 0));
    assert!(rig.workers.iter().all(|worker| worker.conntrack().len() > 4), "sessions are spread");
}

#[test]
fn sessions_are_listed_by_tenant_and_up_to_the_limit() {
    let mut rig = Rig::new(gateway().spec());
    for port in 0..20u32 {
        leave(&mut rig, &udp_frame(&format!("10.132.0.5:{}", 2000 + port), "192.168.55.13:53", b"x"));
    }
    let ask = |rig: &mut Rig, tenant, limit| {
        let (reply, answers) = crossbeam::channel::bounded(1);
        let rows = Vec::with_capacity(limit);
        assert!(rig.mailboxes[0].ask(crate::mailbox::ListSessions { tenant, rows, reply }));
        rig.run();
        answers.try_recv().unwrap()
    };
    rig.wait(Duration::from_secs(10));
    let all = ask(&mut rig, None, 100);
    assert_eq!(all.len(), 20);
    assert!(
        all.iter().all(|row| row.idle_seconds == 10 && row.expires_seconds == 290 && row.outside.0 == EGRESS)
    );
    assert_eq!(ask(&mut rig, Some(TenantId(0)), 100).len(), 20);
    assert_eq!(ask(&mut rig, Some(TenantId(1)), 100).len(), 0);
    assert_eq!(ask(&mut rig, None, 7).len(), 7);
}

#[test]
fn a_worker_goes_on_after_a_panic_and_keeps_its_sessions() {
    let mut rig = Rig::new(gateway().spec());
    let frame = udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x");
    let before = leave(&mut rig, &frame);
    for port in 0..3u32 {
        rig.inject(0, Inside, &udp_frame(&format!("10.132.0.5:{}", 2000 + port), "192.168.55.13:53", b"x"));
    }
    let now = rig.now;
    rig.workers[0].fail_at_next_frame();
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rig.workers[0].turn(now)));
    assert!(panic.is_err());
    rig.workers[0].recover(now);
    rig.run();
    assert!(rig.take(Outside).is_empty(), "what it had in hand is dropped");
    assert_eq!(rig.drops(DropReason::WorkerPanic), 3);
    assert_eq!(ends(&leave(&mut rig, &frame)), ends(&before));
}

#[derive(Clone, Debug)]
struct AnyFrame {
    worker: usize,
    side: Side,
    bytes: Vec<u8>,
    is_whole: bool,
}

/// Frames of every kind, from both sides, some of them broken.
fn any_frame() -> impl Strategy<Value = AnyFrame> {
    let flags = prop_oneof![
        Just(TcpFlags::SYN),
        Just(SYN_ACK),
        Just(TcpFlags::ACK),
        Just(TcpFlags(0x11)),
        Just(TcpFlags::RST)
    ];
    let frame = (0u8..6, 0u8..4, 0u8..3, flags, any::<bool>()).prop_map(|(kind, host, port, flags, big)| {
        let pod = format!("10.132.0.{host}:{}", 40000 + u16::from(port));
        let payload = vec![0; if big { 1400 } else { 3 }];
        let egress = format!("192.168.55.113:{}", 1024 + u16::from(host) * 64);
        match kind {
            0 => (Inside, udp_frame(&pod, "192.168.55.13:53", &payload)),
            1 => (Inside, tcp_frame(&pod, "192.168.55.13:80", flags)),
            2 => (Inside, echo_frame(&format!("10.132.0.{host}"), "192.168.55.13", port.into(), false)),
            3 => (Outside, udp_frame("192.168.55.13:53", &egress, &payload)),
            4 => (Outside, tcp_frame("192.168.55.13:80", &egress, flags)),
            _ => (
                Outside,
                icmp_error_about("192.168.55.1", &udp_frame(&egress, "192.168.55.13:53", &payload), 3, 8),
            ),
        }
    });
    let noise = prop_oneof![4 => Just(None), 1 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(Some)];
    (0usize..3, frame, noise).prop_map(|(worker, (side, mut frame), noise)| {
        let is_whole = noise.is_none();
        if let Some((at, byte)) = noise {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        AnyFrame { worker, side, bytes: frame, is_whole }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn frames_in_are_frames_out_or_counted_drops(
        frames in prop::collection::vec(any_frame(), 1..120),
        seed in 1u64..,
    ) {
        let faults = Faults { loss: 20, duplication: 20, reordering: 40 };
        let mut rig = Rig::with(gateway().spec(), 3, faults, seed);
        let mut sent = 0;
        let mut forwarded = 0;
        for (index, frame) in frames.iter().enumerate() {
            rig.inject(frame.worker, frame.side, &frame.bytes);
            rig.run();
            for leaves_by in Side::BOTH {
                for bytes in rig.take(leaves_by) {
                    check_source(leaves_by, &bytes, &[EGRESS]);
                    if frame.is_whole {
                        check_checksums(&bytes);
                    }
                    sent += 1;
                }
            }
            if index % 40 == 39 {
                rig.publish(gateway().epoch(2 + u32::try_from(index).unwrap()).spec());
                rig.wait(Duration::from_secs(100));
            }
        }
        for worker in &rig.workers {
            for tenant in [0, 1] {
                let report = worker.counters().tenant(TenantId(tenant)).report();
                forwarded += report.outbound_packets + report.inbound_packets;
            }
        }
        prop_assert_eq!(rig.accepted(), forwarded + rig.all_drops(), "frames in = forwarded + dropped");
        prop_assert!(sent >= forwarded, "what was forwarded was sent, and so were answers");
    }
}

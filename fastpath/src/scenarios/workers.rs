//! Several workers, panics, and frames of every kind at once.

use std::net::Ipv4Addr;
use std::time::Duration;

use conntrack::Protocol::Udp;
use conntrack::TcpFlags;
use proptest::prelude::*;
use proptest::sample::Index;

use super::queues::{all_of, any_queues};
use super::{EGRESS, RED_EGRESS, SYN_ACK, answer, ends, leave, only};
use crate::io::sim::Faults;
use crate::snapshot::Side::{self, Inside, Outside};
use crate::snapshot::UnsolicitedSyn;
use crate::testing::fragments::{fragment, packet};
use crate::testing::rig::{Rig, Size, check_checksums, check_source};
use crate::testing::{echo_frame, gateway, icmp_error_about, raw_frame, tcp_frame, udp_frame};
use crate::verdict::DropReason;

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
fn where_tenants_compete_for_its_core_a_worker_takes_shorter_turns_while_it_does_not_keep_up() {
    let mut rig = Rig::new(gateway().spec());
    let turns = |rig: &mut Rig, frames: u16| {
        for port in 0..frames {
            let source = format!("10.132.0.5:{}", 40_000 + port);
            rig.inject(0, Inside, &udp_frame(&source, "192.168.55.13:53", b"query"));
        }
        std::iter::from_fn(|| Some((rig.turn(0), rig.workers[0].is_contended())))
            .take_while(|(found, _)| *found > 0)
            .collect::<Vec<_>>()
    };
    assert_eq!(turns(&mut rig, 150), [(64, false), (64, false), (22, false)]);
    rig.contend(0, Inside);
    let contended = [(64, true), (32, true), (32, true), (22, false)];
    assert_eq!(turns(&mut rig, 150), contended);
    assert_eq!(turns(&mut rig, 150), contended, "also the next time");
    assert_eq!(rig.take(Outside).len(), 450);
}

#[test]
fn frames_that_were_carried_away_come_home() {
    let mut rig = Rig::with(gateway().spec(), 5, Faults::default(), 1);
    let mut sent = 0;
    for round in 0..400u32 {
        for pod in 0..20 {
            rig.inject(
                0,
                Inside,
                &udp_frame(&format!("10.132.0.{pod}:{}", 2000 + round % 8), "192.168.55.13:53", b"x"),
            );
        }
        rig.run();
        sent += rig.take(Outside).len();
    }
    assert_eq!((sent, rig.all_drops()), (8000, 0), "all of them came to the first worker");
}

#[test]
fn a_worker_goes_on_after_a_panic_and_keeps_its_sessions() {
    let mut rig = Rig::new(gateway().spec());
    let frame = udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x");
    let before = leave(&mut rig, &frame);
    for port in 0..2u32 {
        rig.inject(0, Inside, &udp_frame(&format!("10.132.0.5:{}", 2000 + port), "192.168.55.13:53", b"x"));
    }
    rig.fail_at(Inside, &frame);
    assert!(rig.take(Outside).is_empty(), "what it had in hand is dropped");
    assert_eq!(rig.drops(DropReason::WorkerPanic), 3);
    assert_eq!(ends(&leave(&mut rig, &frame)), ends(&before));
}

#[derive(Clone, Debug)]
struct AnyFrame {
    arrives_by: Index,
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
    // Of a datagram in fragments: three that make it whole, one that is too large for the link, one that
    // overlaps.
    let part = prop::sample::select(vec![(0, 800), (800, 800), (1600, 800), (0, 1600), (1200, 800)]);
    let kinds = (0u8..10, 0u8..4, 0u8..3, flags, any::<bool>(), part);
    let frame = kinds.prop_map(|(kind, host, port, flags, big, (offset, bytes))| {
        let part_of = |packet: Vec<u8>| fragment(&packet, offset, bytes);
        let pod = format!("10.132.0.{host}:{}", 40000 + u16::from(port));
        let payload = vec![0; if big { 1400 } else { 3 }];
        let egress = format!("192.168.55.113:{}", 1024 + u16::from(host) * 64);
        match kind {
            0 => (Inside, udp_frame(&pod, "192.168.55.13:53", &payload)),
            1 => (Inside, tcp_frame(&pod, "192.168.55.13:80", flags)),
            2 => (Inside, echo_frame(&format!("10.132.0.{host}"), "192.168.55.13", port.into(), false)),
            3 => (Outside, udp_frame("192.168.55.13:53", &egress, &payload)),
            4 => (Outside, tcp_frame("192.168.55.13:80", &egress, flags)),
            5 => (
                Inside,
                raw_frame(
                    &format!("10.132.0.{host}"),
                    "192.168.55.13",
                    47,
                    &[&[0; 4][..], &payload].concat(),
                ),
            ),
            6 => (
                Outside,
                icmp_error_about("192.168.55.1", &udp_frame(&egress, "192.168.55.13:53", &payload), 3, 8),
            ),
            7 => (Inside, part_of(packet(Udp, &pod, "192.168.55.13:53", &[0; 2000], false))),
            8 => (Outside, part_of(packet(Udp, "192.168.55.13:53", &egress, &[0; 2000], true))),
            _ => (Inside, packet(Udp, &pod, "192.168.55.13:53", &[0; 1700], false)),
        }
    });
    let noise = prop_oneof![4 => Just(None), 1 => (any::<Index>(), any::<u8>()).prop_map(Some)];
    (any::<Index>(), frame, noise).prop_map(|(arrives_by, (side, mut frame), noise)| {
        let is_whole = noise.is_none();
        if let Some((at, byte)) = noise {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        AnyFrame { arrives_by, side, bytes: frame, is_whole }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn frames_in_are_frames_out_or_counted_drops(
        frames in prop::collection::vec(any_frame(), 1..120),
        queues in any_queues(),
        seed in 1u64..,
    ) {
        let faults = Faults { loss: 20, duplication: 20, reordering: 40 };
        let answering = gateway().change(|spec| spec.tcp.unsolicited_syn = UnsolicitedSyn::Unreachable);
        let mut rig = Rig::with_queues(answering.spec(), Size::USUAL, &queues, (faults, seed));
        let mut sent = 0;
        for (index, frame) in frames.iter().enumerate() {
            let arrives_by = frame.arrives_by.get(&all_of(&queues, frame.side)).to_owned();
            rig.inject_by(arrives_by, frame.side, &frame.bytes);
            rig.run();
            for leaves_by in Side::BOTH {
                for bytes in rig.take(leaves_by) {
                    check_source(leaves_by, &bytes, &[EGRESS, RED_EGRESS]);
                    if frame.is_whole {
                        check_checksums(&bytes);
                    }
                    sent += 1;
                }
            }
            if index % 40 == 39 {
                rig.publish(answering.clone().epoch(2 + u32::try_from(index).unwrap()).spec());
                rig.wait(Duration::from_secs(100));
            }
        }
        // SYNs that are held, and fragments that wait for their first.
        rig.wait(Duration::from_secs(15));
        let report = rig.all_tenants();
        let forwarded = report.outbound_packets + report.inbound_packets;
        let came_in = rig.accepted() + rig.hairpinned() + rig.fragments_made();
        prop_assert_eq!(came_in, forwarded + rig.all_drops(), "frames in = forwarded + dropped");
        prop_assert!(sent >= forwarded, "what was forwarded was sent, and so were answers");
    }
}

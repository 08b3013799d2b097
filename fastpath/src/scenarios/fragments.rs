//! Datagrams in fragments pass both ways, in any order and at any worker; what harms them or others is
//! dropped.

use std::net::Ipv4Addr;
use std::time::Duration;

use conntrack::Protocol::{self, Icmp, Tcp, Udp};
use conntrack::TcpFlags;

use super::{EGRESS, POD, SYN_ACK, answer, ends, leave, only};
use crate::io::sim::Faults;
use crate::snapshot::Side::{self, Inside, Outside};
use crate::testing::fragments::{
    fragment, fragments, identification, packet, payload_at, place, reassemble, with_header,
    with_identification,
};
use crate::testing::rig::{Rig, check_sent};
use crate::testing::{RED_MAC, gateway, icmp_error_about, tcp_frame, udp_frame};
use crate::verdict::DropReason;

const FROM_POD: &str = "10.132.0.5:40000";
const SERVER: &str = "192.168.55.13:53";
const EGRESS_BLUE: &str = "192.168.55.113:1024";

fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

/// Sends fragments in, each at another worker, and returns what leaves on the other side.
fn cross(rig: &mut Rig, side: Side, fragments: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let workers = rig.workers.len();
    let mut sent = Vec::new();
    for (index, fragment) in fragments.iter().enumerate() {
        rig.inject(index % workers, side, fragment);
        rig.run();
        sent.extend(rig.take(side.other()));
    }
    sent
}

/// Returns the port of a frame that left outside which replies go to, or its query identifier.
fn outside_port(frame: &[u8]) -> u16 {
    let at = payload_at(frame) + if frame[23] == 1 { 4 } else { 0 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[test]
fn a_datagram_in_fragments_crosses_both_ways_in_any_order_at_any_worker() {
    let orders: [&[usize]; 4] = [&[0, 1, 2, 3], &[3, 2, 1, 0], &[1, 3, 0, 2], &[2, 0, 3, 1]];
    for protocol in [Udp, Tcp, Icmp] {
        for workers in [1, 4] {
            for order in orders {
                let mut rig = Rig::with(gateway().spec(), workers, Faults::default(), 1);
                cross_both_ways(&mut rig, protocol, order);
                assert_eq!(
                    (rig.all_drops(), rig.sessions()),
                    (0, 1),
                    "{protocol:?} at {workers} in {order:?}"
                );
            }
        }
    }
}

fn cross_both_ways(rig: &mut Rig, protocol: Protocol, order: &[usize]) {
    let reordered = |frame: &[u8]| -> Vec<_> {
        let fragments = fragments(frame, 1000);
        order.iter().map(|index| fragments[*index].clone()).collect()
    };
    if protocol == Tcp {
        let syn = leave(rig, &tcp_frame(FROM_POD, SERVER, TcpFlags::SYN));
        rig.send(Outside, &answer(&syn, SYN_ACK), Inside);
    }
    let sent = packet(protocol, FROM_POD, SERVER, &payload(3900), false);
    let left = cross(rig, Inside, &reordered(&sent));
    let out = reassemble(&left);
    check_sent(Outside, &out, &[EGRESS]);
    assert!(out.len() == sent.len() && out.ends_with(&payload(3900)), "the payload is unchanged");
    assert_eq!(place(&left[0]).0, 0, "the first leaves first");

    let egress = format!("{EGRESS}:{}", outside_port(&out));
    let reply = packet(protocol, SERVER, &egress, &payload(3333), true);
    let back = reassemble(&cross(rig, Outside, &reordered(&with_identification(reply.clone(), 7))));
    check_sent(Inside, &back, &[]);
    assert!(back.len() == reply.len() && back.ends_with(&payload(3333)), "the payload is unchanged");
    assert_eq!(ends(&back).destination.0, POD.parse::<Ipv4Addr>().unwrap());
    let port_at = payload_at(&back) + if protocol == Icmp { 4 } else { 2 };
    assert_eq!(back[port_at..port_at + 2], 40000u16.to_be_bytes());
    assert_eq!(identification(&back), 7, "one sender gave it, so it stays");
}

#[test]
fn the_longest_datagram_passes_also_when_its_first_fragment_comes_last() {
    let mut rig = Rig::new(gateway().spec());
    let sent = packet(Udp, FROM_POD, SERVER, &payload(65_000), false);
    let mut reversed = fragments(&sent, 1480);
    reversed.reverse();
    let out = reassemble(&cross(&mut rig, Inside, &reversed));
    check_sent(Outside, &out, &[EGRESS]);
    assert_eq!((out.len(), rig.all_drops()), (sent.len(), 0));
}

#[test]
fn pods_that_share_an_egress_address_do_not_share_identifications() {
    let mut rig = Rig::with(gateway().spec(), 4, Faults::default(), 1);
    let mut chosen = std::collections::HashSet::new();
    for pod in 0..40u8 {
        let sent = packet(Udp, &format!("10.132.0.{pod}:40000"), SERVER, &payload(2000), false);
        let fragments = fragments(&with_identification(sent, 4711), 1000);
        chosen.insert(identification(&reassemble(&cross(&mut rig, Inside, &fragments))));
    }
    for pod in 0..40u8 {
        let whole = packet(Udp, &format!("10.132.0.{pod}:40000"), SERVER, b"x", false);
        rig.inject(0, Inside, &with_identification(whole, 4711));
        rig.run();
        let out = only(rig.take(Outside));
        check_sent(Outside, &out, &[EGRESS]);
        chosen.insert(identification(&out));
    }
    assert_eq!(chosen.len(), 80, "whole packets may be fragmented later");
    let unfragmentable = with_header(udp_frame(FROM_POD, SERVER, b"x"), |header| {
        header[4..8].copy_from_slice(&[0x12, 0x67, 0x40, 0]);
    });
    assert_eq!(identification(&only(rig.send(Inside, &unfragmentable, Outside))), 0x1267);
}

#[test]
fn what_comes_twice_leaves_once() {
    let mut rig = Rig::new(gateway().spec());
    let pieces = fragments(&packet(Udp, FROM_POD, SERVER, &payload(2500), false), 1000);
    let twice: Vec<_> = [2, 2, 0, 0, 2, 1].iter().map(|index| pieces[*index].clone()).collect();
    check_sent(Outside, &reassemble(&cross(&mut rig, Inside, &twice)), &[EGRESS]);
    assert_eq!((rig.drops(DropReason::FragmentOverlap), rig.all_drops()), (3, 3));
}

#[test]
fn a_datagram_whose_fragments_overlap_does_not_become_whole() {
    let sent = packet(Udp, FROM_POD, SERVER, &payload(2500), false);
    let pieces = fragments(&sent, 1000);
    let beyond_the_end = with_header(fragment(&sent, 2400, 200), |header| header[7] += 50);
    for (name, rogue) in [
        ("over the transport header", fragment(&sent, 8, 1000)),
        ("over both neighbours", fragment(&sent, 992, 24)),
        ("beyond the end", beyond_the_end),
    ] {
        for order in [[0, 2, 3, 1], [2, 3, 1, 0], [2, 1, 3, 0]] {
            let mut rig = Rig::new(gateway().spec());
            let all = [&pieces[0], &pieces[1], &pieces[2], &rogue];
            let fragments: Vec<_> = order.iter().map(|index| all[*index].clone()).collect();
            let passed = cross(&mut rig, Inside, &fragments);
            rig.wait(Duration::from_secs(15));
            assert!(passed.len() < 3, "{name}: {} in {order:?}", passed.len());
            assert_eq!(
                rig.drops(DropReason::FragmentOverlap),
                4 - passed.len() as u64,
                "{name} in {order:?}"
            );
        }
    }
}

#[test]
fn fragments_that_cannot_be_are_malformed() {
    let whole = packet(Udp, FROM_POD, SERVER, &payload(2500), false);
    let segment = packet(Tcp, FROM_POD, SERVER, &payload(100), false);
    let at_the_end = with_header(fragment(&whole, 1000, 1000), |header| {
        header[6..8].copy_from_slice(&0x1fffu16.to_be_bytes());
    });
    let ragged = with_header(fragment(&whole, 0, 1001), |header| header[6] = 0x20);
    let cases = [
        ("a first one that ends in the TCP header", fragment(&segment, 0, 16)),
        ("a last one beyond the longest packet", at_the_end),
        ("one that is not the last and ends within 8 bytes", ragged),
        (
            "an empty one",
            with_header(whole[..34].to_vec(), |header| header[2..8].copy_from_slice(&[0, 20, 0, 1, 0, 9])),
        ),
    ];
    for (name, frame) in cases {
        let mut rig = Rig::new(gateway().spec());
        assert!(cross(&mut rig, Inside, &[frame]).is_empty(), "{name}");
        assert_eq!((rig.drops(DropReason::Malformed), rig.all_drops()), (1, 1), "{name}");
    }
}

#[test]
fn later_fragments_are_never_answered() {
    let mut rig = Rig::new(gateway().spec());
    let pieces = fragments(&packet(Udp, FROM_POD, SERVER, &payload(2500), false), 1000);
    let expired: Vec<_> =
        pieces.iter().map(|frame| with_header(frame.clone(), |header| header[8] = 1)).collect();
    assert!(cross(&mut rig, Inside, &expired).is_empty());
    let error = only(rig.take(Inside));
    assert_eq!((error[34], error[35], place(&error[28..])), (11, 0, (0, true)), "only the first is answered");
    assert_eq!(rig.drops(DropReason::TtlExceeded), 3);

    let stranger = packet(Udp, "172.16.0.5:1", SERVER, &payload(2500), false);
    cross(&mut rig, Inside, &fragments(&stranger, 1000)[1..]);
    assert!(rig.take(Inside).is_empty());
    assert_eq!(rig.drops(DropReason::UnknownSource), 2);

    cross(&mut rig, Inside, &pieces[1..]);
    rig.wait(Duration::from_millis(14_900));
    assert_eq!(rig.drops(DropReason::FragmentIncomplete), 0);
    rig.wait(Duration::from_millis(100));
    assert!(rig.take(Inside).is_empty(), "RFC 1122 section 3.3.2: without the first, none");
    assert_eq!(rig.drops(DropReason::FragmentIncomplete), 2);
}

#[test]
fn fragments_that_waited_leave_behind_the_first_in_order_of_arrival() {
    let mut rig = Rig::new(gateway().spec());
    let pieces = fragments(&packet(Udp, FROM_POD, SERVER, &payload(3900), false), 1000);
    assert!(cross(&mut rig, Inside, &[pieces[2].clone(), pieces[1].clone()]).is_empty());
    rig.inject(0, Inside, &pieces[0]);
    rig.inject(0, Inside, &pieces[3]);
    rig.run();
    let offsets: Vec<_> = rig.take(Outside).iter().map(|frame| place(frame).0).collect();
    assert_eq!(offsets, [0, 2000, 1000, 3000]);
}

#[test]
fn fragments_wait_together_for_a_neighbour_and_leave_in_order() {
    for order in [[0, 1], [1, 0]] {
        let mut rig = Rig::new(gateway().without_neighbour("192.168.55.13").spec());
        let pieces = fragments(&packet(Udp, FROM_POD, SERVER, &payload(2500), false), 1000);
        let reordered: Vec<_> = order.iter().map(|index| pieces[*index].clone()).collect();
        assert!(cross(&mut rig, Inside, &reordered).is_empty());
        rig.publish(gateway().epoch(2).spec());
        let mut left = rig.take(Outside);
        assert_eq!(place(&left[0]).0, 0);
        left.extend(cross(&mut rig, Inside, &pieces[2..]));
        check_sent(Outside, &reassemble(&left), &[EGRESS]);
        assert_eq!(rig.all_drops(), 0);
    }
}

#[test]
fn errors_that_are_fragments_or_quote_later_ones_are_dropped() {
    let mut rig = Rig::new(gateway().spec());
    let out =
        cross(&mut rig, Inside, &fragments(&packet(Udp, FROM_POD, SERVER, &payload(2500), false), 1000));
    let about_first = icmp_error_about("192.168.55.1", &out[0], 11, 500);
    let about_later = icmp_error_about("192.168.55.1", &out[1], 11, 500);
    assert!(rig.send(Outside, &about_later, Inside).is_empty());
    assert_eq!(rig.drops(DropReason::QuotedFragment), 1);
    assert!(rig.send(Outside, &fragment(&about_first, 0, 256), Inside).is_empty());
    assert_eq!(rig.drops(DropReason::FragmentedError), 1);
    let back = only(rig.send(Outside, &about_first, Inside));
    check_sent(Inside, &back, &[]);
    assert_eq!(back[54..58], [10, 132, 0, 5], "an error about the first fragment finds its pod");
}

/// What must pass while a flood comes: a whole packet of blue's, and a datagram of red's in fragments.
fn check_unharmed(rig: &mut Rig, pod_port: u16) {
    let out = leave(rig, &udp_frame(&format!("10.132.0.9:{pod_port}"), SERVER, b"whole"));
    let reply = answer(&out, TcpFlags::default());
    assert_eq!(rig.send(Outside, &reply, Inside).len(), 1);
    let mut red = packet(Udp, &format!("10.132.0.6:{pod_port}"), SERVER, &payload(2500), false);
    red[..6].copy_from_slice(RED_MAC.as_bytes());
    let mut pieces = fragments(&with_identification(red, pod_port), 1000);
    pieces.reverse();
    assert_eq!(reassemble(&cross(rig, Inside, &pieces)).len(), 14 + 20 + 8 + 2500);
}

#[test]
fn a_flood_of_fragments_harms_neither_whole_packets_nor_another_tenants_fragments() {
    let flood = packet(Udp, "203.0.113.9:53", EGRESS_BLUE, &payload(100), false);
    for kind in [0, 1, 2] {
        let mut rig = Rig::new(gateway().spec());
        for number in 0..10_000u16 {
            let flood = with_identification(flood.clone(), number);
            let piece = match kind {
                0 => fragment(&flood, 0, 48),
                1 => fragment(&flood, 48, 48),
                _ => fragment(&flood, usize::from(number % 2) * 48, 48),
            };
            rig.inject(0, Outside, &piece);
            if number % 64 == 63 {
                rig.run();
            }
            if number % 2000 == 1999 {
                check_unharmed(&mut rig, number);
            }
        }
        rig.run();
        let waiting = rig.workers[0].fragments_waiting();
        assert!(waiting <= 64, "kind {kind}: {waiting} frames wait");
        assert!(rig.drops(DropReason::FragmentLimit) > 1000, "kind {kind}");
        rig.wait(Duration::from_secs(15));
        assert_eq!(rig.workers[0].fragments_waiting(), 0);
        assert_eq!(rig.drops(DropReason::FragmentIncomplete), waiting as u64, "kind {kind}");
        let pieces = fragments(&packet(Udp, FROM_POD, SERVER, &payload(2500), false), 1000);
        check_sent(Outside, &reassemble(&cross(&mut rig, Inside, &pieces)), &[EGRESS]);
    }
}

#[test]
fn fragments_on_their_way_between_workers_leave_room_for_whole_packets() {
    let mut rig = Rig::with(gateway().spec(), 4, Faults::default(), 1);
    let pod = "10.132.0.5";
    for number in 0..3000u16 {
        let sent = packet(Udp, FROM_POD, SERVER, &payload(100), false);
        let piece = fragment(&with_identification(sent, number), 48, 48);
        for worker in 0..4 {
            rig.inject(worker, Inside, &piece);
        }
    }
    for worker in 0..4 {
        for port in 0..50u32 {
            rig.inject(worker, Inside, &udp_frame(&format!("{pod}:{}", 2000 + port), SERVER, b"whole"));
        }
    }
    rig.run();
    assert_eq!(rig.drops(DropReason::HandOverFull), 0);
    assert_eq!(rig.take(Outside).len(), 200, "all whole packets passed");
    assert!(rig.drops(DropReason::FragmentLimit) > 0);
}

#[test]
fn fragments_that_wait_are_not_lost_in_a_panic() {
    let mut rig = Rig::new(gateway().spec());
    let pieces = fragments(&packet(Udp, FROM_POD, SERVER, &payload(2500), false), 1000);
    cross(&mut rig, Inside, &pieces[1..]);
    rig.inject(0, Inside, &pieces[0]);
    let now = rig.now;
    rig.workers[0].fail_at_next_frame();
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rig.workers[0].turn(now)));
    assert!(panic.is_err());
    rig.workers[0].recover();
    rig.run();
    assert_eq!((rig.drops(DropReason::WorkerPanic), rig.all_drops()), (3, 3));
    check_sent(Outside, &reassemble(&cross(&mut rig, Inside, &pieces)), &[EGRESS]);
}

#[test]
fn a_tenants_count_is_of_fragments_as_they_leave() {
    let mut rig = Rig::new(gateway().spec());
    cross(&mut rig, Inside, &fragments(&packet(Udp, FROM_POD, SERVER, &payload(2500), false), 1000));
    let blue = rig.blue();
    assert_eq!((blue.outbound_packets, blue.outbound_bytes), (3, 3 * 34 + 8 + 2500));
}

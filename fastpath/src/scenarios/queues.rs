//! Workers with any number of queues on each side, none among them, and queues that change.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use conntrack::TcpFlags;
use proptest::prelude::*;
use proptest::sample::Index;

use super::{EGRESS, answer, ends};
use crate::io::sim::Faults;
use crate::mailbox::Notice;
use crate::snapshot::Side::{self, Inside, Outside};
use crate::testing::rig::{Rig, Size, check_sent};
use crate::testing::{gateway, udp_frame};
use crate::verdict::DropReason;

/// Queues of each worker, inside and outside.
pub(super) type Queues = Vec<[usize; 2]>;

const SOUND: (Faults, u64) = (Faults { loss: 0, duplication: 0, reordering: 0 }, 1);

/// Every number of queues from none to two for each worker, but at least one in all on each side.
pub(super) fn any_queues() -> impl Strategy<Value = Queues> {
    let of_workers = |workers| prop::collection::vec([0usize..3, 0usize..3], workers);
    let queues = prop_oneof![of_workers(4), of_workers(8)];
    (queues, any::<Index>(), any::<Index>()).prop_map(|(mut queues, inside, outside)| {
        let workers = queues.len();
        for (side, index) in [(0, inside), (1, outside)] {
            let chosen = &mut queues[index.index(workers)][side];
            *chosen = (*chosen).max(1);
        }
        queues
    })
}

/// Returns every queue of a side: its worker, and its number there.
pub(super) fn all_of(queues: &Queues, side: Side) -> Vec<(usize, usize)> {
    let of_worker = |(worker, queues): (usize, &[usize; 2])| {
        (0..queues[side.index()]).map(move |queue| (worker, queue)).collect::<Vec<_>>()
    };
    queues.iter().enumerate().flat_map(of_worker).collect()
}

fn pod_frame(pod: u8, number: u32) -> Vec<u8> {
    udp_frame(&format!("10.132.0.{pod}:40000"), "192.168.55.13:53", &number.to_be_bytes())
}

fn number_in(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[42..46].try_into().unwrap())
}

/// Counts of all workers that hand-overs change.
fn hand_overs(rig: &Rig) -> [u64; 2] {
    let sum = |count: fn(&crate::counters::WorkerCounters) -> u64| {
        rig.workers.iter().map(|worker| count(worker.counters())).sum()
    };
    [sum(|counters| counters.handed_over.get()), sum(|counters| counters.sent_by_others.get())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whoever_receives_and_whoever_has_queues_every_frame_is_translated_once(
        queues in any_queues(),
        arrivals in prop::collection::vec((0u8..12, any::<Index>(), any::<Index>()), 1..200),
    ) {
        let (inside, outside) = (all_of(&queues, Inside), all_of(&queues, Outside));
        let mut rig = Rig::with_queues(gateway().spec(), Size::USUAL, &queues, SOUND);
        // The first worker may have announced by way of others.
        let mut expected = hand_overs(&rig);
        let mut way_of_pod = HashMap::new();
        let lacks_queue = |worker: u16, side: Side| u64::from(queues[usize::from(worker)][side.index()] == 0);
        for (number, (pod, by, back_by)) in (0..).zip(&arrivals) {
            let (by, back_by) = (*by.get(&inside), *back_by.get(&outside));
            rig.inject_by(by, Inside, &pod_frame(*pod, number));
            rig.run();
            let sent = rig.take(Outside);
            prop_assert_eq!(sent.len(), 1);
            check_sent(Outside, &sent[0], &[EGRESS]);
            prop_assert_eq!((number_in(&sent[0]), sent[0][22]), (number, 63), "translated once");
            let way = ends(&sent[0]);
            prop_assert_eq!(way_of_pod.entry(*pod).or_insert_with(|| way.clone()), &way);

            rig.inject_by(back_by, Outside, &answer(&sent[0], TcpFlags::default()));
            rig.run();
            let back = rig.take(Inside);
            prop_assert_eq!(back.len(), 1);
            check_sent(Inside, &back[0], &[]);
            prop_assert_eq!(ends(&back[0]).destination, (Ipv4Addr::new(10, 132, 0, *pod), 40000));

            let sessions = rig.all_sessions();
            let session = sessions.iter().find(|session| session.inside.source.octets()[3] == *pod).unwrap();
            let (owner, first) = (session.worker, session.port_owner.unwrap());
            expected[0] += u64::from(by.0 != usize::from(owner));
            expected[0] += u64::from(back_by.0 != usize::from(first)) + u64::from(first != owner);
            expected[1] += lacks_queue(owner, Outside) + lacks_queue(owner, Inside);
        }
        let report = rig.all_tenants();
        let count = arrivals.len() as u64;
        prop_assert_eq!((report.outbound_packets, report.inbound_packets, rig.all_drops()), (count, count, 0));
        prop_assert_eq!(rig.accepted(), report.outbound_packets + report.inbound_packets);
        prop_assert_eq!(hand_overs(&rig), expected);
        rig.dismantle();
    }
}

/// Makes `workers` workers of which the first alone has a queue outside, and all have one inside.
fn one_way_out(workers: usize, size: Size) -> Rig {
    let queues: Vec<_> = (0..workers).map(|worker| [1, usize::from(worker == 0)]).collect();
    Rig::with_queues(gateway().spec(), size, &queues, SOUND)
}

#[test]
fn frames_of_a_flow_that_another_worker_sends_stay_in_order() {
    let mut rig = one_way_out(4, Size::USUAL);
    let mut next = [0; 8];
    for _ in 0..50 {
        for pod in 0..8u8 {
            // One flow comes by one queue, whoever owns it.
            rig.inject(usize::from(pod % 4), Inside, &pod_frame(pod, next[usize::from(pod)]));
            next[usize::from(pod)] += 1;
        }
        // No rest between: frames of several rounds are on the way at once.
        for worker in 0..4 {
            rig.turn(worker);
        }
    }
    rig.run();
    let mut seen: HashMap<u16, Vec<u32>> = HashMap::new();
    for frame in rig.take_from(0, Outside) {
        check_sent(Outside, &frame, &[EGRESS]);
        seen.entry(ends(&frame).source.1).or_default().push(number_in(&frame));
    }
    assert_eq!(seen.len(), 8);
    assert!(seen.values().all(|numbers| *numbers == (0..50).collect::<Vec<_>>()), "{seen:?}");
    assert_eq!(rig.all_drops(), 0);
}

#[test]
fn a_frame_that_its_sender_has_no_room_for_is_a_counted_drop() {
    let mut rig = one_way_out(4, Size { ring: 16, ..Size::USUAL });
    for round in 0..4 {
        for pod in 0..64u8 {
            rig.inject(usize::from(pod % 4), Inside, &pod_frame(pod, round));
        }
    }
    rig.run();
    let sent = rig.take(Outside).len() as u64;
    let report = rig.all_tenants();
    assert_eq!(report.outbound_packets, sent, "forwarded is what a ring took");
    assert!(rig.drops(DropReason::TxRingFull) > 0, "the ring is short");
    assert_eq!(sent + rig.all_drops(), rig.accepted());
    assert_eq!(
        report.dropped_packets,
        rig.all_drops(),
        "drops are the tenant's, whoever found the ring full"
    );
}

#[test]
fn what_is_refused_is_answered_by_whoever_has_the_queue() {
    let queues = vec![[1, 1], [0, 1], [0, 0], [0, 1]];
    let mut rig = Rig::with_queues(gateway().spec(), Size::USUAL, &queues, SOUND);
    // A protocol that is not translated, and a packet that may not leave: both come in and are answered by worker 0 or
    // by way of it.
    for pod in 0..16u8 {
        let spent = super::with_ttl(pod_frame(pod, 1), 1);
        rig.inject(0, Inside, &spent);
        rig.run();
        let answers = rig.take(Inside);
        assert_eq!(answers.len(), 1, "time exceeded");
        assert_eq!((answers[0][23], answers[0][34]), (1, 11));
    }
    assert_eq!((rig.drops(DropReason::TtlExceeded), rig.all_drops()), (16, 16));
    assert!(hand_overs(&rig)[1] > 0, "some owners have no queue inside: {:?}", hand_overs(&rig));
}

#[test]
fn sessions_outlive_the_queues_that_they_came_by() {
    let mut rig = Rig::with_queues(gateway().spec(), Size::USUAL, &[[1, 1], [1, 0], [0, 1], [0, 0]], SOUND);
    let mut ways = HashMap::new();
    let layouts: [(Side, [usize; 4]); 6] = [
        (Outside, [0, 0, 2, 0]),
        (Inside, [0, 2, 0, 1]),
        (Outside, [1, 1, 1, 1]),
        (Inside, [0, 0, 0, 1]),
        (Outside, [0, 1, 0, 0]),
        (Inside, [2, 2, 2, 2]),
    ];
    let (mut inside, mut sent) = ([1, 1, 0, 0], 0u64);
    for round in 0..20u32 {
        for (side, queues) in layouts {
            let by = inside.iter().position(|queues| *queues > 0).unwrap();
            for pod in 0..8u8 {
                rig.inject(by, Inside, &pod_frame(pod, round));
                rig.run();
                let frame = super::only(rig.take(Outside));
                check_sent(Outside, &frame, &[EGRESS]);
                assert_eq!(ways.entry(pod).or_insert_with(|| ends(&frame)), &ends(&frame));
                sent += 1;
            }
            // Frames are on the wires, in rings and on the way to other workers when the queues go.
            for pod in 0..8u8 {
                rig.inject(by, Inside, &pod_frame(pod, round));
                rig.turn(usize::from(pod % 4));
            }
            rig.exchange(side, &queues);
            if side == Inside {
                inside = queues;
            }
            rig.run();
            drop(rig.take(Outside));
        }
    }
    assert_eq!(rig.sessions(), 8);
    assert!(rig.all_tenants().outbound_packets >= sent);
    rig.dismantle();
}

#[test]
fn while_no_worker_has_a_queue_frames_are_dropped_and_counted() {
    let mut rig = one_way_out(4, Size::USUAL);
    let before: Vec<_> = (0..8u8)
        .map(|pod| {
            rig.inject(0, Inside, &pod_frame(pod, 0));
            rig.run();
            ends(&super::only(rig.take(Outside)))
        })
        .collect();
    rig.exchange(Outside, &[0; 4]);
    for pod in 0..8u8 {
        rig.inject(usize::from(pod % 4), Inside, &pod_frame(pod, 1));
    }
    rig.run();
    assert_eq!((rig.drops(DropReason::InterfaceAway), rig.all_drops()), (8, 8));
    rig.exchange(Outside, &[0, 0, 1, 0]);
    for (pod, way) in (0..8u8).zip(&before) {
        rig.inject(usize::from(pod % 4), Inside, &pod_frame(pod, 2));
        rig.run();
        assert_eq!(ends(&super::only(rig.take_from(2, Outside).collect())), *way, "the same outside port");
    }
    rig.dismantle();
}

#[test]
fn neighbours_hear_again_who_answers_when_the_control_side_says_so() {
    let mut rig = Rig::with_queues(gateway().spec(), Size::USUAL, &[[1, 1], [1, 0]], SOUND);
    for (side, addresses) in [
        (Inside, [[192, 168, 99, 13], [192, 168, 99, 14]]),
        (Outside, [[192, 168, 55, 113], [192, 168, 55, 114]]),
    ] {
        rig.mailboxes[0].note(Notice::Announce(side));
        rig.run();
        let announced: Vec<[u8; 4]> =
            rig.take(side).iter().map(|frame| frame[28..32].try_into().unwrap()).collect();
        assert_eq!(announced, addresses);
        assert!(rig.take(side.other()).is_empty());
    }
}

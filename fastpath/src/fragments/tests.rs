//! The table of datagrams against a naive model, and what the model does not say.

use std::net::Ipv4Addr;
use std::time::Duration;

use conntrack::{Direction, FiveTuple, Protocol, TcpFlags, TcpSegment, TenantId, Tick, WorkerSlot};
use proptest::prelude::*;

use super::datagram::{Datagram, DatagramKey, Part, SPANS, Seen};
use super::{Fragments, Limits, keeper_of};
use crate::io::{Frame, FrameArea, FramePool};
use crate::parse::{Flow, Segment};
use crate::snapshot::Side;
use crate::verdict::{DropReason, Verdict};

const FEW: Limits =
    Limits { datagrams: 4, datagrams_per_tenant: 3, frames: 6, frames_per_tenant: 5, frames_per_datagram: 4 };

/// Datagrams of two tenants.
fn key(datagram: u16) -> DatagramKey {
    DatagramKey {
        tenant: TenantId(datagram % 2),
        direction: Direction::Inbound,
        source: Ipv4Addr::new(192, 168, 55, 13),
        destination: Ipv4Addr::new(192, 168, 55, 113),
        protocol: Protocol::Udp,
        identification: datagram,
    }
}

fn flow_of(key: &DatagramKey, segment: Segment) -> Flow {
    let tuple = FiveTuple {
        source: key.source,
        destination: key.destination,
        source_port: 53,
        destination_port: 40_000 + key.identification,
        protocol: key.protocol,
    };
    Flow { tuple, segment, at: 34, has_ports: true, checksum_at: None }
}

/// What becomes of a fragment.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Goes,
    IsHeld,
    IsDropped(DropReason),
}

/// The table with numbered frames.
struct Table {
    fragments: Fragments,
    pool: FramePool,
}

impl Table {
    fn new(limits: Limits) -> Self {
        // As many may wait as are free to go.
        let (_, pool) = FrameArea::allocate(2 * limits.frames as usize).unwrap();
        Self { fragments: Fragments::new(WorkerSlot { worker: 0, workers: 1 }, limits), pool }
    }

    fn track(&mut self, number: u8, datagram: u16, part: Part, now: Tick) -> Fate {
        let key = key(datagram);
        let flow = flow_of(&key, Segment::Udp);
        match self.fragments.track(key, part, (part.start == 0).then_some(&flow), now) {
            Ok(head) => {
                assert_eq!(head.destination_port, 40_000 + datagram, "the ports are those of its first");
                Fate::Goes
            }
            Err(Verdict::Drop(reason)) => Fate::IsDropped(reason),
            Err(Verdict::Hold(id)) => {
                let mut frame = self.pool.take().unwrap();
                frame.set_len(1);
                frame.bytes_mut()[0] = number;
                self.fragments.hold(id, frame, Side::Outside);
                Fate::IsHeld
            }
            Err(verdict) => panic!("{verdict:?}"),
        }
    }

    fn freed(&mut self) -> Vec<(u8, Fate)> {
        let mut all = Vec::new();
        while let Some(freed) = self.fragments.take_freed() {
            all.push((freed.frame.bytes()[0], freed.fate.map_or_else(Fate::IsDropped, |_| Fate::Goes)));
            self.pool.put(freed.frame);
        }
        all
    }
}

/// A datagram as a list of units.
#[derive(Clone, Debug)]
struct ModelDatagram {
    number: u16,
    units: Vec<bool>,
    end: Option<u16>,
    has_head: bool,
    is_spoiled: bool,
    waiting: Vec<u8>,
    ends_at: Tick,
}

/// The table as a list, oldest first.
#[derive(Default)]
struct Model {
    datagrams: Vec<ModelDatagram>,
    freed: Vec<(u8, Fate)>,
}

impl Model {
    fn expire(&mut self, now: Tick, bound: usize, which: impl Fn(u16) -> bool) {
        for _ in 0..bound {
            let is_over = |datagram: &ModelDatagram| now.reached(datagram.ends_at) && which(datagram.number);
            let Some(at) = self.datagrams.iter().position(is_over) else { return };
            let fate = Fate::IsDropped(DropReason::FragmentIncomplete);
            self.freed.extend(self.datagrams.remove(at).waiting.iter().map(|frame| (*frame, fate)));
        }
    }

    fn count(&self, which: impl Fn(&ModelDatagram) -> bool) -> (usize, usize) {
        let chosen: Vec<_> = self.datagrams.iter().filter(|datagram| which(datagram)).collect();
        (chosen.len(), chosen.iter().map(|datagram| datagram.waiting.len()).sum())
    }

    fn track(&mut self, frame: u8, number: u16, part: Part, now: Tick) -> Fate {
        self.expire(now, 1, |other| other == number);
        let known = self.datagrams.iter().position(|datagram| datagram.number == number);
        let (datagrams, frames) = self.count(|_| true);
        let (of_tenant, frames_of_tenant) = self.count(|other| other.number % 2 == number % 2);
        let (_, frames_of_datagram) = self.count(|other| other.number == number);
        let waits = part.start > 0 && known.is_none_or(|at| !self.datagrams[at].has_head);
        // No tenant takes more who has twice what is free.
        let is_greedy = |held: usize, free: usize| free == 0 || (held > 0 && held >= 2 * free);
        let may_not_wait = is_greedy(frames_of_tenant, 6 - frames);
        if waits && (may_not_wait || frames_of_tenant >= 5 || frames_of_datagram >= 4) {
            return Fate::IsDropped(DropReason::FragmentLimit);
        }
        let at = match known {
            Some(at) => at,
            None if is_greedy(of_tenant, 4 - datagrams) || of_tenant >= 3 => {
                return Fate::IsDropped(DropReason::FragmentLimit);
            }
            None => {
                self.datagrams.push(ModelDatagram {
                    number,
                    units: vec![false; 100],
                    end: None,
                    has_head: false,
                    is_spoiled: false,
                    waiting: Vec::new(),
                    ends_at: now.after(Duration::from_secs(15)),
                });
                self.datagrams.len() - 1
            }
        };
        let datagram = &mut self.datagrams[at];
        match datagram.see(part) {
            Some(reason) if datagram.is_spoiled => {
                let dropped = datagram.waiting.drain(..);
                self.freed.extend(dropped.map(|frame| (frame, Fate::IsDropped(reason))));
                return Fate::IsDropped(reason);
            }
            Some(reason) => return Fate::IsDropped(reason),
            None => {}
        }
        if part.start == 0 {
            datagram.has_head = true;
            self.freed.extend(datagram.waiting.drain(..).map(|frame| (frame, Fate::Goes)));
        }
        if !datagram.has_head {
            datagram.waiting.push(frame);
            return Fate::IsHeld;
        }
        if datagram.end.is_some_and(|end| datagram.units[..usize::from(end)].iter().all(|unit| *unit)) {
            self.datagrams.remove(at);
        }
        Fate::Goes
    }
}

impl ModelDatagram {
    fn see(&mut self, part: Part) -> Option<DropReason> {
        let range = usize::from(part.start)..usize::from(part.end);
        let seen = self.units[range.clone()].iter().filter(|unit| **unit).count();
        let reaches_beyond = match self.end {
            Some(end) => part.end > end || (part.end == end) != part.is_last,
            None => part.is_last && self.units[range.end..].contains(&true),
        };
        if self.is_spoiled || reaches_beyond || (seen > 0 && seen < range.len()) {
            self.is_spoiled = true;
            return Some(DropReason::FragmentOverlap);
        }
        if seen > 0 {
            return Some(DropReason::FragmentOverlap);
        }
        let mut units = self.units.clone();
        units[range].fill(true);
        let spans = units.windows(2).filter(|pair| !pair[0] && pair[1]).count() + usize::from(units[0]);
        if spans > SPANS {
            return Some(DropReason::FragmentLimit);
        }
        self.units = units;
        self.end = if part.is_last { Some(part.end) } else { self.end };
        None
    }
}

#[derive(Clone, Debug)]
enum Step {
    Fragment(u16, Part),
    Wait(Duration),
    Expire(usize),
}

/// Fragments of six datagrams: mostly those that five cuts of it make, in any order, some twice; some that
/// overlap.
fn any_step() -> impl Strategy<Value = Step> {
    let honest =
        (0u16..5).prop_map(|index| Part { start: index * 4, end: index * 4 + 4, is_last: index == 4 });
    let rogue = (0u16..40, 1u16..6, any::<bool>()).prop_map(|(start, units, is_last)| Part {
        start,
        end: start + units,
        is_last: is_last && start > 0,
    });
    let fragment = (0u16..6, prop_oneof![9 => honest, 1 => rogue]);
    prop_oneof![
        20 => fragment.prop_map(|(datagram, part)| Step::Fragment(datagram, part)),
        1 => (0u64..12).prop_map(|seconds| Step::Wait(Duration::from_secs(seconds))),
        1 => (0usize..4).prop_map(Step::Expire),
    ]
}

proptest! {
    #[test]
    fn the_table_behaves_like_the_model(steps in prop::collection::vec(any_step(), 1..200)) {
        let (mut table, mut model, mut now) = (Table::new(FEW), Model::default(), Tick::default());
        for (number, step) in (0u8..).zip(steps) {
            match step {
                Step::Fragment(datagram, part) => {
                    let fate = table.track(number, datagram, part, now);
                    prop_assert_eq!(fate, model.track(number, datagram, part, now), "{:?}", (datagram, part));
                }
                Step::Wait(duration) => now = now.after(duration),
                Step::Expire(bound) => {
                    let before = model.datagrams.len();
                    model.expire(now, bound, |_| true);
                    prop_assert_eq!(table.fragments.expire(now, bound), before - model.datagrams.len());
                }
            }
            prop_assert_eq!(table.freed(), std::mem::take(&mut model.freed));
            prop_assert_eq!(table.fragments.frames_owned(), model.count(|_| true).1);
        }
    }
}

#[test]
fn a_datagram_in_too_many_pieces_takes_no_more_and_no_harm() {
    let mut datagram = Datagram::new(key(0), Tick::default());
    let part = |number: u16| Part { start: 2 * number, end: 2 * number + 1, is_last: false };
    let pieces = u16::try_from(SPANS).unwrap();
    assert!((0..pieces).all(|number| datagram.see(part(number)) == Seen::Anew));
    assert_eq!(datagram.see(part(pieces)), Seen::InPieces);
    assert_eq!(datagram.see(Part { start: 1, end: 2, is_last: false }), Seen::Anew, "it fills a hole");
    assert_eq!(datagram.see(part(pieces)), Seen::Anew, "and makes room");
}

#[test]
fn the_longest_datagram_is_followed_in_the_worst_order() {
    let mut datagram = Datagram::new(key(0), Tick::default());
    let part = |number: u16| Part {
        start: 185 * number,
        end: (185 * number + 185).min(8192),
        is_last: number == 44,
    };
    for number in (0..=44).step_by(2).chain((1..=44).step_by(2)) {
        assert_eq!(datagram.see(part(number)), Seen::Anew, "fragment {number}");
    }
    assert!(datagram.is_whole());
}

#[test]
fn the_rest_of_a_segment_opens_and_ends_nothing() {
    let mut table = Table::new(FEW);
    let key = DatagramKey { protocol: Protocol::Tcp, direction: Direction::Outbound, ..key(1) };
    let flags = TcpFlags(TcpFlags::SYN.0 | TcpFlags::FIN.0 | TcpFlags::RST.0 | TcpFlags::ACK.0);
    let segment = TcpSegment { flags, sequence: 7, acknowledgement: 9 };
    let flow = flow_of(&key, Segment::Tcp(segment));
    let part = Part { start: 0, end: 4, is_last: false };
    let head = table.fragments.track(key, part, Some(&flow), Tick::default()).unwrap();
    assert_eq!(head.segment, Segment::Tcp(TcpSegment { flags: TcpFlags::ACK, ..segment }));
}

#[test]
fn what_is_forgotten_after_a_failure_gives_all_its_frames_back() {
    let mut table = Table::new(FEW);
    let middle = Part { start: 4, end: 8, is_last: false };
    for datagram in 0..3 {
        assert_eq!(table.track(0, datagram, middle, Tick::default()), Fate::IsHeld);
    }
    assert_eq!(table.fragments.expire(Tick::default().after(Duration::from_secs(15)), 1), 1);
    let frames: Vec<Frame> = table.fragments.forget_all(WorkerSlot { worker: 0, workers: 1 }).collect();
    assert_eq!((frames.len(), table.fragments.frames_owned()), (3, 0), "two waited and one was free to go");
    assert_eq!(table.track(0, 0, middle, Tick::default()), Fate::IsHeld, "the room is free again");
}

#[test]
fn inbound_datagrams_are_spread_over_workers_and_all_choose_alike() {
    let mut kept = [0; 4];
    for datagram in 0..1000 {
        let keeper = |worker| keeper_of(WorkerSlot { worker, workers: 4 }, &key(datagram));
        assert!((1..4).all(|worker| keeper(worker) == keeper(0)));
        kept[usize::from(keeper(0))] += 1;
    }
    assert!(kept.iter().all(|count| (180..320).contains(count)), "{kept:?}");
}

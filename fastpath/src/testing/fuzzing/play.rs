//! Plays a plan: workers on simulated wires, and the laws after each of their turns.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use conntrack::Epoch;

use super::frames::{Draft, Header, answer, error_about, fragments, is_sealed, read_address, read_u16, seal};
use super::laws::{Laws, check_sessions, see_sessions};
use super::plan::{Change, Event, Place, Plan};
use crate::dataplane::TenantReport;
use crate::fragments::Limits;
use crate::io::sim::Faults;
use crate::io::{Frame, FrameArea, FramePool};
use crate::snapshot::{Side, SnapshotSpec};
use crate::testing::gateway;
use crate::testing::rig::{Rig, Size};
use crate::verdict::DropReason;
use crate::worker::Worker;

/// Frames of each worker: few, so that a run can use them up.
const FRAMES: usize = 64;
const RING: usize = 8;

/// Room for so few fragments that a run can use it up.
const FRAGMENTS: Limits = Limits {
    datagrams: 8,
    datagrams_per_tenant: 6,
    frames: 12,
    frames_per_tenant: 9,
    frames_per_datagram: 6,
};

/// Frames that are remembered, to be answered or repeated.
const REMEMBERED: usize = 16;

/// Bytes of a frame that may be a header.
const HEADER_BYTES: usize = 128;

/// Turns after which workers must have found rest.
const MOST_ROUNDS: usize = 10_000;

thread_local! {
    /// Frames for the next run. The memory behind them is never unmapped.
    static SPARE: RefCell<Vec<Frame>> = const { RefCell::new(Vec::new()) };
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Packets sent outside, as tenants see them.
    pub outbound: u64,
    /// Packets sent inside.
    pub inbound: u64,
    /// Packets dropped, by reason.
    pub drops: Vec<(DropReason, u64)>,
}

impl Plan {
    /// Plays the plan.
    ///
    /// # Panics
    /// When a law does not hold.
    pub fn play(&self) -> Tally {
        let mut play = Play::begin(self);
        for step in &self.steps {
            play.perform(&step.event);
            if step.then_rest {
                play.rest();
            }
        }
        play.end()
    }
}

/// A frame that was seen, and the side that it was seen on.
type Seen = (Side, Vec<u8>);

struct Play {
    rig: Rig,
    laws: Laws,
    epoch: Epoch,
    sent: VecDeque<Seen>,
    arrived: VecDeque<Seen>,
    is_sealed: bool,
}

impl Play {
    fn begin(plan: &Plan) -> Self {
        let (workers, sessions) = (plan.workers, plan.sessions);
        let size = Size { workers, frames: FRAMES, ring: RING, sessions, fragments: FRAGMENTS };
        let spec = gateway().spec();
        let (epoch, frames) = (spec.epoch, take_frames(usize::from(plan.workers) * FRAMES));
        let rig = Rig::assemble(spec.clone(), size, Faults::default(), 1, frames);
        let mut laws = Laws::default();
        laws.learn(&spec, Arc::clone(rig.workers[0].conntrack().shared()));
        let (sent, arrived) = (VecDeque::new(), VecDeque::new());
        let mut play = Self { rig, laws, epoch, sent, arrived, is_sealed: true };
        if plan.is_late {
            play.rig.now = play.rig.now.after(Duration::from_millis(100) * (u32::MAX - 600));
        }
        play.rest();
        play
    }

    fn perform(&mut self, event: &Event) {
        match event {
            Event::Bytes { at, bytes } => self.arrive(*at, bytes.clone(), None),
            Event::Packet { at, draft, aimed_at, change, copies } => {
                for copy in 0..*copies {
                    let source_port = draft.source_port.wrapping_add(copy);
                    let frame = Draft { source_port, ..*draft }.write();
                    self.arrive(*at, self.aim(frame, *aimed_at), *change);
                }
            }
            Event::Pieces { at, draft, aimed_at, piece, order } => {
                let pieces = fragments(&self.aim(draft.write(), *aimed_at), *piece);
                for which in order {
                    let (first, last) = (usize::from(which & 15), usize::from(which >> 4));
                    let taken = pieces.iter().skip(first).take(1 + last.saturating_sub(first));
                    taken.for_each(|piece| self.arrive(*at, piece.clone(), None));
                }
            }
            Event::Answer { worker, which, flags, change } => {
                self.react(*worker, *which, *change, |frame| answer(frame, *flags));
            }
            Event::Error { worker, which, error, change } => {
                self.react(*worker, *which, *change, |frame| error_about(frame, *error));
            }
            Event::Again { worker, which, change } => {
                if let Some((side, frame)) = ago(&self.arrived, *which).cloned() {
                    self.arrive(Place { worker: *worker, side }, frame, *change);
                }
            }
            Event::Wait(duration) => self.rig.now = self.rig.now.after(*duration),
            Event::Offer(spec) => self.offer(spec),
            Event::Turn(worker) => drop(self.turn(usize::from(*worker) % self.rig.workers.len())),
        }
    }

    /// Addresses a packet to the end that a frame sent before came from.
    fn aim(&self, mut frame: Vec<u8>, aimed_at: Option<u8>) -> Vec<u8> {
        let target = aimed_at.and_then(|which| ago(&self.sent, which)).and_then(|(_, sent)| {
            let ip = Header::of_frame(sent).filter(|ip| ip.end >= ip.payload_at + 2)?;
            Some((read_address(sent, ip.at + 12), read_u16(sent, ip.payload_at)))
        });
        if let (Some((address, port)), Some(ip)) = (target, Header::of_frame(&frame)) {
            frame[ip.at + 16..ip.at + 20].copy_from_slice(&address.octets());
            if ip.end >= ip.payload_at + 4 {
                frame[ip.payload_at + 2..ip.payload_at + 4].copy_from_slice(&port.to_be_bytes());
            }
            seal(&mut frame);
        }
        frame
    }

    /// Lets what somebody makes of a frame that was sent arrive where it had left.
    fn react(
        &mut self,
        worker: u8,
        which: u8,
        change: Option<Change>,
        make: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
    ) {
        let made = ago(&self.sent, which).and_then(|(side, sent)| Some((*side, make(sent)?)));
        if let Some((side, frame)) = made {
            self.arrive(Place { worker, side }, frame, change);
        }
    }

    fn arrive(&mut self, at: Place, mut frame: Vec<u8>, change: Option<Change>) {
        if let Some(change) = change {
            change.apply(&mut frame);
        }
        frame.truncate(Frame::CAPACITY);
        self.is_sealed &= is_sealed(&frame);
        self.rig.inject(usize::from(at.worker) % self.rig.workers.len(), at.side, &frame);
        remember(&mut self.arrived, (at.side, frame));
    }

    fn offer(&mut self, spec: &SnapshotSpec) {
        self.epoch = Epoch(self.epoch.0 + 1);
        let spec = SnapshotSpec { epoch: self.epoch, ..spec.clone() };
        let offered = self.rig.offer(spec.clone());
        self.laws.learn(&spec, Arc::clone(offered.shared().unwrap()));
    }

    /// Lets one worker turn, and looks at all that it sends.
    fn turn(&mut self, worker: usize) -> usize {
        let before = see_sessions(self.rig.workers[worker].conntrack());
        let found = self.rig.turn(worker);
        let epoch = self.rig.workers[worker].counters().epoch.get();
        let table = self.rig.workers[worker].conntrack();
        self.laws.check_turn(epoch, &before, table);
        for side in Side::BOTH {
            for frame in self.rig.take_from(worker, side) {
                self.laws.check(epoch, side, &frame, self.is_sealed);
                if side == Side::Outside {
                    self.laws.check_origin(epoch, &frame, table);
                }
                remember(&mut self.sent, (side, frame));
            }
        }
        found
    }

    fn rest(&mut self) {
        for _ in 0..MOST_ROUNDS {
            let found: usize = (0..self.rig.workers.len()).map(|worker| self.turn(worker)).sum();
            if found == 0 && self.rig.is_at_rest() {
                check_sessions(self.rig.workers.iter().map(Worker::conntrack));
                return;
            }
        }
        panic!("the workers find no rest");
    }

    /// Lets all that waits be given up and all sessions end; then every frame is somewhere, once, and every packet was
    /// sent or dropped for a reason.
    fn end(mut self) -> Tally {
        self.rest();
        let mut accepted = None;
        while accepted != Some(self.rig.accepted()) {
            accepted = Some(self.rig.accepted());
            self.wait(Duration::from_secs(300));
        }
        let tally = self.tally();
        let dropped: u64 = tally.drops.iter().map(|(_, count)| count).sum();
        let came_in = self.rig.accepted() + self.rig.hairpinned() + self.rig.fragments_made();
        assert_eq!(came_in, tally.outbound + tally.inbound + dropped, "in = out + dropped");
        for _ in 0..2 {
            self.wait(Duration::from_secs(2 * 7440));
        }
        assert_eq!(self.rig.sessions(), 0, "every session ends");
        for worker in &self.rig.workers {
            let table = worker.conntrack();
            assert_eq!(table.room(), table.capacity(), "nothing is left of any session");
        }
        assert!(self.reports().all(|report| report.sessions == 0), "tenants' sessions add up");
        self.laws.check_end();
        let frames = self.rig.dismantle();
        SPARE.with_borrow_mut(|spare| spare.extend(frames));
        tally
    }

    fn wait(&mut self, duration: Duration) {
        self.rig.now = self.rig.now.after(duration);
        self.rest();
    }

    fn tally(&self) -> Tally {
        let drops = DropReason::ALL.iter().map(|reason| (*reason, self.rig.drops(*reason)));
        let mut tally = Tally { drops: drops.filter(|(_, count)| *count > 0).collect(), ..Tally::default() };
        for report in self.reports() {
            tally.outbound += report.outbound_packets;
            tally.inbound += report.inbound_packets;
        }
        tally
    }

    /// Returns what each worker counted for each tenant that there ever was.
    fn reports(&self) -> impl Iterator<Item = TenantReport> {
        let counters = self.rig.workers.iter().flat_map(|worker| worker.counters().tenants());
        counters.map(|(_, counters)| {
            let mut report = TenantReport::default();
            counters.add_to(&mut report);
            report
        })
    }
}

impl Change {
    fn apply(self, frame: &mut Vec<u8>) {
        frame.truncate(frame.len().saturating_sub(usize::from(self.cut)));
        if let Some(byte) = frame.get_mut(usize::from(self.at)) {
            *byte = self.byte;
        }
        if self.is_sealed {
            seal(frame);
        }
    }
}

fn ago(seen: &VecDeque<Seen>, which: u8) -> Option<&Seen> {
    let back = usize::from(which) % seen.len().max(1);
    seen.iter().rev().nth(back)
}

fn remember(seen: &mut VecDeque<Seen>, frame: Seen) {
    if seen.len() == REMEMBERED {
        seen.pop_front();
    }
    seen.push_back(frame);
}

/// Returns this many frames, where headers go with the same bytes at the beginning of every run.
fn take_frames(count: usize) -> FramePool {
    let mut pool = FramePool::with_capacity(count);
    SPARE.with_borrow_mut(|spare| {
        while spare.len() < count {
            let (_area, mut more) = FrameArea::allocate(4 * FRAMES).unwrap();
            spare.extend(std::iter::from_fn(|| more.take()));
        }
        for mut frame in spare.drain(..count) {
            frame.set_len(Frame::CAPACITY);
            frame.bytes_mut()[..HEADER_BYTES].fill(0xa5);
            pool.put(frame);
        }
    });
    pool
}

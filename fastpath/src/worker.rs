//! One worker: its ports, its sessions, and the turn that it repeats.
//!
//! ```text
//! exchange ports → adopt snapshot → questions → ports that come back → waiting frames → handed-over frames
//!   → each port: receive → pipeline → settle → waiting frames → held SYNs → announcements
//!   → flush, complete, refill → expire → ports that go back
//! ```

mod fragmenting;
mod inquiry;
mod lane;
mod loans;
mod patience;
mod ports;
mod recovery;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use conntrack::{Conntrack, Key, Tick};
use crossbeam::channel::{Receiver, Sender};
use crossbeam::queue::ArrayQueue;

use crate::announce::{Announcement, new_announcements, write_announcement};
use crate::counters::WorkerCounters;
use crate::dataplane::NeighbourRequest;
use crate::express::Lanes;
use crate::io::{Frame, FrameIo, FramePool};
use crate::mailbox::{HandedFrame, Mailbox, Notice, RequestQueue, Task};
use crate::pipeline::{Engine, Outcome};
use crate::snapshot::{Side, Snapshot};
use crate::stray::FOR_OPENING;
use crate::survey::Surveys;
use crate::tap::{Occasion, Taps};
use crate::verdict::{DatagramErrand, DropReason, Errand, Lending, Verdict};
use crate::waiting::{FOR_NEIGHBOURS, WaitingRoom};
pub use ports::{Port, PortChange};
use ports::{Unsent, tx_ports};

/// Frames taken from one source in one turn.
const BATCH_FRAMES: usize = 64;
/// Sessions expired in one turn.
const EXPIRED_PER_TURN: usize = 64;
/// Announcements sent in one turn.
const ANNOUNCED_PER_TURN: usize = 16;
/// Frames sent for other workers in one turn, beside the batch: each costs little.
const SENT_FOR_OTHERS_PER_TURN: usize = 256;

/// What a worker is made of.
#[derive(Debug)]
pub struct WorkerParts<I> {
    /// What decides about its frames.
    pub engine: Engine,
    /// Its queues, any number on each side.
    pub ports: Vec<Port<I>>,
    /// Who sends its frames on each side where it has no port.
    pub senders: [Option<u16>; 2],
    /// Ports that come in place of others, each announced in the mailbox.
    pub port_changes: Receiver<PortChange<I>>,
    /// Its free frames; there is room for every frame of the data plane.
    pub pool: FramePool,
    /// Frames that workers with many lend to those with few.
    pub commons: Arc<ArrayQueue<Frame>>,
    /// Mailboxes of all workers, by number.
    pub mailboxes: Vec<Arc<Mailbox>>,
    /// Where neighbours are asked for.
    pub requests: Arc<RequestQueue>,
    /// Where snapshots go that are no longer used; receiving one acknowledges its successor.
    pub retired: Sender<Arc<Snapshot>>,
}

/// A worker. It shares nothing that it changes.
#[derive(Debug)]
pub struct Worker<I> {
    parts: WorkerParts<I>,
    waiting: WaitingRoom<NeighbourRequest>,
    held_syns: WaitingRoom<Key>,
    batch: VecDeque<Frame>,
    lanes: Lanes,
    /// What the frame in the batch was handed over for.
    errand: Option<Errand>,
    announcements: VecDeque<Announcement>,
    surveys: Surveys,
    taps: Taps,
    tx_ports: [Vec<usize>; 2],
    home_frames: usize,
    have_ports_changed: bool,
    /// Waiting frames that have not been tried under the newest snapshot.
    untried: usize,
    /// The moment up to which all sessions have ended whose time was over.
    expired_until: Option<Tick>,
    /// Whether the last turn left frames where tenants compete for the core that receives them.
    is_contended: bool,
    /// Whether the last turn left something undone that the next can do, even if no frame comes.
    has_more: bool,
    #[cfg(test)]
    fails_at_next_frame: bool,
    /// Keeps all frames out of the express lane.
    #[cfg(test)]
    pub(crate) goes_whole_way: bool,
    #[cfg(test)]
    pub(crate) passed_by_lane: usize,
}

/// Where a frame came from.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    side: Side,
    port: usize,
}

impl<I: FrameIo> Worker<I> {
    /// Makes a worker and fills its fill rings.
    pub fn new(parts: WorkerParts<I>) -> Self {
        let home_frames = parts.pool.len();
        let mut worker = Self {
            waiting: WaitingRoom::new(FOR_NEIGHBOURS),
            held_syns: WaitingRoom::new(FOR_OPENING),
            batch: VecDeque::with_capacity(BATCH_FRAMES),
            lanes: Lanes::default(),
            errand: None,
            announcements: VecDeque::new(),
            surveys: Surveys::new(),
            taps: Taps::new(),
            tx_ports: tx_ports(&parts.ports),
            home_frames,
            have_ports_changed: false,
            untried: 0,
            expired_until: None,
            is_contended: false,
            has_more: true,
            #[cfg(test)]
            fails_at_next_frame: false,
            #[cfg(test)]
            goes_whole_way: false,
            #[cfg(test)]
            passed_by_lane: 0,
            parts,
        };
        worker.announcements.extend(worker.to_announce(None));
        worker.parts.engine.counters.adopt(&worker.parts.engine.snapshot);
        for port in &mut worker.parts.ports {
            port.io.refill(&mut worker.parts.pool);
        }
        worker
    }

    /// Does one turn; returns how many frames it found.
    pub fn turn(&mut self, now: Tick) -> usize {
        self.has_more = false;
        self.exchange_ports();
        self.adopt_snapshot();
        self.adopt_taps(now);
        self.announce_again();
        self.answer_questions(now);
        self.take_back_ports(now);
        self.retry_waiting(now);
        let found = self.serve_handed(now) + self.serve_ports(now);
        self.give_up_waiting(now);
        self.release_syns(now);
        self.announce();
        self.turn_rings();
        self.expire(now);
        self.expire_fragments(now);
        self.give_back_ports();
        found
    }

    /// Tells whether the worker must not sleep long, because the kernel still transmits its frames.
    pub fn is_transmitting(&self) -> bool {
        self.parts.ports.iter().any(|port| port.io.is_transmitting())
    }

    /// Tells whether something is left to do even if no frame comes, beside answering questions.
    pub fn is_busy(&self) -> bool {
        self.has_more
    }

    /// Returns the worker's number.
    pub fn number(&self) -> u16 {
        self.parts.engine.conntrack.slot().worker
    }

    /// Returns the worker's own mailbox.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.parts.mailboxes[usize::from(self.number())]
    }

    /// Returns the worker's counters.
    pub fn counters(&self) -> &Arc<WorkerCounters> {
        &self.parts.engine.counters
    }

    /// Returns the descriptors that are readable when frames came.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.parts.ports.iter().filter_map(|port| port.io.descriptor())
    }

    /// Returns the sessions.
    pub fn conntrack(&self) -> &Conntrack {
        &self.parts.engine.conntrack
    }

    /// Returns the snapshot in use.
    #[cfg(test)]
    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.parts.engine.snapshot
    }

    /// Returns how many frames the worker, its ports and its pool own.
    pub fn frames_owned(&self) -> usize {
        let in_ports: usize = self.parts.ports.iter().map(|port| port.io.frames_owned()).sum();
        let held = self.parts.engine.fragments.frames_owned();
        let kept = self.batch.len() + self.waiting.len() + self.held_syns.len() + held;
        self.parts.pool.len() + kept + in_ports
    }

    /// Returns how many fragments wait for the first of their datagram.
    #[cfg(test)]
    pub(crate) fn fragments_waiting(&self) -> usize {
        self.parts.engine.fragments.frames_owned()
    }

    /// Takes the worker apart.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn into_parts(self) -> WorkerParts<I> {
        self.parts
    }

    /// Makes the worker panic with the next frame in hand.
    #[cfg(test)]
    pub(crate) fn fail_at_next_frame(&mut self) {
        self.fails_at_next_frame = true;
    }

    fn adopt_snapshot(&mut self) {
        let Some(next) = self.mailbox().take_snapshot() else { return };
        if let Some(shared) = next.shared() {
            self.parts.engine.conntrack.adopt(Arc::clone(shared));
        }
        let previous = std::mem::replace(&mut self.parts.engine.snapshot, next);
        self.announcements.retain(|announcement| announcement.holds_under(&self.parts.engine.snapshot));
        self.announcements.extend(self.to_announce(Some(&previous)));
        self.parts.engine.counters.adopt(&self.parts.engine.snapshot);
        self.expired_until = None;
        // Nobody listens while the control side ends.
        let _ = self.parts.retired.try_send(previous);
        self.untried = self.waiting.len();
    }

    /// Returns what has to be announced. One worker speaks for all.
    fn to_announce(&self, previous: Option<&Snapshot>) -> Vec<Announcement> {
        match self.number() {
            0 => new_announcements(previous, &self.parts.engine.snapshot),
            _ => Vec::new(),
        }
    }

    /// Announces again what the control side asks for.
    fn announce_again(&mut self) {
        for side in Side::BOTH {
            if self.mailbox().take_notice(Notice::Announce(side)) {
                let mut again = self.to_announce(None);
                again.retain(|announcement| announcement.side == side);
                self.announcements.retain(|waiting| !again.contains(waiting));
                self.announcements.extend(again);
            }
        }
    }

    fn serve_handed(&mut self, now: Tick) -> usize {
        let (mut processed, mut sent) = (0, 0);
        // The side of the frames in the batch, which came for nothing but their session.
        let mut gathered = None;
        while processed < BATCH_FRAMES
            && sent < SENT_FOR_OTHERS_PER_TURN
            && let Some(HandedFrame { side, frame, task, .. }) = self.mailbox().take_frame()
        {
            match task {
                Task::Transmit(tenant) => {
                    sent += 1;
                    self.transmit_for_another(frame, side, tenant);
                }
                Task::Process(errand) => {
                    processed += 1;
                    if gathered.is_some_and(|gathered| gathered != side || errand != Errand::OWNED) {
                        self.pass_gathered(gathered.take(), now);
                    }
                    self.batch.push_back(frame);
                    if errand == Errand::OWNED {
                        gathered = Some(side);
                    } else {
                        self.errand = Some(errand);
                        self.run_errand(errand, Arrival { side, port: 0 }, now);
                        self.errand = None;
                    }
                }
            }
        }
        self.pass_gathered(gathered, now);
        processed + sent
    }

    fn pass_gathered(&mut self, side: Option<Side>, now: Tick) {
        if let Some(side) = side {
            self.pass_batch(Arrival { side, port: 0 }, Errand::OWNED, now);
        }
    }

    /// Does what the frame in the batch was handed over for.
    fn run_errand(&mut self, errand: Errand, arrival: Arrival, now: Tick) {
        match errand.lending {
            Lending::Asked(request) => {
                #[cfg(test)]
                assert!(!std::mem::take(&mut self.fails_at_next_frame), "asked to fail");
                // The borrower may have begun another life since the turn began.
                self.learn_of_forgetful(now);
                let verdict = self.parts.engine.lend(errand, &request);
                let frame = self.batch.pop_front().expect("it was put there");
                let outcome = Outcome { verdict, tenant: Some(request.tenant), side: arrival.side, errand };
                self.settle(frame, outcome, arrival, now);
            }
            Lending::Lent(_) => {
                self.learn_of_forgetful(now);
                self.process_batch(arrival, errand, now);
            }
            Lending::NotAsked | Lending::Refused => self.process_batch(arrival, errand, now),
        }
    }

    fn process_batch(&mut self, arrival: Arrival, errand: Errand, now: Tick) {
        while !self.batch.is_empty() {
            self.process_first(arrival, errand, now);
        }
    }

    /// Takes the first frame of the batch the whole way.
    fn process_first(&mut self, arrival: Arrival, errand: Errand, now: Tick) {
        let frame = self.batch.front_mut().expect("the caller has seen it");
        #[cfg(test)]
        assert!(!std::mem::take(&mut self.fails_at_next_frame), "asked to fail");
        let Arrival { side, .. } = arrival;
        let decide = |engine: &mut Engine, frame: &mut Frame| engine.process(frame, side, errand, now);
        let outcome = match self.taps.is_empty() {
            true => decide(&mut self.parts.engine, frame),
            false => {
                let is_counted = errand == Errand::NEW || errand == Errand::OWNED;
                let occasion = Occasion { side, is_first: true, is_counted, now };
                self.taps.watch(&mut self.parts.engine, frame, occasion, decide)
            }
        };
        let frame = self.batch.pop_front().expect("it was at the front");
        self.settle(frame, outcome, arrival, now);
        self.settle_freed(arrival.port, now);
    }

    /// Moves a frame to where its verdict says: a tx ring, another worker, the waiting room or the pool.
    fn settle(&mut self, frame: Frame, outcome: Outcome, arrival: Arrival, now: Tick) {
        let Outcome { verdict, tenant, side: from, errand } = outcome;
        match verdict {
            Verdict::Forward(side) => {
                let tenant = Some(tenant.expect("a forwarded packet has a tenant"));
                if let Err(Unsent { frame, reason }) = self.transmit(frame, side, arrival.port, tenant) {
                    self.drop_frame(frame, outcome, reason);
                }
            }
            Verdict::Split(side) => self.send_in_fragments(frame, side, tenant, arrival),
            Verdict::Hold(datagram) => self.parts.engine.fragments.hold(datagram, frame, from),
            Verdict::Reject(reason) => {
                self.parts.engine.counters.dropped(from, reason, tenant);
                if let Err(Unsent { frame, .. }) = self.transmit(frame, from, arrival.port, None) {
                    self.parts.pool.put(frame);
                }
            }
            Verdict::Hairpin => unreachable!("the pipeline lets it come in again itself"),
            Verdict::HandOver(worker, errand) if !self.may_hand_over(worker, tenant, errand) => {
                self.parts.engine.withdraw(errand);
                let reason = match errand.datagram {
                    DatagramErrand::Unknown => DropReason::HandOverFull,
                    DatagramErrand::Keep | DatagramErrand::Resolved(_) => DropReason::FragmentLimit,
                };
                self.drop_frame(frame, outcome, reason);
            }
            Verdict::HandOver(worker, errand) => {
                let handed = HandedFrame { side: from, frame, tenant, task: Task::Process(errand) };
                match self.parts.mailboxes[usize::from(worker)].hand_over(handed) {
                    Ok(()) => self.parts.engine.counters.handed_over.add(1),
                    Err(HandedFrame { frame, .. }) => {
                        self.drop_frame(frame, outcome, DropReason::HandOverFull);
                        self.parts.engine.withdraw(errand);
                    }
                }
            }
            Verdict::Wait(next_hop) => {
                match self.waiting.keep(frame, (from, errand.again()), next_hop, tenant, now) {
                    Ok(Some(first)) => first.has_asked = self.parts.requests.ask(next_hop),
                    Ok(None) => {}
                    Err(frame) => self.drop_frame(frame, outcome, DropReason::NeighbourUnresolved),
                }
            }
            Verdict::HoldSyn(key) => {
                if let Err(frame) = self.held_syns.keep(frame, (from, errand.again()), key, tenant, now) {
                    self.drop_frame(frame, outcome, DropReason::NoSession);
                }
            }
            Verdict::Drop(reason) => self.drop_frame(frame, outcome, reason),
        }
    }

    fn drop_frame(&mut self, frame: Frame, outcome: Outcome, reason: DropReason) {
        if !self.taps.is_empty() && outcome.verdict != Verdict::Drop(reason) {
            self.taps.show_lost(&self.parts.engine, &frame, outcome, reason);
        }
        self.parts.engine.counters.dropped(outcome.side, reason, outcome.tenant);
        self.parts.pool.put(frame);
    }

    fn announce(&mut self) {
        for _ in 0..self.announcements.len().min(ANNOUNCED_PER_TURN) {
            let Some(mut frame) = self.parts.pool.take() else { return };
            let announcement = self.announcements.pop_front().expect("they were counted");
            write_announcement(&mut frame, &announcement);
            if let Err(Unsent { frame, .. }) = self.transmit(frame, announcement.side, 0, None) {
                self.parts.pool.put(frame);
                self.announcements.push_front(announcement);
                return;
            }
        }
        self.has_more |= !self.announcements.is_empty();
    }

    fn turn_rings(&mut self) {
        for port in &mut self.parts.ports {
            port.io.flush();
            port.io.complete(&mut self.parts.pool);
        }
        self.balance_frames();
        for port in &mut self.parts.ports {
            port.io.refill(&mut self.parts.pool);
        }
    }

    /// Lends to the commons what hand-overs have brought, and takes back what they have carried away.
    fn balance_frames(&mut self) {
        let mut owned = self.frames_owned();
        self.parts.engine.counters.frames.set(owned as u64);
        while owned > self.home_frames
            && let Some(frame) = self.parts.pool.take()
        {
            if let Err(frame) = self.parts.commons.push(frame) {
                self.parts.pool.put(frame);
                return;
            }
            owned -= 1;
        }
        while owned < self.home_frames
            && let Some(frame) = self.parts.commons.pop()
        {
            self.parts.pool.put(frame);
            owned += 1;
        }
    }

    /// Ends sessions whose time is over; nothing is, until time has moved on.
    fn expire(&mut self, now: Tick) {
        let counters = &self.parts.engine.counters;
        counters.sessions.set(u64::from(self.parts.engine.conntrack.len()));
        if self.expired_until == Some(now) {
            return;
        }
        let timeouts = &self.parts.engine.snapshot.spec().timeouts;
        let ended =
            self.parts.engine.conntrack.expire(now, timeouts, EXPIRED_PER_TURN, |tenant, sessions| {
                counters.tenant(tenant).sessions_ended(sessions);
            });
        self.expired_until = (ended < EXPIRED_PER_TURN).then_some(now);
        self.has_more |= ended == EXPIRED_PER_TURN;
        counters.sessions.set(u64::from(self.parts.engine.conntrack.len()));
    }
}

//! Shows frames, and what becomes of them, to whoever looks: captures and traces.
//!
//! A tap says which frames it wants. A worker copies them before and after the pipeline has decided, into samples that
//! were made beforehand; it allocates nothing and waits for nobody. What there is no sample for, or what comes faster
//! than the tap may take, is counted as missed. Frames that no tap wants stay in the express lane.

mod board;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use conntrack::{FiveTuple, Key, Protocol, TenantId, Tick};
use crossbeam::queue::ArrayQueue;

use crate::dataplane::SessionReport;
use crate::io::Frame;
use crate::mailbox::Mailbox;
use crate::parse::{ETHERNET_BYTES, Transport, parse};
use crate::pipeline::{Engine, Outcome};
use crate::snapshot::{Side, Snapshot};
use crate::survey::{EndFilter, session_of};
use crate::verdict::{DropReason, Errand, Verdict};
pub use board::{OpenTap, TapBoard, TooManyTaps};

/// Most taps at a time.
pub const MOST_TAPS: usize = 4;

/// Most bytes of a frame that a sample holds: the largest frame that there is.
pub const MOST_BYTES: usize = 2048;

const PROTOCOL_AT: usize = ETHERNET_BYTES + 9;
const SOURCE_AT: usize = ETHERNET_BYTES + 12;
const DESTINATION_AT: usize = ETHERNET_BYTES + 16;

/// Which frames a tap wants: those that every part of it fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// Of this protocol, or ICMP errors about it.
    pub protocol: Option<Protocol>,
    /// From or to this pod. What is dropped outside before its session is known has none.
    pub pod: EndFilter,
    /// From or to this other end.
    pub remote: EndFilter,
    /// That are dropped or rejected.
    pub drops_only: bool,
}

/// What a tap may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapLimits {
    /// Bytes of each frame.
    pub bytes: usize,
    /// Frames of each worker in a second.
    pub per_second: u32,
    /// Samples that wait to be looked at.
    pub samples: usize,
}

/// One who looks, and the samples that go to and fro.
#[derive(Debug)]
pub struct Tap {
    filter: TapFilter,
    limits: TapLimits,
    spare: ArrayQueue<Box<Sample>>,
    taken: ArrayQueue<Box<Sample>>,
    missed: AtomicU64,
}

/// A frame before and after the pipeline, and what it decided.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was decided about.
    pub at: SystemTime,
    /// Worker that did.
    pub worker: u16,
    /// Side that the frame came from.
    pub side: Side,
    /// Whether nothing was decided about it before but which worker it belongs to; else it had waited.
    pub is_first: bool,
    /// What was decided.
    pub outcome: Outcome,
    /// The frame as it came.
    pub before: Copied,
    /// The frame as it leaves, if it does; the answer, if it is rejected.
    pub after: Copied,
    /// The session that it belongs to, as it is after it.
    pub session: Option<SessionReport>,
    /// Whether it began the session.
    pub is_new_session: bool,
}

/// The beginning of a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes that were kept.
    pub bytes: Vec<u8>,
    /// Length of the frame.
    pub frame_bytes: usize,
    /// Most bytes that are kept; there is room for them.
    most: usize,
}

impl Copied {
    fn with_room_for(most: usize) -> Self {
        Self { bytes: Vec::with_capacity(most), frame_bytes: 0, most }
    }

    /// Copies what there is room for.
    fn copy(&mut self, frame: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(&frame[..frame.len().min(self.most)]);
        self.frame_bytes = frame.len();
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.frame_bytes = 0;
    }
}

impl Sample {
    fn with_room_for(bytes: usize) -> Self {
        let verdict = Verdict::Drop(DropReason::Malformed);
        Self {
            at: SystemTime::UNIX_EPOCH,
            worker: 0,
            side: Side::Inside,
            is_first: true,
            outcome: Outcome { verdict, tenant: None, side: Side::Inside, errand: Errand::NEW },
            before: Copied::with_room_for(bytes),
            after: Copied::with_room_for(bytes),
            session: None,
            is_new_session: false,
        }
    }

    /// Returns why the frame was dropped or rejected, if it was.
    pub fn dropped(&self) -> Option<DropReason> {
        match self.outcome.verdict {
            Verdict::Drop(reason) | Verdict::Reject(reason) => Some(reason),
            Verdict::Forward(_)
            | Verdict::Hairpin
            | Verdict::Split(_)
            | Verdict::HandOver(..)
            | Verdict::Wait(_)
            | Verdict::HoldSyn(_)
            | Verdict::Hold(_) => None,
        }
    }

    /// Returns the side by which a frame leaves, if one does.
    pub fn leaves_by(&self) -> Option<Side> {
        match self.outcome.verdict {
            Verdict::Forward(side) | Verdict::Split(side) => Some(side),
            Verdict::Reject(_) => Some(self.outcome.side),
            Verdict::Hairpin
            | Verdict::HandOver(..)
            | Verdict::Wait(_)
            | Verdict::HoldSyn(_)
            | Verdict::Hold(_)
            | Verdict::Drop(_) => None,
        }
    }
}

impl Tap {
    /// Makes a tap and its samples.
    pub fn new(filter: TapFilter, limits: TapLimits) -> Self {
        let limits = TapLimits { bytes: limits.bytes.clamp(64, MOST_BYTES), ..limits };
        let spare = ArrayQueue::new(limits.samples.max(1));
        while spare.push(Box::new(Sample::with_room_for(limits.bytes))).is_ok() {}
        let taken = ArrayQueue::new(spare.capacity());
        Self { filter, limits, spare, taken, missed: AtomicU64::new(0) }
    }

    /// Takes the next sample.
    pub fn take(&self) -> Option<Box<Sample>> {
        self.taken.pop()
    }

    /// Gives a sample back when it has been looked at.
    pub fn give_back(&self, sample: Box<Sample>) {
        // There is room for all that were made.
        let _ = self.spare.push(sample);
    }

    /// Returns how many frames could not be taken.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    fn miss(&self, frames: u64) {
        self.missed.fetch_add(frames, Ordering::Relaxed);
    }

    /// Tells whether a frame may be wanted, by what costs little to look at.
    fn may_want(&self, frame: &[u8], side: Side, snapshot: &Snapshot) -> bool {
        let filter = &self.filter;
        let (near, far) = match side {
            Side::Inside => (SOURCE_AT, DESTINATION_AT),
            Side::Outside => (DESTINATION_AT, SOURCE_AT),
        };
        let is_tenants = filter.tenant.is_none_or(|tenant| {
            let Some(tenant) = snapshot.tenant(tenant) else { return false };
            match side {
                Side::Inside => frame.get(..6) == Some(tenant.gateway_mac.as_bytes()),
                Side::Outside => {
                    address_at(frame, near).is_some_and(|address| tenant.egress_addresses.contains(&address))
                }
            }
        });
        // An ICMP error may be about what is wanted, whoever sent it.
        let is_icmp = frame.get(PROTOCOL_AT) == Some(&Protocol::Icmp.number());
        let is_of = |end: &EndFilter, at| {
            end.network.is_none_or(|network| address_at(frame, at).is_some_and(|it| network.contains(&it)))
        };
        let is_protocol =
            filter.protocol.is_none_or(|protocol| frame.get(PROTOCOL_AT) == Some(&protocol.number()));
        let is_pods = side == Side::Outside || is_of(&filter.pod, near);
        is_tenants && (is_icmp || (is_protocol && is_pods && is_of(&filter.remote, far)))
    }

    /// Tells whether a sample is wanted.
    fn wants(&self, sample: &Sample) -> bool {
        let filter = &self.filter;
        if filter.drops_only && sample.dropped().is_none() {
            return false;
        }
        if filter.tenant.is_some() && sample.outcome.tenant != filter.tenant {
            return false;
        }
        let is_open = |end: &EndFilter| *end == EndFilter::default();
        if filter.protocol.is_none() && is_open(&filter.pod) && is_open(&filter.remote) {
            return true;
        }
        let Some(tuple) = inside_tuple(sample) else { return false };
        filter.protocol.is_none_or(|protocol| protocol == tuple.protocol)
            && filter.pod.fits(tuple.source, tuple.source_port)
            && filter.remote.fits(tuple.destination, tuple.destination_port)
    }
}

fn address_at(frame: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = frame.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}

/// Returns the tuple of a frame's flow as its pod sends it; from outside its pod is known by the session only.
fn inside_tuple(sample: &Sample) -> Option<FiveTuple> {
    if let Some(session) = sample.session {
        return Some(session.inside);
    }
    let wire = wire_tuple(&sample.before.bytes)?;
    Some(match sample.side {
        Side::Inside => wire,
        Side::Outside => wire.reversed(),
    })
}

/// Returns the tuple of a frame's flow in the direction in which the frame goes.
fn wire_tuple(frame: &[u8]) -> Option<FiveTuple> {
    match parse(frame).ok()?.transport {
        Transport::Flow(flow) => Some(flow.tuple),
        Transport::Error(quoted) => Some(quoted.flow.tuple.reversed()),
        Transport::Fragment(_) => None,
    }
}

/// The taps of one worker.
#[derive(Debug)]
pub(crate) struct Taps {
    list: Arc<[Arc<Tap>]>,
    looks_ahead: bool,
    /// What each may still take in this tenth of a second.
    allowances: [u32; MOST_TAPS],
    since: Option<Tick>,
    /// The frame in hand, as it came.
    before: Copied,
}

/// How a frame came to be in hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occasion {
    pub(crate) side: Side,
    /// Whether nothing was decided about it before but which worker it belongs to.
    pub(crate) is_first: bool,
    /// Whether taps that may not take it have counted it already.
    pub(crate) is_counted: bool,
    pub(crate) now: Tick,
}

impl Taps {
    pub(crate) fn new() -> Self {
        Self {
            list: Arc::from([]),
            looks_ahead: false,
            allowances: [0; MOST_TAPS],
            since: None,
            before: Copied::with_room_for(MOST_BYTES),
        }
    }

    /// Returns those of one tap.
    pub(crate) fn of(tap: Arc<Tap>, now: Tick) -> Self {
        let mut taps = Self { list: Arc::from([tap]), ..Self::new() };
        taps.turn(now);
        taps
    }

    /// Tells whether nobody looks.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Takes what the control side has put into the mailbox.
    pub(crate) fn adopt(&mut self, mailbox: &Mailbox) {
        if let Some(list) = mailbox.take_taps() {
            let before = std::mem::replace(&mut self.list, list);
            self.looks_ahead = self.list.iter().any(|tap| !tap.filter.drops_only);
            mailbox.retire_taps(before);
            self.since = None;
        }
    }

    /// Lets each tap take its part of a second again when a tenth of it is over.
    pub(crate) fn turn(&mut self, now: Tick) {
        if self.since != Some(now) {
            self.since = Some(now);
            for (allowance, tap) in self.allowances.iter_mut().zip(&*self.list) {
                *allowance = tap.limits.per_second.div_ceil(Tick::PER_SECOND);
            }
        }
    }

    /// Tells whether somebody may want a frame before it is decided about it.
    #[inline]
    pub(crate) fn looks_ahead(&self) -> bool {
        self.looks_ahead
    }

    /// Returns how many frames at the front nobody wants before it is decided about them.
    pub(crate) fn unwanted(&self, frames: &[Frame], side: Side, snapshot: &Snapshot) -> usize {
        let mut first = frames.len();
        for (tap, _) in self.ahead().filter(|(_, allowance)| *allowance > 0) {
            let wanted = frames[..first].iter().position(|frame| tap.may_want(frame.bytes(), side, snapshot));
            first = wanted.unwrap_or(first);
        }
        // A wanted frame is looked at again when it is the first.
        let passed = &frames[..first.max(1).min(frames.len())];
        for (tap, _) in self.ahead().filter(|(_, allowance)| *allowance == 0) {
            let missed = match tap.filter == TapFilter::default() {
                true => passed.len(),
                false => passed.iter().filter(|frame| tap.may_want(frame.bytes(), side, snapshot)).count(),
            };
            tap.miss(missed as u64);
        }
        first
    }

    /// Returns the taps that want frames before it is decided about them, and what they may take.
    fn ahead(&self) -> impl Iterator<Item = (&Tap, u32)> {
        let taps = self.list.iter().map(|tap| &**tap).zip(self.allowances);
        taps.filter(|(tap, _)| !tap.filter.drops_only)
    }

    /// Has a frame decided about by `decide`, and shows it to whom it may concern.
    pub(crate) fn watch(
        &mut self,
        engine: &mut Engine,
        frame: &mut Frame,
        occasion: Occasion,
        decide: impl FnOnce(&mut Engine, &mut Frame) -> Outcome,
    ) -> Outcome {
        let concerned = self.concerned(frame.bytes(), occasion, &engine.snapshot);
        if !concerned.contains(&true) {
            return decide(engine, frame);
        }
        self.before.copy(frame.bytes());
        let sessions = engine.conntrack.len();
        let outcome = decide(engine, frame);
        let has_begun = engine.conntrack.len() > sessions;
        self.show(engine, Some(frame.bytes()), occasion, (outcome, has_begun), concerned);
        outcome
    }

    /// Shows a frame that was dropped after something else had been decided about it.
    #[cold]
    pub(crate) fn show_lost(&mut self, engine: &Engine, frame: &Frame, outcome: Outcome, reason: DropReason) {
        let outcome = Outcome { verdict: Verdict::Drop(reason), ..outcome };
        let now = self.since.unwrap_or_default();
        let occasion = Occasion { side: outcome.side, is_first: false, is_counted: false, now };
        let concerned = self.concerned(frame.bytes(), occasion, &engine.snapshot);
        self.before.copy(frame.bytes());
        self.show(engine, None, occasion, (outcome, false), concerned);
    }

    /// Tells which taps may want a frame and may take it.
    fn concerned(&self, frame: &[u8], occasion: Occasion, snapshot: &Snapshot) -> [bool; MOST_TAPS] {
        let mut concerned = [false; MOST_TAPS];
        for (place, tap) in self.list.iter().enumerate() {
            if self.allowances[place] > 0 {
                concerned[place] = tap.may_want(frame, occasion.side, snapshot);
            } else if (tap.filter.drops_only || !occasion.is_counted)
                && tap.may_want(frame, occasion.side, snapshot)
            {
                // Others are counted before they take the express lane.
                tap.miss(1);
            }
        }
        concerned
    }

    fn show(
        &mut self,
        engine: &Engine,
        after: Option<&[u8]>,
        occasion: Occasion,
        (outcome, is_new_session): (Outcome, bool),
        concerned: [bool; MOST_TAPS],
    ) {
        let session = find_session(engine, &self.before.bytes, occasion, outcome);
        let taps = self.list.iter().zip(&mut self.allowances).zip(concerned);
        for ((tap, allowance), _) in taps.filter(|(_, is_concerned)| *is_concerned) {
            let Some(mut sample) = tap.spare.pop() else {
                tap.miss(1);
                continue;
            };
            sample.at = SystemTime::now();
            sample.worker = engine.conntrack.slot().worker;
            sample.side = occasion.side;
            sample.is_first = occasion.is_first;
            sample.outcome = outcome;
            sample.session = session;
            sample.is_new_session = is_new_session;
            sample.before.copy(&self.before.bytes);
            sample.before.frame_bytes = self.before.frame_bytes;
            match after.filter(|_| sample.leaves_by().is_some()) {
                Some(after) => sample.after.copy(after),
                None => sample.after.clear(),
            }
            if tap.wants(&sample) {
                *allowance -= 1;
                // There is room for all that were made.
                let _ = tap.taken.push(sample);
            } else {
                tap.give_back(sample);
            }
        }
    }
}

fn find_session(
    engine: &Engine,
    frame: &[u8],
    occasion: Occasion,
    outcome: Outcome,
) -> Option<SessionReport> {
    // A packet to an egress address of this gateway came back in, and its tenant is now that of the other end.
    let tenant = outcome.tenant.filter(|_| outcome.side == occasion.side)?;
    let key = Key::new(tenant, occasion.side.direction(), &wire_tuple(frame)?);
    session_of(&engine.conntrack, &key, &engine.snapshot.spec().timeouts, occasion.now)
}

//! What reaches a worker from outside: snapshots, frames of other workers, commands. And what it asks for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering, fence};

use conntrack::{Return, TenantId};
use crossbeam::queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::dataplane::NeighbourRequest;
use crate::io::Frame;
use crate::share::may_take;
use crate::snapshot::{Side, Snapshot};
use crate::survey::Question;
use crate::tap::Tap;
use crate::verdict::Errand;

/// Frames that may wait to be taken over by one worker.
const HANDED_FRAMES: usize = 1024;

/// The place of frames that are no tenant's, behind those of tenants.
const NOBODY: usize = u16::MAX as usize + 1;

/// Ports that may wait to be taken back by one worker.
pub const RETURNS: usize = 1024;

/// A frame that one worker hands over to another.
#[derive(Debug)]
pub struct HandedFrame {
    /// Side that it came from, or leaves by if it is to be sent.
    pub side: Side,
    /// The frame.
    pub frame: Frame,
    /// Tenant that it belongs to.
    pub tenant: Option<TenantId>,
    /// What is to be done with it.
    pub task: Task,
}

/// What a frame is handed over for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// The frame belongs to the worker, which takes it up with what is known of it.
    Process(Errand),
    /// The frame is finished, and its worker has no port on the side that it leaves by. A forwarded packet counts for
    /// its tenant when it is sent; what has none is an answer.
    Transmit(Option<TenantId>),
}

/// Something that the control side tells a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Other ports wait for it.
    NewPorts,
    /// The neighbours on this side have to hear again who answers for what.
    Announce(Side),
}

impl Notice {
    fn bit(self) -> u8 {
        match self {
            Self::NewPorts => 1,
            Self::Announce(Side::Inside) => 2,
            Self::Announce(Side::Outside) => 4,
        }
    }
}

/// The queues of one worker. Others put in, the worker takes out.
#[derive(Debug)]
pub struct Mailbox {
    snapshot: ArrayQueue<Arc<Snapshot>>,
    handed: ArrayQueue<HandedFrame>,
    /// Frames of each tenant that wait to be taken over, and of nobody.
    held: Box<[AtomicU16]>,
    questions: ArrayQueue<Question>,
    taps: ArrayQueue<Arc<[Arc<Tap>]>>,
    /// Taps that the worker no longer has, to be freed by others.
    retired_taps: ArrayQueue<Arc<[Arc<Tap>]>>,
    returns: ArrayQueue<Return>,
    /// Workers that forgot all their sessions, a bit each.
    forgetful: AtomicU64,
    /// A bit for each [`Notice`].
    notices: AtomicU8,
    wake: EventFd,
    is_asleep: AtomicBool,
    is_stopping: AtomicBool,
}

impl Mailbox {
    /// Makes an empty mailbox.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            snapshot: ArrayQueue::new(1),
            handed: ArrayQueue::new(HANDED_FRAMES),
            held: (0..=NOBODY).map(|_| AtomicU16::new(0)).collect(),
            questions: ArrayQueue::new(4),
            taps: ArrayQueue::new(1),
            retired_taps: ArrayQueue::new(16),
            returns: ArrayQueue::new(RETURNS),
            forgetful: AtomicU64::new(0),
            notices: AtomicU8::new(0),
            wake: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            is_asleep: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
        })
    }

    /// Puts the newest snapshot; one that was not adopted yet is replaced.
    pub fn put_snapshot(&self, snapshot: Arc<Snapshot>) {
        drop(self.snapshot.force_push(snapshot));
        self.wake_up();
    }

    /// Hands a frame over to the worker.
    ///
    /// # Errors
    /// Gives the frame back when too many wait already, in all or of its tenant.
    pub fn hand_over(&self, handed: HandedFrame) -> Result<(), HandedFrame> {
        let held = self.held_by(handed.tenant);
        if !may_take(held.load(Ordering::Relaxed).into(), self.places(), HANDED_FRAMES) {
            return Err(handed);
        }
        held.fetch_add(1, Ordering::Relaxed);
        self.handed.push(handed).inspect_err(|handed| {
            self.held_by(handed.tenant).fetch_sub(1, Ordering::Relaxed);
        })?;
        self.wake_up();
        Ok(())
    }

    /// Gives a port back that the worker has lent.
    ///
    /// # Errors
    /// Hands it back when too many wait already.
    pub fn give_back(&self, returned: Return) -> Result<(), Return> {
        self.returns.push(returned)?;
        self.wake_up();
        Ok(())
    }

    /// Tells the worker that another forgot all its sessions.
    pub fn note_forgetful(&self, worker: u16) {
        self.forgetful.fetch_or(1 << worker, Ordering::AcqRel);
        self.wake_up();
    }

    /// Gives the worker a notice.
    pub fn note(&self, notice: Notice) {
        self.notices.fetch_or(notice.bit(), Ordering::AcqRel);
        self.wake_up();
    }

    /// Tells whether a tenant may hand over a frame that leaves room for its whole packets of sessions that need nothing
    /// else (RFC 4787 REQ-14a): half of what it may have.
    pub fn has_room_to_spare(&self, tenant: Option<TenantId>) -> bool {
        let held = self.held_by(tenant).load(Ordering::Relaxed);
        may_take(2 * usize::from(held), self.places(), HANDED_FRAMES)
    }

    /// Asks the worker; tells whether there was room for the question.
    pub fn ask(&self, question: Question) -> bool {
        let is_accepted = self.questions.push(question).is_ok();
        self.wake_up();
        is_accepted
    }

    /// Puts what the worker shows frames to from now on, and frees what it showed them to before.
    pub fn put_taps(&self, taps: Arc<[Arc<Tap>]>) {
        while self.retired_taps.pop().is_some() {}
        drop(self.taps.force_push(taps));
        self.wake_up();
    }

    /// Takes what the worker shows frames to.
    pub fn take_taps(&self) -> Option<Arc<[Arc<Tap>]>> {
        self.taps.pop()
    }

    /// Gives back what the worker no longer shows frames to.
    pub fn retire_taps(&self, taps: Arc<[Arc<Tap>]>) {
        // It is freed at once if nobody has come for a long time.
        let _ = self.retired_taps.push(taps);
    }

    /// Tells the worker to end.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.wake_up();
    }

    /// Takes the newest snapshot.
    pub fn take_snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.pop()
    }

    /// Takes a frame that was handed over.
    pub fn take_frame(&self) -> Option<HandedFrame> {
        let handed = self.handed.pop()?;
        self.held_by(handed.tenant).fetch_sub(1, Ordering::Relaxed);
        Some(handed)
    }

    /// Takes a port that comes back.
    pub fn take_return(&self) -> Option<Return> {
        self.returns.pop()
    }

    /// Forgets the ports that come back, because the worker no longer knows that it has lent them.
    pub fn discard_returns(&self) {
        for _ in 0..RETURNS {
            self.returns.pop();
        }
    }

    /// Takes a worker that forgot all its sessions.
    pub fn take_forgetful(&self) -> Option<u16> {
        // Nearly always nobody did, and the line stays shared.
        let worker = self.forgetful.load(Ordering::Acquire).trailing_zeros();
        if worker == u64::BITS {
            return None;
        }
        self.forgetful.fetch_and(!(1 << worker), Ordering::AcqRel);
        u16::try_from(worker).ok()
    }

    /// Takes a notice; tells whether it was given.
    pub fn take_notice(&self, notice: Notice) -> bool {
        // Nearly always there is none, and the line stays shared.
        self.notices.load(Ordering::Acquire) & notice.bit() != 0
            && self.notices.fetch_and(!notice.bit(), Ordering::AcqRel) & notice.bit() != 0
    }

    /// Tells whether a question waits.
    pub fn has_question(&self) -> bool {
        // Nearly always none does, and to look costs no fence.
        !self.questions.is_empty()
    }

    /// Takes a question.
    pub fn take_question(&self) -> Option<Question> {
        self.questions.pop()
    }

    /// Tells whether the worker shall end.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Returns the frames that wait to be taken over.
    pub fn frames_waiting(&self) -> usize {
        self.handed.len()
    }

    /// Notes that the worker is about to sleep; tells whether it may, because nothing is waiting.
    pub fn fall_asleep(&self) -> bool {
        self.is_asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake_up`: either the worker sees what was put, or the putter sees it sleep.
        fence(Ordering::SeqCst);
        self.is_empty() && !self.is_stopping()
    }

    /// Tells whether nothing waits for the worker.
    pub fn is_empty(&self) -> bool {
        self.snapshot.is_empty()
            && self.handed.is_empty()
            && self.questions.is_empty()
            && self.taps.is_empty()
            && self.returns.is_empty()
            && self.forgetful.load(Ordering::Relaxed) == 0
            && self.notices.load(Ordering::Relaxed) == 0
    }

    /// Notes that the worker woke.
    pub fn wake(&self) {
        self.is_asleep.store(false, Ordering::Relaxed);
    }

    fn places(&self) -> usize {
        HANDED_FRAMES.saturating_sub(self.handed.len())
    }

    fn held_by(&self, tenant: Option<TenantId>) -> &AtomicU16 {
        &self.held[tenant.map_or(NOBODY, |tenant| usize::from(tenant.0))]
    }

    fn wake_up(&self) {
        fence(Ordering::SeqCst);
        if self.is_asleep.load(Ordering::Relaxed) && self.is_asleep.swap(false, Ordering::Relaxed) {
            // Nobody reads the counter, whose changes are what wakes; 2^64 of them are out of reach.
            let _ = self.wake.write(1);
        }
    }
}

/// What wakes the worker, for an edge-triggered wait (epoll(7)): it becomes readable anew whenever something was put while
/// the worker slept.
impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Requests of all workers to the control side. The descriptor is readable while there may be some.
#[derive(Debug)]
pub struct RequestQueue {
    requests: ArrayQueue<NeighbourRequest>,
    wake: EventFd,
}

impl RequestQueue {
    /// Makes an empty queue.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { requests: ArrayQueue::new(256), wake })
    }

    /// Asks for a neighbour; tells whether there was room for the request.
    pub fn ask(&self, request: NeighbourRequest) -> bool {
        let is_accepted = self.requests.push(request).is_ok();
        if is_accepted {
            // The counter cannot overflow in practice; it is read at every drain.
            let _ = self.wake.write(1);
        }
        is_accepted
    }

    /// Takes all requests.
    pub fn drain(&self) -> Vec<NeighbourRequest> {
        let _ = self.wake.read();
        std::iter::from_fn(|| self.requests.pop()).collect()
    }
}

impl AsFd for RequestQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

//! Frames that wait for something: few of them, and not for long.

use std::collections::VecDeque;
use std::time::Duration;

use conntrack::{TenantId, Tick};

use crate::io::Frame;
use crate::share::may_take;
use crate::snapshot::Side;
use crate::verdict::Errand;

/// How many frames may wait at one worker, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingRules {
    /// Frames in all.
    pub in_all: usize,
    /// Frames of one tenant, as far as `may_take` gives it so many.
    pub of_tenant: usize,
    /// Frames that wait for the same.
    pub for_same: usize,
    /// How long a frame waits.
    pub patience: Duration,
}

/// Rules for frames whose next hop is not resolved: for one about as many as Linux keeps (`unres_qlen_bytes`), and as
/// long as the kernel asks, three times, a second apart.
pub const FOR_NEIGHBOURS: WaitingRules =
    WaitingRules { in_all: 512, of_tenant: 256, for_same: 100, patience: Duration::from_secs(3) };

/// A frame as it came in, and what it waits for.
#[derive(Debug)]
pub struct WaitingFrame<T> {
    /// The frame.
    pub frame: Frame,
    /// Side that it came from.
    pub arrival: Side,
    /// With what errand it is taken up again.
    pub errand: Errand,
    /// What it waits for.
    pub awaited: T,
    /// Whether that was asked for on behalf of this frame.
    pub has_asked: bool,
    /// Tenant that it belongs to.
    pub tenant: Option<TenantId>,
    /// When it is given up.
    pub deadline: Tick,
}

/// The frames that wait at one worker, oldest first.
#[derive(Debug)]
pub struct WaitingRoom<T> {
    frames: VecDeque<WaitingFrame<T>>,
    /// Frames of each tenant, and of nobody.
    held: Box<[u16]>,
    rules: WaitingRules,
}

impl<T: PartialEq> WaitingRoom<T> {
    /// Makes an empty room with a place for every frame that may wait.
    pub fn new(rules: WaitingRules) -> Self {
        let held = vec![0; NOBODY + 1].into();
        Self { frames: VecDeque::with_capacity(rules.in_all), held, rules }
    }

    /// Keeps a frame until what it waits for happens; returns it if that must be asked for, because nobody has
    /// done so.
    ///
    /// # Errors
    /// Gives the frame back when too many wait: for the same, of this tenant, or in all.
    pub fn keep(
        &mut self,
        frame: Frame,
        (arrival, errand): (Side, Errand),
        awaited: T,
        tenant: Option<TenantId>,
        now: Tick,
    ) -> Result<Option<&mut WaitingFrame<T>>, Frame> {
        let rules = self.rules;
        let (held, free) = (usize::from(self.held[place_of(tenant)]), rules.in_all - self.frames.len());
        // A flood is refused before anything is looked through.
        if held >= rules.of_tenant || !may_take(held, free, rules.in_all) {
            return Err(frame);
        }
        let (mut for_same, mut is_asked) = (0, false);
        for other in self.frames.iter().filter(|other| other.awaited == awaited) {
            for_same += 1;
            is_asked |= other.has_asked;
        }
        if for_same >= rules.for_same {
            return Err(frame);
        }
        let deadline = now.after(rules.patience);
        self.held[place_of(tenant)] += 1;
        self.frames.push_back(WaitingFrame {
            frame,
            arrival,
            errand,
            awaited,
            has_asked: false,
            tenant,
            deadline,
        });
        Ok(self.frames.back_mut().filter(|_| !is_asked))
    }

    /// Takes the oldest frame if its time is over.
    pub fn take_overdue(&mut self, now: Tick) -> Option<WaitingFrame<T>> {
        let is_overdue = self.frames.front().is_some_and(|first| now.reached(first.deadline));
        is_overdue.then(|| self.take_oldest()).flatten()
    }

    /// Takes the oldest frame.
    pub fn take_oldest(&mut self) -> Option<WaitingFrame<T>> {
        let oldest = self.frames.pop_front()?;
        self.held[place_of(oldest.tenant)] -= 1;
        Some(oldest)
    }

    /// Lets a frame wait on, with the deadline that it had, behind all others.
    pub fn put_back(&mut self, waiting: WaitingFrame<T>) {
        self.held[place_of(waiting.tenant)] += 1;
        self.frames.push_back(waiting);
    }

    /// Returns the number of frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Tells whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

/// The place of frames that are no tenant's, behind those of tenants.
const NOBODY: usize = u16::MAX as usize + 1;

fn place_of(tenant: Option<TenantId>) -> usize {
    tenant.map_or(NOBODY, |tenant| usize::from(tenant.0))
}

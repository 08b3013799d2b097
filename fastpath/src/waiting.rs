//! Frames that wait until their next hop is resolved: few of them, and not for long.

use std::collections::VecDeque;
use std::time::Duration;

use conntrack::{TenantId, Tick};

use crate::dataplane::NeighbourRequest;
use crate::io::Frame;
use crate::snapshot::Side;

/// Frames that may wait at one worker.
const CAPACITY: usize = 512;

/// Frames that may wait for one neighbour, about as many as Linux keeps (`unres_qlen_bytes`).
const PER_NEIGHBOUR: usize = 100;

/// Frames of one tenant that may wait, so that none takes all places.
const PER_TENANT: usize = 256;

/// How long a frame waits: the kernel asks three times, a second apart.
const PATIENCE: Duration = Duration::from_secs(3);

/// A frame as it came in, and what it waits for.
#[derive(Debug)]
pub struct WaitingFrame {
    /// The frame.
    pub frame: Frame,
    /// Side that it came from.
    pub arrival: Side,
    /// The neighbour that it waits for.
    pub next_hop: NeighbourRequest,
    /// Whether the neighbour was asked for on behalf of this frame.
    pub has_asked: bool,
    /// Tenant that it belongs to.
    pub tenant: Option<TenantId>,
    /// When it is given up.
    pub deadline: Tick,
}

/// The frames that wait at one worker, oldest first.
#[derive(Debug)]
pub struct WaitingRoom {
    frames: VecDeque<WaitingFrame>,
}

impl Default for WaitingRoom {
    fn default() -> Self {
        Self { frames: VecDeque::with_capacity(CAPACITY) }
    }
}

impl WaitingRoom {
    /// Keeps a frame until its next hop is resolved; returns it if the neighbour must be asked for, because
    /// nobody has done so.
    ///
    /// # Errors
    /// Gives the frame back when too many wait: for this neighbour, of this tenant, or in all.
    pub fn keep(
        &mut self,
        frame: Frame,
        arrival: Side,
        next_hop: NeighbourRequest,
        tenant: Option<TenantId>,
        now: Tick,
    ) -> Result<Option<&mut WaitingFrame>, Frame> {
        let (mut ahead, mut of_tenant, mut is_asked) = (0, 0, false);
        for other in &self.frames {
            of_tenant += usize::from(other.tenant == tenant);
            if other.next_hop == next_hop {
                ahead += 1;
                is_asked |= other.has_asked;
            }
        }
        if ahead >= PER_NEIGHBOUR || of_tenant >= PER_TENANT || self.frames.len() == CAPACITY {
            return Err(frame);
        }
        let deadline = now.after(PATIENCE);
        self.frames.push_back(WaitingFrame { frame, arrival, next_hop, has_asked: false, tenant, deadline });
        Ok(self.frames.back_mut().filter(|_| !is_asked))
    }

    /// Takes the oldest frame if its time is over.
    pub fn take_overdue(&mut self, now: Tick) -> Option<WaitingFrame> {
        let is_overdue = self.frames.front().is_some_and(|first| now.reached(first.deadline));
        is_overdue.then(|| self.frames.pop_front()).flatten()
    }

    /// Takes the oldest frame.
    pub fn take_oldest(&mut self) -> Option<WaitingFrame> {
        self.frames.pop_front()
    }

    /// Lets a frame wait on, with the deadline that it had, behind all others.
    pub fn put_back(&mut self, waiting: WaitingFrame) {
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

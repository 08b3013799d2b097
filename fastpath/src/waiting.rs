//! Frames that wait until their next hop is resolved: few of them, and not for long.

use std::net::Ipv4Addr;
use std::time::Duration;

use conntrack::Tick;

use crate::io::Frame;
use crate::snapshot::Side;

/// Frames that may wait at one worker.
const CAPACITY: usize = 512;

/// Frames that may wait for one address, about as many as Linux keeps (`unres_qlen_bytes`).
const PER_ADDRESS: usize = 100;

/// How long a frame waits: the kernel asks three times, a second apart.
const PATIENCE: Duration = Duration::from_secs(3);

/// A frame as it came in, and what it waits for.
#[derive(Debug)]
pub struct WaitingFrame {
    /// The frame.
    pub frame: Frame,
    /// Side that it came from.
    pub arrival: Side,
    /// Side and address of the neighbour that it waits for.
    pub next_hop: (Side, Ipv4Addr),
    deadline: Tick,
}

/// The frames that wait at one worker, oldest first.
#[derive(Debug)]
pub struct WaitingRoom {
    frames: Vec<WaitingFrame>,
}

impl Default for WaitingRoom {
    fn default() -> Self {
        Self { frames: Vec::with_capacity(CAPACITY) }
    }
}

impl WaitingRoom {
    /// Keeps a frame until its next hop is resolved; tells whether nobody waited for it
    /// before, so that it must be asked for.
    ///
    /// # Errors
    /// Gives the frame back when too many wait.
    pub fn keep(
        &mut self,
        frame: Frame,
        arrival: Side,
        next_hop: (Side, Ipv4Addr),
        now: Tick,
    ) -> Result<bool, Frame> {
        let ahead = self.frames.iter().filter(|other| other.next_hop == next_hop).count();
        if ahead >= PER_ADDRESS || self.frames.len() == CAPACITY {
            return Err(frame);
        }
        self.frames.push(WaitingFrame { frame, arrival, next_hop, deadline: now.after(PATIENCE) });
        Ok(ahead == 0)
    }

    /// Returns the oldest frame if its time is over.
    pub fn overdue(&mut self, now: Tick) -> Option<&mut WaitingFrame> {
        self.frames.first_mut().filter(|first| now.reached(first.deadline))
    }

    /// Returns the frame in a place, oldest first.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut WaitingFrame> {
        self.frames.get_mut(index)
    }

    /// Takes the frame out of a place.
    ///
    /// # Panics
    /// When there is none.
    pub fn take(&mut self, index: usize) -> WaitingFrame {
        self.frames.remove(index)
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

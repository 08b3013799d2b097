//! Simulated wires: a port whose other end a test holds, with seeded faults.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use super::{Frame, FrameIo, FramePool};

/// What can go wrong on a wire, in parts of 256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Frames that never arrive.
    pub loss: u8,
    /// Frames that arrive twice.
    pub duplication: u8,
    /// Frames that arrive before the one ahead of them.
    pub reordering: u8,
}

/// Both ends of a wire. The test's end is this value; the worker's end is a [`SimPort`] made from it.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    ends: Rc<RefCell<Ends>>,
}

#[derive(Debug, Default)]
struct Ends {
    to_port: VecDeque<Vec<u8>>,
    from_port: VecDeque<Vec<u8>>,
    faults: Faults,
    seed: u64,
    accepted: u64,
    is_contended: bool,
}

impl Wire {
    /// Makes a wire whose faults towards the port follow `seed`.
    pub fn new(faults: Faults, seed: u64) -> Self {
        Self { ends: Rc::new(RefCell::new(Ends { faults, seed: seed | 1, ..Ends::default() })) }
    }

    /// Puts a frame on the wire towards the port.
    pub fn inject(&self, bytes: &[u8]) {
        self.ends.borrow_mut().inject(bytes);
    }

    /// Has the port say that tenants compete for it.
    pub fn contend(&self) {
        self.ends.borrow_mut().is_contended = true;
    }

    /// Takes the next frame that the port transmitted.
    pub fn take(&self) -> Option<Vec<u8>> {
        self.ends.borrow_mut().from_port.pop_front()
    }

    /// Returns how many frames reached the port, after loss and duplication.
    pub fn frames_accepted(&self) -> u64 {
        self.ends.borrow().accepted
    }
}

impl Ends {
    fn inject(&mut self, bytes: &[u8]) {
        if self.happens(self.faults.loss) {
            return;
        }
        let copies = 1 + usize::from(self.happens(self.faults.duplication));
        for _ in 0..copies {
            self.to_port.push_back(bytes.to_vec());
            let last = self.to_port.len() - 1;
            if last > 0 && self.happens(self.faults.reordering) {
                self.to_port.swap(last, last - 1);
            }
        }
    }

    /// Draws from a xorshift generator.
    fn happens(&mut self, parts: u8) -> bool {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed.to_be_bytes()[0] < parts
    }
}

/// The worker's end of a [`Wire`].
#[derive(Debug)]
pub struct SimPort {
    wire: Wire,
    fill: FramePool,
    fill_frames: usize,
    transmitting: VecDeque<Frame>,
    ring_frames: usize,
}

impl SimPort {
    /// Makes a port whose fill and tx rings hold `ring_frames` frames each.
    pub fn new(wire: &Wire, ring_frames: usize) -> Self {
        Self {
            wire: wire.clone(),
            fill: FramePool::with_capacity(ring_frames),
            fill_frames: ring_frames,
            transmitting: VecDeque::new(),
            ring_frames,
        }
    }

    /// Closes the port and returns the frames that it owned.
    pub fn into_frames(mut self) -> impl Iterator<Item = Frame> {
        self.transmitting.into_iter().chain(std::iter::from_fn(move || self.fill.take()))
    }
}

impl FrameIo for SimPort {
    fn receive(&mut self, batch: &mut VecDeque<Frame>, limit: usize) -> usize {
        let mut ends = self.wire.ends.borrow_mut();
        let mut received = 0;
        while received < limit && !ends.to_port.is_empty() {
            let Some(mut frame) = self.fill.take() else { break };
            let bytes = ends.to_port.pop_front().expect("the wire was not empty");
            frame.set_len(bytes.len());
            frame.bytes_mut().copy_from_slice(&bytes);
            batch.push_back(frame);
            ends.accepted += 1;
            received += 1;
        }
        received
    }

    fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        if self.transmitting.len() == self.ring_frames {
            return Err(frame);
        }
        self.transmitting.push_back(frame);
        Ok(())
    }

    fn flush(&mut self) {
        let mut ends = self.wire.ends.borrow_mut();
        for frame in &self.transmitting {
            ends.from_port.push_back(frame.bytes().to_vec());
        }
    }

    fn complete(&mut self, pool: &mut FramePool) -> usize {
        let completed = self.transmitting.len();
        for frame in self.transmitting.drain(..) {
            pool.put(frame);
        }
        completed
    }

    fn refill(&mut self, pool: &mut FramePool) {
        while self.fill.len() < self.fill_frames
            && let Some(frame) = pool.take()
        {
            self.fill.put(frame);
        }
    }

    fn is_transmitting(&self) -> bool {
        !self.transmitting.is_empty()
    }

    fn note_backlog(&mut self) -> bool {
        self.wire.ends.borrow().is_contended
    }

    fn frames_owned(&self) -> usize {
        self.fill.len() + self.transmitting.len()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

//! A port in memory whose other end is held by whoever measures.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use fastpath::io::{Frame, FrameIo, FramePool};

/// Frames that a fill ring holds.
const RING_FRAMES: usize = 256;

/// The far end of a [`LinePort`].
#[derive(Clone, Debug, Default)]
pub struct Line {
    rings: Rc<RefCell<Rings>>,
}

#[derive(Debug, Default)]
struct Rings {
    fill: Vec<Frame>,
    arriving: VecDeque<Frame>,
    transmitted: u64,
}

impl Line {
    /// Lets frames arrive, each as `write` makes it; returns how many the fill ring had room for.
    pub fn arm(&self, frames: usize, mut write: impl FnMut(usize, &mut Frame)) -> usize {
        let mut rings = self.rings.borrow_mut();
        let frames = frames.min(rings.fill.len());
        for number in 0..frames {
            let mut frame = rings.fill.pop().expect("they were counted");
            write(number, &mut frame);
            rings.arriving.push_back(frame);
        }
        frames
    }

    /// Returns how many frames were transmitted so far.
    pub fn transmitted(&self) -> u64 {
        self.rings.borrow().transmitted
    }

    /// Makes the port at the near end.
    pub fn port(&self) -> LinePort {
        LinePort { line: self.clone(), pending: Vec::with_capacity(2 * RING_FRAMES), owned: 0 }
    }
}

/// The near end of a [`Line`]. What it transmits is complete at once.
#[derive(Debug)]
pub struct LinePort {
    line: Line,
    pending: Vec<Frame>,
    owned: usize,
}

impl FrameIo for LinePort {
    fn receive(&mut self, batch: &mut VecDeque<Frame>, limit: usize) -> usize {
        let arriving = &mut self.line.rings.borrow_mut().arriving;
        let received = arriving.len();
        assert!(received <= limit, "no more than a batch is armed");
        batch.append(arriving);
        self.owned -= received;
        received
    }

    fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        self.pending.push(frame);
        Ok(())
    }

    fn flush(&mut self) {
        self.line.rings.borrow_mut().transmitted += self.pending.len() as u64;
    }

    fn complete(&mut self, pool: &mut FramePool) -> usize {
        let completed = self.pending.len();
        pool.put_many(self.pending.drain(..));
        completed
    }

    fn refill(&mut self, pool: &mut FramePool) {
        let mut rings = self.line.rings.borrow_mut();
        let before = rings.fill.len();
        pool.take_many(RING_FRAMES - self.owned, &mut rings.fill);
        self.owned += rings.fill.len() - before;
    }

    fn is_transmitting(&self) -> bool {
        !self.pending.is_empty()
    }

    fn frames_owned(&self) -> usize {
        self.owned + self.pending.len()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

//! Frames that wait for the first fragment of their datagram: one slab, and a queue for each datagram.

use crate::io::Frame;
use crate::snapshot::Side;

const NIL: u32 = u32::MAX;

/// A frame that waits, as it came in.
#[derive(Debug)]
pub struct HeldFrame {
    /// The frame.
    pub frame: Frame,
    /// Side that it came from.
    pub side: Side,
}

/// The frames of one datagram, in order of arrival.
#[derive(Clone, Copy, Debug)]
pub struct HeldQueue {
    first: u32,
    last: u32,
    len: u32,
}

impl Default for HeldQueue {
    fn default() -> Self {
        Self { first: NIL, last: NIL, len: 0 }
    }
}

impl HeldQueue {
    /// Returns the number of frames.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Tells whether no frame waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// All frames that wait at one worker.
#[derive(Debug)]
pub struct HeldFrames {
    slots: Vec<Slot>,
    first_free: u32,
    len: usize,
}

#[derive(Debug)]
struct Slot {
    held: Option<HeldFrame>,
    /// Next of the same datagram, or next free one.
    next: u32,
}

impl HeldFrames {
    /// Makes room for `capacity` frames.
    pub fn new(capacity: u32) -> Self {
        let next = |slot: u32| if slot + 1 < capacity { slot + 1 } else { NIL };
        let slots = (0..capacity).map(|slot| Slot { held: None, next: next(slot) }).collect();
        Self { slots, first_free: if capacity > 0 { 0 } else { NIL }, len: 0 }
    }

    /// Returns the number of frames.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tells whether no frame waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a frame to a queue.
    ///
    /// # Panics
    /// When as many frames wait as there is room for.
    pub fn push(&mut self, queue: &mut HeldQueue, held: HeldFrame) {
        let slot = self.first_free;
        self.first_free = self.slots[slot as usize].next;
        self.slots[slot as usize] = Slot { held: Some(held), next: NIL };
        match queue.last {
            NIL => queue.first = slot,
            last => self.slots[last as usize].next = slot,
        }
        queue.last = slot;
        queue.len += 1;
        self.len += 1;
    }

    /// Takes the first frame of a queue.
    pub fn pop(&mut self, queue: &mut HeldQueue) -> Option<HeldFrame> {
        let slot = self.slots.get_mut(queue.first as usize)?;
        let held = slot.held.take();
        let freed = std::mem::replace(&mut queue.first, slot.next);
        slot.next = std::mem::replace(&mut self.first_free, freed);
        if queue.first == NIL {
            queue.last = NIL;
        }
        queue.len -= 1;
        self.len -= 1;
        held
    }

    /// Returns all frames, whichever queue they are in.
    pub fn into_frames(self) -> impl Iterator<Item = Frame> {
        self.slots.into_iter().filter_map(|slot| slot.held).map(|held| held.frame)
    }
}

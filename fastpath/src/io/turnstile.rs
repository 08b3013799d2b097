//! What the worker of an rx ring and the XDP program that fills it tell each other, in memory that both see: how many
//! frames went in, and how many came out. `struct ring` and `struct share` in `bpf/steer.bpf.c`.

#![allow(unsafe_code, reason = "the memory is shared with the kernel")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a `struct ring`, and where its words are.
const RING_BYTES: usize = 128;
const TAKEN_AT: usize = 0;
const SHARE_AT: usize = 8;
const ADMITTED_AT: usize = 64;
const ARRIVED_AT: usize = 72;
const SHARED_AT: usize = 80;
/// The core is in the upper half.
const CORE_AT: usize = 104;

/// Bytes of a `struct share`, and where its word is.
const SHARE_BYTES: usize = 32;
const REFUSED_AT: usize = 16;

/// Tenants that are told apart at a queue, and one number for what is no tenant's.
pub const SHARES: u32 = 16_384;

/// Frames that the kernel receives at once, where there are so many.
const NAPI_BUDGET: u64 = 64;

/// Turns with a whole batch after which a queue is pressed: some milliseconds, in which a ring would overflow anyway.
const PRESSED_AFTER: u32 = 32;

/// Turns without a whole batch, or by one tenant alone, after which it no longer is: some tenths of a second.
const CALM: u32 = 4096;

/// Frames that one tenant may have in the ring of a queue that is pressed: enough for the worker's next turns.
const PRESSED_SHARE: u64 = 64;

/// Memory of an array of the kernel's.
#[derive(Debug)]
pub struct SharedArray {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is read and written as atomic words only.
unsafe impl Send for SharedArray {}
// SAFETY: as above.
unsafe impl Sync for SharedArray {}

impl SharedArray {
    /// Maps the memory of an array of `entries` entries.
    fn map(array: impl AsFd, entries: u32, entry_bytes: usize) -> io::Result<Self> {
        let bytes = (entries as usize * entry_bytes).next_multiple_of(4096);
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        let descriptor = array.as_fd().as_raw_fd();
        // SAFETY: the kernel chooses a place that nothing else has.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, descriptor, 0) };
        match NonNull::new(start.cast::<u8>()) {
            Some(place) if start != libc::MAP_FAILED => Ok(Self { start: place, bytes }),
            Some(_) | None => Err(io::Error::last_os_error()),
        }
    }

    /// Maps what `queues` rings tell.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn of_rings(array: impl AsFd, queues: u32) -> io::Result<Self> {
        Self::map(array, queues, RING_BYTES)
    }

    /// Maps what tenants have at `queues` rings.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn of_shares(array: impl AsFd, queues: u32) -> io::Result<Self> {
        Self::map(array, queues * SHARES, SHARE_BYTES)
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at + size_of::<u64>() <= self.bytes && at.is_multiple_of(8), "the word is in the array");
        // SAFETY: the place is in the mapping.
        let place = unsafe { self.start.as_ptr().add(at) };
        // SAFETY: the mapping lives as long as `self`, and words are at multiples of their size.
        unsafe { AtomicU64::from_ptr(place.cast()) }
    }

    /// Returns how many frames of a tenant, by its number, were refused at the ring of a queue.
    pub fn refused(&self, queue: u32, number: u32) -> u64 {
        let entry = (queue * SHARES + number) as usize;
        self.word(entry * SHARE_BYTES + REFUSED_AT).load(Ordering::Relaxed)
    }
}

impl Drop for SharedArray {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into the mapping any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// The worker's side of one ring: it tells how many frames it has taken, and how many of a tenant there may be.
#[derive(Debug)]
pub struct Turnstile {
    rings: Arc<SharedArray>,
    at: usize,
    taken: u64,
    /// Whether frames were taken since all that was let in was known to be taken.
    is_behind: bool,
    pressure: Pressure,
}

impl Turnstile {
    /// Makes the turnstile of the ring of a queue.
    pub fn new(rings: Arc<SharedArray>, queue: u32) -> Self {
        let (at, pressure) = (queue as usize * RING_BYTES, Pressure::default());
        Self { rings, at, taken: 0, is_behind: true, pressure }
    }

    /// Notes that `found` frames were taken, and whether the ring is empty now.
    ///
    /// Of what was let in some never comes, because the kernel had no frame to put it in: an empty ring sets that right.
    #[inline]
    pub fn pass(&mut self, found: usize, is_empty: bool) {
        if found == 0 && !self.is_behind {
            return;
        }
        self.is_behind = !is_empty;
        self.taken = if is_empty { self.read(ADMITTED_AT) } else { self.taken + found as u64 };
        self.rings.word(self.at + TAKEN_AT).store(self.taken, Ordering::Relaxed);
        if found == 0 {
            return;
        }
        let arrived = self.read(ARRIVED_AT);
        let refused = arrived.wrapping_sub(self.read(ADMITTED_AT));
        if let Some(share) = self.pressure.note(arrived, refused, self.read(SHARED_AT)) {
            self.rings.word(self.at + SHARE_AT).store(share, Ordering::Relaxed);
        }
    }

    /// Tells whether more comes by the queue than the worker can take, from several tenants.
    pub fn is_pressed(&self) -> bool {
        self.pressure.left > 0
    }

    /// Tells whether it comes by the core that the caller runs on, so that what the caller does is time that who receives
    /// has not.
    pub fn shares_core(&self) -> bool {
        let core = self.read(CORE_AT) >> 32;
        nix::sched::sched_getcpu().is_ok_and(|own| own as u64 == core)
    }

    fn read(&self, at: usize) -> u64 {
        self.rings.word(self.at + at).load(Ordering::Relaxed)
    }
}

/// Finds out whether a queue is pressed: whoever receives always has a whole batch, for so long that it is no burst, and
/// frames of several tenants. Then a tenant may have few frames in the ring, so that others wait behind few.
#[derive(Clone, Copy, Debug, Default)]
struct Pressure {
    arrived: u64,
    refused: u64,
    shared_at: u64,
    /// Turns since several tenants came by the queue.
    alone: u32,
    /// Turns, one after the other, in which a whole batch came.
    full: u32,
    /// Turns until the queue is no longer pressed, if nothing happens.
    left: u32,
}

impl Pressure {
    /// Notes what the XDP program counted by a turn that took frames: frames that came, those that it refused, and when
    /// several tenants came. Returns how many frames a tenant may have from now on, if that changes; 0 is the program's own
    /// number.
    fn note(&mut self, arrived: u64, refused: u64, shared_at: u64) -> Option<u64> {
        let is_full = arrived.wrapping_sub(std::mem::replace(&mut self.arrived, arrived)) >= NAPI_BUDGET;
        let is_refused = std::mem::replace(&mut self.refused, refused) != refused;
        let is_shared = std::mem::replace(&mut self.shared_at, shared_at) != shared_at;
        self.alone = if is_shared { 0 } else { self.alone.saturating_add(1) };
        self.full = if is_full { self.full.saturating_add(1) } else { 0 };
        let was_pressed = self.left > 0;
        self.left = match () {
            () if self.alone > CALM => 0,
            () if self.full >= PRESSED_AFTER || (was_pressed && (is_full || is_refused)) => CALM,
            () => self.left.saturating_sub(1),
        };
        match (was_pressed, self.left > 0) {
            (false, true) => Some(PRESSED_SHARE),
            (true, false) => Some(0),
            (true, true) | (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes turns in each of which so many frames came and were refused; returns what was said last.
    fn turns(
        pressure: &mut Pressure,
        turns: u32,
        arrived: u64,
        refused: u64,
        is_shared: bool,
    ) -> Option<u64> {
        let mut said = None;
        for _ in 0..turns {
            let shared_at = pressure.shared_at + u64::from(is_shared);
            let counts = (pressure.arrived + arrived, pressure.refused + refused);
            said = pressure.note(counts.0, counts.1, shared_at).or(said);
        }
        said
    }

    #[test]
    fn a_queue_is_pressed_by_whole_batches_for_a_while_and_calm_when_they_are_over() {
        let mut pressure = Pressure::default();
        assert_eq!(turns(&mut pressure, PRESSED_AFTER - 1, 64, 0, true), None, "a burst");
        assert_eq!(turns(&mut pressure, 1, 63, 0, true), None);
        assert_eq!(turns(&mut pressure, PRESSED_AFTER, 64, 0, true), Some(PRESSED_SHARE));
        assert_eq!(turns(&mut pressure, 10 * CALM, 20, 1, true), None, "as long as frames are refused");
        assert_eq!(turns(&mut pressure, CALM, 20, 0, true), Some(0));
    }

    #[test]
    fn a_tenant_alone_presses_nobody() {
        let mut pressure = Pressure::default();
        turns(&mut pressure, CALM + 1, 64, 0, false);
        assert_eq!(turns(&mut pressure, 10 * CALM, 64, 5, false), None);
        assert_eq!(turns(&mut pressure, 1, 64, 0, true), Some(PRESSED_SHARE), "until another comes");
        assert_eq!(turns(&mut pressure, CALM + 1, 64, 5, false), Some(0));
    }
}

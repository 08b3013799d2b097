//! What the worker of an rx ring and the XDP program that fills it tell each other, in memory that both see: how many
//! frames went in and for whom, how many came out, and how many one tenant may have in it. `struct ring` and `struct share`
//! in `bpf/steer.bpf.c`.

#![allow(unsafe_code, reason = "the memory is shared with the kernel")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sched::sched_getcpu;
use nix::time::{ClockId, clock_gettime};

/// Bytes of a `struct ring`, and where its words are.
const RING_BYTES: usize = 128;
const TAKEN_AT: usize = 0;
const BOUND_AT: usize = 8;
const ADMITTED_AT: usize = 64;
const SHARED_AT_AT: usize = 72;
const CORE_AT: usize = 104;

/// How long a ring counts as shared after frames of two tenants came one after the other.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// Frames of one tenant that others may have to wait for while the worker does not keep up: those of two short turns.
const BOUND: u64 = 64;

/// Frames in the ring from which on a worker has enough to do: they are of many tenants, of whom none floods it.
const BACKLOG: u64 = 4 * BOUND;

/// A worker does not keep up that leaves frames in the ring in so many turns of so long a time. What fits into the ring is
/// a burst.
const STANDING_TURNS: u32 = 64;
const STANDING_WITHIN: Duration = Duration::from_millis(20);

/// How long tenants are bound after the last such turn.
const BOUND_FOR: Duration = Duration::from_millis(100);

/// Bytes of a `struct share`, and where its word is.
const SHARE_BYTES: usize = 32;
const REFUSED_AT: usize = 16;

/// Tenants that are told apart at a queue, and one number for what is no tenant's.
pub const SHARES: u32 = 16_384;

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

    /// Sets everything to zero, as it is in a new array.
    pub fn clear(&self) {
        let words = (0..self.bytes).step_by(size_of::<u64>());
        words.for_each(|at| self.word(at).store(0, Ordering::Relaxed));
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

/// The worker's side of one ring: it tells how many frames it has taken.
#[derive(Debug)]
pub struct Turnstile {
    rings: Arc<SharedArray>,
    at: usize,
    taken: u64,
    /// Whether frames were taken since all that was let in was known to be taken.
    is_behind: bool,
    /// Turns that left frames in the ring, and since when they were counted, by [`now`].
    full_turns: u32,
    counted_since: Duration,
    /// When tenants were bound last.
    bound_since: Option<Duration>,
}

impl Turnstile {
    /// Makes the turnstile of the ring of a queue.
    pub fn new(rings: Arc<SharedArray>, queue: u32) -> Self {
        Self {
            rings,
            at: queue as usize * RING_BYTES,
            taken: 0,
            is_behind: true,
            full_turns: 0,
            counted_since: Duration::ZERO,
            bound_since: None,
        }
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
        self.write(TAKEN_AT, self.taken);
        if is_empty && self.bound_since.is_some_and(|since| now().saturating_sub(since) > BOUND_FOR) {
            self.bound_since = None;
            self.write(BOUND_AT, 0);
        }
    }

    /// Notes that a turn has left frames in the ring; tells whether few tenants keep others from being received on the core
    /// that the caller runs on.
    ///
    /// Where that happens again and again, tenants have no more frames in the ring than others may wait for: it is a standing
    /// queue (Nichols and Jacobson, RFC 8289), which whoever brings it about would have in any ring.
    pub fn note_backlog(&mut self) -> bool {
        let now = now();
        if now.saturating_sub(Duration::from_nanos(self.read(SHARED_AT_AT))) > SHARED_FOR {
            return false;
        }
        if now.saturating_sub(self.counted_since) > STANDING_WITHIN {
            (self.full_turns, self.counted_since) = (0, now);
        }
        self.full_turns += 1;
        if self.full_turns >= STANDING_TURNS {
            self.bound_since = Some(now);
            self.write(BOUND_AT, BOUND);
        }
        let is_received_here = sched_getcpu().is_ok_and(|core| u64::try_from(core) == Ok(self.read(CORE_AT)));
        is_received_here && self.read(ADMITTED_AT).saturating_sub(self.taken) < BACKLOG
    }

    fn write(&self, at: usize, value: u64) {
        self.rings.word(self.at + at).store(value, Ordering::Relaxed);
    }

    fn read(&self, at: usize) -> u64 {
        self.rings.word(self.at + at).load(Ordering::Relaxed)
    }
}

/// Returns the time by the clock that the XDP program reads.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from)
}

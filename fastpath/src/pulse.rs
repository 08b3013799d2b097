//! Signs of life of the workers, for whoever watches over them from another thread.

use std::sync::Arc;

use nix::unistd::gettid;

use crate::counters::{Counter, WorkerCounters};
use crate::timing::TurnTiming;

/// What the names of a worker's threads begin with: its own, and that of its companion, which tells when nobody else wants
/// its core.
pub const THREADS: &str = "worker-";

/// What a worker tells of itself while it runs. One writer, any number of readers.
#[derive(Debug, Default)]
pub struct Life {
    turns: Counter,
    thread: Counter,
    is_asleep: Counter,
    /// Times of the turns that found frames.
    pub(crate) timing: TurnTiming,
}

impl Life {
    /// Notes on which thread the worker runs: the calling one.
    pub(crate) fn begin(&self) {
        self.thread.set(u64::try_from(gettid().as_raw()).unwrap_or_default());
    }

    /// Notes a turn that came to its end. A turn that panicked did not.
    pub(crate) fn turned(&self) {
        self.turns.add(1);
    }

    /// Returns how many turns came to their end.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.get()
    }

    /// Notes that the worker goes to sleep.
    pub(crate) fn fell_asleep(&self) {
        self.is_asleep.set(1);
    }

    /// Notes that the worker woke up.
    pub(crate) fn woke(&self) {
        self.is_asleep.set(0);
    }
}

/// The signs of life of one worker. They can be looked at while the data plane is in use elsewhere.
#[derive(Clone, Debug)]
pub struct Pulse {
    pub(crate) worker: usize,
    pub(crate) core: Option<usize>,
    pub(crate) counters: Arc<WorkerCounters>,
}

impl Pulse {
    /// Returns the worker's number.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// Returns the core that the worker is pinned to; none: any.
    pub fn core(&self) -> Option<usize> {
        self.core
    }

    /// Returns how many turns the worker has finished. An idle one takes ten a second.
    pub fn turns(&self) -> u64 {
        self.counters.life.turns()
    }

    /// Returns the kernel's number of the worker's thread; 0 until it runs.
    pub fn thread(&self) -> u64 {
        self.counters.life.thread.get()
    }

    /// Tells whether the worker was last seen to sleep, rather than in a turn.
    pub fn is_asleep(&self) -> bool {
        self.counters.life.is_asleep.get() != 0
    }
}

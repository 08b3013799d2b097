//! Leaves a worker's core to whoever else has something to do on it, until nobody has: above all to the kernel's thread
//! that receives for it, which the worker goes before (see `placement`).
//!
//! While a flood comes in, that thread has to look at every frame, so that the XDP program can refuse what is over a
//! tenant's share; what it does not get to look at is lost in the NIC's ring, whose ever it is. The kernel does not tell
//! when it has caught up. A companion of the worker does, a thread on the same core under `SCHED_IDLE` (sched(7)), which
//! runs when no other there wants to.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

/// How long a pause lasts at most, in turns as long as the one before it: a quarter of the core stays the worker's.
const TURNS: u32 = 3;

/// Bounds of that: what a short turn costs beside its frames, and what a core that was away makes of one.
const SHORTEST_LIMIT: Duration = Duration::from_micros(100);
const LONGEST_LIMIT: Duration = Duration::from_micros(500);

/// A worker's companion; dropped, it ends by itself.
#[derive(Debug)]
pub(crate) struct Pause {
    shared: Arc<Shared>,
    companion: Thread,
}

#[derive(Debug)]
struct Shared {
    /// Set by the worker that pauses, taken away by its companion.
    is_wanted: AtomicBool,
    has_ended: AtomicBool,
    worker: Thread,
}

impl Pause {
    /// Starts a companion of the calling thread, on the same core.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn new() -> io::Result<Self> {
        let worker = thread::current();
        let name = format!("{}-idle", worker.name().unwrap_or("worker"));
        let shared =
            Arc::new(Shared { is_wanted: AtomicBool::new(false), has_ended: AtomicBool::new(false), worker });
        let own = Arc::clone(&shared);
        let companion = thread::Builder::new().name(name).spawn(move || accompany(&own))?;
        Ok(Self { shared, companion: companion.thread().clone() })
    }

    /// Pauses after a turn that took so long, until nobody else wants the core, or too long; tells whether nobody did.
    pub(crate) fn take(&self, turn: Duration) -> bool {
        self.shared.is_wanted.store(true, Ordering::Release);
        self.companion.unpark();
        thread::park_timeout((TURNS * turn).clamp(SHORTEST_LIMIT, LONGEST_LIMIT));
        !self.shared.is_wanted.swap(false, Ordering::AcqRel)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::Release);
        self.companion.unpark();
    }
}

fn accompany(shared: &Shared) {
    let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    if let Err(error) = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy) {
        tracing::warn!(%error, "a worker's pauses may end before those have caught up who receive for it");
    }
    while !shared.has_ended.load(Ordering::Acquire) {
        if shared.is_wanted.swap(false, Ordering::AcqRel) {
            shared.worker.unpark();
        }
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::run_first;

    const TURN: Duration = Duration::from_micros(50);

    #[test]
    fn a_thread_that_goes_first_leaves_its_core_to_others_while_it_pauses() {
        static HAS_RUN: AtomicBool = AtomicBool::new(false);
        let core = core_affinity::get_core_ids().unwrap()[0];
        let pauses = thread::spawn(move || {
            core_affinity::set_for_current(core);
            let other = thread::spawn(|| HAS_RUN.store(true, Ordering::Release));
            let _ = run_first();
            let pause = Pause::new().unwrap();
            let mut pauses = 0;
            while !HAS_RUN.load(Ordering::Acquire) {
                pause.take(TURN);
                pauses += 1;
            }
            other.join().unwrap();
            pauses
        });
        assert!(pauses.join().unwrap() < 1000, "it did not get the core");
    }

    #[test]
    fn a_pause_ends_when_nobody_wants_the_core_and_when_it_has_lasted_too_long() {
        // Other processes may want the core too, but not for good.
        let pauses = thread::spawn(|| {
            core_affinity::set_for_current(core_affinity::get_core_ids().unwrap()[0]);
            let is_over = Arc::new(AtomicBool::new(false));
            let spins = Arc::clone(&is_over);
            let other = thread::spawn(move || {
                while !spins.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
            });
            let _ = run_first();
            let pause = Pause::new().unwrap();
            let until = |is_idle| while pause.take(TURN) != is_idle {};
            until(false);
            is_over.store(true, Ordering::Release);
            until(true);
            other.join().unwrap();
        });
        pauses.join().unwrap();
    }
}

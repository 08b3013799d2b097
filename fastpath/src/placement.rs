//! On which core a worker's thread runs, before whom, and with which privileges: none.
//!
//! Without a NIC core of its own a worker shares its core with the kernel thread that receives for it (a threaded NAPI, or
//! ksoftirqd under load). Treated alike, each has half of the core, changing every few milliseconds: more than enough for
//! the receiver to fill the rx ring and then drop what it goes on receiving (receive livelock: Mogul and Ramakrishnan,
//! "Eliminating receive livelock in an interrupt-driven kernel", 1997). A worker under `SCHED_FIFO` (sched(7)) goes
//! first while it has frames, and sleeps when it has none: nothing is received that is not forwarded.

#![allow(unsafe_code, reason = "the scheduler is asked by a thread's number")]

use std::io;

use caps::CapSet;
use core_affinity::CoreId;
use nix::unistd::gettid;
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

/// How the kernel schedules workers that have a core of their own each (sched(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchedulerPolicy {
    /// `SCHED_FIFO` with the lowest priority: before all ordinary threads of the core, as long as there are frames.
    #[default]
    Fifo,
    /// `SCHED_OTHER`: like any other thread.
    Other,
}

/// Where the thread of one worker runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placement {
    /// None: anywhere.
    pub(crate) core: Option<CoreId>,
    pub(crate) policy: SchedulerPolicy,
}

impl Placement {
    /// Applies it to the calling thread, that of a worker. What cannot be had is logged: the worker runs without.
    pub(crate) fn take(self, worker: u16) {
        if let Some(core) = self.core
            && !core_affinity::set_for_current(core)
        {
            tracing::warn!(worker, core = core.id, "the worker cannot be pinned");
        }
        match self.policy {
            SchedulerPolicy::Fifo => {
                if let Err(error) = run_first() {
                    tracing::warn!(
                        worker,
                        %error,
                        "the worker does not go before other threads of its core; SCHED_FIFO takes CAP_SYS_NICE"
                    );
                }
            }
            // Whoever started it may go first.
            SchedulerPolicy::Other => {
                if let Err(error) = run_as_usual(gettid().as_raw()) {
                    tracing::warn!(worker, %error, "the worker goes before other threads of its core");
                }
            }
        }
    }
}

/// Gives up every capability of the calling thread for good: a worker has its sockets and needs no privilege.
pub(crate) fn give_up_privileges(worker: u16) {
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        if let Err(error) = caps::clear(None, set) {
            tracing::warn!(worker, %error, "the worker keeps the privileges of the process");
        }
    }
}

/// Lets the calling thread run before all ordinary threads (`SCHED_FIFO`).
///
/// # Errors
/// Without CAP_SYS_NICE.
pub fn run_first() -> Result<(), thread_priority::Error> {
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy)
}

/// Lets a thread of the process run like any other again (`SCHED_OTHER`); a thread that does is not changed.
///
/// # Errors
/// When there is no such thread.
pub fn run_as_usual(thread: i32) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads the parameters, and nothing else.
    match unsafe { libc::sched_setscheduler(thread, libc::SCHED_OTHER, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Asks the kernel, not the C library, which remembers what it was told itself.
    fn goes_first() -> bool {
        // SAFETY: it reads nothing of the process.
        unsafe { libc::sched_getscheduler(0) == libc::SCHED_FIFO }
    }

    #[test]
    fn a_worker_keeps_no_privilege_and_others_keep_theirs() {
        let before = caps::read(None, CapSet::Permitted).unwrap();
        let after = thread::spawn(|| {
            give_up_privileges(0);
            [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable]
                .map(|set| caps::read(None, set).unwrap())
        });
        assert!(after.join().unwrap().iter().all(|set| set.is_empty()));
        assert_eq!(caps::read(None, CapSet::Permitted).unwrap(), before);
    }

    #[test]
    fn a_worker_that_may_go_first_does_and_one_that_may_not_runs_all_the_same() {
        let policy_after = |policy| {
            let placed = thread::spawn(move || {
                Placement { core: None, policy }.take(0);
                goes_first()
            });
            placed.join().unwrap()
        };
        let may_go_first = thread::spawn(run_first).join().unwrap().is_ok();
        assert_eq!(policy_after(SchedulerPolicy::Fifo), may_go_first);
        assert!(!policy_after(SchedulerPolicy::Other));
    }

    #[test]
    fn a_thread_that_goes_first_passes_it_on_until_it_runs_as_usual() {
        let may_go_first = thread::spawn(run_first).join().unwrap().is_ok();
        let looks = thread::spawn(|| {
            let _ = run_first();
            let passed_on = thread::spawn(goes_first).join().unwrap();
            let placed = thread::spawn(|| {
                Placement { core: None, policy: SchedulerPolicy::Other }.take(0);
                goes_first()
            });
            let placed = placed.join().unwrap();
            run_as_usual(gettid().as_raw()).unwrap();
            [passed_on, placed, goes_first()]
        });
        assert_eq!(looks.join().unwrap(), [may_go_first, false, false]);
    }
}

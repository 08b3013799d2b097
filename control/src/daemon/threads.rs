//! How urgently the daemon's own threads run, and where: before all others while nobody forwards, and off the workers' cores
//! once somebody does.
//!
//! What an export or a scrape takes is then not taken from forwarding, and a start on a busy machine takes hardly longer
//! than on an idle one.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastpath::placement::{run_as_usual, run_first};
use fastpath::pulse::{Pulse, THREADS};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use tracing::{debug, warn};

use super::grace::ShortGrace;

/// How long the workers' threads may take to run for the first time.
const BEGIN_WITHIN: Duration = Duration::from_secs(1);

/// A time in which nobody forwards, and nothing is to be waited for.
#[derive(Debug)]
pub(super) struct Hurry {
    _grace: ShortGrace,
}

/// Lets the calling thread, and those that it starts from now on, go before ordinary threads, and keeps grace periods short,
/// as far as the process may.
pub(super) fn hurry() -> Hurry {
    if let Err(error) = run_first() {
        debug!(%error, "the start is not hurried; that takes CAP_SYS_NICE");
    }
    Hurry { _grace: ShortGrace::begin() }
}

/// Ends the hurry of all threads, and takes the workers' cores from all but the workers. Threads that these start later
/// inherit both.
///
/// No thread loses its last core, and none any where a worker has no core of its own. Blocks until every worker runs, a
/// second at most: before that their threads look like others.
pub(super) fn settle(hurry: Hurry, workers: &[Pulse]) {
    drop(hurry);
    let begin_before = Instant::now() + BEGIN_WITHIN;
    while workers.iter().any(|worker| worker.thread() == 0) && Instant::now() < begin_before {
        sleep(Duration::from_millis(1));
    }
    // A worker that does not even begin is told of by the supervisor.
    let cores = workers.iter().map(Pulse::core).collect::<Option<HashSet<_>>>().unwrap_or_default();
    let settle_one = |thread: i32| {
        // A thread has the name of the one that starts it until it has its own.
        if fs::read_to_string(format!("/proc/self/task/{thread}/comm"))?.starts_with(THREADS) {
            return Ok(());
        }
        run_as_usual(thread)?;
        Ok(keep_off(Pid::from_raw(thread), &cores)?)
    };
    if let Err(error) = for_each_thread(settle_one) {
        let error = &error as &dyn std::error::Error;
        warn!(error, "the daemon's other threads may run on the workers' cores, or before ordinary ones");
    }
}

/// Does something to every thread of the process; those that end meanwhile do not count.
fn for_each_thread(mut act: impl FnMut(i32) -> io::Result<()>) -> io::Result<()> {
    for task in fs::read_dir("/proc/self/task")? {
        let Some(thread) = task?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match act(thread) {
            // It is gone: its files, or while they were read.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
            acted => acted?,
        }
    }
    Ok(())
}

/// Takes `cores` from those that a thread may run on, unless it has no other.
fn keep_off(thread: Pid, cores: &HashSet<usize>) -> Result<(), Errno> {
    let allowed = sched_getaffinity(thread)?;
    let mut others = CpuSet::new();
    let mut is_empty = true;
    for core in 0..CpuSet::count() {
        if allowed.is_set(core)? && !cores.contains(&core) {
            others.set(core)?;
            is_empty = false;
        }
    }
    if is_empty { Ok(()) } else { sched_setaffinity(thread, &others) }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    /// Has a thread that waits, and returns what `look` finds out about it.
    fn with_thread<T>(look: impl FnOnce(i32) -> T) -> T {
        let (tell, told) = channel();
        let (end, ended) = channel::<()>();
        let thread = thread::spawn(move || {
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ = ended.recv();
        });
        let found = look(told.recv().unwrap());
        drop(end);
        thread.join().unwrap();
        found
    }

    fn cores_of(thread: i32) -> HashSet<usize> {
        let set = sched_getaffinity(Pid::from_raw(thread)).unwrap();
        (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap()).collect()
    }

    #[test]
    fn a_thread_leaves_cores_to_workers_unless_it_has_no_other() {
        with_thread(|thread| {
            let all = cores_of(thread);
            let one = HashSet::from([*all.iter().min().unwrap()]);
            keep_off(Pid::from_raw(thread), &all).unwrap();
            assert_eq!(cores_of(thread), all, "there would be none left");
            keep_off(Pid::from_raw(thread), &one).unwrap();
            let left: HashSet<_> = all.difference(&one).copied().collect();
            assert_eq!(cores_of(thread), if left.is_empty() { all } else { left });
        });
    }

    #[test]
    fn a_hurry_ends_for_every_thread() {
        // The forty-first field; the first two are a number and a name in parentheses (proc(5)).
        let policy = |thread: i32| {
            let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
            stat.rsplit(')').next().unwrap().split_whitespace().nth(38).unwrap().to_owned()
        };
        let may_hurry = thread::spawn(run_first).join().unwrap().is_ok();
        let hurried = thread::spawn(move || {
            let hurry = hurry();
            with_thread(|inherits| {
                assert_eq!(policy(inherits) != "0", may_hurry);
                settle(hurry, &[]);
                assert_eq!(policy(inherits), "0");
            });
            policy(nix::unistd::gettid().as_raw())
        });
        assert_eq!(hurried.join().unwrap(), "0");
    }
}

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use control::demo::wait;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::command::run;
use crate::namespace::Namespace;

const APPEARS_WITHIN: Duration = Duration::from_secs(2);

/// Polls without a frame after which a device waits to be woken again.
const EMPTY_POLLS: u32 = 1000;

/// How the scheduler treats a receiving thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Shares its core like any other thread.
    Fair,
    /// Runs before everything else on its core, so that it loses no frame while it waits for a turn.
    First,
}

/// Gives the frames that `device` receives to kernel threads on `core`.
///
/// The device must have an XDP program or GRO, else veth has no NAPI. Its name must be unique on the machine: that
/// is how the threads are found.
pub(crate) fn receive_on(namespace: &Namespace, device: &str, core: usize, priority: Priority) -> Result<()> {
    namespace.write(&format!("/sys/class/net/{device}/threaded"), "1")?;
    for thread in wait_for_threads(device)? {
        pin(thread, core)?;
        if priority == Priority::First {
            run(&format!("chrt --fifo --pid 10 {thread}"))?;
        }
    }
    Ok(())
}

/// Lets a busy device receive by a timer, instead of by a wake-up from whoever sends to it.
pub(crate) fn poll_every(namespace: &Namespace, device: &str, interval: Duration) -> Result<()> {
    namespace.write(&format!("/sys/class/net/{device}/napi_defer_hard_irqs"), &EMPTY_POLLS.to_string())?;
    namespace.write(&format!("/sys/class/net/{device}/gro_flush_timeout"), &interval.as_nanos().to_string())
}

/// Binds a thread, 0 being the caller, to one core.
pub(crate) fn pin(thread: Pid, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(thread, &cores)
        .with_context(|| format!("thread {thread} cannot be bound to core {core}"))
}

fn wait_for_threads(device: &str) -> Result<Vec<Pid>> {
    let deadline = Instant::now() + APPEARS_WITHIN;
    loop {
        let threads = find_threads(device)?;
        if !threads.is_empty() {
            return Ok(threads);
        }
        if Instant::now() > deadline {
            bail!("{device} has no receiving thread; the kernel needs threaded NAPI (5.12 or newer)");
        }
        wait::pause(Duration::from_millis(10))?;
    }
}

fn find_threads(device: &str) -> Result<Vec<Pid>> {
    let prefix = format!("napi/{device}-");
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        // A process may end between the listing and the look.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with(&prefix) {
            threads.push(Pid::from_raw(pid));
        }
    }
    Ok(threads)
}

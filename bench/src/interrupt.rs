use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, TERM_SIGNALS};
use signal_hook::flag;

static REQUESTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Longest time between a signal and the end of a wait.
const SLICE: Duration = Duration::from_millis(50);

/// Turns SIGINT, SIGTERM, SIGQUIT and SIGHUP into a request that [`check`] and [`pause`] report as an error.
pub(crate) fn watch() -> Result<()> {
    let requested = REQUESTED.get_or_init(Arc::default);
    for signal in TERM_SIGNALS.iter().chain(&[SIGHUP]) {
        flag::register(*signal, Arc::clone(requested)).context("signals cannot be caught")?;
    }
    Ok(())
}

/// Fails once the user asked to end.
pub(crate) fn check() -> Result<()> {
    if REQUESTED.get().is_some_and(|requested| requested.load(Ordering::Relaxed)) {
        bail!("interrupted");
    }
    Ok(())
}

/// Lets time pass; fails early once the user asked to end.
pub(crate) fn pause(duration: Duration) -> Result<()> {
    let deadline = Instant::now() + duration;
    loop {
        check()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(SLICE));
    }
}

//! Waiting for an event: by polling, never beyond a deadline, and not after an interruption.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, TERM_SIGNALS};

const PAUSE: Duration = Duration::from_millis(10);

/// Longest time between a signal and the end of a pause.
const SLICE: Duration = Duration::from_millis(50);

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();
static CLEANING_UP: AtomicBool = AtomicBool::new(false);

/// Makes SIGINT, SIGTERM, SIGQUIT and SIGHUP end every wait of this process with an error, so that what was built is
/// taken down on the way out.
///
/// # Errors
/// When the kernel refuses the handlers.
pub fn notice_signals() -> Result<()> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for &signal in TERM_SIGNALS.iter().chain(&[SIGHUP]) {
        signal_hook::flag::register(signal, Arc::clone(flag))
            .with_context(|| format!("signal {signal} cannot be handled"))?;
    }
    Ok(())
}

/// Makes signals end waits no more: what takes the lab down has to run to its end.
pub fn begin_clean_up() {
    CLEANING_UP.store(true, Ordering::Relaxed);
}

/// Fails once a signal asked the process to end.
///
/// # Errors
/// When it was interrupted.
pub fn check_interrupted() -> Result<()> {
    match INTERRUPTED.get() {
        Some(flag) if flag.load(Ordering::Relaxed) && !CLEANING_UP.load(Ordering::Relaxed) => {
            bail!("interrupted")
        }
        _ => Ok(()),
    }
}

/// Calls `probe` until it yields something, and returns that.
///
/// # Errors
/// When `limit` has passed, naming `what`; when the probe fails; when the process was interrupted.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        check_interrupted()?;
        if Instant::now() >= deadline {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(PAUSE);
    }
}

/// Lets time pass.
///
/// # Errors
/// When the process is interrupted.
pub fn pause(duration: Duration) -> Result<()> {
    let deadline = Instant::now() + duration;
    loop {
        check_interrupted()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(SLICE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_later_is_waited_for() {
        let mut tries = 0;
        let found = until("the third try", Duration::from_secs(5), || {
            tries += 1;
            Ok((tries == 3).then_some(tries))
        });
        assert_eq!(found.unwrap(), 3);
    }

    #[test]
    fn the_deadline_names_what_did_not_come() {
        let error = until::<()>("a miracle", Duration::ZERO, || Ok(None)).unwrap_err();
        assert!(error.to_string().contains("a miracle"), "{error}");
    }
}

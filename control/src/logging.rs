//! Log lines on stderr, coloured on a terminal only.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

/// Starts logging with the given filter, else with `RUST_LOG`, else at `info`.
///
/// # Errors
/// When the filter cannot be read.
pub fn start(filter: Option<&str>) -> anyhow::Result<()> {
    let text = filter.map(str::to_owned).or_else(|| std::env::var("RUST_LOG").ok());
    let text = text.as_deref().unwrap_or("info");
    let filter = EnvFilter::try_new(text).map_err(|error| {
        anyhow::anyhow!("--log: {text:?} is no log filter ({error}); use error, warn, info, debug or trace")
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false)
        .init();
    Ok(())
}

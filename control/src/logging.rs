//! Log lines on stderr, coloured on a terminal only.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// kube tells of what is refused at every try; the gateway tells of it once. A filter that names them comes later
/// and wins.
const QUIET: &str = "kube_client=off,kube_runtime=off";

/// Starts logging with the given filter, else with `RUST_LOG`, else at `info`.
///
/// # Errors
/// When the filter cannot be read.
pub fn start(filter: Option<&str>) -> anyhow::Result<()> {
    let text = filter.map(str::to_owned).or_else(|| std::env::var("RUST_LOG").ok());
    let text = text.as_deref().unwrap_or("info");
    let filter = EnvFilter::try_new(format!("{QUIET},{}", own_crates_only(text))).map_err(|error| {
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

/// Returns a filter under which a mere level that is finer than `info` holds for Spillway's crates alone.
fn own_crates_only(filter: &str) -> String {
    match filter.parse::<LevelFilter>() {
        Ok(level) if level > LevelFilter::INFO => {
            format!("info,control={level},fastpath={level},conntrack={level}")
        }
        _ => filter.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fine_level_is_for_own_crates() {
        assert_eq!(own_crates_only("debug"), "info,control=debug,fastpath=debug,conntrack=debug");
        assert_eq!(own_crates_only("warn"), "warn");
        assert_eq!(own_crates_only("aya=debug"), "aya=debug");
    }

    #[test]
    fn kube_is_quiet_unless_it_is_named() {
        let filter = |text: &str| EnvFilter::try_new(format!("{QUIET},{text}")).unwrap().to_string();
        assert!(filter("info").contains("kube_client=off"));
        let named = filter("info,kube_client=debug");
        assert!(named.contains("kube_client=debug") && !named.contains("kube_client=off"), "{named}");
    }
}

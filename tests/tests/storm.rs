//! A storm over the gateway: whatever happens, no pod's address leaves, and it recovers. A short one, unless the environment
//! says how long: `make storm`.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use spillway_tests::fixture::variable;
use spillway_tests::storm::{Length, Options, run};

const EVENTS: u64 = 25_000;
const SEED: u64 = 1;

#[test]
fn nothing_leaks_in_a_storm_and_the_gateway_recovers() -> Result<()> {
    let (time, events) = (variable("STORM_SECONDS")?, variable("STORM_EVENTS")?);
    let options = Options {
        seed: variable("STORM_SEED")?.unwrap_or(SEED),
        length: time.map(Duration::from_secs).map_or(Length::Events(events.unwrap_or(EVENTS)), Length::Time),
        program: variable("STORM_PROGRAM")?,
        is_told: time.is_some() || events.is_some(),
    };
    let Some(summary) = run(&options)? else { return Ok(()) };
    if options.is_told {
        writeln!(std::io::stderr(), "{summary}")?;
    }
    assert!(summary.events > 0 && summary.translated > summary.events / 100, "{summary}");
    Ok(())
}

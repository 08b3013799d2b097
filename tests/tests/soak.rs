//! Tenants and sessions come and go: what the daemon uses stays what it is. A short run, unless the environment says how
//! long: `make soak`.

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use spillway_tests::fixture::variable;
use spillway_tests::soak::{Options, run};

#[test]
fn nothing_is_left_of_tenants_and_sessions_that_came_and_went() -> Result<()> {
    let seconds: Option<u64> = variable("SOAK_SECONDS")?;
    let options = Options {
        seed: variable("SOAK_SEED")?.unwrap_or(1),
        time: Duration::from_secs(seconds.unwrap_or(6)),
        interval: Duration::from_secs(if seconds.is_some() { 5 } else { 1 }),
        is_brief: seconds.is_none(),
        program: variable("SOAK_PROGRAM")?,
        is_told: seconds.is_some(),
    };
    let Some(summary) = run(&options)? else { return Ok(()) };
    if seconds.is_some() {
        writeln!(std::io::stderr(), "{summary}")?;
        summary.require_flat()?;
        writeln!(std::io::stderr(), "flat: yes")?;
    }
    summary.require_nothing_left()
}

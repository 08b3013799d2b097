//! `spillway health`: whether the gateway lives and is ready, for scripts and probes.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::client::Client;
use crate::output::{self, BAD, GOOD, styled};
use crate::vitals::Fitness;

/// Tells whether the daemon lives (its control loop and every worker turn) and is ready (it serves as it should). Exits
/// with 1 when it is not, or does not answer.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  spillway health && echo serving\n  spillway health --json | jq .ready.reasons"
)]
pub(super) struct Arguments {
    /// Exit with 0 also when the daemon lives but is not ready
    #[arg(long)]
    live: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Checkup {
    live: Fitness,
    ready: Fitness,
}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<ExitCode> {
        let live = client.ask_fitness("/v1/health").await?;
        let ready = client.ask_fitness("/v1/ready").await?;
        let is_well = live.ok && (ready.ok || self.live);
        let checkup = Checkup { live, ready };
        if self.json {
            output::print_json(&checkup)?;
        } else {
            let lines = [describe("live", &checkup.live), describe("ready", &checkup.ready)];
            output::print(&lines.join("\n"))?;
        }
        Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn describe(what: &str, fitness: &Fitness) -> String {
    if fitness.ok {
        styled(GOOD, what)
    } else {
        styled(BAD, format!("not {what}: {}", fitness.reasons.join("; ")))
    }
}

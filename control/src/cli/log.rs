//! `spillway log`: which lines the daemon logs, shown and set while it runs.

use std::time::Duration;

use clap::{Args, Subcommand};

use crate::api::types::{LogChange, LogView};
use crate::client::Client;
use crate::output::{self, HEADING, styled};

/// Shows which lines the daemon logs, or sets it while it runs.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  spillway log\n  spillway log set kubernetes=debug --for 10m\n  spillway log reset"
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set which lines are logged, until the daemon ends
    Set(SetArguments),
    /// Go back to what the daemon started with
    #[command(after_help = "Example:\n  spillway log reset")]
    Reset,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  spillway log set debug --for 10m\n  spillway log set info,kubernetes=debug,netlink=warn"
)]
struct SetArguments {
    /// A level for all (off, error, warn, info, debug, trace), levels by target, or both; without one, all others are at
    /// info. `spillway log` lists the targets
    filter: String,

    /// Go back by itself after this time, such as 90s or 10m
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    lasts: Option<Duration>,
}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        match self.command {
            None => {
                let view: LogView = client.get("/v1/log").await?;
                if self.json {
                    return Ok(output::print_json(&view)?);
                }
                Ok(output::print(&describe(&view))?)
            }
            Some(Command::Set(set)) => {
                let change =
                    LogChange { filter: set.filter, for_seconds: set.lasts.map(|lasts| lasts.as_secs()) };
                let view: LogView = client.put("/v1/log", &change).await?;
                Ok(output::print(&headline(&view))?)
            }
            Some(Command::Reset) => {
                client.delete("/v1/log").await?;
                let view: LogView = client.get("/v1/log").await?;
                Ok(output::print(&headline(&view))?)
            }
        }
    }
}

fn headline(view: &LogView) -> String {
    let then = view.then.as_deref().zip(view.seconds_left);
    let then = then.map(|(then, left)| format!(", for {} more, then {then}", output::seconds(left)));
    format!("{}{}", styled(HEADING, &view.filter), then.unwrap_or_default())
}

fn describe(view: &LogView) -> String {
    let rows = view
        .targets
        .iter()
        .map(|target| vec![target.name.clone(), target.level.clone(), target.meaning.clone()]);
    let table = output::table(&["TARGET", "LEVEL", "TELLS OF"], &[], rows);
    let kept_back = match view.kept_back {
        0 => String::new(),
        count => format!("\n\n{count} lines were kept back, because they were too many of a kind"),
    };
    format!("{}\n\n{table}{kept_back}", headline(view))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_filter_is_shown_with_what_comes_then() {
        let view = LogView {
            filter: "debug".into(),
            seconds_left: Some(90),
            then: Some("info".into()),
            initial: "info".into(),
            kept_back: 0,
            targets: Vec::new(),
        };
        assert!(headline(&view).ends_with(", for 1m 30s more, then info"), "{}", headline(&view));
        let lasting = LogView { seconds_left: None, then: None, ..view };
        assert_eq!(headline(&lasting), styled(HEADING, "debug"));
    }
}

//! `spillway run`: the daemon.

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;

use super::load_config;
use super::policy::choice;
use crate::logging::Format;
use crate::{daemon, logging, output};

/// Runs the gateway until SIGTERM or SIGINT.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  spillway run --config /etc/spillway/spillway.toml")]
pub(super) struct Arguments {
    /// Config file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Leave links, addresses and routes in place on SIGTERM, for the next run; SIGINT takes them away
    #[arg(long)]
    keep: bool,

    /// Log filter: a level, or levels by target such as info,kubernetes=debug [default: RUST_LOG, else the config file's]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,

    /// How log lines look [default: the config file's]
    #[arg(long, value_name = "FORMAT", value_parser = choice::<Format>())]
    log_format: Option<Format>,
}

/// Shortest life of a process that fails under a service manager. That starts the next one at once, as it should where
/// one broke that served; what cannot start at all, such as with a config file that is wrong, would fill the log.
const LEAST_LIFE: Duration = Duration::from_secs(2);

impl Arguments {
    pub(super) fn execute(self, socket: Option<PathBuf>) -> ExitCode {
        let begun = Instant::now();
        let Err(error) = self.run(socket) else { return ExitCode::SUCCESS };
        output::print_error(&format!("{error:#}"));
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            sleep(LEAST_LIFE.saturating_sub(begun.elapsed()));
        }
        ExitCode::FAILURE
    }

    fn run(self, socket: Option<PathBuf>) -> anyhow::Result<()> {
        let config = load_config(&self.config)?;
        let filter = logging::choose_filter(self.log.as_deref(), config.log_filter.clone())?;
        let log = logging::start(filter, self.log_format.unwrap_or(config.log_format))?;
        let socket = daemon::socket_path(socket, config.socket.clone());
        let ran = daemon::run(config, &socket, self.keep, &log);
        log.limit.tell();
        ran
    }
}

//! `spillway run`: the daemon.

use std::path::PathBuf;

use clap::Args;

use super::load_config;
use crate::{daemon, logging};

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

    /// Log filter: error, warn, info, debug or trace [default: RUST_LOG, else info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

impl Arguments {
    pub(super) fn execute(self, socket: Option<PathBuf>) -> anyhow::Result<()> {
        logging::start(self.log.as_deref())?;
        let config = load_config(&self.config)?;
        let socket = daemon::socket_path(socket, config.socket.clone());
        daemon::run(config, &socket, self.keep)
    }
}

//! `spillway detach`: removes what outlives the daemon.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::load_config;
use crate::client::Client;
use crate::config::DEFAULT_PIN_DIR;
use crate::output;

/// Removes the pinned XDP programs and maps, which drop tenant traffic while no daemon runs.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  spillway detach --config /etc/spillway/spillway.toml")]
pub(super) struct Arguments {
    /// Config file that names the directory of the pins
    #[arg(long, value_name = "FILE", conflicts_with = "pin_dir")]
    config: Option<PathBuf>,

    /// Directory of the pins [default: /sys/fs/bpf/spillway]
    #[arg(long, value_name = "PATH")]
    pin_dir: Option<PathBuf>,
}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let config = self.config.as_deref().map(load_config).transpose()?;
        let own_socket = config.as_ref().and_then(|config| config.socket.as_deref().map(Client::new));
        for client in own_socket.iter().chain([client]) {
            anyhow::ensure!(!client.daemon_listens().await, "a daemon is running; stop it first");
        }
        let pin_dir = config.map(|config| config.pin_dir).or(self.pin_dir);
        let pin_dir = pin_dir.unwrap_or_else(|| DEFAULT_PIN_DIR.into());
        let there = fastpath::dataplane::detach(&pin_dir)
            .with_context(|| format!("cannot remove the pins in {}", pin_dir.display()))?;
        let done = if there { "detached" } else { "nothing was attached" };
        Ok(output::print(&format!("{done} ({})", pin_dir.display()))?)
    }
}

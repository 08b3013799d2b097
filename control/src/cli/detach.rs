//! `spillway detach`: removes what outlives the daemon.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::load_config;
use crate::config::{Config, DEFAULT_PIN_DIR};
use crate::daemon::guard::{DirectoryGuard, InterfaceGuard};
use crate::daemon::{socket_path, withdraw};
use crate::netlink::Netlink;
use crate::netlink::facts::Facts;
use crate::output;

/// Removes the pinned XDP programs and maps, which drop tenant traffic while no daemon runs; with --config
/// also the links, addresses and routes that a daemon left.
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
    pub(super) async fn execute(self) -> anyhow::Result<()> {
        if let Some(config) = self.config.as_deref().map(load_config).transpose()? {
            let _inside = InterfaceGuard::take(&config.inside)?;
            let _outside = InterfaceGuard::take(&config.outside)?;
            detach(&config.pin_dir, Some(&config)).await?;
            let socket = socket_path(None, config.socket);
            let sessions = config.session_file.path(&socket);
            return Ok(sessions.as_deref().map_or(Ok(()), fastpath::succession::forget)?);
        }
        let pin_dir = self.pin_dir.unwrap_or_else(|| DEFAULT_PIN_DIR.into());
        detach(&pin_dir, None).await
    }
}

/// Removes what depends on the programs, then the programs.
async fn detach(pin_dir: &Path, config: Option<&Config>) -> anyhow::Result<()> {
    // What is not there cannot be in use, and need not be made.
    let _pins = pin_dir.exists().then(|| DirectoryGuard::take("xdp.pin_dir", pin_dir)).transpose()?;
    match config {
        Some(config) => withdraw(config).await?,
        None => require_no_tenant_link().await?,
    }
    let there = fastpath::dataplane::detach(pin_dir)
        .with_context(|| format!("cannot remove the pins in {}", pin_dir.display()))?;
    let done = if there { "detached" } else { "nothing was attached" };
    Ok(output::print(&format!("{done} ({})", pin_dir.display()))?)
}

/// Without the programs the kernel would answer tenants' traffic itself, or forward it untranslated.
async fn require_no_tenant_link() -> anyhow::Result<()> {
    let facts = Facts::read(&Netlink::connect()?).await?;
    match facts.links.iter().find(|link| link.is_tenant_link()) {
        Some(link) => anyhow::bail!(
            "tenant link {name} still stands and needs the programs; `spillway detach --config FILE` removes \
             both, `ip link delete {name}` the link",
            name = link.name
        ),
        None => Ok(()),
    }
}

//! `spillway demo`.

use crate::demo::{self, Options};

/// Flags of `spillway demo`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sudo spillway demo\n  sudo spillway demo --keep   # then look around\n  sudo spillway demo --clean"
)]
pub(super) struct Arguments {
    /// Leave everything up at the end, and print how to look around
    #[arg(long)]
    keep: bool,
    /// Let tenants and nodes come from a stand-in of the Kubernetes API
    #[arg(long)]
    kubernetes: bool,
    /// Remove what earlier demos left, and do nothing else
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
}

impl Arguments {
    pub(super) fn execute(&self) -> anyhow::Result<()> {
        demo::run(&Options {
            executable: None,
            keep: self.keep,
            kubernetes: self.kubernetes,
            clean: self.clean,
        })
    }
}

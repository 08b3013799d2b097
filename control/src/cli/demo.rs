//! `spillway demo`: the gateway at work, on this machine.

use clap::Args;

use crate::demo::{self, Options};

/// Builds two nodes with pods, a router and a server in network namespaces, runs the gateway between them and
/// shows what each of them sees. Needs root; touches nothing outside its namespaces and takes them down again.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  spillway demo\n  spillway demo --keep    look around, then: spillway demo --clean"
)]
pub(super) struct Arguments {
    /// Leave everything up at the end, and say how to look around
    #[arg(long, conflicts_with = "clean")]
    keep: bool,

    /// Remove what an earlier demo left up
    #[arg(long)]
    clean: bool,
}

impl Arguments {
    pub(super) fn execute(&self) -> anyhow::Result<()> {
        demo::run(&Options { executable: None, keep: self.keep, clean: self.clean })
    }
}

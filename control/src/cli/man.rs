//! `spillway man`: the manual pages, one for each command.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};

use crate::output;

/// Writes the manual pages into a directory, one for each command.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  spillway man /usr/local/share/man/man1")]
pub(super) struct Arguments {
    /// Directory, which has to be there
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Arguments {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        clap_mangen::generate_to(super::Arguments::command(), &self.directory)
            .with_context(|| format!("cannot write to {}", self.directory.display()))?;
        Ok(output::print(&format!("manual pages written to {}", self.directory.display()))?)
    }
}

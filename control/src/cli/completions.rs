//! `spillway completions`: what a shell needs to complete commands and flags.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use crate::output;

/// Prints what a shell needs to complete commands and flags.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  spillway completions bash >/usr/share/bash-completion/completions/spillway\n  \
                  spillway completions zsh >/usr/share/zsh/vendor-completions/_spillway\n  \
                  spillway completions fish >/usr/share/fish/vendor_completions.d/spillway.fish"
)]
pub(super) struct Arguments {
    /// Shell
    shell: Shell,
}

impl Arguments {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        generate(self.shell, &mut super::Arguments::command(), "spillway", &mut script);
        Ok(output::print(String::from_utf8(script)?.trim_end())?)
    }
}

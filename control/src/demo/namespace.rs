//! Network namespaces, and ways into them.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::command::{self, SOON};

/// A network namespace that has a name, as `ip netns` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Names a namespace, which may exist or not.
    pub fn named(name: String) -> Self {
        Self { name }
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the file that stands for it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Returns a command that runs `program` in it.
    ///
    /// Only the network changes: `ip netns exec` would give the program a mount namespace of its own, and what
    /// it pins on bpffs would vanish with it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a program with arguments in it and returns what it printed.
    ///
    /// # Errors
    /// When it fails or does not end soon.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        command::run_ok(self.command(program).args(arguments), SOON)
    }

    /// Runs `ip` on it, with the words of `line` as arguments.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn ip(&self, line: &str) -> Result<String> {
        let mut ip = Command::new("ip");
        command::run_ok(ip.args(["-netns", &self.name]).args(line.split_whitespace()), SOON)
    }

    /// Runs many lines of `ip` commands in it.
    ///
    /// # Errors
    /// When one fails: `ip` names its line.
    pub fn ip_batch(&self, lines: &[String]) -> Result<()> {
        let mut ip = Command::new("ip");
        ip.args(["-netns", &self.name, "-batch", "-"]);
        run_batch(&mut ip, lines)
    }

    /// Calls `work` on a thread inside it; sockets that it opens stay there.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("no namespace {}", self.name))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| setns(&file, CloneFlags::CLONE_NEWNET).map(|()| work()));
            match thread.join() {
                Ok(outcome) => outcome.with_context(|| format!("namespace {} cannot be entered", self.name)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// Runs lines of `ip` commands outside of any namespace.
///
/// # Errors
/// When one fails: `ip` names its line.
pub(super) fn ip_batch(lines: &[String]) -> Result<()> {
    run_batch(Command::new("ip").args(["-batch", "-"]), lines)
}

fn run_batch(ip: &mut Command, lines: &[String]) -> Result<()> {
    let input = lines.join("\n") + "\n";
    let output = command::run_with_input(ip, input.as_bytes(), SOON)?;
    command::require_success(&command::describe(ip), &output)
        .with_context(|| format!("ip commands:\n{input}"))
}

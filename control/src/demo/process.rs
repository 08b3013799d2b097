//! Programs that run in the background: started, watched and ended by process id.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};

use super::command::{describe, pid_of};
use super::wait;

const PATIENCE: Duration = Duration::from_secs(10);

/// A background program; it is ended when this is dropped.
#[derive(Debug)]
pub struct Process {
    line: String,
    log: PathBuf,
    child: Child,
    left: bool,
}

impl Process {
    /// Starts a command in a process group of its own; all that it prints goes to the file `log`. It gets SIGTERM
    /// when the calling thread ends, also if that is killed.
    ///
    /// # Errors
    /// When it cannot be started, or the file cannot be made.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let mut bound = Command::new("setpriv");
        bound.args(["--pdeathsig", "TERM", "--"]).arg(command.get_program()).args(command.get_args());
        Self::spawn(&mut bound, describe(command), log)
    }

    /// Starts a command like [`start`](Self::start) that can be left running when this process ends.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_to_stay(command: &mut Command, log: &Path) -> Result<Self> {
        let line = describe(command);
        Self::spawn(command, line, log)
    }

    fn spawn(command: &mut Command, line: String, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        Ok(Self { line, log: log.to_owned(), child, left: false })
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns all that it has printed so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns how it ended, or nothing while it runs.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("`{}` cannot be waited for", self.line))
    }

    /// Waits until `ready` yields something; fails at once when the program ends before that.
    ///
    /// # Errors
    /// When it ended or `limit` passed, with what it printed.
    pub fn until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let outcome = wait::until(what, limit, || {
            if let Some(status) = self.ended()? {
                anyhow::bail!("it ended with {status}");
            }
            ready()
        });
        outcome.with_context(|| format!("`{}` printed:\n{}", self.line, self.output().trim_end()))
    }

    /// Waits until it has printed `words`.
    ///
    /// # Errors
    /// As [`Process::until`].
    pub fn until_printed(&mut self, words: &str, limit: Duration) -> Result<()> {
        let log = self.log.clone();
        self.until(&format!("`{words}` is printed"), limit, || {
            Ok(std::fs::read_to_string(&log)?.contains(words).then_some(()))
        })
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When `limit` passed.
    pub fn until_ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("`{}` ends", self.line);
        wait::until(&what, limit, || self.ended())
    }

    /// Sends it SIGTERM, and does not wait.
    ///
    /// # Errors
    /// When the kernel does not tell whether it runs.
    pub fn ask_to_end(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Ends it with SIGTERM, or with SIGKILL after ten seconds, and tells how it ended.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        match self.reap_within(PATIENCE) {
            Some(status) => Ok(status),
            None => self.kill(),
        }
    }

    /// Ends it with SIGKILL.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Lets it run on when this is dropped.
    pub fn leave(&mut self) {
        self.left = true;
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_none() {
            // Not reaped yet, so the number still is this process's own.
            kill(pid_of(&self.child), signal)?;
        }
        Ok(())
    }

    /// Waits also after an interruption, unlike [`wait::until`]: this is part of cleaning up.
    fn reap_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = std::time::Instant::now() + limit;
        while std::time::Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.left && self.stop().is_err() {
            // The kernel did not tell whether it ended; if it lives in a lab's namespace, that one's removal ends it.
            let _ = self.child.kill();
        }
    }
}

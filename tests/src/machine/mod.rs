//! A machine whose first process is systemd, in the place of the lab's gateway: this host's own, booted beside it.
//!
//! Its root is this host's under an overlay, so that what is installed in it is gone with it; `boot.sh` has the rest.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result};
use control::demo::Lab;
use control::demo::command;
use control::demo::process::Process;
use control::demo::topology::Host;

/// Time that it may take to boot, or a command in it to end.
const LIMIT: Duration = Duration::from_secs(60);

const SCRIPT: &str = include_str!("boot.sh");

/// The machine; it is turned off when this is dropped.
#[derive(Debug)]
pub struct Machine {
    _boot: Process,
    /// Its first process, as this host counts.
    first: u32,
}

impl Machine {
    /// Boots it into the namespace of a lab's gateway, and returns once systemd has nothing left to do.
    ///
    /// # Errors
    /// When there is no systemd here, or the kernel refuses a mount or a namespace; the log is in the error.
    pub fn boot(lab: &Lab) -> Result<Self> {
        let directory = lab.directory();
        let (script, root) = (directory.join("boot.sh"), directory.join("machine"));
        std::fs::write(&script, SCRIPT)?;
        std::fs::create_dir(&root)?;
        let mut unshare = lab.namespace(Host::Gateway).command("unshare");
        unshare.args(["--mount", "sh"]).arg(&script).arg(&root);
        let log = directory.join("machine.log");
        let mut boot = Process::start(&mut unshare, &log)?;
        let first = boot.until("systemd begins", LIMIT, || {
            let printed = std::fs::read_to_string(&log)?;
            Ok(printed.lines().find_map(|line| line.strip_prefix("machine ")?.parse().ok()))
        })?;
        let mut up = enter(first, "systemctl");
        up.arg("is-system-running");
        boot.until("systemd is up", LIMIT, || {
            Ok((command::run(&mut up, LIMIT)?.stdout == b"running\n").then_some(()))
        })?;
        Ok(Self { _boot: boot, first })
    }

    /// Returns a command that runs a program in it.
    pub fn command(&self, program: &str) -> Command {
        enter(self.first, program)
    }

    /// Runs a line of shell in it; returns what it printed and how it ended.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn shell(&self, line: &str) -> Result<Output> {
        command::run(self.command("sh").args(["-c", line]), LIMIT)
    }

    /// Runs a line of shell in it that has to succeed, and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, line: &str) -> Result<String> {
        command::run_ok(self.command("sh").args(["-ec", line]), LIMIT)
    }

    /// Returns what a program prints as JSON.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub fn json(&self, line: &str) -> Result<serde_json::Value> {
        let text = self.run(line)?;
        serde_json::from_str(&text).with_context(|| format!("`{line}` printed `{text}`"))
    }

    /// Returns the value of a property of a unit.
    ///
    /// # Errors
    /// When systemd does not tell.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        Ok(self.run(&format!("systemctl show --value -p {name} {unit}"))?.trim().to_owned())
    }

    /// Returns where this host sees one of its files.
    pub fn path(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.first.to_string()).join("root").join(file.trim_start_matches('/'))
    }

    /// Writes one of its files.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path(file);
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(&path, text).with_context(|| format!("{file} in the machine"))
    }
}

fn enter(first: u32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &first.to_string()]);
    command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--"]);
    command.arg(program);
    command
}

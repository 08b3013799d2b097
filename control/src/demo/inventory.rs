//! What a lab made, written down before it is made, so that it is removed by list whatever happened.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde::{Deserialize, Serialize};

use super::command::{self, SOON};
use super::wait;

/// Each lab has a directory here, named like the lab.
const LABS: &str = "/run/spillway-lab";
const LIST: &str = "lab.json";

/// The list of what one lab made.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Inventory {
    /// Name of the lab: the prefix of all that it makes.
    pub(super) name: String,
    /// Process that built it.
    pub(super) owner: u32,
    /// Whether it stays when its owner ends.
    pub(super) kept: bool,
    /// Network namespaces.
    pub(super) namespaces: Vec<String>,
    /// Background programs that were left running.
    pub(super) processes: Vec<u32>,
    /// Where the data plane's programs are pinned.
    pub(super) pin_dir: PathBuf,
}

impl Inventory {
    /// Returns the lab's directory.
    pub(super) fn directory(&self) -> PathBuf {
        Path::new(LABS).join(&self.name)
    }

    /// Writes the list into the lab's directory, and makes that when it is missing.
    pub(super) fn save(&self) -> Result<()> {
        let directory = self.directory();
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let file = directory.join(LIST);
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Removes all that is on the list, as far as it is there.
    pub(super) fn remove(&self) -> Result<()> {
        self.end_processes()?;
        let mut problems = Vec::new();
        for name in &self.namespaces {
            if Path::new("/run/netns").join(name).exists() {
                let mut ip = std::process::Command::new("ip");
                problems.extend(command::run_ok(ip.args(["netns", "del", name]), SOON).err());
            }
        }
        for directory in [&self.pin_dir, &self.directory()] {
            if directory.exists() {
                let removed = std::fs::remove_dir_all(directory);
                problems
                    .extend(removed.with_context(|| format!("cannot remove {}", directory.display())).err());
            }
        }
        problems.into_iter().next().map_or(Ok(()), Err)
    }

    /// Ends the programs on the list. One that does not live in the lab's namespaces any more is someone else's
    /// who was given the same number since.
    fn end_processes(&self) -> Result<()> {
        let recorded = |pid: &u32| self.processes.contains(pid);
        let alive = || self.inhabitants().into_iter().filter(recorded).collect::<Vec<_>>();
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            for pid in alive().into_iter().filter_map(|pid| i32::try_from(pid).ok()) {
                // It may have ended in between.
                let _ = kill(Pid::from_raw(pid), signal);
            }
            let gone = wait::until("the lab's programs end", Duration::from_secs(10), || {
                Ok(alive().is_empty().then_some(()))
            });
            if gone.is_ok() {
                return Ok(());
            }
        }
        anyhow::bail!("programs of the lab {} do not end: {:?}", self.name, alive())
    }

    fn inhabitants(&self) -> Vec<u32> {
        let pids = |name: &String| {
            let mut ip = std::process::Command::new("ip");
            command::run_ok(ip.args(["netns", "pids", name]), SOON).unwrap_or_default()
        };
        let text: String = self.namespaces.iter().map(pids).collect();
        text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    fn is_abandoned(&self) -> bool {
        self.kept || !Path::new("/proc").join(self.owner.to_string()).exists()
    }
}

/// Says why namespaces cannot be made here, if so.
pub fn missing_privilege() -> Option<String> {
    (!geteuid().is_root()).then(|| "network namespaces and XDP need root; run it with sudo".to_owned())
}

/// Removes every lab that was kept, or whose process was killed; returns their names.
///
/// # Errors
/// When something of a lab cannot be removed.
pub fn clean() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let Ok(entries) = std::fs::read_dir(LABS) else { return Ok(removed) };
    for entry in entries {
        let Ok(text) = std::fs::read(entry?.path().join(LIST)) else { continue };
        let lab: Inventory = serde_json::from_slice(&text).context("a lab's list is damaged")?;
        if lab.is_abandoned() {
            lab.remove()?;
            removed.push(lab.name);
        }
    }
    Ok(removed)
}

//! What a lab made, written down before it is made, so that it is removed by list whatever happened.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
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
const NAMESPACES: &str = "/run/netns";

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
            if Path::new(NAMESPACES).join(name).exists() {
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

    /// Ends every process that lives in the lab's own namespaces, whoever started it.
    fn end_processes(&self) -> Result<()> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            for pid in self.inhabitants()? {
                // It may have ended in between.
                let _ = kill(Pid::from_raw(pid), signal);
            }
            let gone = wait::until("the lab's programs end", Duration::from_secs(10), || {
                Ok(self.inhabitants()?.is_empty().then_some(()))
            });
            if gone.is_ok() {
                return Ok(());
            }
        }
        anyhow::bail!("programs of the lab {} do not end: {:?}", self.name, self.inhabitants()?)
    }

    fn inhabitants(&self) -> Result<Vec<i32>> {
        let paths = self.namespaces.iter().map(|name| Path::new(NAMESPACES).join(name));
        let own: BTreeSet<_> = paths.filter_map(|path| identity(&path)).collect();
        let entries = std::fs::read_dir("/proc").context("cannot list processes")?;
        let lives_here = |entry: &std::fs::DirEntry| {
            identity(&entry.path().join("ns/net")).is_some_and(|id| own.contains(&id))
        };
        let inhabitants = entries.flatten().filter(lives_here);
        Ok(inhabitants.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
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
        removed.extend(clean_one(&entry?.path())?);
    }
    Ok(removed)
}

/// Removes the lab that has this directory, if it was kept, or its process was killed; returns its name then.
///
/// # Errors
/// When something of it cannot be removed.
pub fn clean_one(directory: &Path) -> Result<Option<String>> {
    let Ok(text) = std::fs::read(directory.join(LIST)) else { return Ok(None) };
    let lab: Inventory = serde_json::from_slice(&text).context("a lab's list is damaged")?;
    if !lab.is_abandoned() {
        return Ok(None);
    }
    lab.remove()?;
    Ok(Some(lab.name))
}

/// Returns what two paths to the same namespace share.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|namespace| (namespace.dev(), namespace.ino()))
}

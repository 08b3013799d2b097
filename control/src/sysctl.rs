//! ARP isolation and room for neighbours: kernel settings, set at start and restored at stop.
//!
//! | setting        | value | because                                                                            |
//! |----------------|-------|------------------------------------------------------------------------------------|
//! | `arp_ignore`   | 1     | only the tenant's own link may answer for its gateway address, with its own MAC    |
//! | `arp_announce` | 2     | the gateway must not ask with another tenant's address as the sender               |
//! | `rp_filter`    | 0     | a node's ping comes in by the tenant's link, but the route back is another link's  |
//!
//! The kernel uses the greater of `conf/all` and `conf/LINK` for `rp_filter`. Where `all` is 1 (strict), 2
//! (loose) on the link overrides it and is enough here; so `all` is never touched.
//!
//! Every node of the cluster is a neighbour that is kept resolved. The kernel holds 1,024 unless told otherwise, all
//! network namespaces together, so where the cluster is followed `gc_thresh3` and `gc_thresh2` are raised.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tracing::warn;

use crate::state::{SavedSysctl, SavedSysctls, StateDir, StateError};

const ROOT: &str = "/proc/sys";
const BOOT_ID: &str = "kernel/random/boot_id";
/// Limits of the kernel's neighbour table, all network namespaces together, and what a large cluster needs.
const NEIGHBOUR_LIMITS: [(&str, u64); 2] =
    [("net/ipv4/neigh/default/gc_thresh3", 16_384), ("net/ipv4/neigh/default/gc_thresh2", 8_192)];

/// Why a kernel setting could not be changed.
#[derive(Debug, Error)]
pub enum SysctlError {
    /// The setting cannot be read or written.
    #[error("cannot set {path} to {value}")]
    Write {
        /// File of the setting.
        path: PathBuf,
        /// Value that was to be set.
        value: String,
        /// Cause.
        source: io::Error,
    },
    /// The old values cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Settings that were changed, and what they were before.
#[derive(Debug)]
pub struct Sysctls {
    root: PathBuf,
    state: StateDir,
    saved: SavedSysctls,
}

impl Sysctls {
    /// Returns settings of which an earlier process of this boot may have left some changed.
    ///
    /// # Errors
    /// When what it left cannot be read.
    pub fn open(state: StateDir) -> Result<Self, SysctlError> {
        Self::open_at(PathBuf::from(ROOT), state)
    }

    fn open_at(root: PathBuf, state: StateDir) -> Result<Self, SysctlError> {
        let boot_id = read(&root, BOOT_ID)?;
        let mut saved = load(&state)?;
        if saved.boot_id != boot_id {
            saved = SavedSysctls { boot_id, settings: Vec::new() };
        }
        Ok(Self { root, state, saved })
    }

    /// Isolates a link that was there before, remembering its settings; in a file too, before any is changed.
    ///
    /// # Errors
    /// When a setting cannot be changed.
    pub fn isolate(&mut self, link: &str) -> Result<(), SysctlError> {
        self.set(&wanted(&self.root, link))
    }

    /// Lets the kernel keep the neighbours of a large cluster. Limits that are greater already stay; in a network
    /// namespace of its own the process cannot see them.
    ///
    /// # Errors
    /// When a limit cannot be changed.
    pub fn make_room_for_neighbours(&mut self) -> Result<(), SysctlError> {
        let is_short = |(path, least): &&(&str, u64)| {
            read(&self.root, path).is_ok_and(|limit| limit.parse().is_ok_and(|limit: u64| limit < *least))
        };
        let short = NEIGHBOUR_LIMITS.iter().filter(is_short);
        let raised: Vec<_> = short.map(|(path, least)| ((*path).to_owned(), least.to_string())).collect();
        self.set(&raised)
    }

    fn set<V: AsRef<str>>(&mut self, wanted: &[(String, V)]) -> Result<(), SysctlError> {
        let known = self.saved.settings.len();
        for (path, _) in wanted {
            if !self.saved.settings.iter().any(|saved| saved.path == *path) {
                let value = read(&self.root, path)?;
                self.saved.settings.push(SavedSysctl { path: path.clone(), value });
            }
        }
        if self.saved.settings.len() > known {
            self.state.save_sysctls(&self.saved)?;
        }
        wanted.iter().try_for_each(|(path, value)| write(&self.root, path, value.as_ref()))
    }

    /// Restores everything that was changed. What cannot be restored is logged.
    ///
    /// # Errors
    /// When the file of remembered settings cannot be written.
    pub fn restore(&mut self) -> Result<(), SysctlError> {
        for saved in std::mem::take(&mut self.saved.settings) {
            if let Err(error) = write(&self.root, &saved.path, &saved.value) {
                warn!(error = &error as &dyn std::error::Error, "kernel setting not restored");
            }
        }
        Ok(self.state.save_sysctls(&self.saved)?)
    }
}

/// Returns the values that an earlier process left. A damaged file is set aside: nothing but the old values is lost.
fn load(state: &StateDir) -> Result<SavedSysctls, StateError> {
    let mut saved = match state.load_sysctls() {
        Err(error @ StateError::Parse { .. }) => {
            let aside = state.set_sysctls_aside()?.display().to_string();
            let error = &error as &dyn std::error::Error;
            warn!(
                error,
                aside, "what kernel settings were before is not known, what they are now is restored"
            );
            SavedSysctls::default()
        }
        loaded => loaded?,
    };
    saved.settings.retain(|saved| {
        let is_ours = is_ours(&saved.path);
        if !is_ours {
            warn!(
                path = saved.path,
                "a setting in sysctls.json is none that Spillway changes; it is left alone"
            );
        }
        is_ours
    });
    Ok(saved)
}

/// Tells whether a path is that of a setting that is changed here, and of no other file.
fn is_ours(path: &str) -> bool {
    let is_isolation = |rest: &str| {
        let setting = rest.split_once('/').filter(|(link, _)| !matches!(*link, "" | "." | ".."));
        setting.is_some_and(|(_, name)| matches!(name, "arp_ignore" | "arp_announce" | "rp_filter"))
    };
    NEIGHBOUR_LIMITS.iter().any(|(limit, _)| path == *limit)
        || path.strip_prefix("net/ipv4/conf/").is_some_and(is_isolation)
}

/// Isolates a link that Spillway made; its settings go when it goes.
///
/// # Errors
/// When a setting cannot be changed.
pub fn isolate_new_link(link: &str) -> Result<(), SysctlError> {
    let root = Path::new(ROOT);
    let ipv6 = format!("net/ipv6/conf/{link}/disable_ipv6");
    if root.join(&ipv6).exists() {
        write(root, &ipv6, "1")?; // tenants have no IPv6, so their links must not speak it either
    }
    // Also where the host forwards: what pods send to a tenant is for the fast path, or for nobody.
    write(root, &setting(link, "forwarding"), "0")?;
    wanted(root, link).iter().try_for_each(|(path, value)| write(root, path, value))
}

/// Isolates a link that took the place of one that was isolated before; what is restored at the end stays what that had.
///
/// # Errors
/// When a setting cannot be changed.
pub fn isolate_again(link: &str) -> Result<(), SysctlError> {
    let root = Path::new(ROOT);
    wanted(root, link).iter().try_for_each(|(path, value)| write(root, path, value))
}

/// Returns the settings that isolate a link, with their values; `root` is where settings are.
pub(crate) fn wanted(root: &Path, link: &str) -> [(String, &'static str); 3] {
    let strict = read(root, &setting("all", "rp_filter")).is_ok_and(|all| all == "1");
    [
        (setting(link, "arp_ignore"), "1"),
        (setting(link, "arp_announce"), "2"),
        (setting(link, "rp_filter"), if strict { "2" } else { "0" }),
    ]
}

fn setting(link: &str, name: &str) -> String {
    format!("net/ipv4/conf/{link}/{name}")
}

fn read(root: &Path, path: &str) -> Result<String, SysctlError> {
    let path = root.join(path);
    let text = std::fs::read_to_string(&path);
    let text = text.map_err(|source| SysctlError::Write { path, value: "anything".into(), source })?;
    Ok(text.trim().to_owned())
}

fn write(root: &Path, path: &str, value: &str) -> Result<(), SysctlError> {
    let path = root.join(path);
    std::fs::write(&path, value).map_err(|source| SysctlError::Write { path, value: value.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_set_aside_and_a_foreign_path_is_left_alone() {
        let (directory, mut sysctls) = open();
        sysctls.isolate("in0").unwrap();
        let aside = sysctls.state.set_sysctls_aside().unwrap();
        let file = aside.with_file_name("sysctls.json");
        let text = std::fs::read_to_string(&aside).unwrap();
        std::fs::write(&file, text.replace("net/ipv4/conf/in0/arp_ignore", "../../etc/passwd")).unwrap();
        let settings = reopen(directory.path()).saved.settings;
        let left: Vec<_> = settings.iter().map(|saved| saved.path.as_str()).collect();
        assert_eq!(left, ["net/ipv4/conf/in0/arp_announce", "net/ipv4/conf/in0/rp_filter"]);
        std::fs::write(&file, "{\"bootId\":").unwrap();
        assert!(reopen(directory.path()).saved.settings.is_empty());
        assert!(!file.exists());
    }

    #[test]
    fn only_settings_that_are_changed_here_are_restored() {
        for ours in ["net/ipv4/conf/in0/rp_filter", "net/ipv4/neigh/default/gc_thresh3"] {
            assert!(is_ours(ours), "{ours}");
        }
        for foreign in [
            "/etc/passwd",
            "net/ipv4/conf/../arp_ignore",
            "net/ipv4/conf/a/../arp_ignore",
            "net/ipv4/ip_forward",
        ] {
            assert!(!is_ours(foreign), "{foreign}");
        }
    }

    #[test]
    fn settings_are_set_and_restored() {
        let (directory, mut sysctls) = open();
        sysctls.isolate("in0").unwrap();
        assert_eq!(values(directory.path(), "in0"), ["1", "2", "0"]);
        sysctls.restore().unwrap();
        assert_eq!(values(directory.path(), "in0"), ["0", "1", "1"]);
    }

    #[test]
    fn values_from_before_a_crash_are_restored() {
        let (directory, mut sysctls) = open();
        sysctls.isolate("in0").unwrap();
        let mut second = reopen(directory.path());
        second.isolate("in0").unwrap();
        second.restore().unwrap();
        assert_eq!(values(directory.path(), "in0"), ["0", "1", "1"]);
        assert!(reopen(directory.path()).saved.settings.is_empty());
    }

    #[test]
    fn values_from_before_a_reboot_are_forgotten() {
        let (directory, mut sysctls) = open();
        sysctls.isolate("in0").unwrap();
        write(directory.path(), BOOT_ID, "second").unwrap();
        write(directory.path(), &setting("in0", "arp_announce"), "0").unwrap();
        let mut second = reopen(directory.path());
        second.isolate("in0").unwrap();
        second.restore().unwrap();
        assert_eq!(values(directory.path(), "in0")[1], "0");
    }

    #[test]
    fn a_strict_filter_for_all_links_is_loosened_on_the_link_alone() {
        let (directory, mut sysctls) = open();
        write(directory.path(), &setting("all", "rp_filter"), "1").unwrap();
        sysctls.isolate("in0").unwrap();
        assert_eq!(values(directory.path(), "in0")[2], "2");
        assert_eq!(values(directory.path(), "all")[2], "1");
    }

    #[test]
    fn limits_on_neighbours_are_raised_where_they_are_small_and_restored() {
        let (directory, mut sysctls) = open();
        let limits = || NEIGHBOUR_LIMITS.map(|(path, _)| read(directory.path(), path).unwrap());
        sysctls.make_room_for_neighbours().unwrap(); // there are none to be seen
        std::fs::create_dir_all(directory.path().join("net/ipv4/neigh/default")).unwrap();
        for ((path, _), value) in NEIGHBOUR_LIMITS.iter().zip(["1024", "65536"]) {
            write(directory.path(), path, value).unwrap();
        }
        sysctls.make_room_for_neighbours().unwrap();
        assert_eq!(limits(), ["16384", "65536"]);
        sysctls.restore().unwrap();
        assert_eq!(limits(), ["1024", "65536"]);
    }

    fn open() -> (tempfile::TempDir, Sysctls) {
        let directory = tempfile::tempdir().unwrap();
        for link in ["all", "in0"] {
            std::fs::create_dir_all(directory.path().join(setting(link, ""))).unwrap();
            for (name, value) in [("arp_ignore", "0"), ("arp_announce", "1"), ("rp_filter", "1")] {
                let value = if link == "all" { "0" } else { value };
                write(directory.path(), &setting(link, name), value).unwrap();
            }
        }
        std::fs::create_dir_all(directory.path().join("kernel/random")).unwrap();
        write(directory.path(), BOOT_ID, "first").unwrap();
        let sysctls = reopen(directory.path());
        (directory, sysctls)
    }

    fn reopen(directory: &Path) -> Sysctls {
        let state = StateDir::open(&directory.join("state")).unwrap();
        Sysctls::open_at(directory.to_owned(), state).unwrap()
    }

    fn values(root: &Path, link: &str) -> [String; 3] {
        ["arp_ignore", "arp_announce", "rp_filter"].map(|name| read(root, &setting(link, name)).unwrap())
    }
}

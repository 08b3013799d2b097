//! Files that survive the process: written whole or not at all.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use atomic_write_file::AtomicWriteFile;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::kubernetes::state::ClusterState;
use crate::tenant::Tenant;

const CLUSTER_FILE: &str = "kubernetes.json";
/// Raised whenever what the cluster asks for is written in another way.
const CLUSTER_VERSION: u64 = 1;
const TENANTS_FILE: &str = "tenants.json";
const SYSCTLS_FILE: &str = "sysctls.json";
/// What follows a file's name when it was set aside, and before the second in which that was.
const ASIDE: &str = ".corrupt-";
/// Larger than any state that is ours: tens of thousands of tenants take some megabytes.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Why a state file could not be read or written.
#[derive(Debug, Error)]
pub enum StateError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file does not hold what it should.
    #[error("{path} is damaged, or no state file of this version")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// The directory in which state is kept.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantsFile {
    tenants: Vec<Tenant>,
}

/// Values of kernel settings before Spillway changed them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SavedSysctls {
    /// The boot that they are of: the next one begins with settings of its own.
    pub boot_id: String,
    /// The settings.
    pub settings: Vec<SavedSysctl>,
}

/// A kernel setting's value before Spillway changed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSysctl {
    /// File below `/proc/sys`.
    pub path: String,
    /// Value to restore.
    pub value: String,
}

impl StateDir {
    /// Makes the directory, if it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        std::fs::create_dir_all(path)
            .map_err(|source| StateError::Write { path: path.to_owned(), source })?;
        Ok(Self(path.to_owned()))
    }

    /// Returns the tenants that were added over the control socket.
    ///
    /// # Errors
    /// When there is a file that cannot be read.
    pub fn load_tenants(&self) -> Result<Vec<Tenant>, StateError> {
        Ok(self.load::<TenantsFile>(TENANTS_FILE)?.tenants)
    }

    /// Saves the tenants that were added over the control socket.
    ///
    /// # Errors
    /// When the file cannot be written; the old one then stays.
    pub fn save_tenants(&self, tenants: Vec<Tenant>) -> Result<(), StateError> {
        self.save(TENANTS_FILE, &TenantsFile { tenants })
    }

    /// Moves the tenants that were added over the control socket out of the way, and returns where they are.
    ///
    /// # Errors
    /// When they cannot be moved.
    pub fn set_tenants_aside(&self) -> Result<PathBuf, StateError> {
        self.set_aside(TENANTS_FILE)
    }

    /// Returns where tenants are that were set aside, by this process or one before, and that nobody has put back or
    /// removed since.
    pub fn tenants_set_aside(&self) -> Vec<PathBuf> {
        let is_aside = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.strip_prefix(TENANTS_FILE).is_some_and(|rest| rest.starts_with(ASIDE))
        };
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut aside: Vec<_> = entries.map(|entry| entry.path()).filter(is_aside).collect();
        aside.sort();
        aside
    }

    /// Moves the values of kernel settings out of the way, and returns where they are.
    ///
    /// # Errors
    /// When they cannot be moved.
    pub fn set_sysctls_aside(&self) -> Result<PathBuf, StateError> {
        self.set_aside(SYSCTLS_FILE)
    }

    /// Returns the values of kernel settings that a process before this one did not restore.
    ///
    /// # Errors
    /// When there is a file that cannot be read.
    pub fn load_sysctls(&self) -> Result<SavedSysctls, StateError> {
        self.load(SYSCTLS_FILE)
    }

    /// Saves the values that kernel settings had before Spillway changed them.
    ///
    /// # Errors
    /// When the file cannot be written; the old one then stays.
    pub fn save_sysctls(&self, saved: &SavedSysctls) -> Result<(), StateError> {
        self.save(SYSCTLS_FILE, saved)
    }

    /// Returns what the cluster asked for last, and when that was saved; none when nothing was.
    ///
    /// # Errors
    /// When there is a file that cannot be read, is damaged, or is of another version.
    pub fn load_cluster(&self) -> Result<Option<(ClusterState, SystemTime)>, StateError> {
        let path = self.0.join(CLUSTER_FILE);
        let Some(mut file) = self.load::<Option<serde_json::Value>>(CLUSTER_FILE)? else { return Ok(None) };
        let state = match file["version"].as_u64() {
            Some(CLUSTER_VERSION) => serde_json::from_value(file["state"].take()),
            version => {
                Err(serde::de::Error::custom(format!("version {version:?}; known is {CLUSTER_VERSION}")))
            }
        };
        let state = state.map_err(|source| StateError::Parse { path: path.clone(), source })?;
        let saved = std::fs::metadata(&path).and_then(|metadata| metadata.modified());
        Ok(Some((state, saved.map_err(|source| StateError::Read { path, source })?)))
    }

    /// Saves what the cluster asks for.
    ///
    /// # Errors
    /// When the file cannot be written; the old one then stays.
    pub fn save_cluster(&self, state: &ClusterState) -> Result<(), StateError> {
        self.save(CLUSTER_FILE, &serde_json::json!({ "version": CLUSTER_VERSION, "state": state }))
    }

    /// Moves what the cluster asked for last out of the way, and returns where it is.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn set_cluster_aside(&self) -> Result<PathBuf, StateError> {
        // The cluster tells it again, so one is kept and no more.
        let (path, aside) = (self.0.join(CLUSTER_FILE), self.0.join(format!("{CLUSTER_FILE}.refused")));
        std::fs::rename(&path, &aside).map_err(|source| StateError::Write { path, source })?;
        Ok(aside)
    }

    fn set_aside(&self, file: &str) -> Result<PathBuf, StateError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let path = self.0.join(file);
        // A name that is new: what was set aside before stays.
        let aside =
            (now..).map(|second| self.0.join(format!("{file}{ASIDE}{second}"))).find(|to| !to.exists());
        let aside = aside.expect("there are more names than files");
        std::fs::rename(&path, &aside).map_err(|source| StateError::Write { path, source })?;
        Ok(aside)
    }

    fn load<T: DeserializeOwned + Default>(&self, file: &str) -> Result<T, StateError> {
        let path = self.0.join(file);
        if let Ok(metadata) = std::fs::metadata(&path)
            && metadata.len() > MAX_FILE_BYTES
        {
            let message = format!("{} bytes are more than the {MAX_FILE_BYTES} that may be", metadata.len());
            return Err(StateError::Parse { path, source: serde::de::Error::custom(message) });
        }
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| StateError::Parse { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
            Err(source) => Err(StateError::Read { path, source }),
        }
    }

    fn save<T: Serialize>(&self, file: &str, value: &T) -> Result<(), StateError> {
        let path = self.0.join(file);
        let write = || {
            let mut text = serde_json::to_vec_pretty(value)?; // the file takes a system call for each write
            text.push(b'\n');
            let mut writer = AtomicWriteFile::open(&path)?;
            writer.write_all(&text)?;
            writer.commit() // syncs the file before it takes the old one's place, and the directory after
        };
        write().map_err(|source| StateError::Write { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::config::ReturnRoute;
    use crate::kubernetes::state::{ClusterTenant, Link};

    #[test]
    fn saved_tenants_are_loaded_again() {
        let (directory, state) = open();
        assert!(state.load_tenants().unwrap().is_empty());
        let tenants = vec![tenant()];
        state.save_tenants(tenants.clone()).unwrap();
        assert_eq!(state.load_tenants().unwrap(), tenants);
        let files = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(files, 1, "no temporary file is left");
    }

    #[test]
    fn a_file_from_before_policies_is_loaded() {
        let (directory, state) = open();
        let text = r#"{"tenants":[{"name":"ns-blue","gatewayIP":"192.168.99.13","gatewayMAC":"",
            "egressIPs":["192.168.55.113"],"sources":{"podCIDRs":[]},"mapping":"AddressAndPortDependent",
            "limits":{"sessions":0,"sessionsPerPod":0,"newSessionsPerSecond":0}}]}"#;
        std::fs::write(directory.path().join(TENANTS_FILE), text).unwrap();
        assert_eq!(state.load_tenants().unwrap(), [tenant()]);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let (directory, state) = open();
        std::fs::write(directory.path().join(TENANTS_FILE), "{\"tenants\": [").unwrap();
        let error = state.load_tenants().unwrap_err().to_string();
        assert!(error.contains("tenants.json"), "{error}");
    }

    #[test]
    fn saved_sysctls_are_loaded_again() {
        let (_directory, state) = open();
        let setting = SavedSysctl { path: "net/ipv4/conf/eth0/arp_ignore".into(), value: "0".into() };
        let saved = SavedSysctls { boot_id: "a".into(), settings: vec![setting] };
        state.save_sysctls(&saved).unwrap();
        assert_eq!(state.load_sysctls().unwrap(), saved);
    }

    #[test]
    fn what_the_cluster_asked_for_is_loaded_again() {
        let (_directory, state) = open();
        assert!(state.load_cluster().unwrap().is_none());
        let route =
            ReturnRoute { pod_cidr: "10.132.0.0/24".parse().unwrap(), via: "192.168.99.21".parse().unwrap() };
        let pods = BTreeSet::from(["10.132.0.5".parse().unwrap()]);
        let link = Link {
            policies: BTreeSet::from(["blue".to_owned()]),
            namespaces: BTreeMap::from([("ns-blue".to_owned(), pods)]),
        };
        let cluster = ClusterState {
            routes: BTreeMap::from([("w1".to_owned(), vec![route])]),
            node_addresses: BTreeMap::from([("w1".to_owned(), route.via)]),
            tenants: vec![ClusterTenant { uid: "u".to_owned(), generation: 3, tenant: tenant() }],
            links: BTreeMap::from([("192.168.99.13".parse().unwrap(), link)]),
            ..ClusterState::default()
        };
        state.save_cluster(&cluster).unwrap();
        assert_eq!(state.load_cluster().unwrap().unwrap().0, cluster);
    }

    #[test]
    fn a_cluster_state_that_cannot_be_used_is_refused_and_set_aside() {
        let sound = serde_json::to_string(&ClusterState::default()).unwrap();
        for text in [
            "{\"version\": 1, \"sta".to_owned(),
            format!("{{\"version\": 2, \"state\": {sound}}}"),
            format!("{{\"state\": {sound}}}"),
            "{\"version\": 1, \"state\": {\"unknown\": 1}}".to_owned(),
            "[]".to_owned(),
        ] {
            let (directory, state) = open();
            std::fs::write(directory.path().join(CLUSTER_FILE), &text).unwrap();
            assert!(state.load_cluster().is_err(), "{text}");
            let aside = state.set_cluster_aside().unwrap();
            assert_eq!(std::fs::read_to_string(aside).unwrap(), text);
            assert!(state.load_cluster().unwrap().is_none());
        }
    }

    #[test]
    fn tenants_that_are_set_aside_are_known_until_somebody_sees_to_them() {
        let (directory, state) = open();
        let file = directory.path().join(TENANTS_FILE);
        let mut aside = Vec::new();
        for text in ["{", "[]", "\0"] {
            std::fs::write(&file, text).unwrap();
            assert!(state.load_tenants().is_err());
            aside.push(state.set_tenants_aside().unwrap());
            assert_eq!(std::fs::read_to_string(aside.last().unwrap()).unwrap(), text);
        }
        assert_eq!(state.tenants_set_aside(), aside);
        assert!(state.load_tenants().unwrap().is_empty());
        aside.into_iter().for_each(|path| std::fs::remove_file(path).unwrap());
        assert!(state.tenants_set_aside().is_empty());
    }

    #[test]
    fn a_file_that_is_far_too_large_is_not_read() {
        let (directory, state) = open();
        let file = std::fs::File::create(directory.path().join(TENANTS_FILE)).unwrap();
        file.set_len(1 << 40).unwrap(); // takes no room on the disk
        assert!(matches!(state.load_tenants(), Err(StateError::Parse { .. })));
    }

    fn open() -> (tempfile::TempDir, StateDir) {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        (directory, state)
    }

    fn tenant() -> Tenant {
        serde_json::from_str(
            r#"{"name":"ns-blue","gatewayIP":"192.168.99.13","egressIPs":["192.168.55.113"]}"#,
        )
        .unwrap()
    }
}

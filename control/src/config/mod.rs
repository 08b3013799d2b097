//! The config file: what it holds, and what is refused.

mod check;
mod file;
mod nat_log;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use conntrack::Timeouts;
use fastpath::dataplane::AttachPreference;
use fastpath::placement::SchedulerPolicy;
use fastpath::snapshot::TcpPolicy;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::nat_log::{NatLog, NatLogFile, NatLogIpfix, NatLogSyslog};
use crate::logging::Format;
use crate::logging::filter::Filter;
use crate::tenant::Tenant;

/// Control socket when neither flag, environment nor config file names one.
pub const DEFAULT_SOCKET: &str = "/run/spillway/spillway.sock";
/// Directory of pinned programs and maps when the config file names none.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/spillway";

/// Where metrics are served when the config file does not say.
pub const DEFAULT_METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9477);

/// A config file that was read and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the inside interface.
    pub inside: String,
    /// Name of the outside interface.
    pub outside: String,
    /// How the XDP program may be attached.
    pub attach: AttachPreference,
    /// Directory of pinned programs and maps.
    pub pin_dir: PathBuf,
    /// Number of workers; none: one for each rx queue of the interface that has fewer. Of more workers than queues some
    /// receive nothing themselves: they take over the work for their share of the pods, and others send for them.
    pub workers: Option<usize>,
    /// Cores that workers are pinned to.
    pub cores: Vec<usize>,
    /// How workers are scheduled.
    pub scheduler_policy: SchedulerPolicy,
    /// Sessions that each worker can hold.
    pub session_capacity: u32,
    /// Where sessions are taken down, so that they outlive the process.
    pub session_file: SessionFile,
    /// Session timeouts.
    pub timeouts: Timeouts,
    /// What becomes of TCP segments that belong to no session.
    pub tcp: TcpPolicy,
    /// The cluster's pod networks.
    pub pod_cidrs: Vec<Ipv4Net>,
    /// Return routes.
    pub routes: Vec<ReturnRoute>,
    /// Path of the control socket; none: the default.
    pub socket: Option<PathBuf>,
    /// Where health and readiness are told over plain HTTP; none: nowhere.
    pub health: Option<SocketAddr>,
    /// Where metrics are served over plain HTTP.
    pub metrics: MetricsAddress,
    /// Destinations with the most ports that metrics tell of.
    pub metrics_destinations: usize,
    /// Directory in which state is kept.
    pub state_dir: PathBuf,
    /// Which lines are logged.
    pub log_filter: Filter,
    /// How they look.
    pub log_format: Format,
    /// The Kubernetes API; none: it is not asked.
    pub kubernetes: Option<Kubernetes>,
    /// What is logged of translations; none: nothing.
    pub nat_log: Option<NatLog>,
    /// Tenants.
    pub tenants: Vec<Tenant>,
}

/// Where sessions are taken down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SessionFile {
    /// In a file beside the control socket, whose name ends in `.sessions`.
    #[default]
    BesideSocket,
    /// In this file.
    At(PathBuf),
    /// Nowhere: they end with the process.
    Off,
}

impl SessionFile {
    /// Returns the path of the file of a gateway with this control socket.
    pub fn path(self, socket: &Path) -> Option<PathBuf> {
        match self {
            Self::BesideSocket => Some(socket.with_extension("sessions")),
            Self::At(path) => Some(path),
            Self::Off => None,
        }
    }
}

/// Where metrics are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetricsAddress {
    /// At [`DEFAULT_METRICS`], unless somebody else listens there.
    #[default]
    IfFree,
    /// At this address.
    At(SocketAddr),
    /// On the control socket alone.
    Off,
}

/// Which node a pod network is reached through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReturnRoute {
    /// The pod network.
    pub pod_cidr: Ipv4Net,
    /// The node's address on the inside network.
    pub via: Ipv4Addr,
}

/// How the Kubernetes API is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// Path of the kubeconfig; none: `KUBECONFIG`, `~/.kube/config`, or the service account of a pod.
    pub kubeconfig: Option<PathBuf>,
}

/// Why a config file was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the config file")]
    Read(#[source] std::io::Error),
    /// The file is not TOML, or has keys or types that are not known.
    #[error("{0}")]
    Syntax(Box<toml::de::Error>),
    /// A value is not accepted.
    #[error("{key}: {message}")]
    Value {
        /// Key of the value.
        key: String,
        /// The value, and what would be accepted.
        message: String,
    },
}

impl ConfigError {
    fn value(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Value { key: key.into(), message: message.into() }
    }
}

impl Config {
    /// Reads and checks a config file.
    ///
    /// # Errors
    /// When it cannot be read or is refused.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(ConfigError::Read)?;
        Self::parse(&text, &usable_cores())
    }

    /// Reads and checks the text of a config file, for a machine with these cores.
    ///
    /// # Errors
    /// When it is refused, naming the key, the value and what would be accepted.
    pub fn parse(text: &str, usable_cores: &[usize]) -> Result<Self, ConfigError> {
        let file: file::File = toml::from_str(text).map_err(|error| ConfigError::Syntax(Box::new(error)))?;
        check::check(file, usable_cores)
    }
}

/// Returns the schema of a config file, which the reference of its keys is made from.
pub(crate) fn schema() -> serde_json::Value {
    schemars::SchemaGenerator::default().into_root_schema_for::<file::File>().to_value()
}

fn usable_cores() -> Vec<usize> {
    let own = nix::unistd::Pid::from_raw(0);
    match nix::sched::sched_getaffinity(own) {
        Ok(set) => (0..nix::sched::CpuSet::count()).filter(|core| set.is_set(*core) == Ok(true)).collect(),
        Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
    }
}

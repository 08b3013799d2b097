//! Everything that the checks judge, as it was gathered.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use fastpath::snapshot::Side;
use macaddr::MacAddr6;

use crate::api::types::Status;
use crate::config::Config;
use crate::netlink::facts::{Facts, Interfaces};
use crate::tenant::Tenant;

/// A fact, or why it is not known.
pub type Known<T> = Result<T, String>;

/// Everything that the checks judge. What is not known skips the checks that need it, and no others.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Path of the config file.
    pub config_path: PathBuf,
    /// The config file.
    pub config: Known<Config>,
    /// What the daemon says of itself.
    pub status: Result<Status, Silence>,
    /// The same, asked again at the end.
    pub later: Result<Status, Silence>,
    /// Tenants of the daemon; where none answers, those that it would start with.
    pub tenants: Known<Vec<Tenant>>,
    /// The daemon's process; where none answers, this one.
    pub process: Known<Process>,
    /// The host's part in running the daemon.
    pub host: Host,
    /// Links, addresses, routes and neighbours.
    pub kernel: Known<Facts>,
    /// Kernel settings, by their path below `/proc/sys`; those that cannot be read are missing.
    pub settings: BTreeMap<String, String>,
    /// Settings that Spillway has changed and not restored, with the values that it gave them.
    pub isolated: Known<Vec<(String, String)>>,
    /// Rx queues of the inside and of the outside interface.
    pub queues: Known<[u32; 2]>,
    /// Answers to ARP probes.
    pub answers: Answers,
    /// Whether the kernel's clock is synchronised.
    pub clock: Known<bool>,
    /// The Kubernetes API.
    pub cluster: Cluster,
}

/// Why the daemon does not say anything of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Nobody listens on the control socket.
    NoDaemon(String),
    /// This user may not ask it.
    Forbidden(String),
    /// It does not answer as it should.
    NoAnswer(String),
}

/// A process, as far as it matters whether the daemon can work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Whether it is the daemon's; else it is this one.
    pub is_daemon: bool,
    /// Effective capabilities, a bit each.
    pub capabilities: u64,
    /// Most memory that it may lock, in bytes; none: no limit.
    pub lockable: Option<u64>,
    /// Whether it is in this process's network namespace.
    pub shares_network: bool,
}

/// The host's part in running the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Interfaces that a daemon in this network namespace holds.
    pub held: Vec<String>,
    /// Names of the programs that are pinned.
    pub pins: Known<Vec<String>>,
    /// Whether the pins are, or would be, on a bpffs.
    pub is_bpffs: Known<bool>,
    /// Why state cannot be written; none: it can.
    pub state: Known<Option<String>>,
}

/// Answers to ARP probes, by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Those on the inside interface.
    pub inside: Known<Vec<ArpAnswer>>,
    /// Those on the outside interface.
    pub outside: Known<Vec<ArpAnswer>>,
}

impl Answers {
    /// Returns those of one side.
    pub fn on(&self, side: Side) -> &Known<Vec<ArpAnswer>> {
        match side {
            Side::Inside => &self.inside,
            Side::Outside => &self.outside,
        }
    }
}

/// Somebody answered an ARP probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArpAnswer {
    /// Side that it was heard on.
    pub side: Side,
    /// Address that was asked for.
    pub address: Ipv4Addr,
    /// Who has it.
    pub mac: MacAddr6,
}

/// What is known of the Kubernetes API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// The config file does not ask for it, or is not known.
    NotAsked(String),
    /// No client could be made of the kubeconfig.
    NoCredentials(String),
    /// It did not answer.
    Unreachable(String),
    /// It refused the credentials.
    Refused(String),
    /// It answered.
    Answers(ClusterAnswers),
}

/// What the Kubernetes API said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterAnswers {
    /// The server.
    pub server: String,
    /// Seconds by which its clock is ahead of this one's.
    pub seconds_ahead: Known<i64>,
    /// Whether the EgressTenant kind is installed.
    pub has_tenants: Known<bool>,
    /// Whether the AdminPolicyBasedExternalRoute kind is installed.
    pub has_policies: Known<bool>,
    /// What Spillway may do: for each of [`super::cluster::NEEDS`], in order.
    pub allowed: Vec<Known<bool>>,
}

impl Evidence {
    /// Returns the names of the two interfaces.
    ///
    /// # Errors
    /// When the config file is not known.
    pub fn interfaces(&self) -> Known<Interfaces> {
        let config = self.config()?;
        Ok(Interfaces { inside: config.inside.clone(), outside: config.outside.clone() })
    }

    /// Returns the config file.
    ///
    /// # Errors
    /// When it is not known.
    pub fn config(&self) -> Known<&Config> {
        self.config.as_ref().map_err(|_| "the config file is not usable".to_owned())
    }

    /// Returns what the daemon says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Known<&Status> {
        self.status.as_ref().map_err(|silence| {
            let reason = match silence {
                Silence::NoDaemon(_) => "no daemon answers",
                Silence::Forbidden(_) => "this user may not ask the daemon; run it as root",
                Silence::NoAnswer(_) => "the daemon does not answer as it should",
            };
            reason.to_owned()
        })
    }

    /// Returns links, addresses, routes and neighbours.
    ///
    /// # Errors
    /// When they are not known.
    pub fn kernel(&self) -> Known<&Facts> {
        self.kernel.as_ref().map_err(Clone::clone)
    }

    /// Returns the tenants.
    ///
    /// # Errors
    /// When they are not known.
    pub fn tenants(&self) -> Known<&[Tenant]> {
        self.tenants.as_deref().map_err(Clone::clone)
    }
}

//! What the control loop tells of the gateway at one moment.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use conntrack::TenantId;
use fastpath::report::{EgressReport, Report};
use fastpath::snapshot::Side;
use fastpath::succession::Inheritance;

use super::ports::PortUsage;
use crate::vitals::Fitness;

/// Everything that metrics are made of.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When the daemon started.
    pub started: SystemTime,
    /// Number of the newest snapshot.
    pub epoch_wanted: u32,
    /// Number of the newest snapshot that every worker uses.
    pub epoch_applied: u32,
    /// What became of the sessions of the process before; none when they do not outlive it.
    pub inheritance: Option<Inheritance>,
    /// What the data plane counts.
    pub report: Report,
    /// Egress addresses of all tenants.
    pub egress: Vec<EgressReport>,
    /// Ports that are taken.
    pub ports: Arc<PortUsage>,
    /// Tenants, by name.
    pub tenants: Vec<TenantSample>,
    /// The two interfaces, inside first.
    pub interfaces: [InterfaceSample; 2],
    /// What is known of the cluster; none when the Kubernetes API is not asked.
    pub cluster: Option<ClusterSample>,
}

/// A tenant.
#[derive(Clone, Debug)]
pub struct TenantSample {
    /// Its number in the report.
    pub id: TenantId,
    /// Its name.
    pub name: String,
    /// Outside ports that it has.
    pub ports: u32,
    /// Whether the kernel or the fast path refused something that it needs.
    pub is_troubled: bool,
}

/// One of the two interfaces.
#[derive(Clone, Debug)]
pub struct InterfaceSample {
    /// Side.
    pub side: Side,
    /// Name.
    pub name: String,
    /// Whether it is usable.
    pub is_up: bool,
    /// Times that its sockets were opened anew.
    pub reattachments: u64,
    /// Times that somebody else took its XDP program, or what belongs to it.
    pub disturbances: u64,
    /// Next hops of routes that have no hardware address.
    pub unresolved: usize,
}

/// What is known of the cluster.
#[derive(Clone, Debug)]
pub struct ClusterSample {
    /// Time since the API last answered; none: it has not yet.
    pub age: Option<Duration>,
    /// Whether it answers.
    pub is_answering: bool,
    /// Kinds of objects, how many there are, and whether they are followed.
    pub kinds: Vec<(&'static str, usize, bool)>,
    /// Tenants that are refused.
    pub refused_tenants: usize,
    /// Objects that are not as they should be.
    pub notices: usize,
}

/// Whether the gateway lives and is ready.
#[derive(Clone, Debug)]
pub struct Wellbeing {
    /// Whether every worker and the control loop turn.
    pub health: Fitness,
    /// Whether it serves as it should.
    pub readiness: Fitness,
}

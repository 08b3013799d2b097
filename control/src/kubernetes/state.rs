//! What crosses between the cluster's side and the gateway's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use conntrack::Epoch;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::ReturnRoute;
use crate::tenant::Tenant;

/// What the cluster asks of the gateway. Compiled from whole lists only, and kept in the state file as the last good
/// state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterState {
    /// Return routes, by node. Networks do not overlap.
    pub routes: BTreeMap<String, Vec<ReturnRoute>>,
    /// Addresses of nodes, refused ones too, by node: the sources of tenants that take nodes.
    pub node_addresses: BTreeMap<String, Ipv4Addr>,
    /// Tenants that were read, oldest first; of two that want the same thing the first has it.
    pub tenants: Vec<ClusterTenant>,
    /// What is routed to each gateway address in use.
    pub links: BTreeMap<Ipv4Addr, Link>,
    /// Live pods that are routed to them, by address. Not kept in the state file.
    #[serde(skip)]
    pub pods: BTreeMap<Ipv4Addr, PodName>,
    /// Whether all nodes were listed since the daemon started: routes that are not named here may then be removed.
    #[serde(skip)]
    pub are_nodes_listed: bool,
    /// Whether all tenants were listed since the daemon started.
    #[serde(skip)]
    pub are_tenants_listed: bool,
}

/// A tenant from the cluster, whose specification could be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterTenant {
    /// Identity of the object: another object of the same name has another.
    pub uid: String,
    /// Generation of the specification.
    pub generation: i64,
    /// The tenant.
    pub tenant: Tenant,
}

/// Policies, namespaces and pods whose traffic goes to one gateway address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Link {
    /// Names of the AdminPolicyBasedExternalRoutes.
    pub policies: BTreeSet<String>,
    /// Addresses of live pods, by namespace; an address is in one namespace only.
    pub namespaces: BTreeMap<String, BTreeSet<Ipv4Addr>>,
}

impl Link {
    /// Returns the addresses of all live pods.
    pub fn pods(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.namespaces.values().flatten().copied()
    }
}

/// A pod by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Its node, if it has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
}

/// What the gateway made of the cluster's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// All tenants of the registry, whatever their source, by name.
    pub tenants: BTreeMap<String, TenantOutcome>,
    /// Tenants of the cluster that were refused, by name.
    pub refused: BTreeMap<String, RefusedTenant>,
    /// Next hops of tenants that are removed and drain: their sessions go on only while their pods are sources.
    pub draining: BTreeSet<Ipv4Addr>,
    /// The newest snapshot that every worker uses.
    pub applied: Epoch,
}

impl Outcome {
    /// Tells whether another outcome has the same tenants and refusals, whatever it counts: these are all that matter to
    /// what the cluster asks for.
    pub fn has_tenants_of(&self, other: &Self) -> bool {
        fn tenants(of: &Outcome) -> impl Iterator<Item = (&String, Ipv4Addr, &Option<ObjectVersion>)> {
            of.tenants.iter().map(|(name, tenant)| (name, tenant.gateway_ip, &tenant.object))
        }
        tenants(self).eq(tenants(other))
            && (&self.refused, &self.draining) == (&other.refused, &other.draining)
    }
}

/// A tenant that the gateway has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantOutcome {
    /// The next hop that it has.
    pub gateway_ip: Ipv4Addr,
    /// Hardware address of the next hop.
    pub gateway_mac: String,
    /// Whether it takes live pods as sources.
    pub from_policy: bool,
    /// The object that it is of; none when it does not come from the cluster.
    pub object: Option<ObjectVersion>,
    /// Snapshot with which the fast path learned of this version.
    pub epoch: Epoch,
    /// Why the kernel or the fast path does not have all that it needs; none when they do.
    pub trouble: Option<String>,
    /// Sessions now.
    pub sessions: u64,
    /// Packets dropped since it last changed because they came from a node where pods are the sources, or from a pod
    /// where nodes are.
    pub mismatched: Mismatched,
}

/// Packets that came from another kind of source than the tenant takes, since it last changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mismatched {
    /// From nodes.
    pub from_nodes: u64,
    /// From pods, where the tenant takes nodes.
    pub from_pods: u64,
}

impl Mismatched {
    /// Returns what was added since an earlier count.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            from_nodes: self.from_nodes.saturating_sub(earlier.from_nodes),
            from_pods: self.from_pods.saturating_sub(earlier.from_pods),
        }
    }
}

/// One version of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectVersion {
    /// Identity of the object.
    pub uid: String,
    /// Generation of its specification.
    pub generation: i64,
}

/// A tenant of the cluster that the registry refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedTenant {
    /// The object that was refused.
    pub object: ObjectVersion,
    /// Whether it is in conflict with another tenant or the host, rather than out of bounds.
    pub is_conflict: bool,
    /// Field, value and what would be accepted.
    pub message: String,
}

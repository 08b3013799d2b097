//! What is kept of each object of the API: small, and read once, when it arrives.
//!
//! An object that cannot be understood is kept with the reason: it is refused by itself, and stops no other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::jiff::Timestamp;

use super::egress_tenant::EgressTenantStatus;
use crate::refusal::Refusal;
use crate::tenant::Tenant;

/// What every object has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Name.
    pub name: String,
    /// Namespace, of objects that are in one.
    pub namespace: Option<String>,
    /// Identity: another object of the same name has another.
    pub uid: String,
    /// When it was made; none: not known, which counts as newest.
    pub created: Option<Timestamp>,
}

/// A node, as far as return routes are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeObject {
    /// Which one.
    pub identity: Identity,
    /// IPv4 pod networks of the default network; empty: the node has none yet. Or what cannot be read, naming the field.
    pub pod_cidrs: Result<Vec<Ipv4Net>, Refusal>,
    /// Addresses that may be its next hop, in order of preference.
    pub addresses: Result<Vec<Ipv4Addr>, Refusal>,
}

/// An EgressTenant.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantObject {
    /// Which one.
    pub identity: Identity,
    /// Generation of its specification.
    pub generation: i64,
    /// Whether it is being deleted and waits for finalizers.
    pub is_deleted: bool,
    /// The tenant, or what cannot be read, naming the field.
    pub tenant: Result<Tenant, Refusal>,
    /// The status that it has in the API; none: none, or one that cannot be read.
    pub status: Option<EgressTenantStatus>,
}

/// An AdminPolicyBasedExternalRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyObject {
    /// Which one.
    pub identity: Identity,
    /// What it says, or what cannot be read, naming the field.
    pub policy: Result<ExternalRoute, Refusal>,
}

/// What a policy says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExternalRoute {
    /// Namespaces whose pods it concerns.
    pub namespaces: LabelSelector,
    /// Static IPv4 next hops. Dynamic ones are pods of the cluster, never this gateway.
    pub next_hops: BTreeSet<Ipv4Addr>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceObject {
    /// Which one.
    pub identity: Identity,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodObject {
    /// Which one.
    pub identity: Identity,
    /// IPv4 addresses of the default network that packets may come from now; none when it is finished, or uses its node's.
    pub addresses: BTreeSet<Ipv4Addr>,
}

//! The custom resource that names a tenant: `EgressTenant`, cluster-scoped, `spillway.dev/v1alpha1`.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use macaddr::MacAddr6;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::{Filtering, Limits, Mapping};
use crate::refusal::Refusal;
use crate::tenant::{Sources, Tenant};

/// A tenant of the egress gateway: where its traffic comes in and which addresses it leaves with.
#[derive(Clone, Debug, PartialEq, Eq, CustomResource, JsonSchema, Serialize, Deserialize)]
#[kube(
    group = "spillway.dev",
    version = "v1alpha1",
    kind = "EgressTenant",
    plural = "egresstenants",
    status = "EgressTenantStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressTenantSpec {
    /// Next hop of the tenant's AdminPolicyBasedExternalRoute; an unused address of the gateway's inside network.
    #[serde(rename = "gatewayIP")]
    pub gateway_ip: Ipv4Addr,
    /// Hardware address of the next hop; empty: derived from gatewayIP.
    #[serde(rename = "gatewayMAC", default)]
    pub gateway_mac: String,
    /// Addresses that the tenant's traffic leaves with; a pod keeps one of them for all its sessions.
    #[serde(rename = "egressIPs")]
    pub egress_ips: Vec<Ipv4Addr>,
    /// Source addresses that the tenant may use.
    #[serde(default)]
    pub sources: SourcesSpec,
    /// How outside ports are chosen (RFC 4787 section 4.1).
    #[serde(default)]
    pub mapping: Mapping,
    /// Who may send to an outside port that a pod has opened (RFC 4787 section 5).
    #[serde(default)]
    pub filtering: Filtering,
    /// Bounds on the tenant's sessions; 0: none.
    #[serde(default)]
    pub limits: Limits,
    /// Greatest TCP segment that connections may agree on, in bytes; 0: as the ends like.
    #[serde(default)]
    pub mss_clamp: u16,
    /// Seconds for which sessions that live go on when the tenant is deleted.
    #[serde(default)]
    pub drain_seconds: u32,
}

/// Source addresses that a tenant may use; at most one of the three. None: the cluster's pod networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourcesSpec {
    /// Pod networks.
    #[serde(rename = "podCIDRs", default)]
    #[schemars(with = "Vec<String>")]
    pub pod_cidrs: Vec<Ipv4Net>,
    /// Exactly the live pods of the namespaces whose policies route to gatewayIP.
    #[serde(default)]
    pub from_policy: bool,
    /// The cluster's nodes, for clusters that translate pods to their node's address.
    #[serde(default)]
    pub nodes: bool,
}

impl EgressTenantSpec {
    /// Returns the tenant that is specified.
    ///
    /// # Errors
    /// When a value cannot be read, naming its field. Whether the values are sound is for [`Tenant::check`].
    pub fn into_tenant(self, name: &str) -> Result<Tenant, Refusal> {
        let SourcesSpec { pod_cidrs, from_policy, nodes } = self.sources;
        Ok(Tenant {
            name: name.to_owned(),
            gateway_ip: self.gateway_ip,
            gateway_mac: read_mac(&self.gateway_mac)?,
            egress_ips: self.egress_ips,
            sources: Sources { pod_cidrs, from_policy, nodes },
            mapping: self.mapping,
            filtering: self.filtering,
            limits: self.limits,
            mss_clamp: self.mss_clamp,
            drain_seconds: self.drain_seconds,
        })
    }
}

fn read_mac(text: &str) -> Result<Option<MacAddr6>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Refusal::Malformed {
        field: "spec.gatewayMAC".into(),
        message: format!("{text:?} is no MAC; write it as 02:53:c0:a8:63:0d, or leave it empty to derive it"),
    })
}

/// What became of a tenant.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EgressTenantStatus {
    /// `Accepted`: the specification is sound and conflicts with nothing. `Programmed`: every worker forwards by it.
    /// `Routed`: a policy routes namespaces to it. `SourcesMatch`: what arrives is what `sources` says.
    pub conditions: Vec<Condition>,
    /// Generation of the specification that the conditions are about.
    pub observed_generation: i64,
    /// Hardware address of the next hop, set or derived.
    #[serde(rename = "gatewayMAC")]
    pub gateway_mac: String,
    /// Configuration snapshot with which every worker took this specification.
    pub applied_epoch: i64,
    /// Sessions, refreshed at most every 30 s.
    pub sessions: i64,
    /// Policies that route to gatewayIP, by name.
    pub policies: Vec<String>,
    /// Namespaces that they select, by name; the first 100.
    pub namespaces: Vec<NamespaceStatus>,
    /// All namespaces that they select.
    pub namespace_count: i64,
    /// Live pods of all these namespaces.
    pub pod_count: i64,
}

/// A namespace whose traffic is routed to a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NamespaceStatus {
    /// Its name.
    pub name: String,
    /// Its live pods.
    pub pods: i64,
}

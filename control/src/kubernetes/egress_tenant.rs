//! The custom resource that names a tenant: `EgressTenant`, cluster-scoped, `spillway.dev/v1alpha1`.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, CustomResourceExt};
use macaddr::MacAddr6;
use schemars::JsonSchema;
use schemars::transform::RecursiveTransform;
use serde::{Deserialize, Serialize};

use super::schema;
use crate::policy::{Filtering, Limits, Mapping};
use crate::refusal::Refusal;
use crate::tenant::{Sources, Tenant};

/// The most egress addresses that an EgressTenant may list.
pub const MAX_EGRESS_IPS: usize = 256;
/// The most pod networks that an EgressTenant may list.
pub const MAX_POD_CIDRS: usize = 256;

/// What an EgressTenant asks for.
#[expect(clippy::duplicated_attributes, reason = "each printcolumn has a type, and types repeat")]
#[derive(Clone, Debug, PartialEq, Eq, CustomResource, JsonSchema, Serialize, Deserialize)]
#[kube(
    group = "spillway.dev",
    version = "v1alpha1",
    kind = "EgressTenant",
    plural = "egresstenants",
    shortname = "egt",
    category = "spillway",
    doc = "A tenant of the egress gateway: where its traffic comes in and which addresses it leaves with.",
    status = "EgressTenantStatus",
    derive = "PartialEq",
    printcolumn(name = "Gateway", type_ = "string", json_path = ".spec.gatewayIP"),
    printcolumn(name = "Egress", type_ = "string", json_path = ".spec.egressIPs"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(
        name = "Routed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Routed\")].status"
    ),
    printcolumn(name = "Sessions", type_ = "integer", json_path = ".status.sessions"),
    printcolumn(name = "Namespaces", type_ = "integer", json_path = ".status.namespaceCount", priority = 1),
    printcolumn(name = "Pods", type_ = "integer", json_path = ".status.podCount", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(transform = RecursiveTransform(schema::sign_integers))]
#[schemars(extend("x-kubernetes-validations" = schema::spec_rules()))]
pub struct EgressTenantSpec {
    /// Next hop of the tenant's AdminPolicyBasedExternalRoute: an unused address of the gateway's inside network. It
    /// belongs to this tenant alone.
    #[serde(rename = "gatewayIP")]
    #[schemars(schema_with = "schema::address")]
    pub gateway_ip: Ipv4Addr,
    /// Hardware address of the next hop; empty: 02:53 and the four bytes of gatewayIP. It has to be the same on every
    /// gateway that may serve the tenant.
    #[serde(rename = "gatewayMAC", default)]
    #[schemars(schema_with = "schema::mac")]
    pub gateway_mac: String,
    /// Addresses that the tenant's traffic leaves with; a pod keeps one of them for all its sessions. They belong to this
    /// tenant alone.
    #[serde(rename = "egressIPs")]
    #[schemars(schema_with = "schema::egress_ips")]
    pub egress_ips: Vec<Ipv4Addr>,
    /// Source addresses that the tenant may use: at most one of podCIDRs, fromPolicy and nodes. None: the pod networks in
    /// the gateway's config file.
    #[serde(default)]
    pub sources: SourcesSpec,
    /// How outside ports are chosen (RFC 4787 section 4.1). AddressAndPortDependent: a port for each session, which
    /// others use too, towards other destinations. EndpointIndependent: a port for each inside port, whatever the
    /// destination.
    #[serde(default)]
    #[schemars(extend("maxLength" = 32))]
    pub mapping: Mapping,
    /// Who may send to an outside port that a pod has opened (RFC 4787 section 5). AddressAndPortDependent: whom the pod
    /// has sent to. AddressDependent: any port of an address that the pod has sent to. EndpointIndependent: anybody. The
    /// last two need mapping EndpointIndependent.
    #[serde(default)]
    #[schemars(extend("maxLength" = 32))]
    pub filtering: Filtering,
    /// Bounds on the tenant's sessions; 0: none. What is over a bound is refused, and leaves what is there alone.
    #[serde(default)]
    pub limits: Limits,
    /// Greatest TCP segment that connections may agree on, 536 to 9000 bytes; 0: as the ends like.
    #[serde(default)]
    #[schemars(schema_with = "schema::mss_clamp")]
    pub mss_clamp: u16,
    /// Seconds for which sessions that live go on when the tenant is deleted; a week at most.
    #[serde(default)]
    #[schemars(schema_with = "schema::drain_seconds")]
    pub drain_seconds: u32,
}

/// Source addresses that a tenant may use; at most one of the three. None: the cluster's pod networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = schema::sources_rules()))]
pub struct SourcesSpec {
    /// Pod networks, written with their first address.
    #[serde(rename = "podCIDRs", default)]
    #[schemars(schema_with = "schema::pod_cidrs")]
    pub pod_cidrs: Vec<Ipv4Net>,
    /// Exactly the live pods of the namespaces whose policies route to gatewayIP.
    #[serde(default)]
    pub from_policy: bool,
    /// The cluster's nodes, for clusters that translate pods to their node's address.
    #[serde(default)]
    pub nodes: bool,
}

/// Returns the custom resource definition, as YAML.
///
/// # Errors
/// When it cannot be written as YAML.
pub fn crd_yaml() -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(&EgressTenant::crd())
}

impl EgressTenantSpec {
    /// Returns the tenant that is specified.
    ///
    /// # Errors
    /// When a value cannot be read, naming its field. Whether the values are sound is for [`Tenant::check`].
    pub fn into_tenant(self, name: &str) -> Result<Tenant, Refusal> {
        let SourcesSpec { pod_cidrs, from_policy, nodes } = self.sources;
        check_length("spec.egressIPs", self.egress_ips.len(), MAX_EGRESS_IPS)?;
        check_length("spec.sources.podCIDRs", pod_cidrs.len(), MAX_POD_CIDRS)?;
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

fn check_length(field: &str, length: usize, most: usize) -> Result<(), Refusal> {
    if length <= most {
        return Ok(());
    }
    Err(Refusal::invalid(field, format!("lists {length}; list at most {most}")))
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
#[schemars(transform = RecursiveTransform(schema::remove_defaults))]
pub struct EgressTenantStatus {
    /// Accepted: the specification is sound and conflicts with nothing. Programmed: every worker forwards by it.
    /// Routed: a policy routes namespaces to it. SourcesMatch: what arrives is what sources says.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
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
    /// Live pods of all these namespaces, refreshed at most every 30 s.
    pub pod_count: i64,
}

/// A namespace whose traffic is routed to a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NamespaceStatus {
    /// Its name.
    pub name: String,
    /// Its live pods, refreshed at most every 30 s.
    pub pods: i64,
}

//! What the schema of the custom resource says beyond the types: bounds, formats and rules that the API server checks.
//!
//! Strings and lists have a greatest length everywhere, which also keeps the estimated cost of the rules (CEL) low. The
//! rules use nothing newer than Kubernetes 1.25. `Tenant::check` refuses whatever gets past.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::egress_tenant::{MAX_EGRESS_IPS, MAX_POD_CIDRS};
use crate::tenant::{MAX_DRAIN_SECONDS, MSS_CLAMP};

/// Returns the schema of an IPv4 address.
pub(super) fn address(_: &mut SchemaGenerator) -> Schema {
    // Without the pattern the format takes IPv4 addresses that are written as IPv6 ones.
    json_schema!({ "type": "string", "format": "ipv4", "maxLength": 15, "pattern": "^[0-9.]+$" })
}

/// Returns the schema of `egressIPs`.
pub(super) fn egress_ips(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": address(generator),
        "minItems": 1,
        "maxItems": MAX_EGRESS_IPS,
        "x-kubernetes-list-type": "set",
    })
}

/// Returns the schema of `gatewayMAC`: empty, or a unicast address.
pub(super) fn mac(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 17,
        "pattern": "^([0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5})?$",
    })
}

/// Returns the schema of `sources.podCIDRs`.
pub(super) fn pod_cidrs(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": { "type": "string", "format": "cidr", "maxLength": 18, "pattern": "^[0-9.]+/[0-9]+$" },
        "maxItems": MAX_POD_CIDRS,
    })
}

/// Returns the schema of `mssClamp`.
pub(super) fn mss_clamp(_: &mut SchemaGenerator) -> Schema {
    let (least, most) = (MSS_CLAMP.start(), MSS_CLAMP.end());
    json_schema!({
        "type": "integer",
        "format": "int32",
        "minimum": 0,
        "maximum": most,
        "x-kubernetes-validations": rules([(
            &format!("self == 0 || self >= {least}"),
            &format!("is not between {least} and {most}; 0 is no clamp"),
        )]),
    })
}

/// Returns the schema of `drainSeconds`.
pub(super) fn drain_seconds(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 0, "maximum": MAX_DRAIN_SECONDS })
}

/// Returns the rules on a specification as a whole.
pub(super) fn spec_rules() -> Value {
    rules([
        (
            "!(self.gatewayIP in self.egressIPs)",
            "gatewayIP is also one of egressIPs; give an address of the outside network",
        ),
        (
            "self.filtering == 'AddressAndPortDependent' || self.mapping == 'EndpointIndependent'",
            "filtering other than AddressAndPortDependent needs mapping EndpointIndependent",
        ),
    ])
}

/// Returns the rule on sources.
pub(super) fn sources_rules() -> Value {
    rules([(
        "(size(self.podCIDRs) > 0 ? 1 : 0) + (self.fromPolicy ? 1 : 0) + (self.nodes ? 1 : 0) <= 1",
        "has more than one of podCIDRs, fromPolicy and nodes; give one, or none for the cluster's pod networks",
    )])
}

fn rules<const COUNT: usize>(rules: [(&str, &str); COUNT]) -> Value {
    rules.map(|(rule, message)| json!({ "rule": rule, "message": message })).into_iter().collect()
}

/// Gives integers the formats that the API knows: it warns of unsigned ones.
pub(super) fn sign_integers(schema: &mut Schema) {
    if schema.get("format").and_then(Value::as_str) == Some("uint32") {
        schema.insert("format".into(), "int64".into());
        schema.insert("maximum".into(), u32::MAX.into());
    }
}

/// Removes defaults: a status has what was written, and nothing else.
pub(super) fn remove_defaults(schema: &mut Schema) {
    schema.remove("default");
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;

//! AdminPolicyBasedExternalRoutes of k8s.ovn.org/v1 (OVN-Kubernetes: go-controller/pkg/crd/adminpolicybasedroute).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{DynamicObject, Selector};
use serde::Deserialize;
use serde_json::Value;

use super::{Identity, read_ipv4, read_section};
use crate::refusal::Refusal;

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
    pub namespaces: Selector,
    /// Static IPv4 next hops.
    pub next_hops: BTreeSet<Ipv4Addr>,
    /// Whether it has dynamic next hops too: pods of the cluster, never this gateway.
    pub has_dynamic_hops: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    from: From,
    #[serde(default)]
    next_hops: NextHops,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct From {
    namespace_selector: LabelSelector,
}

#[derive(Default, Deserialize)]
struct NextHops {
    #[serde(default, rename = "static")]
    fixed: Option<Vec<StaticHop>>,
    #[serde(default)]
    dynamic: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct StaticHop {
    ip: String,
}

impl PolicyObject {
    /// Reads a policy.
    pub fn read(object: &DynamicObject) -> Self {
        Self { identity: Identity::read(&object.metadata), policy: read_policy(&object.data) }
    }
}

fn read_policy(data: &Value) -> Result<ExternalRoute, Refusal> {
    let spec: Spec = read_section(data, "spec")?;
    let namespaces = Selector::try_from(spec.from.namespace_selector).map_err(|error| {
        let message = format!("{error}; use In or NotIn with values, Exists or DoesNotExist");
        Refusal::Malformed { field: "spec.from.namespaceSelector.matchExpressions".into(), message }
    })?;
    let hops = spec.next_hops.fixed.iter().flatten().enumerate();
    let next_hops: Result<_, Refusal> = hops
        .filter_map(|(index, hop)| {
            read_ipv4(&format!("spec.nextHops.static[{index}].ip"), &hop.ip).transpose()
        })
        .collect();
    let has_dynamic_hops = spec.next_hops.dynamic.is_some_and(|hops| !hops.is_empty());
    Ok(ExternalRoute { namespaces, next_hops: next_hops?, has_dynamic_hops })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kube::core::SelectorExt;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_policy_is_read() {
        let policy = read(&json!({
            "from": { "namespaceSelector": { "matchLabels": { "tenant": "blue" } } },
            "nextHops": {
                "static": [{ "ip": "192.168.99.13", "bfdEnabled": true }, { "ip": "fc00::13" }],
                "dynamic": [{ "podSelector": {}, "namespaceSelector": {} }],
            },
        }));
        let policy = policy.unwrap();
        assert_eq!(policy.next_hops, BTreeSet::from([Ipv4Addr::new(192, 168, 99, 13)]));
        assert!(policy.has_dynamic_hops);
        assert!(policy.namespaces.matches(&labels(&[("tenant", "blue"), ("env", "test")])));
        assert!(!policy.namespaces.matches(&labels(&[("tenant", "red")])));
    }

    #[test]
    fn selectors_are_those_of_kubernetes() {
        let expression = |operator: &str, values: &[&str]| {
            let values = if values.is_empty() { json!(null) } else { json!(values) };
            json!({ "matchExpressions": [{ "key": "tenant", "operator": operator, "values": values }] })
        };
        let table = [
            (json!({}), [true, true, true]),
            (expression("In", &["blue", "green"]), [true, false, false]),
            (expression("NotIn", &["blue"]), [false, true, true]),
            (expression("Exists", &[]), [true, true, false]),
            (expression("DoesNotExist", &[]), [false, false, true]),
        ];
        let namespaces = [labels(&[("tenant", "blue")]), labels(&[("tenant", "red")]), labels(&[])];
        for (selector, expected) in table {
            let policy = read(&json!({ "from": { "namespaceSelector": selector } })).unwrap();
            let selected = namespaces.each_ref().map(|labels| policy.namespaces.matches(labels));
            assert_eq!(selected, expected, "{selector}");
        }
    }

    #[test]
    fn policies_that_cannot_be_read_name_the_field() {
        let from = json!({ "namespaceSelector": {} });
        let operator = json!({ "matchExpressions": [{ "key": "a", "operator": "Near", "values": ["b"] }] });
        let table = [
            (json!({ "nextHops": {} }), "spec: missing field `from`"),
            (json!({ "from": {} }), "spec.from: missing field `namespaceSelector`"),
            (
                json!({ "from": { "namespaceSelector": operator } }),
                "spec.from.namespaceSelector.matchExpressions: ",
            ),
            (
                json!({ "from": from, "nextHops": { "static": [{ "ip": 7 }] } }),
                "spec.nextHops.static[0].ip: invalid type",
            ),
            (
                json!({ "from": from, "nextHops": { "static": [{ "ip": "x" }] } }),
                "spec.nextHops.static[0].ip: \"x\" is no address",
            ),
        ];
        for (spec, expected) in table {
            let refusal = read(&spec).unwrap_err().to_string();
            assert!(refusal.starts_with(expected), "{refusal:?} should start with {expected:?}");
        }
    }

    fn read(spec: &Value) -> Result<ExternalRoute, Refusal> {
        let object = json!({ "metadata": { "name": "ns-blue", "uid": "1" }, "spec": spec });
        PolicyObject::read(&serde_json::from_value(object).unwrap()).policy
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }
}

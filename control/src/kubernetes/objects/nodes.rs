//! Pod networks and addresses of nodes (OVN-Kubernetes: go-controller/pkg/util, `node_annotations.go` and
//! `subnet_annotations.go`).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Identity, annotation_field, read_ipv4};
use crate::refusal::Refusal;
use crate::tenant::check_network;

const NODE_SUBNETS: &str = "k8s.ovn.org/node-subnets";
const PRIMARY_ADDRESS: &str = "k8s.ovn.org/node-primary-ifaddr";
const HOST_CIDRS: &str = "k8s.ovn.org/host-cidrs";
/// Key of the cluster's own network in annotations; others are user-defined networks.
const DEFAULT_NETWORK: &str = "default";

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

/// What `k8s.ovn.org/node-primary-ifaddr` holds.
#[derive(Deserialize)]
struct PrimaryAddress {
    #[serde(default)]
    ipv4: String,
}

/// What `k8s.ovn.org/node-subnets` holds for a network: a list, or what single-stack clusters wrote before.
#[derive(Deserialize)]
#[serde(untagged)]
enum Subnets {
    Many(Vec<String>),
    One(String),
}

impl NodeObject {
    /// Reads a node. Whether it is ready plays no part: its pods may run on.
    pub fn read(node: &Node) -> Self {
        Self {
            identity: Identity::read(&node.metadata),
            pod_cidrs: read_pod_cidrs(node),
            addresses: read_addresses(node),
        }
    }
}

/// Reads the pod networks from where they are first: annotation, `spec.podCIDRs`, `spec.podCIDR`.
fn read_pod_cidrs(node: &Node) -> Result<Vec<Ipv4Net>, Refusal> {
    if let Some(texts) = annotated_subnets(node)? {
        let field = format!("{}.{DEFAULT_NETWORK}", annotation_field(NODE_SUBNETS));
        return read_networks(&field, &texts);
    }
    let Some(spec) = &node.spec else { return Ok(Vec::new()) };
    match spec.pod_cidrs.as_deref() {
        Some(texts) if !texts.is_empty() => read_networks("spec.podCIDRs", texts),
        Some(_) | None => match spec.pod_cidr.as_deref() {
            Some(text) if !text.is_empty() => Ok(read_network("spec.podCIDR", text)?.into_iter().collect()),
            Some(_) | None => Ok(Vec::new()),
        },
    }
}

fn annotated_subnets(node: &Node) -> Result<Option<Vec<String>>, Refusal> {
    const SHAPE: &str = r#"write {"default":["10.132.0.0/24"]}"#;
    let Some(mut networks) = read_annotation::<Map<String, Value>>(node, NODE_SUBNETS, SHAPE)? else {
        return Ok(None);
    };
    let malformed =
        |what: String| Refusal::Malformed { field: annotation_field(NODE_SUBNETS), message: what };
    if networks.is_empty() {
        return Err(malformed(format!("is an empty map; {SHAPE}")));
    }
    let Some(value) = networks.remove(DEFAULT_NETWORK) else { return Ok(None) };
    match serde_json::from_value(value.clone()) {
        Ok(Subnets::Many(texts)) if !texts.is_empty() => Ok(Some(texts)),
        Ok(Subnets::One(text)) => Ok(Some(vec![text])),
        Ok(Subnets::Many(_)) | Err(_) => {
            Err(malformed(format!("{DEFAULT_NETWORK:?} is {value}, no list of networks; {SHAPE}")))
        }
    }
}

fn read_networks(field: &str, texts: &[String]) -> Result<Vec<Ipv4Net>, Refusal> {
    let read = |(index, text): (usize, &String)| read_network(&format!("{field}[{index}]"), text);
    texts.iter().enumerate().filter_map(|entry| read(entry).transpose()).collect()
}

/// Reads a network of pods; none for IPv6.
fn read_network(field: &str, text: &str) -> Result<Option<Ipv4Net>, Refusal> {
    let network = match text.parse::<IpNet>() {
        Ok(IpNet::V4(network)) => network,
        Ok(IpNet::V6(_)) => return Ok(None),
        Err(_) => {
            let message = format!("{text:?} is no network; write it as 10.132.0.0/24");
            return Err(Refusal::Malformed { field: field.to_owned(), message });
        }
    };
    check_network(network).map_err(|message| Refusal::invalid(field, message))?;
    let first = network.addr();
    if first.is_unspecified() || first.is_loopback() || first.is_link_local() || first.octets()[0] >= 224 {
        return Err(Refusal::invalid(
            field,
            format!("{network} holds no pods; give a network of unicast addresses"),
        ));
    }
    Ok(Some(network))
}

/// Reads the addresses: the primary one, then those in the status, then all that the host has.
fn read_addresses(node: &Node) -> Result<Vec<Ipv4Addr>, Refusal> {
    let mut addresses: Vec<_> = primary_address(node)?.into_iter().chain(internal_addresses(node)?).collect();
    match host_addresses(node) {
        Ok(more) => addresses.extend(more),
        Err(refusal) if addresses.is_empty() => return Err(refusal),
        Err(_) => {} // The last resort only: the node has better addresses than these.
    }
    let mut known = BTreeSet::new();
    addresses.retain(|address| known.insert(*address));
    Ok(addresses)
}

fn primary_address(node: &Node) -> Result<Option<Ipv4Addr>, Refusal> {
    let shape = r#"write {"ipv4":"192.168.99.21/24"}"#;
    match read_annotation::<PrimaryAddress>(node, PRIMARY_ADDRESS, shape)? {
        Some(PrimaryAddress { ipv4 }) if !ipv4.is_empty() => {
            read_ipv4(&format!("{}.ipv4", annotation_field(PRIMARY_ADDRESS)), &ipv4)
        }
        Some(_) | None => Ok(None),
    }
}

fn internal_addresses(node: &Node) -> Result<Vec<Ipv4Addr>, Refusal> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten()).enumerate();
    addresses
        .filter(|(_, address)| address.type_ == "InternalIP")
        .filter_map(|(index, address)| {
            read_ipv4(&format!("status.addresses[{index}].address"), &address.address).transpose()
        })
        .collect()
}

fn host_addresses(node: &Node) -> Result<Vec<Ipv4Addr>, Refusal> {
    let texts = read_annotation::<Vec<String>>(node, HOST_CIDRS, r#"write ["192.168.99.21/24"]"#)?;
    let field = annotation_field(HOST_CIDRS);
    let texts = texts.iter().flatten().enumerate();
    texts.filter_map(|(index, text)| read_ipv4(&format!("{field}[{index}]"), text).transpose()).collect()
}

/// Reads an annotation that holds JSON; none when it is absent.
fn read_annotation<T: DeserializeOwned>(node: &Node, key: &str, shape: &str) -> Result<Option<T>, Refusal> {
    let Some(text) = node.annotations().get(key) else { return Ok(None) };
    serde_json::from_str(text).map(Some).map_err(|error| Refusal::Malformed {
        field: annotation_field(key),
        message: format!("{text:?} cannot be read ({error}); {shape}"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pod_networks_come_from_the_first_place_that_has_them() {
        let spec = json!({ "podCIDR": "10.132.8.0/24", "podCIDRs": ["10.132.9.0/24", "fd01::/64"] });
        let table = [
            (
                json!({ NODE_SUBNETS: r#"{"default":["10.132.0.0/23","fd01:0:0:2::/64"]}"# }),
                spec.clone(),
                "10.132.0.0/23",
            ),
            (
                json!({ NODE_SUBNETS: r#"{"default":"10.132.0.0/24","blue":["10.1.0.0/24"]}"# }),
                spec.clone(),
                "10.132.0.0/24",
            ),
            (
                json!({ NODE_SUBNETS: r#"{"default":["10.132.0.0/24"],"odd":7}"# }),
                spec.clone(),
                "10.132.0.0/24",
            ),
            (json!({ NODE_SUBNETS: r#"{"blue":["10.1.0.0/24"]}"# }), spec.clone(), "10.132.9.0/24"),
            (json!({}), spec, "10.132.9.0/24"),
            (json!({}), json!({ "podCIDR": "10.132.8.0/24" }), "10.132.8.0/24"),
            (json!({}), json!({ "podCIDR": "10.132.8.0/24", "podCIDRs": [] }), "10.132.8.0/24"),
        ];
        for (annotations, spec, expected) in table {
            let node = node(&annotations, &spec, &json!([]));
            assert_eq!(node.pod_cidrs, Ok(vec![expected.parse().unwrap()]), "{annotations} {spec}");
        }
    }

    #[test]
    fn a_node_may_have_no_ipv4_pod_network_yet() {
        let table = [
            (json!({}), json!({})),
            (json!({ NODE_SUBNETS: r#"{"blue":["10.1.0.0/24"]}"# }), json!({})),
            (
                json!({ NODE_SUBNETS: r#"{"default":["fd01:0:0:2::/64"]}"# }),
                json!({ "podCIDR": "10.132.8.0/24" }),
            ),
            (json!({}), json!({ "podCIDRs": ["fd01::/64"] })),
        ];
        for (annotations, spec) in table {
            assert_eq!(
                node(&annotations, &spec, &json!([])).pod_cidrs,
                Ok(Vec::new()),
                "{annotations} {spec}"
            );
        }
    }

    #[test]
    fn pod_networks_that_cannot_be_read_name_the_field() {
        let field = "metadata.annotations[k8s.ovn.org/node-subnets]";
        let table = [
            (r"{}", format!("{field}: is an empty map")),
            (r#"{"default":[]}"#, format!("{field}: \"default\" is [], no list of networks")),
            (r#"{"default":null}"#, format!("{field}: \"default\" is null, no list")),
            (r#"{"default":[7]}"#, format!("{field}: \"default\" is [7], no list")),
            (r#"{"default""#, format!("{field}: \"{{\\\"default\\\"\" cannot be read (EOF")),
            (r#"["10.132.0.0/24"]"#, format!("{field}: ")),
            (
                r#"{"default":["fd01::/64","10.132.0.0"]}"#,
                format!("{field}.default[1]: \"10.132.0.0\" is no network"),
            ),
            (
                r#"{"default":["10.132.0.5/24"]}"#,
                format!("{field}.default[0]: 10.132.0.5/24 has host bits set; write"),
            ),
            (r#"{"default":"0.0.0.0/0"}"#, format!("{field}.default[0]: 0.0.0.0/0 holds no pods")),
            (r#"{"default":"224.0.0.0/24"}"#, format!("{field}.default[0]: 224.0.0.0/24 holds no pods")),
        ];
        for (annotation, expected) in table {
            let annotations = json!({ NODE_SUBNETS: annotation });
            let node = node(&annotations, &json!({ "podCIDR": "10.132.8.0/24" }), &json!([]));
            let refusal = node.pod_cidrs.unwrap_err().to_string();
            assert!(refusal.starts_with(&expected), "{refusal:?} should start with {expected:?}");
        }
    }

    #[test]
    fn addresses_are_in_order_of_preference_and_named_once() {
        let annotations = json!({
            PRIMARY_ADDRESS: r#"{"ipv4":"192.168.99.21/24","ipv6":"fc00::21/64"}"#,
            HOST_CIDRS: r#"["192.168.77.23/24","192.168.99.21/24","fc00::21/64"]"#,
        });
        let status = json!([
            { "type": "Hostname", "address": "w1" },
            { "type": "InternalIP", "address": "10.0.0.21" },
            { "type": "InternalIP", "address": "fc00::21" },
            { "type": "ExternalIP", "address": "203.0.113.5" },
        ]);
        let expected = ["192.168.99.21", "10.0.0.21", "192.168.77.23"].map(|text| text.parse().unwrap());
        assert_eq!(node(&annotations, &json!({}), &status).addresses, Ok(expected.to_vec()));
    }

    #[test]
    fn addresses_may_be_absent() {
        let table = [
            json!({}),
            json!({ PRIMARY_ADDRESS: "{}" }),
            json!({ PRIMARY_ADDRESS: r#"{"ipv4":""}"# }),
            json!({ PRIMARY_ADDRESS: r#"{"ipv6":"fc00::21/64"}"# }),
        ];
        for annotations in table {
            assert_eq!(node(&annotations, &json!({}), &json!([])).addresses, Ok(Vec::new()), "{annotations}");
        }
    }

    #[test]
    fn addresses_that_cannot_be_read_name_the_field() {
        let table = [
            (
                json!({ PRIMARY_ADDRESS: "192.168.99.21" }),
                "metadata.annotations[k8s.ovn.org/node-primary-ifaddr]: ",
            ),
            (
                json!({ PRIMARY_ADDRESS: r#"{"ipv4":"x"}"# }),
                "metadata.annotations[k8s.ovn.org/node-primary-ifaddr].ipv4: \"x\" is no address",
            ),
            (
                json!({ HOST_CIDRS: r#"["x"]"# }),
                "metadata.annotations[k8s.ovn.org/host-cidrs][0]: \"x\" is no address",
            ),
        ];
        for (annotations, expected) in table {
            let refusal = node(&annotations, &json!({}), &json!([])).addresses.unwrap_err().to_string();
            assert!(refusal.starts_with(expected), "{refusal:?} should start with {expected:?}");
        }
    }

    #[test]
    fn the_last_resort_does_not_spoil_better_addresses() {
        let annotations = json!({ HOST_CIDRS: "broken" });
        let status = json!([{ "type": "InternalIP", "address": "192.168.99.21" }]);
        let node = node(&annotations, &json!({}), &status);
        assert_eq!(node.addresses, Ok(vec![[192, 168, 99, 21].into()]));
    }

    fn node(annotations: &Value, spec: &Value, addresses: &Value) -> NodeObject {
        let node = json!({
            "metadata": { "name": "w1", "uid": "1", "annotations": annotations },
            "spec": spec,
            "status": { "addresses": addresses },
        });
        NodeObject::read(&serde_json::from_value(node).unwrap())
    }
}

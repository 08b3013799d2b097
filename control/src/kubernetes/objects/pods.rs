//! Addresses of live pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::ResourceExt;
use serde::Deserialize;
use serde_json::Value;

use super::{Identity, read_ipv4};

/// Where OVN-Kubernetes writes a pod's addresses before the pod starts.
const POD_NETWORKS: &str = "k8s.ovn.org/pod-networks";

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodObject {
    /// Which one.
    pub identity: Identity,
    /// IPv4 addresses of the default network that packets may come from now; none when it is finished, or uses its node's.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Whether the addresses are announced by annotation only, which people may write, and the status has none yet.
    pub is_announced: bool,
    /// Name of its node, once it has one.
    pub node: Option<String>,
}

/// What `k8s.ovn.org/pod-networks` holds for a network, as far as addresses are concerned.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PodNetwork {
    ip_addresses: Vec<String>,
    ip_address: String,
}

impl PodObject {
    /// Reads a pod. One that is being deleted is live until it is gone: it may still finish its connections.
    pub fn read(pod: &Pod) -> Self {
        let identity = Identity::read(&pod.metadata);
        if !is_live(pod) {
            return Self { identity, addresses: BTreeSet::new(), is_announced: false, node: None };
        }
        let assigned = pod.status.as_ref().map(assigned_addresses).unwrap_or_default();
        let is_announced = assigned.is_empty();
        let addresses = if is_announced { announced_addresses(pod) } else { assigned };
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        Self { identity, addresses, is_announced, node }
    }
}

fn is_live(pod: &Pod) -> bool {
    let uses_its_nodes_address = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !uses_its_nodes_address && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn assigned_addresses(status: &PodStatus) -> BTreeSet<Ipv4Addr> {
    let all = status.pod_ips.iter().flatten().map(|pod_ip| pod_ip.ip.as_str());
    only_ipv4(all.chain(status.pod_ip.as_deref()))
}

fn announced_addresses(pod: &Pod) -> BTreeSet<Ipv4Addr> {
    let text = pod.annotations().get(POD_NETWORKS).map_or("", String::as_str);
    let mut networks: BTreeMap<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let network: PodNetwork =
        networks.remove("default").and_then(|value| serde_json::from_value(value).ok()).unwrap_or_default();
    only_ipv4(network.ip_addresses.iter().map(String::as_str).chain([network.ip_address.as_str()]))
}

/// Keeps what is IPv4: anything else adds no source, which is the safe side.
fn only_ipv4<'a>(texts: impl Iterator<Item = &'a str>) -> BTreeSet<Ipv4Addr> {
    texts.filter_map(|text| read_ipv4("", text).ok().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_come_from_the_status_then_from_the_announcement() {
        let announced = r#"{"default":{"ip_addresses":["10.132.0.5/23","fd01::5/64"],"ip_address":"10.132.0.5/23"},
                            "ns/blue":{"ip_addresses":["10.1.0.5/24"]}}"#;
        let older = r#"{"default":{"ip_address":"10.132.0.5/23","mac_address":"0a:58:0a:84:00:05"}}"#;
        let table: [(Option<&str>, Value, &[u8], bool); 7] = [
            (
                None,
                json!({ "podIPs": [{ "ip": "10.132.0.7" }, { "ip": "fd01::7" }], "podIP": "10.132.0.7" }),
                &[7],
                false,
            ),
            (None, json!({ "podIP": "10.132.0.8" }), &[8], false),
            (Some(announced), json!({ "phase": "Pending" }), &[5], true),
            (Some(older), json!({}), &[5], true),
            (Some(announced), json!({ "podIP": "10.132.0.8" }), &[8], false),
            (Some("broken"), json!({}), &[], true),
            (Some(r#"{"default":7}"#), json!({}), &[], true),
        ];
        for (annotation, status, expected, is_announced) in table {
            let pod = pod(annotation, false, &status);
            let expected = expected.iter().map(|last| Ipv4Addr::new(10, 132, 0, *last)).collect();
            assert_eq!(
                (pod.addresses, pod.is_announced),
                (expected, is_announced),
                "{annotation:?} {status}"
            );
        }
    }

    #[test]
    fn pods_that_are_finished_or_use_their_nodes_address_have_none() {
        let addresses = |host_network, phase: &str| {
            pod(None, host_network, &json!({ "phase": phase, "podIP": "10.132.0.8" })).addresses
        };
        assert_eq!(addresses(false, "Running").len(), 1);
        assert_eq!(addresses(false, "Succeeded").len(), 0);
        assert_eq!(addresses(false, "Failed").len(), 0);
        assert_eq!(addresses(true, "Running").len(), 0);
    }

    fn pod(annotation: Option<&str>, host_network: bool, status: &Value) -> PodObject {
        let pod = json!({
            "metadata": {
                "name": "p", "namespace": "ns-blue", "uid": "1",
                "annotations": annotation.map(|text| BTreeMap::from([(POD_NETWORKS, text)])),
                "deletionTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": { "hostNetwork": host_network, "containers": [] },
            "status": status,
        });
        PodObject::read(&serde_json::from_value(pod).unwrap())
    }
}

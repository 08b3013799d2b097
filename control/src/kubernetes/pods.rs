//! Names of the pods behind addresses, for people who ask who it was.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::objects::PodObject;
use super::state::{ClusterState, PodName};
use super::view::View;

/// Returns the pod of each address that is routed to a gateway address. Of two pods with the same address in a namespace
/// it is the newer one. Pods of a namespace that was not listed yet are those of the last good state.
pub(super) fn name(
    view: &View,
    state: &ClusterState,
    previous: &ClusterState,
) -> BTreeMap<Ipv4Addr, PodName> {
    let mut named = BTreeMap::new();
    for (namespace, addresses) in state.links.values().flat_map(|link| &link.namespaces) {
        match view.pods.get(namespace).and_then(Option::as_ref) {
            Some(pods) => {
                let mut oldest_first: Vec<_> = pods.values().map(AsRef::as_ref).collect();
                oldest_first.sort_by(|one: &&PodObject, other| one.identity.age().cmp(&other.identity.age()));
                for pod in oldest_first {
                    let linked = pod.addresses.intersection(addresses);
                    named.extend(linked.map(|address| (*address, describe(namespace, pod))));
                }
            }
            None => {
                let before = previous.pods.iter().filter(|(_, pod)| pod.namespace == *namespace);
                let linked = before.filter(|(address, _)| addresses.contains(address));
                named.extend(linked.map(|(address, pod)| (*address, pod.clone())));
            }
        }
    }
    named
}

fn describe(namespace: &str, pod: &PodObject) -> PodName {
    PodName { namespace: namespace.to_owned(), pod: pod.identity.name.clone(), node: pod.node.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::fixtures::{map, namespace, pod, policy, surroundings, tenant};
    use crate::kubernetes::state::Outcome;
    use crate::kubernetes::view::compile;

    fn view(pods: impl IntoIterator<Item = PodObject>) -> View {
        View {
            nodes: None,
            tenants: Some(map([tenant("ns-blue", 1, 13)])),
            policies: Some(map([policy("blue", "blue", &[13])])),
            namespaces: Some(map([namespace("ns-blue", "blue")])),
            pods: BTreeMap::from([("ns-blue".into(), Some(map(pods)))]),
        }
    }

    fn names(view: &View, previous: &ClusterState) -> Vec<(Ipv4Addr, String, Option<String>)> {
        let state = compile(view, previous, &surroundings(), &Outcome::default()).state;
        state.pods.into_iter().map(|(address, pod)| (address, pod.pod, pod.node)).collect()
    }

    #[test]
    fn an_address_has_the_name_of_its_newest_pod() {
        let on_node = PodObject { node: Some("w1".into()), ..pod("new", 7, 5) };
        let view = view([pod("old", 3, 5), on_node, pod("other", 1, 6)]);
        let expected = [
            ([10, 132, 0, 5].into(), "new".to_owned(), Some("w1".to_owned())),
            ([10, 132, 0, 6].into(), "other".to_owned(), None),
        ];
        assert_eq!(names(&view, &ClusterState::default()), expected);
    }

    #[test]
    fn pods_that_were_not_listed_yet_keep_their_names() {
        let listed = view([pod("web-0", 1, 5)]);
        let before = compile(&listed, &ClusterState::default(), &surroundings(), &Outcome::default()).state;
        let unlisted = View { pods: BTreeMap::new(), ..listed };
        assert_eq!(names(&unlisted, &before), [([10, 132, 0, 5].into(), "web-0".to_owned(), None)]);
    }
}

//! Everything that was read from the API, compiled purely into what the cluster asks of the gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use super::objects::{Identity, NamespaceObject, NodeObject, PodObject, PolicyObject, TenantObject};
use super::state::{ClusterState, Outcome};
use super::status::{self, Acceptance};
use super::{links, pods, routes, tenants};
use crate::config::ReturnRoute;

/// Objects of one kind, by name; none until they were listed once. While the API is away they stay as they were.
pub type Listed<T> = Option<BTreeMap<String, Arc<T>>>;

/// Everything that was read from the API.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Nodes.
    pub nodes: Listed<NodeObject>,
    /// EgressTenants.
    pub tenants: Listed<TenantObject>,
    /// AdminPolicyBasedExternalRoutes; an empty list where the cluster does not have this kind.
    pub policies: Listed<PolicyObject>,
    /// Namespaces.
    pub namespaces: Listed<NamespaceObject>,
    /// Pods of each namespace that is watched.
    pub pods: BTreeMap<String, Listed<PodObject>>,
}

/// What the gateway's own side says, which nodes and policies must agree with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Network of the inside interface, with the gateway's own address.
    pub inside: Ipv4Net,
    /// Network of the outside interface, with the gateway's own address.
    pub outside: Ipv4Net,
    /// Return routes of the config file, which come first.
    pub routes: Vec<ReturnRoute>,
    /// Next hops of the tenants that the gateway has, which no node may have.
    pub gateways: BTreeSet<Ipv4Addr>,
}

/// What was made of a view.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    /// What the cluster asks of the gateway.
    pub state: ClusterState,
    /// Namespaces whose pods have to be watched.
    pub pod_namespaces: BTreeSet<String>,
    /// What people should hear of, in a stable order; each is told once as long as it stays.
    pub notices: Vec<Notice>,
}

/// Something that people should hear of: logged, shown in the status, and told as an event of its object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// Kind of the object.
    pub kind: Kind,
    /// Name of the object.
    pub name: String,
    /// Identity of the object.
    pub uid: String,
    /// One word in CamelCase, such as `OverlappingPodCIDR`.
    pub reason: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Kinds of objects that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Node, of v1.
    Node,
    /// EgressTenant, of spillway.dev/v1alpha1.
    EgressTenant,
    /// AdminPolicyBasedExternalRoute, of k8s.ovn.org/v1.
    ExternalRoute,
    /// Namespace, of v1.
    Namespace,
    /// Pod, of v1.
    Pod,
}

impl Surroundings {
    /// Tells whether the gateway has said anything yet: the default is no network that an interface can have.
    pub fn are_known(&self) -> bool {
        self.inside.prefix_len() > 0
    }
}

impl Notice {
    /// Returns a notice on an object.
    pub fn new(kind: Kind, object: &Identity, reason: &'static str, message: String) -> Self {
        Self { kind, name: object.name.clone(), uid: object.uid.clone(), reason, message }
    }
}

/// Compiles a view.
///
/// Whatever was not listed yet is taken from `previous`, the last good state, so that nothing is done on half of a world.
pub fn compile(
    view: &View,
    previous: &ClusterState,
    surroundings: &Surroundings,
    outcome: &Outcome,
) -> Compiled {
    let mut state = ClusterState { are_nodes_listed: false, are_tenants_listed: false, ..previous.clone() };
    let mut notices = Vec::new();
    if let Some(nodes) = view.nodes.as_ref().filter(|_| surroundings.are_known()) {
        let compiled = routes::compile(nodes, previous, surroundings);
        (state.routes, state.node_addresses) = (compiled.routes, compiled.node_addresses);
        state.are_nodes_listed = true;
        notices.extend(compiled.notices);
    }
    if let Some(objects) = &view.tenants {
        state.tenants = tenants::compile(objects, previous);
        state.are_tenants_listed = true;
        notices.extend(objects.values().filter_map(|object| refusal(object, outcome)));
    }
    let compiled = links::compile(view, &state, previous, surroundings, outcome);
    state.links = compiled.links;
    state.pods = pods::name(view, &state, previous);
    notices.extend(compiled.notices);
    let namespaces = state.links.values().flat_map(|link| link.namespaces.keys());
    let pod_namespaces = namespaces.cloned().collect();
    notices.sort();
    Compiled { state, pod_namespaces, notices }
}

/// Returns a notice on a tenant that is not taken as it is.
fn refusal(object: &TenantObject, outcome: &Outcome) -> Option<Notice> {
    match status::acceptance(object, outcome) {
        Acceptance::Refused { reason, message } if !object.is_deleted => {
            let message = format!("tenant {}: {message}", object.identity.name);
            Some(Notice::new(Kind::EgressTenant, &object.identity, reason, message))
        }
        Acceptance::Refused { .. } | Acceptance::Accepted(_) | Acceptance::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::fixtures::{broken_tenant, map, namespace, pod, policy, surroundings, tenant};

    #[test]
    fn what_was_not_listed_yet_comes_from_the_last_good_state() {
        let previous =
            compile(&whole(), &ClusterState::default(), &surroundings(), &Outcome::default()).state;
        assert_eq!(previous.links[&gateway()].pods().count(), 1);
        let unlisted = compile(&View::default(), &previous, &surroundings(), &Outcome::default());
        let expected = ClusterState { are_nodes_listed: false, are_tenants_listed: false, ..previous };
        assert_eq!(unlisted.state, expected);
        assert_eq!(unlisted.pod_namespaces, BTreeSet::from(["ns-blue".to_owned()]));
        assert_eq!(unlisted.notices, []);
    }

    #[test]
    fn nodes_wait_until_the_gateway_says_its_networks() {
        let compiled =
            compile(&whole(), &ClusterState::default(), &Surroundings::default(), &Outcome::default());
        assert!(!compiled.state.are_nodes_listed && compiled.state.are_tenants_listed);
    }

    #[test]
    fn a_tenant_that_is_refused_is_told() {
        let view = View { tenants: Some(map([broken_tenant("ns-blue", 1)])), ..View::default() };
        let notices = compile(&view, &ClusterState::default(), &surroundings(), &Outcome::default()).notices;
        let told: Vec<_> = notices.iter().map(|notice| (notice.kind, notice.reason)).collect();
        assert_eq!(told, [(Kind::EgressTenant, "Invalid")]);
        assert!(notices[0].message.starts_with("tenant ns-blue: spec.egressIPs: is empty"), "{notices:?}");
    }

    #[test]
    fn an_empty_list_is_a_list() {
        let previous =
            compile(&whole(), &ClusterState::default(), &surroundings(), &Outcome::default()).state;
        let view = View { tenants: Some(BTreeMap::new()), nodes: Some(BTreeMap::new()), ..whole() };
        let state = compile(&view, &previous, &surroundings(), &Outcome::default()).state;
        assert!(state.tenants.is_empty() && state.are_tenants_listed && state.are_nodes_listed);
    }

    fn whole() -> View {
        View {
            nodes: Some(BTreeMap::new()),
            tenants: Some(map([tenant("ns-blue", 1, 13)])),
            policies: Some(map([policy("blue", "blue", &[13])])),
            namespaces: Some(map([namespace("ns-blue", "blue")])),
            pods: BTreeMap::from([("ns-blue".into(), Some(map([pod("p", 1, 5)])))]),
        }
    }

    fn gateway() -> Ipv4Addr {
        [192, 168, 99, 13].into()
    }
}

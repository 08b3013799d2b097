//! Links: which policies, namespaces and pods send their traffic to each gateway address.

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use kube::core::{Expression, Selector, SelectorExt};

use super::objects::{ExternalRoute, NamespaceObject, PodObject, PolicyObject};
use super::state::{ClusterState, Link, Outcome};
use super::view::{Kind, Notice, Surroundings, View};

/// Names that a message lists before it only counts.
const NAMES_IN_A_MESSAGE: usize = 3;

/// What was made of policies, namespaces and pods.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    /// What is routed to each gateway address in use.
    pub(super) links: BTreeMap<Ipv4Addr, Link>,
    /// What is wrong with policies.
    pub(super) notices: Vec<Notice>,
}

/// Compiles links for the gateway addresses that the tenants of `state`, or of the gateway, have.
pub(super) fn compile(
    view: &View,
    state: &ClusterState,
    previous: &ClusterState,
    surroundings: &Surroundings,
    outcome: &Outcome,
) -> Compiled {
    let gateways = gateways_in_use(state, previous, outcome);
    let mut compiled = Compiled::default();
    if let (Some(policies), Some(namespaces)) = (&view.policies, &view.namespaces) {
        let labelled = Labelled::new(namespaces);
        let routes = Routes::read(policies, &labelled, &(&gateways | &outcome.draining));
        compiled.notices.extend(routes.rivals(&labelled));
        compiled.links = routes.into_links();
        keep_unreadable(&mut compiled.links, policies, namespaces, previous, &gateways);
    } else {
        let is_in_use = |gateway| gateways.contains(gateway) || outcome.draining.contains(gateway);
        let in_use = previous.links.iter().filter(|(gateway, _)| is_in_use(gateway));
        compiled.links = in_use.map(|(gateway, link)| (*gateway, link.clone())).collect();
    }
    if let Some(policies) = &view.policies {
        let are_tenants_known = view.tenants.is_some() && is_known(outcome);
        compiled.notices.extend(policies.values().filter_map(|policy| match &policy.policy {
            Ok(route) if are_tenants_known => unknown_next_hop(policy, route, &gateways, surroundings),
            Ok(_) => None,
            Err(refusal) => Some(notice(policy, "MalformedPolicy", &refusal.to_string())),
        }));
        if view.namespaces.is_some() && view.tenants.is_some() {
            compiled.notices.extend(unrouted_tenants(state, &compiled.links));
        }
    }
    place_pods(&mut compiled.links, view, previous);
    compiled
}

/// Returns the gateway addresses of all tenants; before the gateway has said its own, those that it had.
fn gateways_in_use(state: &ClusterState, previous: &ClusterState, outcome: &Outcome) -> BTreeSet<Ipv4Addr> {
    let clusters = state.tenants.iter().map(|tenant| tenant.tenant.gateway_ip);
    let registered = outcome.tenants.values().map(|tenant| tenant.gateway_ip);
    let before = previous.links.keys().copied().filter(|_| !is_known(outcome));
    clusters.chain(registered).chain(before).collect()
}

/// Tells whether the gateway has said anything yet.
fn is_known(outcome: &Outcome) -> bool {
    *outcome != Outcome::default()
}

/// Namespaces, and those that have each label: most policies ask for one that few have.
struct Labelled<'a> {
    all: &'a BTreeMap<String, Arc<NamespaceObject>>,
    by_label: HashMap<(&'a str, &'a str), Vec<(&'a str, &'a NamespaceObject)>>,
}

impl<'a> Labelled<'a> {
    fn new(all: &'a BTreeMap<String, Arc<NamespaceObject>>) -> Self {
        let mut by_label = HashMap::<_, Vec<_>>::new();
        for (name, namespace) in all {
            for (key, value) in &namespace.labels {
                by_label
                    .entry((key.as_str(), value.as_str()))
                    .or_default()
                    .push((name.as_str(), &**namespace));
            }
        }
        Self { all, by_label }
    }

    /// Returns the names of the namespaces that a selector selects, in order.
    fn selected(&self, selector: &Selector) -> Vec<&'a str> {
        let label = selector.clone().into_iter().find_map(|expression| match expression {
            Expression::Equal(key, value) => Some((key, value)),
            _ => None, // an enum of another crate
        });
        let selects = |namespace: &NamespaceObject| selector.matches(&namespace.labels);
        let Some((key, value)) = label else {
            let all = self.all.iter().filter(|(_, namespace)| selects(namespace));
            return all.map(|(name, _)| name.as_str()).collect();
        };
        let some = self.by_label.get(&(key.as_str(), value.as_str())).into_iter().flatten();
        some.filter(|(_, namespace)| selects(namespace)).map(|(name, _)| *name).collect()
    }
}

/// Policies with a next hop of ours, and what they select.
struct Routes<'a> {
    by_gateway: BTreeMap<Ipv4Addr, Vec<&'a PolicyObject>>,
    /// Namespaces of each policy with a next hop of ours, by the policy's name.
    selected: BTreeMap<&'a str, Vec<&'a str>>,
    /// Policies that can be read but have no next hop of ours.
    strangers: Vec<(&'a PolicyObject, &'a ExternalRoute)>,
    own: Vec<(&'a PolicyObject, &'a ExternalRoute)>,
}

impl<'a> Routes<'a> {
    fn read(
        policies: &'a BTreeMap<String, Arc<PolicyObject>>,
        namespaces: &Labelled<'a>,
        gateways: &BTreeSet<Ipv4Addr>,
    ) -> Self {
        let readable =
            policies.values().filter_map(|policy| Some((policy.as_ref(), policy.policy.as_ref().ok()?)));
        let (own, strangers): (Vec<_>, Vec<_>) =
            readable.partition(|(_, route)| !route.next_hops.is_disjoint(gateways));
        let mut by_gateway = BTreeMap::<_, Vec<_>>::new();
        let mut selected = BTreeMap::new();
        for (policy, route) in &own {
            for gateway in route.next_hops.intersection(gateways) {
                by_gateway.entry(*gateway).or_default().push(*policy);
            }
            selected.insert(policy.identity.name.as_str(), namespaces.selected(&route.namespaces));
        }
        Self { by_gateway, selected, strangers, own }
    }

    /// Returns the links, without pods.
    fn into_links(self) -> BTreeMap<Ipv4Addr, Link> {
        let link = |policies: Vec<&PolicyObject>| {
            let names = policies.iter().flat_map(|policy| &self.selected[policy.identity.name.as_str()]);
            Link {
                namespaces: names.map(|name| ((*name).to_owned(), BTreeSet::new())).collect(),
                policies: policies.iter().map(|policy| policy.identity.name.clone()).collect(),
            }
        };
        self.by_gateway.into_iter().map(|(gateway, policies)| (gateway, link(policies))).collect()
    }

    /// Returns notices on policies that send a namespace of ours different ways.
    fn rivals(&self, namespaces: &Labelled<'_>) -> Vec<Notice> {
        let mut selecting = BTreeMap::<&str, Vec<(&PolicyObject, &ExternalRoute)>>::new();
        for (policy, route) in &self.own {
            for namespace in &self.selected[policy.identity.name.as_str()] {
                selecting.entry(namespace).or_default().push((policy, route));
            }
        }
        let has_hops = |route: &ExternalRoute| !route.next_hops.is_empty() || route.has_dynamic_hops;
        for (policy, route) in self.strangers.iter().filter(|(_, route)| has_hops(route)) {
            for namespace in namespaces.selected(&route.namespaces) {
                if let Some(policies) = selecting.get_mut(namespace) {
                    policies.push((policy, route));
                }
            }
        }
        let mut shared = BTreeMap::<&str, (&PolicyObject, BTreeSet<&str>, BTreeSet<&str>)>::new();
        for (namespace, policies) in selecting {
            for (policy, route) in &policies {
                for (rival, _) in policies.iter().filter(|(_, other)| ways(other) != ways(route)) {
                    let (_, names, rivals) = shared
                        .entry(&policy.identity.name)
                        .or_insert_with(|| (*policy, BTreeSet::new(), BTreeSet::new()));
                    names.insert(namespace);
                    rivals.insert(&rival.identity.name);
                }
            }
        }
        shared.into_values().map(|(policy, names, rivals)| rivalry(policy, &names, &rivals)).collect()
    }
}

/// Puts back what policies that cannot be read any more linked before: a broken edit cuts no pod off. OVN-Kubernetes keeps
/// the routes of such a policy too.
fn keep_unreadable(
    links: &mut BTreeMap<Ipv4Addr, Link>,
    policies: &BTreeMap<String, Arc<PolicyObject>>,
    namespaces: &BTreeMap<String, Arc<NamespaceObject>>,
    previous: &ClusterState,
    gateways: &BTreeSet<Ipv4Addr>,
) {
    let is_unreadable = |name: &&String| policies.get(*name).is_some_and(|policy| policy.policy.is_err());
    for (gateway, before) in previous.links.iter().filter(|(gateway, _)| gateways.contains(gateway)) {
        let unreadable: Vec<_> = before.policies.iter().filter(is_unreadable).cloned().collect();
        if unreadable.is_empty() {
            continue;
        }
        let link = links.entry(*gateway).or_default();
        link.policies.extend(unreadable);
        for namespace in before.namespaces.keys().filter(|name| namespaces.contains_key(*name)) {
            link.namespaces.entry(namespace.clone()).or_default();
        }
    }
}

/// Returns the ways that a policy sends traffic.
fn ways(route: &ExternalRoute) -> (&BTreeSet<Ipv4Addr>, bool) {
    (&route.next_hops, route.has_dynamic_hops)
}

fn rivalry(policy: &PolicyObject, namespaces: &BTreeSet<&str>, rivals: &BTreeSet<&str>) -> Notice {
    let (namespaces, rivals) = (some_of(namespaces), some_of(rivals));
    let message = format!(
        "selects {namespaces}, as {rivals} does with other next hops, and traffic takes all of them; let one policy \
         select each namespace"
    );
    notice(policy, "NamespaceUnderTwoPolicies", &message)
}

fn unknown_next_hop(
    policy: &PolicyObject,
    route: &ExternalRoute,
    gateways: &BTreeSet<Ipv4Addr>,
    surroundings: &Surroundings,
) -> Option<Notice> {
    let is_unknown = |hop: &&Ipv4Addr| {
        surroundings.are_known() && surroundings.inside.contains(*hop) && !gateways.contains(*hop)
    };
    let hops: Vec<_> = route.next_hops.iter().filter(is_unknown).map(Ipv4Addr::to_string).collect();
    let hops = hops.iter().map(String::as_str).collect::<BTreeSet<_>>();
    if hops.is_empty() {
        return None;
    }
    let message = format!(
        "no tenant has the next hop {}, which is on the gateway's inside network; add an EgressTenant with it as \
         gatewayIP, or correct it",
        some_of(&hops)
    );
    Some(notice(policy, "UnknownNextHop", &message))
}

fn unrouted_tenants(state: &ClusterState, links: &BTreeMap<Ipv4Addr, Link>) -> impl Iterator<Item = Notice> {
    let unrouted = state.tenants.iter().filter(|tenant| !links.contains_key(&tenant.tenant.gateway_ip));
    unrouted.map(|tenant| Notice {
        kind: Kind::EgressTenant,
        name: tenant.tenant.name.clone(),
        uid: tenant.uid.clone(),
        reason: "NotRouted",
        message: format!(
            "tenant {}: no AdminPolicyBasedExternalRoute has the next hop {}; add one that does",
            tenant.tenant.name, tenant.tenant.gateway_ip
        ),
    })
}

fn notice(policy: &PolicyObject, reason: &'static str, what: &str) -> Notice {
    let message = format!("policy {}: {what}", policy.identity.name);
    Notice::new(Kind::ExternalRoute, &policy.identity, reason, message)
}

fn some_of(names: &BTreeSet<&str>) -> String {
    let first: Vec<_> = names.iter().take(NAMES_IN_A_MESSAGE).copied().collect();
    match names.len().saturating_sub(NAMES_IN_A_MESSAGE) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// How well an address is known to be a pod's; the greatest claim has it.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Claim<T> {
    /// By the last good state: pods of the namespace were not listed yet.
    Before,
    /// By announcement.
    Announced(T),
    /// By the pod's status.
    Assigned(T),
}

/// Gives each namespace its pods' addresses. Of two namespaces with the same address the one with the newer pod has it:
/// addresses are used again as soon as a pod is gone, and its end may be heard of later.
fn place_pods(links: &mut BTreeMap<Ipv4Addr, Link>, view: &View, previous: &ClusterState) {
    let linked: BTreeSet<String> = links.values().flat_map(|link| link.namespaces.keys().cloned()).collect();
    let before: BTreeMap<&str, &BTreeSet<Ipv4Addr>> = previous
        .links
        .values()
        .flat_map(|link| link.namespaces.iter().map(|(name, pods)| (name.as_str(), pods)))
        .collect();
    let mut owners = BTreeMap::new();
    let mut claim = |address: Ipv4Addr, claim, namespace| {
        let claim = (claim, namespace);
        match owners.entry(address) {
            Entry::Occupied(owner) if *owner.get() >= claim => {}
            owner => drop(owner.insert_entry(claim)),
        }
    };
    for namespace in &linked {
        match view.pods.get(namespace).and_then(Option::as_ref) {
            Some(pods) => pods.values().for_each(|pod| {
                pod.addresses.iter().for_each(|address| claim(*address, strength(pod), namespace.as_str()));
            }),
            None => before.get(namespace.as_str()).into_iter().copied().flatten().for_each(|address| {
                claim(*address, Claim::Before, namespace.as_str());
            }),
        }
    }
    let mut pods = BTreeMap::<&str, BTreeSet<Ipv4Addr>>::new();
    for (address, (_, namespace)) in owners {
        pods.entry(namespace).or_default().insert(address);
    }
    for (namespace, addresses) in links.values_mut().flat_map(|link| &mut link.namespaces) {
        *addresses = pods.get(namespace.as_str()).cloned().unwrap_or_default();
    }
}

fn strength(pod: &PodObject) -> Claim<impl Ord + '_> {
    let age = pod.identity.age();
    if pod.is_announced { Claim::Announced(age) } else { Claim::Assigned(age) }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;

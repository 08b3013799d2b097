//! Return routes: which node each pod network is reached through.
//!
//! Nodes are served oldest first, so that a newcomer never takes an older node's pods away, in whatever order they
//! are listed. What a node had stays while what it says now cannot be used: connections are not cut for a typing error.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use super::objects::NodeObject;
use super::state::ClusterState;
use super::view::{Kind, Notice, Surroundings};
use crate::config::ReturnRoute;

/// Shortest prefix of a node's pod network, in bits: a shorter one is a slip that would take half of the Internet.
const MIN_PREFIX_BITS: u8 = 8;

/// What was made of the nodes.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    /// Return routes, by node.
    pub(super) routes: BTreeMap<String, Vec<ReturnRoute>>,
    /// Addresses of nodes, by node.
    pub(super) node_addresses: BTreeMap<String, Ipv4Addr>,
    /// What is wrong with nodes.
    pub(super) notices: Vec<Notice>,
}

/// Why something of a node is not used: reason and message.
type Trouble = (&'static str, String);

/// Compiles the nodes into return routes.
pub(super) fn compile(
    nodes: &BTreeMap<String, Arc<NodeObject>>,
    previous: &ClusterState,
    surroundings: &Surroundings,
) -> Compiled {
    let mut oldest_first: Vec<&NodeObject> = nodes.values().map(Arc::as_ref).collect();
    oldest_first.sort_by(|one, other| one.identity.age().cmp(&other.identity.age()));
    let next_hops = NextHops::choose(&oldest_first, surroundings);
    let mut table = Table::default();
    let mut troubles = Vec::new();
    for node in &oldest_first {
        troubles.push(table.add_node(node, &next_hops, surroundings));
    }
    let mut notices = Vec::new();
    for (node, troubles) in oldest_first.iter().zip(troubles) {
        let has_networks = matches!(&node.pod_cidrs, Ok(networks) if !networks.is_empty());
        if has_networks && troubles.is_empty() {
            continue;
        }
        let kept = table.keep_previous(node, previous, surroundings);
        let notice = |(reason, what)| {
            Notice::new(
                Kind::Node,
                &node.identity,
                reason,
                format!("node {}: {what}{kept}", node.identity.name),
            )
        };
        notices.extend(troubles.into_iter().map(notice));
    }
    Compiled {
        routes: table.into_routes(),
        node_addresses: next_hops.into_addresses(nodes, previous),
        notices,
    }
}

/// The next hop of each node.
struct NextHops<'a> {
    by_node: BTreeMap<&'a str, Ipv4Addr>,
    /// The oldest node that has an address.
    owners: BTreeMap<Ipv4Addr, &'a str>,
}

impl<'a> NextHops<'a> {
    fn choose(oldest_first: &[&'a NodeObject], surroundings: &Surroundings) -> Self {
        let mut chosen = Self { by_node: BTreeMap::new(), owners: BTreeMap::new() };
        for node in oldest_first {
            let addresses = node.addresses.as_deref().unwrap_or_default();
            let usable = addresses.iter().find(|address| is_next_hop(**address, surroundings));
            if let Some(address) = usable {
                chosen.by_node.insert(&node.identity.name, *address);
                chosen.owners.entry(*address).or_insert(&node.identity.name);
            }
        }
        chosen
    }

    fn get(&self, node: &NodeObject, surroundings: &Surroundings) -> Result<Ipv4Addr, Trouble> {
        let addresses = match &node.addresses {
            Ok(addresses) => addresses,
            Err(refusal) => return Err(("MalformedAddress", refusal.to_string())),
        };
        let name = node.identity.name.as_str();
        let Some(address) = self.by_node.get(name) else {
            let inside = surroundings.inside.trunc();
            let message = format!(
                "none of its addresses {addresses:?} is a host of the inside network {inside} that neither the gateway nor \
                 a tenant has; give it one"
            );
            return Err(("NoInsideAddress", message));
        };
        match self.owners.get(address) {
            Some(owner) if *owner != name => {
                let message =
                    format!("its address {address} is that of the older node {owner}; give each its own");
                Err(("DuplicateAddress", message))
            }
            Some(_) | None => Ok(*address),
        }
    }

    /// Returns the addresses of all nodes; of a node that has none now, the one that it had.
    fn into_addresses(
        self,
        nodes: &BTreeMap<String, Arc<NodeObject>>,
        previous: &ClusterState,
    ) -> BTreeMap<String, Ipv4Addr> {
        let address = |name: &String| {
            self.by_node.get(name.as_str()).or_else(|| previous.node_addresses.get(name)).copied()
        };
        nodes.keys().filter_map(|name| Some((name.clone(), address(name)?))).collect()
    }
}

/// Routes that were accepted, by first address; their networks do not overlap.
#[derive(Default)]
struct Table<'a>(BTreeMap<Ipv4Addr, (&'a str, ReturnRoute)>);

impl<'a> Table<'a> {
    /// Adds all routes of a node that can be used; returns what is wrong with the others.
    fn add_node(
        &mut self,
        node: &'a NodeObject,
        next_hops: &NextHops<'_>,
        surroundings: &Surroundings,
    ) -> Vec<Trouble> {
        let networks = match &node.pod_cidrs {
            Ok(networks) => networks,
            Err(refusal) => return vec![("MalformedPodCIDR", refusal.to_string())],
        };
        let via = match next_hops.get(node, surroundings) {
            Ok(via) => via,
            // A node that joins may have neither networks nor an address yet.
            Err(_) if networks.is_empty() && node.addresses.is_ok() => return Vec::new(),
            Err(trouble) => return vec![trouble],
        };
        let mut networks = networks.clone();
        networks.sort_by_key(|network| (network.prefix_len(), *network)); // one holds the other: the wider is enough
        let routes = networks.into_iter().map(|pod_cidr| ReturnRoute { pod_cidr, via });
        routes.filter_map(|route| self.add(&node.identity.name, route, surroundings).err()).collect()
    }

    fn add(&mut self, node: &'a str, route: ReturnRoute, surroundings: &Surroundings) -> Result<(), Trouble> {
        if surroundings.routes.contains(&route) {
            return Ok(()); // the config file has it already
        }
        check(route, surroundings)?;
        match self.overlapping(route.pod_cidr) {
            None => {
                self.0.insert(route.pod_cidr.network(), (node, route));
                Ok(())
            }
            Some((owner, _)) if owner == node => Ok(()),
            Some((owner, other)) => {
                let message = format!(
                    "its pod network {} overlaps with {} of the older node {owner}; give each node its own",
                    route.pod_cidr, other.pod_cidr
                );
                Err(("OverlappingPodCIDR", message))
            }
        }
    }

    /// Puts back what a node had, as far as it is free; returns what people should know of it.
    fn keep_previous(
        &mut self,
        node: &'a NodeObject,
        previous: &ClusterState,
        surroundings: &Surroundings,
    ) -> String {
        let mut kept = Vec::new();
        for route in previous.routes.get(&node.identity.name).into_iter().flatten() {
            let is_sound = check(*route, surroundings).is_ok() && is_next_hop(route.via, surroundings);
            if is_sound && self.overlapping(route.pod_cidr).is_none() {
                self.0.insert(route.pod_cidr.network(), (&node.identity.name, *route));
                kept.push(format!("{} via {}", route.pod_cidr, route.via));
            }
        }
        if kept.is_empty() {
            return String::new();
        }
        format!("; until then it keeps {}", kept.join(", "))
    }

    /// Returns a route whose network shares addresses with this one.
    fn overlapping(&self, network: Ipv4Net) -> Option<(&'a str, ReturnRoute)> {
        let (_, (owner, route)) = self.0.range(..=network.broadcast()).next_back()?;
        (route.pod_cidr.broadcast() >= network.network()).then_some((*owner, *route))
    }

    fn into_routes(self) -> BTreeMap<String, Vec<ReturnRoute>> {
        let mut routes = BTreeMap::<String, Vec<_>>::new();
        for (node, route) in self.0.into_values() {
            routes.entry(node.to_owned()).or_default().push(route);
        }
        routes
    }
}

/// Tells whether an address can be a node's: a host of the inside network, and neither the gateway's own nor a tenant's.
fn is_next_hop(address: Ipv4Addr, surroundings: &Surroundings) -> bool {
    let inside = surroundings.inside;
    let is_host = inside.prefix_len() > 30 || ![inside.network(), inside.broadcast()].contains(&address);
    let is_taken = address == inside.addr() || surroundings.gateways.contains(&address);
    inside.contains(&address) && is_host && !is_taken
}

/// Checks a route by itself and against what the gateway has.
fn check(route: ReturnRoute, surroundings: &Surroundings) -> Result<(), Trouble> {
    let ReturnRoute { pod_cidr, via } = route;
    let refuse = |what: String| Err(("InvalidPodCIDR", format!("its pod network {pod_cidr} {what}")));
    if pod_cidr.prefix_len() < MIN_PREFIX_BITS {
        return refuse(format!("is shorter than /{MIN_PREFIX_BITS}; give it a longer prefix"));
    }
    for (side, network) in [("inside", surroundings.inside), ("outside", surroundings.outside)] {
        if overlap(pod_cidr, network) {
            let network = network.trunc();
            return refuse(format!("overlaps with the gateway's {side} network {network}; give it another"));
        }
    }
    if pod_cidr.contains(&via) {
        return refuse(format!("contains the node's own address {via}; give it another"));
    }
    if let Some(other) = surroundings.routes.iter().find(|other| overlap(pod_cidr, other.pod_cidr)) {
        let ReturnRoute { pod_cidr: theirs, via } = other;
        return refuse(format!(
            "overlaps with {theirs} via {via}, a route of the config file; remove it there, or give it another"
        ));
    }
    Ok(())
}

fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;

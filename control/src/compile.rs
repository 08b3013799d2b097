//! Registry, facts and config into the facts of one snapshot. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use conntrack::{Epoch, Timeouts};
use fastpath::snapshot::{
    LinkSpec, NeighbourSpec, RouteSpec, Side, SnapshotSpec, SourceKind, TcpPolicy, TenantSpec,
};
use ipnet::Ipv4Net;

use crate::config::ReturnRoute;
use crate::kubernetes::state::{ClusterState, Link as ClusterLink};
use crate::netlink::facts::{Facts, InterfaceError, Interfaces};
use crate::netlink::links::Link;
use crate::registry::{Entry, Host, Registry};
use crate::tenant::Tenant;

/// What the config file says of every snapshot.
#[derive(Clone, Debug)]
pub struct Constants {
    /// Names of the two interfaces.
    pub interfaces: Interfaces,
    /// The cluster's pod networks.
    pub pod_cidrs: Vec<Ipv4Net>,
    /// Session timeouts.
    pub timeouts: Timeouts,
    /// What becomes of TCP segments that belong to no session.
    pub tcp: TcpPolicy,
    /// Whether the Kubernetes API is asked.
    pub has_kubernetes: bool,
}

/// Returns the facts of snapshot `epoch`. Equal inputs give equal facts, whatever the order in which the
/// kernel lists things.
///
/// # Errors
/// When one of the two interfaces is not usable.
pub fn compile(
    epoch: Epoch,
    registry: &Registry,
    facts: &Facts,
    routes: &[ReturnRoute],
    cluster: &ClusterState,
    constants: &Constants,
) -> Result<SnapshotSpec, InterfaceError> {
    let link = |side| link_spec(facts, &constants.interfaces, side);
    Ok(SnapshotSpec {
        epoch,
        inside: link(Side::Inside)?,
        outside: link(Side::Outside)?,
        tenants: registry.entries().map(|entry| tenant_spec(entry, cluster, &constants.pod_cidrs)).collect(),
        pod_cidrs: guarded_cidrs(registry, routes, &constants.pod_cidrs),
        own_addresses: own_addresses(registry, facts),
        routes: kernel_routes(facts, &constants.interfaces),
        neighbours: neighbours(facts, &constants.interfaces),
        timeouts: constants.timeouts,
        tcp: constants.tcp,
    })
}

/// Returns what tenants must agree with on this host.
///
/// # Errors
/// When one of the two interfaces is not usable.
pub fn host(facts: &Facts, routes: &[ReturnRoute], constants: &Constants) -> Result<Host, InterfaceError> {
    let (inside, inside_network) = facts.port(&constants.interfaces, Side::Inside)?;
    let (outside, outside_network) = facts.port(&constants.interfaces, Side::Outside)?;
    let links: HashMap<u32, &Link> = facts.links.iter().map(|link| (link.index, link)).collect();
    let taken = facts.addresses.iter().filter_map(|address| {
        let link = links.get(&address.link)?;
        // Further addresses of the outside interface may be egress addresses that somebody else put there.
        let spare = address.link == outside.index && address.address != outside_network.addr();
        let free = address.ours || spare || link.is_tenant_link_of(inside.index);
        (!free).then(|| (address.address, format!("the gateway's own address on {}", link.name)))
    });
    let kernel = facts.routes.iter().filter_map(|route| Some((route.gateway?, route.prefix)));
    let next_hops = kernel.chain(routes.iter().map(|route| (route.via, route.pod_cidr)));
    let next_hops = next_hops.map(|(address, prefix)| (address, format!("the next hop of route {prefix}")));
    Ok(Host {
        inside_network,
        addresses: next_hops.chain(taken).collect(),
        macs: [inside.mac, outside.mac].into_iter().flatten().collect(),
        pod_cidrs: constants.pod_cidrs.clone(),
        has_kubernetes: constants.has_kubernetes,
    })
}

fn link_spec(facts: &Facts, interfaces: &Interfaces, side: Side) -> Result<LinkSpec, InterfaceError> {
    let (link, network) = facts.port(interfaces, side)?;
    let name = || link.name.clone();
    Ok(LinkSpec {
        mac: link.mac.ok_or_else(|| InterfaceError::NotEthernet { side, name: name() })?,
        address: network.addr(),
        mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
    })
}

fn tenant_spec(entry: &Entry, cluster: &ClusterState, pod_cidrs: &[Ipv4Net]) -> TenantSpec {
    let (source_kind, sources) = sources(&entry.tenant, cluster, pod_cidrs);
    TenantSpec {
        id: entry.id,
        gateway_mac: entry.tenant.effective_mac(),
        gateway_address: entry.tenant.gateway_ip,
        egress_addresses: entry.tenant.egress_ips.clone(),
        source_kind,
        sources,
        policy: entry.tenant.policy(),
        mss_clamp: entry.tenant.mss_clamp,
        is_draining: entry.drains_until.is_some(),
    }
}

/// Returns what a tenant's sources are, and the sources.
pub fn sources(tenant: &Tenant, cluster: &ClusterState, pod_cidrs: &[Ipv4Net]) -> (SourceKind, Vec<Ipv4Net>) {
    let own = &tenant.sources;
    if own.from_policy {
        let link = cluster.links.get(&tenant.gateway_ip);
        let pods: BTreeSet<Ipv4Addr> = link.into_iter().flat_map(ClusterLink::pods).collect();
        return (SourceKind::LivePods, pods.into_iter().map(Ipv4Net::from).collect());
    }
    if own.nodes {
        let nodes: BTreeSet<Ipv4Addr> = cluster.node_addresses.values().copied().collect();
        return (SourceKind::Nodes, nodes.into_iter().map(Ipv4Net::from).collect());
    }
    let networks = if own.pod_cidrs.is_empty() { pod_cidrs } else { &own.pod_cidrs };
    (SourceKind::Networks, networks.to_vec())
}

/// Every network from which a packet on the wrong way is a leak: the cluster's, the tenants' own and those that
/// return routes lead to.
fn guarded_cidrs(registry: &Registry, routes: &[ReturnRoute], cluster: &[Ipv4Net]) -> Vec<Ipv4Net> {
    let tenants = registry.entries().flat_map(|entry| &entry.tenant.sources.pod_cidrs);
    let returned = routes.iter().map(|route| &route.pod_cidr);
    let all: Vec<Ipv4Net> = cluster.iter().chain(tenants).chain(returned).copied().collect();
    Ipv4Net::aggregate(&all)
}

/// Gateway addresses count as own before their links exist, so that steering is ready when the first frame comes.
fn own_addresses(registry: &Registry, facts: &Facts) -> Vec<Ipv4Addr> {
    let tenants = || registry.entries().map(|entry| &entry.tenant);
    let egress: BTreeSet<Ipv4Addr> = tenants().flat_map(|tenant| tenant.egress_ips.iter().copied()).collect();
    let own = facts.addresses.iter().map(|address| address.address);
    let all: BTreeSet<Ipv4Addr> = own.chain(tenants().map(|tenant| tenant.gateway_ip)).collect();
    all.difference(&egress).copied().collect()
}

/// The kernel's choice for each prefix and side: the route with the smallest metric.
fn kernel_routes(facts: &Facts, interfaces: &Interfaces) -> Vec<RouteSpec> {
    let mut best: BTreeMap<(Side, Ipv4Net), (u32, Option<Ipv4Addr>)> = BTreeMap::new();
    let sides = facts.sides(interfaces);
    for route in &facts.routes {
        let Some(side) = sides.of(route.link) else { continue };
        let candidate = (route.metric, route.gateway);
        let kept = best.entry((side, route.prefix)).or_insert(candidate);
        *kept = (*kept).min(candidate);
    }
    let spec = |((side, prefix), (_, gateway))| RouteSpec { side, prefix, gateway };
    best.into_iter().map(spec).collect()
}

fn neighbours(facts: &Facts, interfaces: &Interfaces) -> Vec<NeighbourSpec> {
    let sides = facts.sides(interfaces);
    let resolved = facts.neighbours.iter().filter_map(|neighbour| {
        let side = sides.of(neighbour.link)?;
        Some(((side, neighbour.address), neighbour.usable_mac()?))
    });
    let sorted: BTreeMap<_, _> = resolved.collect();
    sorted.into_iter().map(|((side, address), mac)| NeighbourSpec { side, address, mac }).collect()
}

#[cfg(test)]
mod tests {
    use conntrack::Policy;
    use fastpath::snapshot::MidStream;

    use super::*;
    use crate::netlink::addresses::Address;
    use crate::netlink::neighbours::{Neighbour, Resolution};
    use crate::netlink::routes::Route;
    use crate::registry::Source;
    use crate::tenant::Sources;

    #[test]
    fn the_kernels_order_makes_no_difference() {
        let (registry, facts, constants) = world();
        let mut reversed = facts.clone();
        reversed.links.reverse();
        reversed.addresses.reverse();
        reversed.routes.reverse();
        reversed.neighbours.reverse();
        let of = |facts| compiled(&registry, facts, &[], &constants);
        assert_eq!(of(&facts), of(&reversed));
    }

    #[test]
    fn own_addresses_hold_gateways_and_no_egress_address() {
        let (registry, facts, constants) = world();
        let spec = compiled(&registry, &facts, &[], &constants);
        let own: Vec<String> = spec.own_addresses.iter().map(ToString::to_string).collect();
        assert_eq!(own, ["192.168.55.12", "192.168.99.12", "192.168.99.13"]);
    }

    #[test]
    fn timeouts_and_tcp_are_as_the_config_file_says() {
        let (registry, facts, mut constants) = world();
        constants.timeouts.inbound_refreshes = false;
        constants.tcp.mid_stream = MidStream::Drop;
        let spec = compiled(&registry, &facts, &[], &constants);
        assert_eq!((spec.timeouts, spec.tcp), (constants.timeouts, constants.tcp));
    }

    #[test]
    fn sources_are_networks_or_what_the_cluster_says_of_pods_and_nodes() {
        let (registry, _, constants) = world();
        let mut blue = registry.get("ns-blue").unwrap().tenant.clone();
        let address = |last| Ipv4Addr::new(10, 132, 0, last);
        let link = |pods: &[u8]| ClusterLink {
            namespaces: [("ns-blue".to_owned(), pods.iter().copied().map(address).collect())].into(),
            ..ClusterLink::default()
        };
        let cluster = ClusterState {
            links: [(blue.gateway_ip, link(&[7, 5])), ([192, 168, 99, 14].into(), link(&[9]))].into(),
            node_addresses: [("w1".to_owned(), [192, 168, 99, 21].into())].into(),
            ..ClusterState::default()
        };
        let mut of = |pod_cidrs: &[&str], from_policy, nodes| {
            let pod_cidrs = pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
            blue.sources = Sources { pod_cidrs, from_policy, nodes };
            let (kind, sources) = sources(&blue, &cluster, &constants.pod_cidrs);
            (kind, sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        let cluster_wide = constants.pod_cidrs[0].to_string();
        assert_eq!(of(&[], false, false), (SourceKind::Networks, cluster_wide));
        assert_eq!(of(&["10.1.0.0/16"], false, false), (SourceKind::Networks, "10.1.0.0/16".into()));
        assert_eq!(of(&[], true, false), (SourceKind::LivePods, "10.132.0.5/32 10.132.0.7/32".into()));
        assert_eq!(of(&[], false, true), (SourceKind::Nodes, "192.168.99.21/32".into()));
    }

    #[test]
    fn a_tenant_without_sources_takes_the_clusters() {
        let (registry, facts, constants) = world();
        let spec = compiled(&registry, &facts, &[], &constants);
        assert_eq!(spec.tenants[0].sources, constants.pod_cidrs);
    }

    #[test]
    fn what_a_tenants_sessions_may_do_is_told_and_changes_the_snapshot() {
        let (mut registry, facts, constants) = world();
        let before = compiled(&registry, &facts, &[], &constants);
        assert_eq!((before.tenants[0].policy, before.tenants[0].mss_clamp), (Policy::default(), 0));
        let blue = r#"{"name":"ns-blue","gatewayIP":"192.168.99.13","egressIPs":["192.168.55.113"],
                       "mapping":"EndpointIndependent","limits":{"portsPerPod":64},"mssClamp":1360}"#;
        let host = host(&facts, &[], &constants).unwrap();
        registry.put(serde_json::from_str(blue).unwrap(), Source::ConfigFile, &host).unwrap();
        let after = compiled(&registry, &facts, &[], &constants);
        assert_eq!(after.tenants[0].policy, registry.get("ns-blue").unwrap().tenant.policy());
        assert_eq!((after.tenants[0].policy.pod_quota.ports, after.tenants[0].mss_clamp), (64, 1360));
        assert_ne!(before, after);
    }

    #[test]
    fn sources_and_return_routes_outside_the_clusters_networks_are_guarded_too() {
        let (mut registry, facts, constants) = world();
        let red = r#"{"name":"ns-red","gatewayIP":"192.168.99.14","egressIPs":["192.168.55.114"],
                      "sources":{"podCIDRs":["10.132.0.0/24","172.16.0.0/16"]}}"#;
        let host = host(&facts, &[], &constants).unwrap();
        registry.put(serde_json::from_str(red).unwrap(), Source::ConfigFile, &host).unwrap();
        let pod_cidr = "172.20.1.0/24".parse().unwrap();
        let routes = [ReturnRoute { pod_cidr, via: [192, 168, 99, 21].into() }; 2];
        let spec = compiled(&registry, &facts, &routes, &constants);
        let guarded: Vec<String> = spec.pod_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(guarded, ["10.132.0.0/14", "172.16.0.0/16", "172.20.1.0/24"]);
        assert_eq!(spec.tenants[0].sources, constants.pod_cidrs, "others may not use them");
    }

    #[test]
    fn only_a_neighbours_address_counts_not_its_state() {
        let (registry, mut facts, constants) = world();
        let neighbours = |facts: &Facts| compiled(&registry, facts, &[], &constants).neighbours;
        let fresh = neighbours(&facts);
        assert_eq!(fresh.len(), 1, "{fresh:?}");
        facts.neighbours[0].resolution = Resolution::Stale;
        assert_eq!(neighbours(&facts), fresh);
        facts.neighbours[0].resolution = Resolution::None;
        assert!(neighbours(&facts).is_empty());
    }

    #[test]
    fn the_smallest_metric_wins() {
        let (registry, facts, constants) = world();
        let spec = compiled(&registry, &facts, &[], &constants);
        let gateways: Vec<_> = spec.routes.iter().map(|route| route.gateway).collect();
        assert_eq!(gateways, [Some([192, 168, 55, 1].into())]);
    }

    #[test]
    fn addresses_that_tenants_may_not_use_are_known() {
        let (_, facts, constants) = world();
        let host = host(&facts, &[], &constants).unwrap();
        let taken: Vec<String> = host.addresses.iter().map(|(at, role)| format!("{at} {role}")).collect();
        let expected = [
            "192.168.55.1 the next hop of route 0.0.0.0/0",
            "192.168.55.2 the next hop of route 0.0.0.0/0",
            "192.168.55.3 the next hop of route 0.0.0.0/0",
            "192.168.55.12 the gateway's own address on out0",
            "192.168.99.12 the gateway's own address on in0",
        ];
        assert_eq!(taken, expected);
    }

    fn compiled(
        registry: &Registry,
        facts: &Facts,
        routes: &[ReturnRoute],
        constants: &Constants,
    ) -> SnapshotSpec {
        compile(Epoch(1), registry, facts, routes, &ClusterState::default(), constants).unwrap()
    }

    fn world() -> (Registry, Facts, Constants) {
        let mac = |last| Some(macaddr::MacAddr6::new(2, 0, 0, 0, 0, last));
        let link = |index, name: &str, parent| Link {
            index,
            name: name.to_owned(),
            mac: mac(u8::try_from(index).unwrap()),
            mtu: 1500,
            up: true,
            carrier: true,
            macvlan_parent: parent,
        };
        let address = |link, address: [u8; 4], prefix_len, ours| Address {
            link,
            address: address.into(),
            prefix_len,
            secondary: false,
            ours,
        };
        let route = |link, last, metric| Route {
            prefix: Ipv4Net::default(),
            gateway: Some([192, 168, 55, last].into()),
            link,
            metric,
            ours: false,
        };
        let neighbour = |link| Neighbour {
            link,
            address: [192, 168, 55, 1].into(),
            mac: mac(77),
            resolution: Resolution::Fresh,
            ours: false,
        };
        let facts = Facts {
            links: vec![
                link(1, "in0", None),
                link(2, "out0", None),
                link(3, "spw-c0a8630d", Some(1)),
                link(4, "e0", None),
            ],
            addresses: vec![
                address(1, [192, 168, 99, 12], 24, false),
                address(2, [192, 168, 55, 113], 32, false),
                address(2, [192, 168, 55, 12], 24, false),
                address(3, [192, 168, 99, 13], 32, true),
            ],
            routes: vec![route(2, 2, 200), route(2, 1, 100), route(4, 3, 0)],
            neighbours: vec![neighbour(2), neighbour(4)],
        };
        let constants = Constants {
            interfaces: Interfaces { inside: "in0".into(), outside: "out0".into() },
            pod_cidrs: vec!["10.132.0.0/14".parse().unwrap()],
            timeouts: Timeouts::default(),
            tcp: TcpPolicy::default(),
            has_kubernetes: false,
        };
        let blue = r#"{"name":"ns-blue","gatewayIP":"192.168.99.13","egressIPs":["192.168.55.113"]}"#;
        let mut registry = Registry::default();
        let host = host(&facts, &[], &constants).unwrap();
        registry.put(serde_json::from_str(blue).unwrap(), Source::ConfigFile, &host).unwrap();
        (registry, facts, constants)
    }
}

//! Registry, facts and config into the facts of one snapshot. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use conntrack::{Epoch, Timeouts};
use fastpath::snapshot::{
    LinkSpec, NeighbourSpec, RouteSpec, Side, SnapshotSpec, SourceKind, TcpPolicy, TenantSpec,
};
use ipnet::Ipv4Net;

use crate::config::ReturnRoute;
use crate::netlink::facts::{Facts, InterfaceError, Interfaces};
use crate::netlink::links::Link;
use crate::registry::{Entry, Host, Registry};

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
    constants: &Constants,
) -> Result<SnapshotSpec, InterfaceError> {
    let link = |side| link_spec(facts, &constants.interfaces, side);
    Ok(SnapshotSpec {
        epoch,
        inside: link(Side::Inside)?,
        outside: link(Side::Outside)?,
        tenants: registry.entries().map(|entry| tenant_spec(entry, &constants.pod_cidrs)).collect(),
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

fn tenant_spec(entry: &Entry, cluster: &[Ipv4Net]) -> TenantSpec {
    let own = &entry.tenant.sources.pod_cidrs;
    TenantSpec {
        id: entry.id,
        gateway_mac: entry.tenant.effective_mac(),
        gateway_address: entry.tenant.gateway_ip,
        egress_addresses: entry.tenant.egress_ips.clone(),
        sources: if own.is_empty() { cluster.to_vec() } else { own.clone() },
        source_kind: SourceKind::Networks,
        is_draining: false,
        policy: entry.tenant.policy(),
        mss_clamp: entry.tenant.mss_clamp,
    }
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

    #[test]
    fn the_kernels_order_makes_no_difference() {
        let (registry, facts, constants) = world();
        let mut reversed = facts.clone();
        reversed.links.reverse();
        reversed.addresses.reverse();
        reversed.routes.reverse();
        reversed.neighbours.reverse();
        let compiled = |facts| compile(Epoch(1), &registry, facts, &[], &constants).unwrap();
        assert_eq!(compiled(&facts), compiled(&reversed));
    }

    #[test]
    fn own_addresses_hold_gateways_and_no_egress_address() {
        let (registry, facts, constants) = world();
        let spec = compile(Epoch(1), &registry, &facts, &[], &constants).unwrap();
        let own: Vec<String> = spec.own_addresses.iter().map(ToString::to_string).collect();
        assert_eq!(own, ["192.168.55.12", "192.168.99.12", "192.168.99.13"]);
    }

    #[test]
    fn timeouts_and_tcp_are_as_the_config_file_says() {
        let (registry, facts, mut constants) = world();
        constants.timeouts.inbound_refreshes = false;
        constants.tcp.mid_stream = MidStream::Drop;
        let spec = compile(Epoch(1), &registry, &facts, &[], &constants).unwrap();
        assert_eq!((spec.timeouts, spec.tcp), (constants.timeouts, constants.tcp));
    }

    #[test]
    fn a_tenant_without_sources_takes_the_clusters() {
        let (registry, facts, constants) = world();
        let spec = compile(Epoch(1), &registry, &facts, &[], &constants).unwrap();
        assert_eq!(spec.tenants[0].sources, constants.pod_cidrs);
    }

    #[test]
    fn what_a_tenants_sessions_may_do_is_told_and_changes_the_snapshot() {
        let (mut registry, facts, constants) = world();
        let before = compile(Epoch(1), &registry, &facts, &[], &constants).unwrap();
        assert_eq!((before.tenants[0].policy, before.tenants[0].mss_clamp), (Policy::default(), 0));
        let blue = r#"{"name":"ns-blue","gatewayIP":"192.168.99.13","egressIPs":["192.168.55.113"],
                       "mapping":"EndpointIndependent","limits":{"portsPerPod":64},"mssClamp":1360}"#;
        let host = host(&facts, &[], &constants).unwrap();
        registry.put(serde_json::from_str(blue).unwrap(), Source::ConfigFile, &host).unwrap();
        let after = compile(Epoch(1), &registry, &facts, &[], &constants).unwrap();
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
        let spec = compile(Epoch(1), &registry, &facts, &routes, &constants).unwrap();
        let guarded: Vec<String> = spec.pod_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(guarded, ["10.132.0.0/14", "172.16.0.0/16", "172.20.1.0/24"]);
        assert_eq!(spec.tenants[0].sources, constants.pod_cidrs, "others may not use them");
    }

    #[test]
    fn only_a_neighbours_address_counts_not_its_state() {
        let (registry, mut facts, constants) = world();
        let neighbours =
            |facts: &Facts| compile(Epoch(1), &registry, facts, &[], &constants).unwrap().neighbours;
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
        let spec = compile(Epoch(1), &registry, &facts, &[], &constants).unwrap();
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

    fn world() -> (Registry, Facts, Constants) {
        let mac = |last| Some(macaddr::MacAddr6::new(2, 0, 0, 0, 0, last));
        let link = |index, name: &str, parent| Link {
            index,
            name: name.to_owned(),
            mac: mac(u8::try_from(index).unwrap()),
            mtu: 1500,
            up: true,
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

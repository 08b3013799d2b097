//! Registry, facts and config into the facts of one snapshot. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use conntrack::{Epoch, Timeouts};
use fastpath::snapshot::{LinkSpec, NeighbourSpec, RouteSpec, Side, SnapshotSpec, TenantSpec};
use ipnet::Ipv4Net;

use crate::netlink::facts::{Facts, InterfaceError, Interfaces};
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
    constants: &Constants,
) -> Result<SnapshotSpec, InterfaceError> {
    let link = |side| link_spec(facts, &constants.interfaces, side);
    Ok(SnapshotSpec {
        epoch,
        inside: link(Side::Inside)?,
        outside: link(Side::Outside)?,
        tenants: registry.entries().map(|entry| tenant_spec(entry, &constants.pod_cidrs)).collect(),
        pod_cidrs: constants.pod_cidrs.clone(),
        own_addresses: own_addresses(registry, facts),
        routes: routes(facts, &constants.interfaces),
        neighbours: neighbours(facts, &constants.interfaces),
        timeouts: constants.timeouts,
    })
}

/// Returns what tenants must agree with on this host.
///
/// # Errors
/// When one of the two interfaces is not usable.
pub fn host(facts: &Facts, constants: &Constants) -> Result<Host, InterfaceError> {
    let (inside, inside_network) = facts.port(&constants.interfaces, Side::Inside)?;
    let (outside, outside_network) = facts.port(&constants.interfaces, Side::Outside)?;
    let name = |index: u32| facts.links.iter().find(|link| link.index == index);
    let taken = facts.addresses.iter().filter_map(|address| {
        let link = name(address.link)?;
        // Further addresses of the outside interface may be egress addresses that somebody else put there.
        let spare = address.link == outside.index && address.address != outside_network.addr();
        let free = address.ours || spare || link.is_tenant_link_of(inside.index);
        (!free).then(|| (address.address, link.name.clone()))
    });
    Ok(Host {
        inside_network,
        addresses: taken.collect(),
        macs: [inside.mac, outside.mac].into_iter().flatten().collect(),
        pod_cidrs: constants.pod_cidrs.clone(),
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
    }
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
fn routes(facts: &Facts, interfaces: &Interfaces) -> Vec<RouteSpec> {
    let mut best: BTreeMap<(Side, Ipv4Net), (u32, Option<Ipv4Addr>)> = BTreeMap::new();
    for route in &facts.routes {
        let Some(side) = facts.side_of(interfaces, route.link) else { continue };
        let candidate = (route.metric, route.gateway);
        let kept = best.entry((side, route.prefix)).or_insert(candidate);
        *kept = (*kept).min(candidate);
    }
    let spec = |((side, prefix), (_, gateway))| RouteSpec { side, prefix, gateway };
    best.into_iter().map(spec).collect()
}

fn neighbours(facts: &Facts, interfaces: &Interfaces) -> Vec<NeighbourSpec> {
    let resolved = facts.neighbours.iter().filter_map(|neighbour| {
        let side = facts.side_of(interfaces, neighbour.link)?;
        Some(((side, neighbour.address), neighbour.usable_mac()?))
    });
    let sorted: BTreeMap<_, _> = resolved.collect();
    sorted.into_iter().map(|((side, address), mac)| NeighbourSpec { side, address, mac }).collect()
}

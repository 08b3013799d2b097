//! Carries out a plan over netlink.

use std::net::Ipv4Addr;

use fastpath::snapshot::Side;
use tracing::info;

use super::guard::is_held;
use crate::netlink::facts::{Facts, Interfaces};
use crate::netlink::{Netlink, NetlinkError};
use crate::plan::{Addition, Needs, Plan, Removal};

/// Removes everything that is Spillway's on the two interfaces, what answers for tenants first.
///
/// # Errors
/// When the kernel refuses something; the rest is removed nevertheless.
pub async fn withdraw(netlink: &Netlink, facts: &Facts, interfaces: &Interfaces) -> Result<(), NetlinkError> {
    remove_all(netlink, &Plan::compare(&Needs::default(), facts, interfaces).removals).await
}

/// Removes what a process with other interfaces left and no living daemon has.
///
/// # Errors
/// When the kernel refuses something; the rest is removed nevertheless.
pub async fn clear_leftovers(
    netlink: &Netlink,
    facts: &Facts,
    interfaces: &Interfaces,
) -> Result<(), NetlinkError> {
    let own = |name: &str| Side::BOTH.into_iter().any(|side| interfaces.name(side) == name);
    let held = |name: &str| !own(name) && is_held(name);
    remove_all(netlink, &Plan::leftovers(facts, interfaces, held)).await
}

/// Removes several things.
///
/// # Errors
/// When the kernel refuses something; the rest is removed nevertheless.
pub async fn remove_all(netlink: &Netlink, removals: &[Removal]) -> Result<(), NetlinkError> {
    let mut refused = None;
    for removal in removals {
        if let Err(error) = remove(netlink, removal).await {
            refused.get_or_insert(error);
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Removes one thing; one that is gone already counts as removed.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove(netlink: &Netlink, removal: &Removal) -> Result<(), NetlinkError> {
    match removal {
        Removal::Link { index, name } => {
            info!(link = name, "removing tenant link");
            netlink.remove_link(*index, name).await
        }
        Removal::Address { link, address } => {
            info!(%address, "removing egress address");
            netlink.remove_address(*link, *address).await
        }
        Removal::Route { prefix, via, link } => {
            info!(%prefix, %via, "removing return route");
            netlink.remove_route(*prefix, *via, *link).await
        }
        Removal::Neighbour { link, address } => netlink.remove_neighbour(*link, *address).await,
    }
}

/// Adds one thing.
///
/// # Errors
/// When the kernel refuses.
pub async fn add(
    netlink: &Netlink,
    addition: &Addition,
    facts: &Facts,
    interfaces: &Interfaces,
) -> Result<(), NetlinkError> {
    let index = |side| facts.link(interfaces.name(side)).map_or(0, |link| link.index);
    match addition {
        Addition::Link(link) => {
            info!(link = link.name, tenant = link.tenant, address = %link.address, "adding tenant link");
            netlink.add_tenant_link(link, index(Side::Inside)).await
        }
        Addition::EgressAddress(address) => {
            info!(%address, "adding egress address");
            netlink.add_address(index(Side::Outside), &interfaces.outside, *address).await
        }
        Addition::ReturnRoute(route) => {
            info!(pod_cidr = %route.pod_cidr, via = %route.via, "adding return route");
            netlink.add_route(route.pod_cidr, route.via, index(Side::Inside)).await
        }
        Addition::NextHop(side, address) => netlink.keep_resolved(index(*side), *address).await,
    }
}

/// Asks the kernel to resolve, or to confirm, a neighbour.
///
/// # Errors
/// When the kernel refuses.
pub async fn resolve(
    netlink: &Netlink,
    facts: &Facts,
    interfaces: &Interfaces,
    side: Side,
    address: Ipv4Addr,
) -> Result<(), NetlinkError> {
    match facts.link(interfaces.name(side)) {
        Some(link) => netlink.resolve_once(link.index, address).await,
        None => Ok(()),
    }
}

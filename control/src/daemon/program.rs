//! Carries out a plan over netlink.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use fastpath::snapshot::Side;
use tracing::{debug, info};

use super::guard::is_held;
use crate::netlink::facts::{Facts, Interfaces};
use crate::netlink::links::TenantLink;
use crate::netlink::monitor::{Changes, Monitor};
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

/// Adds several things, links and addresses many at once, and returns what became of each. Further next hops are
/// not tried once the kernel has no room for neighbours.
pub async fn add_all<'a>(
    netlink: &Netlink,
    monitor: &mut Monitor,
    facts: &mut Facts,
    interfaces: &Interfaces,
    additions: &'a [Addition],
) -> Vec<(&'a Addition, Result<(), NetlinkError>)> {
    let (mut links, mut addresses, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for addition in additions {
        match addition {
            Addition::Link(link) => links.push((addition, link)),
            Addition::EgressAddress(address) => addresses.push((addition, *address)),
            Addition::ReturnRoute(_) | Addition::NextHop(..) => others.push(addition),
        }
    }
    let mut outcomes = add_links(netlink, monitor, facts, interfaces, &links).await;
    outcomes.extend(add_addresses(netlink, facts, interfaces, &addresses).await);
    let mut is_table_full = false;
    for addition in others {
        if is_table_full && matches!(addition, Addition::NextHop(..)) {
            continue;
        }
        let outcome = add_path(netlink, addition, facts, interfaces).await;
        is_table_full |= outcome.as_ref().is_err_and(NetlinkError::is_out_of_room);
        outcomes.push((addition, outcome));
    }
    outcomes
}

/// Makes links, learns their indices, and only then gives them what makes them answer.
async fn add_links<'a>(
    netlink: &Netlink,
    monitor: &mut Monitor,
    facts: &mut Facts,
    interfaces: &Interfaces,
    wanted: &[(&'a Addition, &'a TenantLink)],
) -> Vec<(&'a Addition, Result<(), NetlinkError>)> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let links: Vec<&TenantLink> = wanted.iter().map(|(_, link)| *link).collect();
    for link in &links {
        info!(link = link.name, tenant = link.tenant, address = %link.address, "adding tenant link");
    }
    let made = netlink.make_tenant_links(&links, index(facts, interfaces, Side::Inside)).await;
    match facts.catch_up(netlink, monitor, Changes::default()).await {
        Ok(changed) => monitor.put_back(Changes { links: false, ..changed }),
        Err(error) => debug!(error = &error as &dyn std::error::Error, "new links are not known"),
    }
    let indices: HashMap<&str, u32> =
        facts.links.iter().map(|link| (link.name.as_str(), link.index)).collect();
    let mut outcomes = Vec::with_capacity(wanted.len());
    let mut to_dress = Vec::new();
    for ((addition, link), made) in wanted.iter().zip(made) {
        match made.and_then(|()| indices.get(link.name.as_str()).ok_or_else(|| NetlinkError::missing(link))) {
            Ok(index) => to_dress.push((*addition, (*link, *index))),
            Err(error) => outcomes.push((*addition, Err(error))),
        }
    }
    let (additions, links): (Vec<_>, Vec<_>) = to_dress.into_iter().unzip();
    outcomes.extend(additions.into_iter().zip(netlink.dress_tenant_links(&links).await));
    outcomes
}

async fn add_addresses<'a>(
    netlink: &Netlink,
    facts: &Facts,
    interfaces: &Interfaces,
    wanted: &[(&'a Addition, Ipv4Addr)],
) -> Vec<(&'a Addition, Result<(), NetlinkError>)> {
    let (additions, addresses): (Vec<_>, Vec<_>) = wanted.iter().copied().unzip();
    for address in &addresses {
        info!(%address, "adding egress address");
    }
    let outside = index(facts, interfaces, Side::Outside);
    let outcomes = netlink.add_addresses(outside, &interfaces.outside, &addresses).await;
    additions.into_iter().zip(outcomes).collect()
}

/// Adds a route or a next hop, nothing else.
///
/// # Errors
/// When the kernel refuses.
pub async fn add_path(
    netlink: &Netlink,
    addition: &Addition,
    facts: &Facts,
    interfaces: &Interfaces,
) -> Result<(), NetlinkError> {
    match addition {
        Addition::ReturnRoute(route) => {
            netlink.add_route(route.pod_cidr, route.via, index(facts, interfaces, Side::Inside)).await?;
            // One that is refused is tried again every second, and told of once.
            info!(pod_cidr = %route.pod_cidr, via = %route.via, "added return route");
            Ok(())
        }
        Addition::NextHop(side, address) => {
            netlink.keep_resolved(index(facts, interfaces, *side), *address).await
        }
        Addition::Link(_) | Addition::EgressAddress(_) => unreachable!("they are added many at once"),
    }
}

fn index(facts: &Facts, interfaces: &Interfaces, side: Side) -> u32 {
    facts.link(interfaces.name(side)).map_or(0, |link| link.index)
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

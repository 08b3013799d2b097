//! What differs between what the tenants need and what the kernel has.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

use fastpath::snapshot::Side;
use ipnet::Ipv4Net;

use crate::config::ReturnRoute;
use crate::netlink::facts::{Facts, Interfaces};
use crate::netlink::links::{Link, TenantLink};
use crate::netlink::monitor::Changes;
use crate::netlink::neighbours::Resolution;
use crate::registry::Registry;

/// Everything that Spillway wants the kernel to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Links of tenants.
    pub links: Vec<TenantLink>,
    /// Addresses on the outside interface.
    pub egress_addresses: BTreeSet<Ipv4Addr>,
    /// Routes to the pods.
    pub return_routes: BTreeSet<ReturnRoute>,
    /// Whether own routes that are not among these stay for now, because not all nodes are known yet.
    pub keeps_other_routes: bool,
    /// Neighbours to keep resolved: every next hop of a route by one of the two interfaces.
    pub next_hops: BTreeSet<(Side, Ipv4Addr)>,
}

/// Something of Spillway's that the kernel has and should not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// A tenant's link.
    Link {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
    },
    /// An egress address.
    Address {
        /// Index of the link that it is on.
        link: u32,
        /// The address.
        address: Ipv4Addr,
    },
    /// A return route.
    Route {
        /// The pod network.
        prefix: Ipv4Net,
        /// The node.
        via: Ipv4Addr,
        /// Index of the link that it leaves by.
        link: u32,
    },
    /// A neighbour that is kept resolved.
    Neighbour {
        /// Index of the link that it is on.
        link: u32,
        /// Its address.
        address: Ipv4Addr,
    },
}

/// Something that the kernel lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addition {
    /// A tenant's link on the inside interface.
    Link(TenantLink),
    /// An egress address on the outside interface.
    EgressAddress(Ipv4Addr),
    /// A return route by the inside interface.
    ReturnRoute(ReturnRoute),
    /// A neighbour to keep resolved.
    NextHop(Side, Ipv4Addr),
}

/// What to do, removals first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to remove.
    pub removals: Vec<Removal>,
    /// What to add.
    pub additions: Vec<Addition>,
}

impl Removal {
    /// Returns what is to be read again once it is removed. Of links and addresses the kernel tells.
    pub fn touches(&self) -> Changes {
        match self {
            Self::Link { .. } | Self::Address { .. } => Changes::default(),
            Self::Route { .. } => Changes { routes: true, ..Changes::default() },
            Self::Neighbour { .. } => Changes { neighbours: true, ..Changes::default() },
        }
    }
}

impl Addition {
    /// Returns what is to be read again once it is added. Of links and addresses the kernel tells.
    pub fn touches(&self) -> Changes {
        match self {
            Self::Link(_) | Self::EgressAddress(_) => Changes::default(),
            Self::ReturnRoute(_) => Changes { routes: true, ..Changes::default() },
            Self::NextHop(..) => Changes { neighbours: true, ..Changes::default() },
        }
    }
}

impl Needs {
    /// Returns what these tenants and routes need.
    pub fn of(registry: &Registry, routes: &[ReturnRoute], facts: &Facts, interfaces: &Interfaces) -> Self {
        let sides = facts.sides(interfaces);
        let tenants = || registry.entries().map(|entry| &entry.tenant);
        let link = |tenant: &crate::tenant::Tenant| TenantLink {
            name: tenant.link_name(),
            mac: tenant.effective_mac(),
            address: tenant.gateway_ip,
            tenant: tenant.name.clone(),
        };
        let next_hop = |route: &crate::netlink::routes::Route| Some((sides.of(route.link)?, route.gateway?));
        Self {
            links: tenants().map(link).collect(),
            egress_addresses: tenants().flat_map(|tenant| tenant.egress_ips.iter().copied()).collect(),
            return_routes: routes.iter().copied().collect(),
            keeps_other_routes: false,
            next_hops: facts.routes.iter().filter_map(next_hop).collect(),
        }
    }
}

impl Plan {
    /// Compares needs with facts. On an interface that is missing there is nothing to do.
    pub fn compare(needs: &Needs, facts: &Facts, interfaces: &Interfaces) -> Self {
        let mut plan = Self::default();
        if let Some(inside) = facts.link(&interfaces.inside) {
            plan.compare_links(needs, facts, inside.index);
            // Without a carrier the kernel keeps routes, but nobody can use them, and they are not among the facts.
            if inside.carrier {
                plan.compare_routes(needs, facts, inside.index);
            }
        }
        if let Some(outside) = facts.link(&interfaces.outside) {
            plan.compare_addresses(needs, facts, outside.index);
        }
        plan.compare_next_hops(needs, facts, interfaces);
        plan
    }

    /// Returns what a process with other interfaces left: everything of Spillway's that is not where these
    /// interfaces have it, but for that on links which `held` says another daemon has.
    pub fn leftovers(facts: &Facts, interfaces: &Interfaces, held: impl Fn(&str) -> bool) -> Vec<Removal> {
        let index = |name: &str| facts.link(name).map(|link| link.index);
        let (inside, outside) = (index(&interfaces.inside), index(&interfaces.outside));
        let links: BTreeMap<u32, &Link> = facts.links.iter().map(|link| (link.index, link)).collect();
        let free = |link: u32| {
            let found = links.get(&link);
            found.is_none_or(|link| !link.is_tenant_link() && !held(&link.name))
        };
        let stray_link = |link: &&Link| {
            link.is_tenant_link() && link.macvlan_parent != inside && link.macvlan_parent.is_some_and(free)
        };
        let stray = links.values().copied().filter(stray_link);
        let mut found: Vec<Removal> =
            stray.map(|link| Removal::Link { index: link.index, name: link.name.clone() }).collect();
        for route in facts.routes.iter().filter(|route| route.ours && Some(route.link) != inside) {
            if let (Some(via), true) = (route.gateway, free(route.link)) {
                found.push(Removal::Route { prefix: route.prefix, via, link: route.link });
            }
        }
        for address in facts.addresses.iter().filter(|address| address.ours && Some(address.link) != outside)
        {
            if free(address.link) {
                found.push(Removal::Address { link: address.link, address: address.address });
            }
        }
        let own = |link: u32| [inside, outside].contains(&Some(link));
        for neighbour in facts.neighbours.iter().filter(|neighbour| neighbour.ours && !own(neighbour.link)) {
            if free(neighbour.link) {
                found.push(Removal::Neighbour { link: neighbour.link, address: neighbour.address });
            }
        }
        found
    }

    /// Tells whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.removals.is_empty() && self.additions.is_empty()
    }

    fn compare_links(&mut self, needs: &Needs, facts: &Facts, inside: u32) {
        let links: HashMap<&str, &Link> = facts.links.iter().map(|link| (link.name.as_str(), link)).collect();
        let addresses = addresses(facts);
        let is_sound = |need: &&TenantLink| {
            links.get(need.name.as_str()).is_some_and(|link| {
                link.is_tenant_link_of(inside)
                    && link.mac == Some(need.mac)
                    && link.up
                    && addresses.contains(&(link.index, need.address))
            })
        };
        let (kept, lacking): (Vec<_>, Vec<_>) = needs.links.iter().partition(is_sound);
        let kept: HashSet<&str> = kept.into_iter().map(|kept| kept.name.as_str()).collect();
        let ours = facts.links.iter().filter(|link| link.is_tenant_link_of(inside));
        let stale = ours.filter(|link| !kept.contains(link.name.as_str()));
        self.removals.extend(stale.map(|link| Removal::Link { index: link.index, name: link.name.clone() }));
        self.additions.extend(lacking.into_iter().cloned().map(Addition::Link));
    }

    fn compare_addresses(&mut self, needs: &Needs, facts: &Facts, outside: u32) {
        let ours = facts.addresses.iter().filter(|address| address.link == outside && address.ours);
        let stale = ours.filter(|address| !needs.egress_addresses.contains(&address.address));
        self.removals
            .extend(stale.map(|address| Removal::Address { link: outside, address: address.address }));
        let addresses = addresses(facts);
        let lacking =
            needs.egress_addresses.iter().filter(|address| !addresses.contains(&(outside, **address)));
        self.additions.extend(lacking.map(|address| Addition::EgressAddress(*address)));
    }

    fn compare_routes(&mut self, needs: &Needs, facts: &Facts, inside: u32) {
        let wanted: HashSet<Ipv4Net> = needs.return_routes.iter().map(|route| route.pod_cidr).collect();
        let mut there = HashSet::new();
        for route in facts.routes.iter().filter(|route| route.link == inside) {
            let Some(via) = route.gateway else { continue };
            let have = ReturnRoute { pod_cidr: route.prefix, via };
            there.insert(have);
            let may_go = wanted.contains(&route.prefix) || !needs.keeps_other_routes;
            if route.ours && may_go && !needs.return_routes.contains(&have) {
                self.removals.push(Removal::Route { prefix: route.prefix, via, link: route.link });
            }
        }
        let lacking = needs.return_routes.iter().filter(|need| !there.contains(*need));
        self.additions.extend(lacking.map(|need| Addition::ReturnRoute(*need)));
    }

    fn compare_next_hops(&mut self, needs: &Needs, facts: &Facts, interfaces: &Interfaces) {
        let mut kept = BTreeSet::new();
        let sides = facts.sides(interfaces);
        for neighbour in &facts.neighbours {
            let Some(side) = sides.of(neighbour.link) else { continue };
            let wanted = needs.next_hops.contains(&(side, neighbour.address));
            if wanted && (neighbour.ours || neighbour.resolution == Resolution::Fixed) {
                kept.insert((side, neighbour.address));
            }
            if neighbour.ours && !wanted {
                self.removals.push(Removal::Neighbour { link: neighbour.link, address: neighbour.address });
            }
        }
        let lacking = needs.next_hops.difference(&kept);
        self.additions.extend(lacking.map(|(side, address)| Addition::NextHop(*side, *address)));
    }
}

fn addresses(facts: &Facts) -> HashSet<(u32, Ipv4Addr)> {
    facts.addresses.iter().map(|address| (address.link, address.address)).collect()
}

//! Networks that overlap, and routes that lead the wrong way.

use fastpath::snapshot::Side;
use ipnet::Ipv4Net;

use super::evidence::{Evidence, Known};
use super::finding::{Check, Finding, Group};
use crate::config::Config;
use crate::netlink::facts::{Facts, Interfaces};
use crate::netlink::routes::Route;
use crate::tenant::Tenant;

const DEFAULT_INSIDE: Check = Check::new(Group::Networks, "default-route-inside");
const NO_DEFAULT: Check = Check::new(Group::Networks, "no-default-route-outside");
const OVERLAP: Check = Check::new(Group::Networks, "overlapping-networks");
const EGRESS: Check = Check::new(Group::Networks, "egress-address-misplaced");
const NEXT_HOP: Check = Check::new(Group::Networks, "route-next-hop-not-inside");
const ELSEWHERE: Check = Check::new(Group::Networks, "pod-route-elsewhere");

/// Judges networks and routes.
pub fn judge(evidence: &Evidence) -> Vec<Finding> {
    let view = match View::of(evidence) {
        Ok(view) => view,
        Err(reason) => {
            let checks = [DEFAULT_INSIDE, NO_DEFAULT, OVERLAP, EGRESS, NEXT_HOP, ELSEWHERE];
            return checks.map(|check| check.skipped(&reason)).into();
        }
    };
    let mut findings = default_routes(&view);
    findings.extend(overlaps(&view));
    findings.extend(match evidence.tenants() {
        Ok(tenants) => egress_addresses(&view, tenants),
        Err(reason) => vec![EGRESS.skipped(reason)],
    });
    findings.extend(next_hops(&view));
    findings.extend(pod_routes(&view));
    findings
}

struct View<'a> {
    config: &'a Config,
    facts: &'a Facts,
    interfaces: Interfaces,
    inside: Ipv4Net,
    outside: Ipv4Net,
}

impl<'a> View<'a> {
    fn of(evidence: &'a Evidence) -> Known<Self> {
        let (config, facts, interfaces) = (evidence.config()?, evidence.kernel()?, evidence.interfaces()?);
        let network = |side| match facts.port(&interfaces, side) {
            Ok((_, network)) => Ok(network),
            Err(_) => Err(format!("{} is not usable", interfaces.name(side))),
        };
        let (inside, outside) = (network(Side::Inside)?, network(Side::Outside)?);
        Ok(Self { config, facts, interfaces, inside, outside })
    }

    fn side_of(&self, route: &Route) -> Option<Side> {
        self.facts.sides(&self.interfaces).of(route.link)
    }

    fn device_of(&self, route: &Route) -> &str {
        let link = self.facts.links.iter().find(|link| link.index == route.link);
        link.map_or("a link that is gone", |link| &link.name)
    }

    /// Returns the networks of pods, and where each is configured.
    fn pod_networks(&self) -> Vec<(Ipv4Net, String)> {
        let cidrs = self.config.pod_cidrs.iter().enumerate();
        let routes = self.config.routes.iter().enumerate();
        let cidrs = cidrs.map(|(index, cidr)| (*cidr, format!("cluster.pod_cidrs[{index}]")));
        cidrs
            .chain(routes.map(|(index, route)| (route.pod_cidr, format!("cluster.routes[{index}].pod_cidr"))))
            .collect()
    }
}

fn default_routes(view: &View<'_>) -> Vec<Finding> {
    // Two halves are how VPN clients and some routers spell a default route that wins over another.
    let defaults: Vec<&Route> =
        view.facts.routes.iter().filter(|route| route.prefix.prefix_len() <= 1).collect();
    let on = |side| defaults.iter().filter(move |route| view.side_of(route) == Some(side));
    let inside =
        on(Side::Inside).map(|route| default_inside(view, route, on(Side::Outside).next().is_some()));
    let mut findings =
        DEFAULT_INSIDE.or_fine(inside.collect(), "no default route leaves by the inside interface");
    findings.push(match on(Side::Outside).next() {
        Some(route) => NO_DEFAULT.fine(format!("{}{}", route.prefix, via(route))),
        None => NO_DEFAULT
            .warning(format!("no default route leaves by {}", view.interfaces.outside))
            .because(format!(
                "Tenants reach {} and no further, unless BGP brings more routes.",
                view.outside.trunc()
            ))
            .fix("Add a default route by the upstream router, unless a routing daemon does.")
            .run(format!("ip route add default via ROUTER dev {}", view.interfaces.outside)),
    });
    findings
}

fn default_inside(view: &View<'_>, route: &Route, has_outside: bool) -> Finding {
    let device = &view.interfaces.inside;
    let summary = format!("route {}{} leaves by {device}, the inside interface", route.prefix, via(route));
    let why = if has_outside {
        "The gateway's own packets, and with IP forwarding others' too, leave by whichever metric is smaller: replies \
         and translated packets may go back into the cluster's network."
    } else {
        "Replies and translated packets have no way out: the fast path finds no route outside and drops (no_route), \
         the kernel sends its own back into the cluster's network."
    };
    let gateway = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    DEFAULT_INSIDE
        .broken(summary)
        .because(why)
        .fix("Remove it, here and from what sets it at boot (DHCP on the inside interface does).")
        .run(format!("ip route del {}{gateway} dev {device} metric {}", route.prefix, route.metric))
}

fn via(route: &Route) -> String {
    route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default()
}

fn overlaps(view: &View<'_>) -> Vec<Finding> {
    let sides = [
        (view.inside.trunc(), format!("the network of {}", view.interfaces.inside)),
        (view.outside.trunc(), format!("the network of {}", view.interfaces.outside)),
    ];
    let mut found = Vec::new();
    if overlap(sides[0].0, sides[1].0) {
        found.push(overlapping(&sides[0], &sides[1]).because(
            "The kernel looks for hosts of one side on the other: ARP, replies and egress addresses go astray.",
        ));
    }
    for pods in view.pod_networks() {
        for side in sides.iter().filter(|side| overlap(side.0, pods.0)) {
            found.push(overlapping(&pods, side).because(
                "Pods and hosts of that network have the same addresses: packets of nodes or routers are taken for \
                 pods' and refused, and replies to pods go to the wrong host.",
            ));
        }
    }
    OVERLAP.or_fine(found, "inside, outside and pod networks are apart")
}

fn overlapping(one: &(Ipv4Net, String), other: &(Ipv4Net, String)) -> Finding {
    OVERLAP
        .broken(format!("{} ({}) overlaps with {} ({})", one.0, one.1, other.0, other.1))
        .fix("Give each its own network; correct the config file if it does not say what the cluster has.")
        .run("ip -4 -brief address; ip route")
}

fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

fn egress_addresses(view: &View<'_>, tenants: &[Tenant]) -> Vec<Finding> {
    let pods = view.pod_networks();
    let mut found = Vec::new();
    for tenant in tenants {
        let own = tenant.sources.pod_cidrs.iter().map(|cidr| (*cidr, "its sources".to_owned()));
        let networks: Vec<_> = pods.iter().cloned().chain(own).collect();
        for egress in &tenant.egress_ips {
            let place = networks.iter().find(|(network, _)| network.contains(egress));
            let inside = (view.inside.trunc(), format!("the network of {}", view.interfaces.inside));
            let place = place.or(Some(&inside).filter(|(network, _)| network.contains(egress)));
            let Some((network, name)) = place else { continue };
            found.push(
                EGRESS
                    .broken(format!(
                        "{egress}, an egress address of {}, is in {network} ({name})",
                        tenant.name
                    ))
                    .because("Servers' replies go into the cluster, not to the gateway.")
                    .fix(format!(
                        "Give {} an address that upstream routes to {}.",
                        tenant.name, view.interfaces.outside
                    ))
                    .run(format!("spillway tenant show {}", tenant.name)),
            );
        }
    }
    EGRESS.or_fine(found, "no egress address is in a pod network or on the inside")
}

fn next_hops(view: &View<'_>) -> Vec<Finding> {
    let stray = view.config.routes.iter().enumerate().filter(|(_, route)| !view.inside.contains(&route.via));
    let found = stray.map(|(index, route)| {
        NEXT_HOP
            .broken(format!(
                "cluster.routes[{index}].via: {} is not in {}, the network of {}",
                route.via,
                view.inside.trunc(),
                view.interfaces.inside
            ))
            .because("Replies to the pods of that node have no next hop; the daemon refuses to start.")
            .fix("Give the node's address on the inside network.")
            .run("kubectl get nodes -o wide")
    });
    NEXT_HOP.or_fine(found.collect(), "every node of the config file is on the inside network")
}

fn pod_routes(view: &View<'_>) -> Vec<Finding> {
    let pods = view.pod_networks();
    let routed = |route: &&Route| {
        let inside = view.side_of(route) == Some(Side::Inside);
        let is_outside_network = route.prefix == view.outside.trunc(); // an overlap, and told as one
        !inside && !is_outside_network && pods.iter().any(|(pods, _)| pods.contains(&route.prefix))
    };
    let found = view.facts.routes.iter().filter(routed).map(|route| {
        let device = view.device_of(route);
        ELSEWHERE
            .broken(format!(
                "route {}{} leaves by {device}, but it is a pod network",
                route.prefix,
                via(route)
            ))
            .because(
                "Replies to these pods need a route by the inside interface; the kernel keeps the other one.",
            )
            .fix(
                "Remove the route and what makes it (a container runtime's bridge, a VPN, a routing daemon).",
            )
            .run(format!("ip route del {} dev {device}", route.prefix))
    });
    ELSEWHERE.or_fine(found.collect(), "no pod network is routed by another interface than the inside one")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{healthy, ids, route};
    use super::*;

    #[test]
    fn healthy_networks_have_no_findings() {
        assert_eq!(ids(&judge(&healthy())), [""; 0]);
    }

    #[test]
    fn a_default_route_inside_is_found_beside_one_outside_and_alone() {
        for (prefix, keep, expected) in [
            ("0.0.0.0/0", true, vec!["default-route-inside"]),
            ("128.0.0.0/1", true, vec!["default-route-inside"]),
            ("0.0.0.0/0", false, vec!["default-route-inside", "no-default-route-outside"]),
        ] {
            let mut evidence = healthy();
            let routes = &mut evidence.kernel.as_mut().unwrap().routes;
            if !keep {
                routes.retain(|route| route.prefix.prefix_len() > 0);
            }
            routes.push(route(prefix, Some("192.168.99.1"), 2));
            assert_eq!(ids(&judge(&evidence)), expected, "{prefix}");
        }
    }

    #[test]
    fn networks_that_overlap_are_found() {
        let mut evidence = healthy();
        evidence.kernel.as_mut().unwrap().addresses[1].address = [192, 168, 99, 200].into();
        evidence.kernel.as_mut().unwrap().addresses[1].prefix_len = 25;
        assert_eq!(ids(&judge(&evidence)), ["overlapping-networks"]);
        for (cidr, count) in
            [("192.168.0.0/16", 2), ("192.168.99.0/25", 1), ("192.168.55.0/24", 1), ("10.0.0.0/8", 0)]
        {
            let mut evidence = healthy();
            evidence.config.as_mut().unwrap().pod_cidrs = vec![cidr.parse().unwrap()];
            evidence.tenants = Ok(Vec::new());
            assert_eq!(ids(&judge(&evidence)), vec!["overlapping-networks"; count], "{cidr}");
        }
    }

    #[test]
    fn an_egress_address_in_the_cluster_is_found() {
        for address in ["10.132.0.99", "192.168.99.77"] {
            let mut evidence = healthy();
            evidence.tenants.as_mut().unwrap()[0].egress_ips = vec![address.parse().unwrap()];
            assert_eq!(ids(&judge(&evidence)), ["egress-address-misplaced"], "{address}");
        }
    }

    #[test]
    fn routes_that_lead_astray_are_found() {
        let mut evidence = healthy();
        evidence.config.as_mut().unwrap().routes[0].via = [192, 168, 55, 21].into();
        assert_eq!(ids(&judge(&evidence)), ["route-next-hop-not-inside"]);
        let mut evidence = healthy();
        evidence.kernel.as_mut().unwrap().routes.push(route("10.132.1.0/24", None, 3));
        assert_eq!(ids(&judge(&evidence)), ["pod-route-elsewhere"]);
    }
}

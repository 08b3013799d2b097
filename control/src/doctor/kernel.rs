//! Settings of the kernel that Spillway needs, or that somebody changed under it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::evidence::{Evidence, Known};
use super::finding::{Check, Finding, Group};
use crate::netlink::facts::Facts;

const RP_FILTER: Check = Check::new(Group::Kernel, "rp-filter-strict");
const IP_FORWARD: Check = Check::new(Group::Kernel, "ip-forward-on");
const CHANGED: Check = Check::new(Group::Kernel, "setting-changed");
const NEIGHBOURS: Check = Check::new(Group::Kernel, "neighbour-table-small");

const GC_THRESHOLD: &str = "net/ipv4/neigh/default/gc_thresh3";

/// Judges the kernel's settings.
pub fn judge(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = rp_filter(evidence);
    findings.push(ip_forward(evidence));
    findings.extend(changed(evidence));
    findings.push(neighbours(evidence).unwrap_or_else(|reason| NEIGHBOURS.skipped(reason)));
    findings
}

/// While no daemon runs strict filters do no harm: the daemon loosens them when it starts.
fn rp_filter(evidence: &Evidence) -> Vec<Finding> {
    let known = || -> Known<_> { Ok((evidence.interfaces()?, evidence.kernel()?, evidence.status()?)) };
    let (interfaces, facts, _) = match known() {
        Ok(known) => known,
        Err(reason) => return vec![RP_FILTER.skipped(reason)],
    };
    let filter = |link: &str| -> Option<u8> {
        let value = |scope: &str| {
            evidence.settings.get(&format!("net/ipv4/conf/{scope}/rp_filter"))?.parse::<u8>().ok()
        };
        Some(value("all")?.max(value(link)?)) // the kernel uses the greater one
    };
    let tenants = facts.links.iter().filter(|link| link.is_tenant_link()).map(|link| link.name.as_str());
    let links = [interfaces.inside.as_str(), &interfaces.outside].into_iter().chain(tenants);
    let strict = links.filter(|link| filter(link) == Some(1)).map(|link| {
        let finding = if link == interfaces.outside {
            RP_FILTER.warning(strict_on(link)).because(
                "What is sent to the gateway itself, such as BGP, is dropped when the route back leaves elsewhere.",
            )
        } else {
            RP_FILTER.broken(strict_on(link)).because(
                "Nodes' pings and BFD come in by the tenants' links, but the route back is the inside interface's: the \
                 kernel drops them, and clusters with BFD take the gateway for dead.",
            )
        };
        finding
            .fix("Loosen it on the link, and in what sets it (sysctl.d, tuned, NetworkManager).")
            .run(format!("sysctl -w net.ipv4.conf.{link}.rp_filter=2"))
    });
    RP_FILTER.or_fine(strict.collect(), "source addresses are not checked strictly on the gateway's links")
}

fn strict_on(link: &str) -> String {
    format!("rp_filter is strict (1) on {link}")
}

fn ip_forward(evidence: &Evidence) -> Finding {
    match evidence.settings.get("net/ipv4/ip_forward").map(String::as_str) {
        None => IP_FORWARD.skipped("net.ipv4.ip_forward cannot be read"),
        Some("0") => IP_FORWARD.fine("net.ipv4.ip_forward is 0; Spillway does not need it"),
        Some(value) => IP_FORWARD
            .warning(format!("net.ipv4.ip_forward is {value}"))
            .because(
                "Spillway does not need it. The kernel then forwards what is not a tenant's between inside and outside, \
                 and pods' packets, untranslated, as soon as the XDP programs are detached.",
            )
            .fix("Switch it off, unless something else on this host routes.")
            .run("sysctl -w net.ipv4.ip_forward=0"),
    }
}

fn changed(evidence: &Evidence) -> Vec<Finding> {
    let isolated = match evidence.status().and(evidence.isolated.as_ref().map_err(Clone::clone)) {
        Ok(isolated) => isolated,
        Err(reason) => return vec![CHANGED.skipped(reason)],
    };
    let found = isolated.iter().filter_map(|(path, wanted)| {
        let value = evidence.settings.get(path)?;
        let name = path.replace('/', ".");
        (value != wanted).then(|| {
            CHANGED
                .broken(format!("{name} is {value}; Spillway had set it to {wanted}"))
                .because(if name.contains("arp_") {
                    "The interface may answer ARP for a tenant's gateway address with its own MAC, or ask in its name: \
                     nodes then send tenants' packets to the wrong MAC, where they are refused as leaks."
                } else {
                    "Nodes' pings and BFD to gateway addresses may be dropped."
                })
                .fix("Set it back, and find what changed it (sysctl.d, tuned, NetworkManager, keepalived).")
                .run(format!("sysctl -w {name}={wanted}"))
        })
    });
    CHANGED.or_fine(found.collect(), format!("{} settings are as Spillway set them", isolated.len()))
}

fn neighbours(evidence: &Evidence) -> Known<Finding> {
    let limit = evidence.settings.get(GC_THRESHOLD).and_then(|value| value.parse::<usize>().ok());
    let limit = limit.ok_or("net.ipv4.neigh.default.gc_thresh3 is not visible in this network namespace")?;
    let needed = needed_neighbours(evidence, evidence.kernel()?);
    // The kernel begins to evict at half of the limit (gc_thresh2 by default), and other hosts need room too.
    if needed * 2 <= limit {
        return Ok(NEIGHBOURS.fine(format!("{needed} neighbours, room for {limit}")));
    }
    let summary = format!("{needed} neighbours and next hops, room for {limit} (gc_thresh3)");
    let finding = if needed > limit { NEIGHBOURS.broken(summary) } else { NEIGHBOURS.warning(summary) };
    let room = (needed * 4).next_power_of_two();
    Ok(finding
        .because("Beyond that the kernel resolves nobody new: replies to pods on further nodes are dropped.")
        .fix("Raise the limits of the neighbour table, here and in sysctl.d.")
        .run(format!(
            "sysctl -w net.ipv4.neigh.default.gc_thresh3={room} net.ipv4.neigh.default.gc_thresh2={}",
            room / 2
        )))
}

fn needed_neighbours(evidence: &Evidence, facts: &Facts) -> usize {
    let configured = evidence.config.iter().flat_map(|config| &config.routes).map(|route| route.via);
    let routed = facts.routes.iter().filter_map(|route| route.gateway);
    let known = facts.neighbours.iter().map(|neighbour| neighbour.address);
    configured.chain(routed).chain(known).collect::<BTreeSet<Ipv4Addr>>().len()
}

#[cfg(test)]
mod tests {
    use super::super::evidence::Silence;
    use super::super::testing::{healthy, ids, route};
    use super::*;

    #[test]
    fn a_healthy_kernel_has_no_findings() {
        assert_eq!(ids(&judge(&healthy())), [""; 0]);
    }

    #[test]
    fn the_stricter_of_all_and_the_link_counts() {
        for (scope, value, expected) in [
            ("in0", "1", vec!["rp-filter-strict"]),
            ("spw-c0a8630d", "1", vec!["rp-filter-strict"]),
            ("all", "1", vec!["rp-filter-strict"; 3]),
            ("all", "2", vec![]),
        ] {
            let mut evidence = healthy();
            evidence.settings.insert(format!("net/ipv4/conf/{scope}/rp_filter"), value.to_owned());
            assert_eq!(ids(&judge(&evidence)), expected, "{scope} {value}");
        }
    }

    #[test]
    fn a_strict_filter_is_harmless_before_the_daemon_runs() {
        let mut evidence = healthy();
        evidence.settings.insert("net/ipv4/conf/all/rp_filter".to_owned(), "1".to_owned());
        evidence.status = Err(Silence::NoDaemon("nobody listens".into()));
        assert_eq!(ids(&judge(&evidence)), [""; 0]);
    }

    #[test]
    fn forwarding_is_found() {
        let mut evidence = healthy();
        evidence.settings.insert("net/ipv4/ip_forward".to_owned(), "1".to_owned());
        assert_eq!(ids(&judge(&evidence)), ["ip-forward-on"]);
    }

    #[test]
    fn a_setting_that_somebody_changed_is_found_with_both_values() {
        let mut evidence = healthy();
        let path = "net/ipv4/conf/in0/arp_ignore".to_owned();
        evidence.isolated = Ok(vec![(path.clone(), "1".into())]);
        assert_eq!(ids(&judge(&evidence)), [""; 0]);
        evidence.settings.insert(path, "0".into());
        let findings = judge(&evidence);
        assert_eq!(ids(&findings), ["setting-changed"]);
        let expected = "net.ipv4.conf.in0.arp_ignore is 0; Spillway had set it to 1";
        assert!(findings.iter().any(|finding| finding.summary == expected), "{findings:?}");
    }

    #[test]
    fn a_neighbour_table_without_room_for_the_nodes_is_found() {
        for (limit, severe) in [("2", true), ("5", false)] {
            let mut evidence = healthy();
            evidence.kernel.as_mut().unwrap().routes.push(route("10.132.2.0/24", Some("192.168.99.23"), 2));
            evidence.settings.insert(GC_THRESHOLD.to_owned(), limit.to_owned());
            let findings = judge(&evidence);
            assert_eq!(ids(&findings), ["neighbour-table-small"], "{limit}");
            assert_eq!(super::super::finding::Diagnosis::of(findings).broken == 1, severe, "{limit}");
        }
    }
}

//! Addresses that only the gateway may answer for, and who else does.

use fastpath::snapshot::Side;

use super::evidence::{ArpAnswer, Evidence, Known};
use super::finding::{Check, Finding, Group};
use crate::netlink::facts::{Facts, Interfaces};
use crate::netlink::links::Link;
use crate::tenant::{Tenant, mac_to_text};

const EGRESS: Check = Check::new(Group::Addresses, "egress-address-taken");
const GATEWAY: Check = Check::new(Group::Addresses, "gateway-address-taken");
const OWN: Check = Check::new(Group::Addresses, "own-address-taken");
const MAC: Check = Check::new(Group::Addresses, "gateway-mac-elsewhere");

/// Judges who answers for the gateway's addresses.
pub fn judge(evidence: &Evidence) -> Vec<Finding> {
    let known = || -> Known<_> { Ok((evidence.tenants()?, evidence.kernel()?, evidence.interfaces()?)) };
    let (tenants, facts, interfaces) = match known() {
        Ok(known) => known,
        Err(reason) => {
            return [EGRESS, GATEWAY, OWN, MAC].map(|check| check.skipped(&reason)).into();
        }
    };
    let mut findings =
        taken_on(evidence, Side::Outside, EGRESS, "nobody else answers for an egress address", |answer| {
            let tenant = tenants.iter().find(|tenant| tenant.egress_ips.contains(&answer.address))?;
            Some(taken_egress(answer, tenant, &interfaces))
        });
    findings.extend(taken_on(
        evidence,
        Side::Inside,
        GATEWAY,
        "nobody else answers for a gateway address",
        |answer| {
            let tenant = tenants.iter().find(|tenant| tenant.gateway_ip == answer.address)?;
            Some(taken_gateway(answer, tenant, &interfaces))
        },
    ));
    for side in Side::BOTH {
        let own = facts.port(&interfaces, side).map(|(_, network)| network.addr());
        let summary =
            format!("nobody else answers for the gateway's own address on {}", interfaces.name(side));
        findings.extend(taken_on(evidence, side, OWN, &summary, |answer| {
            (own == Ok(answer.address)).then(|| taken_own(answer, &interfaces))
        }));
    }
    findings.extend(strange_neighbours(tenants, facts, &interfaces));
    findings
}

/// Makes findings of one side's answers, by a function that knows which ones a check is about.
fn taken_on(
    evidence: &Evidence,
    side: Side,
    check: Check,
    fine: &str,
    judge: impl Fn(&ArpAnswer) -> Option<Finding>,
) -> Vec<Finding> {
    let links = evidence.kernel.iter().flat_map(|facts| &facts.links);
    let own: Vec<&Link> = links.filter(|link| !link.is_tenant_link()).collect();
    let found = |answer: &ArpAnswer| {
        let own = own.iter().find(|link| link.mac == Some(answer.mac));
        judge(answer).map(|finding| own.map_or(finding, |link| taken_by_own(check, answer, link)))
    };
    match evidence.answers.on(side) {
        Ok(answers) => check.or_fine(answers.iter().filter_map(found).collect(), fine),
        Err(reason) => vec![check.skipped(reason)],
    }
}

fn taken_by_own(check: Check, answer: &ArpAnswer, link: &Link) -> Finding {
    let (name, side) = (&link.name, answer.side.name());
    check
        .broken(format!("{name}, of this host, answers on the {side} network for {} with its own MAC", answer.address))
        .because(
            "Two interfaces are on one network and the kernel answers by any of them: others learn the wrong MAC, and \
             their packets come in where nothing translates them.",
        )
        .fix("Give each interface a network of its own, or let it answer for its own addresses only.")
        .run(format!("sysctl -w net.ipv4.conf.{name}.arp_ignore=1"))
}

fn taken_egress(answer: &ArpAnswer, tenant: &Tenant, interfaces: &Interfaces) -> Finding {
    let (address, mac, device) = (answer.address, mac_to_text(answer.mac), &interfaces.outside);
    EGRESS
        .broken(format!("{mac} answers on {device} for {address}, an egress address of {}", tenant.name))
        .because(format!("Servers' replies to {} go to that host whenever it answers first.", tenant.name))
        .fix("Take the address off that host, or give the tenant another one.")
        .run(format!("arping -D -I {device} {address}"))
}

fn taken_gateway(answer: &ArpAnswer, tenant: &Tenant, interfaces: &Interfaces) -> Finding {
    let (address, device) = (answer.address, &interfaces.inside);
    let mac = mac_to_text(answer.mac);
    let (who, why) = if answer.mac == tenant.effective_mac() {
        (
            format!("another host with the tenant's own MAC {mac}"),
            "Another gateway serves the tenant at the same time, or the switch sends frames back: the tenant's packets \
             go to whichever port the switch saw last.",
        )
    } else {
        (
            mac,
            "Nodes send the tenant's packets to that host whenever it answers first, and drop their sessions as the MAC \
             changes.",
        )
    };
    GATEWAY
        .broken(format!("{who} answers on {device} for {address}, the gateway address of {}", tenant.name))
        .because(why)
        .fix("Take the address off that host, or give the tenant another gateway address.")
        .run(format!("arping -D -I {device} {address}"))
}

fn taken_own(answer: &ArpAnswer, interfaces: &Interfaces) -> Finding {
    let (address, device) = (answer.address, interfaces.name(answer.side));
    OWN.broken(format!(
        "{} answers on {device} for {address}, the gateway's own address",
        mac_to_text(answer.mac)
    ))
    .because("Routers and nodes take turns in whom they reach under that address.")
    .fix("Give one of the two hosts another address.")
    .run(format!("arping -D -I {device} {address}"))
}

fn strange_neighbours(tenants: &[Tenant], facts: &Facts, interfaces: &Interfaces) -> Vec<Finding> {
    let mut found = Vec::new();
    for neighbour in &facts.neighbours {
        let Some(side) = facts.sides(interfaces).of(neighbour.link) else { continue };
        let Some(mac) = neighbour.usable_mac() else { continue };
        let owner = tenants.iter().find(|tenant| tenant.effective_mac() == mac);
        let Some(tenant) = owner else { continue };
        let (device, address) = (interfaces.name(side), neighbour.address);
        found.push(
            MAC.broken(format!("{address} on {device} has the MAC {} of {}", mac_to_text(mac), tenant.name))
                .because("The switch sends the tenant's packets to whichever port that MAC was seen on last.")
                .fix("Give the tenant another gatewayMAC, or change that host's.")
                .run(format!("ip neigh show dev {device} {address}")),
        );
    }
    MAC.or_fine(found, "no neighbour has a tenant's MAC")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use macaddr::MacAddr6;

    use super::super::testing::{healthy, ids};
    use super::*;
    use crate::netlink::neighbours::{Neighbour, Resolution};

    const STRANGER: MacAddr6 = MacAddr6::new(2, 0xaa, 0, 0, 0, 1);

    #[test]
    fn addresses_that_nobody_else_answers_for_have_no_findings() {
        assert_eq!(ids(&judge(&healthy())), [""; 0]);
    }

    #[test]
    fn who_answers_for_the_gateways_addresses_is_found() {
        let table = [
            (Side::Outside, [192, 168, 55, 113], STRANGER, "egress-address-taken"),
            (Side::Inside, [192, 168, 99, 13], STRANGER, "gateway-address-taken"),
            (
                Side::Inside,
                [192, 168, 99, 13],
                MacAddr6::new(2, 0x53, 192, 168, 99, 13),
                "gateway-address-taken",
            ),
            (Side::Inside, [192, 168, 99, 12], STRANGER, "own-address-taken"),
        ];
        for (side, address, mac, id) in table {
            let mut evidence = healthy();
            let answer = ArpAnswer { side, address: Ipv4Addr::from(address), mac };
            match side {
                Side::Inside => evidence.answers.inside = Ok(vec![answer]),
                Side::Outside => evidence.answers.outside = Ok(vec![answer]),
            }
            let findings = judge(&evidence);
            assert_eq!(ids(&findings), [id]);
            assert!(
                findings.iter().any(|finding| finding.summary.contains(&mac_to_text(mac))),
                "{findings:?}"
            );
        }
    }

    #[test]
    fn another_interface_of_this_host_that_answers_is_named() {
        let mut evidence = healthy();
        let mac = evidence.kernel.as_ref().unwrap().link("out0").unwrap().mac.unwrap();
        let address = Ipv4Addr::new(192, 168, 99, 13);
        evidence.answers.inside = Ok(vec![ArpAnswer { side: Side::Inside, address, mac }]);
        let findings = judge(&evidence);
        assert_eq!(ids(&findings), ["gateway-address-taken"]);
        assert!(
            findings.iter().any(|finding| finding.summary.starts_with("out0, of this host")),
            "{findings:?}"
        );
    }

    #[test]
    fn a_neighbour_with_a_tenants_mac_is_found() {
        let mut evidence = healthy();
        let neighbour = Neighbour {
            link: 2,
            address: [192, 168, 99, 66].into(),
            mac: Some(MacAddr6::new(2, 0x53, 192, 168, 99, 13)),
            resolution: Resolution::Stale,
            ours: false,
        };
        evidence.kernel.as_mut().unwrap().neighbours.push(neighbour);
        assert_eq!(ids(&judge(&evidence)), ["gateway-mac-elsewhere"]);
    }

    #[test]
    fn without_probes_neighbours_are_judged_nevertheless() {
        let mut evidence = healthy();
        evidence.answers.inside = Err("CAP_NET_RAW is needed".into());
        evidence.answers.outside = evidence.answers.inside.clone();
        let findings = judge(&evidence);
        assert_eq!(ids(&findings), [""; 0]);
        assert_eq!(findings.last().unwrap().summary, "no neighbour has a tenant's MAC");
    }
}

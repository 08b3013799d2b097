//! The two interfaces: there, up, with an address, and alike.

use fastpath::dataplane::AttachPreference;
use fastpath::snapshot::Side;

use super::evidence::{Evidence, Known};
use super::finding::{Check, Finding, Group};
use crate::netlink::facts::{Facts, InterfaceError, Interfaces};
use crate::netlink::links::Link;

const MISSING: Check = Check::new(Group::Interfaces, "interface-missing");
const DOWN: Check = Check::new(Group::Interfaces, "interface-down");
const NOT_ETHERNET: Check = Check::new(Group::Interfaces, "interface-not-ethernet");
const NO_ADDRESS: Check = Check::new(Group::Interfaces, "interface-without-address");
const USABLE: Check = Check::new(Group::Interfaces, "interfaces-usable");
const MTU_LIMIT: Check = Check::new(Group::Interfaces, "mtu-too-large");
const MTU_GAP: Check = Check::new(Group::Interfaces, "mtu-gap");
const XDP_MODE: Check = Check::new(Group::Interfaces, "xdp-not-native");
const QUEUES: Check = Check::new(Group::Interfaces, "too-few-queues");

/// Largest packet that a frame holds, in bytes.
const LARGEST_MTU: u32 = 1778;

/// Judges the two interfaces.
pub fn judge(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = usable(evidence);
    findings.extend(mtu(evidence));
    findings.extend(xdp_mode(evidence));
    findings.extend(queues(evidence));
    findings
}

fn usable(evidence: &Evidence) -> Vec<Finding> {
    let (facts, interfaces) = match known(evidence) {
        Ok(known) => known,
        Err(reason) => return vec![USABLE.skipped(reason)],
    };
    let errors = Side::BOTH.into_iter().filter_map(|side| facts.port(&interfaces, side).err());
    let summary = format!("{} and {} are up and have addresses", interfaces.inside, interfaces.outside);
    USABLE.or_fine(errors.map(|error| unusable(&error)).collect(), summary)
}

fn unusable(error: &InterfaceError) -> Finding {
    let (check, name, fix) = match error {
        InterfaceError::Missing { name, .. } => {
            (MISSING, name, "Name an interface that `ip link` lists in the config file.".to_owned())
        }
        InterfaceError::Down { name, .. } => (DOWN, name, "Set it up.".to_owned()),
        InterfaceError::NotEthernet { name, .. } => {
            (NOT_ETHERNET, name, "Name an Ethernet interface in the config file.".to_owned())
        }
        InterfaceError::NoAddress { name, .. } => {
            (NO_ADDRESS, name, "Give it an IPv4 address of its network.".to_owned())
        }
    };
    let command = match error {
        InterfaceError::Missing { .. } | InterfaceError::NotEthernet { .. } => "ip -brief link".to_owned(),
        InterfaceError::Down { .. } => format!("ip link set {name} up"),
        InterfaceError::NoAddress { .. } => format!("ip address add ADDRESS/LENGTH dev {name}"),
    };
    let why =
        "The daemon does not start, and one that runs drops this side's traffic until that is put right.";
    check.broken(error.to_string()).because(why).fix(fix).run(command)
}

fn mtu(evidence: &Evidence) -> Vec<Finding> {
    let links = match links(evidence) {
        Ok(links) => links,
        Err(reason) => return [MTU_LIMIT, MTU_GAP].map(|check| check.skipped(&reason)).into(),
    };
    let [inside, outside] = links;
    let too_large = links.iter().filter(|link| link.mtu > LARGEST_MTU).map(|link| {
        MTU_LIMIT
            .broken(format!("{} has an MTU of {} bytes; at most {LARGEST_MTU} fit", link.name, link.mtu))
            .because("A frame's buffer holds no more with native XDP; the daemon refuses to start.")
            .fix("Lower the MTU here and on the switch port's other hosts.")
            .run(format!("ip link set {} mtu 1500", link.name))
    });
    let fits = format!("{} and {} bytes", inside.mtu, outside.mtu);
    let mut findings = MTU_LIMIT.or_fine(too_large.collect(), fits);
    findings.push(mtu_gap(inside, outside));
    findings
}

fn mtu_gap(inside: &Link, outside: &Link) -> Finding {
    if inside.mtu == outside.mtu {
        return MTU_GAP.fine(format!("both are {} bytes", inside.mtu));
    }
    let (large, small) = if inside.mtu > outside.mtu { (inside, outside) } else { (outside, inside) };
    let sender = if inside.mtu > outside.mtu { "pods" } else { "servers" };
    MTU_GAP
        .warning(format!(
            "{} has an MTU of {} bytes and {} one of {}",
            large.name, large.mtu, small.name, small.mtu
        ))
        .because(format!(
            "What {sender} send with more than {} bytes is answered with ICMP fragmentation needed, on which path MTU \
             discovery depends, or fragmented where that is allowed, which costs speed.",
            small.mtu
        ))
        .fix(format!(
            "Raise the MTU of {} where that network carries it; else clamp the tenants' TCP segments (mss_clamp = {}).",
            small.name,
            small.mtu.saturating_sub(40) // IPv4 and TCP headers without options
        ))
        .run(format!("ip link set {} mtu {}", small.name, large.mtu))
}

fn xdp_mode(evidence: &Evidence) -> Vec<Finding> {
    let status = match evidence.status() {
        Ok(status) => status,
        Err(reason) => return vec![configured_mode(evidence).unwrap_or_else(|| XDP_MODE.skipped(reason))],
    };
    let found = status.interfaces.iter().filter_map(|interface| {
        let name = &interface.name;
        match interface.xdp_mode.as_str() {
            "native" => None,
            "none" => Some(
                XDP_MODE
                    .broken(format!("no XDP program is attached to {name} while the daemon runs"))
                    .because("Tenants' packets go to the kernel, which answers or forwards them itself.")
                    .fix("Restart the daemon, and find out what detached the program.")
                    .run("systemctl restart spillway"),
            ),
            mode => Some(
                XDP_MODE
                    .warning(format!("{name} has its XDP program in {mode} mode, not in the driver"))
                    .because("Each frame is first copied into a socket buffer, which costs most of the speed.")
                    .fix(
                        "Where the driver has native XDP, set xdp.mode = \"native\" and read the start's error; else \
                         use a NIC whose driver has it.",
                    )
                    .run(format!("ethtool -i {name}")),
            ),
        }
    });
    XDP_MODE.or_fine(found.collect(), "both interfaces run the XDP program in the driver")
}

/// Judges what a daemon would do, while none tells what it does.
fn configured_mode(evidence: &Evidence) -> Option<Finding> {
    let config = evidence.config.as_ref().ok().filter(|config| config.attach == AttachPreference::Generic)?;
    let finding = XDP_MODE
        .warning("xdp.mode is \"generic\"")
        .because("Each frame is first copied into a socket buffer, which costs most of the speed.")
        .fix("Set xdp.mode = \"auto\", which takes the driver's native mode where there is one.")
        .run(format!("ethtool -i {}", config.inside));
    Some(finding)
}

fn queues(evidence: &Evidence) -> Vec<Finding> {
    let judged = || -> Known<Finding> {
        let config = evidence.config()?;
        let [inside, outside] = evidence.queues.clone()?;
        let (name, fewest) =
            if inside <= outside { (&config.inside, inside) } else { (&config.outside, outside) };
        let Some(workers) = config.workers.filter(|workers| *workers > fewest as usize) else {
            return Ok(QUEUES.fine(format!("{inside} rx queues inside, {outside} outside")));
        };
        Ok(QUEUES
            .warning(format!("workers.count is {workers}, but {name} has {fewest} rx queues"))
            .because(
                "Workers without a queue there receive from the others, and send by way of them, which costs hand-overs.",
            )
            .fix(format!("Add queues where the NIC has more; else set workers.count to {fewest}, or leave it out."))
            .run(format!("ethtool -L {name} combined {workers}")))
    };
    vec![judged().unwrap_or_else(|reason| QUEUES.skipped(reason))]
}

fn links(evidence: &Evidence) -> Known<[&Link; 2]> {
    let (facts, interfaces) = known(evidence)?;
    let link = |side| {
        let name = interfaces.name(side);
        facts.link(name).ok_or_else(|| format!("{name} does not exist"))
    };
    Ok([link(Side::Inside)?, link(Side::Outside)?])
}

fn known(evidence: &Evidence) -> Known<(&Facts, Interfaces)> {
    Ok((evidence.kernel()?, evidence.interfaces()?))
}

#[cfg(test)]
mod tests {
    use super::super::evidence::Silence;
    use super::super::testing::{healthy, ids};
    use super::*;

    #[test]
    fn healthy_interfaces_have_no_findings() {
        assert_eq!(ids(&judge(&healthy())), [""; 0]);
    }

    #[test]
    fn an_interface_that_cannot_be_used_is_found() {
        let facts = |change: fn(&mut Facts)| {
            let mut evidence = healthy();
            change(evidence.kernel.as_mut().unwrap());
            evidence
        };
        let table = [
            (facts(|facts| facts.links.retain(|link| link.name != "in0")), "interface-missing"),
            (facts(|facts| facts.links[1].up = false), "interface-down"),
            (facts(|facts| facts.links[2].mac = None), "interface-not-ethernet"),
            (facts(|facts| facts.addresses.retain(|have| have.link != 3)), "interface-without-address"),
        ];
        for (evidence, id) in table {
            assert_eq!(ids(&judge(&evidence)), [id]);
        }
    }

    #[test]
    fn mtus_that_differ_or_do_not_fit_are_found() {
        for (inside, outside, expected) in [
            (1500, 1400, vec!["mtu-gap"]),
            (1400, 1500, vec!["mtu-gap"]),
            (9000, 9000, vec!["mtu-too-large", "mtu-too-large"]),
            (1778, 1778, vec![]),
        ] {
            let mut evidence = healthy();
            let links = &mut evidence.kernel.as_mut().unwrap().links;
            (links[1].mtu, links[2].mtu) = (inside, outside);
            assert_eq!(ids(&judge(&evidence)), expected, "{inside} and {outside}");
        }
    }

    #[test]
    fn a_program_outside_of_the_driver_is_found() {
        let mut evidence = healthy();
        evidence.status.as_mut().unwrap().interfaces[1].xdp_mode = "generic".into();
        let findings = judge(&evidence);
        assert_eq!(ids(&findings), ["xdp-not-native"]);
        assert!(findings.iter().any(|finding| finding.summary.contains("out0")), "{findings:?}");
        evidence.status = Err(Silence::NoDaemon("nobody".into()));
        assert_eq!(ids(&judge(&evidence)), [""; 0]);
        evidence.config.as_mut().unwrap().attach = AttachPreference::Generic;
        assert_eq!(ids(&judge(&evidence)), ["xdp-not-native"]);
    }

    #[test]
    fn fewer_queues_than_workers_are_found() {
        let mut evidence = healthy();
        evidence.config.as_mut().unwrap().workers = Some(4);
        evidence.queues = Ok([8, 2]);
        let findings = judge(&evidence);
        assert_eq!(ids(&findings), ["too-few-queues"]);
        assert!(findings.iter().any(|finding| finding.summary.contains("out0 has 2")), "{findings:?}");
    }

    #[test]
    fn what_is_not_known_is_skipped() {
        let mut evidence = healthy();
        evidence.kernel = Err("no netlink".into());
        evidence.status = Err(Silence::NoDaemon("nobody".into()));
        evidence.queues = Err("no interface".into());
        assert_eq!(ids(&judge(&evidence)), [""; 0]);
    }
}

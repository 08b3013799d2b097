//! What tenants' packets come from, and what they are configured to come from.

use super::evidence::Evidence;
use super::finding::{Check, Finding, Group};
use crate::api::types::{Status, TenantView};

const SNAT_MODE: Check = Check::new(Group::Tenants, "wrong-snat-mode");

/// Counter of a tenant that takes pods, for packets that come from a node's address.
const NODE_SOURCE: &str = "node_source";
/// Counter of a tenant that takes nodes, for packets that come from a pod's address.
const POD_SOURCE: &str = "pod_source";

/// Judges what tenants' packets come from.
pub fn judge(evidence: &Evidence) -> Vec<Finding> {
    let status = match evidence.status() {
        Ok(status) => status,
        Err(reason) => return vec![SNAT_MODE.skipped(reason)],
    };
    let later = evidence.later.as_ref().unwrap_or(status);
    let found = later.tenants.iter().flat_map(|tenant| {
        let growth = |reason| (count(tenant, reason), growth(status, tenant, reason));
        let from_nodes = Some(growth(NODE_SOURCE)).filter(|(count, _)| *count > 0);
        let from_pods = Some(growth(POD_SOURCE)).filter(|(count, _)| *count > 0);
        let nodes = from_nodes.map(|(count, growth)| nodes_instead_of_pods(tenant, count, growth));
        nodes.into_iter().chain(from_pods.map(|(count, growth)| pods_instead_of_nodes(tenant, count, growth)))
    });
    SNAT_MODE.or_fine(found.collect(), "no packet came from the wrong kind of source")
}

fn nodes_instead_of_pods(tenant: &TenantView, count: u64, growth: u64) -> Finding {
    let name = &tenant.tenant.name;
    let summary = format!(
        "{name} takes pods as sources, but {count} packets came from nodes{} ({NODE_SOURCE})",
        growing(growth)
    );
    found(summary, growth)
        .because(
            "The cluster translates pods to their node's address before packets get here, so they belong to no pod and \
             are dropped.",
        )
        .fix(format!(
            "Either let pods keep their addresses: OVN-Kubernetes with --disable-snat-multiple-gws, and on OpenShift \
             gatewayConfig.routingViaHost: false; or let {name} take nodes: sources: {{nodes: true}} (nodes = true in \
             the config file)."
        ))
        .run(format!("spillway tenant show {name}"))
}

fn pods_instead_of_nodes(tenant: &TenantView, count: u64, growth: u64) -> Finding {
    let name = &tenant.tenant.name;
    let summary = format!(
        "{name} takes nodes as sources, but {count} packets came from pods{} ({POD_SOURCE})",
        growing(growth)
    );
    found(summary, growth)
        .because("The cluster lets pods keep their addresses, which this tenant does not take; they are dropped.")
        .fix(format!(
            "Let {name} take pods: leave sources.nodes out (the cluster's pod networks), or set sources: {{fromPolicy: \
             true}} or podCIDRs; or let the cluster translate: OVN-Kubernetes without --disable-snat-multiple-gws."
        ))
        .run(format!("spillway tenant show {name}"))
}

/// Packets that come now are lost; those that came once may be of a time before somebody put it right.
fn found(summary: String, growth: u64) -> Finding {
    if growth > 0 { SNAT_MODE.broken(summary) } else { SNAT_MODE.warning(summary) }
}

fn growing(growth: u64) -> String {
    if growth > 0 { format!(", {growth} of them just now") } else { String::new() }
}

fn growth(before: &Status, tenant: &TenantView, reason: &str) -> u64 {
    let name = &tenant.tenant.name;
    let earlier = before.tenants.iter().find(|earlier| earlier.tenant.name == *name);
    count(tenant, reason).saturating_sub(earlier.map_or(0, |earlier| count(earlier, reason)))
}

fn count(tenant: &TenantView, reason: &str) -> u64 {
    tenant.status.drops.get(reason).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::super::testing::{healthy, ids};
    use super::*;

    #[test]
    fn tenants_whose_sources_match_have_no_findings() {
        assert_eq!(ids(&judge(&healthy())), [""; 0]);
    }

    #[test]
    fn packets_from_the_wrong_kind_of_source_are_found() {
        for (reason, before, after, severity, advice) in [
            (NODE_SOURCE, 3, 12, Severity::Broken, "sources: {nodes: true}"),
            (NODE_SOURCE, 12, 12, Severity::Warning, "--disable-snat-multiple-gws"),
            (POD_SOURCE, 0, 12, Severity::Broken, "leave sources.nodes out"),
        ] {
            let mut evidence = healthy();
            for (status, count) in [(&mut evidence.status, before), (&mut evidence.later, after)] {
                let drops = &mut status.as_mut().unwrap().tenants[0].status.drops;
                drops.insert(reason.to_owned(), count);
            }
            let findings = judge(&evidence);
            assert_eq!(ids(&findings), ["wrong-snat-mode"]);
            assert_eq!(findings[0].severity, severity, "{findings:?}");
            assert!(findings[0].summary.contains("12 packets"), "{findings:?}");
            assert!(findings[0].fix.contains(advice), "{findings:?}");
        }
    }
}

//! What an EgressTenant is told of itself.
//!
//! Equal inputs give equal statuses, and times change with what they are the times of, so that writing a status never
//! asks for another write.

use std::net::Ipv4Addr;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::egress_tenant::{EgressTenantStatus, NamespaceStatus};
use super::objects::TenantObject;
use super::state::{Link, ObjectVersion, Outcome, TenantOutcome};
use super::view::{Compiled, View};

/// Time between writes for the sake of the numbers of sessions and pods alone.
pub const COUNTS_INTERVAL: Duration = Duration::from_secs(30);
/// Namespaces that a status names, before it only counts.
const NAMED_NAMESPACES: usize = 100;

/// Whether the gateway takes a tenant's specification.
pub(super) enum Acceptance<'a> {
    /// It does, and has this of it.
    Accepted(&'a TenantOutcome),
    /// It has not looked at it yet.
    Pending,
    /// It does not.
    Refused {
        /// One word in CamelCase.
        reason: &'static str,
        /// Field, value and what would be accepted.
        message: String,
    },
}

/// What a condition says: status, reason, message.
type Finding = (&'static str, &'static str, String);

/// Returns the status that an object should have.
pub fn status(
    object: &TenantObject,
    view: &View,
    compiled: &Compiled,
    outcome: &Outcome,
    now: Timestamp,
) -> EgressTenantStatus {
    let acceptance = acceptance(object, outcome);
    let running = running(object, outcome);
    let gateway = gateway(object, running, compiled);
    let link = gateway.and_then(|gateway| compiled.state.links.get(&gateway));
    let programmed = programmed(&acceptance, running, outcome);
    let is_programmed = programmed.0 == "True";
    let findings = [
        ("Accepted", accepted(object, &acceptance, running)),
        ("Programmed", programmed),
        ("Routed", routed(gateway, link, view)),
        ("SourcesMatch", sources_match(running)),
    ];
    let namespaces = link.iter().flat_map(|link| &link.namespaces);
    EgressTenantStatus {
        conditions: findings
            .into_iter()
            .map(|(kind, finding)| condition(object, kind, finding, now))
            .collect(),
        observed_generation: object.generation,
        gateway_mac: running.map(|tenant| tenant.gateway_mac.clone()).unwrap_or_default(),
        applied_epoch: running.filter(|_| is_programmed).map_or(0, |tenant| i64::from(tenant.epoch.0)),
        sessions: running.map_or(0, |tenant| i64::try_from(tenant.sessions).unwrap_or(i64::MAX)),
        policies: link.map(|link| link.policies.iter().cloned().collect()).unwrap_or_default(),
        namespaces: namespaces
            .take(NAMED_NAMESPACES)
            .map(|(name, pods)| NamespaceStatus { name: name.clone(), pods: count(pods.len()) })
            .collect(),
        namespace_count: count(link.map_or(0, |link| link.namespaces.len())),
        pod_count: count(link.map_or(0, |link| link.pods().count())),
    }
}

/// Tells whether a status has to be written: at once if it differs, but for the sake of numbers alone only so often.
pub fn is_due(
    observed: &Option<EgressTenantStatus>,
    wanted: &EgressTenantStatus,
    since_counts_were_written: Duration,
) -> bool {
    let Some(observed) = observed else { return true };
    without_counts(observed) != without_counts(wanted)
        || (observed != wanted && since_counts_were_written >= COUNTS_INTERVAL)
}

/// Returns a status without the numbers that change with every session and pod; whether there are pods at all stays.
pub(super) fn without_counts(status: &EgressTenantStatus) -> EgressTenantStatus {
    let uncounted = |namespace: &NamespaceStatus| NamespaceStatus { pods: 0, ..namespace.clone() };
    EgressTenantStatus {
        sessions: 0,
        namespaces: status.namespaces.iter().map(uncounted).collect(),
        pod_count: status.pod_count.min(1),
        ..status.clone()
    }
}

/// Returns the numbers that [`without_counts`] leaves out.
pub(super) fn counts(status: &EgressTenantStatus) -> (i64, i64, Vec<i64>) {
    let pods = status.namespaces.iter().map(|namespace| namespace.pods);
    (status.sessions, status.pod_count, pods.collect())
}

/// Returns whether the gateway takes this version of an object.
pub(super) fn acceptance<'a>(object: &TenantObject, outcome: &'a Outcome) -> Acceptance<'a> {
    if object.is_deleted {
        let message = "is being deleted, and waits for its finalizers".into();
        return Acceptance::Refused { reason: "Deleting", message };
    }
    if let Err(refusal) = &object.tenant {
        return Acceptance::Refused { reason: "Invalid", message: refusal.to_string() };
    }
    let name = &object.identity.name;
    let is_this = |version: &ObjectVersion| {
        version.uid == object.identity.uid && version.generation == object.generation
    };
    if let Some(refused) = outcome.refused.get(name).filter(|refused| is_this(&refused.object)) {
        let reason = if refused.is_conflict { "Conflict" } else { "Invalid" };
        return Acceptance::Refused { reason, message: refused.message.clone() };
    }
    match outcome.tenants.get(name) {
        Some(tenant) if tenant.object.as_ref().is_some_and(is_this) => Acceptance::Accepted(tenant),
        Some(_) | None => Acceptance::Pending,
    }
}

/// Returns what the gateway has of an object, of whatever generation.
fn running<'a>(object: &TenantObject, outcome: &'a Outcome) -> Option<&'a TenantOutcome> {
    let tenant = outcome.tenants.get(&object.identity.name)?;
    let version = tenant.object.as_ref()?;
    (version.uid == object.identity.uid).then_some(tenant)
}

/// Returns the gateway address that an object asks for, or has.
fn gateway(object: &TenantObject, running: Option<&TenantOutcome>, compiled: &Compiled) -> Option<Ipv4Addr> {
    let asked = object.tenant.as_ref().ok().map(|tenant| tenant.gateway_ip);
    let has = || running.map(|tenant| tenant.gateway_ip);
    let had = || {
        let mut tenants = compiled.state.tenants.iter();
        tenants.find(|tenant| tenant.uid == object.identity.uid).map(|tenant| tenant.tenant.gateway_ip)
    };
    asked.or_else(has).or_else(had)
}

fn accepted(object: &TenantObject, acceptance: &Acceptance<'_>, running: Option<&TenantOutcome>) -> Finding {
    match acceptance {
        Acceptance::Accepted(_) => ("True", "Accepted", "the specification is in force".into()),
        Acceptance::Pending => {
            ("Unknown", "Pending", "the gateway has not looked at this specification yet".into())
        }
        Acceptance::Refused { reason, message } => {
            let older = running.and_then(|tenant| tenant.object.as_ref());
            let message = match older.filter(|version| version.generation != object.generation) {
                Some(version) => {
                    format!("{message}; until then generation {} stays in force", version.generation)
                }
                None => message.clone(),
            };
            ("False", reason, message)
        }
    }
}

fn programmed(acceptance: &Acceptance<'_>, running: Option<&TenantOutcome>, outcome: &Outcome) -> Finding {
    let tenant = match acceptance {
        Acceptance::Accepted(tenant) => tenant,
        Acceptance::Pending => {
            return ("False", "Pending", "the gateway has not looked at this specification yet".into());
        }
        Acceptance::Refused { .. } if running.is_some() => {
            return ("False", "NotAccepted", "the gateway goes on with an earlier generation".into());
        }
        Acceptance::Refused { .. } => {
            return ("False", "NotAccepted", "the gateway forwards nothing for this tenant".into());
        }
    };
    match &tenant.trouble {
        Some(trouble) => ("False", "Trouble", trouble.clone()),
        None if outcome.applied < tenant.epoch => {
            ("False", "Pending", format!("not every worker uses snapshot {} yet", tenant.epoch.0))
        }
        None => {
            ("True", "Programmed", format!("every worker uses snapshot {} or a later one", tenant.epoch.0))
        }
    }
}

fn routed(gateway: Option<Ipv4Addr>, link: Option<&Link>, view: &View) -> Finding {
    let Some(gateway) = gateway else {
        return ("Unknown", "NotAccepted", "there is no gatewayIP that could be read".into());
    };
    if view.policies.is_none() || view.namespaces.is_none() {
        let message =
            "policies and namespaces were not listed yet; the gateway needs to get, list and watch both";
        return ("Unknown", "PoliciesUnknown", message.into());
    }
    match link {
        Some(link) if !link.policies.is_empty() => {
            ("True", "PolicyFound", format!("AdminPolicyBasedExternalRoutes have the next hop {gateway}"))
        }
        Some(_) | None => {
            let message =
                format!("no AdminPolicyBasedExternalRoute has the next hop {gateway}; add one that does");
            ("False", "NoPolicy", message)
        }
    }
}

fn sources_match(running: Option<&TenantOutcome>) -> Finding {
    let Some(tenant) = running else {
        return ("Unknown", "NotAccepted", "the gateway forwards nothing for this tenant".into());
    };
    if tenant.mismatched.from_nodes > 0 {
        let message = "packets arrive from addresses of nodes and are dropped, as sources says pods; set \
                       sources.nodes to true, or keep the cluster from translating pods to their node's address \
                       (OVN-Kubernetes: disable-snat-multiple-gws)";
        return ("False", "NodeSources", message.into());
    }
    if tenant.mismatched.from_pods > 0 {
        let message = "packets arrive from addresses of pods and are dropped, as sources.nodes is true; set it to \
                       false, and sources.podCIDRs or sources.fromPolicy as needed";
        return ("False", "PodSources", message.into());
    }
    ("True", "Matching", "what arrives comes from where sources says".into())
}

/// Returns a condition, with the time that it has in the API as long as its status is the same.
fn condition(
    object: &TenantObject,
    kind: &str,
    (status, reason, message): Finding,
    now: Timestamp,
) -> Condition {
    let observed = object.status.iter().flat_map(|observed| &observed.conditions);
    let mut same = observed.filter(|condition| condition.type_ == kind && condition.status == status);
    let whole_seconds = || Time(Timestamp::from_second(now.as_second()).unwrap_or(now)); // as the API writes them
    Condition {
        last_transition_time: same
            .next()
            .map_or_else(whole_seconds, |condition| condition.last_transition_time.clone()),
        message,
        observed_generation: Some(object.generation),
        reason: reason.to_owned(),
        status: status.to_owned(),
        type_: kind.to_owned(),
    }
}

fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;

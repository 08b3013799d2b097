//! The Kubernetes API: whether it answers, and whether it lets Spillway do what it needs.

use super::evidence::{Cluster, ClusterAnswers, Evidence, Known};
use super::finding::{Check, Finding, Group};

const CREDENTIALS: Check = Check::new(Group::Kubernetes, "kubeconfig-unusable");
const UNREACHABLE: Check = Check::new(Group::Kubernetes, "api-unreachable");
const REFUSED: Check = Check::new(Group::Kubernetes, "api-refuses-credentials");
const RBAC: Check = Check::new(Group::Kubernetes, "rbac-gap");
const CRD: Check = Check::new(Group::Kubernetes, "crd-missing");
const POLICIES: Check = Check::new(Group::Kubernetes, "policy-kind-missing");

/// Something that Spillway does over the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// What is done.
    pub verb: &'static str,
    /// API group; empty: the core group.
    pub group: &'static str,
    /// Plural of the kind.
    pub resource: &'static str,
    /// Part of the object; empty: all of it.
    pub subresource: &'static str,
    /// Namespace in which it is done; empty: all of them, or none.
    pub namespace: &'static str,
    /// What becomes of it without.
    purpose: &'static str,
}

const OVN: &str = "k8s.ovn.org";
const OWN: &str = "spillway.dev";

/// Everything that Spillway does over the API.
pub const NEEDS: [Need; 12] = [
    need("list", "", "nodes", "Return routes to the nodes' pods are not learned."),
    need("watch", "", "nodes", "New and deleted nodes are not noticed."),
    need("list", "", "namespaces", "It is not known which namespaces a policy selects."),
    need("watch", "", "namespaces", "New namespaces and changed labels are not noticed."),
    need("list", "", "pods", "Tenants with sources.fromPolicy take no pod."),
    need("watch", "", "pods", "Tenants with sources.fromPolicy do not notice new pods."),
    need("list", OWN, "egresstenants", "No tenant comes from the cluster."),
    need("watch", OWN, "egresstenants", "New and changed tenants are not noticed."),
    need("list", OVN, "adminpolicybasedexternalroutes", "It is not known what is routed to a tenant."),
    need("watch", OVN, "adminpolicybasedexternalroutes", "New and changed policies are not noticed."),
    Need {
        subresource: "status",
        ..need(
            "patch",
            OWN,
            "egresstenants",
            "Tenants' conditions are not written: nobody in the cluster sees them.",
        )
    },
    Need {
        namespace: "default", // where events of objects that are in no namespace are kept
        ..need("create", "events.k8s.io", "events", "Problems are told in the log only, not as events.")
    },
];

const fn need(
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    purpose: &'static str,
) -> Need {
    Need { verb, group, resource, subresource: "", namespace: "", purpose }
}

impl Need {
    /// Returns the resource as RBAC rules and kubectl name it.
    fn full_resource(&self) -> String {
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        let part = if self.subresource.is_empty() { String::new() } else { format!("/{}", self.subresource) };
        format!("{}{group}{part}", self.resource)
    }

    /// Tells whether Spillway goes on well without it, but for what it tells the cluster.
    fn is_telling(&self) -> bool {
        matches!(self.verb, "patch" | "create")
    }
}

/// Judges the Kubernetes API.
pub fn judge(evidence: &Evidence) -> Vec<Finding> {
    match &evidence.cluster {
        Cluster::NotAsked(reason) => {
            let all = [CREDENTIALS, UNREACHABLE, REFUSED, CRD, POLICIES, RBAC];
            all.map(|check| check.skipped(reason)).into()
        }
        Cluster::NoCredentials(reason) => vec![
            CREDENTIALS
                .broken(reason.clone())
                .because("The API is not asked: tenants and nodes stay as they were last known.")
                .fix("Name a kubeconfig in kubernetes.kubeconfig that the daemon may read and that has a context.")
                .run("kubectl --kubeconfig FILE version"),
        ],
        Cluster::Unreachable(reason) => vec![
            CREDENTIALS.fine("the kubeconfig can be read"),
            UNREACHABLE
                .broken(reason.clone())
                .because("Changes of tenants, nodes and pods do not reach the gateway, which goes on as it is.")
                .fix("See that the server's address is right and reachable from here, and its CA the kubeconfig's.")
                .run("kubectl --kubeconfig FILE get --raw /version"),
        ],
        Cluster::Refused(reason) => vec![
            CREDENTIALS.fine("the kubeconfig can be read"),
            UNREACHABLE.fine("the API answers"),
            REFUSED
                .broken(reason.clone())
                .because("The token or certificate is wrong or has expired: nothing is read from the cluster.")
                .fix("Give the kubeconfig new credentials of Spillway's service account.")
                .run("kubectl --namespace spillway create token spillway-gateway --duration 48h"),
        ],
        Cluster::Answers(answers) => answered(answers),
    }
}

fn answered(answers: &ClusterAnswers) -> Vec<Finding> {
    let mut findings = vec![
        CREDENTIALS.fine("the kubeconfig can be read"),
        UNREACHABLE.fine(format!("{} answers", answers.server)),
        REFUSED.fine("the credentials are accepted"),
        crd(&answers.has_tenants),
        policies(&answers.has_policies),
    ];
    findings.extend(rbac(&answers.allowed));
    findings
}

fn crd(has_tenants: &Known<bool>) -> Finding {
    match has_tenants {
        Err(reason) => CRD.skipped(reason),
        Ok(true) => CRD.fine("EgressTenant (spillway.dev/v1alpha1) is installed"),
        Ok(false) => CRD
            .broken("the cluster has no kind EgressTenant (spillway.dev/v1alpha1)")
            .because("Tenants cannot be made in the cluster.")
            .fix("Install the custom resource definition.")
            .run("spillway crd | kubectl apply -f -"),
    }
}

fn policies(has_policies: &Known<bool>) -> Finding {
    match has_policies {
        Err(reason) => POLICIES.skipped(reason),
        Ok(true) => POLICIES.fine("AdminPolicyBasedExternalRoute (k8s.ovn.org/v1) is installed"),
        Ok(false) => POLICIES
            .warning("the cluster has no kind AdminPolicyBasedExternalRoute (k8s.ovn.org/v1)")
            .because(
                "Nothing routes namespaces to the gateway, and tenants with sources.fromPolicy take no pod.",
            )
            .fix("Use a cluster with OVN-Kubernetes, or route by other means and give tenants podCIDRs.")
            .run("kubectl api-resources --api-group k8s.ovn.org"),
    }
}

fn rbac(allowed: &[Known<bool>]) -> Vec<Finding> {
    let found = NEEDS.iter().zip(allowed).filter_map(|(need, allowed)| match allowed {
        Ok(true) => None,
        Err(reason) => Some(RBAC.skipped(format!("{} {}: {reason}", need.verb, need.full_resource()))),
        Ok(false) => {
            let summary = format!("Spillway may not {} {}", need.verb, need.full_resource());
            let finding = if need.is_telling() { RBAC.warning(summary) } else { RBAC.broken(summary) };
            let apply = "Grant it to the gateway's service account; the manifests do.";
            Some(finding.because(need.purpose).fix(apply).run("kubectl apply -k deploy"))
        }
    });
    RBAC.or_fine(found.collect(), format!("all {} rights are granted", NEEDS.len()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{healthy, ids};
    use super::*;

    #[test]
    fn an_api_that_lets_spillway_work_has_no_findings() {
        assert_eq!(ids(&judge(&healthy())), [""; 0]);
    }

    #[test]
    fn an_api_that_cannot_be_asked_is_found() {
        let table = [
            (Cluster::NotAsked("kubernetes.enabled is false".into()), vec![]),
            (Cluster::NoCredentials("no such file".into()), vec!["kubeconfig-unusable"]),
            (Cluster::Unreachable("connection refused".into()), vec!["api-unreachable"]),
            (Cluster::Refused("Unauthorized".into()), vec!["api-refuses-credentials"]),
        ];
        for (cluster, expected) in table {
            let evidence = Evidence { cluster, ..healthy() };
            assert_eq!(ids(&judge(&evidence)), expected);
        }
    }

    #[test]
    fn kinds_that_are_not_installed_are_found() {
        let answers = |has_tenants, has_policies| {
            let Cluster::Answers(answers) = healthy().cluster else { unreachable!("a healthy API answers") };
            let answers =
                ClusterAnswers { has_tenants: Ok(has_tenants), has_policies: Ok(has_policies), ..answers };
            judge(&Evidence { cluster: Cluster::Answers(answers), ..healthy() })
        };
        let findings = answers(false, true);
        assert_eq!(ids(&findings), ["crd-missing"]);
        let command = findings.iter().find_map(|finding| finding.command.as_deref());
        assert_eq!(command, Some("spillway crd | kubectl apply -f -"));
        assert_eq!(ids(&answers(true, false)), ["policy-kind-missing"]);
    }

    #[test]
    fn each_right_that_is_missing_is_named() {
        for (index, need) in NEEDS.iter().enumerate() {
            let Cluster::Answers(mut answers) = healthy().cluster else {
                unreachable!("a healthy API answers")
            };
            answers.allowed[index] = Ok(false);
            let findings = judge(&Evidence { cluster: Cluster::Answers(answers), ..healthy() });
            assert_eq!(ids(&findings), ["rbac-gap"]);
            let words = format!("{} {}", need.verb, need.full_resource());
            assert!(findings.iter().any(|finding| finding.summary.ends_with(&words)), "{findings:?}");
        }
        assert_eq!(NEEDS[10].full_resource(), "egresstenants.spillway.dev/status");
    }
}

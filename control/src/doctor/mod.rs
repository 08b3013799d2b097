//! What is wrong with a gateway, why it matters, and how to put it right.
//!
//! ```text
//!  host, config file, daemon, API ─▶ gather ─▶ Evidence ─▶ judge ─▶ Diagnosis
//! ```
//!
//! Gathering changes nothing and never fails: what cannot be known is kept as the reason, and skips the checks that
//! need it. Judging is pure.
//!
//! - [`finding`]: what a check says
//! - [`evidence`]: everything that the checks judge
//! - [`gather`]: asks the host, the daemon, the wire and the API
//! - [`process`], [`interfaces`], [`networks`], [`kernel`], [`addresses`], [`tenants`], [`cluster`], [`clock`]: the checks

pub mod addresses;
pub mod clock;
pub mod cluster;
pub mod evidence;
pub mod finding;
pub mod gather;
pub mod interfaces;
pub mod kernel;
pub mod networks;
pub mod process;
pub mod tenants;
#[cfg(test)]
mod testing;

use self::evidence::Evidence;
use self::finding::{Diagnosis, Finding};

/// Judges all evidence.
pub fn judge(evidence: &Evidence) -> Diagnosis {
    let checks: [fn(&Evidence) -> Vec<Finding>; 8] = [
        process::judge,
        interfaces::judge,
        networks::judge,
        kernel::judge,
        addresses::judge,
        tenants::judge,
        cluster::judge,
        clock::judge,
    ];
    Diagnosis::of(checks.iter().flat_map(|judge| judge(evidence)).collect())
}

#[cfg(test)]
mod tests {
    use super::evidence::{Answers, Cluster, Host, Silence};
    use super::finding::Severity;
    use super::testing::healthy;
    use super::*;

    #[test]
    fn a_healthy_gateway_has_nothing_but_fine_findings() {
        let diagnosis = judge(&healthy());
        let strange: Vec<_> =
            diagnosis.findings.iter().filter(|finding| finding.severity != Severity::Fine).collect();
        assert!(strange.is_empty(), "{strange:?}");
        assert!(diagnosis.findings.len() > 30);
    }

    #[test]
    fn where_nothing_is_known_checks_are_skipped_and_say_why() {
        let unknown = || "not known".to_owned();
        let evidence = Evidence {
            config: Err("cannot read the config file".into()),
            status: Err(Silence::NoDaemon(unknown())),
            later: Err(Silence::NoDaemon(unknown())),
            tenants: Err(unknown()),
            process: Err(unknown()),
            host: Host {
                held: Vec::new(),
                pins: Err(unknown()),
                is_bpffs: Err(unknown()),
                state: Err(unknown()),
            },
            kernel: Err(unknown()),
            settings: Default::default(),
            isolated: Err(unknown()),
            queues: Err(unknown()),
            answers: Answers { inside: Err(unknown()), outside: Err(unknown()) },
            clock: Err(unknown()),
            cluster: Cluster::NotAsked(unknown()),
            ..healthy()
        };
        let diagnosis = judge(&evidence);
        let ids: Vec<&str> = diagnosis.findings.iter().take(2).map(|finding| finding.id.as_str()).collect();
        assert_eq!(ids, ["config-refused", "daemon-not-running"]);
        assert_eq!((diagnosis.broken, diagnosis.warnings), (2, 0));
        assert_eq!(diagnosis.skipped, diagnosis.findings.len() - 2);
        assert!(diagnosis.findings.iter().all(|finding| !finding.summary.is_empty()));
    }

    #[test]
    fn the_worst_of_a_group_comes_first() {
        let mut evidence = healthy();
        evidence.settings.insert("net/ipv4/ip_forward".into(), "1".into());
        evidence.settings.insert("net/ipv4/conf/in0/rp_filter".into(), "1".into());
        let diagnosis = judge(&evidence);
        let kernel = diagnosis.findings.iter().filter(|finding| finding.group == finding::Group::Kernel);
        let ids: Vec<&str> = kernel.take(2).map(|finding| finding.id.as_str()).collect();
        assert_eq!(ids, ["rp-filter-strict", "ip-forward-on"]);
        assert_eq!((diagnosis.broken, diagnosis.warnings), (1, 1));
    }
}

//! The host's clock, by which tokens and certificates are judged.

use super::evidence::{Cluster, Evidence, Known};
use super::finding::{Check, Finding, Group};

const SYNCHRONISED: Check = Check::new(Group::Clock, "clock-not-synchronised");
const API: Check = Check::new(Group::Clock, "clock-differs-from-api");

/// Seconds by which clocks may differ before tokens and certificates begin to fail.
const TOLERANCE: u64 = 60;

/// Judges the clock.
pub fn judge(evidence: &Evidence) -> Vec<Finding> {
    vec![synchronised(&evidence.clock), api(&evidence.cluster)]
}

fn synchronised(clock: &Known<bool>) -> Finding {
    match clock {
        Err(reason) => SYNCHRONISED.skipped(reason),
        Ok(true) => SYNCHRONISED.fine("the kernel's clock is synchronised"),
        Ok(false) => SYNCHRONISED
            .warning("the kernel's clock is not synchronised")
            .because(
                "It drifts: tokens and certificates fail some day, and logs of gateway and cluster differ.",
            )
            .fix("Run a time service, such as chrony or systemd-timesyncd.")
            .run("timedatectl set-ntp true"),
    }
}

fn api(cluster: &Cluster) -> Finding {
    let ahead = match cluster {
        Cluster::Answers(answers) => &answers.seconds_ahead,
        Cluster::NotAsked(reason) => return API.skipped(reason),
        Cluster::NoCredentials(_) | Cluster::Unreachable(_) | Cluster::Refused(_) => {
            return API.skipped("the API server does not tell its time");
        }
    };
    match ahead {
        Err(reason) => API.skipped(reason),
        Ok(seconds) if seconds.unsigned_abs() <= TOLERANCE => {
            API.fine(format!("{} s from the API server's", seconds.unsigned_abs()))
        }
        Ok(seconds) => API
            .broken(format!(
                "this clock is {} s {} the API server's",
                seconds.unsigned_abs(),
                if *seconds > 0 { "behind" } else { "ahead of" }
            ))
            .because("Tokens and certificates are taken for not yet valid, or expired.")
            .fix("Set the clock that is wrong, and run a time service on both.")
            .run("timedatectl status; chronyc tracking"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{healthy, ids};
    use super::*;

    #[test]
    fn a_clock_that_is_right_has_no_findings() {
        assert_eq!(ids(&judge(&healthy())), [""; 0]);
    }

    #[test]
    fn a_clock_that_drifts_is_found() {
        let evidence = Evidence { clock: Ok(false), ..healthy() };
        assert_eq!(ids(&judge(&evidence)), ["clock-not-synchronised"]);
    }

    #[test]
    fn a_clock_far_from_the_api_servers_is_found() {
        for (seconds, expected) in
            [(60, None), (-60, None), (61, Some("61 s behind")), (-900, Some("900 s ahead of"))]
        {
            let Cluster::Answers(mut answers) = healthy().cluster else {
                unreachable!("a healthy API answers")
            };
            answers.seconds_ahead = Ok(seconds);
            let findings = judge(&Evidence { cluster: Cluster::Answers(answers), ..healthy() });
            assert_eq!(ids(&findings), expected.map(|_| "clock-differs-from-api").as_slice(), "{seconds}");
            let summary = findings[1].summary.as_str();
            assert!(expected.is_none_or(|words| summary.contains(words)), "{findings:?}");
        }
    }
}

//! Which statuses have to be written now. Pure: it is told what was tried and what became of it.
//!
//! What the API stored counts as observed until the watch tells of something else, so that nothing is written twice
//! while the watch lags behind.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::egress_tenant::EgressTenantStatus;
use super::objects::TenantObject;
use super::status::{self, COUNTS_INTERVAL, counts, without_counts};

/// Time after which a status is restored that somebody else has overwritten, such as a second gateway.
const RESTORE_INTERVAL: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
const DENIED_RETRY: Duration = Duration::from_secs(30);

/// Statuses that were written, by identity of their object.
#[derive(Debug, Default)]
pub struct Writes {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    tried: EgressTenantStatus,
    tried_at: Instant,
    /// The object's status when it was tried.
    observed: Option<EgressTenantStatus>,
    progress: Progress,
    failures: u32,
}

#[derive(Debug)]
enum Progress {
    InFlight,
    Stored(Option<EgressTenantStatus>),
    RetryAt(Instant),
    GivenUp,
}

/// What became of a write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Trying the same again is of no use: the object is gone or another, or the API refuses the content.
    Final,
    /// The role lacks the permission.
    Denied,
    /// Another try may succeed.
    Passing,
}

impl Writes {
    /// Returns an object's status as far as is known: what was stored last, until the watch tells of another.
    pub fn observed(&self, object: &TenantObject) -> Option<EgressTenantStatus> {
        match self.entries.get(&object.identity.uid) {
            Some(Entry { progress: Progress::Stored(stored), observed, .. })
                if *observed == object.status =>
            {
                stored.clone()
            }
            Some(_) | None => object.status.clone(),
        }
    }

    /// Tells whether an object's status has to be written now.
    pub fn is_due(&self, object: &TenantObject, wanted: &EgressTenantStatus, now: Instant) -> bool {
        let Some(entry) = self.entries.get(&object.identity.uid) else {
            return status::is_due(&object.status, wanted, Duration::MAX);
        };
        let age = now.saturating_duration_since(entry.tried_at);
        let observed = self.observed(object);
        if !status::is_due(&observed, wanted, age) {
            return false;
        }
        let is_same = essence(wanted) == essence(&entry.tried);
        match &entry.progress {
            Progress::InFlight => false,
            Progress::RetryAt(at) => now >= *at,
            Progress::GivenUp => !is_same || object.status != entry.observed,
            Progress::Stored(_) if !is_same => true,
            // The API keeps something else than what is written to it, and did so again: only numbers matter.
            Progress::Stored(stored) if observed == *stored => {
                counts(wanted) != counts(&entry.tried) && age >= COUNTS_INTERVAL
            }
            Progress::Stored(_) => age >= RESTORE_INTERVAL,
        }
    }

    /// Notes that a status is being written.
    pub fn begin(&mut self, object: &TenantObject, wanted: &EgressTenantStatus, now: Instant) {
        let failures = self.entries.get(&object.identity.uid).map_or(0, |entry| entry.failures);
        let entry = Entry {
            tried: wanted.clone(),
            tried_at: now,
            observed: object.status.clone(),
            progress: Progress::InFlight,
            failures,
        };
        self.entries.insert(object.identity.uid.clone(), entry);
    }

    /// Notes what became of a write: what the API stored, or why it did not.
    pub fn settle(&mut self, uid: &str, result: Result<Option<EgressTenantStatus>, Failure>, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.failures = if result.is_ok() { 0 } else { entry.failures + 1 };
        entry.progress = match result {
            Ok(stored) => Progress::Stored(stored),
            Err(Failure::Final) => Progress::GivenUp,
            Err(Failure::Denied) => Progress::RetryAt(now + DENIED_RETRY),
            Err(Failure::Passing) => {
                let factor = 1 << (entry.failures - 1).min(6);
                Progress::RetryAt(now + (FIRST_RETRY * factor).min(LAST_RETRY))
            }
        };
    }

    /// Forgets every object that is not among these.
    pub fn keep(&mut self, uids: &BTreeSet<&str>) {
        self.entries.retain(|uid, _| uids.contains(uid.as_str()));
    }
}

/// Returns a status without what changes by itself: numbers, and times that were not stored yet.
fn essence(status: &EgressTenantStatus) -> EgressTenantStatus {
    let mut essence = without_counts(status);
    for condition in &mut essence.conditions {
        condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
    }
    essence
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

    use super::super::fixtures::tenant;
    use super::*;

    #[test]
    fn what_was_written_is_not_written_again_before_the_watch_tells_of_it() {
        let (mut writes, object, now) = (Writes::default(), tenant("ns-blue", 1, 13), Instant::now());
        let wanted = status("True", 0, 0);
        assert!(writes.is_due(&object, &wanted, now));
        writes.begin(&object, &wanted, now);
        assert!(!writes.is_due(&object, &status("False", 0, 0), now), "one write at a time");
        writes.settle(&object.identity.uid, Ok(Some(wanted.clone())), now);
        assert_eq!(writes.observed(&object), Some(wanted.clone()));
        assert!(!writes.is_due(&object, &wanted, now + Duration::from_secs(3600)));
        let echoed = TenantObject { status: Some(wanted.clone()), ..object };
        assert!(!writes.is_due(&echoed, &wanted, now + Duration::from_secs(3600)));
        assert!(writes.is_due(&echoed, &status("False", 0, 0), now), "another content is written at once");
    }

    #[test]
    fn numbers_alone_are_written_every_half_minute() {
        let (mut writes, object, now) = (Writes::default(), tenant("ns-blue", 1, 13), Instant::now());
        written(&mut writes, &object, &status("True", 0, 5), now);
        assert!(!writes.is_due(&object, &status("True", 0, 6), now + Duration::from_secs(29)));
        assert!(writes.is_due(&object, &status("True", 0, 6), now + COUNTS_INTERVAL));
    }

    #[test]
    fn a_status_that_the_api_keeps_otherwise_is_not_written_for_ever() {
        let (mut writes, object, now) = (Writes::default(), tenant("ns-blue", 1, 13), Instant::now());
        let pruned = EgressTenantStatus::default();
        writes.begin(&object, &status("True", 0, 5), now);
        writes.settle(&object.identity.uid, Ok(Some(pruned.clone())), now);
        let echoed = TenantObject { status: Some(pruned), ..object.clone() };
        for later in [1, 60, 3600] {
            let now = now + Duration::from_secs(later);
            assert!(!writes.is_due(&object, &status("True", later as i64, 5), now));
            assert!(!writes.is_due(&echoed, &status("True", later as i64, 5), now));
        }
        assert!(!writes.is_due(&echoed, &status("True", 1, 6), now + Duration::from_secs(1)));
        assert!(writes.is_due(&echoed, &status("True", 1, 6), now + COUNTS_INTERVAL));
    }

    #[test]
    fn a_status_that_somebody_overwrites_is_restored_now_and_then() {
        let (mut writes, object, now) = (Writes::default(), tenant("ns-blue", 1, 13), Instant::now());
        let wanted = status("True", 0, 0);
        written(&mut writes, &object, &wanted, now);
        let overwritten = TenantObject { status: Some(status("Unknown", 0, 0)), ..object };
        assert!(!writes.is_due(&overwritten, &wanted, now + Duration::from_secs(29)));
        assert!(writes.is_due(&overwritten, &wanted, now + RESTORE_INTERVAL));
    }

    #[test]
    fn failures_are_retried_ever_later_or_given_up_until_something_changes() {
        let (object, now, wanted) = (tenant("ns-blue", 1, 13), Instant::now(), status("True", 0, 0));
        let mut writes = Writes::default();
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            writes.begin(&object, &wanted, now);
            writes.settle(&object.identity.uid, Err(Failure::Passing), now);
            let due = now + Duration::from_secs(seconds);
            assert!(!writes.is_due(&object, &wanted, due - Duration::from_millis(1)), "{seconds} s");
            assert!(writes.is_due(&object, &wanted, due), "{seconds} s");
        }
        writes.begin(&object, &wanted, now);
        writes.settle(&object.identity.uid, Err(Failure::Final), now);
        let later = now + Duration::from_secs(3600);
        assert!(!writes.is_due(&object, &status("True", 3600, 9), later), "time and sessions are no change");
        assert!(writes.is_due(&object, &status("False", 0, 0), now));
        let changed = TenantObject { status: Some(status("Unknown", 0, 0)), ..object };
        assert!(writes.is_due(&changed, &wanted, now));
    }

    #[test]
    fn an_object_that_is_gone_is_forgotten() {
        let (mut writes, object, now) = (Writes::default(), tenant("ns-blue", 1, 13), Instant::now());
        written(&mut writes, &object, &status("True", 0, 0), now);
        writes.keep(&BTreeSet::from([object.identity.uid.as_str()]));
        assert!(!writes.is_due(&object, &status("True", 0, 0), now));
        writes.keep(&BTreeSet::new());
        assert!(writes.is_due(&object, &status("True", 0, 0), now));
    }

    fn written(writes: &mut Writes, object: &TenantObject, wanted: &EgressTenantStatus, now: Instant) {
        writes.begin(object, wanted, now);
        writes.settle(&object.identity.uid, Ok(Some(wanted.clone())), now);
    }

    fn status(accepted: &str, second: i64, sessions: i64) -> EgressTenantStatus {
        let condition = Condition {
            type_: "Accepted".to_owned(),
            status: accepted.to_owned(),
            reason: "Tested".to_owned(),
            last_transition_time: Time(Timestamp::from_second(second).unwrap()),
            message: String::new(),
            observed_generation: Some(1),
        };
        EgressTenantStatus { conditions: vec![condition], sessions, ..EgressTenantStatus::default() }
    }
}

//! Which notices have to be published as events now. Pure: it is told what became of each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::view::Notice;

/// Time after which a notice that stays is published again.
const REPEAT_INTERVAL: Duration = Duration::from_secs(3600);
/// Time after which publishing is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// The API server keeps bursts of one source short as well; what waits here is not lost.
const IN_FLIGHT: usize = 2;

/// Notices that were published, with the time before which they are not published again.
#[derive(Debug, Default)]
pub struct Bulletin {
    entries: BTreeMap<Notice, Progress>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    InFlight,
    NotBefore(Instant),
}

impl Bulletin {
    /// Returns the notices that have to be published now, and counts them as being published.
    ///
    /// `notices` are sorted. One that comes and goes is published no more often than one that stays.
    pub fn begin(&mut self, notices: &[Notice], now: Instant) -> Vec<Notice> {
        self.entries.retain(|notice, progress| match progress {
            Progress::InFlight => true,
            Progress::NotBefore(time) => now < *time || notices.binary_search(notice).is_ok(),
        });
        let in_flight = self.entries.values().filter(|progress| **progress == Progress::InFlight).count();
        let is_due = |notice: &&Notice| match self.entries.get(*notice) {
            None => true,
            Some(Progress::InFlight) => false,
            Some(Progress::NotBefore(time)) => now >= *time,
        };
        let room = IN_FLIGHT.saturating_sub(in_flight);
        let due: Vec<_> = notices.iter().filter(is_due).take(room).cloned().collect();
        self.entries.extend(due.iter().map(|notice| (notice.clone(), Progress::InFlight)));
        due
    }

    /// Notes whether a notice was published.
    pub fn settle(&mut self, notice: Notice, is_published: bool, now: Instant) {
        let interval = if is_published { REPEAT_INTERVAL } else { RETRY_INTERVAL };
        self.entries.insert(notice, Progress::NotBefore(now + interval));
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::Kind;
    use super::*;

    #[test]
    fn a_notice_is_published_once_and_repeated_hourly() {
        let (mut bulletin, now, notices) = (Bulletin::default(), Instant::now(), [notice("w1")]);
        assert_eq!(bulletin.begin(&notices, now), notices);
        assert_eq!(bulletin.begin(&notices, now), []);
        bulletin.settle(notice("w1"), true, now);
        assert_eq!(bulletin.begin(&notices, now + REPEAT_INTERVAL - Duration::from_secs(1)), []);
        assert_eq!(bulletin.begin(&notices, now + REPEAT_INTERVAL), notices);
    }

    #[test]
    fn a_notice_that_comes_and_goes_is_published_no_more_often() {
        let (mut bulletin, now, notices) = (Bulletin::default(), Instant::now(), [notice("w1")]);
        bulletin.begin(&notices, now);
        bulletin.settle(notice("w1"), true, now);
        assert_eq!(bulletin.begin(&[], now), []);
        assert_eq!(bulletin.begin(&notices, now + Duration::from_secs(5)), []);
        assert_eq!(bulletin.begin(&[], now + REPEAT_INTERVAL), []);
        assert_eq!(bulletin.begin(&notices, now + REPEAT_INTERVAL), notices);
    }

    #[test]
    fn a_notice_that_could_not_be_published_is_tried_again() {
        let (mut bulletin, now, notices) = (Bulletin::default(), Instant::now(), [notice("w1")]);
        bulletin.begin(&notices, now);
        bulletin.settle(notice("w1"), false, now);
        assert_eq!(bulletin.begin(&notices, now), []);
        assert_eq!(bulletin.begin(&notices, now + RETRY_INTERVAL), notices);
    }

    #[test]
    fn many_notices_are_published_a_few_at_a_time() {
        let (mut bulletin, now) = (Bulletin::default(), Instant::now());
        let notices: Vec<_> = (0..5).map(|number| notice(&format!("w{number}"))).collect();
        let mut published = Vec::new();
        for _ in 0..3 {
            let due = bulletin.begin(&notices, now);
            assert!(due.len() <= IN_FLIGHT);
            due.iter().for_each(|notice| bulletin.settle(notice.clone(), true, now));
            published.extend(due);
        }
        assert_eq!(published, notices);
    }

    fn notice(name: &str) -> Notice {
        let (name, uid, message) = (name.to_owned(), String::new(), String::new());
        Notice { kind: Kind::Node, name, uid, reason: "OverlappingPodCIDR", message }
    }
}

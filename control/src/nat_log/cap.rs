//! No more records in a second than the config file allows; the others are counted.

use jiff::Timestamp;

/// Counts the records of each second of the log's time.
#[derive(Clone, Debug)]
pub(super) struct RateCap {
    most: u64,
    second: i64,
    written: u64,
    skipped: u64,
}

impl RateCap {
    /// Allows `most` records in a second.
    pub(super) fn new(most: u32) -> Self {
        Self { most: most.into(), second: i64::MIN, written: 0, skipped: 0 }
    }

    /// Notes a record of this time, and tells whether it may be written. A time before that of the newest record counts
    /// as of the same second.
    pub(super) fn admits(&mut self, time: Timestamp) -> bool {
        if time.as_second() > self.second {
            (self.second, self.written) = (time.as_second(), 0);
        }
        let is_admitted = self.written < self.most;
        *(if is_admitted { &mut self.written } else { &mut self.skipped }) += 1;
        is_admitted
    }

    /// Takes how many records were not written, once the second of the last of them is over.
    pub(super) fn take_skipped(&mut self, now: Timestamp) -> Option<u64> {
        let is_over = now.as_second() > self.second;
        (is_over && self.skipped > 0).then(|| std::mem::take(&mut self.skipped))
    }

    /// Takes how many records were not written, although more may follow.
    pub(super) fn take_rest(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.skipped)).filter(|skipped| *skipped > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_record_is_written_or_counted(
            most in 1..5u32,
            steps in prop::collection::vec(prop_oneof![8 => Just(0i64), 2 => 1..3i64], 0..200),
        ) {
            let mut cap = RateCap::new(most);
            let (mut written, mut told) = (BTreeMap::<i64, u32>::new(), 0);
            let mut now = 0;
            for step in &steps {
                now += step;
                let time = Timestamp::from_second(now).unwrap();
                told += cap.take_skipped(time).unwrap_or_default();
                if cap.admits(time) {
                    *written.entry(now).or_default() += 1;
                }
            }
            told += cap.take_rest().unwrap_or_default();
            let sum: u64 = written.values().copied().map(u64::from).sum();
            prop_assert_eq!(sum + told, steps.len() as u64);
            prop_assert!(written.values().all(|count| *count <= most));
        }
    }

    #[test]
    fn what_workers_tell_late_counts_in_the_newest_second() {
        let mut cap = RateCap::new(2);
        let admitted = [10, 9, 10, 9, 11].map(|second| cap.admits(Timestamp::from_second(second).unwrap()));
        assert_eq!(admitted, [true, true, false, false, true]);
        assert_eq!(cap.take_skipped(Timestamp::from_second(11).unwrap()), None, "the second goes on");
        assert_eq!(cap.take_skipped(Timestamp::from_second(12).unwrap()), Some(2));
        assert_eq!((cap.take_skipped(Timestamp::from_second(13).unwrap()), cap.take_rest()), (None, None));
    }
}

//! How long turns take that find frames: a worker's load, and the latency that it adds.

use std::time::Duration;

use crate::counters::Counter;

/// Bound of the first bucket: 2^10 ns, about a microsecond.
const FIRST_BOUND: u32 = 10;

/// Buckets with a bound, each twice the one before: the last is 2^25 ns, about 34 ms.
const BOUNDS: usize = 16;

/// Times of turns, counted by the worker that takes them: three stores a turn, whatever the number of its frames.
#[derive(Debug, Default)]
pub struct TurnTiming {
    nanoseconds: Counter,
    /// Turns by bucket; the last is for those above every bound.
    counts: [Counter; BOUNDS + 1],
}

/// Times of the turns that found frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnTimes {
    nanoseconds: u64,
    counts: [u64; BOUNDS + 1],
}

impl TurnTiming {
    /// Counts a turn.
    pub fn add(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.add(nanoseconds);
        self.counts[bucket_of(nanoseconds)].add(1);
    }

    /// Returns what was counted.
    pub fn read(&self) -> TurnTimes {
        TurnTimes {
            nanoseconds: self.nanoseconds.get(),
            counts: std::array::from_fn(|bucket| self.counts[bucket].get()),
        }
    }
}

impl TurnTimes {
    /// Returns the time of all turns.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds)
    }

    /// Returns the upper bound of each bucket, in seconds, and how many turns it has that no lower one has. The last bound
    /// is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = (FIRST_BOUND..).map(|power| Duration::from_nanos(1 << power).as_secs_f64());
        bounds.take(BOUNDS).chain([f64::INFINITY]).zip(self.counts)
    }
}

fn bucket_of(nanoseconds: u64) -> usize {
    let power = u64::BITS - nanoseconds.saturating_sub(1).leading_zeros();
    (power.saturating_sub(FIRST_BOUND) as usize).min(BOUNDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_counted_in_the_first_bucket_whose_bound_is_not_below_it() {
        let timing = TurnTiming::default();
        let bound = |bucket: u32| 1u64 << (FIRST_BOUND + bucket);
        let times = [0, 1, bound(0), bound(0) + 1, bound(1), bound(15), bound(15) + 1, u64::MAX / 2];
        for nanoseconds in times {
            timing.add(Duration::from_nanos(nanoseconds));
        }
        let counted: Vec<_> =
            timing.read().buckets().enumerate().filter(|(_, (_, count))| *count > 0).collect();
        let seconds = |nanoseconds| Duration::from_nanos(nanoseconds).as_secs_f64();
        let expected =
            [(0, (seconds(bound(0)), 3)), (1, (seconds(bound(1)), 2)), (15, (seconds(bound(15)), 1))];
        assert_eq!(counted[..3], expected);
        assert_eq!(counted[3], (16, (f64::INFINITY, 2)));
    }
}

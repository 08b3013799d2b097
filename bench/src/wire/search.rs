use anyhow::Result;
use serde::Serialize;

use crate::pacer::Evenness;

/// Below this share of the rate that was asked for, the generator did not keep it.
const KEPT: f64 = 0.98;

/// How the highest rate with next to no loss is searched for (RFC 2544 section 26.1).
#[derive(Debug, Clone, Copy)]
pub(super) struct Search {
    /// Share of the frames that may be lost.
    pub(super) loss: f64,
    /// How near the ends come to each other, as a share of the upper one.
    pub(super) resolution: f64,
    pub(super) trials: u32,
}

/// What a search found.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Found {
    /// What was really sent in the best trial without loss; zero when there was none.
    pub(super) mpps: f64,
    /// Whether the generator could not do more.
    pub(super) is_generator_limit: bool,
    pub(super) trials: Vec<Trial>,
}

/// Frames at one rate.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Trial {
    pub(super) wanted_mpps: f64,
    pub(super) offered_mpps: f64,
    /// Share of the frames.
    pub(super) loss: f64,
    pub(super) evenness: Evenness,
}

impl Trial {
    /// Tells whether the generator sent what was asked for.
    pub(super) fn kept_pace(&self) -> bool {
        self.offered_mpps >= KEPT * self.wanted_mpps
    }
}

impl Search {
    /// Tries `first` and then halves what is left of everything up to `most`; rates are in Mpps.
    pub(super) fn find(
        &self,
        first: f64,
        most: f64,
        mut trial: impl FnMut(f64) -> Result<Trial>,
    ) -> Result<Found> {
        let (mut low, mut high, mut wanted) = (0.0, most, first.min(most));
        let mut found = Found { mpps: 0.0, is_generator_limit: false, trials: Vec::new() };
        for _ in 0..self.trials {
            let result = trial(wanted)?;
            found.trials.push(result);
            if result.loss <= self.loss {
                low = wanted;
                // A rate that was not kept says nothing about rates above what was sent.
                if result.offered_mpps > found.mpps {
                    found.mpps = result.offered_mpps;
                    found.is_generator_limit = !result.kept_pace();
                }
            } else {
                high = wanted;
            }
            if high - low <= self.resolution * high {
                break;
            }
            wanted = f64::midpoint(low, high);
        }
        found.is_generator_limit |= high >= most && found.mpps > 0.0;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEARCH: Search = Search { loss: 0.001, resolution: 0.01, trials: 20 };
    const EVEN: Evenness = Evenness { frames: 1, late_p50_us: 1.0, late_p99_us: 1.0, given_up_ms: 0.0 };

    /// A device that forwards so much and no more, offered what the generator can.
    fn device(limit: f64, generator: f64) -> impl Fn(f64) -> Result<Trial> {
        move |wanted_mpps| {
            let offered_mpps = wanted_mpps.min(generator);
            let loss = (1.0 - limit / offered_mpps).max(0.0);
            Ok(Trial { wanted_mpps, offered_mpps, loss, evenness: EVEN })
        }
    }

    #[test]
    fn the_limit_of_a_device_is_found() {
        for limit in [0.05, 0.4, 0.57, 1.9] {
            let found = SEARCH.find(1.0, 2.0, device(limit, 2.0)).unwrap();
            let allowed = limit / (1.0 - SEARCH.loss);
            assert!(found.mpps <= allowed && found.mpps > 0.98 * limit, "{limit}: {found:?}");
            assert!(!found.is_generator_limit, "{limit}: {found:?}");
            assert!(found.trials.len() <= 14, "{limit}: {} trials", found.trials.len());
        }
    }

    #[test]
    fn a_device_beyond_the_generator_is_said_to_be() {
        for (first, generator, trials) in [(2.0, 2.0, 1), (2.0, 1.5, 1), (1.5, 2.0, 5)] {
            let search = Search { resolution: 0.02, ..SEARCH };
            let found = search.find(first, 2.0, device(3.0, generator)).unwrap();
            assert_eq!(found.trials.len(), trials);
            assert!(found.mpps > 0.96 * generator, "{found:?}");
            assert!(found.is_generator_limit);
        }
    }

    #[test]
    fn a_device_that_always_loses_has_no_rate() {
        let found = Search { trials: 8, ..SEARCH }.find(1.0, 1.0, device(0.0, 1.0)).unwrap();
        assert_eq!(found.mpps, 0.0);
        assert_eq!(found.trials.len(), 8);
        assert!(!found.is_generator_limit);
    }
}

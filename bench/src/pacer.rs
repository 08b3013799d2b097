use anyhow::Result;
use aya::maps::{Array, MapData};
use serde::Serialize;

/// Entries of the histogram of lateness in `bpf/generate.bpf.c`.
const LATENESSES: usize = 32;

/// `struct pacing` of `bpf/generate.bpf.c`: interval, due, given up, and frames by lateness.
type Words = [u64; 3 + LATENESSES];

/// The generator's clock: says when its XDP program lets frames out.
pub(crate) struct Pacer {
    map: Array<MapData, Words>,
}

/// How evenly frames were sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Evenness {
    pub(crate) frames: u64,
    /// Half of the frames, and all but one of a hundred, were less late than this; powers of two.
    pub(crate) late_p50_us: f64,
    pub(crate) late_p99_us: f64,
    /// Time that was lost for good because the generator did not run.
    pub(crate) given_up_ms: f64,
}

impl Pacer {
    /// Takes over the map `pacing` of a generator.
    pub(crate) fn new(map: Array<MapData, Words>) -> Self {
        Self { map }
    }

    /// Lets so many frames a second out from the next one on, or all of them; forgets what was before.
    pub(crate) fn set(&mut self, rate: Option<f64>) -> Result<()> {
        let mut words = [0; 3 + LATENESSES];
        words[0] = rate.map_or(0, interval);
        Ok(self.map.set(0, words, 0)?)
    }

    /// Says how evenly frames were sent since the rate was set.
    pub(crate) fn evenness(&self) -> Result<Evenness> {
        let [_, _, given_up, late @ ..] = self.map.get(&0, 0)?;
        Ok(evenness(given_up, &late))
    }
}

/// Returns the time between two frames in 1/1024 ns, at least one.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts of floats saturate")]
fn interval(rate: f64) -> u64 {
    ((1e9 * 1024.0 / rate).round() as u64).max(1)
}

fn evenness(given_up: u64, late: &[u64; LATENESSES]) -> Evenness {
    let frames = late.iter().sum();
    Evenness {
        frames,
        late_p50_us: bound(late, frames.div_ceil(2)),
        late_p99_us: bound(late, frames - frames / 100),
        given_up_ms: std::time::Duration::from_nanos(given_up).as_secs_f64() * 1e3,
    }
}

/// Returns the lateness in microseconds that so many frames were below.
fn bound(late: &[u64; LATENESSES], wanted: u64) -> f64 {
    let mut count = 0;
    let reached = late.iter().position(|frames| {
        count += frames;
        count >= wanted
    });
    let power = reached.and_then(|index| i32::try_from(index).ok()).unwrap_or(0);
    2_f64.powi(power + 1) / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_keeps_its_rate_to_a_millionth() {
        for rate in [1_000.0, 333_333.0, 1e6, 3.7e6] {
            #[expect(clippy::cast_precision_loss, reason = "an interval is far below 2^52")]
            let kept = 1e9 * 1024.0 / interval(rate) as f64;
            assert!((kept / rate - 1.0).abs() < 3e-6, "{rate}: {kept}");
        }
        assert_eq!(interval(f64::INFINITY), 1);
    }

    #[test]
    fn lateness_is_told_by_its_bound() {
        let mut late = [0; LATENESSES];
        late[6] = 60; // below 128 ns
        late[9] = 39; // below 1024 ns
        late[20] = 1; // below 2.1 ms
        let evenness = evenness(2_000_000, &late);
        assert_eq!(evenness.frames, 100);
        assert!((evenness.late_p50_us - 0.128).abs() < 1e-9, "{evenness:?}");
        assert!((evenness.late_p99_us - 1.024).abs() < 1e-9, "{evenness:?}");
        assert!((evenness.given_up_ms - 2.0).abs() < 1e-9, "{evenness:?}");
    }
}

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use control::demo::wait;
use serde::Serialize;

use super::search::{Found, Trial};
use super::{Case, Plan, Rate};
use crate::generator::Generator;
use crate::sink::Sink;
use crate::system::{Setup, System};
use crate::topology::{Cores, Topology};

/// A session is in place once each flow was forwarded this often on average: of random draws, 95 % then had a turn.
const WARM_ROUNDS: u64 = 3;
const WARM_WITHIN: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);

/// Frames are no longer on their way when none has arrived for so long.
const QUIET: Duration = Duration::from_millis(60);
const QUIET_WITHIN: Duration = Duration::from_secs(2);

/// A search begins with so much more than came through at overload, which may be less than without loss.
const FIRST_TRIAL: f64 = 2.0;

/// A pace that is below this share of what was sent at overload should be kept.
const EASY_PACE: f64 = 0.7;

/// Above this share of what was offered, the generator may be what held the rate back.
const GENERATOR_SHARE: f64 = 0.95;
/// Above this share of what was forwarded, the sink lost too much to be trusted.
const SINK_SHARE: f64 = 0.01;

/// One system, once.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Sample {
    /// At overload.
    pub(super) offered_mpps: f64,
    pub(super) forwarded_mpps: f64,
    pub(super) lost_at_sink_mpps: f64,
    /// Datagrams that arrived with a source that the system should have replaced.
    pub(super) untranslated: u64,
    /// Whether all flows had their sessions before the measurement began.
    pub(super) warm: bool,
    /// The highest rate with next to no loss, where it was searched for.
    pub(super) search: Option<Found>,
    #[serde(skip)]
    pub(super) xdp_mode: &'static str,
}

/// A gateway between its generator and its sink.
struct Bench<'a> {
    topology: &'a Topology,
    generator: Generator,
    sink: Sink,
    translates: bool,
}

/// What was counted so far.
#[derive(Clone, Copy)]
struct Counts {
    sent: u64,
    forwarded: u64,
    lost_at_sink: u64,
}

/// Measures one system in one case, on a topology of its own.
pub(super) fn measure(
    system: System,
    case: Case,
    plan: &Plan,
    cores: Cores,
    setup: &Setup,
) -> Result<Sample> {
    let setup = Setup { flows: case.flows, ..setup.clone() };
    let topology = Topology::build(cores, case.flows)?;
    let _gateway = system.start(&topology, &setup)?;
    let sink = Sink::attach(&topology)?;
    topology.poll_sink()?;
    let generator = Generator::prepare(&topology, case.flows, case.frames)?;
    let bench = Bench { topology: &topology, generator, sink, translates: system.translates() };

    bench.generator.flood()?;
    // Who translates nothing keeps no sessions.
    let flows = if bench.translates { case.flows.count() } else { 1 };
    let warm = bench.warm_up(u64::from(flows) * WARM_ROUNDS)?;
    let mut sample = Sample { warm, ..bench.overload(plan.duration)? };
    if sample.forwarded_mpps <= 0.0 {
        bail!("{} forwarded nothing at {} flows", system.name(), case.flows);
    }
    // Where ports run out some loss is right.
    if plan.rate == Rate::Ndr && !case.flows.has_one_destination() {
        bench.generator.rest()?;
        bench.until_quiet()?;
        let (first, most) = (FIRST_TRIAL * sample.forwarded_mpps, sample.offered_mpps);
        let found = plan.search.find(first, most, |mpps| bench.attempt(mpps, plan.duration))?;
        sample.search = Some(found);
    }
    sample.untranslated = if bench.translates { bench.sink.arrived()?.untranslated } else { 0 };
    bench.generator.stop()?;
    Ok(sample)
}

impl Bench<'_> {
    fn forwarded(&self) -> Result<u64> {
        let arrived = self.sink.arrived()?;
        Ok(if self.translates { arrived.translated } else { arrived.untranslated })
    }

    fn count(&self) -> Result<Counts> {
        Ok(Counts {
            sent: self.generator.sent()?,
            forwarded: self.forwarded()?,
            lost_at_sink: self.topology.lost_at_sink()?,
        })
    }

    /// Waits until `wanted` frames were forwarded; false when that takes too long.
    fn warm_up(&self, wanted: u64) -> Result<bool> {
        let deadline = Instant::now() + WARM_WITHIN;
        while Instant::now() < deadline {
            if self.forwarded()? >= wanted {
                return Ok(true);
            }
            wait::pause(POLL)?;
        }
        Ok(false)
    }

    fn overload(&self, duration: Duration) -> Result<Sample> {
        let start = Instant::now();
        let before = self.count()?;
        wait::pause(duration.saturating_sub(start.elapsed()))?;
        let after = self.count()?;
        let elapsed = start.elapsed();
        Ok(Sample {
            offered_mpps: mega_per_second(after.sent - before.sent, elapsed),
            forwarded_mpps: mega_per_second(after.forwarded - before.forwarded, elapsed),
            lost_at_sink_mpps: mega_per_second(after.lost_at_sink - before.lost_at_sink, elapsed),
            untranslated: 0,
            warm: true,
            search: None,
            xdp_mode: self.topology.xdp_mode()?,
        })
    }

    /// Sends at a rate and counts what does not arrive.
    fn attempt(&self, wanted_mpps: f64, duration: Duration) -> Result<Trial> {
        let before = self.count()?;
        let start = Instant::now();
        self.generator.pace(wanted_mpps * 1e6)?;
        wait::pause(duration)?;
        let evenness = self.generator.rest()?;
        let elapsed = start.elapsed();
        self.until_quiet()?;
        let after = self.count()?;
        let (sent, forwarded) = (after.sent - before.sent, after.forwarded - before.forwarded);
        let trial = Trial {
            wanted_mpps,
            offered_mpps: mega_per_second(sent, elapsed),
            loss: share(sent.saturating_sub(forwarded), sent),
            evenness,
        };
        eprintln!(
            "  {wanted_mpps:.3} Mpps: {:.3} sent, {:.3} % lost",
            trial.offered_mpps,
            100.0 * trial.loss
        );
        Ok(trial)
    }

    fn until_quiet(&self) -> Result<()> {
        let deadline = Instant::now() + QUIET_WITHIN;
        let mut last = self.forwarded()?;
        while Instant::now() < deadline {
            wait::pause(QUIET)?;
            let now = self.forwarded()?;
            if now == last {
                return Ok(());
            }
            last = now;
        }
        bail!("frames still arrive {QUIET_WITHIN:?} after the last one was sent")
    }
}

impl Sample {
    /// Says what makes the sample less than it seems.
    pub(super) fn doubts(&self) -> Vec<&'static str> {
        let is_at_limit = self.search.as_ref().is_some_and(|found| found.is_generator_limit);
        let is_easy = |trial: &&Trial| trial.wanted_mpps < EASY_PACE * self.offered_mpps;
        let is_slow = |found: &Found| found.trials.iter().filter(is_easy).any(|trial| !trial.kept_pace());
        let is_slow = self.search.as_ref().is_some_and(is_slow);
        let all = [
            (self.untranslated > 0, "LEAK, datagrams left with a pod's address"),
            (
                self.forwarded_mpps > GENERATOR_SHARE * self.offered_mpps,
                "the generator was the bottleneck at overload",
            ),
            (
                is_slow,
                "the generator did not keep its pace in trials; was the machine busy with other things?",
            ),
            (is_at_limit, "the generator was the bottleneck of the rate without loss"),
            (
                self.lost_at_sink_mpps > SINK_SHARE * self.forwarded_mpps,
                "the sink was a bottleneck; more was sent than counted",
            ),
            (!self.warm, "still making sessions when the measurement began"),
        ];
        all.into_iter().filter(|(holds, _)| *holds).map(|(_, doubt)| doubt).collect()
    }
}

#[expect(clippy::cast_precision_loss, reason = "2^52 frames take longer than any measurement")]
fn mega_per_second(frames: u64, duration: Duration) -> f64 {
    frames as f64 / duration.as_secs_f64() / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "2^52 frames take longer than any measurement")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
impl Sample {
    /// Makes up a sample of a system that nothing held back.
    pub(super) fn made_up(forwarded_mpps: f64) -> Self {
        Self {
            offered_mpps: 4.0,
            forwarded_mpps,
            lost_at_sink_mpps: 0.0,
            untranslated: 0,
            warm: true,
            search: None,
            xdp_mode: "none",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_doubted_only_for_a_reason() {
        let good = Sample::made_up(1.0);
        let limited = Found { mpps: 4.0, is_generator_limit: true, trials: Vec::new() };
        let cases = [
            (good.clone(), 0),
            (Sample { forwarded_mpps: 3.9, ..good.clone() }, 1),
            (Sample { lost_at_sink_mpps: 0.1, ..good.clone() }, 1),
            (Sample { untranslated: 1, ..good.clone() }, 1),
            (Sample { search: Some(limited), ..good.clone() }, 1),
            (Sample { warm: false, untranslated: 1, ..good }, 2),
        ];
        for (sample, expected) in cases {
            assert_eq!(sample.doubts().len(), expected, "{sample:?}");
        }
    }

    #[test]
    fn a_trial_in_which_nothing_was_sent_has_lost_everything() {
        assert_eq!([share(0, 0), share(1, 4), share(0, 5)], [1.0, 0.25, 0.0]);
    }
}

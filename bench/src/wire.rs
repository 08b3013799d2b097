use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, value_parser};
use control::demo::wait;
use serde::Serialize;

use crate::flows::Flows;
use crate::generator::{FRAME_BYTES, Generator};
use crate::report::{Axis, Chart, Findings, Series, Sheet};
use crate::sink::Sink;
use crate::statistics::Summary;
use crate::system::{Setup, System};
use crate::topology::{Cores, Topology};

/// A session is in place once each flow was forwarded this often on average: of random draws, 95 % then had a turn.
const WARM_ROUNDS: u64 = 3;
const WARM_WITHIN: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);

/// Above this share of what was offered, the generator may be what held the rate back.
const GENERATOR_SHARE: f64 = 0.95;
/// Above this share of what was forwarded, the sink lost too much to be trusted.
const SINK_SHARE: f64 = 0.01;

/// What is measured, and how often.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Number of UDP flows; repeat it for several
    #[arg(long, num_args = 1.., default_values_t = [1024, 65_536, 1_000_000],
          value_parser = value_parser!(u32).range(1..=i64::from(Flows::MAXIMUM)))]
    flows: Vec<u32>,
    /// Gateways to measure; the first is what the others are compared with
    #[arg(long = "system", num_args = 1.., value_name = "SYSTEM",
          default_values_t = [System::KernelIptables, System::Spillway, System::SpillwaySplit])]
    systems: Vec<System>,
    /// Length of each measurement
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How often each gateway has its turn
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Measures 1,024 and 65,536 flows for 2 s in 3 rounds: about two minutes
    #[arg(long, conflicts_with_all = ["flows", "seconds", "rounds"])]
    short: bool,
}

impl Options {
    /// Tells whether the daemon's program is needed.
    pub(crate) fn needs_spillway(&self) -> bool {
        self.systems.iter().any(|system| system.is_spillway())
    }

    fn plan(&self) -> Plan {
        let systems = self.systems.clone();
        if self.short {
            return Plan {
                flows: vec![Flows::new(1024), Flows::new(65_536)],
                systems,
                seconds: 2,
                rounds: 3,
            };
        }
        let flows = self.flows.iter().map(|count| Flows::new(*count)).collect();
        Plan { flows, systems, seconds: self.seconds, rounds: self.rounds }
    }
}

#[derive(Debug, Clone)]
struct Plan {
    flows: Vec<Flows>,
    systems: Vec<System>,
    seconds: u64,
    rounds: u32,
}

/// Throughput at overload, for each number of flows.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) frame_bytes: usize,
    pub(crate) seconds: u64,
    pub(crate) cores: Cores,
    pub(crate) xdp_mode: &'static str,
    pub(crate) rows: Vec<Row>,
    pub(crate) notes: Vec<String>,
}

/// All systems at one number of flows. The first system is what the others are compared with.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) flows: u32,
    pub(crate) systems: Vec<SystemResult>,
}

/// One system at one number of flows, over all rounds.
#[derive(Debug, Serialize)]
pub(crate) struct SystemResult {
    pub(crate) system: System,
    /// Forwarded rate over the first system's in the same round.
    pub(crate) ratio: Summary,
    pub(crate) forwarded_mpps: Summary,
    pub(crate) offered_mpps: Summary,
    pub(crate) rounds: Vec<Sample>,
}

/// One system, once.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sample {
    pub(crate) offered_mpps: f64,
    pub(crate) forwarded_mpps: f64,
    pub(crate) lost_at_sink_mpps: f64,
    /// Datagrams that arrived with a source that the system should have replaced.
    pub(crate) untranslated: u64,
    /// Whether all flows had their sessions before the measurement began.
    pub(crate) warm: bool,
    #[serde(skip)]
    xdp_mode: &'static str,
}

/// Measures every system at every number of flows, in turn within each round.
pub(crate) fn measure(options: &Options, cores: Cores, setup: &Setup) -> Result<Results> {
    measure_all(&options.plan(), cores, setup)
}

fn measure_all(plan: &Plan, cores: Cores, setup: &Setup) -> Result<Results> {
    let mut rows = Vec::new();
    let mut notes = Vec::new();
    let mut xdp_mode = "none";
    for &flows in &plan.flows {
        let mut samples = vec![Vec::new(); plan.systems.len()];
        for round in 1..=plan.rounds {
            for (system, samples) in plan.systems.iter().zip(&mut samples) {
                let setup = Setup { flows, ..setup.clone() };
                let sample = measure_once(*system, cores, &setup, Duration::from_secs(plan.seconds))?;
                eprintln!(
                    "round {round}/{}  {:>9} flows  {:<16} {:.2} Mpps of {:.2} offered",
                    plan.rounds,
                    flows.count(),
                    system.name(),
                    sample.forwarded_mpps,
                    sample.offered_mpps
                );
                if system.is_spillway() {
                    xdp_mode = sample.xdp_mode;
                }
                notes.extend(doubts(*system, flows, &sample));
                samples.push(sample);
            }
        }
        rows.push(Row::of(flows, &plan.systems, samples));
    }
    Ok(Results { frame_bytes: FRAME_BYTES + 4, seconds: plan.seconds, cores, xdp_mode, rows, notes })
}

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        self.xdp_mode
    }

    fn sheets(&self) -> Vec<Sheet> {
        let systems: Vec<_> = self.rows.first().map(|row| &row.systems).into_iter().flatten().collect();
        let Some((first, others)) = systems.split_first() else { return Vec::new() };
        let ratios = others.iter().map(|other| format!("{} ÷ {}", other.system.name(), first.system.name()));
        let rates = systems.iter().map(|result| format!("{}, Mpps", result.system.name()));
        let header =
            ["flows".to_owned()].into_iter().chain(ratios).chain(rates).chain(["offered, Mpps".to_owned()]);
        let lines = systems.iter().enumerate().map(|(index, result)| {
            let points = self.rows.iter().filter_map(|row| {
                Some((f64::from(row.flows), row.systems.get(index)?.forwarded_mpps.median))
            });
            (result.system.name().to_owned(), points.collect())
        });
        let mut notes = vec![
            format!(
                "UDP, {} bytes, {} s a round, at overload; median (minimum to maximum) of the rounds, systems in turn.",
                self.frame_bytes, self.seconds
            ),
            format!(
                "Core {}: generator. Core {}: gateway. Core {}: sink.",
                self.cores.generator, self.cores.gateway, self.cores.sink
            ),
        ];
        notes.extend(
            systems.iter().map(|result| format!("{} {}.", result.system.name(), result.system.placement())),
        );
        notes.extend(self.notes.iter().map(|note| format!("note: {note}")));
        vec![Sheet {
            title: "Throughput at overload".to_owned(),
            header: header.collect(),
            rows: self.rows.iter().map(Row::cells).collect(),
            charts: vec![Chart {
                title: "Forwarded over flows".to_owned(),
                x: Axis { label: "flows".to_owned(), is_logarithmic: true },
                y: Axis { label: "Mpps".to_owned(), is_logarithmic: false },
                series: Series::Lines(lines.collect()),
            }],
            notes,
        }]
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let ratios = self.systems.iter().skip(1).map(|result| result.ratio.show());
        let rates = self.systems.iter().map(|result| result.forwarded_mpps.show());
        let offered =
            self.systems.iter().map(|result| result.offered_mpps.median).fold(f64::INFINITY, f64::min);
        [self.flows.to_string()]
            .into_iter()
            .chain(ratios)
            .chain(rates)
            .chain([format!("≥ {offered:.2}")])
            .collect()
    }
}

fn measure_once(system: System, cores: Cores, setup: &Setup, duration: Duration) -> Result<Sample> {
    let topology = Topology::build(cores, setup.flows)?;
    let _gateway = system.start(&topology, setup)?;
    let sink = Sink::attach(&topology)?;
    topology.poll_sink()?;
    let generator = Generator::start(&topology, setup.flows)?;
    let forwarded = || {
        sink.arrived()
            .map(|arrived| if system.translates() { arrived.translated } else { arrived.untranslated })
    };

    let warm = warm_up(&forwarded, u64::from(setup.flows.count()) * WARM_ROUNDS)?;
    let start = Instant::now();
    let before = (generator.sent()?, forwarded()?, topology.lost_at_sink()?);
    wait::pause(duration.saturating_sub(start.elapsed()))?;
    let after = (generator.sent()?, forwarded()?, topology.lost_at_sink()?);
    let rate = |before: u64, after: u64| mega_per_second(after - before, start.elapsed());
    let sample = Sample {
        offered_mpps: rate(before.0, after.0),
        forwarded_mpps: rate(before.1, after.1),
        lost_at_sink_mpps: rate(before.2, after.2),
        untranslated: if system.translates() { sink.arrived()?.untranslated } else { 0 },
        warm,
        xdp_mode: topology.xdp_mode()?,
    };
    generator.stop()?;
    if after.1 == before.1 {
        bail!("{} forwarded nothing at {} flows", system.name(), setup.flows.count());
    }
    Ok(sample)
}

/// Waits until `wanted` frames were forwarded; false when that takes too long.
fn warm_up(forwarded: &impl Fn() -> Result<u64>, wanted: u64) -> Result<bool> {
    let deadline = Instant::now() + WARM_WITHIN;
    while Instant::now() < deadline {
        if forwarded()? >= wanted {
            return Ok(true);
        }
        wait::pause(POLL)?;
    }
    Ok(false)
}

#[expect(clippy::cast_precision_loss, reason = "2^52 frames take longer than any measurement")]
fn mega_per_second(frames: u64, duration: Duration) -> f64 {
    frames as f64 / duration.as_secs_f64() / 1e6
}

/// Says what makes a sample less than it seems.
fn doubts(system: System, flows: Flows, sample: &Sample) -> Vec<String> {
    let place = format!("{} at {} flows", system.name(), flows.count());
    let mut doubts = Vec::new();
    if sample.forwarded_mpps > GENERATOR_SHARE * sample.offered_mpps {
        doubts.push(format!(
            "{place}: the generator was the bottleneck ({:.2} Mpps offered)",
            sample.offered_mpps
        ));
    }
    if sample.lost_at_sink_mpps > SINK_SHARE * sample.forwarded_mpps {
        doubts.push(format!(
            "{place}: the sink was a bottleneck; {:.2} Mpps more were sent than counted",
            sample.lost_at_sink_mpps
        ));
    }
    if sample.untranslated > 0 {
        doubts.push(format!("{place}: LEAK, {} datagrams left with a pod's address", sample.untranslated));
    }
    if !sample.warm {
        doubts
            .push(format!("{place}: still making sessions after {WARM_WITHIN:?} when the measurement began"));
    }
    doubts
}

impl Row {
    fn of(flows: Flows, systems: &[System], samples: Vec<Vec<Sample>>) -> Self {
        let first: Vec<f64> =
            samples.first().into_iter().flatten().map(|sample| sample.forwarded_mpps).collect();
        let systems =
            systems.iter().zip(samples).map(|(&system, rounds)| SystemResult::of(system, rounds, &first));
        Self { flows: flows.count(), systems: systems.collect() }
    }
}

impl SystemResult {
    fn of(system: System, rounds: Vec<Sample>, first: &[f64]) -> Self {
        let forwarded: Vec<f64> = rounds.iter().map(|sample| sample.forwarded_mpps).collect();
        let offered: Vec<f64> = rounds.iter().map(|sample| sample.offered_mpps).collect();
        let ratios: Vec<f64> = forwarded.iter().zip(first).map(|(mine, first)| mine / first).collect();
        Self {
            system,
            ratio: Summary::of(&ratios),
            forwarded_mpps: Summary::of(&forwarded),
            offered_mpps: Summary::of(&offered),
            rounds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(forwarded_mpps: f64) -> Sample {
        Sample {
            offered_mpps: 4.0,
            forwarded_mpps,
            lost_at_sink_mpps: 0.0,
            untranslated: 0,
            warm: true,
            xdp_mode: "none",
        }
    }

    #[test]
    fn ratios_compare_rounds_with_the_same_round_of_the_first_system() {
        let systems = [System::KernelIptables, System::Spillway];
        let samples = vec![vec![sample(1.0), sample(0.5)], vec![sample(2.0), sample(1.5)]];
        let row = Row::of(Flows::new(1024), &systems, samples);
        assert_eq!(row.systems[0].ratio, Summary::of(&[1.0, 1.0]));
        assert_eq!(row.systems[1].ratio, Summary::of(&[2.0, 3.0]));
    }

    #[test]
    fn what_the_kernel_forwards_is_generated_and_counted() {
        if !crate::namespace::allowed() {
            return;
        }
        let plan = Plan {
            flows: vec![Flows::new(64)],
            systems: vec![System::KernelForward, System::KernelIptables],
            seconds: 1,
            rounds: 1,
        };
        let setup = Setup { flows: Flows::new(64), spillway: "unused".into() };
        let results = measure_all(&plan, Cores::plan(2).unwrap(), &setup).unwrap();
        for result in &results.rows[0].systems {
            assert!(result.forwarded_mpps.median > 0.0, "{result:?}");
            assert!(result.offered_mpps.median >= result.forwarded_mpps.median, "{result:?}");
            assert_eq!(result.rounds[0].untranslated, 0, "{result:?}");
        }
    }

    #[test]
    fn a_sample_is_doubted_only_for_a_reason() {
        let good = sample(1.0);
        let cases = [
            (good, 0),
            (Sample { forwarded_mpps: 3.9, ..good }, 1),
            (Sample { lost_at_sink_mpps: 0.1, ..good }, 1),
            (Sample { untranslated: 1, ..good }, 1),
            (Sample { warm: false, ..good }, 1),
        ];
        for (sample, expected) in cases {
            assert_eq!(doubts(System::Spillway, Flows::new(1), &sample).len(), expected, "{sample:?}");
        }
    }
}

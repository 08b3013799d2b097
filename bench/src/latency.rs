use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, value_parser};
use control::demo::wait;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::flows::Flows;
use crate::statistics::Summary;
use crate::system::{Gateway, Setup, System};
use crate::topology::{Cores, Topology};
use crate::traffic::{Kind, Plan, Rate, Receiving, SAMPLES, Traffic};

/// What is shown of it.
mod show;

/// Shares of a rate, in percent.
const SHARES: [u64; 3] = [10, 50, 90];
/// Lets rate and queues settle before probes are looked at.
const SETTLE: Duration = Duration::from_millis(300);
/// A probe that takes longer is lost.
const PATIENCE: Duration = Duration::from_millis(200);

/// Round trips through the gateway at idle and under load, beside the kernel's
///
/// Probes are datagrams of a pod to the server and back, among those of other flows at a rate that is kept.
/// Example: spillway-bench latency --seconds 10 --rounds 5
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Length of each measurement
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(1..=20))]
    seconds: u64,
    /// How often each gateway has its turn
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Probes in a second
    #[arg(long, default_value_t = 5000, value_parser = value_parser!(u64).range(10..=6000))]
    probes: u64,
    /// Flows of the load
    #[arg(long, default_value_t = 1024, value_parser = value_parser!(u32).range(1..=i64::from(Flows::MAXIMUM)))]
    flows: u32,
    /// Gateways to measure; the first is what the others are compared with
    #[arg(long = "system", num_args = 1.., value_name = "SYSTEM",
          default_values_t = [System::KernelIptables, System::Spillway])]
    systems: Vec<System>,
    /// Measures for 1 s in one round
    #[arg(long, conflicts_with_all = ["seconds", "rounds"])]
    short: bool,
}

/// Round trips at every load.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) seconds: u64,
    pub(crate) rounds: u32,
    pub(crate) probes_a_second: u64,
    pub(crate) flows: u32,
    pub(crate) cores: Cores,
    pub(crate) xdp_mode: &'static str,
    /// Rate of each system at overload.
    pub(crate) found: Vec<Found>,
    pub(crate) rows: Vec<Row>,
}

/// What a system forwarded at overload, in Mpps.
#[derive(Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) system: System,
    pub(crate) mpps: Summary,
}

/// What a gateway has to forward beside the probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Load {
    Idle,
    /// Percent of what the first system forwards at overload, so the same for all.
    Common(u64),
    /// Percent of what the system itself forwards at overload.
    Own(u64),
}

/// One system at one load, over all rounds; times in microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) load: Load,
    pub(crate) system: System,
    /// Over the first system's in the same round.
    pub(crate) p50_ratio: Summary,
    pub(crate) p99_ratio: Summary,
    pub(crate) p50: Summary,
    pub(crate) p99: Summary,
    pub(crate) p99_9: Summary,
    pub(crate) maximum: Summary,
    pub(crate) offered_mpps: Summary,
    /// Of all probes, in percent.
    pub(crate) lost_percent: Summary,
    pub(crate) samples: Vec<Sample>,
}

/// One system at one load, once.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sample {
    pub(crate) probes: usize,
    pub(crate) lost: usize,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
    pub(crate) maximum: f64,
    pub(crate) offered_mpps: f64,
    pub(crate) forwarded_mpps: f64,
}

/// A gateway with traffic through it.
struct Rig {
    system: System,
    // Dropped in this order: the gateway goes before the namespace that it is in.
    traffic: Traffic,
    gateway: Gateway,
    topology: Topology,
}

impl Options {
    pub(crate) fn needs_spillway(&self) -> bool {
        self.systems.iter().any(|system| system.is_spillway())
    }
}

/// Measures every system at every load, in turn within each load.
pub(crate) fn measure(options: &Options, cores: Cores, setup: &Setup) -> Result<Results> {
    let (seconds, rounds) = if options.short { (1, 1) } else { (options.seconds, options.rounds) };
    let setup = Setup { flows: Flows::new(options.flows), ..setup.clone() };
    let rigs = options.systems.iter().map(|system| Rig::start(*system, cores, &setup));
    let mut rigs = rigs.collect::<Result<Vec<_>>>()?;
    let loads: Vec<Load> =
        [Load::Idle].into_iter().chain(SHARES.map(Load::Common)).chain(SHARES.map(Load::Own)).collect();
    let mut found = vec![Vec::new(); rigs.len()];
    let mut samples = vec![vec![Vec::new(); rigs.len()]; loads.len()];
    for round in 1..=rounds {
        let mut rates = Vec::new();
        for (rig, found) in rigs.iter_mut().zip(&mut found) {
            let rate = rig.find_rate(Duration::from_secs(seconds))?;
            eprintln!("round {round}/{rounds}  {:<16} {:.2} Mpps at overload", rig.system.name(), mega(rate));
            found.push(mega(rate));
            rates.push(rate);
        }
        for (load, samples) in loads.iter().zip(&mut samples) {
            for ((rig, own), samples) in rigs.iter_mut().zip(&rates).zip(samples) {
                let rate = load.rate(rates[0], *own);
                let sample = rig.probe(rate, options.probes, Duration::from_secs(seconds))?;
                eprintln!(
                    "round {round}/{rounds}  {:<16} {:<24} p50 {:.0} µs, p99 {:.0} µs",
                    rig.system.name(),
                    load.show(options.systems[0]),
                    sample.p50,
                    sample.p99
                );
                samples.push(sample);
            }
        }
    }
    let mut xdp_mode = "none";
    for rig in &rigs {
        xdp_mode = if rig.system.is_spillway() { rig.topology.xdp_mode()? } else { xdp_mode };
    }
    let rows =
        loads.iter().zip(samples).flat_map(|(load, samples)| Row::all(*load, &options.systems, samples));
    let found = options.systems.iter().zip(found);
    Ok(Results {
        seconds,
        rounds,
        probes_a_second: options.probes,
        flows: options.flows,
        cores,
        xdp_mode,
        found: found.map(|(system, mpps)| Found { system: *system, mpps: Summary::of(&mpps) }).collect(),
        rows: rows.collect(),
    })
}

impl Rig {
    fn start(system: System, cores: Cores, setup: &Setup) -> Result<Self> {
        let topology = Topology::build(cores, setup.flows)?;
        let gateway = system.start(&topology, setup)?;
        let traffic = Traffic::start(&topology, setup.flows, Kind::Datagrams, Receiving::Woken)?;
        Ok(Self { system, traffic, gateway, topology })
    }

    fn forwarded(&self) -> Result<u64> {
        let counts = self.traffic.counts()?;
        Ok(counts.translated + if self.system.translates() { 0 } else { counts.untranslated })
    }

    /// Returns how many frames a second come through when more than that are sent.
    fn find_rate(&mut self, duration: Duration) -> Result<u64> {
        self.traffic.follow(Plan { rate: Rate::Unbounded, ..Plan::default() })?;
        wait::pause(duration)?; // all flows have their sessions now
        let (before, began) = (self.forwarded()?, Instant::now());
        wait::pause(duration)?;
        let rate = a_second(self.forwarded()? - before, began.elapsed());
        self.traffic.rest()?;
        if rate == 0 {
            let log = match &self.gateway {
                Gateway::Kernel { .. } | Gateway::Raw { .. } => String::new(),
                Gateway::Spillway(daemon) => daemon.log(),
            };
            bail!("{} forwarded nothing\n{log}", self.system.name());
        }
        Ok(rate)
    }

    /// Measures round trips while so many frames a second are sent beside the probes.
    fn probe(&mut self, rate: u64, probes: u64, duration: Duration) -> Result<Sample> {
        self.traffic.forget_probes()?;
        self.traffic.follow(Plan {
            rate: Rate::PerSecond(rate),
            probes: Rate::PerSecond(probes),
            ..Plan::default()
        })?;
        wait::pause(SETTLE)?;
        let (first, forwarded, began) = (self.traffic.progress()?, self.forwarded()?, Instant::now());
        wait::pause(duration)?;
        let (last, elapsed) = (self.traffic.progress()?, began.elapsed());
        let forwarded = self.forwarded()? - forwarded;
        wait::pause(PATIENCE)?;
        self.traffic.rest()?;
        let times = self.traffic.round_trips(first.probes..last.probes.min(u64::from(SAMPLES)))?;
        let rates = [last.sent - first.sent, forwarded].map(|frames| mega(a_second(frames, elapsed)));
        match Sample::of(&times, rates)? {
            Some(sample) => Ok(sample),
            None => bail!("no probe of {} came back from {}", times.len(), self.system.name()),
        }
    }
}

impl Load {
    fn rate(self, first: u64, own: u64) -> u64 {
        match self {
            Self::Idle => 0,
            Self::Common(percent) => first * percent / 100,
            Self::Own(percent) => own * percent / 100,
        }
    }

    fn show(self, first: System) -> String {
        match self {
            Self::Idle => "idle".to_owned(),
            Self::Common(percent) => format!("{percent} % of {}", first.name()),
            Self::Own(percent) => format!("{percent} % of its own"),
        }
    }
}

impl Sample {
    /// Sums up round trips in nanoseconds; nothing when none came back.
    pub(crate) fn of(
        times: &[Option<u64>],
        [offered_mpps, forwarded_mpps]: [f64; 2],
    ) -> Result<Option<Self>> {
        let mut histogram = Histogram::<u64>::new(3)?;
        for time in times.iter().flatten() {
            histogram.record(*time)?;
        }
        let came_back = usize::try_from(histogram.len())?;
        let at = |quantile| microseconds(histogram.value_at_quantile(quantile));
        Ok((came_back > 0).then(|| Self {
            probes: times.len(),
            lost: times.len() - came_back,
            p50: at(0.5),
            p99: at(0.99),
            p99_9: at(0.999),
            maximum: microseconds(histogram.max()),
            offered_mpps,
            forwarded_mpps,
        }))
    }

    #[expect(clippy::cast_precision_loss, reason = "there are at most as many probes as samples")]
    pub(crate) fn lost_percent(&self) -> f64 {
        100.0 * self.lost as f64 / self.probes as f64
    }
}

impl Row {
    /// Returns a row for each system at one load.
    fn all(load: Load, systems: &[System], samples: Vec<Vec<Sample>>) -> Vec<Self> {
        let first = samples.first().cloned().unwrap_or_default();
        systems
            .iter()
            .zip(samples)
            .map(|(system, samples)| Self::of(load, *system, samples, &first))
            .collect()
    }

    fn of(load: Load, system: System, samples: Vec<Sample>, first: &[Sample]) -> Self {
        let sum_up = |value: fn(&Sample) -> f64| Summary::of(&samples.iter().map(value).collect::<Vec<_>>());
        let compare = |value: fn(&Sample) -> f64| {
            let ratios = samples.iter().zip(first).map(|(mine, first)| value(mine) / value(first));
            Summary::of(&ratios.collect::<Vec<_>>())
        };
        Self {
            load,
            system,
            p50_ratio: compare(|sample| sample.p50),
            p99_ratio: compare(|sample| sample.p99),
            p50: sum_up(|sample| sample.p50),
            p99: sum_up(|sample| sample.p99),
            p99_9: sum_up(|sample| sample.p99_9),
            maximum: sum_up(|sample| sample.maximum),
            offered_mpps: sum_up(|sample| sample.offered_mpps),
            lost_percent: sum_up(Sample::lost_percent),
            samples,
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates are far below 2^52"
)]
pub(crate) fn a_second(frames: u64, duration: Duration) -> u64 {
    (frames as f64 / duration.as_secs_f64()) as u64
}

#[expect(clippy::cast_precision_loss, reason = "rates are far below 2^52")]
pub(crate) fn mega(rate: u64) -> f64 {
    rate as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "a round trip of 2^52 ns would be 52 days")]
fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_probes_that_came_back() {
        let times: Vec<Option<u64>> =
            (1..=1000).map(|micros| Some(micros * 1000)).chain([None; 10]).collect();
        let sample = Sample::of(&times, [1.0, 0.5]).unwrap().unwrap();
        assert_eq!((sample.probes, sample.lost), (1010, 10));
        for (value, expected) in [(sample.p50, 500.0), (sample.p99, 990.0), (sample.maximum, 1000.0)] {
            assert!((value - expected).abs() < 1.0, "{value} is not {expected}");
        }
        assert!((sample.lost_percent() - 1.0).abs() < 0.1);
        assert!(Sample::of(&[None], [0.0, 0.0]).unwrap().is_none());
    }

    #[test]
    fn loads_are_shares_of_the_firsts_or_of_the_own_rate() {
        let cases = [(Load::Idle, 0), (Load::Common(50), 500), (Load::Own(90), 1800)];
        for (load, expected) in cases {
            assert_eq!(load.rate(1000, 2000), expected, "{load:?}");
        }
    }

    #[test]
    fn systems_are_compared_round_by_round() {
        let sample = |p50| Sample {
            probes: 10,
            lost: 0,
            p50,
            p99: p50,
            p99_9: p50,
            maximum: p50,
            offered_mpps: 0.1,
            forwarded_mpps: 0.1,
        };
        let systems = [System::KernelIptables, System::Spillway];
        let samples = vec![vec![sample(10.0), sample(20.0)], vec![sample(5.0), sample(30.0)]];
        let rows = Row::all(Load::Idle, &systems, samples);
        assert_eq!(rows[0].p50_ratio, Summary::of(&[1.0, 1.0]));
        assert_eq!(rows[1].p50_ratio, Summary::of(&[0.5, 1.5]));
    }
}

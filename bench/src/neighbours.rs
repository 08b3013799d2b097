use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum, value_parser};
use control::demo::wait;
use serde::Serialize;

use crate::flows::{FIRST_DESTINATION, Flows};
use crate::latency::{Sample, a_second, mega};
use crate::statistics::Summary;
use crate::system::{Gateway, Setup, System};
use crate::topology::{Cores, RED_MAC, TENANT_MAC, Topology};
use crate::traffic::{Flood, Kind, Plan, Rate, Receiving, SAMPLES, Traffic};

/// What is shown of it.
mod show;

/// Sessions that the gateways have room for, more or less: Spillway's default table.
const ROOM: u32 = 800_000;
/// Lets a flood fill what it can before probes are looked at.
const SETTLE: Duration = Duration::from_millis(500);
/// A probe that takes longer is lost.
const PATIENCE: Duration = Duration::from_millis(200);

/// Round trips and loss of a tenant while another floods the gateway, beside the kernel's
///
/// Blue's probes are datagrams of a pod to the server and back, at a modest rate; red floods by its own gateway
/// address. Each flood is compared with blue alone in the same round.
/// Example: spillway-bench neighbours --seconds 5 --rounds 5
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Length of each measurement
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(1..=20))]
    seconds: u64,
    /// How often each gateway has its turn
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Blue's probes in a second
    #[arg(long, default_value_t = 5000, value_parser = value_parser!(u64).range(10..=6000))]
    probes: u64,
    /// Red's frames in a second
    #[arg(long, default_value_t = 1_000_000, value_parser = value_parser!(u64).range(1..=10_000_000))]
    rate: u64,
    /// What red does
    #[arg(long = "flood", num_args = 1.., value_name = "FLOOD", default_values_t = Noise::FLOODS)]
    floods: Vec<Noise>,
    /// Gateways to measure
    #[arg(long = "system", num_args = 1.., value_name = "SYSTEM",
          default_values_t = [System::Spillway, System::KernelIptables])]
    systems: Vec<System>,
}

/// What red does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Noise {
    /// Nothing
    Alone,
    /// Packets of one session
    OneFlow,
    /// UDP datagrams, each of another flow
    NewFlows,
    /// SYNs from ever other pods and ports that nobody answers
    Syns,
    /// New flows to one destination, beyond the last outside port
    OneDestination,
    /// Fragments of datagrams that never become whole
    Fragments,
    /// Frames that are not IPv4, which Spillway's XDP program drops at once
    NotIpv4,
}

/// Round trips beside every flood.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) seconds: u64,
    pub(crate) rounds: u32,
    pub(crate) probes_a_second: u64,
    pub(crate) rate: u64,
    pub(crate) cores: Cores,
    pub(crate) xdp_mode: &'static str,
    pub(crate) rows: Vec<Row>,
}

/// One system beside one flood, over all rounds; times in microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) noise: Noise,
    pub(crate) system: System,
    /// Over those of blue alone in the same round.
    pub(crate) p50_ratio: Summary,
    pub(crate) p99_ratio: Summary,
    pub(crate) p99_9_ratio: Summary,
    pub(crate) p50: Summary,
    pub(crate) p99: Summary,
    pub(crate) p99_9: Summary,
    /// Of blue's probes, in percent.
    pub(crate) lost_percent: Summary,
    pub(crate) offered_mpps: Summary,
    /// Of the flood, as far as the server counts it.
    pub(crate) forwarded_mpps: Summary,
    pub(crate) samples: Vec<Sample>,
}

/// A gateway with two tenants.
struct Rig {
    // Dropped in this order: the gateway goes before the namespace that it is in.
    traffic: Traffic,
    _gateway: Gateway,
    topology: Topology,
}

impl Options {
    pub(crate) fn needs_spillway(&self) -> bool {
        self.systems.iter().any(|system| system.is_spillway())
    }
}

impl Noise {
    const FLOODS: [Self; 6] =
        [Self::OneFlow, Self::NewFlows, Self::Syns, Self::OneDestination, Self::Fragments, Self::NotIpv4];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::OneFlow => "one-flow",
            Self::NewFlows => "new-flows",
            Self::Syns => "syns",
            Self::OneDestination => "one-destination",
            Self::Fragments => "fragments",
            Self::NotIpv4 => "not-ipv4",
        }
    }

    fn plan(self, rate: u64, probes: u64) -> Plan {
        let flood = match self {
            Self::Alone | Self::OneFlow | Self::NewFlows | Self::OneDestination => Flood::None,
            Self::Syns => Flood::Syns,
            Self::Fragments => Flood::Fragments,
            Self::NotIpv4 => Flood::NotIpv4,
        };
        let destination: Option<Ipv4Addr> = (self == Self::OneDestination).then_some(FIRST_DESTINATION);
        let rate = if self == Self::Alone { Rate::Nothing } else { Rate::PerSecond(rate) };
        let probes = Rate::PerSecond(probes);
        let probe_mac = Some(TENANT_MAC);
        Plan { rate, probes, gateway_mac: RED_MAC, probe_mac, destination, flood, ..Plan::default() }
    }

    /// Returns the flows that come in turn.
    fn flows(self) -> Flows {
        Flows::new(if self == Self::OneFlow { 1 } else { Flows::MAXIMUM })
    }
}

impl std::fmt::Display for Noise {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Measures every system beside every flood, in turn. Each has a fresh gateway, in which no flood has been.
pub(crate) fn measure(options: &Options, cores: Cores, setup: &Setup) -> Result<Results> {
    let setup = Setup { flows: Flows::new(ROOM), ..setup.clone() };
    let noises: Vec<Noise> = options.floods.iter().copied().filter(|noise| *noise != Noise::Alone).collect();
    let mut samples = vec![vec![(Vec::new(), Vec::new()); options.systems.len()]; noises.len()];
    let mut xdp_mode = "none";
    for round in 1..=options.rounds {
        for (noise, samples) in noises.iter().zip(&mut samples) {
            for (system, (alone, beside)) in options.systems.iter().zip(samples) {
                let mut rig = Rig::start(*system, *noise, cores, &setup)?;
                xdp_mode = if system.is_spillway() { rig.topology.xdp_mode()? } else { xdp_mode };
                for (noise, samples) in [(Noise::Alone, alone), (*noise, beside)] {
                    let sample = rig.probe(noise, options)?;
                    eprintln!(
                        "round {round}/{}  {:<16} {:<16} p50 {:.0} µs, p99 {:.0} µs, {:.3} % lost, {:.2} Mpps offered",
                        options.rounds,
                        system.name(),
                        noise.name(),
                        sample.p50,
                        sample.p99,
                        sample.lost_percent(),
                        sample.offered_mpps
                    );
                    samples.push(sample);
                }
            }
        }
    }
    let mut rows = Vec::new();
    for (place, system) in options.systems.iter().enumerate() {
        let alone: Vec<Sample> = samples.iter().flat_map(|samples| samples[place].0.clone()).collect();
        rows.push(Row::of(Noise::Alone, *system, alone.clone(), &alone));
        for (noise, samples) in noises.iter().zip(&samples) {
            let (alone, beside) = &samples[place];
            rows.push(Row::of(*noise, *system, beside.clone(), alone));
        }
    }
    Ok(Results {
        seconds: options.seconds,
        rounds: options.rounds,
        probes_a_second: options.probes,
        rate: options.rate,
        cores,
        xdp_mode,
        rows,
    })
}

impl Rig {
    fn start(system: System, noise: Noise, cores: Cores, setup: &Setup) -> Result<Self> {
        let topology = Topology::build(cores, Flows::new(Flows::MAXIMUM))?;
        let gateway = system.start(&topology, setup)?;
        gateway.add_red(&topology, setup)?;
        let traffic = Traffic::start(&topology, noise.flows(), Kind::Datagrams, Receiving::Woken)?;
        Ok(Self { traffic, _gateway: gateway, topology })
    }

    /// Measures blue's round trips while red does what it does.
    fn probe(&mut self, noise: Noise, options: &Options) -> Result<Sample> {
        let duration = Duration::from_secs(options.seconds);
        self.traffic.forget_probes()?;
        self.traffic.follow(noise.plan(options.rate, options.probes))?;
        wait::pause(SETTLE)?;
        let (first, before, began) = (self.traffic.progress()?, self.traffic.counts()?, Instant::now());
        wait::pause(duration)?;
        let (last, after, elapsed) = (self.traffic.progress()?, self.traffic.counts()?, began.elapsed());
        wait::pause(PATIENCE)?;
        self.traffic.rest()?;
        let times = self.traffic.round_trips(first.probes..last.probes.min(u64::from(SAMPLES)))?;
        // Red's datagrams arrive under another address than blue's.
        let forwarded = after.other + after.asked - before.other - before.asked;
        let rates = [last.sent - first.sent, forwarded].map(|frames| mega(a_second(frames, elapsed)));
        match Sample::of(&times, rates)? {
            Some(sample) => Ok(sample),
            None => bail!("no probe of {} came back beside {}", times.len(), noise.name()),
        }
    }
}

impl Row {
    /// Sums up samples beside a flood; `alone` are those of the same rounds without.
    fn of(noise: Noise, system: System, samples: Vec<Sample>, alone: &[Sample]) -> Self {
        let sum_up = |value: fn(&Sample) -> f64| Summary::of(&samples.iter().map(value).collect::<Vec<_>>());
        let compare = |value: fn(&Sample) -> f64| {
            let ratios = samples.iter().zip(alone).map(|(beside, alone)| value(beside) / value(alone));
            Summary::of(&ratios.collect::<Vec<_>>())
        };
        Self {
            noise,
            system,
            p50_ratio: compare(|sample| sample.p50),
            p99_ratio: compare(|sample| sample.p99),
            p99_9_ratio: compare(|sample| sample.p99_9),
            p50: sum_up(|sample| sample.p50),
            p99: sum_up(|sample| sample.p99),
            p99_9: sum_up(|sample| sample.p99_9),
            lost_percent: sum_up(Sample::lost_percent),
            offered_mpps: sum_up(|sample| sample.offered_mpps),
            forwarded_mpps: sum_up(|sample| sample.forwarded_mpps),
            samples,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for noise in Noise::value_variants() {
            assert_eq!(noise.to_possible_value().unwrap().get_name(), noise.name());
        }
    }

    #[test]
    fn a_flood_is_compared_with_blue_alone_in_the_same_round() {
        let sample = |p99, lost| Sample {
            probes: 100,
            lost,
            p50: p99,
            p99,
            p99_9: p99,
            maximum: p99,
            offered_mpps: 1.0,
            forwarded_mpps: 0.5,
        };
        let alone = [sample(10.0, 0), sample(20.0, 0)];
        let row = Row::of(Noise::Syns, System::Spillway, vec![sample(11.0, 0), sample(30.0, 1)], &alone);
        assert_eq!(row.p99_ratio, Summary::of(&[1.1, 1.5]));
        assert_eq!(row.lost_percent, Summary::of(&[0.0, 1.0]));
    }

    #[test]
    fn blues_probes_come_back_beside_a_flood_through_the_kernel() {
        if !crate::namespace::allowed() {
            return;
        }
        let (cores, noise) = (Cores::plan(2).unwrap(), Noise::NewFlows);
        let topology = Topology::build(cores, Flows::new(64)).unwrap();
        let setup = Setup { flows: Flows::new(64), spillway: "unused".into() };
        let gateway = System::KernelIptables.start(&topology, &setup).unwrap();
        gateway.add_red(&topology, &setup).unwrap();
        let traffic = Traffic::start(&topology, Flows::new(64), Kind::Datagrams, Receiving::Woken).unwrap();
        let mut rig = Rig { traffic, _gateway: gateway, topology };
        rig.traffic.follow(Plan { last: 500, ..noise.plan(5000, 100) }).unwrap();
        let done = || {
            let probes = rig.traffic.progress()?.probes;
            let back = rig.traffic.round_trips(0..probes)?.iter().flatten().count();
            let counts = rig.traffic.counts()?;
            Ok((counts.other == 500 && back >= 10).then_some(counts))
        };
        let counts = wait::until("500 datagrams and 10 probes", Duration::from_secs(10), done).unwrap();
        assert_eq!(counts.untranslated, 0);
    }
}

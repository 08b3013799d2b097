use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum, value_parser};
use serde::Serialize;

use crate::flows::Flows;
use crate::frames::Frames;
use crate::system::{Setup, System};
use crate::topology::Cores;

/// All samples, and what they come to.
mod results;
/// Measures one system once.
mod sample;
/// Finds the highest rate that loses next to nothing.
mod search;
/// What of it is shown.
mod sheets;

use results::Results;
use sample::Sample;
use search::Search;

/// What is measured, and how often.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Number of UDP flows, in random order; repeat it for several
    #[arg(long, num_args = 1.., default_values_t = [1, 1024, 65_536, 1_000_000],
          value_parser = value_parser!(u32).range(1..=i64::from(Flows::MAXIMUM)))]
    flows: Vec<u32>,
    /// Measures 65,536 flows to one destination too: through one egress address, ports run out
    #[arg(long)]
    one_destination: bool,
    /// Length of frames; repeat it for several
    #[arg(long, num_args = 1.., default_values = ["64"])]
    frames: Vec<Frames>,
    /// Gateways to measure; the first is what the others are compared with
    #[arg(long = "system", num_args = 1.., value_name = "SYSTEM", default_values_t = System::ALL)]
    systems: Vec<System>,
    /// Figure to find
    #[arg(long, default_value = "overload")]
    rate: Rate,
    /// Length of each measurement at overload, and of each trial of the search
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How often each gateway has its turn
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Loss that is still none, in percent of the frames that were sent
    #[arg(long, default_value_t = 0.1, value_name = "PERCENT", value_parser = parse_percent)]
    loss: f64,
    /// How near the search comes, in percent of the rate
    #[arg(long, default_value_t = 2.0, value_name = "PERCENT", value_parser = parse_percent)]
    resolution: f64,
    /// Most trials of one search
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u32).range(1..=50))]
    trials: u32,
    /// Measures three gateways at overload for 2 s in 2 rounds: less than two minutes
    #[arg(long, conflicts_with_all = ["flows", "one_destination", "frames", "systems", "rate", "seconds", "rounds"])]
    short: bool,
}

/// A figure of throughput.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Rate {
    /// What comes through when more is sent than the gateway can take
    Overload,
    /// The highest rate with next to no loss (RFC 2544 section 26.1, by bisection), besides the one at overload
    Ndr,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    frames: Frames,
    flows: Flows,
}

#[derive(Debug, Clone)]
struct Plan {
    cases: Vec<Case>,
    systems: Vec<System>,
    rate: Rate,
    duration: Duration,
    rounds: u32,
    search: Search,
}

impl Options {
    /// Tells whether the daemon's program is needed.
    pub(crate) fn needs_spillway(&self) -> bool {
        self.systems.iter().any(|system| system.is_spillway())
    }

    fn plan(&self, seed: u64) -> Plan {
        let search =
            Search { loss: self.loss / 100.0, resolution: self.resolution / 100.0, trials: self.trials };
        if self.short {
            return Plan::short(search, seed);
        }
        let mut flows: Vec<Flows> = self.flows.iter().map(|count| Flows::new(*count)).collect();
        if self.one_destination {
            flows.push(Flows::out_of_ports());
        }
        Plan {
            cases: combine(&self.frames, &flows, seed),
            systems: self.systems.clone(),
            rate: self.rate,
            duration: Duration::from_secs(self.seconds),
            rounds: self.rounds,
            search,
        }
    }
}

impl Plan {
    /// What fits into `make bench`. It leaves out nftables, forwarding without translation and both splits, a single
    /// flow and a million of them, IMIX, the search for the rate without loss, and the third round.
    fn short(search: Search, seed: u64) -> Self {
        let flows = [Flows::new(1024), Flows::new(65_536), Flows::out_of_ports()];
        Self {
            cases: combine(&[Frames::Small], &flows, seed),
            systems: vec![System::KernelIptables, System::RawAfxdp, System::Spillway],
            rate: Rate::Overload,
            duration: Duration::from_secs(2),
            rounds: 2,
            search,
        }
    }
}

fn combine(frames: &[Frames], flows: &[Flows], seed: u64) -> Vec<Case> {
    let each = frames.iter().flat_map(|frames| flows.iter().map(move |flows| (*frames, *flows)));
    each.map(|(frames, flows)| Case { frames, flows: flows.with_seed(seed) }).collect()
}

fn parse_percent(word: &str) -> Result<f64> {
    match word.parse() {
        Ok(percent) if percent > 0.0 && percent < 100.0 => Ok(percent),
        Ok(_) | Err(_) => bail!("a number above 0 and below 100 is wanted"),
    }
}

/// Measures every system in every case, in turn within each round.
pub(crate) fn measure(options: &Options, cores: Cores, setup: &Setup) -> Result<Results> {
    measure_all(&options.plan(setup.flows.seed()), cores, setup)
}

fn measure_all(plan: &Plan, cores: Cores, setup: &Setup) -> Result<Results> {
    let mut samples = vec![vec![Vec::new(); plan.systems.len()]; plan.cases.len()];
    for round in 1..=plan.rounds {
        for (case, samples) in plan.cases.iter().zip(&mut samples) {
            for (system, samples) in plan.systems.iter().zip(samples) {
                let sample = sample::measure(*system, *case, plan, cores, setup)?;
                eprintln!("round {round}/{}  {}", plan.rounds, describe(*system, *case, &sample));
                samples.push(sample);
            }
        }
    }
    Ok(Results::of(plan, cores, samples))
}

fn describe(system: System, case: Case, sample: &Sample) -> String {
    let found = sample.search.as_ref().map(|search| format!(", {:.2} without loss", search.mpps));
    format!(
        "{:<8}  {:>26} flows  {:<16} {:.2} Mpps of {:.2} offered{}",
        case.frames.name(),
        case.flows,
        system.name(),
        sample.forwarded_mpps,
        sample.offered_mpps,
        found.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_forwards_is_generated_counted_and_searched_for() {
        if !crate::namespace::allowed() {
            return;
        }
        let plan = Plan {
            cases: combine(&[Frames::Imix], &[Flows::new(64)], 1),
            systems: vec![System::KernelForward, System::KernelIptables, System::KernelNftables],
            rate: Rate::Ndr,
            duration: Duration::from_millis(300),
            rounds: 1,
            search: Search { loss: 0.5, resolution: 0.5, trials: 2 },
        };
        let setup = Setup { flows: Flows::new(64), spillway: "unused".into() };
        let results = measure_all(&plan, Cores::plan(2).unwrap(), &setup).unwrap();
        for result in &results.rows[0].systems {
            assert!(result.forwarded_mpps.median > 0.0, "{result:?}");
            assert!(result.offered_mpps.median >= result.forwarded_mpps.median, "{result:?}");
            assert_eq!(result.rounds[0].untranslated, 0, "{result:?}");
            assert!(!result.rounds[0].search.as_ref().unwrap().trials.is_empty(), "{result:?}");
        }
    }

    #[test]
    fn every_length_meets_every_number_of_flows() {
        let flows = [Flows::new(1), Flows::out_of_ports()];
        let cases = combine(&[Frames::Small, Frames::Imix], &flows, 7);
        assert_eq!(cases.len(), 4);
        assert_eq!(cases[3], Case { frames: Frames::Imix, flows: Flows::out_of_ports().with_seed(7) });
    }

    #[test]
    fn a_share_is_between_nothing_and_everything() {
        for (word, expected) in [("0.1", Some(0.1)), ("0", None), ("100", None), ("NaN", None), ("a", None)] {
            assert_eq!(parse_percent(word).ok(), expected, "{word}");
        }
    }
}

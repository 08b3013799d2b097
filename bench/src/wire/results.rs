use std::collections::BTreeMap;

use serde::Serialize;

use super::sample::Sample;
use super::{Case, Plan};
use crate::frames::Frames;
use crate::statistics::Summary;
use crate::system::System;
use crate::topology::Cores;

/// Other numbers of flows are compared with this one.
pub(super) const REFERENCE_FLOWS: u32 = 1024;

/// Throughput of all systems in all cases.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(super) seconds: f64,
    pub(super) rounds: u32,
    pub(super) cores: Cores,
    pub(super) xdp_mode: &'static str,
    /// Share of the frames that a rate without loss may lose.
    pub(super) loss: f64,
    pub(super) rows: Vec<Row>,
    pub(super) notes: Vec<String>,
}

/// All systems in one case. The first system is what the others are compared with.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) frames: Frames,
    pub(super) flows: u32,
    pub(super) one_destination: bool,
    /// Flows as people read them.
    #[serde(skip)]
    pub(super) name: String,
    pub(super) systems: Vec<SystemResult>,
}

/// One system in one case, over all rounds.
#[derive(Debug, Serialize)]
pub(super) struct SystemResult {
    pub(super) system: System,
    /// At overload.
    pub(super) forwarded_mpps: Summary,
    pub(super) offered_mpps: Summary,
    pub(super) overload: Compared,
    /// The highest rate with next to no loss, where it was searched for.
    pub(super) ndr_mpps: Option<Summary>,
    pub(super) ndr: Option<Compared>,
    pub(super) rounds: Vec<Sample>,
}

/// A rate beside others of the same round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Compared {
    /// Over the first system's in the same case.
    pub(super) to_first: Summary,
    /// Over the same system's own at 1,024 flows, where those were measured: 1 is no collapse.
    pub(super) to_own: Option<Summary>,
}

/// A rate of each round.
type Rates = Vec<f64>;

impl Results {
    /// Sums up samples by case, system and round.
    pub(super) fn of(plan: &Plan, cores: Cores, samples: Vec<Vec<Vec<Sample>>>) -> Self {
        let all = || samples.iter().flatten().flatten();
        let mut modes = all().map(|sample| sample.xdp_mode);
        let notes = describe_doubts(plan, &samples).into_iter().chain(describe_pace(all()));
        Self {
            seconds: plan.duration.as_secs_f64(),
            rounds: plan.rounds,
            cores,
            xdp_mode: modes.find(|mode| *mode != "none").unwrap_or("none"),
            loss: plan.search.loss,
            notes: notes.collect(),
            rows: sum_up(&plan.cases, &plan.systems, samples),
        }
    }
}

/// Says what is doubtful, and where.
fn describe_doubts(plan: &Plan, samples: &[Vec<Vec<Sample>>]) -> Vec<String> {
    let mut doubts: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (case, samples) in plan.cases.iter().zip(samples) {
        for (system, samples) in plan.systems.iter().zip(samples) {
            let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
            for doubt in samples.iter().flat_map(Sample::doubts) {
                *counts.entry(doubt).or_default() += 1;
            }
            for (doubt, count) in counts {
                let place = format!("{system}, {}, {} flows", case.frames.name(), case.flows);
                doubts.entry(doubt).or_default().push(format!("{place} ({count} of {} rounds)", plan.rounds));
            }
        }
    }
    doubts.iter().map(|(doubt, places)| format!("{doubt}: {}", places.join("; "))).collect()
}

fn sum_up(cases: &[Case], systems: &[System], samples: Vec<Vec<Vec<Sample>>>) -> Vec<Row> {
    let overload = compare(cases, &samples, |sample| Some(sample.forwarded_mpps));
    let ndr = compare(cases, &samples, |sample| sample.search.as_ref().map(|found| found.mpps));
    let compared = overload.into_iter().zip(ndr);
    let rows = cases.iter().zip(samples).zip(compared).map(|((case, samples), (overload, ndr))| {
        let compared = overload.into_iter().zip(ndr);
        let results = systems.iter().zip(samples).zip(compared).map(|((system, rounds), (overload, ndr))| {
            let over = |rate: fn(&Sample) -> f64| Summary::of(&rounds.iter().map(rate).collect::<Rates>());
            let found: Rates =
                rounds.iter().filter_map(|sample| Some(sample.search.as_ref()?.mpps)).collect();
            SystemResult {
                system: *system,
                forwarded_mpps: over(|sample| sample.forwarded_mpps),
                offered_mpps: over(|sample| sample.offered_mpps),
                overload: overload.unwrap_or(Compared { to_first: Summary::of(&[]), to_own: None }),
                ndr_mpps: (!found.is_empty()).then(|| Summary::of(&found)),
                ndr,
                rounds,
            }
        });
        Row {
            frames: case.frames,
            flows: case.flows.count(),
            one_destination: case.flows.has_one_destination(),
            name: case.flows.to_string(),
            systems: results.collect(),
        }
    });
    rows.collect()
}

/// Compares one rate of every system in every case; nothing where it was not measured.
fn compare(
    cases: &[Case],
    samples: &[Vec<Vec<Sample>>],
    rate: impl Fn(&Sample) -> Option<f64>,
) -> Vec<Vec<Option<Compared>>> {
    let rates: Vec<Vec<Rates>> = samples
        .iter()
        .map(|systems| systems.iter().map(|rounds| rounds.iter().filter_map(&rate).collect()).collect())
        .collect();
    let reference = |case: &Case| {
        let is_reference = |other: &Case| {
            other.frames == case.frames
                && other.flows.count() == REFERENCE_FLOWS
                && !other.flows.has_one_destination()
        };
        cases.iter().position(is_reference).filter(|index| cases[*index] != *case)
    };
    let of_case = |(case, systems): (&Case, &Vec<Rates>)| {
        let own = reference(case).map(|index| &rates[index]);
        let of_system = |(index, mine): (usize, &Rates)| {
            (!mine.is_empty()).then(|| Compared {
                to_first: ratios(mine, &systems[0]),
                to_own: own.map(|own| ratios(mine, &own[index])),
            })
        };
        systems.iter().enumerate().map(of_system).collect()
    };
    cases.iter().zip(&rates).map(of_case).collect()
}

/// Divides each round by the same round of another; a round in which the other had nothing is left out.
fn ratios(mine: &[f64], others: &[f64]) -> Summary {
    let pairs = mine.iter().zip(others).filter(|(_, other)| **other > 0.0);
    Summary::of(&pairs.map(|(mine, other)| mine / other).collect::<Rates>())
}

/// Says how exactly rates were kept in the trials of searches.
fn describe_pace<'a>(samples: impl Iterator<Item = &'a Sample>) -> Option<String> {
    let trials: Vec<_> =
        samples.filter_map(|sample| sample.search.as_ref()).flat_map(|s| &s.trials).collect();
    if trials.is_empty() {
        return None;
    }
    let summary = |value: &dyn Fn(usize) -> f64| {
        let values: Rates = (0..trials.len()).map(value).collect();
        Summary::of(&values)
    };
    let kept = summary(&|index| 100.0 * trials[index].offered_mpps / trials[index].wanted_mpps);
    let half = summary(&|index| trials[index].evenness.late_p50_us);
    let most = summary(&|index| trials[index].evenness.late_p99_us);
    let lost = summary(&|index| trials[index].evenness.given_up_ms);
    Some(format!(
        "Pace over {} trials, median (least to most): {} % of the rate was sent; half of the frames left within {} µs of \
         their time, 99 % within {} µs; {} ms a trial in which the generator did not run.",
        trials.len(),
        kept.show(),
        half.show(),
        most.show(),
        lost.show()
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Rate, Search};
    use super::*;
    use crate::flows::Flows;

    fn case(flows: Flows) -> Case {
        Case { frames: Frames::Small, flows }
    }

    fn rounds(rates: [f64; 2]) -> Vec<Sample> {
        rates.map(Sample::made_up).to_vec()
    }

    #[test]
    fn ratios_compare_with_the_same_round() {
        let cases = [case(Flows::new(1024)), case(Flows::out_of_ports())];
        let systems = [System::KernelIptables, System::Spillway];
        let samples = vec![
            vec![rounds([1.0, 0.5]), rounds([2.0, 1.5])],
            vec![rounds([0.5, 0.25]), rounds([2.0, 0.75])],
        ];
        let rows = sum_up(&cases, &systems, samples);
        let compared = |row: usize, system: usize| rows[row].systems[system].overload;
        let equal = Summary::of(&[1.0, 1.0]);
        assert_eq!(compared(0, 0), Compared { to_first: equal, to_own: None });
        assert_eq!(compared(0, 1).to_first, Summary::of(&[2.0, 3.0]));
        assert_eq!(compared(1, 0).to_own, Some(Summary::of(&[0.5, 0.5])));
        assert_eq!(compared(1, 1).to_own, Some(Summary::of(&[1.0, 0.5])));
        assert!(rows[1].one_destination && rows[0].systems[0].ndr.is_none());
    }

    #[test]
    fn a_doubt_is_told_once_with_every_place() {
        let plan = Plan {
            cases: vec![case(Flows::new(1)), case(Flows::new(1024))],
            systems: vec![System::Spillway],
            rate: Rate::Overload,
            duration: Duration::from_secs(1),
            rounds: 2,
            search: Search { loss: 0.001, resolution: 0.02, trials: 8 },
        };
        let cold = Sample { warm: false, ..Sample::made_up(1.0) };
        let samples = vec![vec![vec![cold.clone(), cold.clone()]], vec![vec![Sample::made_up(1.0), cold]]];
        let doubts = describe_doubts(&plan, &samples);
        let places =
            "spillway, 64 bytes, 1 flows (2 of 2 rounds); spillway, 64 bytes, 1,024 flows (1 of 2 rounds)";
        assert_eq!(doubts, [format!("still making sessions when the measurement began: {places}")]);
    }

    #[test]
    fn a_rival_that_has_no_rate_is_left_out() {
        assert_eq!(ratios(&[1.0, 2.0], &[0.0, 1.0]), Summary::of(&[2.0]));
    }
}

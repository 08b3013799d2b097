use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, value_parser};
use control::demo::process::Process;
use control::demo::wait;
use serde::Serialize;

use crate::flows::Flows;
use crate::frames::Frames;
use crate::generator::Generator;
use crate::report::{Findings, Sheet};
use crate::sink::Sink;
use crate::statistics::Summary;
use crate::system::{Gateway, Setup, System};
use crate::topology::{Cores, Topology};

/// Every flow had this many turns on average before it begins.
const WARM_ROUNDS: u64 = 3;
const WARM_WITHIN: Duration = Duration::from_secs(120);
/// A command that looks has begun after this time.
const BEGINS: Duration = Duration::from_millis(500);

/// What it costs to look: throughput at overload, and loss at half of it, while somebody captures or lists sessions
///
/// Example: spillway-bench watching --flows 1024 1000000 --rounds 5
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Number of UDP flows; repeat it for several
    #[arg(long, num_args = 1.., default_values_t = [1024, 1_000_000],
          value_parser = value_parser!(u32).range(1..=i64::from(Flows::MAXIMUM)))]
    flows: Vec<u32>,
    /// Length of each measurement
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How often each has its turn
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..=50))]
    rounds: u32,
}

/// Somebody who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Looker {
    Nobody,
    /// Captures every packet, as many as it may.
    Capture,
    /// Captures what is dropped; nothing is.
    CaptureDrops,
    /// Captures one pod.
    CapturePod,
    /// Lists all sessions, again and again.
    Sessions,
    /// Asks for the state ten times a second.
    Status,
}

impl Looker {
    const ALL: [Self; 6] =
        [Self::Nobody, Self::Capture, Self::CaptureDrops, Self::CapturePod, Self::Sessions, Self::Status];

    /// Returns what is run, in a shell; none: nothing.
    fn command(self, spillway: &Path, socket: &Path) -> Option<String> {
        let spillway = format!("{} --socket {}", spillway.display(), socket.display());
        let again =
            |what: &str, pause: &str| format!("while {spillway} {what} >/dev/null; do sleep {pause}; done");
        let capture = |what: &str| format!("exec {spillway} capture {what} --for 10m -w - >/dev/null");
        match self {
            Self::Nobody => None,
            Self::Capture => Some(capture("")),
            Self::CaptureDrops => Some(capture("--drops")),
            Self::CapturePod => Some(capture("--pod 10.132.0.5")),
            Self::Sessions => Some(again("sessions --all --csv", "0")),
            Self::Status => Some(again("status --json", "0.1")),
        }
    }
}

impl fmt::Display for Looker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "nobody",
            Self::Capture => "capture of everything",
            Self::CaptureDrops => "capture --drops",
            Self::CapturePod => "capture --pod",
            Self::Sessions => "sessions --all --csv",
            Self::Status => "status --json",
        })
    }
}

/// What was found with so many flows.
#[derive(Debug, Serialize)]
struct Case {
    flows: u32,
    lookers: Vec<Found>,
}

/// Throughput and loss while somebody looks.
#[derive(Debug, Serialize)]
struct Found {
    looker: Looker,
    mpps: Summary,
    /// Of what it is while nobody looks, in the same round.
    ratio: Summary,
    /// Frames of a million that are lost at half of the rate that was found while nobody looked.
    lost_ppm: Summary,
}

/// What becomes of traffic while somebody looks.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    xdp_mode: &'static str,
    seconds: u64,
    rounds: u32,
    cases: Vec<Case>,
}

/// Measures one worker at overload and at half of what it takes, while each looks in turn.
pub(crate) fn measure(options: &Options, cores: Cores, setup: &Setup) -> Result<Results> {
    let (mut cases, mut xdp_mode) = (Vec::new(), "none");
    for count in &options.flows {
        let flows = Flows::new(*count).with_seed(setup.flows.seed());
        let setup = Setup { flows, ..setup.clone() };
        let topology = Topology::build(cores, flows)?;
        let gateway = System::Spillway.start(&topology, &setup)?;
        let Gateway::Spillway(daemon) = &gateway else { bail!("only the daemon can be looked into") };
        let sink = Sink::attach(&topology)?;
        topology.poll_sink()?;
        let generator = Generator::prepare(&topology, flows, Frames::Small)?;
        generator.flood()?;
        wait::until("every flow has its session", WARM_WITHIN, || {
            Ok((sink.arrived()?.translated >= WARM_ROUNDS * u64::from(*count)).then_some(()))
        })?;
        let bench = Bench { generator, sink, setup: &setup, socket: daemon.socket(), options };
        let rates = bench.in_turn(|looker| bench.rate(looker), |rate| format!("{rate:.3} Mpps"))?;
        let alone = Summary::of(&rates[0]).median;
        bench.generator.pace(alone / 2.0 * 1e6)?;
        let lost =
            bench.in_turn(|looker| bench.loss(looker), |lost| format!("{lost:.0} of a million lost"))?;
        bench.generator.stop()?;
        xdp_mode = topology.xdp_mode()?;
        cases.push(Case { flows: *count, lookers: summarise(&rates, &lost) });
    }
    Ok(Results { xdp_mode, seconds: options.seconds, rounds: options.rounds, cases })
}

/// Traffic through a daemon, and who looks at it.
struct Bench<'a> {
    generator: Generator,
    sink: Sink,
    setup: &'a Setup,
    socket: PathBuf,
    options: &'a Options,
}

impl Bench<'_> {
    /// Lets each have its turn in every round; returns what was found, by who looked.
    fn in_turn(
        &self,
        find: impl Fn(Looker) -> Result<f64>,
        show: impl Fn(f64) -> String,
    ) -> Result<Vec<Vec<f64>>> {
        let mut found = vec![Vec::new(); Looker::ALL.len()];
        for round in 1..=self.options.rounds {
            for (looker, found) in Looker::ALL.into_iter().zip(&mut found) {
                let figure = find(looker)?;
                eprintln!("{} flows, round {round}, {looker}: {}", self.setup.flows.count(), show(figure));
                found.push(figure);
            }
        }
        Ok(found)
    }

    /// Returns how many million frames a second arrive.
    fn rate(&self, looker: Looker) -> Result<f64> {
        let count = || Ok(self.sink.arrived()?.translated);
        let Measured { before, after, elapsed } = self.while_looking(looker, count)?;
        Ok(mega_per_second(after - before, elapsed))
    }

    /// Returns how many of a million frames do not arrive.
    fn loss(&self, looker: Looker) -> Result<f64> {
        let count = || Ok((self.sink.arrived()?.translated, self.generator.sent()?));
        let Measured { before, after, .. } = self.while_looking(looker, count)?;
        // A few are on their way at each of both looks.
        Ok(lost_ppm(after.0 - before.0, after.1 - before.1))
    }

    /// Counts before and after the time of one measurement, while somebody looks.
    fn while_looking<T>(&self, looker: Looker, count: impl Fn() -> Result<T>) -> Result<Measured<T>> {
        let log = tempfile::NamedTempFile::new()?;
        let command = looker.command(&self.setup.spillway, &self.socket);
        let looking = command
            .map(|command| Process::start(Command::new("sh").args(["-c", &command]), log.path()))
            .transpose()?;
        wait::pause(BEGINS)?;
        let (before, start) = (count()?, Instant::now());
        wait::pause(Duration::from_secs(self.options.seconds))?;
        let measured = Measured { before, after: count()?, elapsed: start.elapsed() };
        if let Some(mut looking) = looking {
            if let Some(status) = looking.ended()? {
                bail!("whoever looked ended too early, with {status}: {}", looking.output());
            }
            looking.kill().context("whoever looks")?;
        }
        Ok(measured)
    }
}

/// What was counted at both ends of a measurement.
struct Measured<T> {
    before: T,
    after: T,
    elapsed: Duration,
}

fn summarise(rates: &[Vec<f64>], lost: &[Vec<f64>]) -> Vec<Found> {
    let alone = &rates[0];
    let found = |((looker, rates), lost): ((Looker, &Vec<f64>), &Vec<f64>)| {
        let ratios: Vec<_> = rates.iter().zip(alone).map(|(rate, alone)| rate / alone).collect();
        Found { looker, mpps: Summary::of(rates), ratio: Summary::of(&ratios), lost_ppm: Summary::of(lost) }
    };
    Looker::ALL.into_iter().zip(rates).zip(lost).map(found).collect()
}

#[expect(clippy::cast_precision_loss, reason = "2^52 frames take longer than any measurement")]
fn lost_ppm(arrived: u64, sent: u64) -> f64 {
    sent.saturating_sub(arrived) as f64 * 1e6 / sent.max(1) as f64
}

#[expect(clippy::cast_precision_loss, reason = "2^52 frames take longer than any measurement")]
fn mega_per_second(frames: u64, duration: Duration) -> f64 {
    frames as f64 / duration.as_secs_f64() / 1e6
}

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        self.xdp_mode
    }

    fn sheets(&self) -> Vec<Sheet> {
        let sheet = |case: &Case| Sheet {
            title: format!("Throughput and loss while somebody looks, {} flows", case.flows),
            header: ["who looks", "of alone", "Mpps", "lost of a million at half"]
                .map(str::to_owned)
                .to_vec(),
            rows: case
                .lookers
                .iter()
                .map(|found| {
                    let Found { looker, ratio, mpps, lost_ppm } = found;
                    vec![looker.to_string(), ratio.show(), mpps.show(), lost_ppm.show()]
                })
                .collect(),
            charts: Vec::new(),
            notes: vec![format!(
                "64-byte UDP, one worker: at overload, and at half of the rate found while nobody looked; {} rounds of \
                 {} s; medians, least and most.",
                self.rounds, self.seconds
            )],
        };
        self.cases.iter().map(sheet).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let rates = [vec![1.0, 2.0], vec![0.5, 1.0]];
        let found = summarise(&rates, &[vec![0.0], vec![lost_ppm(99, 100)]]);
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].ratio.minimum, found[1].ratio.maximum), (0.5, 0.5));
        assert_eq!(found[1].lost_ppm.median, 10_000.0);
    }

    #[test]
    fn who_looks_is_a_command_of_the_daemons_program() {
        let command = |looker: Looker| looker.command(Path::new("/bin/spillway"), Path::new("/s"));
        assert_eq!(command(Looker::Nobody), None);
        for looker in &Looker::ALL[1..] {
            assert!(command(*looker).is_some_and(|it| it.contains("/bin/spillway --socket /s ")), "{looker}");
        }
    }
}

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, value_parser};
use control::demo::wait;
use serde::Serialize;

use crate::crowd;
use crate::flows::Flows;
use crate::report::{Findings, Sheet};
use crate::statistics::{Summary, group_digits};
use crate::system::{Daemon, End, Setup, Wishes};
use crate::topology::{Cores, Topology};
use crate::traffic::{Kind, Plan, Rate, Receiving, Traffic};
use connections::{Connections, Outcome};

/// TCP of the kernel on both sides of the gateway.
mod connections;
/// The far end of it.
pub(crate) mod echo;

const LOOKS_FOR_RATE: Duration = Duration::from_secs(1);
const SETTLE: Duration = Duration::from_millis(1500);
/// How often the far end is looked at.
const LOOK: Duration = Duration::from_micros(500);

/// What a restart of the daemon costs, cleanly and after SIGKILL, while traffic goes on
///
/// Example: spillway-bench restart --connections 10000 --rounds 5
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// TCP connections that are open meanwhile
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u32).range(1..=20_000))]
    connections: u32,
    /// UDP flows at half of the rate that the gateway takes
    #[arg(long, default_value_t = 1024, value_parser = value_parser!(u32).range(1..=1_048_576))]
    flows: u32,
    /// Tenants beside the one whose traffic it is
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u32).range(..=10_000))]
    tenants: u32,
    /// How often the daemon is ended in each way
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=50))]
    rounds: u32,
}

/// Restarts under load.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    connections: u32,
    flows: u32,
    tenants: u32,
    xdp_mode: &'static str,
    rows: Vec<Row>,
}

/// One way to end the daemon, over all rounds.
#[derive(Debug, Serialize)]
struct Row {
    end: End,
    /// The longest time in which nothing arrived.
    gap_ms: Summary,
    samples: Vec<Sample>,
}

/// One restart.
#[derive(Debug, Clone, Copy, Serialize)]
struct Sample {
    gap_ms: f64,
    /// Datagrams sent in a second.
    rate: u64,
    lost: u64,
    /// Datagrams that were sent in the gap.
    sent_in_gap: u64,
    /// Datagrams that arrived with another source than the egress address.
    untranslated: u64,
    broken: u64,
    silent: u64,
    restored: u64,
}

/// Ends the daemon in each way in turn.
pub(crate) fn measure(options: &Options, cores: Cores, setup: &Setup) -> Result<Results> {
    let setup = Setup { flows: Flows::new(options.flows).with_seed(setup.flows.seed()), ..setup.clone() };
    let mut xdp_mode = "none";
    let mut samples = End::ALL.map(|_| Vec::new());
    for round in 1..=options.rounds {
        for (end, samples) in End::ALL.into_iter().zip(&mut samples) {
            let topology = Topology::build(cores, setup.flows)?;
            let entries = (options.flows + options.connections + 1000).next_power_of_two().max(65_536);
            let saved_tenants = crowd::invite(options.tenants, &topology)?;
            let wishes = Wishes { capacity: Some(entries), saved_tenants };
            let mut daemon = Daemon::start_with(&topology, &setup, &wishes)?;
            topology.place_receivers(cores.gateway)?;
            xdp_mode = topology.xdp_mode()?;
            let sample = restart(&topology, &setup, &mut daemon, options, end)?;
            eprintln!("round {round}/{}  {end:<8} {}", options.rounds, sample.show());
            samples.push(sample);
        }
    }
    let rows = End::ALL.into_iter().zip(samples).map(|(end, samples)| {
        let gaps: Vec<f64> = samples.iter().map(|sample| sample.gap_ms).collect();
        Row { end, gap_ms: Summary::of(&gaps), samples }
    });
    let Options { connections, flows, tenants, .. } = *options;
    Ok(Results { connections, flows, tenants, xdp_mode, rows: rows.collect() })
}

fn restart(
    topology: &Topology,
    setup: &Setup,
    daemon: &mut Daemon,
    options: &Options,
    end: End,
) -> Result<Sample> {
    let connections = Connections::open(topology, usize::try_from(options.connections)?)?;
    let mut traffic = Traffic::start(topology, setup.flows, Kind::Datagrams, Receiving::Polled)?;
    let rate = find_rate(&mut traffic)? / 2;
    traffic.follow(Plan { rate: Rate::PerSecond(rate), ..traffic.plan() })?;
    wait::pause(SETTLE)?;
    let sent_before = (traffic.progress()?.sent, traffic.counts()?.translated);
    let answers = connections.answers();
    let gap = longest_gap(&traffic, || {
        daemon.restart(topology, setup, end)?;
        wait::pause(SETTLE)
    })?;
    if connections.answers() == answers {
        bail!("no connection was answered after the restart:\n{}", daemon.log());
    }
    let restored = daemon.status(setup)?["succession"]["restored"].as_u64().unwrap_or(0);
    traffic.rest()?;
    wait::pause(Duration::from_millis(200))?;
    let (sent, counts) = (traffic.progress()?.sent, traffic.counts()?);
    drop(traffic);
    let Outcome { broken, silent } = connections.finish()?;
    let gone = (sent - sent_before.0).saturating_sub(counts.translated - sent_before.1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of datagrams")]
    let sent_in_gap = (rate as f64 * gap.as_secs_f64()) as u64;
    Ok(Sample {
        gap_ms: gap.as_secs_f64() * 1e3,
        rate,
        lost: gone,
        sent_in_gap,
        untranslated: counts.untranslated + counts.other,
        broken,
        silent,
        restored,
    })
}

/// Returns how many datagrams arrive in a second when more are sent than the gateway takes.
fn find_rate(traffic: &mut Traffic) -> Result<u64> {
    traffic.follow(Plan { rate: Rate::Unbounded, ..Plan::default() })?;
    wait::pause(LOOKS_FOR_RATE)?;
    let (before, began) = (traffic.counts()?.translated, Instant::now());
    wait::pause(LOOKS_FOR_RATE)?;
    let arrived = traffic.counts()?.translated - before;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of datagrams")]
    Ok((arrived as f64 / began.elapsed().as_secs_f64()) as u64)
}

/// Returns the longest time in which nothing arrived while `work` was done.
fn longest_gap(traffic: &Traffic, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let (mut longest, mut last, mut changed) = (Duration::ZERO, 0, Instant::now());
            while !done.load(Ordering::Relaxed) {
                let arrived = traffic.counts()?.translated;
                let now = Instant::now();
                if arrived != last {
                    (last, changed) = (arrived, now);
                }
                longest = longest.max(now - changed);
                thread::sleep(LOOK);
            }
            Ok::<_, anyhow::Error>(longest)
        });
        let outcome = work();
        done.store(true, Ordering::Relaxed);
        let longest = watcher.join().unwrap_or_else(|_| bail!("the watcher of the far end panicked"));
        outcome.and(longest)
    })
}

impl Sample {
    fn show(&self) -> String {
        format!(
            "gap {:.0} ms, {} of {} datagrams in it lost at {}/s, {} connections broken, {} silent, {} sessions restored",
            self.gap_ms,
            group_digits(self.lost),
            group_digits(self.sent_in_gap),
            group_digits(self.rate),
            self.broken,
            self.silent,
            group_digits(self.restored),
        )
    }
}

impl fmt::Display for End {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Restart => "restart",
            Self::Kill => "SIGKILL",
        })
    }
}

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        self.xdp_mode
    }

    fn sheets(&self) -> Vec<Sheet> {
        let most = |row: &Row, figure: fn(&Sample) -> u64| {
            group_digits(row.samples.iter().map(figure).max().unwrap_or(0))
        };
        let rows = self.rows.iter().map(|row| {
            let lost: Vec<f64> = row
                .samples
                .iter()
                .map(|sample| sample.lost as f64 / sample.sent_in_gap.max(1) as f64)
                .collect();
            vec![
                row.end.to_string(),
                row.gap_ms.show(),
                Summary::of(&lost).show(),
                most(row, |sample| sample.broken),
                most(row, |sample| sample.silent),
                most(row, |sample| sample.untranslated),
                most(row, |sample| sample.restored),
            ]
        });
        let header = [
            "end",
            "gap, ms",
            "lost ÷ sent in the gap",
            "connections broken",
            "silent",
            "untranslated",
            "sessions restored",
        ];
        vec![Sheet {
            title: "Restart under load".to_owned(),
            header: header.map(str::to_owned).to_vec(),
            rows: rows.collect(),
            charts: Vec::new(),
            notes: vec![format!(
                "{} TCP connections and {} UDP flows at half of the rate that the gateway takes, of one tenant beside {} \
                 others. Gap: the longest time in which no datagram arrived, to half a millisecond.",
                group_digits(self.connections.into()),
                group_digits(self.flows.into()),
                group_digits(self.tenants.into())
            )],
        }]
    }
}

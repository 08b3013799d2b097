use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, value_parser};
use control::demo::wait;
use procfs::{CurrentSI, KernelStats};
use serde::Serialize;

use crate::flows::Flows;
use crate::report::{Axis, Chart, Findings, Series, Sheet};
use crate::sessions;
use crate::statistics::Summary;
use crate::system::{Setup, System};
use crate::topology::{Cores, Topology};
use crate::traffic::{Counts, Kind, Plan, Progress, Rate, Receiving, Traffic};

const POLL: Duration = Duration::from_millis(5);
/// What a start costs is not measured.
const RAMP: Duration = Duration::from_millis(100);
/// A handshake that is older than this is lost.
const PATIENCE: Duration = Duration::from_millis(250);
/// A gateway that is idle for more of the time than this, in percent, is not what holds the rate back.
const IDLE: f64 = 10.0;
/// Lets what is under way arrive before it is counted as lost.
const DRAIN: Duration = Duration::from_millis(300);

/// New sessions in a second, beside the kernel's
///
/// Every UDP datagram opens a session of its own, at overload; then TCP handshakes, as many as the gateway completes
/// while a fixed number of them is under way. Example: spillway-bench connections --rounds 5 --seconds 3
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Longest time of each measurement
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Most sessions in each measurement
    #[arg(long, default_value_t = Flows::MAXIMUM,
          value_parser = value_parser!(u32).range(1024..=i64::from(Flows::MAXIMUM)))]
    sessions: u32,
    /// Handshakes under way at the same time; a veth link holds 256 frames
    #[arg(long, default_value_t = 192, value_parser = value_parser!(u32).range(1..=4096))]
    window: u32,
    /// First datagrams that are offered in a second
    #[arg(long, default_value_t = 1_000_000, value_parser = value_parser!(u64).range(1000..=10_000_000))]
    offered: u64,
    /// How often each gateway has its turn
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Gateways to measure; the first is what the others are compared with
    #[arg(long = "system", num_args = 1.., value_name = "SYSTEM",
          default_values_t = [System::KernelIptables, System::Spillway, System::SpillwaySplit])]
    systems: Vec<System>,
    /// Measures 524,288 sessions at most, for 1 s in 2 rounds
    #[arg(long, conflicts_with_all = ["seconds", "sessions", "rounds"])]
    short: bool,
}

/// New sessions in a second of each kind.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) seconds: u64,
    pub(crate) rounds: u32,
    pub(crate) most_sessions: u32,
    pub(crate) window: u32,
    pub(crate) cores: Cores,
    pub(crate) xdp_mode: &'static str,
    pub(crate) rows: Vec<Row>,
    pub(crate) notes: Vec<String>,
}

/// One system and one kind of session, over all rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) kind: &'static str,
    pub(crate) system: System,
    /// Sessions a second over the first system's in the same round.
    pub(crate) ratio: Summary,
    pub(crate) thousands_a_second: Summary,
    pub(crate) offered_thousands: Summary,
    pub(crate) samples: Vec<Sample>,
}

/// One system, once.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    /// First datagrams, or SYNs, that were offered to the gateway in this time.
    pub(crate) offered: u64,
    /// Sessions whose first datagram, or whose handshake's last segment, arrived in this time.
    pub(crate) made: u64,
    /// Sessions that the gateway held in the end.
    pub(crate) held: u64,
    /// RSTs and ICMP errors over the whole run.
    pub(crate) refused: u64,
    /// Handshakes over the whole run that nothing was heard of any more.
    pub(crate) lost: u64,
    /// Segments that arrived damaged.
    pub(crate) damaged: u64,
    /// Datagrams and segments that left with a pod's address.
    pub(crate) untranslated: u64,
    /// Whether the sender ever waited for the gateway; at overload it never does.
    pub(crate) sender_waited: bool,
    /// Share of the time in which the gateway's core had nothing to do, in percent.
    pub(crate) gateway_idle: f64,
}

impl Options {
    pub(crate) fn needs_spillway(&self) -> bool {
        self.systems.iter().any(|system| system.is_spillway())
    }

    /// Returns seconds, sessions and rounds.
    fn extent(&self) -> (u64, u32, u32) {
        if self.short { (1, 524_288, 2) } else { (self.seconds, self.sessions, self.rounds) }
    }
}

/// Measures every system with both kinds of sessions, in turn within each round.
pub(crate) fn measure(options: &Options, cores: Cores, setup: &Setup) -> Result<Results> {
    let (seconds, most_sessions, rounds) = options.extent();
    let setup = Setup { flows: Flows::new(most_sessions), ..setup.clone() };
    let (mut rows, mut notes, mut xdp_mode) = (Vec::new(), Vec::new(), "none");
    for kind in [Kind::Datagrams, Kind::Handshakes] {
        let mut samples = vec![Vec::new(); options.systems.len()];
        for round in 1..=rounds {
            for (system, samples) in options.systems.iter().zip(&mut samples) {
                let trial = Trial { kind, seconds, offered: options.offered, window: options.window };
                let (sample, mode) = trial.run(*system, cores, &setup)?;
                eprintln!(
                    "round {round}/{rounds}  {:<14} {:<16} {:.1} thousand sessions a second",
                    name(kind),
                    system.name(),
                    sample.rate()
                );
                xdp_mode = if system.is_spillway() { mode } else { xdp_mode };
                notes.extend(doubts(kind, *system, &sample));
                samples.push(sample);
            }
        }
        let first = samples.first().cloned().unwrap_or_default();
        let systems = options.systems.iter().zip(samples);
        rows.extend(systems.map(|(system, samples)| Row::of(kind, *system, samples, &first)));
    }
    Ok(Results { seconds, rounds, most_sessions, window: options.window, cores, xdp_mode, rows, notes })
}

/// One measurement of one system.
struct Trial {
    kind: Kind,
    seconds: u64,
    offered: u64,
    window: u32,
}

/// How far everything is, at one moment.
#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    progress: Progress,
    counts: Counts,
}

impl Reading {
    fn take(traffic: &Traffic) -> Result<Self> {
        Ok(Self { at: Instant::now(), progress: traffic.progress()?, counts: traffic.counts()? })
    }

    fn made(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Datagrams => self.counts.translated,
            Kind::Handshakes => self.counts.completed,
        }
    }

    fn answered(&self) -> u64 {
        self.counts.completed + self.counts.refused
    }
}

impl Trial {
    fn run(&self, system: System, cores: Cores, setup: &Setup) -> Result<(Sample, &'static str)> {
        sessions::wait_until_freed()?;
        let topology = Topology::build(cores, setup.flows)?;
        let gateway = system.start(&topology, setup)?;
        let mut traffic = Traffic::start(&topology, setup.flows, self.kind, Receiving::Polled)?;
        let (rate, window) = match self.kind {
            Kind::Datagrams => (Rate::PerSecond(self.offered), 0),
            Kind::Handshakes => (Rate::Unbounded, u64::from(self.window)),
        };
        let last = u64::from(setup.flows.count());
        traffic.follow(Plan { rate, last, window, ..Plan::default() })?;
        let before = CoreTime::read(cores.gateway)?;
        let readings = self.watch(&mut traffic, last)?;
        let gateway_idle = before.idle_until(CoreTime::read(cores.gateway)?);
        traffic.follow(Plan { last: 0, ..traffic.plan() })?;
        wait::pause(DRAIN)?;
        let end = Reading::take(&traffic)?;
        let held = sessions::count(&gateway, &topology)?;
        let Some(sample) = sum_up(self.kind, &readings, &end, held, gateway_idle) else {
            bail!("{} made no sessions, or all {last} at once", system.name());
        };
        Ok((sample, topology.xdp_mode()?))
    }

    /// Looks on until everything was sent or the time is over.
    fn watch(&self, traffic: &mut Traffic, last: u64) -> Result<Vec<Reading>> {
        let mut readings = vec![Reading::take(traffic)?];
        let deadline = readings[0].at + RAMP + Duration::from_secs(self.seconds);
        loop {
            wait::pause(POLL)?;
            let reading = Reading::take(traffic)?;
            if reading.progress.sent >= last || reading.at >= deadline {
                return Ok(readings);
            }
            readings.push(reading);
            let lost = given_up(&readings);
            if self.kind == Kind::Handshakes && lost > traffic.plan().forgiven {
                traffic.follow(Plan { forgiven: lost, ..traffic.plan() })?;
            }
        }
    }
}

/// Returns how many handshakes were begun so long ago that they are not waited for any more.
fn given_up(readings: &[Reading]) -> u64 {
    let Some(now) = readings.last() else { return 0 };
    let old = readings.iter().rev().find(|reading| now.at.duration_since(reading.at) >= PATIENCE);
    old.map_or(0, |old| old.progress.sent.saturating_sub(now.answered()))
}

/// Compares the readings after the ramp; nothing when there are too few, or when no session was made.
fn sum_up(kind: Kind, readings: &[Reading], end: &Reading, held: u64, gateway_idle: f64) -> Option<Sample> {
    let began = readings.first()?.at;
    let first = readings.iter().find(|reading| reading.at.duration_since(began) >= RAMP)?;
    let last = readings.last()?;
    let (made, offered) = (last.made(kind) - first.made(kind), last.progress.sent - first.progress.sent);
    if made == 0 {
        return None;
    }
    let lost = match kind {
        Kind::Datagrams => 0,
        Kind::Handshakes => end.progress.sent.saturating_sub(end.answered()),
    };
    Some(Sample {
        seconds: last.at.duration_since(first.at).as_secs_f64(),
        offered,
        made,
        held,
        refused: end.counts.refused,
        lost,
        damaged: end.counts.damaged,
        untranslated: end.counts.untranslated,
        sender_waited: last.progress.waits > first.progress.waits,
        gateway_idle,
    })
}

/// What a core has done since the machine started, in ticks.
#[derive(Debug, Clone, Copy)]
struct CoreTime {
    idle: u64,
    all: u64,
}

impl CoreTime {
    fn read(core: usize) -> Result<Self> {
        let times = KernelStats::current()?.cpu_time;
        let time = times.get(core).with_context(|| format!("the kernel does not tell of core {core}"))?;
        let interrupts = [time.irq, time.softirq, time.steal, time.iowait].into_iter().flatten().sum::<u64>();
        Ok(Self { idle: time.idle, all: time.user + time.nice + time.system + time.idle + interrupts })
    }

    /// Returns how much of the time until then the core was idle, in percent.
    #[expect(clippy::cast_precision_loss, reason = "2^52 ticks are longer than any machine runs")]
    fn idle_until(self, then: Self) -> f64 {
        100.0 * (then.idle - self.idle) as f64 / (then.all - self.all).max(1) as f64
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Datagrams => "UDP",
        Kind::Handshakes => "TCP handshake",
    }
}

impl Sample {
    /// Thousand sessions a second.
    fn rate(&self) -> f64 {
        thousands(self.made, self.seconds)
    }
}

#[expect(clippy::cast_precision_loss, reason = "2^52 sessions take longer than any measurement")]
fn thousands(sessions: u64, seconds: f64) -> f64 {
    sessions as f64 / seconds / 1e3
}

/// Says what makes a sample less than it seems.
fn doubts(kind: Kind, system: System, sample: &Sample) -> Vec<String> {
    let place = format!("{}, {}", system.name(), name(kind));
    let mut doubts = Vec::new();
    if kind == Kind::Handshakes && !sample.sender_waited {
        doubts.push(format!("{place}: the sender never waited, so it was the bottleneck"));
    }
    if kind == Kind::Handshakes && sample.gateway_idle > IDLE {
        doubts.push(format!(
            "{place}: the gateway's core was idle for {:.0} % of the time; the ends were the bottleneck, or too few \
             handshakes were under way (--window)",
            sample.gateway_idle
        ));
    }
    if kind == Kind::Datagrams && thousands(sample.offered, sample.seconds) * 0.95 < sample.rate() {
        doubts.push(format!("{place}: nearly all that was offered was forwarded; offer more (--offered)"));
    }
    if sample.damaged > 0 {
        doubts.push(format!("{place}: {} segments arrived damaged", sample.damaged));
    }
    if sample.untranslated > 0 {
        doubts.push(format!("{place}: LEAK, {} frames left with a pod's address", sample.untranslated));
    }
    doubts
}

impl Row {
    fn of(kind: Kind, system: System, samples: Vec<Sample>, first: &[Sample]) -> Self {
        let rates: Vec<f64> = samples.iter().map(Sample::rate).collect();
        let ratios: Vec<f64> = rates.iter().zip(first).map(|(rate, first)| rate / first.rate()).collect();
        let offered: Vec<f64> =
            samples.iter().map(|sample| thousands(sample.offered, sample.seconds)).collect();
        Self {
            kind: name(kind),
            system,
            ratio: Summary::of(&ratios),
            thousands_a_second: Summary::of(&rates),
            offered_thousands: Summary::of(&offered),
            samples,
        }
    }

    fn cells(&self) -> Vec<String> {
        let idle: Vec<f64> = self.samples.iter().map(|sample| sample.gateway_idle).collect();
        let most = |value: fn(&Sample) -> u64| self.samples.iter().map(value).max().unwrap_or(0).to_string();
        vec![
            format!("{}, {}", self.kind, self.system.name()),
            self.ratio.show(),
            self.thousands_a_second.show(),
            format!("{:.1}", self.offered_thousands.median),
            most(|sample| sample.held),
            most(|sample| sample.refused),
            most(|sample| sample.lost),
            format!("{:.0}", Summary::of(&idle).median),
        ]
    }
}

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        self.xdp_mode
    }

    fn sheets(&self) -> Vec<Sheet> {
        let first = self.rows.first().map_or("", |row| row.system.name());
        let header = [
            "sessions".to_owned(),
            format!("÷ {first}"),
            "thousand a second".to_owned(),
            "offered, thousand a second".to_owned(),
            "held in the end, most".to_owned(),
            "refused, most".to_owned(),
            "lost handshakes, most".to_owned(),
            "gateway's core idle, %".to_owned(),
        ];
        let axis = |label: &str| Axis { label: label.to_owned(), is_logarithmic: false };
        let bars = self
            .rows
            .iter()
            .map(|row| (format!("{}, {}", row.kind, row.system.name()), vec![row.thousands_a_second.median]));
        let chart = Chart {
            title: "New sessions".to_owned(),
            x: axis("gateway"),
            y: axis("thousand a second"),
            series: Series::Bars { parts: vec!["sessions".to_owned()], bars: bars.collect() },
        };
        let mut notes = vec![
            format!(
                "Median (minimum to maximum) of {} rounds of at most {} s and {} sessions, systems in turn.",
                self.rounds, self.seconds, self.most_sessions
            ),
            "UDP: every datagram opens a session of its own and is offered once, more than are forwarded."
                .to_owned(),
            format!(
                "TCP: SYN, SYN-ACK and ACK, {} handshakes under way at a time; XDP programs at both ends answer.",
                self.window
            ),
            "Source ports suffice and are free at the egress address, so that no system searches for one."
                .to_owned(),
            format!(
                "Core {}: sender. Core {}: gateway. Core {}: server.",
                self.cores.generator, self.cores.gateway, self.cores.sink
            ),
        ];
        notes.extend(self.notes.iter().map(|note| format!("note: {note}")));
        vec![Sheet {
            title: "New sessions in a second".to_owned(),
            header: header.to_vec(),
            rows: self.rows.iter().map(Row::cells).collect(),
            charts: vec![chart],
            notes,
        }]
    }
}

#[cfg(test)]
mod tests;

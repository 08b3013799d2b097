//! A random storm over a gateway, repeatable by its seed: frames of every kind, and everything that may happen to the gateway
//! or around it, while a detector outside counts what leaks.
//!
//! - [`schedule`]: what happens when, a pure function of the seed
//! - `frames`: the frames of each kind
//! - `tenants`: which tenants there may be, and which there are
//! - `acts`: what is done to the gateway, and how it is undone
//! - `detector`: counts at the other end of the outside cable
//! - `world`: the lab, the daemon and the wires

pub(crate) mod acts;
mod detector;
pub(crate) mod frames;
pub mod schedule;
pub(crate) mod tenants;
pub(crate) mod world;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use control::demo::wait;

use self::acts::{Outcome, Pending};
use self::detector::Detector;
use self::schedule::{Event, Kind, Schedule, Traffic};
use self::world::World;
use crate::fixture::skipped;

/// Frames that are sent before there is a pause.
const BATCH: u64 = 16;
const PAUSE: Duration = Duration::from_millis(2);
/// Events between two checkpoints, where everything is undone and the gateway has to serve.
const CHECKPOINT: u64 = 25_000;
const PROGRESS: Duration = Duration::from_secs(5);
/// Events that are shown when something is wrong.
const SHOWN: usize = 40;

/// How long a storm lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many events.
    Events(u64),
    /// So much time.
    Time(Duration),
}

/// How a storm is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides every event.
    pub seed: u64,
    /// How long it lasts.
    pub length: Length,
    /// The program `spillway`; none: that which was built beside the tests.
    pub program: Option<PathBuf>,
    /// Whether progress is printed.
    pub is_told: bool,
}

/// What became of the events of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    events: u64,
    frames: u64,
    refused: u64,
    skipped: u64,
}

/// What a storm came to; nothing leaked.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    seed: u64,
    /// Events.
    pub events: u64,
    /// Frames that left under an egress address.
    pub translated: u64,
    outside: u64,
    astray: u64,
    checkpoints: u64,
    seconds: f64,
    kinds: BTreeMap<Kind, Tally>,
}

/// Runs a storm; none when the privilege is missing.
///
/// # Errors
/// When something leaks, the daemon breaks off or hangs, or the gateway does not serve at a checkpoint: with the seed, the
/// last events, and the frames that leaked.
pub fn run(options: &Options) -> Result<Option<Summary>> {
    if skipped()? {
        return Ok(None);
    }
    if options.is_told {
        writeln!(std::io::stderr(), "storm of seed {}", options.seed)?;
    }
    let mut storm = Storm::start(options)?;
    match storm.blow(options) {
        Ok(()) => {
            storm.detector.stop()?;
            Ok(Some(storm.summary))
        }
        Err(error) => Err(error.context(storm.last_words(options.seed))),
    }
}

struct Storm {
    // Before the lab, in which it runs.
    detector: Detector,
    world: World,
    pending: Pending,
    summary: Summary,
    last: VecDeque<(u64, Event, Option<Outcome>)>,
}

impl Storm {
    fn start(options: &Options) -> Result<Self> {
        let world = World::build(options.program.clone())?;
        let detector = Detector::start(&world.lab)?;
        let summary = Summary { seed: options.seed, ..Summary::default() };
        let storm = Self {
            detector,
            world,
            pending: Pending::default(),
            summary,
            last: VecDeque::with_capacity(SHOWN),
        };
        storm.prove_detector()?;
        Ok(storm)
    }

    /// Makes one leak of each kind on purpose, which the detector has to see.
    fn prove_detector(&self) -> Result<()> {
        let (_, mut stale) = self.world.frames.of(Traffic::NewFlow, 1);
        let frame = stale.pop().context("a frame")?;
        ensure!(self.detector.read()?.leaks().is_empty(), "something leaked before the storm");
        self.world.leak_on_purpose(&frame)?;
        wait::until("the leak made on purpose is seen", Duration::from_secs(5), || {
            let counted = self.detector.read()?;
            let seen: u64 = counted.leaks().iter().map(|(_, count)| count).sum();
            Ok((seen == 1).then_some(()))
        })?;
        self.detector.reset()
    }

    fn blow(&mut self, options: &Options) -> Result<()> {
        let (started, mut told) = (Instant::now(), Instant::now());
        for (number, event) in (0..).zip(Schedule::of(options.seed)) {
            let is_over = match options.length {
                Length::Events(events) => number >= events,
                Length::Time(time) => started.elapsed() >= time,
            };
            if is_over {
                break;
            }
            self.take(number, event)?;
            if number % CHECKPOINT == CHECKPOINT - 1 {
                self.check()?;
            }
            if options.is_told && told.elapsed() >= PROGRESS {
                told = Instant::now();
                self.tell(started)?;
            }
        }
        self.check()?;
        self.summary.seconds = started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Lets one event happen.
    fn take(&mut self, number: u64, event: Event) -> Result<()> {
        self.pending.settle(&mut self.world, number)?;
        let before = self.world.sent;
        let mut outcome = None;
        if self.last.len() == SHOWN {
            self.last.pop_front();
        }
        self.last.push_back((number, event, None));
        match event.kind {
            Kind::Traffic(traffic) => {
                let (from, frames) = self.world.frames.of(traffic, event.dice);
                for frame in &frames {
                    self.world.send(from, frame);
                }
                if number.is_multiple_of(BATCH) {
                    std::thread::sleep(PAUSE);
                }
            }
            Kind::Act(act) => {
                outcome = Some(self.pending.act(&mut self.world, act, event.dice, number)?);
                self.require_no_leak()?;
                wait::pause(Duration::ZERO)?;
            }
        }
        if let Some(last) = self.last.back_mut() {
            last.2 = outcome;
        }
        self.summary.events += 1;
        let tally = self.summary.kinds.entry(event.kind).or_default();
        tally.events += 1;
        tally.frames += self.world.sent - before;
        tally.refused += u64::from(outcome == Some(Outcome::Refused));
        tally.skipped += u64::from(outcome == Some(Outcome::Skipped));
        Ok(())
    }

    /// Undoes everything; then the gateway has to serve.
    fn check(&mut self) -> Result<()> {
        self.pending.settle_all(&mut self.world)?;
        self.world.require_service()?;
        self.require_no_leak()?;
        let counted = self.detector.read()?;
        ensure!(counted.translated() > self.summary.translated, "nothing left the gateway: {counted:?}");
        (self.summary.translated, self.summary.outside) = (counted.translated(), counted.all());
        self.summary.astray = counted.astray();
        self.summary.checkpoints += 1;
        Ok(())
    }

    fn require_no_leak(&self) -> Result<()> {
        let counted = self.detector.read()?;
        if counted.leaks().is_empty() {
            return Ok(());
        }
        bail!("leaked: {:?}\n{}", counted.leaks(), self.detector.show().unwrap_or_default())
    }

    fn tell(&self, started: Instant) -> Result<()> {
        let acts = self.summary.kinds.iter().filter(|(kind, _)| matches!(kind, Kind::Act(_)));
        let acts: u64 = acts.map(|(_, tally)| tally.events).sum();
        let counted = self.detector.read()?;
        writeln!(
            std::io::stderr(),
            "{:>6.0} s  {:>9} events, {acts} of them acts; {} frames sent, {} left translated, leaks: {}",
            started.elapsed().as_secs_f64(),
            self.summary.events,
            self.world.sent,
            counted.translated(),
            counted.leaks().len(),
        )?;
        Ok(())
    }

    /// Tells what there is to know when something is wrong.
    fn last_words(&self, seed: u64) -> String {
        let mut text = format!("seed {seed}, after {} events; the last ones:\n", self.summary.events);
        for (number, event, outcome) in &self.last {
            let _ = writeln!(text, "  {number}: {:?} {:#x} {outcome:?}", event.kind, event.dice);
        }
        text + &self.world.describe()
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:<22}{:>10}{:>12}{:>10}{:>10}", "EVENT", "COUNT", "FRAMES", "REFUSED", "SKIPPED")?;
        for (kind, tally) in &self.kinds {
            let name = match kind {
                Kind::Traffic(traffic) => format!("{traffic:?}"),
                Kind::Act(act) => format!("{act:?}"),
            };
            let Tally { events, frames, refused, skipped } = tally;
            writeln!(f, "{name:<22}{events:>10}{frames:>12}{refused:>10}{skipped:>10}")?;
        }
        let Self { seed, events, translated, outside, astray, checkpoints, seconds, .. } = self;
        writeln!(f, "seed {seed}: {events} events in {seconds:.0} s, {checkpoints} checkpoints passed")?;
        writeln!(
            f,
            "{astray} answers and questions of the gateway's own went outside for lack of a return route"
        )?;
        write!(f, "{outside} frames left the gateway outside, {translated} of them translated; leaks: 0")
    }
}

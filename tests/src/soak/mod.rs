//! A long run at a gentle rate, in which tenants and sessions come and go: what the daemon uses has to stay what it is.
//!
//! - `sample`: what is used at one moment
//!
//! A quantity is flat when the median of the run's last quarter exceeds that of the second by no more than is allowed for it:
//! the first quarter is for what grows once. What the daemon has when all tenants and sessions are gone is what it had before.

mod sample;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use control::demo::wait;
use rand::SeedableRng;
use rand::rngs::StdRng;

use self::sample::{QUANTITIES, Sample};
use crate::fixture::skipped;
use crate::storm::acts::Pending;
use crate::storm::schedule::{Act, Kind, Schedule, Traffic};
use crate::storm::tenants::Slot;
use crate::storm::world::World;

/// What happens in a soak beside traffic.
const CHURN: [(Act, usize); 4] =
    [(Act::AddTenant, 5), (Act::ChangeTenant, 2), (Act::ChangeEgress, 3), (Act::RemoveTenant, 3)];
/// Traffic whose sessions last seconds, as the lab's config file says.
const BRIEF: [Traffic; 5] =
    [Traffic::Datagram, Traffic::NewFlow, Traffic::StaleArp, Traffic::Foreign, Traffic::Arp];
/// Events before a pause.
const BATCH: usize = 16;
const PAUSE: Duration = Duration::from_millis(10);
const PROGRESS: Duration = Duration::from_secs(60);
/// Rows of the table at most, whatever the number of samples.
const ROWS: usize = 24;
/// By how much the log may grow faster in the last quarter than in the second, in hundredths.
const LOG_GROWTH: u64 = 150;

/// How a soak is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides what happens.
    pub seed: u64,
    /// How long it lasts.
    pub time: Duration,
    /// Time between two looks.
    pub interval: Duration,
    /// Whether there is only traffic whose sessions end within seconds.
    pub is_brief: bool,
    /// The program `spillway`; none: that which was built beside the tests.
    pub program: Option<PathBuf>,
    /// Whether progress is printed.
    pub is_told: bool,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Summary {
    samples: Vec<Sample>,
    before: Sample,
    after: Sample,
    events: u64,
    sent: u64,
}

/// Runs a soak; none when the privilege is missing.
///
/// # Errors
/// When the gateway does not serve in the end, or the daemon breaks off.
pub fn run(options: &Options) -> Result<Option<Summary>> {
    if skipped()? {
        return Ok(None);
    }
    let mut world = World::build(options.program.clone())?;
    // What is made once, with the first tenants and sessions, is no growth.
    for slot in Slot::all() {
        put(&mut world, slot)?;
    }
    world.require_service()?;
    clear(&mut world)?;
    let before = take_at_rest(&world, Duration::ZERO)?;
    let (samples, events) = churn(&mut world, options)?;
    world.require_service()?;
    clear(&mut world)?;
    let after = take_at_rest(&world, options.time)?;
    Ok(Some(Summary { samples, before, after, events, sent: world.sent }))
}

fn put(world: &mut World, slot: Slot) -> Result<()> {
    let body = world.tenants.draw(slot, true, &mut StdRng::seed_from_u64(1));
    world.put(slot, &body)?;
    world.tenants.note_put(slot, body);
    Ok(())
}

/// Lets tenants and sessions come and go, and looks now and then.
fn churn(world: &mut World, options: &Options) -> Result<(Vec<Sample>, u64)> {
    let (started, mut told) = (Instant::now(), Instant::now());
    let (mut samples, mut pending, mut events): (Vec<Sample>, _, u64) = (Vec::new(), Pending::default(), 0);
    let mut schedule = Schedule::with(options.seed, &CHURN).filter(|event| match event.kind {
        Kind::Act(_) => true,
        Kind::Traffic(traffic) => !options.is_brief || BRIEF.contains(&traffic),
    });
    while started.elapsed() < options.time {
        for event in schedule.by_ref().take(BATCH) {
            match event.kind {
                Kind::Traffic(traffic) => {
                    let (from, frames) = world.frames.of(traffic, event.dice);
                    frames.iter().for_each(|frame| world.send(from, frame));
                }
                Kind::Act(act) => drop(pending.act(world, act, event.dice, events)?),
            }
            events += 1;
        }
        wait::pause(PAUSE)?;
        let is_due = samples.last().is_none_or(|last| started.elapsed() >= last.at + options.interval);
        if is_due {
            samples.push(Sample::take(world, started.elapsed())?);
            world.require_health()?;
        }
        if options.is_told && told.elapsed() >= PROGRESS {
            told = Instant::now();
            if let Some(last) = samples.last() {
                writeln!(std::io::stderr(), "{}", row(last))?;
            }
        }
    }
    Ok((samples, events))
}

/// Waits for all sessions to end in their time, then removes all tenants.
fn clear(world: &mut World) -> Result<()> {
    // TCP connections that are not closed take longest (RFC 5382).
    let longest = Duration::from_secs(5 * 60);
    wait::until("all sessions end", longest, || Ok((world.status()?["sessions"] == 0).then_some(())))
        .with_context(|| world.describe())?;
    let living: Vec<Slot> = world.tenants.living().map(|(slot, _)| slot).collect();
    for slot in living {
        world.remove(slot)?;
        world.tenants.note_removed(slot);
    }
    wait::until("every frame is somewhere", Duration::from_secs(30), || {
        Ok((sample::frames_unseen(&world.status()?)? == 0).then_some(()))
    })
}

/// Looks several times, and returns that with the fewest descriptors: the connection that asked is closed a moment later.
fn take_at_rest(world: &World, at: Duration) -> Result<Sample> {
    let mut samples = Vec::new();
    for _ in 0..5 {
        wait::pause(Duration::from_millis(100))?;
        samples.push(Sample::take(world, at)?);
    }
    samples.into_iter().min_by_key(|sample| sample.descriptors).context("there are samples")
}

impl Summary {
    /// Fails unless the daemon has, now that tenants and sessions are gone, exactly what it had before.
    ///
    /// # Errors
    /// Then, naming what is different.
    pub fn require_nothing_left(&self) -> Result<()> {
        let different =
            QUANTITIES.iter().filter(|it| it.returns && (it.of)(&self.before) != (it.of)(&self.after));
        let named: Vec<_> = different
            .map(|it| {
                format!("{}: {} before, {} after", it.name, (it.of)(&self.before), (it.of)(&self.after))
            })
            .collect();
        ensure!(named.is_empty(), "{}", named.join("; "));
        ensure!(self.after.frames_unseen == 0 && self.sent > 0, "{:?}", self.after);
        Ok(())
    }

    /// Fails unless every quantity is flat.
    ///
    /// # Errors
    /// Then, naming what grew; also when there are too few samples to tell.
    pub fn require_flat(&self) -> Result<()> {
        ensure!(self.samples.len() >= 16, "{} samples are too few", self.samples.len());
        let grown = QUANTITIES.iter().filter_map(|quantity| {
            let (hundredths, besides) = quantity.may_grow?;
            let (early, late) = (self.median(1, quantity.of), self.median(3, quantity.of));
            let most = early + early * hundredths / 100 + besides;
            (late > most).then(|| format!("{}: {early}, later {late}, at most {most}", quantity.name))
        });
        let mut grown: Vec<String> = grown.collect();
        let (early, late) = (self.log_growth(1), self.log_growth(3));
        if late > early * LOG_GROWTH / 100 + 16 {
            grown.push(format!("the log: {early} KiB in the second quarter, {late} in the last"));
        }
        ensure!(grown.is_empty(), "not flat: {}", grown.join("; "));
        Ok(())
    }

    /// Returns a quarter of the samples, counted from 0.
    fn quarter(&self, number: usize) -> &[Sample] {
        let length = self.samples.len() / 4;
        &self.samples[number * length..][..length]
    }

    fn median(&self, quarter: usize, of: fn(&Sample) -> u64) -> u64 {
        let mut values: Vec<u64> = self.quarter(quarter).iter().map(of).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or_default()
    }

    fn log_growth(&self, quarter: usize) -> u64 {
        let samples = self.quarter(quarter);
        let size = |sample: Option<&Sample>| sample.map_or(0, |sample| sample.log_kib);
        size(samples.last()).saturating_sub(size(samples.first()))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: String = QUANTITIES.iter().map(|quantity| format!("{:>11}", quantity.name)).collect();
        writeln!(f, "{:>10}{names}", "")?;
        for sample in self.samples.iter().step_by(self.samples.len().div_ceil(ROWS).max(1)) {
            writeln!(f, "{}", row(sample))?;
        }
        for (name, quarter) in [("2nd", 1), ("last", 3)] {
            let medians = QUANTITIES.iter().map(|it| format!("{:>11}", self.median(quarter, it.of)));
            writeln!(f, "{name:>9} {}", medians.collect::<String>())?;
        }
        for (name, sample) in [("before", &self.before), ("after", &self.after)] {
            let values = QUANTITIES.iter().map(|quantity| format!("{:>11}", (quantity.of)(sample)));
            writeln!(f, "{name:>9} {}", values.collect::<String>())?;
        }
        write!(f, "{} events, {} frames sent", self.events, self.sent)
    }
}

fn row(sample: &Sample) -> String {
    let values = QUANTITIES.iter().map(|quantity| format!("{:>11}", (quantity.of)(sample)));
    format!("{:>8.0} s{}", sample.at.as_secs_f64(), values.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(rss: impl Fn(u64) -> u64) -> Summary {
        let sample = |number| Sample { rss_kib: rss(number), ..Sample::default() };
        let (before, after) = (Sample::default(), Sample::default());
        Summary { samples: (0..64).map(sample).collect(), before, after, events: 1, sent: 1 }
    }

    #[test]
    fn what_grows_once_is_flat_and_what_grows_on_is_not() {
        assert!(summary(|number| if number < 8 { 1000 } else { 90_000 }).require_flat().is_ok());
        assert!(summary(|number| 90_000 + number * 200).require_flat().is_err());
        assert!(summary(|number| 90_000 + number % 7 * 1000).require_flat().is_ok(), "up and down");
    }

    #[test]
    fn what_is_left_over_is_named() {
        let mut summary = summary(|_| 1);
        assert!(summary.require_nothing_left().is_ok());
        summary.after.descriptors += 1;
        let error = summary.require_nothing_left().expect_err("a descriptor is left").to_string();
        assert!(error.contains("FDS: 0 before, 1 after"), "{error}");
    }
}

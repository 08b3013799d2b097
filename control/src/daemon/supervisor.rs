//! Watches over the workers and the control loop from a thread of its own, feeds the service manager's watchdog
//! only while all of them turn, and tells it whether the gateway is ready.
//!
//! systemd ends a daemon that does not feed it (WatchdogSec=) and starts another; the XDP programs stay meanwhile and
//! drop tenant traffic.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fastpath::pulse::Pulse;
use sd_notify::NotifyState;
use tracing::{error, info};

use crate::vitals::{Fitness, Vitals};

/// Bounds of the time between two looks. A worker that sleeps turns every 100 ms.
const LEAST_INTERVAL: Duration = Duration::from_millis(200);
const GREATEST_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time that the control loop may take for one thing: thousands of tenants at once take it many seconds.
const LOOP_PATIENCE: Duration = Duration::from_secs(30);
/// A worker that sticks again and again is logged once in this time.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

/// The watching thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Supervisor {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Starts to watch. `watchdog` is the time in which the service manager wants to be fed, if it does.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(pulses: Vec<Pulse>, vitals: Arc<Vitals>, watchdog: Option<Duration>) -> io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let interval = interval(watchdog);
        let mut round = Round::begin(pulses, vitals, watchdog.is_some());
        let thread = thread::Builder::new().name("supervisor".to_owned()).spawn(move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                round.make(Instant::now());
            }
            round.tell();
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // What it panicked with was printed when it did.
            let _ = thread.join();
        }
    }
}

fn interval(watchdog: Option<Duration>) -> Duration {
    let wanted = watchdog.map_or(GREATEST_INTERVAL, |limit| limit / 2);
    wanted.clamp(LEAST_INTERVAL, GREATEST_INTERVAL)
}

/// What is done at each look.
struct Round {
    pulses: Vec<Pulse>,
    vitals: Arc<Vitals>,
    watch: Watch,
    feeds: bool,
    /// What the service manager was told last.
    told: String,
}

impl Round {
    fn begin(pulses: Vec<Pulse>, vitals: Arc<Vitals>, feeds: bool) -> Self {
        let turns = pulses.iter().map(Pulse::turns);
        let watch = Watch::begin(Instant::now(), turns, vitals.beats());
        let mut round = Self { pulses, vitals, watch, feeds, told: String::new() };
        round.tell();
        round
    }

    /// Has `systemctl status` say whether the gateway is ready.
    fn tell(&mut self) {
        let status = status(&self.vitals.readiness());
        if status != self.told {
            super::notify(NotifyState::Status(&status));
            self.told = status;
        }
    }

    fn make(&mut self, now: Instant) {
        let look = self.watch.look(now, self.pulses.iter().map(Pulse::turns), self.vitals.beats());
        for event in &look.events {
            self.log(event);
        }
        let stuck = look.stuck.iter().map(|(worker, time)| {
            format!("worker {worker} is stuck: it has finished no turn for {:.1} s", time.as_secs_f64())
        });
        let control =
            look.stalled.map(|time| format!("the control loop has been busy for {} s", time.as_secs()));
        self.vitals.set_ailments(stuck.chain(control).collect());
        if self.feeds && look.is_to_be_fed {
            super::notify(NotifyState::Watchdog);
        }
        self.tell();
    }

    fn log(&self, event: &Event) {
        match event {
            Event::Stuck { worker, time } => {
                let pulse = &self.pulses[*worker];
                error!(
                    worker,
                    core = pulse.core(),
                    thread = pulse.thread(),
                    doing = describe(pulse),
                    "worker {worker} is stuck: it has finished no turn for {:.1} s; its traffic is dropped",
                    time.as_secs_f64()
                );
            }
            Event::Moves { worker, time } => {
                info!(worker, "worker {worker} turns again, after {:.1} s", time.as_secs_f64());
            }
            Event::LoopStalled { time } => {
                error!("the control loop has been busy with one thing for {} s", time.as_secs());
            }
            Event::LoopTurns => info!("the control loop turns again"),
        }
    }
}

/// Returns one line.
fn status(readiness: &Fitness) -> String {
    match readiness.reasons.as_slice() {
        [] => "ready".to_owned(),
        reasons => format!("not ready: {}", reasons.join("; ")).replace('\n', " "),
    }
}

/// Tells what a worker's thread does, as far as it and the kernel say.
fn describe(pulse: &Pulse) -> String {
    let own = if pulse.is_asleep() { "asleep" } else { "in a turn" };
    let task = format!("/proc/self/task/{}", pulse.thread());
    let read = |name: &str| std::fs::read_to_string(format!("{task}/{name}")).unwrap_or_default();
    let status = read("status");
    let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("unknown").trim();
    match read("wchan").trim() {
        "" | "0" => format!("{own}; thread state {state}"),
        function => format!("{own}; thread state {state}, in the kernel's {function}"),
    }
}

/// What somebody watched was seen to have done.
#[derive(Debug)]
struct Seen {
    count: u64,
    since: Instant,
    /// Whether it is told to be stuck.
    is_told: bool,
    last_told: Option<Instant>,
}

impl Seen {
    fn begin(count: u64, now: Instant) -> Self {
        Self { count, since: now, is_told: false, last_told: None }
    }

    /// Takes over a count; returns the time that has passed without a change until now.
    fn take(&mut self, count: u64, now: Instant) -> Result<Duration, Duration> {
        let idle = now.saturating_duration_since(self.since);
        if count == self.count {
            return Err(idle);
        }
        (self.count, self.since) = (count, now);
        Ok(idle)
    }

    fn may_be_told(&self, now: Instant) -> bool {
        !self.is_told && self.last_told.is_none_or(|last| now.saturating_duration_since(last) >= LOGGED_EVERY)
    }

    fn tell(&mut self, now: Instant) {
        (self.is_told, self.last_told) = (true, Some(now));
    }
}

/// Something to log.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Stuck { worker: usize, time: Duration },
    Moves { worker: usize, time: Duration },
    LoopStalled { time: Duration },
    LoopTurns,
}

/// What came of a look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Look {
    /// Workers that have not turned since the last look, and for how long they have not.
    stuck: Vec<(usize, Duration)>,
    /// How long the control loop has not turned, if that is too long.
    stalled: Option<Duration>,
    events: Vec<Event>,
    /// Whether every worker has turned since the last look, and the control loop since the watchdog was fed last.
    is_to_be_fed: bool,
}

/// What is remembered from look to look.
#[derive(Debug)]
struct Watch {
    workers: Vec<Seen>,
    control: Seen,
    fed_at_beat: u64,
}

impl Watch {
    fn begin(now: Instant, turns: impl Iterator<Item = u64>, beats: u64) -> Self {
        let workers = turns.map(|turns| Seen::begin(turns, now)).collect();
        Self { workers, control: Seen::begin(beats, now), fed_at_beat: beats }
    }

    fn look(&mut self, now: Instant, turns: impl Iterator<Item = u64>, beats: u64) -> Look {
        let mut look = Look::default();
        for (worker, (seen, turns)) in self.workers.iter_mut().zip(turns).enumerate() {
            match seen.take(turns, now) {
                Ok(time) if seen.is_told => {
                    seen.is_told = false;
                    look.events.push(Event::Moves { worker, time });
                }
                Ok(_) => {}
                Err(time) => {
                    look.stuck.push((worker, time));
                    if seen.may_be_told(now) {
                        seen.tell(now);
                        look.events.push(Event::Stuck { worker, time });
                    }
                }
            }
        }
        self.look_at_control(now, beats, &mut look);
        look.is_to_be_fed = look.stuck.is_empty() && beats != self.fed_at_beat;
        if look.is_to_be_fed {
            self.fed_at_beat = beats;
        }
        look
    }

    fn look_at_control(&mut self, now: Instant, beats: u64, look: &mut Look) {
        match self.control.take(beats, now) {
            Ok(_) if self.control.is_told => {
                self.control.is_told = false;
                look.events.push(Event::LoopTurns);
            }
            Err(time) if time >= LOOP_PATIENCE => {
                look.stalled = Some(time);
                if self.control.may_be_told(now) {
                    self.control.tell(now);
                    look.events.push(Event::LoopStalled { time });
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Two workers and a control loop, looked at once a second.
    struct Fake {
        watch: Watch,
        now: Instant,
        turns: [u64; 2],
        beats: u64,
    }

    impl Fake {
        fn new() -> Self {
            let now = Instant::now();
            Self { watch: Watch::begin(now, [0, 0].into_iter(), 0), now, turns: [0, 0], beats: 0 }
        }

        /// Lets a second pass in which these have turned.
        fn pass(&mut self, workers: [bool; 2], control: bool) -> Look {
            self.now += SECOND;
            for (turns, has_turned) in self.turns.iter_mut().zip(workers) {
                *turns += u64::from(has_turned);
            }
            self.beats += u64::from(control);
            self.watch.look(self.now, self.turns.into_iter(), self.beats)
        }
    }

    #[test]
    fn the_watchdog_is_fed_while_all_turn() {
        let mut fake = Fake::new();
        for _ in 0..3 {
            assert_eq!(fake.pass([true; 2], true), Look { is_to_be_fed: true, ..Look::default() });
        }
    }

    #[test]
    fn a_stuck_worker_is_named_once_and_again_when_it_moves_and_is_not_fed_for() {
        let mut fake = Fake::new();
        fake.pass([true; 2], true);
        let look = fake.pass([true, false], true);
        assert_eq!(look.stuck, [(1, SECOND)]);
        assert_eq!(look.events, [Event::Stuck { worker: 1, time: SECOND }]);
        assert!(!look.is_to_be_fed);
        let look = fake.pass([true, false], true);
        assert_eq!((look.stuck, look.events), (vec![(1, 2 * SECOND)], vec![]));
        let look = fake.pass([true; 2], true);
        assert_eq!(look.events, [Event::Moves { worker: 1, time: 3 * SECOND }]);
        assert!(look.is_to_be_fed && look.stuck.is_empty());
    }

    #[test]
    fn a_worker_that_sticks_again_and_again_does_not_flood_the_log() {
        let mut fake = Fake::new();
        let events: usize =
            (0..120).map(|second| fake.pass([true, second % 2 == 0], true).events.len()).sum();
        assert_eq!(events, 4, "stuck and moving, once a minute");
    }

    #[test]
    fn a_busy_control_loop_is_waited_for_and_one_that_never_ends_is_told() {
        let mut fake = Fake::new();
        assert!(fake.pass([true; 2], true).is_to_be_fed);
        for _ in 0..29 {
            let look = fake.pass([true; 2], false);
            assert_eq!(look, Look::default(), "neither fed for nor told");
        }
        let look = fake.pass([true; 2], false);
        assert_eq!(look.stalled, Some(30 * SECOND));
        assert_eq!(look.events, [Event::LoopStalled { time: 30 * SECOND }]);
        assert_eq!(fake.pass([true; 2], false).events, []);
        let look = fake.pass([true; 2], true);
        assert_eq!(look, Look { events: vec![Event::LoopTurns], is_to_be_fed: true, ..Look::default() });
    }

    #[test]
    fn the_status_is_one_line_whatever_is_in_the_way() {
        let told = |reasons: &[&str]| {
            status(&Fitness::from(reasons.iter().map(ToString::to_string).collect::<Vec<_>>()))
        };
        assert_eq!(told(&[]), "ready");
        let both = told(&["no link:\ngone", "worker 0 is stuck"]);
        assert_eq!(both, "not ready: no link: gone; worker 0 is stuck");
    }

    #[test]
    fn looks_are_twice_as_frequent_as_the_watchdog_wants_within_bounds() {
        for (watchdog, expected) in [(None, 1000), (Some(60_000), 1000), (Some(800), 400), (Some(10), 200)] {
            let interval = interval(watchdog.map(Duration::from_millis));
            assert_eq!(interval, Duration::from_millis(expected));
        }
    }
}

//! The thread that takes what workers tell, gives it time and names, and hands it to whatever the log is written to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use conntrack::{Event, Tick};
use fastpath::journal::Events;
use jiff::{SignedDuration, Timestamp};

use super::cap::RateCap;
use super::entry::{Entry, What};
use super::names::NameBook;
use super::outlet::{BATCH, Outlet};

/// How often workers' queues are emptied.
const TURN: Duration = Duration::from_millis(100);

/// What the writer counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Records that were handed on.
    pub(super) records: AtomicU64,
    /// Records over the cap.
    pub(super) over_cap: AtomicU64,
    /// Events that found a worker's queue full.
    pub(super) lost: AtomicU64,
}

/// The writer's side of the log.
pub(super) struct Writer {
    pub(super) events: Events,
    pub(super) names: Arc<NameBook>,
    pub(super) cap: RateCap,
    pub(super) has_destinations: bool,
    pub(super) outlets: Vec<Outlet>,
    pub(super) tally: Arc<Tally>,
    pub(super) is_stopping: Arc<AtomicBool>,
    pub(super) shall_reopen: Arc<AtomicBool>,
    pub(super) waiting: Vec<(Tick, Event)>,
}

impl Writer {
    /// Writes until it is told to stop, and then what is left.
    pub(super) fn run(mut self, first: What) {
        self.hand_on(vec![Entry { time: Timestamp::now(), what: first }]);
        loop {
            // What workers told before the stop is seen after it.
            let is_last = self.is_stopping.load(Ordering::Acquire);
            if self.shall_reopen.swap(false, Ordering::Relaxed) {
                self.outlets.iter().for_each(Outlet::reopen);
            }
            let entries = self.take(Instant::now(), Timestamp::now(), is_last);
            self.hand_on(entries);
            if is_last {
                break;
            }
            thread::park_timeout(TURN);
        }
        self.outlets.into_iter().for_each(Outlet::stop);
    }

    /// Takes what workers told until now.
    fn take(&mut self, now: Instant, wall: Timestamp, is_last: bool) -> Vec<Entry> {
        let mut waiting = std::mem::take(&mut self.waiting);
        self.events.drain(&mut waiting);
        let names = self.names.get();
        let mut entries = Vec::with_capacity(waiting.len());
        for (at, event) in waiting.drain(..) {
            let age = SignedDuration::try_from(self.events.age_of(at, now)).unwrap_or_default();
            let time = wall.checked_sub(age).unwrap_or(wall);
            entries.extend(self.skipped(time, false));
            if self.cap.admits(time) {
                entries.push(Entry::of(time, &event, &names, self.has_destinations));
            }
        }
        self.waiting = waiting;
        entries.extend(self.skipped(wall, is_last));
        let lost = self.events.lost();
        let more = lost - self.tally.lost.swap(lost, Ordering::Relaxed);
        entries.extend((more > 0).then(|| Entry::omission(wall, more, "queue")));
        entries
    }

    /// Tells how many records of a second that is over were more than may be.
    fn skipped(&mut self, time: Timestamp, is_last: bool) -> Option<Entry> {
        let skipped = if is_last { self.cap.take_rest() } else { self.cap.take_skipped(time) }?;
        self.tally.over_cap.fetch_add(skipped, Ordering::Relaxed);
        Some(Entry::omission(time, skipped, "rate"))
    }

    fn hand_on(&self, entries: Vec<Entry>) {
        self.tally.records.fetch_add(entries.len() as u64, Ordering::Relaxed);
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            let batch: Arc<[Entry]> = entries.by_ref().take(BATCH).collect();
            self.outlets.iter().for_each(|outlet| outlet.offer(&batch));
        }
    }
}

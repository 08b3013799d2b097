//! What workers tell a log of translations: each puts it in a bounded queue, and the control side takes it out.
//!
//! A worker never waits: what does not fit is counted. All memory is taken at the start.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use conntrack::{Event, Journal, Tick};
use crossbeam::queue::ArrayQueue;

/// Events that may wait at one worker: a second of its new sessions.
const EVENTS: usize = 1 << 17;

/// What a log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Records {
    /// Beginnings and ends of sessions.
    Sessions,
    /// Blocks of ports that workers took and gave back.
    Blocks,
}

impl Records {
    fn wants(self, event: &Event) -> bool {
        match event {
            Event::Began(_) | Event::Ended(..) => self == Self::Sessions,
            Event::BlockTaken(..) | Event::BlockReturned(..) => self == Self::Blocks,
        }
    }
}

/// Events of one worker that wait to be written.
#[derive(Debug)]
struct EventQueue {
    events: ArrayQueue<(Tick, Event)>,
    lost: AtomicU64,
}

/// The worker's end of its queue.
#[derive(Debug)]
struct Reporter {
    queue: Arc<EventQueue>,
    records: Records,
}

impl Journal for Reporter {
    fn note(&mut self, at: Tick, event: &Event) {
        if self.records.wants(event) && self.queue.events.push((at, *event)).is_err() {
            // This worker alone writes it.
            let lost = self.queue.lost.load(Ordering::Relaxed);
            self.queue.lost.store(lost + 1, Ordering::Relaxed);
        }
    }
}

/// The control side's end of the queues of all workers.
#[derive(Clone, Debug)]
pub struct Events {
    queues: Vec<Arc<EventQueue>>,
    records: Records,
    started: Instant,
}

impl Events {
    /// Makes the queues of so many workers.
    pub(crate) fn new(workers: usize, records: Records) -> Self {
        Self::with_room(workers, records, EVENTS)
    }

    fn with_room(workers: usize, records: Records, room: usize) -> Self {
        let queue = || Arc::new(EventQueue { events: ArrayQueue::new(room), lost: AtomicU64::new(0) });
        Self { queues: (0..workers).map(|_| queue()).collect(), records, started: Instant::now() }
    }

    /// Returns the end of a worker.
    pub(crate) fn reporter(&self, worker: usize) -> Box<dyn Journal> {
        Box::new(Reporter { queue: Arc::clone(&self.queues[worker]), records: self.records })
    }

    /// Notes when the workers' clock started.
    pub(crate) fn started_at(&mut self, started: Instant) {
        self.started = started;
    }

    /// Returns how long ago a moment of the workers' clock was.
    pub fn age_of(&self, at: Tick, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.started);
        // A moment that is not over by this clock is now.
        let is_over = Tick::since_start(elapsed).reached(at);
        if is_over { elapsed.saturating_sub(at.elapsed_since(Tick::default())) } else { Duration::ZERO }
    }

    /// Moves what waits to `into`: in order for each worker, and all in order of time but for what workers tell late.
    pub fn drain(&self, into: &mut Vec<(Tick, Event)>) {
        let first = into.len();
        for queue in &self.queues {
            let waiting = queue.events.len();
            into.extend((0..waiting).map_while(|_| queue.events.pop()));
        }
        into[first..].sort_by_key(|(at, _)| at.elapsed_since(Tick::default()));
    }

    /// Returns how many events found their queue full since the start.
    pub fn lost(&self) -> u64 {
        self.queues.iter().map(|queue| queue.lost.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const BLOCK: Event = Event::BlockTaken(Ipv4Addr::new(192, 168, 55, 113), 1024);

    fn tick(tenths: u64) -> Tick {
        Tick::since_start(Duration::from_millis(tenths * 100))
    }

    #[test]
    fn what_does_not_fit_is_counted_and_nobody_waits() {
        let events = Events::with_room(1, Records::Blocks, 3);
        let mut reporter = events.reporter(0);
        (0..5).for_each(|at| reporter.note(tick(at), &BLOCK));
        let mut drained = Vec::new();
        events.drain(&mut drained);
        assert_eq!((drained.len(), events.lost()), (3, 2));
        reporter.note(tick(6), &BLOCK);
        events.drain(&mut drained);
        assert_eq!((drained.len(), events.lost()), (4, 2), "there is room again");
    }

    #[test]
    fn workers_are_drained_in_order_of_time() {
        let events = Events::new(2, Records::Blocks);
        for (worker, at) in [(0, 5), (0, 9), (1, 2), (1, 7)] {
            events.reporter(worker).note(tick(at), &BLOCK);
        }
        let mut drained = Vec::new();
        events.drain(&mut drained);
        assert_eq!(drained.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [2, 5, 7, 9].map(tick));
    }

    #[test]
    fn only_what_is_wanted_is_told() {
        let events = Events::new(1, Records::Sessions);
        events.reporter(0).note(tick(0), &BLOCK);
        let mut drained = Vec::new();
        events.drain(&mut drained);
        assert_eq!((drained, events.lost()), (Vec::new(), 0));
    }

    #[test]
    fn age_is_the_time_since_a_tick() {
        let events = Events::new(1, Records::Sessions);
        let now = events.started + Duration::from_millis(1234);
        assert_eq!(events.age_of(tick(10), now), Duration::from_millis(234));
        assert_eq!(events.age_of(tick(20), now), Duration::ZERO);
    }
}

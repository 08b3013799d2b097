//! What the log is written to, each on a thread of its own: one that fails holds up no other.
//!
//! Batches wait in a bounded queue while an outlet fails; what does not fit is counted. It is tried again after a second,
//! then more and more seldom, and told of once.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{info, warn};

use super::entry::Entry;
use crate::api::types::NatLogSink;

/// Records that are handed over together, at most.
pub(super) const BATCH: usize = 1024;

/// Batches that may wait.
const WAITING: usize = 64;

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// How long an outlet has for what waits when the daemon stops.
const ENDS_WITHIN: Duration = Duration::from_secs(3);

/// Something that records are written to.
pub(super) trait Sink: Send {
    /// Writes records in order.
    ///
    /// # Errors
    /// When not all were written; those before the failure were.
    fn write(&mut self, entries: &[Entry]) -> Result<(), Unwritten>;

    /// Opens anew what it writes to, at the next write.
    fn reopen(&mut self);
}

/// Why not all records were written, and how many were.
#[derive(Debug)]
pub(super) struct Unwritten {
    pub(super) written: usize,
    pub(super) source: io::Error,
}

impl From<io::Error> for Unwritten {
    fn from(source: io::Error) -> Self {
        Self { written: 0, source }
    }
}

/// What an outlet counts.
#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    lost: AtomicU64,
    errors: AtomicU64,
    trouble: Mutex<Option<String>>,
}

impl Counts {
    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

enum Message {
    Write(Arc<[Entry]>),
    Reopen,
}

/// A sink, and the thread that writes to it.
#[derive(Debug)]
pub(super) struct Outlet {
    name: String,
    messages: SyncSender<Message>,
    counts: Arc<Counts>,
    is_stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Outlet {
    /// Starts to write to a sink, which people know by `name`.
    pub(super) fn start(name: String, sink: Box<dyn Sink>) -> io::Result<Self> {
        let (messages, waiting) = sync_channel(WAITING);
        let (counts, is_stopping) = (Arc::<Counts>::default(), Arc::<AtomicBool>::default());
        let deliverer = Deliverer {
            name: name.clone(),
            sink,
            counts: Arc::clone(&counts),
            is_stopping: Arc::clone(&is_stopping),
            retry: None,
            lost_told: 0,
        };
        let thread = thread::Builder::new().name("nat-log-sink".into()).spawn(|| deliverer.run(waiting))?;
        Ok(Self { name, messages, counts, is_stopping, thread })
    }

    /// Hands records over, or counts them where too many wait already.
    pub(super) fn offer(&self, entries: &Arc<[Entry]>) {
        match self.messages.try_send(Message::Write(Arc::clone(entries))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.counts.lost.fetch_add(entries.len() as u64, Ordering::Relaxed);
            }
        }
    }

    /// Has the sink opened anew; one that is busy is opened anew when it fails.
    pub(super) fn reopen(&self) {
        let _ = self.messages.try_send(Message::Reopen);
    }

    /// Returns what is told of the sink.
    pub(super) fn teller(&self) -> Teller {
        Teller { name: self.name.clone(), counts: Arc::clone(&self.counts) }
    }

    /// Writes what waits, within bounds.
    pub(super) fn stop(self) {
        let Self { name, messages, is_stopping, thread, .. } = self;
        drop(messages);
        is_stopping.store(true, Ordering::Release);
        thread.thread().unpark();
        let deadline = Instant::now() + ENDS_WITHIN;
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        if !thread.is_finished() {
            warn!(sink = name, "nat_log: not everything was written before the stop");
        }
    }
}

/// Tells how a sink does.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    name: String,
    counts: Arc<Counts>,
}

impl Teller {
    pub(super) fn status(&self) -> NatLogSink {
        let Counts { written, lost, errors, trouble } = &*self.counts;
        NatLogSink {
            name: self.name.clone(),
            written: written.load(Ordering::Relaxed),
            lost: lost.load(Ordering::Relaxed),
            errors: errors.load(Ordering::Relaxed),
            trouble: trouble.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// The thread's side of an outlet.
struct Deliverer {
    name: String,
    sink: Box<dyn Sink>,
    counts: Arc<Counts>,
    is_stopping: Arc<AtomicBool>,
    /// How long to wait before the next try, while it fails.
    retry: Option<Duration>,
    lost_told: u64,
}

impl Deliverer {
    #[expect(clippy::needless_pass_by_value, reason = "the queue ends with the thread")]
    fn run(mut self, messages: Receiver<Message>) {
        for message in &messages {
            match message {
                Message::Write(entries) => self.deliver(&entries),
                Message::Reopen => self.sink.reopen(),
            }
            self.tell_lost();
        }
    }

    /// Writes records, however often it takes; when the daemon stops, once.
    fn deliver(&mut self, mut entries: &[Entry]) {
        loop {
            let written = match self.sink.write(entries) {
                Ok(()) => {
                    self.note_success();
                    entries.len()
                }
                Err(Unwritten { written, source }) => {
                    self.note_failure(&source);
                    written
                }
            };
            self.counts.written.fetch_add(written as u64, Ordering::Relaxed);
            entries = entries.get(written..).unwrap_or_default();
            if entries.is_empty() {
                return;
            }
            if self.is_stopping.load(Ordering::Acquire) {
                self.counts.lost.fetch_add(entries.len() as u64, Ordering::Relaxed);
                return;
            }
            self.wait();
        }
    }

    /// Writes how many records were lost, once it works again.
    fn tell_lost(&mut self) {
        let lost = self.counts.lost.load(Ordering::Relaxed);
        if lost > self.lost_told && self.retry.is_none() {
            let omission = Entry::omission(Timestamp::now(), lost - self.lost_told, "sink");
            if self.sink.write(&[omission]).is_ok() {
                self.lost_told = lost;
            }
        }
    }

    fn note_success(&mut self) {
        if self.retry.take().is_some() {
            self.counts.set_trouble(None);
            info!(sink = self.name, "nat_log: it can be written to again");
        }
    }

    fn note_failure(&mut self, error: &io::Error) {
        self.counts.errors.fetch_add(1, Ordering::Relaxed);
        self.counts.set_trouble(Some(error.to_string()));
        self.sink.reopen();
        self.retry = Some(match self.retry {
            Some(before) => (before * 2).min(LAST_RETRY),
            None => {
                warn!(sink = self.name, %error, "nat_log: it cannot be written to; will try again");
                FIRST_RETRY
            }
        });
    }

    fn wait(&self) {
        let end = Instant::now() + self.retry.unwrap_or(FIRST_RETRY);
        while let Some(left) = end.checked_duration_since(Instant::now())
            && !left.is_zero()
            && !self.is_stopping.load(Ordering::Acquire)
        {
            thread::park_timeout(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::nat_log::entry::tests::time;

    /// Fails as often as it is told, each time after half of what it is given.
    struct Faulty {
        failures: usize,
        taken: Sender<u64>,
    }

    impl Sink for Faulty {
        fn write(&mut self, entries: &[Entry]) -> Result<(), Unwritten> {
            let is_failing = self.failures > 0;
            let written = if is_failing { entries.len() / 2 } else { entries.len() };
            for entry in &entries[..written] {
                self.taken.send(records(entry)).unwrap();
            }
            self.failures = self.failures.saturating_sub(1);
            if is_failing { Err(Unwritten { written, source: io::Error::other("full") }) } else { Ok(()) }
        }

        fn reopen(&mut self) {}
    }

    fn records(entry: &Entry) -> u64 {
        match &entry.what {
            crate::nat_log::entry::What::NotWritten(omission) => omission.records,
            other => panic!("{other:?}"),
        }
    }

    fn batch(first: u64, count: u64) -> Arc<[Entry]> {
        (first..first + count).map(|number| Entry::omission(time(0), number, "test")).collect()
    }

    #[test]
    fn what_fails_is_tried_again_from_where_it_failed() {
        let (taken, received) = channel();
        let outlet = Outlet::start("test".into(), Box::new(Faulty { failures: 1, taken })).unwrap();
        outlet.offer(&batch(0, 10));
        let got: Vec<_> = (0..10).map(|_| received.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
        assert_eq!(got, (0..10).collect::<Vec<_>>());
        let teller = outlet.teller();
        outlet.stop();
        let status = teller.status();
        assert_eq!((status.written, status.lost, status.errors, status.trouble), (10, 0, 1, None));
    }

    #[test]
    fn what_a_failing_sink_does_not_take_is_counted_and_nobody_waits() {
        let (taken, _received) = channel();
        let outlet = Outlet::start("test".into(), Box::new(Faulty { failures: usize::MAX, taken })).unwrap();
        let more = 10;
        for _ in 0..=WAITING + more {
            outlet.offer(&batch(0, 1));
        }
        let teller = outlet.teller();
        assert!(teller.status().lost >= more as u64, "one is being written at most");
        outlet.stop();
        let status = teller.status();
        assert_eq!(status.written + status.lost, (WAITING + more + 1) as u64);
        assert!(status.errors > 0 && status.trouble.as_deref() == Some("full"), "{status:?}");
    }
}

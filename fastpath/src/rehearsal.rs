//! Decides about a frame as the workers would, with a copy of what they know, so that it leaves nothing behind.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use conntrack::{
    Conntrack, Epoch, NotRestored, Record, Resumption, SharedBook, TenantId, Tick, WorkerSlot, restore,
};

use crate::counters::WorkerCounters;
use crate::fragments::Limits;
use crate::io::{Frame, FrameArea, FramePool};
use crate::launch::draw_seed;
use crate::pipeline::Engine;
use crate::snapshot::{Side, Snapshot};
use crate::tap::{Occasion, Sample, Tap, TapFilter, TapLimits, Taps};
use crate::track::UNRESOLVED;
use crate::verdict::Errand;

/// Entries that the copy has free beside what it holds: more than one packet needs, and enough that nobody's share of
/// the table is in the way (see `conntrack`'s `share`).
const ROOM: usize = 4096;

/// The only frame of all rehearsals: the memory of frames is never given back.
static FRAMES: OnceLock<Mutex<FramePool>> = OnceLock::new();

/// Why nothing could be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RehearsalError {
    /// The frame is longer than any.
    #[error("a frame of {0} bytes is longer than any that fits ({max})", max = Frame::CAPACITY)]
    TooLong(usize),
    /// No memory for a frame.
    #[error("no memory for a frame")]
    NoMemory,
}

/// Decides about `frame`, which came in on `side`, under `snapshot`, as one worker that has `sessions` would.
///
/// # Errors
/// When the frame does not fit.
pub fn rehearse(
    snapshot: &Snapshot,
    sessions: &[(TenantId, Record)],
    side: Side,
    frame: &[u8],
) -> Result<Sample, RehearsalError> {
    if frame.len() > Frame::CAPACITY {
        return Err(RehearsalError::TooLong(frame.len()));
    }
    let mut engine = copy(snapshot, sessions);
    let frames = FRAMES.get_or_init(|| {
        Mutex::new(FrameArea::allocate(1).map_or_else(|_| FramePool::with_capacity(0), |(_, pool)| pool))
    });
    // A rehearsal that panicked lost the frame, not the pool's order.
    let mut pool = frames.lock().unwrap_or_else(PoisonError::into_inner);
    let mut copied = pool.take().ok_or(RehearsalError::NoMemory)?;
    copied.set_len(frame.len());
    copied.bytes_mut().copy_from_slice(frame);
    let limits = TapLimits { bytes: frame.len().max(Frame::CAPACITY), per_second: u32::MAX, samples: 1 };
    let tap = Arc::new(Tap::new(TapFilter::default(), limits));
    let now = Tick::default().after(Duration::from_secs(1));
    let mut taps = Taps::of(Arc::clone(&tap), now);
    let occasion = Occasion { side, is_first: true, is_counted: true, now };
    taps.watch(&mut engine, &mut copied, occasion, |engine, frame| {
        engine.process(frame, side, Errand::NEW, now)
    });
    pool.put(copied);
    Ok(*tap.take().expect("a tap without a filter takes every frame"))
}

/// Makes one worker's engine that knows what `snapshot` says, and has these sessions.
fn copy(snapshot: &Snapshot, sessions: &[(TenantId, Record)]) -> Engine {
    // Ports and quotas of its own: what it takes is taken from nobody.
    let mut book = SharedBook::default();
    let snapshot = Snapshot::compile(snapshot.spec().clone()).with_shared(&mut book, Epoch::default());
    let shared = Arc::clone(snapshot.shared().expect("it was just given"));
    let entries = u32::try_from(entries_of(sessions) + ROOM).unwrap_or(u32::MAX);
    let slot = WorkerSlot { worker: 0, workers: 1 };
    let mut tables = [Conntrack::new(entries, slot, shared, draw_seed().unwrap_or_default())];
    let timeouts = &snapshot.spec().timeouts;
    for (tenant, record) in sessions {
        let (age, next_hops) = (Duration::ZERO, [UNRESOLVED; 2]);
        let resumption = Resumption { tenant: *tenant, record, age, timeouts, next_hops };
        match restore(&mut tables, &resumption, Tick::default()) {
            // What began or ended while it was copied may contradict the rest.
            Ok(())
            | Err(NotRestored::Over | NotRestored::NoAddress | NotRestored::Taken | NotRestored::Full) => {}
        }
    }
    let [table] = tables;
    let counters = Arc::new(WorkerCounters::default());
    counters.adopt(&snapshot);
    Engine::new(Arc::new(snapshot), table, Limits::WORKER, counters)
}

/// Returns how many entries sessions take at most: themselves, their pods, and where they have a mapping that and its peer.
fn entries_of(sessions: &[(TenantId, Record)]) -> usize {
    let pods: HashSet<_> =
        sessions.iter().map(|(tenant, record)| (*tenant, record.inside_tuple.source)).collect();
    let mapped = sessions.iter().filter(|(_, record)| record.mapping.is_some()).count();
    sessions.len() + pods.len() + 2 * mapped
}

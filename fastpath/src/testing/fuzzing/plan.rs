//! What happens in one run, read from any bytes.

use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};

use super::choice::{bits, draft, error, flags, pick, snapshot};
use super::frames::{Draft, ErrorDraft};
use crate::io::Frame;
use crate::snapshot::{Side, SnapshotSpec};

/// Steps of one run, so that none takes long.
const MOST_STEPS: usize = 32;

/// A run of the whole pipeline: how many workers, and what happens, one after the other.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) workers: u16,
    pub(crate) sessions: u32,
    /// Whether the clock is about to wrap.
    pub(crate) is_late: bool,
    pub(crate) steps: Vec<Step>,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) event: Event,
    /// Whether the workers come to rest before the next step.
    pub(crate) then_rest: bool,
}

/// What can happen. Frames that were seen before are named by how long ago; a worker's number is taken modulo how
/// many there are.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Any bytes arrive.
    Bytes { at: Place, bytes: Vec<u8> },
    /// A packet arrives, perhaps for the end that a frame seen before came from; and more of them, from other ports.
    Packet { at: Place, draft: Draft, aimed_at: Option<u8>, change: Option<Change>, copies: u16 },
    /// A packet arrives in pieces, some of them in another order, twice or never.
    Pieces { at: Place, draft: Draft, aimed_at: Option<u8>, piece: usize, order: [u8; 4] },
    /// A frame that was sent is answered.
    Answer { worker: u8, which: u8, flags: u8, change: Option<Change> },
    /// An ICMP error comes about a frame that was sent.
    Error { worker: u8, which: u8, error: ErrorDraft, change: Option<Change> },
    /// A frame that arrived arrives again.
    Again { worker: u8, which: u8, change: Option<Change> },
    /// Time passes.
    Wait(Duration),
    /// Another snapshot is put before the workers.
    Offer(Box<SnapshotSpec>),
    /// One worker turns.
    Turn(u8),
}

/// Where a frame arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) worker: u8,
    pub(crate) side: Side,
}

/// Bytes of a frame that are changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) at: u8,
    pub(crate) byte: u8,
    /// Bytes that the frame loses at its end.
    pub(crate) cut: u8,
    /// Whether the checksums are made right again.
    pub(crate) is_sealed: bool,
}

impl<'a> Arbitrary<'a> for Plan {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let [low, high, is_small, is_late, ..] = bits(u)?;
        let workers = 1 + u16::from(low) + 2 * u16::from(high);
        let sessions = if is_small { 3 } else { 64 };
        let mut steps = Vec::new();
        while steps.len() < MOST_STEPS && !u.is_empty() {
            steps.push(step(u)?);
        }
        Ok(Self { workers, sessions, is_late, steps })
    }
}

fn step(u: &mut Unstructured<'_>) -> Result<Step> {
    let kind = u.arbitrary::<u8>()?;
    let [low, high, is_outside, is_changed, is_held, is_aimed, is_many, _] = bits(u)?;
    let worker = u8::from(low) + 2 * u8::from(high);
    let side = if is_outside { Side::Outside } else { Side::Inside };
    let at = Place { worker, side };
    let change = |u: &mut _| if is_changed { change(u).map(Some) } else { Ok(None) };
    let aim = |u: &mut Unstructured<'_>| if is_aimed { u.arbitrary().map(Some) } else { Ok(None) };
    let copies = |u: &mut _| if is_many { pick(u, &[2, 6, 20, 70]) } else { Ok(1) };
    let event = match kind % 16 {
        0..=3 => {
            let draft = draft(u, side)?;
            Event::Packet { at, draft, aimed_at: aim(u)?, change: change(u)?, copies: copies(u)? }
        }
        4..=6 => Event::Answer { worker, which: u.arbitrary()?, flags: flags(u)?, change: change(u)? },
        7 | 8 => Event::Error { worker, which: u.arbitrary()?, error: error(u)?, change: change(u)? },
        9 | 10 => Event::Again { worker, which: u.arbitrary()?, change: change(u)? },
        11 => Event::Offer(Box::new(snapshot(u)?)),
        12 => Event::Wait(pick(u, &WAITS)?),
        13 => Event::Turn(worker),
        14 => pieces(u, at, aim)?,
        _ => Event::Bytes { at, bytes: raw(u)? },
    };
    Ok(Step { event, then_rest: !is_held })
}

const WAITS: [Duration; 8] = [
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(6),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(300),
    Duration::from_secs(7440),
];

fn pieces<'a>(
    u: &mut Unstructured<'a>,
    at: Place,
    aim: impl FnOnce(&mut Unstructured<'a>) -> Result<Option<u8>>,
) -> Result<Event> {
    let mut draft = draft(u, at.side)?;
    draft.payload_bytes *= 2;
    let aimed_at = aim(u)?;
    let piece = pick(u, &[1480, 8, 24, 552, 1376])?;
    Ok(Event::Pieces { at, draft, aimed_at, piece, order: u.arbitrary()? })
}

fn change(u: &mut Unstructured<'_>) -> Result<Change> {
    let (at, byte) = (u.arbitrary()?, u.arbitrary()?);
    let [is_sealed, is_cut, ..] = bits(u)?;
    let cut = if is_cut { u.arbitrary()? } else { 0 };
    Ok(Change { at, byte, cut, is_sealed })
}

fn raw(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let bytes = usize::from(u.arbitrary::<u8>()?).min(u.len()).min(Frame::CAPACITY);
    Ok(u.bytes(bytes)?.to_vec())
}

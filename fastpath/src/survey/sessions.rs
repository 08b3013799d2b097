//! What is done with the sessions that are met: they are listed, copied or ended.

use conntrack::{Conntrack, Found, Key, Record, SessionId, Tick, Timeouts};

use super::{Ground, SPAN, SessionFilter, SessionState};
use crate::dataplane::SessionReport;

/// Sessions ended in one turn, as many as expire.
const ENDED_PER_TURN: usize = 64;

/// Lists the sessions in the next entries that are meant, while there is room; returns where it goes on.
pub(super) fn list(
    rows: &mut Vec<SessionReport>,
    filter: &SessionFilter,
    from: u32,
    ground: &Ground<'_>,
) -> u32 {
    let Ground { conntrack, timeouts, now, .. } = ground;
    let room = rows.capacity() - rows.len();
    meet(filter, from, room, ground, |id| rows.push(describe(conntrack, id, timeouts, *now)))
}

/// Copies them instead.
pub(super) fn copy(records: &mut Vec<Record>, filter: &SessionFilter, from: u32, ground: &Ground<'_>) -> u32 {
    let room = records.capacity() - records.len();
    meet(filter, from, room, ground, |id| records.push(ground.conntrack.record(id)))
}

/// Ends them, some in one turn at most.
pub(super) fn end(ended: &mut u64, filter: &SessionFilter, from: u32, ground: &mut Ground<'_>) -> u32 {
    let (mut met, mut count) = ([SessionId(0); ENDED_PER_TURN], 0);
    let next = meet(filter, from, ENDED_PER_TURN, ground, |id| {
        met[count] = id;
        count += 1;
    });
    for id in &met[..count] {
        let tenant = ground.conntrack.session(*id).tenant();
        ground.conntrack.remove(*id, ground.now);
        ground.counters.tenant(tenant).session_ended();
    }
    *ended += count as u64;
    next
}

/// Meets the sessions in the next entries that are meant, `room` at most; returns the first entry that was not looked at.
fn meet(
    filter: &SessionFilter,
    from: u32,
    mut room: usize,
    ground: &Ground<'_>,
    mut act: impl FnMut(SessionId),
) -> u32 {
    for (id, session) in ground.conntrack.scan_entries(from, SPAN) {
        if room == 0 {
            return id.0;
        }
        let age = ground.now.elapsed_since(ground.conntrack.begun(id));
        let idle = ground.now.elapsed_since(session.last_seen());
        if filter.fits(session, age, idle) {
            act(id);
            room -= 1;
        }
    }
    from.saturating_add(SPAN)
}

/// Describes the session that packets with a key belong to, if there is one.
pub(crate) fn session_of(
    conntrack: &Conntrack,
    key: &Key,
    timeouts: &Timeouts,
    now: Tick,
) -> Option<SessionReport> {
    match conntrack.find(key)? {
        Found::Session(id) => Some(describe(conntrack, id, timeouts, now)),
        Found::Lent(_) => None,
    }
}

fn describe(conntrack: &Conntrack, id: SessionId, timeouts: &Timeouts, now: Tick) -> SessionReport {
    let session = conntrack.session(id);
    let outside = session.outside_tuple();
    let idle = now.elapsed_since(session.last_seen());
    SessionReport {
        tenant: session.tenant(),
        inside: session.inside_tuple(),
        outside: (outside.source, outside.source_port),
        state: SessionState::of(session),
        age_seconds: now.elapsed_since(conntrack.begun(id)).as_secs(),
        idle_seconds: idle.as_secs(),
        expires_seconds: timeouts.of(session.class()).as_secs().saturating_sub(idle.as_secs()),
        worker: usize::from(conntrack.slot().worker),
    }
}

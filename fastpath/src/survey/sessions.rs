//! Finds the sessions that are meant, and describes them.

use conntrack::{Conntrack, Found, Key, Session, SessionId, Tick, Timeouts};

use super::{Ground, SessionFilter, SessionState};
use crate::dataplane::SessionReport;

/// Describes a session if it is meant.
pub(super) fn meet(
    conntrack: &Conntrack,
    (id, session): (SessionId, &Session),
    filter: &SessionFilter,
    ground: &Ground<'_>,
) -> Option<SessionReport> {
    let age = ground.now.elapsed_since(conntrack.begun(id));
    let idle = ground.now.elapsed_since(session.last_seen());
    filter.fits(session, age, idle).then(|| describe(conntrack, id, ground.timeouts, ground.now))
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

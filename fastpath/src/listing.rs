//! Lists sessions without stopping the worker: a bounded piece of the table each turn.

use conntrack::{Conntrack, Session, TcpState, Tick, Timeouts};

use crate::dataplane::SessionReport;
use crate::mailbox::ListSessions;

/// Table entries looked at in one turn.
const SPAN: u32 = 1024;

/// A list that is being made.
#[derive(Debug)]
pub struct Listing {
    question: ListSessions,
    next: u32,
}

impl Listing {
    /// Begins a list.
    pub fn new(question: ListSessions) -> Self {
        Self { question, next: 0 }
    }

    /// Looks at the next piece of the table; returns the list while it is not finished, and sends it when it is.
    pub fn go_on(
        mut self,
        conntrack: &Conntrack,
        worker: u16,
        timeouts: &Timeouts,
        now: Tick,
    ) -> Option<Self> {
        let ListSessions { tenant, rows, .. } = &mut self.question;
        let room = rows.capacity() - rows.len();
        let found = conntrack
            .scan(self.next, SPAN)
            .filter(|session| tenant.is_none_or(|tenant| tenant == session.tenant()))
            .take(room);
        rows.extend(found.map(|session| describe(session, worker, timeouts, now)));
        self.next += SPAN;
        if self.next < conntrack.capacity() && rows.len() < rows.capacity() {
            return Some(self);
        }
        // Whoever asked may have stopped waiting.
        let _ = self.question.reply.try_send(self.question.rows);
        None
    }
}

fn describe(session: &Session, worker: u16, timeouts: &Timeouts, now: Tick) -> SessionReport {
    let outside = session.outside_tuple();
    let idle_seconds = now.elapsed_since(session.last_seen()).as_secs();
    SessionReport {
        tenant: session.tenant(),
        inside: session.inside_tuple(),
        outside: (outside.source, outside.source_port),
        state: match session.tcp_state() {
            None => "active",
            Some(TcpState::Opening | TcpState::OutsideOpening) => "opening",
            Some(TcpState::Established) => "established",
            Some(TcpState::InsideFin | TcpState::OutsideFin | TcpState::Closed | TcpState::Reset) => {
                "closing"
            }
        },
        idle_seconds,
        expires_seconds: timeouts.of(session.class()).as_secs().saturating_sub(idle_seconds),
        worker: usize::from(worker),
    }
}

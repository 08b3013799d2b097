//! Goes through the sessions of the workers without holding them up: a bounded piece of a table each turn.
//!
//! A session that is there from the beginning of a survey to its end is met once: it stays in its entry. One that begins
//! or ends meanwhile may be met or not.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use conntrack::{
    Conntrack, FiveTuple, Found, Key, Protocol, Record, Session, SessionId, TcpState, TenantId, Tick,
    Timeouts,
};
use crossbeam::channel::{Sender, bounded};
use ipnet::Ipv4Net;
use thiserror::Error;

use crate::counters::WorkerCounters;
use crate::dataplane::{ANSWER_WITHIN, SessionReport};
use crate::mailbox::Mailbox;

/// Table entries looked at in a turn after one that found frames: 8 KiB of memory, one after the other.
const SPAN_WHILE_BUSY: u32 = 128;
/// Table entries looked at in any other turn.
const SPAN: u32 = 2048;
/// Table entries looked at for one answer, so that it never takes long.
const ENTRIES_PER_ANSWER: u32 = 256 * 1024;
/// Sessions ended in one turn, as many as expire.
const ENDED_PER_TURN: usize = 64;

/// Which sessions are meant: those that every part of it fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// Of this protocol.
    pub protocol: Option<Protocol>,
    /// With this pod.
    pub inside: EndFilter,
    /// With this other end.
    pub remote: EndFilter,
    /// With this egress address and outside port.
    pub outside: EndFilter,
    /// In this state.
    pub state: Option<SessionState>,
    /// That began at least so long ago, or were taken up then.
    pub older_than: Option<Duration>,
    /// That began at most so long ago.
    pub younger_than: Option<Duration>,
    /// Without a packet for at least so long.
    pub idle_for: Option<Duration>,
}

/// One end of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndFilter {
    /// Its address is in this network.
    pub network: Option<Ipv4Net>,
    /// Its port, or query identifier.
    pub port: Option<u16>,
}

/// State of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// A TCP connection whose handshake is not over.
    Opening,
    /// A TCP connection.
    Established,
    /// A TCP connection that one end has closed or reset.
    Closing,
    /// Not TCP.
    Active,
}

impl EndFilter {
    pub(crate) fn fits(&self, address: Ipv4Addr, port: u16) -> bool {
        self.network.is_none_or(|network| network.contains(&address)) && self.port.is_none_or(|it| it == port)
    }
}

impl SessionState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Opening, Self::Established, Self::Closing, Self::Active];

    fn of(session: &Session) -> Self {
        match session.tcp_state() {
            None => Self::Active,
            Some(TcpState::Opening | TcpState::OutsideOpening) => Self::Opening,
            Some(TcpState::Established) => Self::Established,
            Some(TcpState::InsideFin | TcpState::OutsideFin | TcpState::Closed | TcpState::Reset) => {
                Self::Closing
            }
        }
    }

    /// Returns the state's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Active => "active",
        }
    }
}

impl SessionFilter {
    fn fits(&self, session: &Session, age: Duration, idle: Duration) -> bool {
        let FiveTuple { source, source_port, destination, destination_port, protocol } =
            session.inside_tuple();
        let outside = session.outside_tuple();
        self.tenant.is_none_or(|tenant| tenant == session.tenant())
            && self.protocol.is_none_or(|it| it == protocol)
            && self.inside.fits(source, source_port)
            && self.remote.fits(destination, destination_port)
            && self.outside.fits(outside.source, outside.source_port)
            && self.state.is_none_or(|state| state == SessionState::of(session))
            && self.older_than.is_none_or(|least| age >= least)
            && self.younger_than.is_none_or(|most| age <= most)
            && self.idle_for.is_none_or(|least| idle >= least)
    }
}

/// What is done with the sessions that are met.
#[derive(Debug)]
pub enum Act {
    /// They are listed, as many as the vector has capacity for, so that the worker allocates nothing.
    List(Vec<SessionReport>),
    /// They are copied, under the same bound.
    Copy(Vec<Record>),
    /// They are ended, and counted.
    End(u64),
}

impl Act {
    fn is_full(&self) -> bool {
        match self {
            Self::List(rows) => rows.len() == rows.capacity(),
            Self::Copy(records) => records.len() == records.capacity(),
            Self::End(_) => false,
        }
    }
}

/// A question to one worker, answered over some turns.
#[derive(Debug)]
pub struct Question {
    /// Which sessions.
    pub filter: SessionFilter,
    /// What is done with them.
    pub act: Act,
    /// Table entry to begin at.
    pub from: u32,
    /// Where the answer is sent.
    pub reply: Sender<Answer>,
}

/// What a worker answers.
#[derive(Debug)]
pub struct Answer {
    /// What was done.
    pub act: Act,
    /// Table entry to go on at; none: the table's end was reached.
    pub next: Option<u32>,
}

/// A question that a worker answers.
#[derive(Debug)]
pub(crate) struct Survey {
    question: Question,
    begun_at: u32,
}

/// What a survey looks at in a turn.
pub(crate) struct Ground<'a> {
    pub(crate) conntrack: &'a mut Conntrack,
    pub(crate) counters: &'a WorkerCounters,
    pub(crate) timeouts: &'a Timeouts,
    pub(crate) now: Tick,
    /// Whether frames came in the last turn.
    pub(crate) is_busy: bool,
}

impl Survey {
    pub(crate) fn new(question: Question) -> Self {
        Self { begun_at: question.from, question }
    }

    /// Looks at the next piece of the table; returns the survey while it is not finished, and answers when it is.
    pub(crate) fn go_on(mut self, ground: &mut Ground<'_>) -> Option<Self> {
        let span = if ground.is_busy { SPAN_WHILE_BUSY } else { SPAN };
        match self.question.act {
            Act::List(_) | Act::Copy(_) => self.look(ground, span),
            Act::End(_) => self.end(ground, span),
        }
        let next = (self.question.from < ground.conntrack.capacity()).then_some(self.question.from);
        let has_looked_at = self.question.from.saturating_sub(self.begun_at);
        if next.is_some() && !self.question.act.is_full() && has_looked_at < ENTRIES_PER_ANSWER {
            return Some(self);
        }
        // Whoever asked may have stopped waiting.
        let _ = self.question.reply.try_send(Answer { act: self.question.act, next });
        None
    }

    fn look(&mut self, ground: &Ground<'_>, span: u32) {
        let Question { filter, act, from, .. } = &mut self.question;
        let conntrack = &*ground.conntrack;
        for (id, session) in conntrack.scan_entries(*from, span) {
            if act.is_full() {
                *from = id.0;
                return;
            }
            if let Some(row) = meet(conntrack, (id, session), filter, ground) {
                match act {
                    Act::List(rows) => rows.push(row),
                    Act::Copy(records) => records.push(conntrack.record(id)),
                    Act::End(_) => {}
                }
            }
        }
        *from = from.saturating_add(span);
    }

    fn end(&mut self, ground: &mut Ground<'_>, span: u32) {
        let Question { filter, act, from, .. } = &mut self.question;
        let mut met = [SessionId(0); ENDED_PER_TURN];
        let (mut count, mut next) = (0, from.saturating_add(span));
        for (id, session) in ground.conntrack.scan_entries(*from, span) {
            if count == ENDED_PER_TURN {
                next = id.0;
                break;
            }
            if meet(ground.conntrack, (id, session), filter, ground).is_some() {
                met[count] = id;
                count += 1;
            }
        }
        *from = next;
        for id in &met[..count] {
            let tenant = ground.conntrack.session(*id).tenant();
            ground.conntrack.remove(*id, ground.now);
            ground.counters.tenant(tenant).session_ended();
        }
        if let Act::End(ended) = act {
            *ended += count as u64;
        }
    }
}

/// Describes a session if it is meant.
fn meet(
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

/// Where a list goes on: at a worker, at an entry of its table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Number of the worker.
    pub worker: u16,
    /// Entry of its table.
    pub entry: u32,
}

/// A piece of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// Sessions, in no particular order; none does not mean that there are no more.
    pub rows: Vec<T>,
    /// Where the list goes on; none: this was the last page.
    pub next: Option<Cursor>,
}

/// Why a survey was broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SurveyError {
    /// As many questions wait already as may.
    #[error("worker {0} is asked by others already; ask again in a moment")]
    Busy(u16),
    /// It does not answer.
    #[error("worker {0} does not answer within a second")]
    NoAnswer(u16),
}

/// Asks the workers about their sessions, from any thread. Calls block.
#[derive(Clone, Debug)]
pub struct Surveyor {
    pub(crate) mailboxes: Vec<Arc<Mailbox>>,
}

impl Surveyor {
    /// Lists at most `limit` sessions from `from` on; a page that is not full may have a next one nevertheless.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub fn list(
        &self,
        filter: &SessionFilter,
        from: Cursor,
        limit: usize,
    ) -> Result<Page<SessionReport>, SurveyError> {
        self.page(
            filter,
            from,
            || Act::List(Vec::with_capacity(limit)),
            |act| match act {
                Act::List(rows) => rows,
                Act::Copy(_) | Act::End(_) => Vec::new(),
            },
        )
    }

    /// Copies at most `limit` sessions from `from` on, as [`Surveyor::list`] lists them.
    ///
    /// # Errors
    /// When a worker does not answer.
    pub fn copy(
        &self,
        filter: &SessionFilter,
        from: Cursor,
        limit: usize,
    ) -> Result<Page<Record>, SurveyError> {
        self.page(
            filter,
            from,
            || Act::Copy(Vec::with_capacity(limit)),
            |act| match act {
                Act::Copy(records) => records,
                Act::List(_) | Act::End(_) => Vec::new(),
            },
        )
    }

    /// Ends all sessions that are meant; returns how many. Their next packets are treated as those of any flow without a
    /// session.
    ///
    /// # Errors
    /// When a worker does not answer; the sessions of those before it have ended then.
    pub fn end(&self, filter: &SessionFilter) -> Result<u64, SurveyError> {
        let (mut ended, mut cursor) = (0, Some(Cursor::default()));
        while let Some(from) = cursor {
            let answer = self.ask(filter, from, Act::End(0))?;
            if let Act::End(count) = answer.act {
                ended += count;
            }
            cursor = self.after(from, answer.next);
        }
        Ok(ended)
    }

    /// Asks for one page: workers are asked on until one has something to tell, or all were asked.
    fn page<T>(
        &self,
        filter: &SessionFilter,
        mut from: Cursor,
        act: impl Fn() -> Act,
        rows: impl Fn(Act) -> Vec<T>,
    ) -> Result<Page<T>, SurveyError> {
        loop {
            if usize::from(from.worker) >= self.mailboxes.len() {
                return Ok(Page { rows: Vec::new(), next: None });
            }
            let answer = self.ask(filter, from, act())?;
            let next = self.after(from, answer.next);
            let rows = rows(answer.act);
            match next {
                Some(next) if rows.is_empty() => from = next,
                next => return Ok(Page { rows, next }),
            }
        }
    }

    fn after(&self, asked: Cursor, next: Option<u32>) -> Option<Cursor> {
        match next {
            Some(entry) => Some(Cursor { entry, ..asked }),
            None => Some(Cursor { worker: asked.worker + 1, entry: 0 })
                .filter(|next| usize::from(next.worker) < self.mailboxes.len()),
        }
    }

    fn ask(&self, filter: &SessionFilter, from: Cursor, act: Act) -> Result<Answer, SurveyError> {
        let (reply, answer) = bounded(1);
        let question = Question { filter: filter.clone(), act, from: from.entry, reply };
        if !self.mailboxes[usize::from(from.worker)].ask(question) {
            return Err(SurveyError::Busy(from.worker));
        }
        answer.recv_timeout(ANSWER_WITHIN).map_err(|_| SurveyError::NoAnswer(from.worker))
    }
}

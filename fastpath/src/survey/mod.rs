//! Goes through the sessions of the workers without holding them up: a bounded piece of a table each turn.
//!
//! A session that is there from the beginning of a survey to its end is met once: it stays in its entry. One that begins
//! or ends meanwhile may be met or not.

mod filter;
mod sessions;
mod surveyor;

use conntrack::{Conntrack, Record, SessionId, Tick, Timeouts};
use crossbeam::channel::Sender;

use crate::counters::WorkerCounters;
use crate::dataplane::SessionReport;
pub use filter::{EndFilter, SessionFilter, SessionState};
use sessions::meet;
pub(crate) use sessions::session_of;
pub use surveyor::{Cursor, Page, SurveyError, Surveyor};

/// Table entries looked at in a turn after one that found frames: 8 KiB of memory, one after the other.
const SPAN_WHILE_BUSY: u32 = 128;
/// Table entries looked at in any other turn.
const SPAN: u32 = 2048;
/// Table entries looked at for one answer, so that it never takes long.
const ENTRIES_PER_ANSWER: u32 = 256 * 1024;
/// Sessions ended in one turn, as many as expire.
const ENDED_PER_TURN: usize = 64;

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

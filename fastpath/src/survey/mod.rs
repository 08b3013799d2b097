//! Goes through the tables of the workers without holding them up: a bounded piece of one each turn.
//!
//! ```text
//!   Surveyor ── Question ──▶ mailbox ──▶ Surveys: each goes on in its turn ── Answer ──▶ Surveyor
//! ```
//!
//! A session that is there from the beginning of a survey to its end is met once: it stays in its entry. One that begins
//! or ends meanwhile may be met or not. The worker only copies what it finds into memory that whoever asks has brought.
//!
//! - `filter`: which sessions are meant
//! - `sessions`: what is done with sessions
//! - `ports`: which outside ports are taken
//! - `surveyor`: asks the workers, a page at a time

mod filter;
mod ports;
mod sessions;
mod surveyor;

use std::collections::VecDeque;
use std::ops::ControlFlow;

use conntrack::{Conntrack, PortUse, Record, Tick, Timeouts};
use crossbeam::channel::Sender;

use crate::counters::WorkerCounters;
use crate::dataplane::SessionReport;
pub use filter::{EndFilter, SessionFilter, SessionState};
pub(crate) use sessions::session_of;
pub use surveyor::{Cursor, Page, SurveyError, Surveyor};

/// Table entries looked at in one turn: 8 KiB of memory, one after the other.
const SPAN: u32 = 128;
/// Table entries looked at for one answer, so that it never takes long, also where others have their turns between.
const ENTRIES_PER_ANSWER: u32 = 64 * 1024;
/// Surveys that take turns; more questions wait until one of them is answered.
const AT_ONCE: usize = 4;

/// What is done with the entries that are met.
#[derive(Debug)]
pub enum Act {
    /// Sessions are listed, as many as the vector has capacity for, so that the worker allocates nothing.
    List(Vec<SessionReport>),
    /// Sessions are copied, under the same bound.
    Copy(Vec<Record>),
    /// Sessions are ended, and counted.
    End(u64),
    /// Outside ports that are taken are listed, under the same bound, whichever sessions are meant.
    Ports {
        /// The ports; there is room for a turn's at least.
        uses: Vec<PortUse>,
        /// Entries in use that were met, from the table's beginning on.
        seen: u32,
    },
}

impl Act {
    fn is_full(&self) -> bool {
        match self {
            Self::List(rows) => rows.len() == rows.capacity(),
            Self::Copy(records) => records.len() == records.capacity(),
            Self::End(_) => false,
            Self::Ports { uses, .. } => !ports::has_room(uses),
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

/// What a survey looks at in a turn.
pub(crate) struct Ground<'a> {
    pub(crate) conntrack: &'a mut Conntrack,
    pub(crate) counters: &'a WorkerCounters,
    pub(crate) timeouts: &'a Timeouts,
    pub(crate) now: Tick,
}

/// The surveys of a worker, the one whose turn it is first. One that lasts holds the others up no longer than a turn each.
#[derive(Debug)]
pub(crate) struct Surveys(VecDeque<Survey>);

impl Surveys {
    /// Takes memory for all surveys that there can be at once.
    pub(crate) fn new() -> Self {
        Self(VecDeque::with_capacity(AT_ONCE))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Begins surveys while there is room for them.
    pub(crate) fn begin(&mut self, mut questions: impl FnMut() -> Option<Question>) {
        while self.0.len() < AT_ONCE
            && let Some(question) = questions()
        {
            self.0.push_back(Survey { begun_at: question.from, question });
        }
    }

    /// Looks at the next piece of the table for the survey whose turn it is.
    pub(crate) fn go_on(&mut self, ground: &mut Ground<'_>) {
        let Some(survey) = self.0.front_mut() else { return };
        match survey.go_on(ground) {
            ControlFlow::Continue(()) => self.0.rotate_left(1),
            ControlFlow::Break(next) => {
                let Survey { question, .. } = self.0.pop_front().expect("it is at the front");
                // Whoever asked may have stopped waiting.
                let _ = question.reply.try_send(Answer { act: question.act, next });
            }
        }
    }

    /// Leaves all questions unanswered.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

/// A question that a worker answers.
#[derive(Debug)]
struct Survey {
    question: Question,
    begun_at: u32,
}

impl Survey {
    /// Looks at the next piece of the table; breaks off, with the entry to go on at, when there is something to answer.
    fn go_on(&mut self, ground: &mut Ground<'_>) -> ControlFlow<Option<u32>> {
        let Question { filter, act, from, .. } = &mut self.question;
        *from = match act {
            Act::List(rows) => sessions::list(rows, filter, *from, ground),
            Act::Copy(records) => sessions::copy(records, filter, *from, ground),
            Act::End(ended) => sessions::end(ended, filter, *from, ground),
            Act::Ports { uses, seen } => ports::list(uses, seen, *from, ground.conntrack),
        };
        let next = (*from < ground.conntrack.capacity()).then_some(*from);
        let has_looked_at = from.saturating_sub(self.begun_at);
        match next.is_some() && !act.is_full() && has_looked_at < ENTRIES_PER_ANSWER {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(next),
        }
    }
}

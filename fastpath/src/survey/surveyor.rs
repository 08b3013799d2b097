//! Asks the workers, a page at a time.

use std::sync::Arc;

use conntrack::Record;
use crossbeam::channel::bounded;
use thiserror::Error;

use super::{Act, Answer, Question, SessionFilter};
use crate::dataplane::{ANSWER_WITHIN, DataPlane, SessionReport};
use crate::mailbox::Mailbox;

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

/// Asks the workers about their sessions and ports, from any thread. Calls block.
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
                Act::Copy(_) | Act::End(_) | Act::Ports { .. } => Vec::new(),
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
                Act::List(_) | Act::End(_) | Act::Ports { .. } => Vec::new(),
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

    pub(super) fn after(&self, asked: Cursor, next: Option<u32>) -> Option<Cursor> {
        match next {
            Some(entry) => Some(Cursor { entry, ..asked }),
            None => Some(Cursor { worker: asked.worker + 1, entry: 0 })
                .filter(|next| usize::from(next.worker) < self.mailboxes.len()),
        }
    }

    pub(super) fn ask(&self, filter: &SessionFilter, from: Cursor, act: Act) -> Result<Answer, SurveyError> {
        let (reply, answer) = bounded(1);
        let question = Question { filter: filter.clone(), act, from: from.entry, reply };
        if !self.mailboxes[usize::from(from.worker)].ask(question) {
            return Err(SurveyError::Busy(from.worker));
        }
        answer.recv_timeout(ANSWER_WITHIN).map_err(|_| SurveyError::NoAnswer(from.worker))
    }
}

impl DataPlane {
    /// Returns who asks the workers about their sessions and ports, from any thread.
    pub fn surveyor(&self) -> Surveyor {
        Surveyor { mailboxes: self.workers.iter().map(|worker| Arc::clone(&worker.mailbox)).collect() }
    }
}

//! Intrusive lists of sessions, one per timeout class, least recently seen first.

use crate::session::{Session, SessionId};
use crate::time::TimeoutClass;

/// No session.
pub(crate) const NIL: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
}

/// The lists. The links are in the sessions.
#[derive(Debug)]
pub struct ExpiryLists {
    lists: [List; TimeoutClass::ALL.len()],
}

impl Default for ExpiryLists {
    fn default() -> Self {
        Self { lists: [List { head: NIL, tail: NIL }; TimeoutClass::ALL.len()] }
    }
}

impl ExpiryLists {
    /// Returns the session of a class that was seen least recently.
    pub fn oldest(&self, class: TimeoutClass) -> Option<SessionId> {
        let head = self.lists[class as usize].head;
        (head != NIL).then_some(SessionId(head))
    }

    /// Appends a session that is in no list to the list of its class.
    pub fn append(&mut self, sessions: &mut [Session], id: SessionId) {
        let list = &mut self.lists[sessions[id.0 as usize].class as usize];
        sessions[id.0 as usize].previous = list.tail;
        sessions[id.0 as usize].next = NIL;
        match list.tail {
            NIL => list.head = id.0,
            tail => sessions[tail as usize].next = id.0,
        }
        list.tail = id.0;
    }

    /// Takes a session out of the list of its class.
    pub fn unlink(&mut self, sessions: &mut [Session], id: SessionId) {
        let Session { class, previous, next, .. } = sessions[id.0 as usize];
        let list = &mut self.lists[class as usize];
        match previous {
            NIL => list.head = next,
            previous => sessions[previous as usize].next = next,
        }
        match next {
            NIL => list.tail = previous,
            next => sessions[next as usize].previous = previous,
        }
    }
}

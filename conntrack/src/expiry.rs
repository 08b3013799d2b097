//! Intrusive lists of entries, one per timeout class, least recently seen first.
//!
//! A packet moves its session to the end of its list only when the session was last seen in an earlier span of 6.4
//! seconds: moving it touches both its neighbours, which in a large table are far from any cache. Sessions last seen
//! in the same span are in no order, so one may wait for others of its span and end up to 6.4 seconds late; none ends
//! early.

use crate::slab::{Entry, NIL};
use crate::time::TimeoutClass;

#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
}

/// The lists. The links are in the entries.
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
    /// Returns the entry of a class that was seen least recently.
    pub(crate) fn oldest(&self, class: TimeoutClass) -> Option<u32> {
        let head = self.lists[class.index()].head;
        (head != NIL).then_some(head)
    }

    /// Appends an entry that is in no list to the list of a class.
    pub(crate) fn append(&mut self, entries: &mut [Entry], id: u32, class: TimeoutClass) {
        let list = &mut self.lists[class.index()];
        entries[id as usize].previous = list.tail;
        entries[id as usize].next = NIL;
        match list.tail {
            NIL => list.head = id,
            tail => entries[tail as usize].next = id,
        }
        list.tail = id;
    }

    /// Takes an entry out of the list of a class, which it is in.
    pub(crate) fn unlink(&mut self, entries: &mut [Entry], id: u32, class: TimeoutClass) {
        let Entry { previous, next, .. } = entries[id as usize];
        let list = &mut self.lists[class.index()];
        match previous {
            NIL => list.head = next,
            previous => entries[previous as usize].next = next,
        }
        match next {
            NIL => list.tail = previous,
            next => entries[next as usize].previous = previous,
        }
    }
}

//! The entries of a session table: sessions, and what several sessions have in common.

use std::ops::Range;

use crate::ahead::fetch;
use crate::anchor::Anchor;
use crate::flow::{Direction, Key, TenantId};
use crate::session::{Session, SessionId};

/// No entry.
pub(crate) const NIL: u32 = u32::MAX;

/// One cache line of the table.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct Entry {
    /// Neighbours in an expiry list, or in the free list.
    pub(crate) previous: u32,
    pub(crate) next: u32,
    pub(crate) kind: Kind,
}

const _: () = assert!(size_of::<Entry>() == 64);

/// What an entry holds.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Free,
    Session(Session),
    Anchor(Anchor),
}

impl Entry {
    /// Returns the next entry of the expiry list that this one is in.
    pub(crate) fn following(&self) -> Option<u32> {
        (self.next != NIL).then_some(self.next)
    }

    fn tenant(&self) -> Option<TenantId> {
        match &self.kind {
            Kind::Free => None,
            Kind::Session(session) => Some(session.tenant()),
            Kind::Anchor(anchor) => Some(anchor.tenant),
        }
    }

    /// Returns one of the keys that the entry is found by.
    pub(crate) fn key(&self, direction: Direction) -> Option<Key> {
        match &self.kind {
            Kind::Free => None,
            Kind::Session(session) => Some(session.key(direction)),
            Kind::Anchor(anchor) => anchor.key(direction),
        }
    }
}

/// All entries of one table. Their memory is reserved by [`Slab::new`], and taken as entries are used for the first time,
/// or before by whoever cares for it.
#[derive(Debug)]
pub(crate) struct Slab {
    /// Those that were used once.
    entries: Vec<Entry>,
    capacity: u32,
    /// The last one of them that was freed.
    first_free: u32,
    used: u32,
    /// Entries of each tenant.
    held: Box<[u32]>,
}

impl Slab {
    pub(crate) fn new(capacity: u32) -> Self {
        let entries = Vec::with_capacity(capacity as usize);
        let held = vec![0; usize::from(u16::MAX) + 1].into();
        Self { entries, capacity, first_free: NIL, used: 0, held }
    }

    /// Returns where they lie.
    pub(crate) fn memory(&self) -> Range<*const u8> {
        let start = self.entries.as_ptr();
        start.cast()..start.wrapping_add(self.capacity as usize).cast()
    }

    /// Returns the memory reserved, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.capacity as usize * size_of::<Entry>() + size_of_val(&*self.held)
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Returns the entries that were used once, by their numbers.
    pub(crate) fn ids(&self) -> Range<u32> {
        0..u32::try_from(self.entries.len()).expect("the capacity is a u32")
    }

    /// Returns how many entries are free.
    pub(crate) fn room(&self) -> u32 {
        self.capacity() - self.used
    }

    /// Returns how many entries a tenant has.
    pub(crate) fn held_by(&self, tenant: TenantId) -> u32 {
        self.held[usize::from(tenant.0)]
    }

    /// Puts something into a free entry.
    ///
    /// # Panics
    /// When there is no room.
    pub(crate) fn insert(&mut self, kind: Kind) -> u32 {
        let entry = Entry { previous: NIL, next: NIL, kind };
        if let Some(TenantId(tenant)) = entry.tenant() {
            self.held[usize::from(tenant)] += 1;
        }
        self.used += 1;
        let id = self.first_free;
        if id == NIL {
            return self.append(entry);
        }
        let place = &mut self.entries[id as usize];
        self.first_free = place.next;
        *place = entry;
        self.fetch(self.first_free);
        id
    }

    /// Uses an entry for the first time.
    fn append(&mut self, entry: Entry) -> u32 {
        let id = self.ids().end;
        assert!(id < self.capacity, "there is room");
        self.entries.push(entry);
        self.fetch(id + 1);
        id
    }

    /// Frees an entry.
    pub(crate) fn remove(&mut self, id: u32) {
        let entry = &mut self.entries[id as usize];
        if let Some(TenantId(tenant)) = entry.tenant() {
            self.held[usize::from(tenant)] -= 1;
        }
        *entry = Entry { previous: NIL, next: self.first_free, kind: Kind::Free };
        self.first_free = id;
        self.used -= 1;
    }

    pub(crate) fn entry(&self, id: u32) -> &Entry {
        &self.entries[id as usize]
    }

    /// Has an entry fetched, if it is one.
    #[inline]
    pub(crate) fn fetch(&self, id: u32) {
        fetch(self.entries.as_ptr().wrapping_add(id as usize));
    }

    pub(crate) fn get(&self, id: u32) -> Option<&Entry> {
        self.entries.get(id as usize)
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize)
    }

    /// Returns the entries, for the lists that go through them.
    pub(crate) fn entries_mut(&mut self) -> &mut [Entry] {
        &mut self.entries
    }

    /// Returns the entries from `from` on, `span` at most.
    pub(crate) fn range(&self, from: u32, span: u32) -> impl Iterator<Item = (u32, &Entry)> {
        let from = (from as usize).min(self.entries.len());
        let to = from.saturating_add(span as usize).min(self.entries.len());
        (0..).skip(from).zip(&self.entries[from..to])
    }

    pub(crate) fn session(&self, id: SessionId) -> &Session {
        match &self.entry(id.0).kind {
            Kind::Session(session) => session,
            Kind::Free | Kind::Anchor(_) => panic!("entry {} holds no session", id.0),
        }
    }

    pub(crate) fn session_mut(&mut self, id: SessionId) -> &mut Session {
        match &mut self.entries[id.0 as usize].kind {
            Kind::Session(session) => session,
            Kind::Free | Kind::Anchor(_) => panic!("entry {} holds no session", id.0),
        }
    }

    pub(crate) fn anchor(&self, id: u32) -> &Anchor {
        match &self.entry(id).kind {
            Kind::Anchor(anchor) => anchor,
            Kind::Free | Kind::Session(_) => panic!("entry {id} holds no anchor"),
        }
    }

    pub(crate) fn anchor_mut(&mut self, id: u32) -> &mut Anchor {
        match &mut self.entries[id as usize].kind {
            Kind::Anchor(anchor) => anchor,
            Kind::Free | Kind::Session(_) => panic!("entry {id} holds no anchor"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_freed_is_used_before_what_never_was_and_memory_stays_where_it_is() {
        let mut slab = Slab::new(3);
        let memory = slab.memory();
        assert_eq!((slab.insert(Kind::Free), slab.insert(Kind::Free), slab.room()), (0, 1, 1));
        slab.remove(0);
        assert_eq!((slab.insert(Kind::Free), slab.insert(Kind::Free), slab.room()), (0, 2, 0));
        assert_eq!((slab.memory(), slab.capacity()), (memory, 3));
        slab.remove(1);
        slab.remove(2);
        assert_eq!((slab.insert(Kind::Free), slab.insert(Kind::Free)), (2, 1), "the last one first");
    }

    #[test]
    #[should_panic(expected = "there is room")]
    fn a_full_slab_takes_nothing() {
        let mut slab = Slab::new(1);
        slab.insert(Kind::Free);
        slab.insert(Kind::Free);
    }
}

//! Looks keys up side by side, before their packets' turn.
//!
//! A key is found in two steps, and in a large table each waits for memory: the index, then the entry. Whoever has
//! several keys takes each step for all of them before the next, and waits once instead of once for each. Nothing
//! that is found so is certain until it is confirmed: the table may change in between.

use crate::anchor::pod_key;
use crate::flow::{Direction, Key};
use crate::index::{NOWHERE, entry_under};
use crate::session::{Session, SessionId};
use crate::slab::Kind;
use crate::table::Conntrack;

/// Hash of a key in one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyHash(u32);

/// What the index holds where the search for a key begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot(u64);

/// The entry that a key most probably leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate(u32);

impl Default for Candidate {
    fn default() -> Self {
        Self(NOWHERE)
    }
}

impl From<SessionId> for Candidate {
    fn from(session: SessionId) -> Self {
        Self(session.0)
    }
}

impl Candidate {
    /// Tells whether there is none.
    #[inline]
    pub fn is_none(self) -> bool {
        self.0 == NOWHERE
    }
}

impl Conntrack {
    /// Returns the hash of a key.
    #[inline]
    pub fn hash_of(&self, key: &Key) -> KeyHash {
        KeyHash(self.hash(key))
    }

    /// Returns the hash of what a packet from a pod will ask for if it opens a session: the pod.
    pub fn hash_of_pod(&self, key: &Key) -> KeyHash {
        KeyHash(self.hash(&pod_key(key.tenant(), key.source())))
    }

    /// Reads the index where the search for a key begins.
    #[inline]
    pub fn first_slot(&self, hash: KeyHash) -> Slot {
        Slot(self.index.slot(hash.0))
    }

    /// Returns where a key leads, if it leads anywhere: the first entry of the same hash. `slot` is where its search
    /// begins.
    #[inline]
    pub fn candidate(&self, hash: KeyHash, slot: Slot) -> Candidate {
        let entry = entry_under(hash.0, slot.0).or_else(|| Some(self.index.find(hash.0, |_| true)?.entry));
        Candidate(entry.unwrap_or(NOWHERE))
    }

    /// Reads an entry; what it returns says nothing.
    #[inline]
    pub fn touch_entry(&self, candidate: Candidate) -> u32 {
        self.slab.get(candidate.0).map_or(0, |entry| entry.next)
    }

    /// Returns the session under the key of a packet, if the candidate is it. One that is not may still be under the key.
    #[inline]
    pub fn confirm(
        &mut self,
        candidate: Candidate,
        key: &Key,
        direction: Direction,
    ) -> Option<(SessionId, &mut Session)> {
        match &mut self.slab.get_mut(candidate.0)?.kind {
            Kind::Session(session) if session.key(direction) == *key => {
                Some((SessionId(candidate.0), session))
            }
            Kind::Session(_) | Kind::Anchor(_) | Kind::Free => None,
        }
    }
}

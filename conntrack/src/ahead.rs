//! Looks keys up side by side, before their packets' turn.
//!
//! A key is found in two steps, and in a large table each waits for memory: the index, then the entry. Whoever has
//! several keys takes each step for all of them before the next, and waits once instead of once for each. Nothing
//! that is found so is certain until it is confirmed: the table may change in between.

use crate::flow::{Direction, Key};
use crate::session::{Session, SessionId};
use crate::slab::Kind;
use crate::table::Conntrack;

/// Hash of a key in one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyHash(u32);

/// The entry that a key most probably leads to, or any other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate(u32);

impl Conntrack {
    /// Returns the hash of a key.
    #[inline]
    pub fn hash_of(&self, key: &Key) -> KeyHash {
        KeyHash(self.hash(key))
    }

    /// Reads the index where the search for a key begins; what it returns says nothing.
    #[inline]
    pub fn touch_index(&self, hash: KeyHash) -> u64 {
        self.index.touch(hash.0)
    }

    /// Returns where a key leads, if it leads anywhere: the first entry of the same hash.
    #[inline]
    pub fn candidate(&self, hash: KeyHash) -> Candidate {
        Candidate(self.index.find(hash.0, |_| true).map_or(0, |place| place.entry))
    }

    /// Reads an entry; what it returns says nothing.
    #[inline]
    pub fn touch_entry(&self, candidate: Candidate) -> u32 {
        self.slab.entry(candidate.0).next
    }

    /// Returns the session under the key of a packet, if the candidate is it. One that is not may still be under the key.
    #[inline]
    pub fn confirm(
        &mut self,
        candidate: Candidate,
        key: &Key,
        direction: Direction,
    ) -> Option<(SessionId, &mut Session)> {
        match &mut self.slab.entry_mut(candidate.0).kind {
            Kind::Session(session) if session.key(direction) == *key => {
                Some((SessionId(candidate.0), session))
            }
            Kind::Session(_) | Kind::Anchor(_) | Kind::Free => None,
        }
    }
}

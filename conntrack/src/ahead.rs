//! Looks keys up side by side, before their packets' turn.
//!
//! A key is found in two steps, and in a large table each waits for memory: the index, then the entry. Whoever has
//! several keys has what a step needs fetched for all of them before the step, and waits little. Nothing
//! that is found so is certain until it is confirmed: the table may change in between.

use std::net::Ipv4Addr;

use crate::anchor::Role;
use crate::flow::{Direction, Key};
use crate::index::NOWHERE;
use crate::session::{Session, SessionId};
use crate::slab::Kind;
use crate::table::Conntrack;

/// Hash of a key in one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyHash(u32);

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
        KeyHash(self.hash_of_inside(key.tenant(), key.source()))
    }

    /// Has the place fetched where the search for a key begins.
    #[inline]
    pub fn fetch_slot(&self, hash: KeyHash) {
        self.index.fetch(hash.0);
    }

    /// Returns where a key leads, if it leads anywhere: the first entry of the same hash.
    #[inline]
    pub fn candidate(&self, hash: KeyHash) -> Candidate {
        Candidate(self.index.first(hash.0))
    }

    /// Has an entry fetched.
    #[inline]
    pub fn fetch_entry(&self, candidate: Candidate) {
        self.slab.fetch(candidate.0);
    }

    /// Returns the egress address of a pod, if the candidate is one.
    pub(crate) fn paired_with(&self, candidate: Candidate) -> Option<Ipv4Addr> {
        match &self.slab.get(candidate.0)?.kind {
            Kind::Anchor(anchor) if anchor.role == Role::Pod => Some(anchor.outside),
            Kind::Anchor(_) | Kind::Session(_) | Kind::Free => None,
        }
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

/// Asks the processor to fetch what lies somewhere, and does not wait for it. Where nothing lies nothing happens.
#[inline(always)]
pub(crate) fn fetch<T>(place: *const T) {
    branches::prefetch_read_data::<T, 0>(place);
}

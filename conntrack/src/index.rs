//! Open-addressing index from keys to slab entries: linear probing, backward-shift deletion, no tombstones.

use std::ops::Range;

use crate::ahead::fetch;
use crate::flow::Direction;

/// Where a key leads: to an entry, by one of its two keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Entry of the table.
    pub entry: u32,
    /// Which key of the entry.
    pub direction: Direction,
}

/// The index. Holds hashes, not keys; the caller compares keys.
#[derive(Debug)]
pub struct Index {
    /// 32 bits of hash above the place plus one; 0 is empty.
    slots: Vec<u64>,
    mask: usize,
}

impl Index {
    /// Makes an index that both keys of `sessions` entries fill to two thirds at most.
    pub fn new(sessions: u32) -> Self {
        let slots = (sessions as usize * 3).next_power_of_two();
        Self { slots: vec![0; slots], mask: slots - 1 }
    }

    /// Returns where they lie.
    pub fn memory(&self) -> Range<*const u8> {
        let Range { start, end } = self.slots.as_ptr_range();
        start.cast()..end.cast()
    }

    /// Returns the memory it takes, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.slots.len() * size_of::<u64>()
    }

    /// Has the slot fetched where the search for `hash` begins.
    #[inline]
    pub(crate) fn fetch(&self, hash: u32) {
        fetch(self.slots.as_ptr().wrapping_add(hash as usize & self.mask));
    }

    /// Returns the first entry under `hash`; [`NOWHERE`] when there is none.
    #[inline]
    pub(crate) fn first(&self, hash: u32) -> u32 {
        let mut at = hash as usize & self.mask;
        loop {
            let slot = self.slots[at];
            if hash_of(slot) == hash || slot == 0 {
                return place_of(slot).entry;
            }
            at = (at + 1) & self.mask;
        }
    }

    /// Returns the place under `hash` that `is_match` accepts.
    pub fn find(&self, hash: u32, is_match: impl Fn(Place) -> bool) -> Option<Place> {
        let mut at = hash as usize & self.mask;
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return None;
            }
            if hash_of(slot) == hash && is_match(place_of(slot)) {
                return Some(place_of(slot));
            }
            at = (at + 1) & self.mask;
        }
    }

    /// Adds a place whose key is not in the index.
    pub fn insert(&mut self, hash: u32, place: Place) {
        let mut at = hash as usize & self.mask;
        while self.slots[at] != 0 {
            at = (at + 1) & self.mask;
        }
        self.slots[at] = encode(hash, place);
    }

    /// Removes a place.
    ///
    /// # Panics
    /// When it is not there.
    pub fn remove(&mut self, hash: u32, place: Place) {
        let target = encode(hash, place);
        let mut hole = hash as usize & self.mask;
        while self.slots[hole] != target {
            assert!(self.slots[hole] != 0, "a place that is removed was inserted before");
            hole = (hole + 1) & self.mask;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & self.mask;
            let slot = self.slots[at];
            if slot == 0 {
                break;
            }
            let home = hash_of(slot) as usize & self.mask;
            if (at.wrapping_sub(home) & self.mask) >= (at.wrapping_sub(hole) & self.mask) {
                self.slots[hole] = slot;
                hole = at;
            }
        }
        self.slots[hole] = 0;
    }
}

fn encode(hash: u32, place: Place) -> u64 {
    let direction = match place.direction {
        Direction::Outbound => 0,
        Direction::Inbound => 1,
    };
    u64::from(hash) << 32 | (u64::from(place.entry) * 2 + direction + 1)
}

/// An entry that no table has. An empty slot leads there.
pub(crate) const NOWHERE: u32 = u32::MAX >> 1;

fn hash_of(slot: u64) -> u32 {
    (slot >> 32) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "the low half of a slot is 32 bits")]
fn place_of(slot: u64) -> Place {
    let code = (slot as u32).wrapping_sub(1);
    let direction = if code & 1 == 0 { Direction::Outbound } else { Direction::Inbound };
    Place { entry: code >> 1, direction }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_map(operations in prop::collection::vec((any::<bool>(), 0u32..48), 0..400)) {
            // Few distinct hashes that wrap around the end, so that runs collide and cross it.
            let hash_for = |session: u32| u32::MAX - session % 7;
            let mut index = Index::new(32);
            let mut model = HashMap::new();
            for (insert, session) in operations {
                let place = Place { entry: session, direction: Direction::Inbound };
                if insert && !model.contains_key(&session) && model.len() < 64 {
                    index.insert(hash_for(session), place);
                    model.insert(session, place);
                } else if !insert && model.remove(&session).is_some() {
                    index.remove(hash_for(session), place);
                }
                for session in 0..48 {
                    let found = index.find(hash_for(session), |place| place.entry == session);
                    prop_assert_eq!(found, model.get(&session).copied());
                }
            }
        }
    }
}

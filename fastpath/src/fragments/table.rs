//! All datagrams of one worker: found by key, forgotten oldest first.

use ahash::RandomState;
use conntrack::Tick;

use super::datagram::{Datagram, DatagramKey};

const NIL: u32 = u32::MAX;

/// A datagram's place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramId(u32);

/// The datagrams of one worker. All memory is taken by [`Datagrams::new`].
#[derive(Debug)]
pub struct Datagrams {
    slots: Vec<Slot>,
    /// First datagram of each bucket; their number is a power of two.
    buckets: Vec<u32>,
    first_free: u32,
    oldest: u32,
    newest: u32,
    len: u32,
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    datagram: Option<Datagram>,
    /// Next in the bucket, or next free one.
    next: u32,
    older: u32,
    newer: u32,
}

const _: () = assert!(size_of::<Slot>() <= 184, "the doc of `Limits::WORKER` counts on it");

impl Datagrams {
    /// Makes room for `capacity` datagrams.
    pub fn new(capacity: u32) -> Self {
        let next = |slot: u32| if slot + 1 < capacity { slot + 1 } else { NIL };
        let slot = |slot| Slot { datagram: None, next: next(slot), older: NIL, newer: NIL };
        Self {
            slots: (0..capacity).map(slot).collect(),
            buckets: vec![NIL; capacity.next_power_of_two() as usize],
            first_free: if capacity > 0 { 0 } else { NIL },
            oldest: NIL,
            newest: NIL,
            len: 0,
            hasher: RandomState::default(),
        }
    }

    /// Returns the datagram with this key.
    pub fn find(&self, key: &DatagramKey) -> Option<DatagramId> {
        let mut next = self.buckets[self.bucket(key)];
        while let Some(slot) = self.slots.get(next as usize) {
            if slot.datagram.as_ref().is_some_and(|datagram| datagram.key == *key) {
                return Some(DatagramId(next));
            }
            next = slot.next;
        }
        None
    }

    /// Begins a datagram whose key is not there yet and that is forgotten no earlier than all others; none
    /// when the table is full.
    pub fn begin(&mut self, key: DatagramKey, deadline: Tick) -> Option<DatagramId> {
        let id = self.first_free;
        let bucket = self.bucket(&key);
        let slot = self.slots.get_mut(id as usize)?;
        self.first_free = slot.next;
        *slot = Slot {
            datagram: Some(Datagram::new(key, deadline)),
            next: std::mem::replace(&mut self.buckets[bucket], id),
            older: std::mem::replace(&mut self.newest, id),
            newer: NIL,
        };
        match slot.older {
            NIL => self.oldest = id,
            older => self.slots[older as usize].newer = id,
        }
        self.len += 1;
        Some(DatagramId(id))
    }

    /// Returns the number of datagrams.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Tells whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns a datagram.
    ///
    /// # Panics
    /// When it has ended.
    pub fn get(&self, id: DatagramId) -> &Datagram {
        self.slots[id.0 as usize].datagram.as_ref().expect("the datagram has not ended")
    }

    /// Returns a datagram for changing.
    ///
    /// # Panics
    /// When it has ended.
    pub fn get_mut(&mut self, id: DatagramId) -> &mut Datagram {
        self.slots[id.0 as usize].datagram.as_mut().expect("the datagram has not ended")
    }

    /// Returns the datagram that began first.
    pub fn oldest(&self) -> Option<DatagramId> {
        (self.oldest != NIL).then_some(DatagramId(self.oldest))
    }

    /// Ends a datagram.
    ///
    /// # Panics
    /// When it has ended already.
    pub fn end(&mut self, id: DatagramId) {
        let DatagramId(id) = id;
        self.unlink(id);
        let Slot { older, newer, .. } = self.slots[id as usize];
        match older {
            NIL => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
        match newer {
            NIL => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        let next = std::mem::replace(&mut self.first_free, id);
        self.slots[id as usize] = Slot { datagram: None, next, older: NIL, newer: NIL };
        self.len -= 1;
    }

    /// Takes a datagram out of its bucket.
    fn unlink(&mut self, id: u32) {
        let bucket = self.bucket(&self.get(DatagramId(id)).key);
        let behind = self.slots[id as usize].next;
        let mut place = &mut self.buckets[bucket];
        while *place != id {
            let before = *place;
            place = &mut self.slots[before as usize].next;
        }
        *place = behind;
    }

    fn bucket(&self, key: &DatagramKey) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash will do")]
        let hash = self.hasher.hash_one(key) as usize;
        hash & (self.buckets.len() - 1)
    }
}

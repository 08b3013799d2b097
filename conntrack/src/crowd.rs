//! Which ports are taken towards the few destinations that nearly all sessions of an egress address go to.
//!
//! Towards most destinations most ports are free, and a few random look-ups in the session index find one. Where
//! that fails, this module keeps a bitmap, so that the last free port is found, or its absence noticed, without
//! asking the index 64,512 times. A destination is crowded only while sessions have half of the worker's ports
//! towards it, so a table for some sessions has room for all crowded destinations that those sessions can make.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ahash::RandomState;

use crate::flow::{FiveTuple, Protocol, TenantId};

const WORDS: usize = 65_536 / 64;

/// What ports are counted towards: an egress address of a tenant, and the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    tenant: TenantId,
    outside: Ipv4Addr,
    remote: Ipv4Addr,
    remote_port: u16,
    protocol: Protocol,
}

impl Destination {
    /// Returns the destination of sessions with this outside tuple.
    pub fn of(tenant: TenantId, outside_tuple: &FiveTuple) -> Self {
        Self {
            tenant,
            outside: outside_tuple.source,
            remote: outside_tuple.destination,
            remote_port: outside_tuple.destination_port,
            protocol: outside_tuple.protocol,
        }
    }
}

/// The ports that may not be handed out towards one destination.
#[derive(Debug)]
struct TakenPorts {
    words: Box<[u64; WORDS]>,
    sessions: u32,
}

/// The crowded destinations of one worker. All memory is taken by [`Crowds::new`].
#[derive(Debug)]
pub struct Crowds {
    by_destination: HashMap<Destination, TakenPorts, RandomState>,
    spare: Vec<Box<[u64; WORDS]>>,
    /// Sessions towards a destination under which its bitmap is given up.
    sparse: u32,
}

impl Crowds {
    /// Makes room for every destination that can be crowded at once by `sessions` sessions, when `ports` ports
    /// may be handed out towards each.
    pub fn new(sessions: u32, ports: u32, hasher: RandomState) -> Self {
        let sparse = (ports / 2).max(1);
        let room = sessions as usize / sparse as usize + 1;
        Self {
            sparse,
            by_destination: HashMap::with_capacity_and_hasher(room, hasher),
            spare: (0..room).map(|_| Box::new([0; WORDS])).collect(),
        }
    }

    /// Returns the memory it takes for bitmaps, in bytes.
    pub fn memory_bytes(&self) -> usize {
        (self.spare.len() + self.by_destination.len()) * size_of::<[u64; WORDS]>()
    }

    /// Begins to keep a bitmap for a destination; `is_taken` is asked once for each port, and says of ports that
    /// may never be handed out that they are taken. Does nothing when there is one, or no room.
    pub fn watch(&mut self, destination: Destination, mut is_taken: impl FnMut(u16) -> Taken) {
        if self.by_destination.contains_key(&destination) {
            return;
        }
        let Some(mut words) = self.spare.pop() else { return };
        let mut sessions = 0;
        for port in 0..=u16::MAX {
            let taken = is_taken(port);
            sessions += u32::from(taken == Taken::BySession);
            set(&mut words, port, taken != Taken::No);
        }
        self.by_destination.insert(destination, TakenPorts { words, sessions });
    }

    /// Returns a port of `class` that is free, the first from `start` on, going round; the outer option tells
    /// whether the destination has a bitmap at all.
    pub fn free_port(
        &self,
        destination: &Destination,
        class: &RangeInclusive<u16>,
        start: u16,
    ) -> Option<Option<u16>> {
        let taken = self.by_destination.get(destination)?;
        let after = first_free(&taken.words, start, *class.end());
        Some(after.or_else(|| first_free(&taken.words, *class.start(), start)))
    }

    /// Notes that a session took a port.
    pub fn take(&mut self, destination: &Destination, port: u16) {
        if let Some(taken) = self.by_destination.get_mut(destination) {
            set(&mut taken.words, port, true);
            taken.sessions += 1;
        }
    }

    /// Notes that a session gave a port back.
    pub fn give_back(&mut self, destination: &Destination, port: u16) {
        let Some(taken) = self.by_destination.get_mut(destination) else { return };
        set(&mut taken.words, port, false);
        taken.sessions -= 1;
        if taken.sessions < self.sparse
            && let Some(sparse) = self.by_destination.remove(destination)
        {
            self.spare.push(sparse.words);
        }
    }

    /// Tells whether no destination is crowded, which is nearly always so.
    pub fn is_empty(&self) -> bool {
        self.by_destination.is_empty()
    }
}

/// Why a port may not be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It may.
    No,
    /// A session has it.
    BySession,
    /// It is another worker's.
    ByOthers,
}

fn set(words: &mut [u64; WORDS], port: u16, is_taken: bool) {
    let (word, bit) = (&mut words[usize::from(port / 64)], 1 << (port % 64));
    if is_taken {
        *word |= bit;
    } else {
        *word &= !bit;
    }
}

/// Returns the first free port from `low` to `high`.
fn first_free(words: &[u64; WORDS], low: u16, high: u16) -> Option<u16> {
    let mut beyond = u64::MAX << (low % 64);
    for word in low / 64..=high / 64 {
        let free = !words[usize::from(word)] & beyond;
        if free != 0 {
            let bit = u16::try_from(free.trailing_zeros()).expect("a bit number is below 64");
            return Some(word * 64 + bit).filter(|port| *port <= high);
        }
        beyond = u64::MAX;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn destination() -> Destination {
        let tuple = FiveTuple {
            source: Ipv4Addr::new(192, 168, 55, 113),
            destination: Ipv4Addr::new(192, 168, 55, 13),
            source_port: 0,
            destination_port: 53,
            protocol: Protocol::Udp,
        };
        Destination::of(TenantId(0), &tuple)
    }

    proptest! {
        #[test]
        fn the_first_free_port_is_found_going_round(
            free in prop::collection::btree_set(any::<u16>(), 0..6),
            start in 1024u16..,
        ) {
            let mut crowds = Crowds::new(1, 64_512, RandomState::with_seeds(1, 2, 3, 4));
            crowds.watch(destination(), |port| if free.contains(&port) { Taken::No } else { Taken::BySession });
            let in_class = || free.iter().copied().filter(|port| *port >= 1024);
            let expected = in_class().find(|port| *port >= start).or_else(|| in_class().next());
            prop_assert_eq!(crowds.free_port(&destination(), &(1024..=65535), start), Some(expected));
        }
    }

    #[test]
    fn a_bitmap_is_given_up_when_its_destination_is_sparse_and_used_again() {
        let mut crowds = Crowds::new(30_000, 64_512, RandomState::with_seeds(1, 2, 3, 4));
        let memory = crowds.memory_bytes();
        for _ in 0..3 {
            crowds
                .watch(destination(), |port| if port < 40_000 { Taken::BySession } else { Taken::ByOthers });
            assert_eq!(crowds.free_port(&destination(), &(1024..=65535), 5000), Some(None));
            for port in 0..40_000 {
                crowds.give_back(&destination(), port);
            }
            assert!(crowds.is_empty());
            assert_eq!(crowds.free_port(&destination(), &(1024..=65535), 5000), None);
            assert_eq!(crowds.memory_bytes(), memory);
        }
    }
}

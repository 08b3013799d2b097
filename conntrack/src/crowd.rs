//! Which ports are taken towards the few destinations that nearly all sessions of an egress address go to.
//!
//! Towards most destinations most ports are free, and a few random look-ups in the session index find one. Where
//! that fails, this module keeps a bitmap, so that the last free port is found, or its absence noticed, without
//! asking the index 64,512 times. What the index says is learned piece by piece, so that no packet waits for all
//! of it. A destination is crowded only while sessions have half of the worker's ports towards it, so a table for
//! some sessions has room for all crowded destinations that those sessions can make.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ahash::RandomState;

pub use crate::destination::Destination;
use crate::flow::TenantId;

const PORTS: u32 = 65_536;
const WORDS: usize = PORTS as usize / 64;

/// What is known of the ports towards one destination.
#[derive(Debug)]
struct TakenPorts {
    /// A bit for each port that may not be handed out or is not known.
    words: Box<[u64; WORDS]>,
    /// The port that is learned next.
    next: u16,
    /// Ports that are not known, from `next` on, going round.
    unknown: u32,
    /// Known ports that sessions have.
    sessions: u32,
    /// The turn in which some were last learned.
    turn: u64,
}

impl TakenPorts {
    fn knows(&self, port: u16) -> bool {
        u32::from(port.wrapping_sub(self.next)) >= self.unknown
    }
}

/// The crowded destinations of one worker. All memory is taken by [`Crowds::new`].
#[derive(Debug)]
pub struct Crowds {
    by_destination: HashMap<Destination, TakenPorts, RandomState>,
    spare: Vec<Box<[u64; WORDS]>>,
    /// Sessions towards a destination under which its bitmap is given up.
    sparse: u32,
    /// Counts the pieces that were learned.
    turn: u64,
}

impl Crowds {
    /// Makes room for every destination that can be crowded at once by `sessions` sessions, when `ports` ports
    /// may be handed out towards each.
    pub fn new(sessions: u32, ports: u32, hasher: RandomState) -> Self {
        let sparse = (ports / 2).max(1);
        let room = sessions as usize / sparse as usize + 1;
        Self {
            sparse,
            // A map that is never more than half full tidies up in place: it does not grow after this.
            by_destination: HashMap::with_capacity_and_hasher(2 * room, hasher),
            spare: (0..room).map(|_| Box::new([0; WORDS])).collect(),
            turn: 0,
        }
    }

    /// Returns the memory it takes for bitmaps, in bytes.
    pub fn memory_bytes(&self) -> usize {
        (self.spare.len() + self.by_destination.len()) * size_of::<[u64; WORDS]>()
    }

    /// Begins to watch a destination, of whose ports nothing is known yet, and tells whether it is watched now.
    ///
    /// Learning will begin at port `first`: a random one, or else the ports that are handed out meanwhile can be
    /// guessed (RFC 6056). Without room, the destination that has waited longest to be learned to its end, or is
    /// not crowded, is given up; there is one as long as each counted port is a session of its own.
    pub fn begin(&mut self, destination: Destination, first: u16) -> bool {
        if self.by_destination.contains_key(&destination) {
            return true;
        }
        let Some(mut words) = self.spare.pop().or_else(|| self.give_up_one()) else { return false };
        words.fill(u64::MAX);
        self.turn += 1;
        let ports = TakenPorts { words, next: first, unknown: PORTS, sessions: 0, turn: self.turn };
        self.by_destination.insert(destination, ports);
        true
    }

    /// Learns the next `bound` ports of a destination, if it is watched and so many are left; `is_taken` is asked
    /// once for each, and says of ports that may never be handed out that they are taken.
    pub fn learn(&mut self, destination: &Destination, bound: u32, mut is_taken: impl FnMut(u16) -> Taken) {
        let Some(ports) = self.by_destination.get_mut(destination) else { return };
        self.turn += 1;
        ports.turn = self.turn;
        for _ in 0..bound.min(ports.unknown) {
            let taken = is_taken(ports.next);
            ports.sessions += u32::from(taken == Taken::BySession);
            set(&mut ports.words, ports.next, taken != Taken::No);
            ports.next = ports.next.wrapping_add(1);
            ports.unknown -= 1;
        }
    }

    /// Looks for a port of `class` that is free, the first from `start` on, going round.
    pub fn free_port(&self, destination: &Destination, class: &RangeInclusive<u16>, start: u16) -> FreePort {
        let Some(ports) = self.by_destination.get(destination) else { return FreePort::Unwatched };
        let after = first_free(&ports.words, start, *class.end());
        match after.or_else(|| first_free(&ports.words, *class.start(), start)) {
            Some(port) => FreePort::Port(port),
            None if ports.unknown == 0 => FreePort::None,
            None => FreePort::Unknown,
        }
    }

    /// Notes that a session took a port.
    pub fn take(&mut self, destination: &Destination, port: u16) {
        if let Some(ports) = self.by_destination.get_mut(destination)
            && set(&mut ports.words, port, true)
        {
            ports.sessions += 1;
        }
    }

    /// Notes that a port which a session took is free again.
    pub fn give_back(&mut self, destination: &Destination, port: u16) {
        let Some(ports) = self.by_destination.get_mut(destination) else { return };
        if ports.knows(port) && set(&mut ports.words, port, false) {
            ports.sessions -= 1;
        }
        if ports.unknown == 0 && ports.sessions < self.sparse {
            let words = self.by_destination.remove(destination).map(|ports| ports.words);
            self.spare.extend(words);
        }
    }

    /// Gives up what it knows of mappings' ports when a session's port is free again, and the other way round. Where a
    /// tenant's mapping has changed, ports of both kinds are in use beside each other, and a bitmap has those of the
    /// other kind as taken without knowing when they are free.
    pub fn forget_other_kind(&mut self, destination: &Destination) {
        let Self { by_destination, spare, .. } = self;
        let is_other = |other: &Destination| {
            (other.tenant, other.outside, other.protocol)
                == (destination.tenant, destination.outside, destination.protocol)
                && other.is_any() != destination.is_any()
        };
        spare.extend(by_destination.extract_if(|other, _| is_other(other)).map(|(_, ports)| ports.words));
    }

    /// Notes that ports of an egress address came to this worker, towards all destinations.
    pub fn open_block(&mut self, tenant: TenantId, outside: Ipv4Addr, block: &RangeInclusive<u16>) {
        self.set_block(tenant, outside, block, false);
    }

    /// Notes that ports of an egress address left this worker, which has no session with one of them.
    pub fn close_block(&mut self, tenant: TenantId, outside: Ipv4Addr, block: &RangeInclusive<u16>) {
        self.set_block(tenant, outside, block, true);
    }

    /// Tells whether no destination is watched, which is nearly always so.
    pub fn is_empty(&self) -> bool {
        self.by_destination.is_empty()
    }

    fn set_block(
        &mut self,
        tenant: TenantId,
        outside: Ipv4Addr,
        block: &RangeInclusive<u16>,
        is_taken: bool,
    ) {
        for (destination, ports) in &mut self.by_destination {
            if (destination.tenant, destination.outside) != (tenant, outside) {
                continue;
            }
            for port in block.clone() {
                if ports.knows(port) {
                    set(&mut ports.words, port, is_taken);
                }
            }
        }
    }

    fn give_up_one(&mut self) -> Option<Box<[u64; WORDS]>> {
        let may_go = |ports: &TakenPorts| ports.unknown > 0 || ports.sessions < self.sparse;
        let watched = self.by_destination.iter().filter(|(_, ports)| may_go(ports));
        let (destination, _) = watched.min_by_key(|(_, ports)| ports.turn)?;
        let destination = *destination;
        Some(self.by_destination.remove(&destination)?.words)
    }
}

/// What is known of a free port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreePort {
    /// This one is free.
    Port(u16),
    /// All are known, and none is free.
    None,
    /// None is free among those that are known.
    Unknown,
    /// The destination is not watched.
    Unwatched,
}

/// Why a port may not be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It may.
    No,
    /// A session has it, or had it and it rests.
    BySession,
    /// It is another worker's.
    ByOthers,
}

/// Writes one bit and tells whether that changed it.
fn set(words: &mut [u64; WORDS], port: u16, is_taken: bool) -> bool {
    let (word, bit) = (&mut words[usize::from(port / 64)], 1 << (port % 64));
    let was_taken = *word & bit != 0;
    if is_taken != was_taken {
        *word ^= bit;
    }
    is_taken != was_taken
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
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::flow::{FiveTuple, Protocol};

    const ANY_PORT: RangeInclusive<u16> = 1024..=65535;

    fn egress(host: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 55, host)
    }

    fn destination(remote_port: u16) -> Destination {
        let tuple = FiveTuple {
            source: egress(113),
            destination: egress(13),
            source_port: 0,
            destination_port: remote_port,
            protocol: Protocol::Udp,
        };
        Destination::of(TenantId(0), &tuple)
    }

    fn crowds(sessions: u32, ports: u32) -> Crowds {
        Crowds::new(sessions, ports, RandomState::with_seeds(1, 2, 3, 4))
    }

    proptest! {
        #[test]
        fn the_first_free_port_is_found_going_round(
            free in prop::collection::btree_set(any::<u16>(), 0..6),
            first: u16,
            start in 1024u16..,
        ) {
            let mut crowds = crowds(1, 64_512);
            prop_assert!(crowds.begin(destination(53), first));
            crowds.learn(&destination(53), PORTS, |port| match free.contains(&port) {
                true => Taken::No,
                false => Taken::BySession,
            });
            let in_class = || free.iter().copied().filter(|port| ANY_PORT.contains(port));
            let expected = in_class().find(|port| *port >= start).or_else(|| in_class().next());
            let expected = expected.map_or(FreePort::None, FreePort::Port);
            prop_assert_eq!(crowds.free_port(&destination(53), &ANY_PORT, start), expected);
        }
    }

    #[test]
    fn a_bitmap_is_given_up_when_its_destination_is_sparse_and_used_again() {
        let mut crowds = crowds(30_000, 64_512);
        let memory = crowds.memory_bytes();
        for _ in 0..3 {
            crowds.begin(destination(53), 7);
            crowds.learn(&destination(53), PORTS, |port| match port {
                0..40_000 => Taken::BySession,
                40_000.. => Taken::ByOthers,
            });
            assert_eq!(crowds.free_port(&destination(53), &ANY_PORT, 5000), FreePort::None);
            for port in 0..40_000 {
                crowds.give_back(&destination(53), port);
            }
            assert!(crowds.is_empty());
            assert_eq!(crowds.free_port(&destination(53), &ANY_PORT, 5000), FreePort::Unwatched);
            assert_eq!(crowds.memory_bytes(), memory);
        }
    }

    #[test]
    fn the_room_of_what_is_not_crowded_is_used_again_without_more_memory() {
        let mut crowds = crowds(5500, 200);
        let (memory, places) = (crowds.memory_bytes(), crowds.by_destination.capacity());
        crowds.begin(destination(1), 0);
        crowds.learn(&destination(1), PORTS, |port| if port < 150 { Taken::BySession } else { Taken::No });
        for remote_port in 2..2000 {
            assert!(crowds.begin(destination(remote_port), 0), "the table has room for {remote_port}");
            crowds.learn(&destination(remote_port), 512, |_| Taken::BySession);
        }
        for (remote_port, expected) in [
            (1, FreePort::Port(1024)),
            (1944, FreePort::Unwatched),
            (1945, FreePort::Unknown),
            (1999, FreePort::Unknown),
        ] {
            assert_eq!(
                crowds.free_port(&destination(remote_port), &ANY_PORT, 1024),
                expected,
                "{remote_port}"
            );
        }
        assert_eq!(crowds.memory_bytes(), memory);
        assert!(crowds.by_destination.capacity() <= places, "the map never grew");
    }

    #[derive(Clone, Debug)]
    enum Event {
        Begin { first: u16 },
        Learn { bound: u32 },
        Take { port: u16 },
        GiveBack { port: u16 },
        Open { block: u16 },
        Close { block: u16 },
    }

    /// Ports of three blocks, of which the class leaves some out at both ends.
    const BLOCKS: std::ops::Range<u16> = 15..18;
    const CLASS: RangeInclusive<u16> = 1000..=1100;

    fn events() -> impl Strategy<Value = Vec<(usize, Event)>> {
        let port =
            || prop::sample::select(vec![960, 999, 1000, 1001, 1023, 1024, 1087, 1088, 1100, 1101, 1151]);
        let event = prop_oneof![
            1 => port().prop_map(|first| Event::Begin { first }),
            3 => prop_oneof![5 => 1u32..80, 1 => Just(PORTS)].prop_map(|bound| Event::Learn { bound }),
            4 => port().prop_map(|port| Event::Take { port }),
            4 => port().prop_map(|port| Event::GiveBack { port }),
            1 => BLOCKS.prop_map(|block| Event::Open { block }),
            1 => BLOCKS.prop_map(|block| Event::Close { block }),
        ];
        prop::collection::vec((0usize..4, event), 1..120)
    }

    /// Two destinations of one egress address, the same address with another tenant, and another address.
    fn watched() -> [Destination; 4] {
        let red = Destination { tenant: TenantId(1), ..destination(53) };
        let other = Destination::any(TenantId(0), egress(114), Protocol::Udp);
        [destination(53), Destination::any(TenantId(0), egress(113), Protocol::Udp), red, other]
    }

    /// Sets: ports of sessions by destination, blocks by egress address, and what was learned.
    #[derive(Default)]
    struct Model {
        sessions: HashSet<(usize, u16)>,
        blocks: HashSet<(TenantId, Ipv4Addr, u16)>,
        learned: HashMap<usize, Learned>,
    }

    struct Learned {
        next: u16,
        count: usize,
        is_known: Vec<bool>,
    }

    impl Model {
        fn taken(&self, at: usize, port: u16) -> Taken {
            let block = port / 64;
            if !BLOCKS.contains(&block) {
                return Taken::ByOthers;
            }
            let Destination { tenant, outside, .. } = watched()[at];
            match (self.blocks.contains(&(tenant, outside, block)), self.sessions.contains(&(at, port))) {
                (false, _) => Taken::ByOthers,
                (true, true) => Taken::BySession,
                (true, false) => Taken::No,
            }
        }

        fn search(&self, at: usize, start: u16) -> FreePort {
            let Some(Learned { count, is_known, .. }) = self.learned.get(&at) else {
                return FreePort::Unwatched;
            };
            let going_round = (start..=*CLASS.end()).chain(*CLASS.start()..start);
            let mut free =
                going_round.filter(|port| is_known[usize::from(*port)] && self.taken(at, *port) == Taken::No);
            match free.next() {
                Some(port) => FreePort::Port(port),
                None if *count == 65_536 => FreePort::None,
                None => FreePort::Unknown,
            }
        }

        fn is_in_use(&self, tenant: TenantId, outside: Ipv4Addr, block: u16) -> bool {
            self.sessions.iter().any(|(at, port)| {
                let destination = watched()[*at];
                (destination.tenant, destination.outside, port / 64) == (tenant, outside, block)
            })
        }

        fn apply(&mut self, crowds: &mut Crowds, at: usize, event: &Event) {
            let destination = watched()[at];
            let Destination { tenant, outside, .. } = destination;
            match *event {
                Event::Begin { first } => {
                    assert!(crowds.begin(destination, first));
                    self.learned.entry(at).or_insert_with(|| Learned {
                        next: first,
                        count: 0,
                        is_known: vec![false; 65_536],
                    });
                }
                Event::Learn { bound } => self.learn(crowds, at, bound),
                Event::Take { port } if self.taken(at, port) == Taken::No => {
                    self.sessions.insert((at, port));
                    crowds.take(&destination, port);
                }
                Event::GiveBack { port } if self.sessions.remove(&(at, port)) => {
                    crowds.give_back(&destination, port);
                    let left = self.sessions.iter().filter(|(of, _)| *of == at).count();
                    if left < 2 && self.learned.get(&at).is_some_and(|learned| learned.count == 65_536) {
                        self.learned.remove(&at);
                    }
                }
                Event::Open { block } if self.blocks.insert((tenant, outside, block)) => {
                    crowds.open_block(tenant, outside, &(block * 64..=block * 64 + 63));
                }
                Event::Close { block } if !self.is_in_use(tenant, outside, block) => {
                    self.blocks.remove(&(tenant, outside, block));
                    crowds.close_block(tenant, outside, &(block * 64..=block * 64 + 63));
                }
                Event::Take { .. } | Event::GiveBack { .. } | Event::Open { .. } | Event::Close { .. } => {}
            }
        }

        fn learn(&mut self, crowds: &mut Crowds, at: usize, bound: u32) {
            let mut asked = Vec::new();
            crowds.learn(&watched()[at], bound, |port| {
                asked.push(port);
                self.taken(at, port)
            });
            let Some(learned) = self.learned.get_mut(&at) else { return assert_eq!(asked, []) };
            assert_eq!(asked.len(), (bound as usize).min(65_536 - learned.count));
            learned.count += asked.len();
            for port in asked {
                assert_eq!(port, learned.next);
                learned.next = learned.next.wrapping_add(1);
                learned.is_known[usize::from(port)] = true;
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_known_is_exact(events in events(), start in CLASS) {
            // Room for all four, which are sparse below two sessions.
            let mut crowds = crowds(6, 4);
            let mut model = Model::default();
            for (at, event) in events {
                model.apply(&mut crowds, at, &event);
                for (at, destination) in watched().iter().enumerate() {
                    prop_assert_eq!(crowds.free_port(destination, &CLASS, start), model.search(at, start));
                }
            }
        }
    }
}

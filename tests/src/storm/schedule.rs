//! What happens when: a pure function of the seed.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// Acts come once in so many events, on average.
const EVENTS_PER_ACT: u32 = 400;

/// A kind of frame that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// A datagram of a pod that the server echoes.
    Datagram,
    /// A TCP segment of a pod, of whatever kind.
    Segment,
    /// An echo request of a pod.
    Echo,
    /// A datagram that opens a session of its own.
    NewFlow,
    /// A packet of a pod to another tenant's egress address.
    Hairpin,
    /// A packet of a pod to the NIC's own MAC, as after stale ARP.
    StaleArp,
    /// A packet from no pod to a tenant's MAC.
    Foreign,
    /// A frame of which something is wrong.
    Malformed,
    /// Fragments of a datagram, not always all of them.
    Fragments,
    /// A packet from outside that nobody asked for.
    Unsolicited,
    /// An ICMP error from outside about a packet that may have been sent.
    Error,
    /// An ARP request or answer of a node.
    Arp,
    /// More frames at once than a ring holds.
    Burst,
    /// More new sessions than there is room for.
    Flood,
}

/// Something that is done to the gateway or around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
    /// A tenant is added over the control socket, or put again as it is.
    AddTenant,
    /// A tenant gets other options.
    ChangeTenant,
    /// A tenant gets other egress addresses.
    ChangeEgress,
    /// A tenant is removed.
    RemoveTenant,
    /// The XDP program's link is detached.
    DetachProgram,
    /// The second line's link is detached.
    DetachGuard,
    /// Another XDP program takes the place of ours.
    ReplaceProgram,
    /// All pins of an interface are removed.
    RemovePins,
    /// An interface is set down for a while.
    LinkDown,
    /// An interface has another name for a while.
    Rename,
    /// An interface has another MTU for a while.
    Mtu,
    /// The kernel forgets all neighbours.
    FlushNeighbours,
    /// The kernel has a wrong MAC for a neighbour for a while.
    WrongNeighbour,
    /// The server has another MAC for a while.
    ServerMac,
    /// The default route is withdrawn for a while.
    WithdrawDefault,
    /// A return route is removed, or leads elsewhere.
    WithdrawReturn,
    /// The daemon is stopped, and started again after a while.
    Restart,
    /// The daemon is killed, and started again after a while.
    Kill,
}

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A frame, or some.
    Traffic(Traffic),
    /// An act.
    Act(Act),
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is.
    pub kind: Kind,
    /// Decides everything else about it.
    pub dice: u64,
}

/// Each kind of frame, and how many of a thousand frames are of it.
const FRAMES: [(Traffic, u32); 14] = [
    (Traffic::Datagram, 350),
    (Traffic::Segment, 90),
    (Traffic::Echo, 40),
    (Traffic::NewFlow, 60),
    (Traffic::Hairpin, 20),
    (Traffic::StaleArp, 120),
    (Traffic::Foreign, 40),
    (Traffic::Malformed, 119),
    (Traffic::Fragments, 40),
    (Traffic::Unsolicited, 70),
    (Traffic::Error, 30),
    (Traffic::Arp, 20),
    (Traffic::Burst, 1),
    (Traffic::Flood, 0),
];

/// Each act, and how often it is in the deck from which acts are drawn.
const DECK: [(Act, usize); 18] = [
    (Act::AddTenant, 8),
    (Act::ChangeTenant, 5),
    (Act::ChangeEgress, 6),
    (Act::RemoveTenant, 4),
    (Act::DetachProgram, 3),
    (Act::DetachGuard, 2),
    (Act::ReplaceProgram, 2),
    (Act::RemovePins, 1),
    (Act::LinkDown, 3),
    (Act::Rename, 2),
    (Act::Mtu, 2),
    (Act::FlushNeighbours, 3),
    (Act::WrongNeighbour, 3),
    (Act::ServerMac, 1),
    (Act::WithdrawDefault, 2),
    (Act::WithdrawReturn, 3),
    (Act::Restart, 2),
    (Act::Kill, 1),
];

/// The events of a storm, one after the other, without an end.
#[derive(Debug)]
pub struct Schedule {
    rng: StdRng,
    deck: VecDeque<Act>,
    acts: &'static [(Act, usize)],
}

impl Schedule {
    /// Returns that of a seed.
    pub fn of(seed: u64) -> Self {
        Self::with(seed, &DECK)
    }

    /// Returns that of a seed with other acts.
    pub fn with(seed: u64, acts: &'static [(Act, usize)]) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), deck: VecDeque::new(), acts }
    }

    fn draw_act(&mut self) -> Act {
        if self.deck.is_empty() {
            let cards = self.acts.iter().flat_map(|(act, count)| std::iter::repeat_n(*act, *count));
            let mut cards: Vec<Act> = cards.collect();
            cards.shuffle(&mut self.rng);
            self.deck = cards.into();
        }
        self.deck.pop_front().expect("a deck has cards")
    }

    fn draw_frame(&mut self) -> Traffic {
        if self.rng.random_ratio(1, 10_000) {
            return Traffic::Flood;
        }
        let mut place: u32 = self.rng.random_range(0..1000);
        for (traffic, weight) in FRAMES {
            match place.checked_sub(weight) {
                None => return traffic,
                Some(rest) => place = rest,
            }
        }
        Traffic::Datagram
    }
}

impl Iterator for Schedule {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let kind = match self.rng.random_ratio(1, EVENTS_PER_ACT) {
            true => Kind::Act(self.draw_act()),
            false => Kind::Traffic(self.draw_frame()),
        };
        Some(Event { kind, dice: self.rng.random() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_storm() {
        let first: Vec<Event> = Schedule::of(7).take(5_000).collect();
        assert!(Schedule::of(7).take(5_000).eq(first.iter().copied()));
        assert!(!Schedule::of(8).take(5_000).eq(first));
    }

    #[test]
    fn a_short_storm_has_every_kind_of_event() {
        let kinds: BTreeSet<Kind> = Schedule::of(1).take(50_000).map(|event| event.kind).collect();
        assert_eq!(kinds.len(), FRAMES.len() + DECK.len(), "{kinds:?}");
        assert_eq!(FRAMES.iter().map(|(_, weight)| weight).sum::<u32>(), 1000);
    }
}

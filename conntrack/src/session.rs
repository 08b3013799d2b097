//! One session: its two tuples, its state, and the rewrite that it prepares for each direction.

use std::net::Ipv4Addr;

use crate::Epoch;
use crate::checksum::ChecksumDelta;
use crate::flow::{Direction, FiveTuple, Key, Protocol, Tail, TenantId};
use crate::tcp::{Expected, TcpState};
use crate::time::{Tick, TimeoutClass, Timeouts};

const UDP: u8 = 17;

/// A session, by its slab entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub u32);

/// Both directions of one translated flow.
///
/// Addresses are in such an order, and ports in such, that those of either key lie beside each other and are read at once.
#[derive(Clone, Debug)]
pub struct Session {
    pub(crate) inside: Ipv4Addr,
    pub(crate) remote: Ipv4Addr,
    pub(crate) outside: Ipv4Addr,
    /// Tenant and protocol.
    pub(crate) tail: Tail,
    pub(crate) outside_port: u16,
    pub(crate) remote_port: u16,
    pub(crate) inside_port: u16,
    pub(crate) tcp: TcpState,
    pub(crate) class: TimeoutClass,
    pub(crate) port: PortHolder,
    /// Change of the IPv4 header checksum when outbound.
    pub(crate) header_delta: ChecksumDelta,
    /// Change of the transport checksum when outbound.
    pub(crate) transport_delta: ChecksumDelta,
    pub(crate) epoch: Epoch,
    pub(crate) last_seen: Tick,
    /// Where outbound and inbound packets go next, in the caller's terms.
    pub(crate) next_hops: [u32; 2],
    /// Sequence numbers that the two ends of a TCP connection expect.
    pub(crate) expected: Expected,
}

/// Who holds the outside port of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortHolder {
    /// The session.
    Session,
    /// The session, and it has it from this worker.
    Lender(u16),
    /// The endpoint-independent mapping that the session is of.
    Mapping {
        /// Whether it has a [`crate::anchor::Role::Peer`] for the session's other end.
        has_peer: bool,
    },
}

/// What is written into a packet of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Outbound: the source is replaced; inbound: the destination.
    pub direction: Direction,
    /// New address.
    pub address: Ipv4Addr,
    /// New port, or query identifier.
    pub port: u16,
    /// Change of the IPv4 header checksum, time to live not included.
    pub header_delta: ChecksumDelta,
    /// Change of the TCP or UDP checksum (pseudo-header included) or of the ICMP checksum.
    pub transport_delta: ChecksumDelta,
    /// Where the packet goes next, in the caller's terms.
    pub next_hop: u32,
}

impl Session {
    /// Returns the tenant.
    pub fn tenant(&self) -> TenantId {
        self.tail.tenant()
    }

    #[inline]
    pub(crate) fn protocol(&self) -> Protocol {
        self.tail.protocol().expect("it was made of one")
    }

    /// Tells whether its mapping has a [`crate::anchor::Role::Peer`] for its other end.
    pub(crate) fn has_peer(&self) -> bool {
        self.port == PortHolder::Mapping { has_peer: true }
    }

    /// Returns the tuple of its outbound packets before translation.
    pub fn inside_tuple(&self) -> FiveTuple {
        FiveTuple {
            source: self.inside,
            destination: self.remote,
            source_port: self.inside_port,
            destination_port: self.remote_port,
            protocol: self.protocol(),
        }
    }

    /// Returns the egress address and the port that stand for its inside ones.
    pub fn outside(&self) -> (Ipv4Addr, u16) {
        (self.outside, self.outside_port)
    }

    /// Returns the tuple of its outbound packets after translation.
    pub fn outside_tuple(&self) -> FiveTuple {
        FiveTuple { source: self.outside, source_port: self.outside_port, ..self.inside_tuple() }
    }

    /// Returns the key of its packets in one direction.
    #[inline]
    pub fn key(&self, direction: Direction) -> Key {
        let remote = (self.remote, self.remote_port);
        let tail = self.tail.in_direction(direction);
        match direction {
            Direction::Outbound => Key::between((self.inside, self.inside_port), remote, tail),
            Direction::Inbound => Key::between(remote, (self.outside, self.outside_port), tail),
        }
    }

    /// Returns the rewrite of its packets in one direction.
    pub fn rewrite(&self, direction: Direction) -> Rewrite {
        match direction {
            Direction::Outbound => Rewrite {
                direction,
                address: self.outside,
                port: self.outside_port,
                header_delta: self.header_delta,
                transport_delta: self.transport_delta,
                next_hop: self.next_hops[0],
            },
            Direction::Inbound => Rewrite {
                direction,
                address: self.inside,
                port: self.inside_port,
                header_delta: self.header_delta.inverse(),
                transport_delta: self.transport_delta.inverse(),
                next_hop: self.next_hops[1],
            },
        }
    }

    /// Notes a packet where that takes nothing but its time: a UDP datagram in the span of time that the session was last
    /// seen in. Tells whether it did; else [`crate::Conntrack::touch`] must.
    #[inline]
    pub fn note_datagram(&mut self, direction: Direction, now: Tick, timeouts: &Timeouts) -> bool {
        let is_noted = self.tail.protocol_number() == UDP && self.last_seen.is_in_same_span(now);
        if is_noted && (direction == Direction::Outbound || timeouts.inbound_refreshes) {
            self.last_seen = now;
        }
        is_noted
    }

    /// Returns the epoch under which it was last checked.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the time of its last packet that counted.
    pub fn last_seen(&self) -> Tick {
        self.last_seen
    }

    /// Returns the timeout class that it is in.
    pub fn class(&self) -> TimeoutClass {
        self.class
    }

    /// Returns the state of its TCP connection; none for other protocols.
    pub fn tcp_state(&self) -> Option<TcpState> {
        match self.protocol() {
            Protocol::Tcp => Some(self.tcp),
            Protocol::Udp | Protocol::Icmp | Protocol::Portless(_) => None,
        }
    }
}

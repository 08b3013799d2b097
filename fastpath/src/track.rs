//! Finds the session of a packet, or makes it, and returns its prepared rewrite.

use std::net::Ipv4Addr;

use conntrack::{
    Admission, Conntrack, Direction, FiveTuple, Key, PortShare, Protocol, Refusal, Revision, Rewrite,
    SessionId, TcpSegment, Tick, owner_of_inside, pair_egress,
};

use crate::classify::Class;
use crate::counters::WorkerCounters;
use crate::dataplane::NeighbourRequest;
use crate::parse::{Flow, QuotedPacket, Segment};
use crate::snapshot::{NeighbourId, NextHop, Side, Snapshot};
use crate::stray::refuse_stray;
use crate::verdict::{DropReason, Verdict};

/// Next hop of a session whose neighbour is not resolved.
const UNRESOLVED: u32 = u32::MAX;
/// Next hop of a session that has no route.
const NO_ROUTE: u32 = u32::MAX - 1;

/// What tracking reads and changes.
#[derive(Debug)]
pub struct Tracker<'a> {
    /// Configuration.
    pub snapshot: &'a Snapshot,
    /// Sessions.
    pub conntrack: &'a mut Conntrack,
    /// Counters.
    pub counters: &'a WorkerCounters,
    /// Now.
    pub now: Tick,
}

/// A rewrite and the neighbour that the packet goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// What is written.
    pub rewrite: Rewrite,
    /// Who is next.
    pub neighbour: NeighbourId,
}

impl Tracker<'_> {
    /// Tracks a packet of a flow: one lookup when its session exists.
    ///
    /// # Errors
    /// The verdict on a packet that is not forwarded now.
    pub fn track_flow(&mut self, class: Class, flow: &Flow) -> Result<Forwarding, Verdict> {
        let key = Key::new(class.tenant, class.direction, &flow.tuple);
        let id = match self.find_valid(class, &key) {
            Some(id) if is_expected(class.direction, flow.segment) => id,
            Some(_) => return Err(Verdict::Drop(DropReason::NoSession)),
            None => self.admit_flow(class, flow)?,
        };
        let rewrite = self.conntrack.session(id).rewrite(class.direction);
        let neighbour = self.neighbour_of(&rewrite, &flow.tuple)?;
        let segment = match flow.segment {
            Segment::Tcp(segment) => segment,
            Segment::Udp | Segment::Query | Segment::Reply | Segment::Opaque => TcpSegment::default(),
        };
        self.conntrack.touch(id, class.direction, segment.flags, self.now);
        Ok(Forwarding { rewrite, neighbour })
    }

    /// Tracks an ICMP error by the packet that it quotes. The session is neither refreshed nor ended
    /// (RFC 5508 REQ-6, RFC 5382 REQ-10).
    ///
    /// # Errors
    /// The verdict on an error that is not forwarded now.
    pub fn track_error(&mut self, class: Class, quoted: &QuotedPacket) -> Result<Forwarding, Verdict> {
        let key = Key::new(class.tenant, class.direction, &quoted.flow.tuple.reversed());
        let id = self.find_valid(class, &key).ok_or(Verdict::Drop(DropReason::NoSession))?;
        let rewrite = self.conntrack.session(id).rewrite(class.direction);
        let neighbour = self.neighbour_of(&rewrite, &quoted.flow.tuple.reversed())?;
        Ok(Forwarding { rewrite, neighbour })
    }

    /// Finds a session that the present snapshot allows.
    pub fn find_valid(&mut self, class: Class, key: &Key) -> Option<SessionId> {
        let id = self.conntrack.find(key)?;
        if self.conntrack.session(id).epoch() == self.snapshot.epoch() || self.check_session(class, id) {
            return Some(id);
        }
        None
    }

    /// Checks a session under a new snapshot; ends it if that no longer allows it.
    #[cold]
    fn check_session(&mut self, class: Class, id: SessionId) -> bool {
        let session = self.conntrack.session(id);
        let (inside, outside) = (session.inside_tuple(), session.outside_tuple());
        let is_allowed = self.snapshot.tenant(class.tenant).is_some_and(|tenant| {
            tenant.may_send_from(inside.source) && tenant.egress_addresses.contains(&outside.source)
        });
        if is_allowed {
            let revision = self.revision(&inside);
            self.conntrack.revise(id, revision);
        } else {
            self.counters.tenant(class.tenant).session_ended();
            self.conntrack.remove(id);
        }
        is_allowed
    }

    /// Makes a session for an outbound packet that opens one. Leaves nothing behind when it does not.
    #[cold]
    fn admit_flow(&mut self, class: Class, flow: &Flow) -> Result<SessionId, Verdict> {
        let may_open = class.direction == Direction::Outbound
            && match flow.segment {
                Segment::Tcp(segment) => segment.flags.opens(),
                Segment::Udp | Segment::Query | Segment::Opaque => true,
                Segment::Reply => false,
            };
        if !may_open {
            return Err(refuse_stray(self.snapshot.spec().tcp, class, flow));
        }
        let tenant = self.snapshot.tenant(class.tenant).ok_or(Verdict::Drop(DropReason::UnknownTenant))?;
        let outside = pair_egress(flow.tuple.source, &tenant.egress_addresses)
            .ok_or(Verdict::Drop(DropReason::UnknownTenant))?;
        let revision = self.revision(&flow.tuple);
        self.neighbour(revision.next_hops[0], Side::Outside, flow.tuple.destination)?;
        let admission = Admission { tenant: class.tenant, tuple: flow.tuple, outside, revision };
        let id = self.conntrack.admit(&admission, self.now).map_err(|refusal| {
            Verdict::Reject(match (refusal, flow.tuple.protocol) {
                (Refusal::NoPort, Protocol::Portless(_)) => DropReason::AmbiguousProtocol,
                (Refusal::NoPort, Protocol::Tcp | Protocol::Udp | Protocol::Icmp) => DropReason::NoPort,
                (Refusal::SessionsFull, _) => DropReason::SessionsFull,
            })
        })?;
        self.counters.tenant(class.tenant).session_began();
        Ok(id)
    }

    fn revision(&self, inside: &FiveTuple) -> Revision {
        let hops = [(Side::Outside, inside.destination), (Side::Inside, inside.source)];
        let next_hops = hops.map(|(side, address)| match self.snapshot.next_hop(side, address) {
            NextHop::Resolved(id) => id.0,
            NextHop::Unresolved(_) => UNRESOLVED,
            NextHop::NoRoute => NO_ROUTE,
        });
        Revision { epoch: self.snapshot.epoch(), next_hops }
    }

    /// Returns the neighbour that a packet of a session goes to.
    fn neighbour_of(&self, rewrite: &Rewrite, wire: &FiveTuple) -> Result<NeighbourId, Verdict> {
        let destination = match rewrite.direction {
            Direction::Outbound => wire.destination,
            Direction::Inbound => rewrite.address,
        };
        self.neighbour(rewrite.next_hop, Side::ahead(rewrite.direction), destination)
    }

    fn neighbour(&self, next_hop: u32, side: Side, destination: Ipv4Addr) -> Result<NeighbourId, Verdict> {
        if next_hop < NO_ROUTE {
            Ok(NeighbourId(next_hop))
        } else {
            Err(self.without_neighbour(side, destination))
        }
    }

    /// Returns what becomes of a packet whose session has no neighbour under this snapshot.
    #[cold]
    fn without_neighbour(&self, side: Side, destination: Ipv4Addr) -> Verdict {
        match self.snapshot.next_hop(side, destination) {
            NextHop::Unresolved(address) => Verdict::Wait(NeighbourRequest { side, address }),
            NextHop::NoRoute | NextHop::Resolved(_) => Verdict::refuse(side.other(), DropReason::NoRoute),
        }
    }
}

/// Tells whether a packet of an existing session is one that goes this way: queries out, replies in.
fn is_expected(direction: Direction, segment: Segment) -> bool {
    match (direction, segment) {
        (_, Segment::Tcp(_) | Segment::Udp | Segment::Opaque) => true,
        (Direction::Outbound, Segment::Query) | (Direction::Inbound, Segment::Reply) => true,
        (Direction::Outbound, Segment::Reply) | (Direction::Inbound, Segment::Query) => false,
    }
}

/// Returns the worker that owns a packet: by inside address when outbound, by outside port when inbound.
pub fn owner_of(share: PortShare, class: Class, wire: &FiveTuple) -> u16 {
    match class.direction {
        Direction::Outbound => owner_of_inside(class.tenant, wire.source, share.workers()),
        Direction::Inbound => share.owner(wire.destination_port),
    }
}

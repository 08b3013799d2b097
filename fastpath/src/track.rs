//! Finds the session of a packet, or makes it, and returns its prepared rewrite.

use std::net::Ipv4Addr;

use conntrack::{
    Admission, Conntrack, Direction, FiveTuple, Found, Key, Protocol, Refusal, Revision, Rewrite, SessionId,
    TcpSegment, TcpState, Tick, owner_of_inside,
};

use crate::classify::Class;
use crate::counters::WorkerCounters;
use crate::dataplane::NeighbourRequest;
use crate::io::memory::Stretch;
use crate::parse::{Flow, QuotedPacket, Segment};
use crate::snapshot::{NeighbourId, NextHop, Side, Snapshot, TenantSpec};
use crate::stray::refuse_stray;
use crate::verdict::{DropReason, Errand, Lending, Verdict};

/// Next hop of a session whose neighbour is not resolved.
pub(crate) const UNRESOLVED: u32 = u32::MAX;
/// Next hop of a session that has no route.
const NO_ROUTE: u32 = u32::MAX - 1;
/// Next hop of a session towards an egress address of this gateway.
pub(crate) const HAIRPIN: u32 = u32::MAX - 2;

/// Asks for large pages for a table.
pub(crate) fn memory_of(table: &Conntrack) -> [Stretch; 2] {
    table.memory().map(Stretch::of)
}

/// Takes the memory of a table now, in large pages.
pub fn populate(table: &Conntrack) {
    memory_of(table).iter().for_each(Stretch::take);
}

/// What tracking reads and changes.
#[derive(Debug)]
pub struct Tracker<'a> {
    /// Configuration.
    pub snapshot: &'a Snapshot,
    /// Sessions.
    pub conntrack: &'a mut Conntrack,
    /// Counters.
    pub counters: &'a WorkerCounters,
    /// What is known of the frame.
    pub errand: Errand,
    /// Now.
    pub now: Tick,
}

/// A rewrite and where the packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// What is written.
    pub rewrite: Rewrite,
    /// Where it goes.
    pub way: Way,
}

/// Where a translated packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To a neighbour.
    Out(NeighbourId),
    /// Back in: its destination is an egress address of this gateway (RFC 4787 REQ-9).
    Hairpin,
}

impl Tracker<'_> {
    /// Tracks a packet of a flow: one lookup when its session exists.
    ///
    /// # Errors
    /// The verdict on a packet that is not forwarded now.
    pub fn track_flow(&mut self, class: Class, flow: &Flow) -> Result<Forwarding, Verdict> {
        let key = Key::new(class.tenant, class.direction, &flow.tuple);
        let id = match self.find_valid(class, &key) {
            Some(Found::Session(id)) if is_expected(class.direction, flow.segment) => {
                if opens_connection(flow.segment) {
                    self.check_reopening(class, id)?;
                }
                id
            }
            Some(Found::Session(_)) => return Err(Verdict::Drop(DropReason::NoSession)),
            Some(Found::Lent(borrower)) => return Err(Verdict::HandOver(borrower, self.errand.for_owner())),
            None => match class.direction {
                Direction::Outbound => self.open_from_inside(class, flow)?,
                Direction::Inbound => self.open_from_outside(class, flow)?,
            },
        };
        self.check_origin(class, self.conntrack.session(id).rewrite(Direction::Outbound).next_hop)?;
        let rewrite = self.conntrack.session(id).rewrite(class.direction);
        let way = self.way_of(&rewrite, &flow.tuple)?;
        let segment = match flow.segment {
            Segment::Tcp(segment) => segment,
            Segment::Udp | Segment::Query | Segment::Reply | Segment::Opaque => TcpSegment::default(),
        };
        self.conntrack.touch(id, class.direction, &segment, self.now, &self.snapshot.spec().timeouts);
        Ok(Forwarding { rewrite, way })
    }

    /// Tracks an ICMP error by the packet that it quotes. The session is neither refreshed nor ended
    /// (RFC 5508 REQ-6, RFC 5382 REQ-10).
    ///
    /// # Errors
    /// The verdict on an error that is not forwarded now.
    pub fn track_error(&mut self, class: Class, quoted: &QuotedPacket) -> Result<Forwarding, Verdict> {
        let wire = quoted.flow.tuple.reversed();
        let key = Key::new(class.tenant, class.direction, &wire);
        match self.find_valid(class, &key) {
            Some(Found::Session(id)) => {
                self.check_origin(class, self.conntrack.session(id).rewrite(Direction::Outbound).next_hop)?;
                let rewrite = self.conntrack.session(id).rewrite(class.direction);
                let way = self.way_of(&rewrite, &wire)?;
                Ok(Forwarding { rewrite, way })
            }
            Some(Found::Lent(borrower)) => Err(Verdict::HandOver(borrower, self.errand.for_owner())),
            None => Err(self.lent_mapping(class, &wire).unwrap_or(Verdict::Drop(DropReason::NoSession))),
        }
    }

    /// Returns the verdict on a packet that is refused for its size or time to live: the world hears of that only if the
    /// packet has a session, or may open one.
    #[cold]
    pub fn quieten(&mut self, verdict: Verdict, class: Class, wire: &FiveTuple) -> Verdict {
        if class.direction == Direction::Outbound {
            return verdict;
        }
        match self.find_valid(class, &Key::new(class.tenant, class.direction, wire)) {
            Some(Found::Session(_)) => verdict,
            Some(Found::Lent(borrower)) => Verdict::HandOver(borrower, self.errand.for_owner()),
            None if self.inside_of(class, wire).is_some() => {
                self.check_draining(class).err().unwrap_or(verdict)
            }
            None => self.lent_mapping(class, wire).unwrap_or(Verdict::Drop(DropReason::NoSession)),
        }
    }

    /// Returns the inside address and port that an unexpected packet from outside may open a session to.
    fn inside_of(&self, class: Class, wire: &FiveTuple) -> Option<(Ipv4Addr, u16)> {
        let tenant = self.snapshot.tenant(class.tenant)?;
        let inside = self.conntrack.admitted_from_outside(class.tenant, wire, &tenant.policy);
        inside.filter(|(address, _)| self.snapshot.may_send_from(class.tenant, *address))
    }

    /// Finds what the present snapshot allows of what a key leads to.
    pub fn find_valid(&mut self, class: Class, key: &Key) -> Option<Found> {
        let found = self.conntrack.find(key)?;
        let Found::Session(id) = found else { return Some(found) };
        let is_checked = self.conntrack.session(id).epoch() == self.snapshot.epoch();
        (is_checked || self.check_session(class, id)).then_some(found)
    }

    /// Checks a session under a new snapshot; ends it if that no longer allows it.
    #[cold]
    fn check_session(&mut self, class: Class, id: SessionId) -> bool {
        let session = self.conntrack.session(id);
        let (inside, outside) = (session.inside_tuple(), session.outside_tuple());
        let has_address = |tenant: &TenantSpec| tenant.egress_addresses.contains(&outside.source);
        let is_allowed = self.snapshot.may_send_from(class.tenant, inside.source)
            && self.snapshot.tenant(class.tenant).is_some_and(has_address);
        if is_allowed {
            let revision = self.revision(&inside);
            self.conntrack.revise(id, revision);
        } else {
            self.counters.tenant(class.tenant).session_ended();
            self.conntrack.remove(id, self.now);
        }
        is_allowed
    }

    /// Makes a session for a packet of a pod that opens one. Leaves nothing behind when it does not.
    #[cold]
    fn open_from_inside(&mut self, class: Class, flow: &Flow) -> Result<SessionId, Verdict> {
        let may_open = match flow.segment {
            Segment::Tcp(segment) => segment.flags.opens(),
            Segment::Udp | Segment::Query | Segment::Opaque => true,
            Segment::Reply => false,
        };
        if !may_open {
            return Err(refuse_stray(self.snapshot.spec().tcp, class, flow));
        }
        self.open_outbound(class, flow.tuple)
    }

    /// Makes a session from inside, where the tenant takes new ones and there is a way for its packets.
    ///
    /// # Errors
    /// The verdict on the packet, if there is none. Nothing has changed then.
    pub fn open_outbound(&mut self, class: Class, tuple: FiveTuple) -> Result<SessionId, Verdict> {
        self.check_draining(class)?;
        let revision = self.revision(&tuple);
        self.way(revision.next_hops[0], Side::Outside, tuple.destination)?;
        self.admit(class, tuple, Direction::Outbound, revision)
    }

    /// Makes a session for a packet that a mapping's filtering lets in (RFC 4787 section 5).
    #[cold]
    fn open_from_outside(&mut self, class: Class, flow: &Flow) -> Result<SessionId, Verdict> {
        if let Some(verdict) = self.lent_mapping(class, &flow.tuple) {
            return Err(verdict);
        }
        let stray = || refuse_stray(self.snapshot.spec().tcp, class, flow);
        let may_open = match flow.segment {
            Segment::Tcp(segment) => segment.flags.opens(),
            Segment::Udp | Segment::Reply => true,
            Segment::Query | Segment::Opaque => false,
        };
        let inside = if may_open { self.inside_of(class, &flow.tuple) } else { None };
        let (address, port) = inside.ok_or_else(stray)?;
        self.check_draining(class)?;
        let tuple = FiveTuple { source: address, source_port: port, ..flow.tuple.reversed() };
        let revision = self.revision(&tuple);
        self.check_origin(class, revision.next_hops[0])?;
        self.way(revision.next_hops[1], Side::Inside, address)?;
        self.admit(class, tuple, Direction::Inbound, revision)
    }

    /// Refuses packets to a session with an egress address of this gateway that the world sends: only what pods send comes
    /// from there (RFC 2827). `outbound` is where the session's outbound packets go next.
    fn check_origin(&self, class: Class, outbound: u32) -> Result<(), Verdict> {
        let is_spoofed =
            class.direction == Direction::Inbound && outbound == HAIRPIN && !self.errand.has_turned;
        if is_spoofed { Err(Verdict::Drop(DropReason::MartianAddress)) } else { Ok(()) }
    }

    /// Refuses new sessions of a tenant that is being removed.
    fn check_draining(&self, class: Class) -> Result<(), Verdict> {
        let is_draining = self.snapshot.tenant(class.tenant).is_some_and(|tenant| tenant.is_draining);
        let from = Side::ahead(class.direction).other();
        if is_draining { Err(Verdict::refuse(from, DropReason::TenantDraining)) } else { Ok(()) }
    }

    /// Refuses to open anew what is closed, where a new session would be refused.
    #[cold]
    fn check_reopening(&self, class: Class, id: SessionId) -> Result<(), Verdict> {
        match self.conntrack.session(id).tcp_state() {
            Some(TcpState::Closed | TcpState::Reset) => self.check_draining(class),
            Some(
                TcpState::Opening
                | TcpState::OutsideOpening
                | TcpState::Established
                | TcpState::InsideFin
                | TcpState::OutsideFin,
            )
            | None => Ok(()),
        }
    }

    fn admit(
        &mut self,
        class: Class,
        tuple: FiveTuple,
        opened_by: Direction,
        revision: Revision,
    ) -> Result<SessionId, Verdict> {
        let tenant = self.snapshot.tenant(class.tenant).ok_or(Verdict::Drop(DropReason::UnknownTenant))?;
        let admission = Admission {
            tenant: class.tenant,
            opened_by,
            tuple,
            egress_addresses: &tenant.egress_addresses,
            policy: &tenant.policy,
            timeouts: &self.snapshot.spec().timeouts,
            loan: match self.errand.lending {
                Lending::Lent(loan) => Some(loan),
                Lending::NotAsked | Lending::Asked(_) | Lending::Refused => None,
            },
            revision,
        };
        let admitted = self.conntrack.admit(&admission, self.now);
        let id = admitted.map_err(|refusal| self.refuse(class, tuple.protocol, refusal))?;
        self.counters.tenant(class.tenant).session_began();
        Ok(id)
    }

    /// Returns what becomes of a packet whose session was refused.
    fn refuse(&self, class: Class, protocol: Protocol, refusal: Refusal) -> Verdict {
        let no_port = match protocol {
            Protocol::Icmp | Protocol::Tcp | Protocol::Udp => DropReason::NoPort,
            Protocol::Portless(_) => DropReason::AmbiguousProtocol,
        };
        let reason = match refusal {
            // A loan that no longer fits, because the pod or its tenant has changed, is asked for anew.
            Refusal::PortElsewhere { ask, request } if self.errand.lending != Lending::Refused => {
                let lending = Lending::Asked(request);
                return Verdict::HandOver(ask, Errand { is_owned: true, lending, ..self.errand });
            }
            Refusal::PortElsewhere { .. } | Refusal::NoPort => no_port,
            Refusal::SessionsFull => DropReason::SessionsFull,
            Refusal::TenantShare => DropReason::TenantShare,
            Refusal::TenantSessions => DropReason::TenantSessionLimit,
            Refusal::TenantPorts => DropReason::TenantPortLimit,
            Refusal::TenantRate => DropReason::TenantRateLimit,
            Refusal::PodSessions => DropReason::PodSessionLimit,
            Refusal::PodPorts => DropReason::PodPortLimit,
            Refusal::PodRate => DropReason::PodRateLimit,
        };
        Verdict::refuse(Side::ahead(class.direction).other(), reason)
    }

    /// Returns the verdict on a packet to a port that another worker has borrowed for all destinations.
    fn lent_mapping(&self, class: Class, wire: &FiveTuple) -> Option<Verdict> {
        let is_inbound = class.direction == Direction::Inbound;
        let borrower = self.conntrack.lent_mapping(class.tenant, wire).filter(|_| is_inbound)?;
        Some(Verdict::HandOver(borrower, self.errand.for_owner()))
    }

    fn revision(&self, inside: &FiveTuple) -> Revision {
        let hops = [(Side::Outside, inside.destination), (Side::Inside, inside.source)];
        let mut next_hops = hops.map(|(side, address)| match self.snapshot.next_hop(side, address) {
            NextHop::Resolved(id) => id.0,
            NextHop::Unresolved(_) => UNRESOLVED,
            NextHop::NoRoute => NO_ROUTE,
        });
        if self.snapshot.tenant_by_egress(inside.destination).is_some() {
            next_hops[0] = HAIRPIN;
        }
        Revision { epoch: self.snapshot.epoch(), next_hops }
    }

    /// Returns where a packet of a session goes.
    fn way_of(&self, rewrite: &Rewrite, wire: &FiveTuple) -> Result<Way, Verdict> {
        let destination = match rewrite.direction {
            Direction::Outbound => wire.destination,
            Direction::Inbound => rewrite.address,
        };
        self.way(rewrite.next_hop, Side::ahead(rewrite.direction), destination)
    }

    fn way(&self, next_hop: u32, side: Side, destination: Ipv4Addr) -> Result<Way, Verdict> {
        if next_hop < HAIRPIN {
            Ok(Way::Out(NeighbourId(next_hop)))
        } else if next_hop == HAIRPIN {
            Ok(Way::Hairpin)
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

fn opens_connection(segment: Segment) -> bool {
    match segment {
        Segment::Tcp(segment) => segment.flags.opens(),
        Segment::Udp | Segment::Query | Segment::Reply | Segment::Opaque => false,
    }
}

/// Returns the worker that owns a packet: by inside address when outbound, by outside port when inbound. A packet to a
/// port that nobody owns is the business of whoever has it.
pub fn owner_of(conntrack: &Conntrack, class: Class, wire: &FiveTuple) -> u16 {
    let slot = conntrack.slot();
    if slot.workers == 1 {
        return slot.worker;
    }
    match class.direction {
        Direction::Outbound => owner_of_inside(class.tenant, wire.source, slot.workers),
        Direction::Inbound => conntrack.owner_of_outside(&wire.reversed()).unwrap_or(slot.worker),
    }
}

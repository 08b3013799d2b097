//! A frame's way: parse → classify → track → rewrite. Nothing else knows the order.

use std::sync::Arc;

use conntrack::{Conntrack, Direction, LoanRequest, Protocol, TenantId, Tick};

use crate::classify::{Class, classify, tenant_of_broken};
use crate::counters::WorkerCounters;
use crate::io::Frame;
use crate::mss::{announces_mss, clamp_mss};
use crate::parse::{Packet, Transport, parse};
use crate::reject::{AnswerLimit, answer_to, write_answer};
use crate::rewrite::{rewrite_error, rewrite_flow, write_macs};
use crate::snapshot::{Side, Snapshot};
use crate::track::{Forwarding, Lenders, Tracker, Way, owner_of};
use crate::verdict::{DropReason, Errand, Verdict};

/// Hops that a packet takes at the gateway when it comes back in: once out, once in.
const HAIRPIN_HOPS: u8 = 2;

/// What the pipeline reads and changes beside the frame: all of it belongs to one worker.
#[derive(Debug)]
pub struct Engine {
    /// Configuration.
    pub snapshot: Arc<Snapshot>,
    /// Sessions.
    pub conntrack: Conntrack,
    /// Counters.
    pub counters: Arc<WorkerCounters>,
    /// Answers that may still be sent.
    pub answers: AnswerLimit,
}

/// How a frame came.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    side: Side,
    /// Whether another worker found that the frame belongs to this one.
    is_handed: bool,
    lenders: Lenders,
}

/// What became of a frame, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What to do with the frame.
    pub verdict: Verdict,
    /// Tenant, where it is known.
    pub tenant: Option<TenantId>,
    /// Side that the frame, as it is now, comes from: outside if it was turned round.
    pub side: Side,
}

impl Engine {
    /// Makes the engine of one worker, without sessions.
    pub fn new(
        snapshot: Arc<Snapshot>,
        conntrack: Conntrack,
        counters: Arc<WorkerCounters>,
        now: Tick,
    ) -> Self {
        Self { snapshot, conntrack, counters, answers: AnswerLimit::new(now) }
    }

    /// Decides about a frame that came in on `side`, and writes what is to be sent into it. `errand` is what another
    /// worker handed it over for.
    pub fn process(&mut self, frame: &mut Frame, side: Side, errand: Option<Errand>, now: Tick) -> Outcome {
        let mut arrival = Arrival { side, is_handed: errand.is_some(), lenders: Lenders::after(errand) };
        let outcome = self.pass(frame, &mut arrival, now);
        if let Lenders::Lent { request, loan } = arrival.lenders {
            self.conntrack.decline(&request, &loan);
        }
        if outcome.verdict != Verdict::Hairpin {
            return outcome;
        }
        let tenant = outcome.tenant.expect("a translated packet has a tenant");
        self.counters.hairpinned.add(1);
        self.counters.tenant(tenant).forwarded(Side::Outside, frame.bytes().len());
        let mut again = Arrival { side: Side::Outside, is_handed: false, lenders: Lenders::NotAsked };
        self.pass(frame, &mut again, now)
    }

    fn pass(&mut self, frame: &mut Frame, arrival: &mut Arrival, now: Tick) -> Outcome {
        let side = arrival.side;
        let packet = match parse(frame.bytes()) {
            Ok(packet) => packet,
            Err(reason) => {
                let tenant = tenant_of_broken(&self.snapshot, side, frame.bytes());
                return Outcome { verdict: Verdict::Drop(reason), tenant, side };
            }
        };
        frame.set_len(packet.frame_bytes);
        let (verdict, tenant) = match classify(&self.snapshot, side, &packet) {
            Ok(class) => (self.forward(frame, class, &packet, arrival, now), Some(class.tenant)),
            Err((reason, tenant)) => (Verdict::refuse(side, reason), tenant),
        };
        let verdict = match verdict {
            Verdict::Reject(reason) => self.answer(frame, side, &packet, (reason, tenant), now),
            Verdict::Forward(_)
            | Verdict::Hairpin
            | Verdict::HandOver(..)
            | Verdict::Wait(_)
            | Verdict::HoldSyn(_)
            | Verdict::Drop(_) => verdict,
        };
        Outcome { verdict, tenant, side }
    }

    /// Does what another worker handed a frame over for, if that needs no look at the frame: lends a port, or asks the
    /// next worker.
    pub fn lend(&mut self, request: LoanRequest, borrower: u16) -> Verdict {
        let slot = self.conntrack.slot();
        let next = (slot.worker + 1) % slot.workers;
        match (self.conntrack.lend(&request, borrower), request.outside_tuple.protocol) {
            (Some(loan), _) => Verdict::HandOver(borrower, Errand::Lent { request, loan }),
            (None, Protocol::Icmp | Protocol::Tcp | Protocol::Udp) if next != borrower => {
                Verdict::HandOver(next, Errand::Borrow { request, borrower })
            }
            (None, Protocol::Icmp | Protocol::Tcp | Protocol::Udp | Protocol::Portless(_)) => {
                Verdict::HandOver(borrower, Errand::NotLent)
            }
        }
    }

    /// Takes back what was promised with a frame that could not be handed over.
    pub fn withdraw(&mut self, errand: Errand) {
        if let Errand::Lent { request, loan } = errand {
            self.conntrack.withdraw(&request, &loan);
        }
    }

    /// Answers a frame that could not be sent because its next hop did not resolve in time.
    pub fn give_up(&mut self, frame: &mut Frame, side: Side, now: Tick) -> Outcome {
        let reason = DropReason::NeighbourUnresolved;
        let Ok(packet) = parse(frame.bytes()) else {
            return Outcome { verdict: Verdict::Drop(reason), tenant: None, side };
        };
        let tenant = classify(&self.snapshot, side, &packet).ok().map(|class| class.tenant);
        let verdict = match Verdict::refuse(side, reason) {
            Verdict::Reject(reason) => self.answer(frame, side, &packet, (reason, tenant), now),
            verdict => verdict,
        };
        Outcome { verdict, tenant, side }
    }

    fn forward(
        &mut self,
        frame: &mut Frame,
        class: Class,
        packet: &Packet,
        arrival: &mut Arrival,
        now: Tick,
    ) -> Verdict {
        let wire = match packet.transport {
            Transport::Flow(flow) => flow.tuple,
            Transport::Error(quoted) => quoted.flow.tuple.reversed(),
        };
        let owner = owner_of(&self.conntrack, class, &wire);
        if !arrival.is_handed && owner != self.conntrack.slot().worker {
            return Verdict::HandOver(owner, Errand::Process);
        }
        let (snapshot, counters) = (&*self.snapshot, &*self.counters);
        let lenders = &mut arrival.lenders;
        let mut tracker = Tracker { snapshot, conntrack: &mut self.conntrack, counters, lenders, now };
        let tracked = match check_limits(packet, class, snapshot) {
            Err(verdict) => Err(tracker.quieten(verdict, class, &wire)),
            Ok(()) => match &packet.transport {
                Transport::Flow(flow) => tracker.track_flow(class, flow),
                Transport::Error(quoted) => tracker.track_error(class, quoted),
            },
        };
        match tracked {
            Ok(forwarding) => self.rewrite(frame, class, packet, &forwarding),
            Err(verdict) => verdict,
        }
    }

    fn rewrite(&self, frame: &mut Frame, class: Class, packet: &Packet, forwarding: &Forwarding) -> Verdict {
        let Forwarding { rewrite, way } = forwarding;
        let bytes = frame.bytes_mut();
        match &packet.transport {
            Transport::Flow(flow) => {
                rewrite_flow(bytes, &packet.ip, flow, rewrite);
                if announces_mss(flow) {
                    clamp_mss(
                        bytes,
                        flow,
                        self.snapshot.tenant(class.tenant).map_or(0, |tenant| tenant.mss_clamp),
                    );
                }
            }
            Transport::Error(quoted) => rewrite_error(bytes, &packet.ip, quoted, rewrite),
        }
        match way {
            Way::Out(neighbour) => {
                let side = Side::ahead(class.direction);
                let source = self.snapshot.source_mac(side, class.tenant);
                write_macs(bytes, self.snapshot.neighbour(*neighbour).mac, source);
                Verdict::Forward(side)
            }
            Way::Hairpin => Verdict::Hairpin,
        }
    }

    /// Turns a refused frame into its answer, if it gets one.
    #[cold]
    fn answer(
        &mut self,
        frame: &mut Frame,
        side: Side,
        packet: &Packet,
        (reason, tenant): (DropReason, Option<TenantId>),
        now: Tick,
    ) -> Verdict {
        let speaker = match (side, tenant.and_then(|tenant| self.snapshot.tenant(tenant))) {
            (Side::Inside, Some(tenant)) => tenant.gateway_address,
            (Side::Inside, None) => self.snapshot.link(Side::Inside).address,
            (Side::Outside, _) => packet.ip.destination,
        };
        // A leak by a MAC that is somebody else's is not ours to answer.
        let is_addressed = tenant.is_some() || packet.destination_mac == self.snapshot.link(side).mac;
        let direction = if side == Side::Inside { Direction::Outbound } else { Direction::Inbound };
        let answer = answer_to(packet, reason, mtu_ahead(direction, packet, &self.snapshot));
        match answer.filter(|_| is_addressed) {
            Some(answer) if self.answers.take(now) => {
                write_answer(frame, packet, answer, speaker);
                Verdict::Reject(reason)
            }
            Some(_) | None => Verdict::Drop(reason),
        }
    }
}

/// Refuses packets that a router may not forward by the link that is ahead of them. A packet that comes back in has
/// both links ahead.
fn check_limits(packet: &Packet, class: Class, snapshot: &Snapshot) -> Result<(), Verdict> {
    let least_mtu = snapshot.link(Side::Inside).mtu.min(snapshot.link(Side::Outside).mtu);
    if packet.ip.ttl > HAIRPIN_HOPS && packet.ip.total_bytes <= least_mtu {
        return Ok(());
    }
    let comes_back = comes_back(class.direction, packet, snapshot);
    if packet.ip.ttl <= if comes_back { HAIRPIN_HOPS } else { 1 } {
        return Err(Verdict::Reject(DropReason::TtlExceeded));
    }
    if packet.ip.total_bytes > mtu_ahead(class.direction, packet, snapshot) {
        let reason = DropReason::TooBig;
        return Err(if packet.ip.dont_fragment { Verdict::Reject(reason) } else { Verdict::Drop(reason) });
    }
    Ok(())
}

/// Returns the largest packet that may follow this one's way, in bytes.
fn mtu_ahead(direction: Direction, packet: &Packet, snapshot: &Snapshot) -> u16 {
    let ahead = snapshot.link(Side::ahead(direction)).mtu;
    if comes_back(direction, packet, snapshot) { ahead.min(snapshot.link(Side::Inside).mtu) } else { ahead }
}

fn comes_back(direction: Direction, packet: &Packet, snapshot: &Snapshot) -> bool {
    direction == Direction::Outbound && snapshot.tenant_by_egress(packet.ip.destination).is_some()
}

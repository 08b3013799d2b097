//! A frame's way: parse → classify → resolve → track → rewrite. Nothing else knows the order.

use std::sync::Arc;

use conntrack::{Conntrack, Direction, FiveTuple, LoanRequest, Protocol, TenantId, Tick};

use crate::classify::{Class, classify, tenant_of_broken};
use crate::counters::WorkerCounters;
use crate::fragments::datagram::{DatagramKey, Part};
use crate::fragments::{Fragments, Head, Limits, keeper_of};
use crate::io::Frame;
use crate::mss::{announces_mss, clamp_mss};
use crate::parse::{Flow, Packet, QuotedPacket, Transport, parse};
use crate::reject::{AnswerLimit, answer_to, write_answer};
use crate::rewrite::{rewrite_error, rewrite_flow, write_identification, write_macs};
use crate::snapshot::{Side, Snapshot};
use crate::track::{Forwarding, Tracker, Way, owner_of};
use crate::verdict::{DatagramErrand, DropReason, Errand, Lending, Verdict};

/// Hops that a packet takes at the gateway when it comes back in: once out, once in.
const HAIRPIN_HOPS: u8 = 2;

/// What the pipeline reads and changes beside the frame: all of it belongs to one worker.
#[derive(Debug)]
pub struct Engine {
    /// Configuration.
    pub snapshot: Arc<Snapshot>,
    /// Sessions.
    pub conntrack: Conntrack,
    /// Datagrams of which fragments have come.
    pub fragments: Fragments,
    /// Counters.
    pub counters: Arc<WorkerCounters>,
    /// Answers that may still be sent.
    pub answers: AnswerLimit,
}

/// What became of a frame, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What to do with the frame.
    pub verdict: Verdict,
    /// Tenant, where it is known.
    pub tenant: Option<TenantId>,
    /// Side that the frame, as it is now, comes from: outside if it came back in.
    pub side: Side,
    /// What is known of the frame by now.
    pub errand: Errand,
}

/// What is tracked and rewritten.
#[derive(Clone, Copy, Debug)]
enum Subject {
    /// A packet of a flow, or a fragment of one.
    Flow(Flow),
    /// An ICMP error about one.
    Error(QuotedPacket),
}

impl Subject {
    /// Returns the tuple of the flow in the direction in which the packet goes.
    fn wire(&self) -> FiveTuple {
        match self {
            Self::Flow(flow) => flow.tuple,
            Self::Error(quoted) => quoted.flow.tuple.reversed(),
        }
    }

    /// Returns the protocol of the packet itself.
    fn protocol(&self) -> Protocol {
        match self {
            Self::Flow(flow) => flow.tuple.protocol,
            Self::Error(_) => Protocol::Icmp,
        }
    }
}

impl Engine {
    /// Makes the engine of one worker, without sessions. `limits` are those of its fragments.
    pub fn new(
        snapshot: Arc<Snapshot>,
        conntrack: Conntrack,
        limits: Limits,
        counters: Arc<WorkerCounters>,
    ) -> Self {
        let fragments = Fragments::new(conntrack.slot(), limits);
        Self { snapshot, conntrack, fragments, counters, answers: AnswerLimit::new() }
    }

    /// Decides about a frame that came in on `side`, and writes what is to be sent into it.
    pub fn process(&mut self, frame: &mut Frame, side: Side, errand: Errand, now: Tick) -> Outcome {
        let outcome = self.pass(frame, side, errand, now);
        if let Lending::Lent(loan) = errand.lending {
            self.conntrack.settle_loan(&loan);
        }
        if outcome.verdict != Verdict::Hairpin {
            return outcome;
        }
        let tenant = outcome.tenant.expect("a translated packet has a tenant");
        self.counters.hairpinned.add(1);
        self.counters.tenant(tenant).forwarded(Side::Outside, frame.bytes().len());
        self.pass(frame, Side::Outside, Errand { has_turned: true, ..Errand::NEW }, now)
    }

    fn pass(&mut self, frame: &mut Frame, side: Side, mut errand: Errand, now: Tick) -> Outcome {
        let packet = match parse(frame.bytes()) {
            Ok(packet) => packet,
            Err(reason) => {
                let tenant = tenant_of_broken(&self.snapshot, side, frame.bytes());
                return Outcome { verdict: Verdict::Drop(reason), tenant, side, errand };
            }
        };
        frame.set_len(packet.frame_bytes);
        let (verdict, tenant) = match classify(&self.snapshot, side, &packet) {
            Ok(class) => {
                let verdict = match self.resolve(class, &packet, &mut errand, now) {
                    Ok(subject) => self.forward(frame, class, &packet, (&subject, errand), now),
                    Err(verdict) => verdict,
                };
                (verdict, Some(class.tenant))
            }
            Err((reason, tenant)) => (Verdict::refuse(side, reason), tenant),
        };
        let verdict = match verdict {
            Verdict::Reject(reason) => self.answer(frame, side, &packet, (reason, tenant), now),
            Verdict::Forward(_)
            | Verdict::Hairpin
            | Verdict::Split(_)
            | Verdict::HandOver(..)
            | Verdict::Wait(_)
            | Verdict::HoldSyn(_)
            | Verdict::Hold(_)
            | Verdict::Drop(_) => verdict,
        };
        Outcome { verdict, tenant, side, errand }
    }

    /// Lends a port for the session of another worker's frame, or asks the next worker.
    pub fn lend(&mut self, errand: Errand, request: &LoanRequest) -> Verdict {
        let slot = self.conntrack.slot();
        let (next, borrower) = ((slot.worker + 1) % slot.workers, request.borrower.worker);
        let (worker, lending) = match (self.conntrack.lend(request), request.outside_tuple.protocol) {
            (Some(loan), _) => (borrower, Lending::Lent(loan)),
            (None, Protocol::Icmp | Protocol::Tcp | Protocol::Udp) if next != borrower => {
                (next, errand.lending)
            }
            (None, Protocol::Icmp | Protocol::Tcp | Protocol::Udp | Protocol::Portless(_)) => {
                (borrower, Lending::Refused)
            }
        };
        Verdict::HandOver(worker, Errand { lending, ..errand })
    }

    /// Takes back what was promised with a frame that could not be handed over.
    pub fn withdraw(&mut self, errand: Errand) {
        if let Lending::Lent(loan) = errand.lending {
            self.conntrack.withdraw(&loan);
        }
    }

    /// Answers a frame that could not be sent because its next hop did not resolve in time.
    pub fn give_up(&mut self, frame: &mut Frame, side: Side, now: Tick) -> Outcome {
        let reason = DropReason::NeighbourUnresolved;
        let errand = Errand::NEW;
        let Ok(packet) = parse(frame.bytes()) else {
            return Outcome { verdict: Verdict::Drop(reason), tenant: None, side, errand };
        };
        let tenant = classify(&self.snapshot, side, &packet).ok().map(|class| class.tenant);
        let verdict = match side {
            Side::Inside => self.answer(frame, side, &packet, (reason, tenant), now),
            Side::Outside => Verdict::Drop(reason),
        };
        Outcome { verdict, tenant, side, errand }
    }

    /// Finds out which flow a packet belongs to; the ports of a later fragment are those of the first.
    fn resolve(
        &mut self,
        class: Class,
        packet: &Packet,
        errand: &mut Errand,
        now: Tick,
    ) -> Result<Subject, Verdict> {
        let (first, protocol) = match packet.transport {
            Transport::Error(quoted) => return Ok(Subject::Error(quoted)),
            Transport::Flow(flow) if !packet.ip.is_fragment() => return Ok(Subject::Flow(flow)),
            Transport::Flow(flow) => (Some(flow), flow.tuple.protocol),
            Transport::Fragment(protocol) => (None, protocol),
        };
        let head = match errand.datagram {
            DatagramErrand::Resolved(head) => head,
            DatagramErrand::Unknown | DatagramErrand::Keep => {
                let head =
                    self.track_fragment(class, packet, protocol, (first.as_ref(), errand.has_turned), now)?;
                errand.datagram = DatagramErrand::Resolved(head);
                head
            }
        };
        Ok(Subject::Flow(first.unwrap_or_else(|| head.flow_of(&packet.ip, protocol))))
    }

    fn track_fragment(
        &mut self,
        class: Class,
        packet: &Packet,
        protocol: Protocol,
        (first, has_turned): (Option<&Flow>, bool),
        now: Tick,
    ) -> Result<Head, Verdict> {
        let comes_from_egress = || self.snapshot.tenant_by_egress(packet.ip.source).is_some();
        if class.direction == Direction::Inbound && !has_turned && comes_from_egress() {
            return Err(Verdict::Drop(DropReason::MartianAddress));
        }
        let key = DatagramKey::new(class, &packet.ip, protocol);
        let slot = self.conntrack.slot();
        let keeper = keeper_of(slot, &key);
        if keeper != slot.worker {
            let errand = Errand { datagram: DatagramErrand::Keep, has_turned, ..Errand::NEW };
            return Err(Verdict::HandOver(keeper, errand));
        }
        self.fragments.track(key, Part::of(&packet.ip), first, now)
    }

    fn forward(
        &mut self,
        frame: &mut Frame,
        class: Class,
        packet: &Packet,
        (subject, errand): (&Subject, Errand),
        now: Tick,
    ) -> Verdict {
        let wire = subject.wire();
        let owner = owner_of(&self.conntrack, class, &wire);
        if !errand.is_owned && owner != self.conntrack.slot().worker {
            return Verdict::HandOver(owner, errand.for_owner());
        }
        let (snapshot, counters) = (&*self.snapshot, &*self.counters);
        let datagram = errand.datagram;
        let mut tracker = Tracker { snapshot, conntrack: &mut self.conntrack, counters, errand, now };
        let tracked = match check_limits(packet, class, snapshot) {
            Err(verdict) => Err(tracker.quieten(verdict, class, &wire)),
            Ok(()) => match subject {
                Subject::Flow(flow) => tracker.track_flow(class, flow),
                Subject::Error(quoted) => tracker.track_error(class, quoted),
            },
        };
        match tracked {
            Ok(forwarding) => {
                self.identify(frame, class, packet, (subject.protocol(), datagram));
                self.rewrite(frame, class, packet, subject, &forwarding)
            }
            Err(verdict) => verdict,
        }
    }

    /// Gives a packet an identification of the gateway's own where it needs one.
    fn identify(
        &mut self,
        frame: &mut Frame,
        class: Class,
        packet: &Packet,
        (protocol, datagram): (Protocol, DatagramErrand),
    ) {
        let identification = match datagram {
            DatagramErrand::Resolved(head) => head.identification,
            DatagramErrand::Unknown | DatagramErrand::Keep if must_identify(class, packet) => {
                self.fragments.draw_identification(packet.ip.destination, protocol)
            }
            DatagramErrand::Unknown | DatagramErrand::Keep => return,
        };
        write_identification(frame.bytes_mut(), packet.ip.at, identification);
    }

    fn rewrite(
        &self,
        frame: &mut Frame,
        class: Class,
        packet: &Packet,
        subject: &Subject,
        forwarding: &Forwarding,
    ) -> Verdict {
        let Forwarding { rewrite, way } = forwarding;
        let bytes = frame.bytes_mut();
        match subject {
            Subject::Flow(flow) => {
                rewrite_flow(bytes, &packet.ip, flow, rewrite);
                if announces_mss(flow) {
                    let clamp = self.snapshot.tenant(class.tenant).map_or(0, |tenant| tenant.mss_clamp);
                    clamp_mss(bytes, flow, clamp);
                }
            }
            Subject::Error(quoted) => rewrite_error(bytes, &packet.ip, quoted, rewrite),
        }
        let Way::Out(neighbour) = way else { return Verdict::Hairpin };
        let side = Side::ahead(class.direction);
        let source = self.snapshot.source_mac(side, class.tenant);
        write_macs(bytes, self.snapshot.neighbour(*neighbour).mac, source);
        let is_too_big = packet.ip.total_bytes > self.snapshot.link(side).mtu;
        if is_too_big { Verdict::Split(side) } else { Verdict::Forward(side) }
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
        // A leak by a MAC that is somebody else's is not ours to answer, and a packet that came back in has no answer to
        // go out.
        let has_turned = side == Side::Outside && self.snapshot.tenant_by_egress(packet.ip.source).is_some();
        let is_ours = tenant.is_some() || packet.destination_mac == self.snapshot.link(side).mac;
        let is_addressed = is_ours && !has_turned;
        let direction = side.direction();
        let answer = answer_to(packet, reason, mtu_ahead(direction, packet, &self.snapshot));
        match answer.filter(|_| is_addressed) {
            Some(answer) if self.answers.take(tenant, now) => {
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
    if packet.ip.ttl > HAIRPIN_HOPS && packet.ip.total_bytes <= snapshot.least_mtu() {
        return Ok(());
    }
    let comes_back = comes_back(class.direction, packet, snapshot);
    if packet.ip.ttl <= if comes_back { HAIRPIN_HOPS } else { 1 } {
        return Err(Verdict::Reject(DropReason::TtlExceeded));
    }
    if packet.ip.total_bytes > mtu_ahead(class.direction, packet, snapshot) && packet.ip.dont_fragment {
        return Err(Verdict::Reject(DropReason::TooBig));
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

/// Tells whether a whole packet needs an identification of the gateway's own: it leaves by an address that
/// pods share, and may be fragmented there or behind (RFC 6864 section 4.1).
fn must_identify(class: Class, packet: &Packet) -> bool {
    class.direction == Direction::Outbound && !packet.ip.dont_fragment
}

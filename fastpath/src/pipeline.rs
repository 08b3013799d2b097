//! A frame's way: parse → classify → track → rewrite. Nothing else knows the order.

use std::sync::Arc;

use conntrack::{Conntrack, Direction, Key, PortShare, TenantId, Tick};

use crate::classify::{Class, classify, tenant_of_broken};
use crate::counters::WorkerCounters;
use crate::io::Frame;
use crate::mss::{announces_mss, clamp_mss};
use crate::parse::{Packet, Transport, parse};
use crate::reject::{AnswerLimit, answer_to, write_answer};
use crate::rewrite::{rewrite_error, rewrite_flow, write_macs};
use crate::snapshot::{Side, Snapshot};
use crate::track::{Forwarding, Tracker, owner_of};
use crate::verdict::{DropReason, Errand, Verdict};

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
    /// What the worker owns.
    pub share: PortShare,
}

/// What became of a frame, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What to do with the frame.
    pub verdict: Verdict,
    /// Tenant, where it is known.
    pub tenant: Option<TenantId>,
}

impl Engine {
    /// Makes the engine of one worker, without sessions.
    pub fn new(
        share: PortShare,
        snapshot: Arc<Snapshot>,
        conntrack: Conntrack,
        counters: Arc<WorkerCounters>,
        now: Tick,
    ) -> Self {
        Self { snapshot, conntrack, counters, answers: AnswerLimit::new(now), share }
    }

    /// Decides about a frame that came in on `side`, and writes what is to be sent into it.
    pub fn process(&mut self, frame: &mut Frame, side: Side, now: Tick) -> Outcome {
        let packet = match parse(frame.bytes()) {
            Ok(packet) => packet,
            Err(reason) => {
                let tenant = tenant_of_broken(&self.snapshot, side, frame.bytes());
                return Outcome { verdict: Verdict::Drop(reason), tenant };
            }
        };
        frame.set_len(packet.frame_bytes);
        let (verdict, tenant) = match classify(&self.snapshot, side, &packet) {
            Ok(class) => (self.forward(frame, class, &packet, now), Some(class.tenant)),
            Err((reason, tenant)) => (Verdict::refuse(side, reason), tenant),
        };
        let verdict = match verdict {
            Verdict::Reject(reason) => self.answer(frame, side, &packet, (reason, tenant), now),
            Verdict::Forward(_)
            | Verdict::HandOver(..)
            | Verdict::Wait(_)
            | Verdict::HoldSyn(_)
            | Verdict::Drop(_) => verdict,
        };
        Outcome { verdict, tenant }
    }

    /// Answers a frame that could not be sent because its next hop did not resolve in time.
    pub fn give_up(&mut self, frame: &mut Frame, side: Side, now: Tick) -> Outcome {
        let reason = DropReason::NeighbourUnresolved;
        let Ok(packet) = parse(frame.bytes()) else {
            return Outcome { verdict: Verdict::Drop(reason), tenant: None };
        };
        let tenant = classify(&self.snapshot, side, &packet).ok().map(|class| class.tenant);
        let verdict = match Verdict::refuse(side, reason) {
            Verdict::Reject(reason) => self.answer(frame, side, &packet, (reason, tenant), now),
            verdict => verdict,
        };
        Outcome { verdict, tenant }
    }

    fn forward(&mut self, frame: &mut Frame, class: Class, packet: &Packet, now: Tick) -> Verdict {
        let wire = match packet.transport {
            Transport::Flow(flow) => flow.tuple,
            Transport::Error(quoted) => quoted.flow.tuple.reversed(),
        };
        let owner = owner_of(self.share, class, &wire);
        if owner != self.share.worker() {
            return Verdict::HandOver(owner, Errand::Process);
        }
        let side = Side::ahead(class.direction);
        let (snapshot, counters) = (&*self.snapshot, &*self.counters);
        let mut tracker = Tracker { snapshot, conntrack: &mut self.conntrack, counters, now };
        if let Err(verdict) = check_limits(packet, snapshot.link(side).mtu) {
            let is_strange = class.direction == Direction::Inbound
                && tracker.find_valid(class, &Key::new(class.tenant, class.direction, &wire)).is_none();
            return if is_strange { Verdict::Drop(DropReason::NoSession) } else { verdict };
        }
        let tracked = match &packet.transport {
            Transport::Flow(flow) => tracker.track_flow(class, flow),
            Transport::Error(quoted) => tracker.track_error(class, quoted),
        };
        let Forwarding { rewrite, neighbour } = match tracked {
            Ok(forwarding) => forwarding,
            Err(verdict) => return verdict,
        };
        let bytes = frame.bytes_mut();
        match &packet.transport {
            Transport::Flow(flow) => {
                rewrite_flow(bytes, &packet.ip, flow, &rewrite);
                if announces_mss(flow) {
                    clamp_mss(
                        bytes,
                        flow,
                        snapshot.tenant(class.tenant).map_or(0, |tenant| tenant.mss_clamp),
                    );
                }
            }
            Transport::Error(quoted) => rewrite_error(bytes, &packet.ip, quoted, &rewrite),
        }
        write_macs(bytes, snapshot.neighbour(neighbour).mac, snapshot.source_mac(side, class.tenant));
        Verdict::Forward(side)
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
        let answer = answer_to(packet, reason, self.snapshot.link(side.other()).mtu);
        match answer.filter(|_| is_addressed) {
            Some(answer) if self.answers.take(now) => {
                write_answer(frame, packet, answer, speaker);
                Verdict::Reject(reason)
            }
            Some(_) | None => Verdict::Drop(reason),
        }
    }
}

/// Refuses packets that a router may not forward by a link of this MTU.
fn check_limits(packet: &Packet, mtu: u16) -> Result<(), Verdict> {
    if packet.ip.ttl <= 1 {
        return Err(Verdict::Reject(DropReason::TtlExceeded));
    }
    if packet.ip.total_bytes > mtu {
        let reason = DropReason::TooBig;
        return Err(if packet.ip.dont_fragment { Verdict::Reject(reason) } else { Verdict::Drop(reason) });
    }
    Ok(())
}

//! The first packets of sessions in the express lane: UDP datagrams and SYNs of pods.

use conntrack::{Conntrack, Key, KeyHash, Protocol, TcpFlags, TenantId, Tick};

use super::{Guide, LANES, Lane, Lanes, UDP, glance_at};
use crate::classify::{Class, is_allowed};
use crate::io::Frame;
use crate::pipeline::Engine;
use crate::snapshot::{Side, Snapshot};
use crate::track::{Tracker, owner_of};
use crate::verdict::Errand;

/// What becomes of a frame that did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuation {
    /// It may try again to pass.
    Pass,
    /// Another worker owns its session, or would.
    HandOver {
        /// The worker.
        owner: u16,
        /// Tenant of the packet.
        tenant: TenantId,
    },
    /// It goes the whole way.
    WholeWay,
}

impl Lanes {
    /// Says what becomes of the frame that was seen in `lane`, the first of `frames`, which came in on `side` and did not pass.
    /// One that is the first of its session gets it if it is a UDP datagram or SYN from a pod and nothing stands in its way.
    #[inline(never)]
    pub fn go_on(
        &mut self,
        lane: usize,
        side: Side,
        frames: &[Frame],
        engine: &mut Engine,
        errand: Errand,
        now: Tick,
    ) -> Continuation {
        let Engine { snapshot, conntrack, counters, .. } = engine;
        let may_be_syn = side == Side::Inside && self.lanes[lane].is_nobodys();
        if may_be_syn {
            self.fetch_firsts(snapshot, conntrack, lane, frames);
            self.lanes[lane] = self.syns[lane];
        }
        let Lane { key, hash, candidate, .. } = self.lanes[lane];
        let tenant = key.tenant();
        let Some(tuple) = key.tuple().filter(|_| candidate.is_none()) else { return Continuation::WholeWay };
        let class = Class { tenant, direction: side.direction() };
        if !is_allowed(snapshot, class, &tuple) {
            return Continuation::WholeWay;
        }
        let owner = owner_of(conntrack, class, &tuple);
        if !errand.is_owned && owner != conntrack.slot().worker {
            return Continuation::HandOver { owner, tenant };
        }
        let may_begin = may_be_syn && may_begin_with_syn(snapshot, tenant) || tuple.protocol == Protocol::Udp;
        if !may_begin || side == Side::Outside {
            return Continuation::WholeWay;
        }
        self.fetch_firsts(snapshot, conntrack, lane, frames);
        // A frame of the same flow may have come just before. A SYN may open its session anew, which the whole way knows of.
        let mut opened = conntrack.candidate(hash);
        if may_be_syn && !opened.is_none() {
            return Continuation::WholeWay;
        }
        if opened.is_none() {
            let mut tracker = Tracker { snapshot, conntrack, counters, errand, now };
            match tracker.open_outbound(class, tuple) {
                Ok(session) => opened = session.into(),
                // The whole way finds out again why not, and says so.
                Err(_) => return Continuation::WholeWay,
            }
        }
        self.lanes[lane].candidate = opened;
        Continuation::Pass
    }

    /// Has fetched, once, what the first packets of sessions will ask for, from the one in `lane` on, the first of `frames`:
    /// their pods, and what decides about the ports that will be drawn for them.
    fn fetch_firsts(
        &mut self,
        snapshot: &Snapshot,
        conntrack: &mut Conntrack,
        lane: usize,
        frames: &[Frame],
    ) {
        if std::mem::replace(&mut self.has_fetched_firsts, true) {
            return;
        }
        self.see_syns(snapshot, conntrack, lane, frames);
        let mut firsts = [(Key::default(), KeyHash::default()); LANES];
        let mut count = 0;
        for (seen, syn) in self.lanes[..self.seen].iter().zip(&self.syns).skip(lane) {
            let Lane { key, candidate, .. } = if seen.is_nobodys() { syn } else { seen };
            if candidate.is_none() && (key.protocol_number() == UDP || !syn.is_nobodys()) {
                let pod = conntrack.hash_of_pod(key);
                conntrack.fetch_slot(pod);
                firsts[count] = (*key, pod);
                count += 1;
            }
        }
        for (_, pod) in &firsts[..count] {
            conntrack.fetch_entry(conntrack.candidate(*pod));
        }
        for (others, (key, pod)) in firsts[..count].iter().enumerate() {
            conntrack.fetch_reply(key, conntrack.candidate(*pod), others);
        }
    }

    /// Looks for SYNs among frames of pods that did not take the lane.
    fn see_syns(&mut self, snapshot: &Snapshot, conntrack: &Conntrack, lane: usize, frames: &[Frame]) {
        let mut guide = Guide::new(snapshot, Side::Inside);
        let lanes = self.lanes[..self.seen].iter().zip(&mut self.syns).skip(lane);
        for ((seen, syn), frame) in lanes.zip(frames) {
            *syn = Lane::default();
            if seen.is_nobodys()
                && let Some(glance) = glance_at(frame.bytes(), guide.least_mtu, TcpFlags::opens)
                && guide.fill(snapshot, frame.bytes(), glance, syn).is_some()
            {
                syn.hash = conntrack.hash_of(&syn.key);
                conntrack.fetch_slot(syn.hash);
            }
        }
    }
}

/// Tells whether nothing has to be done to a SYN of a tenant but what is done to all its packets.
fn may_begin_with_syn(snapshot: &Snapshot, tenant: TenantId) -> bool {
    snapshot.tenant(tenant).is_some_and(|tenant| tenant.mss_clamp == 0)
}

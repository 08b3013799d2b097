//! Ends sessions: single ones, and those whose time is over, some at a time.
//!
//! The end of a session changes the index at both its keys and its pod. In a large table each waits for memory; the
//! places of several sessions are therefore fetched side by side before the first of them ends, as those of packets are
//! ([`crate::ahead`]).

use crate::anchor::peer_key;
use crate::blocks::EgressPorts;
use crate::flow::{Direction, TenantId};
use crate::index::Place;
use crate::journal::{Cause, Event};
use crate::session::{PortHolder, Session, SessionId};
use crate::slab::Kind;
use crate::table::Conntrack;
use crate::time::{Tick, TimeoutClass, Timeouts};

/// Entries that are looked up side by side before they end.
const SIDE_BY_SIDE: usize = 16;

/// An entry that ends, and what is changed with it.
#[derive(Clone, Copy, Debug, Default)]
struct Ending {
    id: u32,
    /// Hashes of a session's keys, outbound first.
    keys: [u32; 2],
    /// Hash of the key of its pod.
    pod: u32,
}

/// Sessions of one tenant that have ended, and the ports of their own that they had, before they are counted.
#[derive(Clone, Copy, Debug, Default)]
struct Ended {
    tenant: TenantId,
    sessions: u32,
    ports: u32,
}

impl Conntrack {
    /// Ends a session and frees its port.
    ///
    /// # Panics
    /// When it has ended.
    pub fn remove(&mut self, id: SessionId, now: Tick) {
        self.date(now);
        let ended = self.end(self.ending(id.0), Cause::Removed, now);
        self.shared.tenant(ended.tenant).end_many(ended.sessions, ended.ports);
    }

    /// Ends at most `bound` sessions whose time is over, and tells `on_end` how many of which tenant; returns how many
    /// entries ended.
    pub fn expire(
        &mut self,
        now: Tick,
        timeouts: &Timeouts,
        bound: usize,
        mut on_end: impl FnMut(TenantId, u32),
    ) -> usize {
        let mut ended = 0;
        self.date(now);
        let mut endings = [Ending::default(); SIDE_BY_SIDE];
        for class in TimeoutClass::ALL {
            loop {
                let wanted = (bound - ended).min(SIDE_BY_SIDE);
                let found = self.find_ending(class, now, timeouts, &mut endings[..wanted]);
                self.end_some(class, &endings[..found], now, &mut on_end);
                ended += found;
                if found < SIDE_BY_SIDE {
                    break;
                }
            }
        }
        ended
    }

    /// Ends some entries of a class.
    fn end_some(
        &mut self,
        class: TimeoutClass,
        endings: &[Ending],
        now: Tick,
        on_end: &mut impl FnMut(TenantId, u32),
    ) {
        if class == TimeoutClass::Resting {
            return endings.iter().for_each(|ending| self.end_rest(ending.id));
        }
        let mut all = Ended::default();
        for ending in endings {
            let cause = Cause::of_expired(self.slab.session(SessionId(ending.id)));
            let ended = self.end(*ending, cause, now);
            if ended.tenant != all.tenant {
                self.count(all, on_end);
                all = Ended { tenant: ended.tenant, ..Ended::default() };
            }
            all.sessions += ended.sessions;
            all.ports += ended.ports;
        }
        self.count(all, on_end);
    }

    fn count(&self, ended: Ended, on_end: &mut impl FnMut(TenantId, u32)) {
        let Ended { tenant, sessions, ports } = ended;
        if sessions > 0 {
            self.shared.tenant(tenant).end_many(sessions, ports);
            on_end(tenant, sessions);
        }
    }

    /// Finds the next entries of a class whose time is over, has fetched what their ends will change, and returns how many
    /// there are.
    fn find_ending(
        &self,
        class: TimeoutClass,
        now: Tick,
        timeouts: &Timeouts,
        endings: &mut [Ending],
    ) -> usize {
        let Some(oldest) = self.expiry.oldest(class) else { return 0 };
        let due = now.before(timeouts.of(class));
        let mut next = Some(oldest);
        let mut count = 0;
        for ending in &mut *endings {
            let Some(id) = next.filter(|id| due.reached(self.last_seen(*id))) else { break };
            *ending = self.ending(id);
            let Ending { keys: [outbound, inbound], pod, .. } = *ending;
            [outbound, inbound, pod].into_iter().for_each(|hash| self.index.fetch(hash));
            count += 1;
            next = self.slab.entry(id).following();
        }
        for ending in &endings[..count] {
            self.slab.fetch(self.index.first(ending.pod));
        }
        count
    }

    fn ending(&self, id: u32) -> Ending {
        match &self.slab.entry(id).kind {
            Kind::Session(session) => Ending {
                id,
                keys: [Direction::Outbound, Direction::Inbound].map(|side| self.hash(&session.key(side))),
                pod: self.hash_of_inside(session.tenant(), session.inside),
            },
            Kind::Anchor(_) | Kind::Free => Ending { id, ..Ending::default() },
        }
    }

    fn last_seen(&self, id: u32) -> Tick {
        match &self.slab.entry(id).kind {
            Kind::Session(session) => session.last_seen,
            Kind::Anchor(anchor) => anchor.tally.freed,
            Kind::Free => unreachable!("a free entry is in no expiry list"),
        }
    }

    /// Ends a session, which is still to be counted.
    fn end(&mut self, ending: Ending, cause: Cause, now: Tick) -> Ended {
        let Ending { id, keys, pod } = ending;
        let session = self.slab.session(SessionId(id)).clone();
        self.is_changing = true;
        self.expiry.unlink(self.slab.entries_mut(), id, session.class);
        for (hash, direction) in keys.into_iter().zip([Direction::Outbound, Direction::Inbound]) {
            self.index.remove(hash, Place { entry: id, direction });
        }
        self.slab.remove(id);
        if let Some(replica) = &mut self.replica {
            replica.remove(id);
        }
        self.note(|table| Event::Ended(table.translation(&session), cause));
        self.live -= 1;
        let own_ports = match session.port {
            PortHolder::Session => {
                self.free_port(session.tenant(), &session.outside_tuple());
                1
            }
            PortHolder::Lender(lender) => {
                self.return_port(lender, session.tenant(), session.outside_tuple(), false);
                1
            }
            PortHolder::Mapping { .. } => 0,
        };
        if session.has_peer() {
            self.leave_peer(&session);
        }
        let has_left_port = own_ports == 1 || self.leave_mapping(&session, now);
        self.leave_pod(&session, pod, u32::from(has_left_port));
        self.is_changing = false;
        Ended { tenant: session.tenant(), sessions: 1, ports: own_ports }
    }

    /// Counts a session out of its pod, whose key has this hash; the pod is forgotten with the last.
    fn leave_pod(&mut self, session: &Session, hash: u32, ports: u32) {
        let pod = self.lookup().find_pod(hash, session.tenant(), session.inside);
        let id = pod.expect("a session has its pod");
        let pod = self.slab.anchor_mut(id);
        pod.sessions -= 1;
        pod.tally.ports = pod.tally.ports.saturating_sub(ports);
        if pod.sessions == 0 {
            let outside = pod.outside;
            self.drop_entry(id);
            self.count_pod(outside, EgressPorts::remove_pod);
        }
    }

    fn leave_peer(&mut self, session: &Session) {
        let key = peer_key(session.tenant(), &session.outside_tuple());
        let id = self.find_entry(&key).expect("a session with a peer has it");
        let peer = self.slab.anchor_mut(id);
        peer.sessions -= 1;
        if peer.sessions == 0 {
            self.drop_entry(id);
        }
    }
}

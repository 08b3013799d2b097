//! All sessions of one worker.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::Arc;

use ahash::RandomState;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use thiserror::Error;

use crate::Epoch;
use crate::anchor::{Role, pod_key};
use crate::blocks::EgressPorts;
use crate::choose::{CROWDED_PORTS, Draws};
use crate::crowd::Crowds;
use crate::expiry::ExpiryLists;
use crate::flow::{Direction, Key, TenantId};
use crate::index::{Index, Place};
use crate::journal::{Cause, Event, Notebook};
use crate::lending::{LoanRequest, Return};
use crate::policy::Filtering;
use crate::replication::{Record, Replica};
use crate::session::{PortHolder, Session, SessionId};
use crate::shared::Shared;
use crate::slab::{Kind, Slab};
use crate::tcp::{TcpFlags, TcpSegment, TcpState};
use crate::time::{Tick, TimeoutClass, Timeouts};

/// One worker out of those that share the egress addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerSlot {
    /// Number of the worker, from 0.
    pub worker: u16,
    /// Number of workers.
    pub workers: u16,
}

/// What a check of a session under a snapshot found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Epoch of the snapshot.
    pub epoch: Epoch,
    /// Where outbound and inbound packets go next, in the caller's terms.
    pub next_hops: [u32; 2],
}

/// Why no session was made. Nothing is changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The table is full; live sessions are never removed to make room (RFC 6888 REQ-11).
    #[error("the session table is full")]
    SessionsFull,
    /// The tenant holds so much of the table that the rest is kept for others (see `share`).
    #[error("the tenant has its share of the session table, and the rest is kept for others")]
    TenantShare,
    /// Every port of the egress address is taken towards this destination.
    #[error("every outside port is taken towards this destination")]
    NoPort,
    /// This worker has no port to give, but another may: `ask` is the first to be asked (see [`crate::lending`]).
    #[error("another worker may have an outside port")]
    PortElsewhere {
        /// The worker to ask.
        ask: u16,
        /// What to ask for.
        request: LoanRequest,
    },
    /// The tenant has as many sessions as it may.
    #[error("the tenant has as many sessions as it may")]
    TenantSessions,
    /// The tenant has as many outside ports as it may.
    #[error("the tenant has as many outside ports as it may")]
    TenantPorts,
    /// The tenant has begun as many sessions in this second as it may.
    #[error("the tenant has begun as many sessions in this second as it may")]
    TenantRate,
    /// The pod has as many sessions as it may.
    #[error("the pod has as many sessions as it may")]
    PodSessions,
    /// The pod has as many outside ports as it may.
    #[error("the pod has as many outside ports as it may")]
    PodPorts,
    /// The pod has begun as many sessions in this second as it may.
    #[error("the pod has begun as many sessions in this second as it may")]
    PodRate,
}

/// What a key leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A session of this worker.
    Session(SessionId),
    /// A port that is lent to this worker, which has the session.
    Lent(u16),
}

/// The session table. All memory is taken by [`Conntrack::new`].
///
/// Besides sessions, which take an entry each, pods that have sessions take one, and so do endpoint-independent
/// mappings, and the addresses that they have sent to where filtering is address-dependent.
#[derive(Debug)]
pub struct Conntrack {
    pub(crate) slab: Slab,
    pub(crate) live: u32,
    /// Entries that stand for all destinations of a port: mappings, and mappings that are lent.
    pub(crate) mappings: u32,
    pub(crate) index: Index,
    pub(crate) expiry: ExpiryLists,
    pub(crate) slot: WorkerSlot,
    pub(crate) shared: Arc<Shared>,
    pub(crate) crowds: Crowds,
    pub(crate) returns: Vec<Return>,
    pub(crate) hasher: RandomState,
    pub(crate) draws: Draws,
    /// What a table begins with that comes after this one.
    next_seed: [u8; 32],
    /// When the session in each entry began.
    pub(crate) begun: Box<[Tick]>,
    pub(crate) is_changing: bool,
    pub(crate) replica: Option<Box<dyn Replica>>,
    pub(crate) notebook: Option<Notebook>,
}

impl Conntrack {
    /// Makes a table of `capacity` entries for one worker. `seed` decides hashing and the choice of ports.
    pub fn new(capacity: u32, slot: WorkerSlot, shared: Arc<Shared>, seed: [u8; 32]) -> Self {
        let capacity = capacity.clamp(1, u32::MAX / 4);
        let mut rng = StdRng::from_seed(seed);
        let hasher = RandomState::with_seeds(rng.random(), rng.random(), rng.random(), rng.random());
        Self {
            slab: Slab::new(capacity),
            live: 0,
            mappings: 0,
            index: Index::new(capacity),
            expiry: ExpiryLists::default(),
            slot,
            shared,
            crowds: Crowds::new(capacity, CROWDED_PORTS, hasher.clone()),
            returns: Vec::with_capacity(1024),
            hasher,
            draws: Draws::new(rng.random()),
            next_seed: rng.random(),
            begun: vec![Tick::default(); capacity as usize].into(),
            is_changing: false,
            replica: None,
            notebook: None,
        }
    }

    /// Has every session taken down from now on, outside the table.
    pub fn replicate_to(&mut self, replica: Box<dyn Replica>) {
        self.replica = Some(replica);
    }

    /// Takes what workers share under a new snapshot.
    pub fn adopt(&mut self, shared: Arc<Shared>) {
        self.shared = shared;
    }

    /// Returns what this worker shares with the others.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Forgets all sessions and returns their ports; hashing and ports are drawn anew. The other workers must be told
    /// ([`Conntrack::forget_worker`]).
    pub fn forget_all(&mut self) {
        self.shared.begin_life(self.slot.worker);
        let (mut replica, mut notebook) = (self.replica.take(), self.notebook.take());
        for (id, entry) in self.slab.range(0, self.capacity()) {
            match &entry.kind {
                Kind::Session(session) => {
                    if let Some(replica) = &mut replica {
                        replica.remove(id);
                    }
                    if let Some(notebook) = &mut notebook {
                        notebook.note(&Event::Ended(self.translation(session), Cause::Lost));
                    }
                    let own_ports = u32::from(!matches!(session.port, PortHolder::Mapping { .. }));
                    self.shared.tenant(session.tenant()).end(own_ports);
                }
                Kind::Anchor(anchor) => match anchor.role {
                    // The port of one that rests was counted out with its last session.
                    Role::Mapping { .. } if anchor.sessions == 0 => {}
                    Role::Mapping { .. } => self.shared.tenant(anchor.tenant).end_port(),
                    Role::Pod => self.count_pod(anchor.outside, EgressPorts::remove_pod),
                    Role::Peer | Role::LentPort { .. } | Role::LentMapping { .. } => {}
                },
                Kind::Free => {}
            }
        }
        self.shared.give_back_all(self.slot.worker, |egress, port| {
            if let Some(notebook) = &mut notebook {
                notebook.note(&Event::BlockReturned(egress, port));
            }
        });
        *self = Self::new(self.capacity(), self.slot, Arc::clone(&self.shared), self.next_seed);
        (self.replica, self.notebook) = (replica, notebook);
    }

    /// Returns the worker whose table it is.
    pub fn slot(&self) -> WorkerSlot {
        self.slot
    }

    /// Returns the number of live sessions.
    pub fn len(&self) -> u32 {
        self.live
    }

    /// Tells whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Returns the number of entries that fit.
    pub fn capacity(&self) -> u32 {
        self.slab.capacity()
    }

    /// Returns the number of free entries.
    pub fn room(&self) -> u32 {
        self.slab.room()
    }

    /// Returns the memory taken for entries, their index and port bitmaps, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.slab.memory_bytes()
            + self.index.memory_bytes()
            + self.crowds.memory_bytes()
            + size_of_val(&*self.begun)
    }

    /// Returns where entries and index lie, for whoever cares for how memory is mapped.
    pub fn memory(&self) -> [Range<*const u8>; 2] {
        [self.slab.memory(), self.index.memory()]
    }

    /// Tells whether a change was begun and not finished: after a panic the table is then of no use.
    pub fn is_torn(&self) -> bool {
        self.is_changing
    }

    /// Returns what a key of a packet leads to.
    pub fn find(&self, key: &Key) -> Option<Found> {
        let id = self.find_entry(key)?;
        match &self.slab.entry(id).kind {
            Kind::Session(_) => Some(Found::Session(SessionId(id))),
            Kind::Anchor(anchor) => match anchor.role {
                Role::LentPort { borrower } | Role::LentMapping { borrower } => Some(Found::Lent(borrower)),
                Role::Pod | Role::Mapping { .. } | Role::Peer => None,
            },
            Kind::Free => None,
        }
    }

    /// Returns a session.
    ///
    /// # Panics
    /// When it has ended.
    pub fn session(&self, id: SessionId) -> &Session {
        self.slab.session(id)
    }

    /// Returns live sessions, starting at entry `from`, out of the next `span` entries.
    pub fn scan(&self, from: u32, span: u32) -> impl Iterator<Item = &Session> {
        self.scan_entries(from, span).map(|(_, session)| session)
    }

    /// The same, each with its entry.
    pub fn scan_entries(&self, from: u32, span: u32) -> impl Iterator<Item = (SessionId, &Session)> {
        self.slab.range(from, span).filter_map(|(id, entry)| match &entry.kind {
            Kind::Session(session) => Some((SessionId(id), session)),
            Kind::Free | Kind::Anchor(_) => None,
        })
    }

    /// Returns when a session began, or was taken up from the process before.
    pub fn begun(&self, id: SessionId) -> Tick {
        self.begun[id.0 as usize]
    }

    /// Returns a session as another table can take it up.
    ///
    /// # Panics
    /// When it has ended.
    pub fn record(&self, id: SessionId) -> Record {
        self.record_of(self.slab.session(id), false)
    }

    /// Notes a packet of a session: moves its TCP state on and gives it new time where the state allows.
    pub fn touch(
        &mut self,
        id: SessionId,
        direction: Direction,
        segment: &TcpSegment,
        now: Tick,
        timeouts: &Timeouts,
    ) {
        let session = self.slab.session_mut(id);
        let (mut class, mut has_moved_on) = (session.class, false);
        match session.protocol() {
            crate::Protocol::Tcp => {
                let next = session.tcp.advance(&mut session.expected, direction, segment);
                if next != session.tcp {
                    session.tcp = next;
                    has_moved_on = true;
                    class = timeouts.class_of(session.protocol(), next, session.remote_port);
                } else if !next.is_refreshed() || segment.flags.has(TcpFlags::RST) {
                    // RFC 7857 section 7: nor does a RST that changes nothing give new time.
                    return;
                }
            }
            crate::Protocol::Udp if direction == Direction::Inbound && !timeouts.inbound_refreshes => return,
            crate::Protocol::Udp | crate::Protocol::Icmp | crate::Protocol::Portless(_) => {}
        }
        let is_in_order = session.class == class && session.last_seen.is_in_same_span(now);
        session.last_seen = now;
        if !is_in_order {
            self.classify(id, class);
        }
        if has_moved_on {
            self.replicate(id, false);
        }
    }

    /// Puts a session at the end of the list of its timeout class.
    pub(crate) fn classify(&mut self, id: SessionId, class: TimeoutClass) {
        let before = std::mem::replace(&mut self.slab.session_mut(id).class, class);
        self.is_changing = true;
        self.expiry.unlink(self.slab.entries_mut(), id.0, before);
        self.expiry.append(self.slab.entries_mut(), id.0, class);
        self.is_changing = false;
    }

    /// Has a session taken down. `rests` tells whether the port of its mapping rests when it is freed.
    pub(crate) fn replicate(&mut self, id: SessionId, rests: bool) {
        if self.replica.is_none() {
            return;
        }
        let record = self.record_of(self.slab.session(id), rests);
        if let Some(replica) = &mut self.replica {
            replica.put(id.0, &record);
        }
    }

    fn record_of(&self, session: &Session, rests: bool) -> Record {
        let mapping = match session.port {
            PortHolder::Session | PortHolder::Lender(_) => None,
            PortHolder::Mapping { has_peer: true } => Some(Filtering::AddressDependent),
            PortHolder::Mapping { .. } if rests => Some(Filtering::EndpointIndependent),
            PortHolder::Mapping { .. } => Some(Filtering::AddressAndPortDependent),
        };
        Record {
            gateway: self.shared.tenant(session.tenant()).gateway(),
            inside_tuple: session.inside_tuple(),
            outside: (session.outside, session.outside_port),
            tcp: session.tcp_state().unwrap_or(TcpState::Opening),
            mapping,
        }
    }

    /// Notes that a session was checked under a snapshot.
    pub fn revise(&mut self, id: SessionId, revision: Revision) {
        let session = self.slab.session_mut(id);
        session.epoch = revision.epoch;
        session.next_hops = revision.next_hops;
    }

    /// Returns the entry under a key.
    pub(crate) fn find_entry(&self, key: &Key) -> Option<u32> {
        self.lookup().find(key)
    }

    /// Returns the part of the table that finds entries.
    pub(crate) fn lookup(&self) -> Lookup<'_> {
        Lookup { slab: &self.slab, index: &self.index, hasher: &self.hasher }
    }

    /// Puts something into the table, under its keys.
    pub(crate) fn put_entry(&mut self, kind: Kind) -> u32 {
        let entry = self.slab.insert(kind);
        for direction in [Direction::Outbound, Direction::Inbound] {
            if let Some(key) = self.slab.entry(entry).key(direction) {
                self.index.insert(self.hash(&key), Place { entry, direction });
            }
        }
        entry
    }

    /// Puts a session into the table, under its keys.
    pub(crate) fn put_session(&mut self, session: Session) -> u32 {
        let keys =
            [Direction::Outbound, Direction::Inbound].map(|direction| (direction, session.key(direction)));
        let entry = self.slab.insert(Kind::Session(session));
        for (direction, key) in keys {
            self.index.insert(self.hash(&key), Place { entry, direction });
        }
        entry
    }

    /// Takes an entry out of the table.
    pub(crate) fn drop_entry(&mut self, entry: u32) {
        for direction in [Direction::Outbound, Direction::Inbound] {
            if let Some(key) = self.slab.entry(entry).key(direction) {
                self.index.remove(self.hash(&key), Place { entry, direction });
            }
        }
        self.slab.remove(entry);
    }

    /// Returns the hash of the key of a pod.
    #[inline]
    pub(crate) fn hash_of_inside(&self, tenant: TenantId, inside: Ipv4Addr) -> u32 {
        self.hash(&pod_key(tenant, inside))
    }

    #[inline]
    pub(crate) fn hash(&self, key: &Key) -> u32 {
        hash(&self.hasher, key)
    }
}

/// What finds entries, while the rest of the table is changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lookup<'a> {
    pub(crate) slab: &'a Slab,
    pub(crate) index: &'a Index,
    pub(crate) hasher: &'a RandomState,
}

impl Lookup<'_> {
    /// Returns the entry under a key.
    pub(crate) fn find(self, key: &Key) -> Option<u32> {
        self.find_under(hash(self.hasher, key), key)
    }

    /// Returns the entry of a pod whose key has this hash.
    pub(crate) fn find_pod(self, hash: u32, tenant: TenantId, inside: Ipv4Addr) -> Option<u32> {
        let is_pod = |place: Place| match &self.slab.entry(place.entry).kind {
            Kind::Anchor(anchor) => {
                anchor.role == Role::Pod && (anchor.tenant, anchor.inside) == (tenant, inside)
            }
            Kind::Session(_) | Kind::Free => false,
        };
        Some(self.index.find(hash, is_pod)?.entry)
    }

    /// Returns the entry under a key, which has this hash.
    pub(crate) fn find_under(self, hash: u32, key: &Key) -> Option<u32> {
        let is_match = |place: Place| self.slab.entry(place.entry).key(place.direction) == Some(*key);
        Some(self.index.find(hash, is_match)?.entry)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "both halves of the hash are folded into one")]
fn hash(hasher: &RandomState, key: &Key) -> u32 {
    let hash = hasher.hash_one(key);
    (hash ^ (hash >> 32)) as u32
}

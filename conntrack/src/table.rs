//! All sessions of one worker.

use std::net::Ipv4Addr;

use ahash::RandomState;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use thiserror::Error;

use crate::Epoch;
use crate::checksum::ChecksumDelta;
use crate::crowd::{Crowds, Destination, Taken};
use crate::expiry::{ExpiryLists, NIL};
use crate::flow::{Direction, FiveTuple, Key, Portless, Protocol, TenantId};
use crate::index::{Index, Place};
use crate::ports::{NO_PORTS, PortShare, SYSTEM_PORTS, class_of, port_at};
use crate::session::{Session, SessionId};
use crate::tcp::{TcpFlags, TcpState};
use crate::time::{Tick, TimeoutClass, Timeouts};

/// A session that shall be made for an outbound packet.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// Tenant of the packet.
    pub tenant: TenantId,
    /// The packet's tuple as it came from the pod.
    pub tuple: FiveTuple,
    /// Egress address that shall stand for the pod.
    pub outside: Ipv4Addr,
    /// What the session is checked under, and where its packets go.
    pub revision: Revision,
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
    /// Every port of the egress address that this worker may hand out is taken towards this destination.
    #[error("every outside port is taken towards this destination")]
    NoPort,
}

/// The session table. All memory is taken by [`Conntrack::new`].
#[derive(Debug)]
pub struct Conntrack {
    sessions: Vec<Session>,
    first_free: u32,
    live: u32,
    index: Index,
    expiry: ExpiryLists,
    ports: PortShare,
    crowds: Crowds,
    hasher: RandomState,
    rng: StdRng,
    is_changing: bool,
}

impl Conntrack {
    /// Makes a table for `capacity` sessions that hands out the ports of `ports`. `seed` decides hashing and
    /// the choice of ports.
    pub fn new(capacity: u32, ports: PortShare, seed: [u8; 32]) -> Self {
        let capacity = capacity.clamp(1, u32::MAX / 4);
        let mut rng = StdRng::from_seed(seed);
        let hasher = RandomState::with_seeds(rng.random(), rng.random(), rng.random(), rng.random());
        let sessions =
            (0..capacity).map(|id| Session::empty(if id + 1 < capacity { id + 1 } else { NIL })).collect();
        Self {
            sessions,
            first_free: 0,
            live: 0,
            index: Index::new(capacity),
            expiry: ExpiryLists::default(),
            ports,
            crowds: Crowds::new(capacity, ports.ports(), hasher.clone()),
            hasher,
            rng,
            is_changing: false,
        }
    }

    /// Forgets all sessions; hashing and ports are drawn anew.
    pub fn forget_all(&mut self) {
        *self = Self::new(self.capacity(), self.ports, self.rng.random());
    }

    /// Returns the number of live sessions.
    pub fn len(&self) -> u32 {
        self.live
    }

    /// Tells whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Returns the number of sessions that fit.
    pub fn capacity(&self) -> u32 {
        // The length came from a u32 in `new`.
        u32::try_from(self.sessions.len()).expect("the capacity is a u32")
    }

    /// Returns the memory taken for sessions, their index and port bitmaps, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let sessions = self.sessions.len() * size_of::<Session>();
        sessions + self.index.memory_bytes() + self.crowds.memory_bytes()
    }

    /// Tells whether a change was begun and not finished: after a panic the table is then of no use.
    pub fn is_torn(&self) -> bool {
        self.is_changing
    }

    /// Returns the session that a key belongs to.
    pub fn find(&self, key: &Key) -> Option<SessionId> {
        find(&self.index, &self.sessions, &self.hasher, key)
    }

    /// Returns a session.
    pub fn session(&self, id: SessionId) -> &Session {
        &self.sessions[id.0 as usize]
    }

    /// Returns live sessions, starting at slab entry `from`, out of the next `span` entries.
    pub fn scan(&self, from: u32, span: u32) -> impl Iterator<Item = &Session> {
        let from = from.min(self.capacity()) as usize;
        let to = from.saturating_add(span as usize).min(self.sessions.len());
        self.sessions[from..to].iter().filter(|session| session.is_live)
    }

    /// Makes a session for the first packet of a flow that has none. TCP starts as opening.
    ///
    /// # Errors
    /// When there is no room, or no port.
    #[cold]
    pub fn admit(&mut self, admission: &Admission, now: Tick) -> Result<SessionId, Refusal> {
        if self.first_free == NIL {
            return Err(Refusal::SessionsFull);
        }
        let outside_port = self.choose_port(admission)?;
        let id = SessionId(self.first_free);
        let session = prepare(admission, outside_port, now);
        let keys = [session.key(Direction::Outbound), session.key(Direction::Inbound)];
        self.is_changing = true;
        self.first_free = self.sessions[id.0 as usize].next;
        self.sessions[id.0 as usize] = session;
        self.live += 1;
        self.index.insert(self.hash(&keys[0]), Place { session: id, direction: Direction::Outbound });
        self.index.insert(self.hash(&keys[1]), Place { session: id, direction: Direction::Inbound });
        self.expiry.append(&mut self.sessions, id);
        self.count_port(id, Crowds::take);
        self.is_changing = false;
        Ok(id)
    }

    /// Notes a packet of a session: moves its TCP state on and gives it new time where the state allows.
    pub fn touch(&mut self, id: SessionId, direction: Direction, flags: TcpFlags, now: Tick) {
        let session = &mut self.sessions[id.0 as usize];
        let class = match session.protocol {
            Protocol::Udp | Protocol::Icmp | Protocol::Portless(_) => session.class,
            Protocol::Tcp => {
                let next = session.tcp.next(direction, flags);
                if next == session.tcp && !next.is_refreshed() {
                    return;
                }
                session.tcp = next;
                next.class()
            }
        };
        if session.last_seen == now && session.class == class {
            return;
        }
        self.is_changing = true;
        self.expiry.unlink(&mut self.sessions, id);
        self.sessions[id.0 as usize].last_seen = now;
        self.sessions[id.0 as usize].class = class;
        self.expiry.append(&mut self.sessions, id);
        self.is_changing = false;
    }

    /// Notes that a session was checked under a snapshot.
    pub fn revise(&mut self, id: SessionId, revision: Revision) {
        let session = &mut self.sessions[id.0 as usize];
        session.epoch = revision.epoch;
        session.next_hops = revision.next_hops;
    }

    /// Ends a session and frees its port.
    ///
    /// # Panics
    /// When it is not live.
    pub fn remove(&mut self, id: SessionId) {
        assert!(self.session(id).is_live, "a session ends once");
        self.is_changing = true;
        for direction in [Direction::Outbound, Direction::Inbound] {
            let hash = self.hash(&self.session(id).key(direction));
            self.index.remove(hash, Place { session: id, direction });
        }
        self.expiry.unlink(&mut self.sessions, id);
        self.count_port(id, Crowds::give_back);
        self.sessions[id.0 as usize] = Session::empty(self.first_free);
        self.first_free = id.0;
        self.live -= 1;
        self.is_changing = false;
    }

    /// Ends at most `bound` sessions whose time is over, and shows each to `on_end` first; returns how many.
    pub fn expire(
        &mut self,
        now: Tick,
        timeouts: &Timeouts,
        bound: usize,
        mut on_end: impl FnMut(&Session),
    ) -> usize {
        let mut ended = 0;
        for class in TimeoutClass::ALL {
            while ended < bound
                && let Some(id) = self.expiry.oldest(class)
                && now.reached(self.session(id).last_seen.after(timeouts.of(class)))
            {
                on_end(self.session(id));
                self.remove(id);
                ended += 1;
            }
        }
        ended
    }

    fn count_port(&mut self, id: SessionId, count: fn(&mut Crowds, &Destination, u16)) {
        if !self.crowds.is_empty() {
            let (tenant, tuple) = (self.session(id).tenant, self.session(id).outside_tuple());
            count(&mut self.crowds, &Destination::of(tenant, &tuple), tuple.source_port);
        }
    }

    /// Returns a random port that is free towards the destination; an error only when there is none.
    fn choose_port(&mut self, admission: &Admission) -> Result<u16, Refusal> {
        let Admission { tenant, tuple, outside, .. } = *admission;
        let outside_tuple = FiveTuple { source: outside, ..tuple };
        let destination = Destination::of(tenant, &outside_tuple);
        let class = class_of(tuple.protocol, tuple.source_port);
        let random = self.rng.random();
        let (start, share) = (port_at(random, &class), self.ports);
        if let Some(found) = self.crowds.free_port(&destination, &class, start) {
            return found.ok_or(Refusal::NoPort);
        }
        let (index, sessions, hasher) = (&self.index, &self.sessions, &self.hasher);
        let is_free = |port| {
            let outside_tuple = FiveTuple { source_port: port, ..outside_tuple };
            let key = Key::new(tenant, Direction::Inbound, &outside_tuple.reversed());
            find(index, sessions, hasher, &key).is_none()
        };
        if let Some(port) = share.probe(random, &class, is_free) {
            return Ok(port);
        }
        if class == SYSTEM_PORTS || class == NO_PORTS {
            return class.into_iter().find(|port| share.owns(*port) && is_free(*port)).ok_or(Refusal::NoPort);
        }
        self.crowds.watch(destination, |port| match (share.owns(port), is_free(port)) {
            (false, _) => Taken::ByOthers,
            (true, true) => Taken::No,
            (true, false) => Taken::BySession,
        });
        self.crowds.free_port(&destination, &class, start).flatten().ok_or(Refusal::NoPort)
    }

    fn hash(&self, key: &Key) -> u32 {
        hash(&self.hasher, key)
    }
}

fn find(index: &Index, sessions: &[Session], hasher: &RandomState, key: &Key) -> Option<SessionId> {
    let is_match = |place: Place| sessions[place.session.0 as usize].key(place.direction) == *key;
    Some(index.find(hash(hasher, key), is_match)?.session)
}

#[expect(clippy::cast_possible_truncation, reason = "both halves of the hash are folded into one")]
fn hash(hasher: &RandomState, key: &Key) -> u32 {
    let hash = hasher.hash_one(key);
    (hash ^ (hash >> 32)) as u32
}

fn prepare(admission: &Admission, outside_port: u16, now: Tick) -> Session {
    let Admission { tenant, tuple, outside, revision } = *admission;
    let header_delta = ChecksumDelta::default().replace_address(tuple.source, outside);
    let base = match tuple.protocol {
        Protocol::Tcp | Protocol::Udp | Protocol::Portless(Portless::UdpLite) => header_delta,
        Protocol::Icmp | Protocol::Portless(_) => ChecksumDelta::default(),
    };
    Session {
        inside: tuple.source,
        remote: tuple.destination,
        outside,
        inside_port: tuple.source_port,
        remote_port: tuple.destination_port,
        outside_port,
        tenant,
        protocol: tuple.protocol,
        tcp: TcpState::Opening,
        class: match tuple.protocol {
            Protocol::Tcp => TcpState::Opening.class(),
            Protocol::Udp | Protocol::Portless(_) => TimeoutClass::Udp,
            Protocol::Icmp => TimeoutClass::IcmpQuery,
        },
        is_live: true,
        header_delta,
        transport_delta: base.replace(tuple.source_port, outside_port),
        epoch: revision.epoch,
        last_seen: now,
        previous: NIL,
        next: NIL,
        next_hops: revision.next_hops,
    }
}

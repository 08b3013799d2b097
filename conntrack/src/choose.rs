//! Chooses the outside port of a new session: random among the free ones (RFC 6056), to the last.
//!
//! Random look-ups find a port while most are free. A destination where they fail is crowded, and gets a bitmap
//! ([`crate::crowd`]). When this worker's blocks have no port left it claims another block, and when there is none, the
//! other workers are asked ([`crate::lending`]).

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::admit::has_ports;
use crate::ahead::Candidate;
use crate::anchor::mapping_key_outside;
use crate::blocks::{BLOCK_PORTS, BLOCKS, EgressPorts};
use crate::crowd::{Destination, FreePort, Taken};
use crate::flow::{Direction, FiveTuple, Key, Protocol, Scope, Tail, TenantId};
use crate::journal::Event;
use crate::lending::LoanRequest;
use crate::pairing::mix;
use crate::ports::{SYSTEM_PORTS, class_of, port_at};
use crate::table::{Conntrack, Lookup, Refusal};

/// Ports of this worker that are tried at random before a destination counts as crowded: enough to find one of many.
const PROBES: u32 = 16;

/// Random numbers that are drawn before their turn at most.
const FORESEEN: usize = 64;

/// Ports of a crowded destination that are looked at for each session, until all are known: so few that a session costs
/// microseconds, and enough that all are known long before the last is taken.
const LEARNT_AT_ONCE: u32 = 64;

/// Blocks of a worker from which on a bitmap is worth its memory; fewer are looked through.
const CROWDED_BLOCKS: u32 = 32;

/// The ports of as many blocks: half of them in use towards a destination keep its bitmap, so that bitmaps take 8 bytes
/// a session at most.
pub(crate) const CROWDED_PORTS: u32 = CROWDED_BLOCKS * BLOCK_PORTS as u32;

/// What a port is wanted for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    tenant: TenantId,
    /// Its source port is the inside port, which decides the class.
    outside_tuple: FiveTuple,
    destination: Destination,
}

impl Wanted {
    pub(crate) fn new(request: &LoanRequest) -> Self {
        let LoanRequest { tenant, outside_tuple, is_mapping, .. } = *request;
        let towards = if is_mapping { outside_tuple.towards_anybody() } else { outside_tuple };
        Self { tenant, outside_tuple, destination: Destination::of(tenant, &towards) }
    }

    fn class(&self) -> RangeInclusive<u16> {
        class_of(self.outside_tuple.protocol, self.outside_tuple.source_port)
    }

    /// Tells whether a port of this worker is free: for a mapping too, towards its first destination, where sessions from
    /// before its tenant's mapping changed may have the port. `mappings` tells how many ports are mapped.
    fn is_free(&self, lookup: Lookup<'_>, mappings: u32, port: u16) -> bool {
        let has_mapping = || {
            let FiveTuple { source, protocol, .. } = self.outside_tuple;
            let key = mapping_key_outside(self.tenant, protocol, (source, port));
            lookup.find(&key).is_some()
        };
        let key = reply_key(self.tenant, &self.outside_tuple, port);
        lookup.find(&key).is_none() && (mappings == 0 || !has_mapping())
    }
}

/// Returns the key of what answers packets of a session with this outside port.
fn reply_key(tenant: TenantId, outside_tuple: &FiveTuple, port: u16) -> Key {
    let FiveTuple { source, destination, destination_port, protocol, .. } = *outside_tuple;
    let tail = Tail::new(Scope::Session, tenant, protocol.number()).in_direction(Direction::Inbound);
    Key::between((destination, destination_port), (source, port), tail)
}

/// Random numbers that ports are drawn with, in an order that does not depend on who looks at those to come.
#[derive(Debug)]
pub(crate) struct Draws {
    rng: StdRng,
    to_come: VecDeque<u64>,
}

impl Draws {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self { rng: StdRng::from_seed(seed), to_come: VecDeque::with_capacity(FORESEEN) }
    }

    fn next(&mut self) -> u64 {
        self.to_come.pop_front().unwrap_or_else(|| self.rng.random())
    }

    /// Returns the number that will be drawn after so many others, if it is one of the next [`FORESEEN`].
    fn foresee(&mut self, others: usize) -> Option<u64> {
        while self.to_come.len() <= others.min(FORESEEN - 1) {
            self.to_come.push_back(self.rng.random());
        }
        self.to_come.get(others).copied()
    }
}

impl Conntrack {
    /// Returns a random port of this worker that is free for what would be asked of others, if it has none.
    pub(crate) fn choose_port(&mut self, request: LoanRequest) -> Result<u16, Refusal> {
        let wanted = Wanted::new(&request);
        let home = self.home_of(&request.outside_tuple);
        if home.is_none_or(|home| home == self.slot.worker)
            && let Some(port) = self.free_port_here(&wanted)
        {
            return Ok(port);
        }
        match home {
            Some(home) if home != self.slot.worker => Err(Refusal::PortElsewhere { ask: home, request }),
            None if self.slot.workers > 1 => {
                let ask = (self.slot.worker + 1) % self.slot.workers;
                Err(Refusal::PortElsewhere { ask, request })
            }
            Some(_) | None => Err(Refusal::NoPort),
        }
    }

    /// Has fetched what decides about the port of a session that a packet of this key may open, when so many others have been
    /// opened before. `pod` is where the key of its pod leads.
    pub fn fetch_reply(&mut self, key: &Key, pod: Candidate, others: usize) {
        if let Some(tuple) = key.tuple()
            && let Some(outside) = self.paired_with(pod)
            && let Some(random) = self.draws.foresee(others)
        {
            let port = probed_port(random, 0, &class_of(tuple.protocol, tuple.source_port));
            let reply = reply_key(key.tenant(), &FiveTuple { source: outside, ..tuple }, port);
            self.index.fetch(self.hash(&reply));
        }
    }

    /// Returns a port for a session that this worker can give out of its own.
    pub(crate) fn free_port_here(&mut self, wanted: &Wanted) -> Option<u16> {
        if !has_ports(wanted.outside_tuple.protocol) {
            return self.is_free(wanted, 0).then_some(0);
        }
        let random = self.draws.next();
        let class = wanted.class();
        let first = probed_port(random, 0, &class);
        if self.crowds.is_empty() && self.has_free(wanted, first) {
            return Some(first);
        }
        let shared = std::sync::Arc::clone(&self.shared);
        let ports = shared.ports(wanted.outside_tuple.source)?;
        if class == SYSTEM_PORTS {
            return self
                .probe(wanted, ports, random)
                .or_else(|| self.system_port(wanted, ports, port_at(random, &class)));
        }
        let start = port_at(random, &class);
        match self.crowded_port(wanted, ports, start) {
            FreePort::Port(port) => Some(port),
            FreePort::None => self.claim_block(wanted, ports, start),
            FreePort::Unknown | FreePort::Unwatched => self
                .probe(wanted, ports, random)
                .or_else(|| self.claim_block(wanted, ports, start))
                .or_else(|| self.search(wanted, ports, start)),
        }
    }

    /// Tells whether a port is free in a block that this worker has: nearly always so with the first that is tried.
    fn has_free(&self, wanted: &Wanted, port: u16) -> bool {
        let ports = self.shared.ports(wanted.outside_tuple.source);
        let is_ours =
            |ports: &EgressPorts| ports.owner(port) == Some(self.slot.worker) && !ports.is_exhausted(port);
        ports.is_some_and(is_ours) && self.is_free(wanted, port)
    }

    /// Returns a port of a destination that is known to be crowded.
    fn crowded_port(&mut self, wanted: &Wanted, ports: &EgressPorts, start: u16) -> FreePort {
        if self.crowds.is_empty() {
            return FreePort::Unwatched;
        }
        self.learn(wanted, ports);
        self.known_port(wanted, ports, start)
    }

    /// Returns a port that the bitmap of a crowded destination has as free.
    fn known_port(&mut self, wanted: &Wanted, ports: &EgressPorts, start: u16) -> FreePort {
        let class = wanted.class();
        // What the bitmap does not know of, a mapping or a session from before its tenant's mapping changed, is noted
        // when it is found.
        for _ in 0..PROBES {
            match self.crowds.free_port(&wanted.destination, &class, start) {
                FreePort::Port(port) if !self.is_free(wanted, port) || ports.is_exhausted(port) => {
                    self.crowds.take(&wanted.destination, port);
                }
                found => return found,
            }
        }
        FreePort::None
    }

    /// Tries random ports.
    fn probe(&mut self, wanted: &Wanted, ports: &EgressPorts, random: u64) -> Option<u16> {
        let class = wanted.class();
        let mut left = PROBES;
        for probe in 0..u64::from(PROBES) * 2 * u64::from(self.slot.workers) {
            let port = probed_port(random, probe, &class);
            if self.may_use(ports, wanted, port) {
                if self.is_free(wanted, port) {
                    return Some(port);
                }
                left -= 1;
                if left == 0 {
                    return None;
                }
            }
        }
        None
    }

    /// Looks at every system port, from `start` on: those of this worker first, then those that nobody owns.
    fn system_port(&mut self, wanted: &Wanted, ports: &EgressPorts, start: u16) -> Option<u16> {
        let mut all = (start..=*SYSTEM_PORTS.end()).chain(*SYSTEM_PORTS.start()..start);
        let mut own = all.clone().filter(|port| ports.owner(*port) == Some(self.slot.worker));
        own.find(|port| !ports.is_exhausted(*port) && self.is_free(wanted, *port))
            .or_else(|| all.find(|port| self.claim(ports, wanted, *port)))
    }

    /// Looks at every port of this worker.
    fn search(&mut self, wanted: &Wanted, ports: &EgressPorts, start: u16) -> Option<u16> {
        let has_many = ports.blocks_of(self.slot.worker) >= CROWDED_BLOCKS;
        if !has_many || !self.crowds.begin(wanted.destination, start) {
            return self.walk(wanted, ports, start);
        }
        for _ in 0..=u32::from(u16::MAX) / LEARNT_AT_ONCE {
            self.learn(wanted, ports);
            match self.known_port(wanted, ports, start) {
                FreePort::Port(port) => return Some(port),
                FreePort::Unknown => {}
                FreePort::None | FreePort::Unwatched => return None,
            }
        }
        None
    }

    /// Looks at each port of this worker's few blocks.
    fn walk(&self, wanted: &Wanted, ports: &EgressPorts, start: u16) -> Option<u16> {
        let class = wanted.class();
        let first = start / BLOCK_PORTS;
        let blocks = (0..BLOCKS).map(|block| (first + block) % BLOCKS * BLOCK_PORTS);
        let own = blocks.filter(|port| ports.owner(*port) == Some(self.slot.worker));
        own.flat_map(|first| (0..BLOCK_PORTS).map(move |port| first + port))
            .filter(|port| class.contains(port) && !ports.is_exhausted(*port))
            .find(|port| self.is_free(wanted, *port))
    }

    /// Claims a block of the class that nobody owns, the first from `start` on, and returns a port of it.
    fn claim_block(&mut self, wanted: &Wanted, ports: &EgressPorts, start: u16) -> Option<u16> {
        let class = wanted.class();
        let first = start / BLOCK_PORTS;
        let starts = (0..BLOCKS).map(|block| (first + block) % BLOCKS * BLOCK_PORTS + start % BLOCK_PORTS);
        starts.filter(|port| class.contains(port)).find(|port| self.claim(ports, wanted, *port))
    }

    /// Tells whether this worker may hand out a port: it owns the block, or claims it now. Others may want blocks too, so
    /// only a fair share is claimed before it is needed.
    fn may_use(&mut self, ports: &EgressPorts, wanted: &Wanted, port: u16) -> bool {
        match ports.owner(port) {
            Some(owner) => owner == self.slot.worker && !ports.is_exhausted(port),
            None => {
                let fair_share = u32::from(BLOCKS.div_ceil(self.slot.workers));
                ports.blocks_of(self.slot.worker) < fair_share && self.claim(ports, wanted, port)
            }
        }
    }

    /// Claims the block of a port; tells whether it was free.
    fn claim(&mut self, ports: &EgressPorts, wanted: &Wanted, port: u16) -> bool {
        let is_claimed = ports.claim(port, self.slot.worker);
        let egress = wanted.outside_tuple.source;
        if is_claimed {
            self.note(|_| Event::BlockTaken(egress, *block_of(port).start()));
        }
        if is_claimed && !self.crowds.is_empty() {
            self.crowds.open_block(wanted.tenant, egress, &block_of(port));
        }
        is_claimed
    }

    /// Looks at some more ports of a crowded destination.
    fn learn(&mut self, wanted: &Wanted, ports: &EgressPorts) {
        let lookup = Lookup { slab: &self.slab, index: &self.index, hasher: &self.hasher };
        let (mappings, worker) = (self.mappings, self.slot.worker);
        self.crowds.learn(&wanted.destination, LEARNT_AT_ONCE, |port| match ports.owner(port) {
            Some(owner) if owner == worker && wanted.is_free(lookup, mappings, port) => Taken::No,
            Some(owner) if owner == worker => Taken::BySession,
            Some(_) | None => Taken::ByOthers,
        });
    }

    fn is_free(&self, wanted: &Wanted, port: u16) -> bool {
        wanted.is_free(self.lookup(), self.mappings, port)
    }

    /// Tells whether everything that uses the block of a port of this worker is a mapping, here or lent.
    pub(crate) fn has_mappings_only(&self, wanted: &Wanted, port: u16) -> bool {
        let egress = wanted.outside_tuple.source;
        let is_mapped = |protocol, port| {
            self.find_entry(&mapping_key_outside(wanted.tenant, protocol, (egress, port))).is_some()
        };
        let protocols = [Protocol::Icmp, Protocol::Tcp, Protocol::Udp];
        let all = block_of(port).flat_map(|port| protocols.map(|protocol| (protocol, port)));
        let mapped: u32 = all.map(|(protocol, port)| u32::from(is_mapped(protocol, port))).sum();
        self.shared.ports(egress).is_some_and(|ports| ports.uses_of_block(port) == mapped)
    }

    /// Notes that a session, or a mapping, took a port of this worker.
    pub(crate) fn take_port(&mut self, tenant: TenantId, outside_tuple: &FiveTuple) {
        if !has_ports(outside_tuple.protocol) {
            return;
        }
        if let Some(ports) = self.shared.ports(outside_tuple.source) {
            ports.take(outside_tuple.source_port, self.slot.worker);
        }
        if !self.crowds.is_empty() {
            self.crowds.take(&Destination::of(tenant, outside_tuple), outside_tuple.source_port);
        }
    }

    /// Notes that a session, or a mapping, left a port of this worker. The last one returns the block.
    pub(crate) fn free_port(&mut self, tenant: TenantId, outside_tuple: &FiveTuple) {
        if !has_ports(outside_tuple.protocol) {
            return;
        }
        let port = outside_tuple.source_port;
        if !self.crowds.is_empty() {
            let destination = Destination::of(tenant, outside_tuple);
            self.crowds.give_back(&destination, port);
            self.crowds.forget_other_kind(&destination);
        }
        let is_returned = self
            .shared
            .ports(outside_tuple.source)
            .is_some_and(|ports| ports.give_back(port, self.slot.worker));
        if is_returned {
            self.note(|_| Event::BlockReturned(outside_tuple.source, *block_of(port).start()));
        }
        if is_returned && !self.crowds.is_empty() {
            self.crowds.close_block(tenant, outside_tuple.source, &block_of(port));
        }
    }
}

/// Returns the port that is tried at random as number `probe`.
fn probed_port(random: u64, probe: u64, class: &RangeInclusive<u16>) -> u16 {
    port_at(mix(random.wrapping_add(probe)), class)
}

/// Returns the ports of the block that a port is in.
fn block_of(port: u16) -> RangeInclusive<u16> {
    let first = port / BLOCK_PORTS * BLOCK_PORTS;
    first..=first + (BLOCK_PORTS - 1)
}

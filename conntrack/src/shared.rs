//! What the workers share: the blocks of outside ports, and how much of its quota each tenant uses.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ahash::RandomState;

use crate::Epoch;
use crate::blocks::{EgressPorts, MAX_WORKERS};
use crate::flow::TenantId;
use crate::policy::Quota;
use crate::table::Refusal;
use crate::tenants::ByTenant;

/// What the workers share, as one snapshot knows it.
#[derive(Clone, Debug)]
pub struct Shared {
    /// By address, as a number: it is hashed as a whole.
    egress: HashMap<u32, Arc<EgressPorts>, RandomState>,
    tenants: Arc<TenantUses>,
    lives: Arc<[AtomicU32]>,
}

impl Shared {
    /// Returns the ports of an egress address.
    pub fn ports(&self, egress: Ipv4Addr) -> Option<&EgressPorts> {
        self.egress.get(&egress.to_bits()).map(AsRef::as_ref)
    }

    /// Returns how much a tenant uses. Those that were in no snapshot are counted together.
    pub fn tenant(&self, tenant: TenantId) -> &TenantUse {
        self.tenants.known.get(tenant).unwrap_or(&self.tenants.unknown)
    }

    /// Returns how often a worker has forgotten its sessions.
    pub(crate) fn life_of(&self, worker: u16) -> u32 {
        self.lives[usize::from(worker)].load(Ordering::Acquire)
    }

    /// Notes that a worker forgets its sessions.
    pub(crate) fn begin_life(&self, worker: u16) {
        self.lives[usize::from(worker)].fetch_add(1, Ordering::Release);
    }

    /// Returns all blocks of a worker that has lost its sessions, and shows each by its address and first port.
    pub(crate) fn give_back_all(&self, worker: u16, mut on_return: impl FnMut(Ipv4Addr, u16)) {
        for (egress, ports) in &self.egress {
            ports.give_back_all(worker, |port| on_return(Ipv4Addr::from_bits(*egress), port));
        }
    }
}

/// Keeps one [`EgressPorts`] for each egress address as long as a session may use one of its ports, whatever
/// snapshots come and go.
#[derive(Debug)]
pub struct SharedBook {
    egress: HashMap<Ipv4Addr, Known, RandomState>,
    tenants: Arc<TenantUses>,
    lives: Arc<[AtomicU32]>,
}

#[derive(Debug)]
struct Known {
    ports: Arc<EgressPorts>,
    /// First snapshot in which no tenant has the address.
    gone: Option<Epoch>,
}

#[derive(Debug, Default)]
struct TenantUses {
    known: ByTenant<TenantUse>,
    /// Stands in for tenants that came in no snapshot.
    unknown: TenantUse,
}

impl Default for SharedBook {
    fn default() -> Self {
        let lives = (0..MAX_WORKERS).map(|_| AtomicU32::new(0)).collect();
        Self { egress: HashMap::default(), tenants: Arc::default(), lives }
    }
}

impl SharedBook {
    /// Returns what workers share under snapshot `next`, in which `tenants`, with their gateway addresses,
    /// have `egress_addresses`; `applied` is the
    /// newest snapshot that every worker has adopted.
    ///
    /// An address that is gone is forgotten when no worker can hand out its ports any more and none is in use.
    pub fn next(
        &mut self,
        egress_addresses: impl Iterator<Item = Ipv4Addr>,
        tenants: impl Iterator<Item = (TenantId, Ipv4Addr)>,
        next: Epoch,
        applied: Epoch,
    ) -> Shared {
        self.egress.retain(|_, known| known.gone.is_none_or(|gone| gone > applied) || !known.ports.is_free());
        for known in self.egress.values_mut() {
            known.gone.get_or_insert(next);
        }
        for address in egress_addresses {
            self.egress.entry(address).or_insert_with(|| Known { ports: Arc::default(), gone: None }).gone =
                None;
        }
        for (tenant, gateway) in tenants {
            self.tenants.known.make(tenant).gateway.store(gateway.to_bits(), Ordering::Relaxed);
        }
        let egress = self.egress.iter().map(|(address, known)| (address.to_bits(), Arc::clone(&known.ports)));
        let (tenants, lives) = (Arc::clone(&self.tenants), Arc::clone(&self.lives));
        Shared { egress: egress.collect(), tenants, lives }
    }
}

/// How much of its quota a tenant uses, at all workers, and what it is called outside the process.
#[derive(Debug, Default)]
pub struct TenantUse {
    gateway: AtomicU32,
    /// Ports above sessions: one locked instruction counts both.
    used: AtomicU64,
    /// A second of the gateway's clock above the number of sessions begun in it.
    begun: AtomicU64,
}

impl TenantUse {
    /// Returns the tenant's gateway address.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway.load(Ordering::Relaxed))
    }

    /// Returns the number of sessions.
    pub fn sessions(&self) -> u32 {
        low(self.used.load(Ordering::Relaxed))
    }

    /// Returns the number of outside ports.
    pub fn ports(&self) -> u32 {
        high(self.used.load(Ordering::Relaxed))
    }

    /// Counts a session that takes `ports` outside ports in `second`; nothing is counted when it is refused. Returns the
    /// second that it counts in.
    pub(crate) fn begin(&self, quota: &Quota, ports: u32, second: u32) -> Result<u32, Refusal> {
        let mut refusal = Refusal::TenantSessions;
        let sums = |used: u64| {
            refusal = Refusal::TenantSessions;
            let sessions = add_within(low(used), 1, quota.sessions)?;
            refusal = Refusal::TenantPorts;
            Some(word(add_within(high(used), ports, quota.ports)?, sessions))
        };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sums).map_err(|_| refusal)?;
        self.begin_in_second(quota.new_per_second, second).ok_or_else(|| {
            self.end(ports);
            Refusal::TenantRate
        })
    }

    /// Takes back a [`TenantUse::begin`], which returned `second`, when the session was not made.
    pub(crate) fn undo(&self, quota: &Quota, ports: u32, second: u32) {
        self.end(ports);
        if quota.new_per_second > 0 {
            // Once another second has begun there is nothing to undo.
            let is_counted = |begun: u64| high(begun) == second && low(begun) > 0;
            let less = |begun: u64| is_counted(begun).then(|| begun - 1);
            let _ = self.begun.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }

    /// Counts a session that ended and had `ports` ports of its own.
    pub(crate) fn end(&self, ports: u32) {
        self.end_many(1, ports);
    }

    /// Counts sessions that ended and had `ports` ports of their own together.
    pub(crate) fn end_many(&self, sessions: u32, ports: u32) {
        let differences =
            |used: u64| Some(word(high(used).saturating_sub(ports), low(used).saturating_sub(sessions)));
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, differences);
    }

    /// Counts an endpoint-independent mapping that ended.
    pub(crate) fn end_port(&self) {
        self.end_many(0, 1);
    }

    /// Returns the second that a session counts in that begins in `second`.
    fn begin_in_second(&self, limit: u32, second: u32) -> Option<u32> {
        if limit == 0 {
            return Some(second);
        }
        let count = |begun: u64| {
            // Workers read the clock at different moments: the newest second counts.
            let newest = high(begun).max(second);
            let count = if newest == high(begun) { low(begun) } else { 0 };
            (count < limit).then(|| word(newest, count + 1))
        };
        let before = self.begun.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).ok()?;
        Some(high(before).max(second))
    }
}

fn word(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "the low half of a word is 32 bits")]
fn low(word: u64) -> u32 {
    word as u32
}

/// Returns a count with an amount added, unless it would be more than `limit`; 0 is no limit.
fn add_within(count: u32, amount: u32, limit: u32) -> Option<u32> {
    count.checked_add(amount).filter(|sum| limit == 0 || amount == 0 || *sum <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EGRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 113);

    fn quota(sessions: u32, ports: u32, new_per_second: u32) -> Quota {
        Quota { sessions, ports, new_per_second }
    }

    #[test]
    fn threads_together_stay_within_a_quota_exactly() {
        let (used, limit) = (TenantUse::default(), quota(1000, 0, 0));
        let begun: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..600).filter(|_| used.begin(&limit, 1, 0).is_ok()).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((begun, used.sessions(), used.ports()), (1000, 1000, 1000));
    }

    #[test]
    fn a_refusal_counts_nothing() {
        let used = TenantUse::default();
        used.begin(&quota(0, 0, 0), 1, 7).unwrap();
        assert_eq!(used.begin(&quota(1, 0, 0), 1, 7), Err(Refusal::TenantSessions));
        assert_eq!(used.begin(&quota(0, 1, 0), 1, 7), Err(Refusal::TenantPorts));
        used.begin(&quota(0, 1, 0), 0, 7).unwrap();
        assert_eq!((used.sessions(), used.ports()), (2, 1));
        used.begin(&quota(0, 0, 1), 0, 7).unwrap();
        assert_eq!(used.begin(&quota(0, 0, 1), 1, 7), Err(Refusal::TenantRate));
        assert_eq!((used.sessions(), used.ports()), (3, 1));
        used.begin(&quota(0, 0, 1), 0, 8).unwrap();
        assert_eq!(used.begin(&quota(0, 0, 1), 0, 7), Err(Refusal::TenantRate), "a late clock");
        used.undo(&quota(0, 0, 1), 0, 8);
        assert_eq!(used.begin(&quota(0, 0, 1), 0, 7), Ok(8));
    }

    #[test]
    fn what_is_undone_late_does_not_make_room_in_another_second() {
        let used = TenantUse::default();
        let late = used.begin(&quota(0, 0, 1), 1, 7).unwrap();
        used.begin(&quota(0, 0, 1), 1, 8).unwrap();
        used.undo(&quota(0, 0, 1), 1, late);
        assert_eq!(used.begin(&quota(0, 0, 1), 1, 8), Err(Refusal::TenantRate));
        assert_eq!((used.sessions(), used.ports()), (1, 1));
    }

    #[test]
    fn ports_are_remembered_while_a_session_may_use_them() {
        let mut book = SharedBook::default();
        let first = book.next([EGRESS].into_iter(), [].into_iter(), Epoch(1), Epoch(0));
        assert!(first.ports(EGRESS).unwrap().claim(5000, 0));
        let gone = book.next([].into_iter(), [].into_iter(), Epoch(2), Epoch(1));
        assert_eq!(gone.ports(EGRESS).unwrap().owner(5000), Some(0));
        let still = book.next([].into_iter(), [].into_iter(), Epoch(3), Epoch(2));
        still.ports(EGRESS).unwrap().give_back_all(0, |_| {});
        assert!(book.next([].into_iter(), [].into_iter(), Epoch(4), Epoch(3)).ports(EGRESS).is_none());
    }

    #[test]
    fn ports_are_not_forgotten_before_every_worker_knows_that_the_address_is_gone() {
        let mut book = SharedBook::default();
        book.next([EGRESS].into_iter(), [].into_iter(), Epoch(1), Epoch(0));
        let late = book.next([].into_iter(), [].into_iter(), Epoch(2), Epoch(1));
        book.next([].into_iter(), [].into_iter(), Epoch(3), Epoch(1));
        assert!(late.ports(EGRESS).unwrap().claim(5000, 0));
        let back = book.next([EGRESS].into_iter(), [].into_iter(), Epoch(4), Epoch(1));
        assert_eq!(back.ports(EGRESS).unwrap().owner(5000), Some(0));
    }
}

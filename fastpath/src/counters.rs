//! What one worker counts. One writer, any number of readers, no locked instruction.

use std::sync::atomic::{AtomicU64, Ordering};

use conntrack::{ByTenant, TenantId};

use crate::dataplane::TenantReport;
use crate::pulse::Life;
use crate::snapshot::{Side, Snapshot};
use crate::verdict::DropReason;

/// A counter that one thread writes.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the counter. Only its one writer may.
    pub fn add(&self, amount: u64) {
        self.set(self.get().wrapping_add(amount));
    }

    /// Sets the counter. Only its one writer may.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Returns the count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Dropped packets, by the side that they came from and by reason.
#[derive(Debug)]
struct DropCounters([[Counter; DropReason::ALL.len()]; 2]);

impl Default for DropCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| std::array::from_fn(|_| Counter::default())))
    }
}

impl DropCounters {
    fn of(&self, from: Side, reason: DropReason) -> &Counter {
        &self.0[from.index()][reason.index()]
    }
}

/// Counters of one tenant at one worker, in cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct TenantCounters {
    outbound_packets: Counter,
    outbound_bytes: Counter,
    inbound_packets: Counter,
    inbound_bytes: Counter,
    sessions: Counter,
    sessions_begun: Counter,
    drops: DropCounters,
}

impl TenantCounters {
    /// Counts a frame that leaves by `side`.
    pub fn forwarded(&self, side: Side, bytes: usize) {
        self.forwarded_many(side, 1, bytes as u64);
    }

    /// Counts frames that leave by `side`, and their bytes in all.
    pub fn forwarded_many(&self, side: Side, frames: u64, bytes: u64) {
        let (packets, total) = match side {
            Side::Outside => (&self.outbound_packets, &self.outbound_bytes),
            Side::Inside => (&self.inbound_packets, &self.inbound_bytes),
        };
        packets.add(frames);
        total.add(bytes);
    }

    /// Counts a dropped packet that came from a side.
    pub fn dropped(&self, from: Side, reason: DropReason) {
        self.drops.of(from, reason).add(1);
    }

    /// Counts a session that began.
    pub fn session_began(&self) {
        self.sessions.add(1);
        self.sessions_begun.add(1);
    }

    /// Counts a session that began in the process before and goes on.
    pub fn session_resumed(&self) {
        self.sessions.add(1);
    }

    /// Counts a session that ended.
    pub fn session_ended(&self) {
        self.sessions_ended(1);
    }

    /// Counts sessions that ended.
    pub fn sessions_ended(&self, sessions: u32) {
        self.sessions.add(u64::from(sessions).wrapping_neg());
    }

    /// Forgets all sessions.
    pub fn sessions_lost(&self) {
        self.sessions.set(0);
    }

    /// Adds the counts to a report that begins empty and may hold those of other workers.
    pub fn add_to(&self, report: &mut TenantReport) {
        report.outbound_packets += self.outbound_packets.get();
        report.outbound_bytes += self.outbound_bytes.get();
        report.inbound_packets += self.inbound_packets.get();
        report.inbound_bytes += self.inbound_bytes.get();
        report.sessions += self.sessions.get();
        report.sessions_begun += self.sessions_begun.get();
        for reason in DropReason::ALL {
            for from in Side::BOTH {
                report.add_drops(from, *reason, self.drops.of(from, *reason).get());
            }
        }
    }
}

/// Counters of one queue.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct QueueCounters {
    /// Frames received.
    pub received: Counter,
    /// Frames handed to the kernel for transmission.
    pub transmitted: Counter,
}

/// Everything that one worker counts.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    drops: DropCounters,
    /// Packets lost in a panic, when it is not known any more where they came from.
    lost: Counter,
    /// Made when the tenant first comes in a snapshot, and never freed.
    tenants: ByTenant<TenantCounters>,
    /// Stands in for tenants that came in no snapshot; nobody reads it.
    unknown: TenantCounters,
    /// Signs of life.
    pub life: Life,
    /// Sessions in the table.
    pub sessions: Counter,
    /// Epoch of the snapshot in use.
    pub epoch: Counter,
    /// Restarts after a panic.
    pub panics: Counter,
    /// Frames handed to the workers that they belong to.
    pub handed_over: Counter,
    /// Frames handed to another worker to send, because this one has no port on that side.
    pub sent_by_others: Counter,
    /// Frames that the worker, its ports and its pool own.
    pub frames: Counter,
    /// Packets that came back in by the outside, because they went to an egress address of this gateway.
    pub hairpinned: Counter,
    /// Fragments made of packets that were too large for their link, the first of each not counted.
    pub fragments_made: Counter,
}

impl WorkerCounters {
    /// Notes that a snapshot is in use, and makes counters for those of its tenants that have none.
    pub fn adopt(&self, snapshot: &Snapshot) {
        for tenant in &snapshot.spec().tenants {
            self.tenants.make(tenant.id);
        }
        self.epoch.set(u64::from(snapshot.epoch().0));
    }

    /// Returns the counters of a tenant. Those of a tenant that was in no snapshot are never reported.
    pub fn tenant(&self, id: TenantId) -> &TenantCounters {
        self.tenants.get(id).unwrap_or(&self.unknown)
    }

    /// Returns the counters of every tenant that ever was in a snapshot, by slot.
    pub fn tenants(&self) -> impl Iterator<Item = (TenantId, &TenantCounters)> {
        self.tenants.iter()
    }

    /// Counts a dropped packet that came from a side, under its tenant too if that is known.
    pub fn dropped(&self, from: Side, reason: DropReason, tenant: Option<TenantId>) {
        self.drops.of(from, reason).add(1);
        if let Some(tenant) = tenant {
            self.tenant(tenant).dropped(from, reason);
        }
    }

    /// Counts a packet that the worker had in hand when it panicked.
    pub fn lost(&self) {
        self.lost.add(1);
    }

    /// Returns how many packets were dropped for a reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        let lost = if reason == DropReason::WorkerPanic { self.lost.get() } else { 0 };
        Side::BOTH.iter().map(|from| self.drops_from(*from, reason)).sum::<u64>() + lost
    }

    /// Returns how many packets that came from a side were dropped for a reason.
    pub fn drops_from(&self, from: Side, reason: DropReason) -> u64 {
        self.drops.of(from, reason).get()
    }

    /// Forgets the sessions of all tenants.
    pub fn sessions_lost(&self) {
        for (_, tenant) in self.tenants() {
            tenant.sessions_lost();
        }
    }
}

//! What one worker counts. One writer, any number of readers, no locked instruction.

use std::sync::atomic::{AtomicU64, Ordering};

use conntrack::TenantId;

use crate::dataplane::TenantReport;
use crate::snapshot::Side;
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

/// Counters of one tenant at one worker, in a cache line of their own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct TenantCounters {
    outbound_packets: Counter,
    outbound_bytes: Counter,
    inbound_packets: Counter,
    inbound_bytes: Counter,
    dropped_packets: Counter,
    sessions: Counter,
}

impl TenantCounters {
    /// Counts a frame that leaves by `side`.
    pub fn forwarded(&self, side: Side, bytes: usize) {
        let (packets, total) = match side {
            Side::Outside => (&self.outbound_packets, &self.outbound_bytes),
            Side::Inside => (&self.inbound_packets, &self.inbound_bytes),
        };
        packets.add(1);
        total.add(bytes as u64);
    }

    /// Counts a dropped packet.
    pub fn dropped(&self) {
        self.dropped_packets.add(1);
    }

    /// Counts a session that began.
    pub fn session_began(&self) {
        self.sessions.add(1);
    }

    /// Counts a session that ended.
    pub fn session_ended(&self) {
        self.sessions.add(u64::MAX);
    }

    /// Forgets all sessions.
    pub fn sessions_lost(&self) {
        self.sessions.set(0);
    }

    /// Returns the counts.
    pub fn report(&self) -> TenantReport {
        TenantReport {
            outbound_packets: self.outbound_packets.get(),
            outbound_bytes: self.outbound_bytes.get(),
            inbound_packets: self.inbound_packets.get(),
            inbound_bytes: self.inbound_bytes.get(),
            dropped_packets: self.dropped_packets.get(),
            sessions: self.sessions.get(),
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
#[derive(Debug)]
pub struct WorkerCounters {
    drops: Vec<Counter>,
    tenants: Vec<TenantCounters>,
    /// Queues, in the order of the worker's ports.
    pub queues: Vec<QueueCounters>,
    /// Sessions in the table.
    pub sessions: Counter,
    /// Epoch of the snapshot in use.
    pub epoch: Counter,
    /// Restarts after a panic.
    pub panics: Counter,
    /// Frames handed to other workers.
    pub handed_over: Counter,
}

impl WorkerCounters {
    /// Makes the counters of a worker with `queues` ports, all zero.
    pub fn new(queues: usize) -> Self {
        Self {
            drops: DropReason::ALL.iter().map(|_| Counter::default()).collect(),
            tenants: (0..=u16::MAX).map(|_| TenantCounters::default()).collect(),
            queues: (0..queues).map(|_| QueueCounters::default()).collect(),
            sessions: Counter::default(),
            epoch: Counter::default(),
            panics: Counter::default(),
            handed_over: Counter::default(),
        }
    }

    /// Returns the counters of a tenant.
    pub fn tenant(&self, id: TenantId) -> &TenantCounters {
        &self.tenants[usize::from(id.0)]
    }

    /// Counts a dropped packet, under its tenant too if that is known.
    pub fn dropped(&self, reason: DropReason, tenant: Option<TenantId>) {
        self.drops[reason.index()].add(1);
        if let Some(tenant) = tenant {
            self.tenant(tenant).dropped();
        }
    }

    /// Returns how many packets were dropped for a reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason.index()].get()
    }

    /// Forgets the sessions of all tenants.
    pub fn sessions_lost(&self) {
        for tenant in &self.tenants {
            tenant.sessions_lost();
        }
    }
}

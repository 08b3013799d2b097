//! What the data plane tells about itself.

use std::net::Ipv4Addr;

use conntrack::{Epoch, FiveTuple, TenantId};

use crate::dataplane::DataPlane;
use crate::snapshot::Side;
use crate::survey::SessionState;
pub use crate::timing::TurnTimes;
use crate::verdict::DropReason;

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the generic hook, after the kernel made a socket buffer: slower.
    Generic,
}

/// Packets dropped, by reason, in the order of [`DropReason::ALL`].
pub type DropCounts = Vec<(DropReason, u64)>;

/// Packets and bytes of one tenant since the data plane started, and its sessions now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantReport {
    /// Packets forwarded from pods.
    pub outbound_packets: u64,
    /// Bytes of frames forwarded from pods.
    pub outbound_bytes: u64,
    /// Packets forwarded to pods.
    pub inbound_packets: u64,
    /// Bytes of frames forwarded to pods.
    pub inbound_bytes: u64,
    /// Packets dropped, whatever the reason.
    pub dropped_packets: u64,
    /// Packets dropped, by reason, in the order of [`DropReason::ALL`]; only reasons that there were.
    pub drops: DropCounts,
    /// Those of them that came from pods.
    pub outbound_drops: DropCounts,
    /// Sessions in the tables now.
    pub sessions: u64,
    /// Sessions that began, those of the process before not counted.
    pub sessions_begun: u64,
}

impl TenantReport {
    /// Adds drops of packets from a side for a reason, with all others and among those of the reason.
    pub fn add_drops(&mut self, from: Side, reason: DropReason, packets: u64) {
        if packets == 0 {
            return;
        }
        self.dropped_packets += packets;
        add_to(&mut self.drops, reason, packets);
        if from == Side::Inside {
            add_to(&mut self.outbound_drops, reason, packets);
        }
    }
}

fn add_to(drops: &mut DropCounts, reason: DropReason, packets: u64) {
    match drops.binary_search_by_key(&reason, |(reason, _)| *reason) {
        Ok(place) => drops[place].1 += packets,
        Err(place) => drops.insert(place, (reason, packets)),
    }
}

/// One queue of one interface, as its socket's statistics tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueReport {
    /// Interface.
    pub side: Side,
    /// Queue number.
    pub queue: u32,
    /// Packets received.
    pub received: u64,
    /// Packets handed to the kernel for transmission.
    pub transmitted: u64,
    /// Packets that the kernel dropped because they do not fit a frame.
    pub rx_dropped: u64,
    /// Packets that the kernel dropped because the rx ring was full.
    pub rx_ring_full: u64,
    /// Packets that the kernel dropped because the fill ring was empty.
    pub fill_ring_empty: u64,
    /// Descriptors that the kernel refused.
    pub invalid_descriptors: u64,
    /// Whether the kernel reads and writes frames in place.
    pub zero_copy: bool,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerReport {
    /// Number of the worker.
    pub worker: usize,
    /// Core that it is pinned to.
    pub core: Option<usize>,
    /// Snapshot that it uses.
    pub epoch: Epoch,
    /// Sessions that it holds.
    pub sessions: u64,
    /// Sessions that it can hold.
    pub session_capacity: u64,
    /// Times that it was restarted after a panic.
    pub panics: u64,
    /// Frames that came to it and belong to another worker.
    pub handed_over: u64,
    /// Frames that another worker sent for it, because it has no queue on that side.
    pub sent_by_others: u64,
    /// Worker that sends its frames on each side, inside first: itself where it has a queue; none while the interface is
    /// away.
    pub senders: [Option<usize>; 2],
    /// Turns that it finished.
    pub turns: u64,
    /// Times of the turns that found frames; their sum is the time that it was busy.
    pub times: TurnTimes,
    /// Packets that came back in by the outside.
    pub hairpinned: u64,
    /// Fragments that it made.
    pub fragments_made: u64,
    /// Queues that it serves.
    pub queues: Vec<QueueReport>,
}

/// Where the frames of the data plane are. The counts are taken one after the other, so they add up only while no frame
/// moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramesReport {
    /// All that there are.
    pub total: u64,
    /// At the workers, their rings included.
    pub at_workers: u64,
    /// Lent to nobody.
    pub in_commons: u64,
    /// On the way from one worker to another.
    pub handed_over: u64,
}

impl AttachMode {
    /// Returns the mode's name in configuration and status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// Frames that the XDP program passed, redirected or dropped on one side, by its own reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteerReport {
    /// Side.
    pub side: Side,
    /// How the program is attached.
    pub mode: AttachMode,
    /// Name of each row of the decision table, and frames that met it.
    pub verdicts: Vec<(&'static str, u64)>,
}

impl SteerReport {
    /// Returns how many frames were dropped because their tenant had its share of a queue.
    pub(crate) fn over_share(&self) -> u64 {
        self.verdicts
            .iter()
            .filter(|(row, _)| row.ends_with("_over_share_dropped"))
            .map(|(_, count)| count)
            .sum()
    }
}

/// Everything that the data plane counts, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Workers.
    pub workers: Vec<WorkerReport>,
    /// XDP programs, inside first.
    pub steering: Vec<SteerReport>,
    /// Drops of all workers, by reason; every reason is there.
    pub drops: DropCounts,
    /// Those of them that came from each side, inside first. Where packets came from that were lost in a panic is not known.
    pub drops_from: [DropCounts; 2],
    /// Tenants that were ever in a snapshot, by slot.
    pub tenants: Vec<(TenantId, TenantReport)>,
    /// Frames.
    pub frames: FramesReport,
}

impl Report {
    /// Returns what was counted of a tenant, if it ever was in a snapshot.
    pub fn tenant(&self, id: TenantId) -> Option<&TenantReport> {
        let place = self.tenants.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(&self.tenants[place].1)
    }
}

/// One session, as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionReport {
    /// Tenant.
    pub tenant: TenantId,
    /// The session's packets as they come from the pod.
    pub inside: FiveTuple,
    /// Egress address and port that stand for the pod.
    pub outside: (Ipv4Addr, u16),
    /// State.
    pub state: SessionState,
    /// Seconds since it began, or was taken up from the process before.
    pub age_seconds: u64,
    /// Seconds since its last packet.
    pub idle_seconds: u64,
    /// Seconds until it expires if no packet comes.
    pub expires_seconds: u64,
    /// Worker that owns it.
    pub worker: usize,
}

/// An egress address as the workers share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EgressReport {
    /// Tenant that has it.
    pub tenant: TenantId,
    /// The address.
    pub address: Ipv4Addr,
    /// Blocks of 64 ports that workers have leased, of 1,024.
    pub blocks: u32,
    /// Pods that are paired with it.
    pub pods: u32,
}

impl DataPlane {
    /// Returns the egress addresses of all tenants.
    pub fn egress(&self) -> Vec<EgressReport> {
        let Some(shared) = self.newest.shared() else { return Vec::new() };
        let tenants = self.newest.spec().tenants.iter();
        let addresses =
            tenants.flat_map(|tenant| tenant.egress_addresses.iter().map(|address| (tenant.id, *address)));
        let report = |(tenant, address)| {
            let ports = shared.ports(address)?;
            Some(EgressReport { tenant, address, blocks: ports.blocks_owned(), pods: ports.pods() })
        };
        addresses.filter_map(report).collect()
    }

    /// Returns how many outside ports a tenant has, each as often as it is taken.
    pub fn ports_of(&self, tenant: TenantId) -> u32 {
        self.newest.shared().map_or(0, |shared| shared.tenant(tenant).ports())
    }
}

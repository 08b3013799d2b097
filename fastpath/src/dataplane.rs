//! The data plane as the control side holds it: start, publish, report, stop.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use conntrack::{Epoch, FiveTuple, TenantId};
use thiserror::Error;

use crate::snapshot::{Side, Snapshot};
use crate::verdict::DropReason;

/// How the XDP program may be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachPreference {
    /// In the driver, else in the generic hook.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the generic hook.
    Generic,
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the generic hook, after the kernel made a socket buffer: slower.
    Generic,
}

/// What the data plane is started with; none of it changes while it runs.
#[derive(Clone, Debug)]
pub struct DataPlaneOptions {
    /// Name of the inside interface.
    pub inside: String,
    /// Name of the outside interface.
    pub outside: String,
    /// How the XDP program may be attached.
    pub attach: AttachPreference,
    /// Directory on a bpffs where program and maps are pinned, so that they outlive the process.
    pub pin_dir: PathBuf,
    /// Number of workers; none: one for each rx queue of the inside interface.
    pub workers: Option<usize>,
    /// Cores that the workers are pinned to, in order; empty: the first ones that the process may use.
    pub cores: Vec<usize>,
    /// Sessions that each worker can hold; memory for them is taken at start.
    pub session_capacity: u32,
}

/// Why the data plane could not start, or could not be kept in step.
#[derive(Debug, Error)]
pub enum DataPlaneError {}

/// A next hop that a worker needs and the kernel has not resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeighbourRequest {
    /// Side that it is on.
    pub side: Side,
    /// Its address.
    pub address: Ipv4Addr,
}

/// Requests of the workers to the control side. The descriptor is readable while there may be some.
#[derive(Clone, Debug)]
pub struct NeighbourRequests {
    inner: Arc<nix::sys::eventfd::EventFd>,
}

impl NeighbourRequests {
    /// Returns all requests that came since the last call, each address once, and makes the descriptor
    /// unreadable until the next one comes.
    pub fn drain(&self) -> Vec<NeighbourRequest> {
        Vec::new()
    }
}

impl AsFd for NeighbourRequests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// Packets and bytes of one tenant since the data plane started, and its sessions now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// Sessions in the tables now.
    pub sessions: u64,
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
    /// Queues that it serves.
    pub queues: Vec<QueueReport>,
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

/// Everything that the data plane counts, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Workers.
    pub workers: Vec<WorkerReport>,
    /// XDP programs, inside first.
    pub steering: Vec<SteerReport>,
    /// Drops of all workers, by reason; every reason is there.
    pub drops: Vec<(DropReason, u64)>,
    /// Tenants that were ever in a snapshot, by slot.
    pub tenants: Vec<(TenantId, TenantReport)>,
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
    /// State: `established`, `opening` or `closing` for TCP, else `active`.
    pub state: &'static str,
    /// Seconds since its last packet.
    pub idle_seconds: u64,
    /// Seconds until it expires if no packet comes.
    pub expires_seconds: u64,
    /// Worker that owns it.
    pub worker: usize,
}

/// Running workers and attached XDP programs.
#[derive(Debug)]
pub struct DataPlane {}

impl DataPlane {
    /// Attaches the XDP programs, binds a socket to each queue and starts the workers.
    ///
    /// Programs and maps that an earlier process pinned are replaced without a gap.
    ///
    /// # Errors
    /// When an interface does not exist or cannot carry XDP, when privileges are missing, or when memory is short.
    pub fn start(_options: &DataPlaneOptions, _first: Snapshot) -> Result<Self, DataPlaneError> {
        Ok(Self {})
    }

    /// Makes all workers use `next` and the XDP programs steer by it: what is new is steered before the
    /// workers learn of it, what is gone is steered until the last worker has forgotten it.
    ///
    /// Blocks until every worker has acknowledged, a second at most.
    ///
    /// # Errors
    /// When an XDP map cannot be changed, or a worker does not answer in time (the snapshot then still
    /// is adopted as soon as it does).
    pub fn publish(&mut self, _next: Snapshot) -> Result<(), DataPlaneError> {
        Ok(())
    }

    /// Returns the newest epoch that every worker has adopted.
    pub fn applied_epoch(&self) -> Epoch {
        Epoch::default()
    }

    /// Returns the workers' requests for neighbours.
    ///
    /// # Panics
    /// Never.
    pub fn neighbour_requests(&self) -> NeighbourRequests {
        unreachable!()
    }

    /// Returns everything that is counted.
    ///
    /// # Errors
    /// When an XDP map cannot be read.
    pub fn report(&self) -> Result<Report, DataPlaneError> {
        unreachable!()
    }

    /// Returns at most `limit` sessions, of one tenant or of all, in no particular order. Blocks for up to
    /// a second.
    pub fn sessions(&self, _tenant: Option<TenantId>, _limit: usize) -> Vec<SessionReport> {
        Vec::new()
    }

    /// Stops the workers. The XDP programs stay, and drop all tenant traffic, until [`detach`].
    pub fn stop(self) {}
}

/// Detaches the XDP programs pinned in `pin_dir` and removes the pins; tells whether there were any.
///
/// # Errors
/// When a pin cannot be removed.
pub fn detach(_pin_dir: &Path) -> Result<bool, DataPlaneError> {
    Ok(false)
}

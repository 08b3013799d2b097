//! The data plane as the control side holds it: start, publish, report, stop.

/// What goes wrong.
mod error;

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use conntrack::{Epoch, SharedBook, TenantId};
use crossbeam::channel::{Receiver, Sender};
use crossbeam::queue::ArrayQueue;

pub use self::error::DataPlaneError;
use crate::counters::WorkerCounters;
use crate::groundwork::Groundwork;
use crate::io::memory::take_meanwhile;
use crate::io::xsk::XskPort;
use crate::io::{Frame, FrameArea};
use crate::journal::{Events, Records};
use crate::launch::{Provisions, Queue, StartedWorkers};
use crate::layout::Layout;
use crate::mailbox::{Mailbox, RequestQueue};
use crate::parse::ETHERNET_BYTES;
use crate::placement::SchedulerPolicy;
use crate::pulse::Pulse;
use crate::renewal::Renewal;
pub use crate::renewal::SideState;
pub use crate::report::{
    AttachMode, DropCounts, FramesReport, QueueReport, Report, SessionReport, SteerReport, TenantReport,
    WorkerReport,
};
use crate::snapshot::{Side, Snapshot};
pub use crate::steer::Loss;
use crate::steer::{SteerError, Steering, remove_all_pins};
use crate::succession::{Inheritance, SessionFile};
use crate::tap::{Tap, TapBoard};
use crate::verdict::DropReason;
use crate::worker::PortChange;

/// How long the control side waits for an answer of the workers.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// How long it waits for the workers' threads to end.
const ENDS_WITHIN: Duration = Duration::from_secs(3);

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

impl AttachPreference {
    /// Returns the modes to try, in this order.
    pub(crate) fn modes(self) -> &'static [AttachMode] {
        match self {
            Self::Auto => &[AttachMode::Native, AttachMode::Generic],
            Self::Native => &[AttachMode::Native],
            Self::Generic => &[AttachMode::Generic],
        }
    }
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
    /// Number of workers; none: one for each rx queue of the interface that has fewer. The queues of each interface are
    /// dealt out to the workers; of more workers than queues some have none there.
    pub workers: Option<usize>,
    /// Cores that the workers are pinned to, in order; empty: the first ones that the process may use.
    pub cores: Vec<usize>,
    /// How workers are scheduled if each has a core of its own.
    pub scheduler_policy: SchedulerPolicy,
    /// Sessions that each worker can hold; memory for them is taken right after the start.
    pub session_capacity: u32,
    /// File in memory that sessions are taken down in, so that they outlive the process; none: they end with it.
    pub session_file: Option<PathBuf>,
    /// What workers tell a log of translations; none: nothing.
    pub records: Option<Records>,
}

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
    queue: Arc<RequestQueue>,
}

impl NeighbourRequests {
    /// Returns all requests that came since the last call, each address once, and makes the descriptor
    /// unreadable until the next one comes.
    pub fn drain(&self) -> Vec<NeighbourRequest> {
        let unique: HashSet<_> = self.queue.drain().into_iter().collect();
        unique.into_iter().collect()
    }
}

impl AsFd for NeighbourRequests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

/// Running workers and attached XDP programs.
#[derive(Debug)]
pub struct DataPlane {
    pub(crate) steering: [Steering; 2],
    pub(crate) workers: Vec<WorkerHandle>,
    pub(crate) layout: Layout,
    pub(crate) options: DataPlaneOptions,
    pub(crate) area: FrameArea,
    pub(crate) commons: Arc<ArrayQueue<Frame>>,
    /// The newest snapshot that was published.
    pub(crate) newest: Arc<Snapshot>,
    pub(crate) renewals: [Renewal; 2],
    retired: Receiver<Arc<Snapshot>>,
    requests: Arc<RequestQueue>,
    applied: Epoch,
    book: SharedBook,
    session_file: Option<SessionFile>,
    inheritance: Option<Inheritance>,
    open_taps: Arc<Mutex<Vec<Arc<Tap>>>>,
    events: Option<Events>,
}

/// What the control side keeps of a worker.
#[derive(Debug)]
pub(crate) struct WorkerHandle {
    pub(crate) core: Option<usize>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) counters: Arc<WorkerCounters>,
    pub(crate) queues: Vec<Queue>,
    /// Who sends its frames on each side.
    pub(crate) senders: [Option<u16>; 2],
    pub(crate) port_changes: Sender<PortChange<XskPort>>,
    pub(crate) thread: JoinHandle<()>,
}

impl DataPlane {
    /// Attaches the XDP programs, binds a socket to each queue and starts the workers.
    ///
    /// Programs and maps that an earlier process pinned are replaced without a gap.
    ///
    /// # Errors
    /// When an interface does not exist or cannot carry XDP, when privileges are missing, or when memory is short.
    pub fn start(
        options: &DataPlaneOptions,
        first: Snapshot,
        groundwork: Groundwork,
    ) -> Result<Self, DataPlaneError> {
        let begun = Instant::now();
        let layout = Layout::plan(options)?;
        check_mtu(&first)?;
        let mut book = SharedBook::default();
        let first = first.with_shared(&mut book, Epoch::default());
        // Both take a while, and nobody forwards until they are done.
        let ((loader, steering), provisions) = thread::scope(|scope| {
            let loading = scope.spawn(|| groundwork.steer(&layout, options, &first));
            let provisions = Provisions::take(&layout, options, &first);
            (loading.join().unwrap_or_else(|panic| resume_unwind(panic)), provisions)
        });
        let (mut steering, provisions) = (steering?, provisions?);
        let loaded = begun.elapsed();
        for (steering, link) in steering.iter_mut().zip(&layout.links) {
            steering.attach_program(link.index, options.attach, &options.pin_dir)?;
        }
        let first = Arc::new(first);
        let attached = begun.elapsed();
        let started = StartedWorkers::start(&layout, options, &first, &steering, provisions)?;
        let mut data_plane = Self {
            steering,
            workers: started.workers,
            retired: started.retired,
            requests: started.requests,
            area: started.area,
            commons: started.commons,
            layout,
            options: options.clone(),
            renewals: Default::default(),
            applied: first.epoch(),
            newest: first,
            book,
            session_file: started.session_file,
            inheritance: started.inheritance,
            open_taps: Arc::default(),
            events: started.events,
        };
        let running = begun.elapsed();
        if let Err(error) = data_plane.stand_guard() {
            data_plane.stop();
            return Err(error.into());
        }
        tracing::debug!(
            "the fast path runs since {running:?} after its start; loaded {loaded:?}, attached {attached:?}, guarded {:?}",
            begun.elapsed()
        );
        take_meanwhile(started.memory);
        drop(loader); // not before: it has the kernel's types, each in memory of its own
        Ok(data_plane)
    }

    /// Attaches the second lines, while traffic flows already: each takes the kernel tens of milliseconds.
    fn stand_guard(&mut self) -> Result<(), SteerError> {
        let pin_dir = &self.options.pin_dir;
        self.steering.iter_mut().try_for_each(|steering| steering.stand_guard(pin_dir))
    }

    /// Makes all workers use `next` and the XDP programs steer by it: what is new is steered before the
    /// workers learn of it, what is gone is steered until the last worker has forgotten it.
    ///
    /// Blocks until every worker has acknowledged, a second at most.
    ///
    /// # Errors
    /// When an XDP map cannot be changed, or a worker does not answer in time. What is gone then stays steered;
    /// publishing again, under a greater epoch, makes it good.
    pub fn publish(&mut self, next: Snapshot) -> Result<(), DataPlaneError> {
        let next = Arc::new(next.with_shared(&mut self.book, self.applied));
        self.newest = Arc::clone(&next);
        for steering in &mut self.steering {
            steering.open(&next)?;
        }
        for worker in &self.workers {
            worker.mailbox.put_snapshot(Arc::clone(&next));
        }
        self.await_adoption(next.epoch())?;
        self.applied = next.epoch();
        for steering in &mut self.steering {
            steering.close(&next)?;
        }
        Ok(())
    }

    /// Returns the newest epoch that every worker has adopted.
    pub fn applied_epoch(&self) -> Epoch {
        self.applied
    }

    /// Returns the workers' requests for neighbours.
    pub fn neighbour_requests(&self) -> NeighbourRequests {
        NeighbourRequests { queue: Arc::clone(&self.requests) }
    }

    /// Returns the signs of life of every worker.
    pub fn pulses(&self) -> Vec<Pulse> {
        let pulse = |(worker, handle): (usize, &WorkerHandle)| Pulse {
            worker,
            core: handle.core,
            counters: Arc::clone(&handle.counters),
        };
        self.workers.iter().enumerate().map(pulse).collect()
    }

    /// Returns everything that is counted.
    ///
    /// # Errors
    /// When an XDP map cannot be read.
    pub fn report(&self) -> Result<Report, DataPlaneError> {
        let steering: Vec<_> = self.steering.iter().map(Steering::report).collect::<Result<_, _>>()?;
        let counters = || self.workers.iter().map(|worker| &worker.counters);
        let drops_from = |from: Side| -> DropCounts {
            let over_share = &steering[from.index()];
            let count = |reason: DropReason| match reason {
                DropReason::QueueShare => over_share.over_share(),
                reason => counters().map(|counters| counters.drops_from(from, reason)).sum(),
            };
            DropReason::ALL.iter().map(|reason| (*reason, count(*reason))).collect()
        };
        let sum = |reason: DropReason| match reason {
            DropReason::QueueShare => steering.iter().map(SteerReport::over_share).sum(),
            reason => counters().map(|counters| counters.drops(reason)).sum(),
        };
        Ok(Report {
            workers: (0..)
                .zip(&self.workers)
                .map(|(number, worker)| self.report_worker(number, worker))
                .collect(),
            drops: DropReason::ALL.iter().map(|reason| (*reason, sum(*reason))).collect(),
            drops_from: Side::BOTH.map(drops_from),
            steering,
            tenants: self.report_tenants(),
            frames: self.report_frames(),
        })
    }

    /// Returns who opens taps at the workers, from any thread.
    pub fn tap_board(&self) -> TapBoard {
        let mailboxes = self.workers.iter().map(|worker| Arc::clone(&worker.mailbox)).collect();
        TapBoard { mailboxes, open: Arc::clone(&self.open_taps) }
    }

    /// Returns the newest snapshot that was published.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.newest
    }

    /// Returns what became of the sessions of the process before; none when they do not outlive it.
    pub fn inheritance(&self) -> Option<&Inheritance> {
        self.inheritance.as_ref()
    }

    /// Returns what workers tell a log of translations; none when nothing is wanted.
    pub fn events(&self) -> Option<&Events> {
        self.events.as_ref()
    }

    /// Notes that the sessions are alive now: the next process will know for how long they were not served.
    pub fn note_alive(&self) {
        if let Some(file) = &self.session_file {
            file.note_alive();
        }
    }

    /// Stops the workers, which send on what they have received by then. The XDP programs stay, and drop all tenant
    /// traffic, until [`detach`].
    ///
    /// Returns the workers that have not ended within a few seconds; their threads end with the process.
    pub fn stop(self) -> Vec<usize> {
        for worker in &self.workers {
            worker.mailbox.stop();
        }
        let deadline = Instant::now() + ENDS_WITHIN;
        let (mut stuck, mut queues) = (Vec::new(), Vec::new());
        for (number, worker) in self.workers.into_iter().enumerate() {
            while !worker.thread.is_finished() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            queues.extend(worker.queues);
            if worker.thread.is_finished() {
                // A worker catches its own panics; what it left behind is gone either way.
                let _ = worker.thread.join();
            } else {
                stuck.push(number);
            }
        }
        close_together(queues);
        if let Some(file) = self.session_file {
            file.note_alive();
        }
        stuck
    }

    /// Waits until every worker has adopted an epoch, and frees the snapshots that they send back.
    fn await_adoption(&self, epoch: Epoch) -> Result<(), DataPlaneError> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            let behind = |worker: &&WorkerHandle| worker.counters.epoch.get() < u64::from(epoch.0);
            let missing = self.workers.iter().filter(behind).count();
            if missing == 0 {
                self.retired.try_iter().for_each(drop);
                return Ok(());
            }
            if self.retired.recv_deadline(deadline).is_err() {
                return Err(DataPlaneError::NotAcknowledged { missing, workers: self.workers.len(), epoch });
            }
        }
    }

    fn report_worker(&self, number: usize, worker: &WorkerHandle) -> WorkerReport {
        WorkerReport {
            worker: number,
            core: worker.core,
            epoch: Epoch(u32::try_from(worker.counters.epoch.get()).unwrap_or(u32::MAX)),
            sessions: worker.counters.sessions.get(),
            session_capacity: u64::from(self.options.session_capacity),
            panics: worker.counters.panics.get(),
            handed_over: worker.counters.handed_over.get(),
            sent_by_others: worker.counters.sent_by_others.get(),
            senders: worker.senders.map(|sender| sender.map(usize::from)),
            turns: worker.counters.life.turns(),
            times: worker.counters.life.timing.read(),
            hairpinned: worker.counters.hairpinned.get(),
            fragments_made: worker.counters.fragments_made.get(),
            queues: worker.queues.iter().map(Queue::report).collect(),
        }
    }

    fn report_frames(&self) -> FramesReport {
        let at_workers = |worker: &WorkerHandle| worker.counters.frames.get();
        let handed = |worker: &WorkerHandle| worker.mailbox.frames_waiting() as u64;
        FramesReport {
            total: self.layout.total_frames() as u64,
            at_workers: self.workers.iter().map(at_workers).sum(),
            in_commons: self.commons.len() as u64,
            handed_over: self.workers.iter().map(handed).sum(),
        }
    }

    fn report_tenants(&self) -> Vec<(TenantId, TenantReport)> {
        let mut tenants: BTreeMap<TenantId, TenantReport> = BTreeMap::new();
        for (id, counters) in self.workers.iter().flat_map(|worker| worker.counters.tenants()) {
            counters.add_to(tenants.entry(id).or_default());
        }
        for (id, report) in &mut tenants {
            for (side, steering) in Side::BOTH.into_iter().zip(&self.steering) {
                report.add_drops(side, DropReason::QueueShare, steering.refused(*id));
            }
        }
        tenants.into_iter().collect()
    }
}

/// Closes the sockets of queues whose workers have ended. The kernel waits for each until no processor uses it (RCU): at the
/// same time for all, where they are closed at the same time.
fn close_together(queues: Vec<Queue>) {
    thread::scope(|scope| {
        for queue in queues {
            scope.spawn(|| drop(queue));
        }
    });
}

fn check_mtu(snapshot: &Snapshot) -> Result<(), DataPlaneError> {
    let most = Frame::CAPACITY - ETHERNET_BYTES;
    let too_large = Side::BOTH.into_iter().find(|side| usize::from(snapshot.link(*side).mtu) > most);
    match too_large {
        Some(side) => Err(DataPlaneError::Mtu { side: side.name(), mtu: snapshot.link(side).mtu, most }),
        None => Ok(()),
    }
}

/// Detaches the XDP programs pinned in `pin_dir` and removes the pins; tells whether there were any.
///
/// # Errors
/// When a pin cannot be removed.
pub fn detach(pin_dir: &Path) -> Result<bool, DataPlaneError> {
    Ok(remove_all_pins(pin_dir)?)
}

//! Plans which worker serves which queues on which core, and starts the threads.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use conntrack::blocks::MAX_WORKERS;
use conntrack::{Conntrack, Tick, WorkerSlot};
use core_affinity::CoreId;
use crossbeam::channel::{Receiver, Sender, bounded};
use crossbeam::queue::ArrayQueue;
use nix::net::if_::if_nametoindex;
use rand::TryRng;
use rand::rngs::SysRng;

use crate::counters::WorkerCounters;
use crate::dataplane::{DataPlaneError, DataPlaneOptions, WorkerHandle};
use crate::fragments::Limits;
use crate::io::ethtool::rx_queues;
use crate::io::xsk::{RING_FRAMES, XskPort, XskProbe};
use crate::io::{Frame, FrameArea, FramePool};
use crate::mailbox::{Mailbox, RequestQueue};
use crate::pipeline::Engine;
use crate::runner::{Sleeper, run};
use crate::snapshot::{Side, Snapshot};
use crate::steer::Steering;
use crate::worker::{Port, Worker, WorkerParts};

/// Frames for each queue: what its fill and tx rings hold, and as many again in hand.
const FRAMES_PER_QUEUE: usize = 3 * RING_FRAMES;

/// One interface.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) index: u32,
    queues: u32,
}

/// Which worker runs where.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) links: [Link; 2],
    cores: Vec<Option<CoreId>>,
}

impl Layout {
    /// Looks at the interfaces and cores and decides.
    pub(crate) fn plan(options: &DataPlaneOptions) -> Result<Self, DataPlaneError> {
        let links = [find_link(&options.inside)?, find_link(&options.outside)?];
        let (side, queues) = Side::BOTH
            .into_iter()
            .zip(links.iter().map(|link| link.queues))
            .min_by_key(|(_, queues)| *queues)
            .expect("there are two sides");
        let workers = options.workers.unwrap_or((queues as usize).min(MAX_WORKERS.into()));
        if workers == 0 {
            return Err(DataPlaneError::NoWorkers);
        }
        if workers > queues as usize {
            return Err(DataPlaneError::TooManyWorkers { wanted: workers, side: side.name(), queues });
        }
        Ok(Self { links, cores: choose_cores(&options.cores, workers)? })
    }

    /// Loads the XDP program of each side.
    pub(crate) fn load_steering(&self, first: &Snapshot) -> Result<[Steering; 2], DataPlaneError> {
        let [inside, outside] = &self.links;
        Ok([
            Steering::load(Side::Inside, inside.queues, first)?,
            Steering::load(Side::Outside, outside.queues, first)?,
        ])
    }

    fn workers(&self) -> usize {
        self.cores.len()
    }

    /// Returns the queues that a worker serves: every `workers`th of each side.
    fn queues_of(&self, worker: usize) -> impl Iterator<Item = (Side, &Link, u32)> {
        Side::BOTH.into_iter().zip(&self.links).flat_map(move |(side, link)| {
            (0..link.queues)
                .filter(move |queue| *queue as usize % self.workers() == worker)
                .map(move |queue| (side, link, queue))
        })
    }

    fn total_queues(&self) -> usize {
        self.links.iter().map(|link| link.queues as usize).sum()
    }
}

fn find_link(name: &str) -> Result<Link, DataPlaneError> {
    let missing = |source: io::Error| DataPlaneError::Interface { interface: name.to_owned(), source };
    let index = if_nametoindex(name).map_err(|error| missing(error.into()))?;
    Ok(Link { name: name.to_owned(), index, queues: rx_queues(name).map_err(missing)? })
}

/// Returns a core for each worker: those that were asked for, in order and from the start again when they are
/// fewer; else the first ones that there are. A machine with fewer cores than workers pins only the first workers.
fn choose_cores(wanted: &[usize], workers: usize) -> Result<Vec<Option<CoreId>>, DataPlaneError> {
    let available = core_affinity::get_core_ids().unwrap_or_default();
    let find = |core: usize| {
        available.iter().find(|id| id.id == core).copied().ok_or_else(|| DataPlaneError::Core {
            core,
            available: available.iter().map(|id| id.id).collect(),
        })
    };
    let wanted = wanted.iter().map(|core| find(*core)).collect::<Result<Vec<_>, _>>()?;
    Ok((0..workers)
        .map(|worker| {
            if wanted.is_empty() {
                available.get(worker).copied()
            } else {
                Some(wanted[worker % wanted.len()])
            }
        })
        .collect())
}

/// Workers that run, and the control side's ends of their queues.
#[derive(Debug)]
pub(crate) struct StartedWorkers {
    pub(crate) workers: Vec<WorkerHandle>,
    pub(crate) retired: Receiver<Arc<Snapshot>>,
    pub(crate) requests: Arc<RequestQueue>,
}

impl StartedWorkers {
    /// Binds the sockets and starts the threads.
    pub(crate) fn start(
        layout: &Layout,
        options: &DataPlaneOptions,
        first: &Arc<Snapshot>,
    ) -> Result<Self, DataPlaneError> {
        let total_frames = layout.total_queues() * FRAMES_PER_QUEUE;
        let (area, mut frames) = FrameArea::allocate(total_frames).map_err(lacking("the frame area"))?;
        let mailboxes = (0..layout.workers())
            .map(|_| Mailbox::new().map(Arc::new))
            .collect::<Result<Vec<_>, _>>()
            .map_err(lacking("a worker's mailbox"))?;
        let (retire, retired) = bounded(4 * layout.workers());
        let shared = Shared {
            commons: Arc::new(ArrayQueue::new(total_frames)),
            requests: Arc::new(RequestQueue::new().map_err(lacking("the request queue"))?),
            mailboxes,
            retire,
        };
        // Everything that can fail for a reason of the host comes before the first thread.
        let mut ready = Vec::new();
        for number in 0..layout.workers() {
            let queues = layout.queues_of(number).count();
            let mut pool = FramePool::with_capacity(total_frames);
            for _ in 0..queues * FRAMES_PER_QUEUE {
                pool.put(frames.take().expect("there are frames for every queue"));
            }
            ready.push(ReadyWorker::prepare(layout, number, options, first, &area, pool, &shared)?);
        }
        // One clock for all: tenants' new sessions are counted by its seconds.
        let started = Instant::now();
        let workers = ready.into_iter().map(|worker| worker.spawn(started)).collect::<Result<_, _>>()?;
        Ok(Self { workers, retired, requests: shared.requests })
    }
}

/// What all workers hold an end of.
struct Shared {
    commons: Arc<ArrayQueue<Frame>>,
    requests: Arc<RequestQueue>,
    mailboxes: Vec<Arc<Mailbox>>,
    retire: Sender<Arc<Snapshot>>,
}

/// A worker that has its sockets and waits for its thread.
struct ReadyWorker {
    worker: Worker<XskPort>,
    sleeper: Sleeper,
    core: Option<CoreId>,
    queues: Vec<(Side, u32, XskProbe)>,
}

impl ReadyWorker {
    fn prepare(
        layout: &Layout,
        number: usize,
        options: &DataPlaneOptions,
        first: &Arc<Snapshot>,
        area: &FrameArea,
        pool: FramePool,
        shared: &Shared,
    ) -> Result<Self, DataPlaneError> {
        let (ports, queues) = open_ports(layout, number, area)?;
        let narrow =
            |number: usize| u16::try_from(number).expect("there are fewer workers than queues of a NIC");
        let slot = WorkerSlot { worker: narrow(number), workers: narrow(layout.workers()) };
        let seed = draw_seed().map_err(lacking("a random seed"))?;
        let lent = first.shared().expect("the data plane gives every snapshot what workers share");
        let conntrack = Conntrack::new(options.session_capacity, slot, Arc::clone(lent), seed);
        let counters = Arc::new(WorkerCounters::new(ports.len()));
        let worker = Worker::new(WorkerParts {
            engine: Engine::new(Arc::clone(first), conntrack, Limits::WORKER, counters, Tick::default()),
            ports,
            pool,
            commons: Arc::clone(&shared.commons),
            mailboxes: shared.mailboxes.clone(),
            requests: Arc::clone(&shared.requests),
            retired: shared.retire.clone(),
        });
        let sleeper = Sleeper::new(&worker).map_err(lacking("a worker's epoll descriptor"))?;
        Ok(Self { worker, sleeper, core: layout.cores[number], queues })
    }

    fn spawn(self, started: Instant) -> Result<WorkerHandle, DataPlaneError> {
        let Self { worker, sleeper, core, queues } = self;
        let number = worker.number();
        let (mailbox, counters) = (Arc::clone(worker.mailbox()), Arc::clone(worker.counters()));
        let thread = thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                if let Some(core) = core
                    && !core_affinity::set_for_current(core)
                {
                    tracing::warn!(worker = number, core = core.id, "the worker cannot be pinned");
                }
                run(worker, &sleeper, started);
            })
            .map_err(lacking("a worker's thread"))?;
        Ok(WorkerHandle { core: core.map(|core| core.id), mailbox, counters, queues, thread })
    }
}

type Ports = (Vec<Port<XskPort>>, Vec<(Side, u32, XskProbe)>);

fn open_ports(layout: &Layout, number: usize, area: &FrameArea) -> Result<Ports, DataPlaneError> {
    let mut ports = Vec::new();
    let mut probes = Vec::new();
    for (side, link, queue) in layout.queues_of(number) {
        let io = XskPort::open(area, &link.name, queue).map_err(|source| DataPlaneError::Queue {
            interface: link.name.clone(),
            queue,
            source,
        })?;
        probes.push((side, queue, io.probe().map_err(lacking("a descriptor for statistics"))?));
        ports.push(Port { side, io });
    }
    Ok((ports, probes))
}

fn draw_seed() -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    SysRng.try_fill_bytes(&mut seed).map_err(io::Error::other)?;
    Ok(seed)
}

fn lacking(what: &'static str) -> impl Fn(io::Error) -> DataPlaneError {
    move |source| DataPlaneError::Resources { what, source }
}

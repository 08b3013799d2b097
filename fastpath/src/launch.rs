//! Binds the sockets and starts the threads.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use conntrack::{Conntrack, WorkerSlot};
use crossbeam::channel::{Receiver, Sender, bounded};
use crossbeam::queue::ArrayQueue;
use rand::TryRng;
use rand::rngs::SysRng;

use crate::counters::{QueueCounters, WorkerCounters};
use crate::dataplane::{DataPlaneError, DataPlaneOptions, WorkerHandle};
use crate::fragments::Limits;
use crate::io::memory::Stretch;
use crate::io::probe::XskProbe;
use crate::io::xsk::XskPort;
use crate::io::{Frame, FrameArea, FramePool};
use crate::journal::Events;
use crate::layout::Layout;
use crate::mailbox::{Mailbox, RequestQueue};
use crate::pipeline::Engine;
use crate::placement::{Placement, SchedulerPolicy, give_up_privileges};
use crate::pulse::THREADS;
use crate::report::QueueReport;
use crate::runner::{Sleeper, run};
use crate::snapshot::{Side, Snapshot};
use crate::steer::Steering;
use crate::succession::{Inheritance, SessionFile, succeed};
use crate::track::memory_of;
use crate::worker::{Port, PortChange, Worker, WorkerParts};

/// Changes of ports that may wait for one worker: one for each side, and one more for each that it has not seen.
const PORT_CHANGES: usize = 4;

/// Workers that run, and the control side's ends of their queues.
#[derive(Debug)]
pub(crate) struct StartedWorkers {
    pub(crate) workers: Vec<WorkerHandle>,
    pub(crate) retired: Receiver<Arc<Snapshot>>,
    pub(crate) requests: Arc<RequestQueue>,
    pub(crate) area: FrameArea,
    pub(crate) commons: Arc<ArrayQueue<Frame>>,
    pub(crate) session_file: Option<SessionFile>,
    pub(crate) inheritance: Option<Inheritance>,
    pub(crate) events: Option<Events>,
    /// Where the tables are; their memory is not taken yet.
    pub(crate) memory: Vec<Stretch>,
}

/// The memory of all workers.
#[derive(Debug)]
pub(crate) struct Provisions {
    area: FrameArea,
    frames: FramePool,
    tables: Vec<Conntrack>,
    counters: Vec<Arc<WorkerCounters>>,
    session_file: Option<SessionFile>,
    inheritance: Option<Inheritance>,
    events: Option<Events>,
    memory: Vec<Stretch>,
}

impl Provisions {
    /// Takes the memory of the frames, makes tables, and takes up the sessions of the process before.
    pub(crate) fn take(
        layout: &Layout,
        options: &DataPlaneOptions,
        first: &Snapshot,
    ) -> Result<Self, DataPlaneError> {
        let (area, frames) = FrameArea::allocate(layout.total_frames()).map_err(lacking("the frame area"))?;
        area.populate();
        let (mut tables, counters) = make_tables(layout, options, first)?;
        let memory = tables.iter().flat_map(memory_of).collect();
        let events = options.records.map(|records| Events::new(layout.workers(), records));
        if let Some(events) = &events {
            let tables = tables.iter_mut().enumerate();
            tables.for_each(|(worker, table)| table.report_to(events.reporter(worker)));
        }
        let succeeded = options.session_file.as_deref();
        let succeeded = succeeded.map(|path| succeed(path, &mut tables, &counters, first)).transpose()?;
        let (session_file, inheritance) = succeeded.unzip();
        Ok(Self { area, frames, tables, counters, session_file, inheritance, events, memory })
    }
}

impl StartedWorkers {
    /// Binds the sockets and starts the threads.
    pub(crate) fn start(
        layout: &Layout,
        options: &DataPlaneOptions,
        first: &Arc<Snapshot>,
        steering: &[Steering; 2],
        provisions: Provisions,
    ) -> Result<Self, DataPlaneError> {
        let Provisions { area, mut frames, tables, counters, session_file, inheritance, mut events, memory } =
            provisions;
        let total_frames = layout.total_frames();
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
        for (number, (table, counters)) in tables.into_iter().zip(counters).enumerate() {
            let mut pool = FramePool::with_capacity(total_frames);
            for _ in 0..layout.home_frames(number) {
                pool.put(frames.take().expect("there are frames for every worker"));
            }
            let engine = Engine::new(Arc::clone(first), table, Limits::WORKER, counters);
            let (policy, rings) = (options.scheduler_policy, Rings { area: &area, steering });
            ready.push(ReadyWorker::prepare(layout, number, policy, engine, rings, pool, &shared)?);
        }
        // One clock for all: tenants' new sessions are counted by its seconds.
        let started = Instant::now();
        events.iter_mut().for_each(|events| events.started_at(started));
        let workers = ready.into_iter().map(|worker| worker.spawn(started)).collect::<Result<_, _>>()?;
        let (requests, commons) = (shared.requests, shared.commons);
        Ok(Self { workers, retired, requests, area, commons, session_file, inheritance, events, memory })
    }
}

/// Makes the session tables of all workers, and their counters.
fn make_tables(
    layout: &Layout,
    options: &DataPlaneOptions,
    first: &Snapshot,
) -> Result<(Vec<Conntrack>, Vec<Arc<WorkerCounters>>), DataPlaneError> {
    let narrow = |number: usize| u16::try_from(number).expect("there are at most MAX_WORKERS workers");
    let shared = first.shared().expect("the data plane gives every snapshot what workers share");
    let (mut tables, mut counters) = (Vec::new(), Vec::new());
    for number in 0..layout.workers() {
        let slot = WorkerSlot { worker: narrow(number), workers: narrow(layout.workers()) };
        let seed = draw_seed().map_err(lacking("a random seed"))?;
        let table = Conntrack::new(options.session_capacity, slot, Arc::clone(shared), seed);
        tables.push(table);
        let counts = WorkerCounters::default();
        counts.adopt(first);
        counters.push(Arc::new(counts));
    }
    Ok((tables, counters))
}

/// What all workers hold an end of.
struct Shared {
    commons: Arc<ArrayQueue<Frame>>,
    requests: Arc<RequestQueue>,
    mailboxes: Vec<Arc<Mailbox>>,
    retire: Sender<Arc<Snapshot>>,
}

/// What sockets are opened with.
#[derive(Clone, Copy)]
struct Rings<'a> {
    area: &'a FrameArea,
    steering: &'a [Steering; 2],
}

/// A worker that has its sockets and waits for its thread.
struct ReadyWorker {
    worker: Worker<XskPort>,
    sleeper: Sleeper,
    placement: Placement,
    queues: Vec<Queue>,
    senders: [Option<u16>; 2],
    port_changes: Sender<PortChange<XskPort>>,
}

/// What the control side keeps of a worker's port.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) side: Side,
    pub(crate) number: u32,
    pub(crate) probe: XskProbe,
    pub(crate) counters: Arc<QueueCounters>,
}

impl Queue {
    /// Returns what was counted since the socket was opened.
    pub(crate) fn report(&self) -> QueueReport {
        let statistics = self.probe.statistics().unwrap_or_default();
        QueueReport {
            side: self.side,
            queue: self.number,
            received: self.counters.received.get(),
            transmitted: self.counters.transmitted.get(),
            rx_dropped: statistics.rx_dropped,
            rx_ring_full: statistics.rx_ring_full,
            fill_ring_empty: statistics.fill_ring_empty,
            invalid_descriptors: statistics.invalid_descriptors,
            zero_copy: self.probe.is_zero_copy().unwrap_or(false),
        }
    }
}

impl ReadyWorker {
    fn prepare(
        layout: &Layout,
        number: usize,
        policy: SchedulerPolicy,
        engine: Engine,
        rings: Rings<'_>,
        pool: FramePool,
        shared: &Shared,
    ) -> Result<Self, DataPlaneError> {
        let (mut ports, mut queues) = (Vec::new(), Vec::new());
        for side in Side::BOTH {
            let steering = &rings.steering[side.index()];
            let (more_ports, more_queues) = open_ports(layout, number, side, rings.area, steering)?;
            ports.extend(more_ports);
            queues.extend(more_queues);
        }
        let senders = layout.senders_of(number);
        let (port_changes, changes) = bounded(PORT_CHANGES);
        let worker = Worker::new(WorkerParts {
            engine,
            ports,
            senders,
            port_changes: changes,
            pool,
            commons: Arc::clone(&shared.commons),
            mailboxes: shared.mailboxes.clone(),
            requests: Arc::clone(&shared.requests),
            retired: shared.retire.clone(),
        });
        let placement = layout.placement_of(number, policy);
        let sleeper = Sleeper::new(&worker).map_err(lacking("a worker's epoll descriptor"))?;
        Ok(Self { worker, sleeper, placement, queues, senders, port_changes })
    }

    fn spawn(self, started: Instant) -> Result<WorkerHandle, DataPlaneError> {
        let Self { mut worker, sleeper, placement, queues, senders, port_changes } = self;
        let number = worker.number();
        let (mailbox, counters) = (Arc::clone(worker.mailbox()), Arc::clone(worker.counters()));
        let thread = thread::Builder::new()
            .name(format!("{THREADS}{number}"))
            .spawn(move || {
                placement.take(number);
                give_up_privileges(number);
                run(&mut worker, &sleeper, started);
            })
            .map_err(lacking("a worker's thread"))?;
        let core = placement.core.map(|core| core.id);
        Ok(WorkerHandle { core, mailbox, counters, queues, senders, port_changes, thread })
    }
}

/// Binds a worker's sockets on one side.
pub(crate) fn open_ports(
    layout: &Layout,
    worker: usize,
    side: Side,
    area: &FrameArea,
    steering: &Steering,
) -> Result<(Vec<Port<XskPort>>, Vec<Queue>), DataPlaneError> {
    let (mut ports, mut queues) = (Vec::new(), Vec::new());
    let interface = &layout.link(side).name;
    for number in layout.queues_of(worker, side) {
        let refused = |source| DataPlaneError::Queue { interface: interface.clone(), queue: number, source };
        let mut io = XskPort::open(area, interface, number).map_err(refused)?;
        io.set_fill_frames(layout.fill_frames(side));
        io.set_turnstile(steering.turnstile(number));
        let probe = io.probe().map_err(lacking("a descriptor for statistics"))?;
        let port = Port::new(side, io);
        queues.push(Queue { side, number, probe, counters: Arc::clone(&port.counters) });
        ports.push(port);
    }
    Ok((ports, queues))
}

/// Draws what hashing and the choice of ports begin with.
pub(crate) fn draw_seed() -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    SysRng.try_fill_bytes(&mut seed).map_err(io::Error::other)?;
    Ok(seed)
}

fn lacking(what: &'static str) -> impl Fn(io::Error) -> DataPlaneError {
    move |source| DataPlaneError::Resources { what, source }
}

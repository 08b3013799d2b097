//! Workers on lines in memory.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use conntrack::{Conntrack, Epoch, FiveTuple, Policy, SharedBook, TenantId, Tick, Timeouts, WorkerSlot};
use crossbeam::channel::{Receiver, bounded};
use crossbeam::queue::ArrayQueue;
use fastpath::counters::WorkerCounters;
use fastpath::fragments::Limits;
use fastpath::io::{FrameArea, FramePool};
use fastpath::mailbox::{Mailbox, RequestQueue};
use fastpath::pipeline::Engine;
use fastpath::snapshot::{
    LinkSpec, NeighbourSpec, RouteSpec, Side, Snapshot, SnapshotSpec, SourceKind, TcpPolicy, TenantSpec,
};
use fastpath::tap::Tap;
use fastpath::track::populate;
use fastpath::worker::{Port, Worker, WorkerParts};
use macaddr::MacAddr6;

use crate::BATCH_FRAMES;
use crate::line::{Line, LinePort};
use crate::traffic::{EGRESS, Flows, Frames, OUTSIDE_MAC, Sizes, TENANT_MAC};

const FRAMES_PER_WORKER: usize = 1024;

/// Time and frames of some turns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Time in turns.
    pub time: Duration,
    /// Frames that were forwarded, or sessions that ended.
    pub count: u64,
}

impl Sample {
    /// Returns the nanoseconds that one took.
    #[expect(clippy::cast_precision_loss, reason = "2^52 ns are 52 days")]
    pub fn nanoseconds(&self) -> f64 {
        self.time.as_nanos() as f64 / self.count as f64
    }
}

/// Workers in one thread.
#[derive(Debug)]
pub struct Rig {
    workers: Vec<Worker<LinePort>>,
    lines: Vec<[Line; 2]>,
    frames: Frames,
    mailboxes: Vec<Arc<Mailbox>>,
    retired: Receiver<Arc<Snapshot>>,
    book: SharedBook,
    epoch: Epoch,
    /// The workers' clock: the time that they had, and that was let pass.
    elapsed: Duration,
}

impl Rig {
    /// Makes workers that hold so many entries each: sessions, and pods that have some.
    ///
    /// # Errors
    /// When memory or descriptors are short.
    pub fn new(workers: u16, entries: u32) -> Result<Self> {
        let count = usize::from(workers);
        let total = count * FRAMES_PER_WORKER;
        let (_area, mut frames) = FrameArea::allocate(total)?;
        let mailboxes = (0..count).map(|_| Ok(Arc::new(Mailbox::new()?))).collect::<Result<Vec<_>>>()?;
        let requests = Arc::new(RequestQueue::new()?);
        let commons = Arc::new(ArrayQueue::new(total));
        let (retire, retired) = bounded(4 * count);
        let mut book = SharedBook::default();
        let epoch = Epoch(1);
        let snapshot = Arc::new(Snapshot::compile(facts(epoch)).with_shared(&mut book, Epoch(0)));
        let lines: Vec<[Line; 2]> = (0..count).map(|_| [Line::default(), Line::default()]).collect();
        let workers = (0..workers).zip(&lines).map(|(worker, lines)| {
            let mut pool = FramePool::with_capacity(total);
            (0..FRAMES_PER_WORKER).for_each(|_| pool.put(frames.take().expect("there are enough")));
            let [inside, outside] = lines;
            let ports = [(Side::Inside, inside), (Side::Outside, outside)];
            let ports = ports.map(|(side, line)| Port::new(side, line.port()));
            let slot = WorkerSlot { worker, workers: u16::try_from(count).expect("it was one") };
            let shared = Arc::clone(snapshot.shared().expect("it was given"));
            let conntrack = Conntrack::new(entries, slot, shared, [7; 32]);
            populate(&conntrack);
            let counters = Arc::new(WorkerCounters::default());
            let first = Arc::clone(&snapshot);
            Worker::new(WorkerParts {
                engine: Engine::new(first, conntrack, Limits::WORKER, counters),
                ports: ports.into(),
                senders: [None; 2],
                port_changes: crossbeam::channel::never(),
                pool,
                commons: Arc::clone(&commons),
                mailboxes: mailboxes.clone(),
                requests: Arc::clone(&requests),
                retired: retire.clone(),
            })
        });
        let workers = workers.collect();
        let frames = Frames::default();
        let elapsed = Duration::ZERO;
        let mut rig = Self { workers, lines, frames, mailboxes, retired, book, epoch, elapsed };
        rig.turn(); // what is announced at first is no traffic
        Ok(rig)
    }

    /// Has the workers show frames to a tap from now on.
    pub fn show_to(&mut self, tap: Arc<Tap>) {
        let taps: Arc<[_]> = Arc::from([tap]);
        self.mailboxes.iter().for_each(|mailbox| mailbox.put_taps(Arc::clone(&taps)));
    }

    /// Returns the tables of the workers.
    pub fn tables(&self) -> impl Iterator<Item = &Conntrack> {
        self.workers.iter().map(Worker::conntrack)
    }

    /// Returns the number of sessions.
    pub fn sessions(&self) -> u32 {
        self.tables().map(Conntrack::len).sum()
    }

    /// Returns for each flow the tuple of the packets that answer it.
    ///
    /// # Errors
    /// When a flow has no session.
    pub fn replies(&self, flows: Flows) -> Result<Vec<FiveTuple>> {
        let mut replies: Vec<(FiveTuple, FiveTuple)> = self
            .tables()
            .flat_map(|table| table.scan(0, table.capacity()))
            .map(|session| (session.inside_tuple(), session.outside_tuple().reversed()))
            .collect();
        let key = |tuple: &FiveTuple| (tuple.source, tuple.source_port, tuple.destination);
        replies.sort_unstable_by_key(|(inside, _)| key(inside));
        (0..flows.count())
            .map(|flow| {
                let tuple = flows.tuple(flow);
                let place = replies.binary_search_by_key(&key(&tuple), |(inside, _)| key(inside));
                place.map(|place| replies[place].1).map_err(|_| anyhow::anyhow!("flow {flow} has no session"))
            })
            .collect()
    }

    /// Lets packets of pods come in at a worker, a batch after the other.
    ///
    /// # Errors
    /// When one was not forwarded.
    pub fn send_outbound(&mut self, flows: Flows, order: &[u32], sizes: Sizes) -> Result<Sample> {
        self.send(Side::Inside, order, |frames, number, flow, frame| {
            frames.write_outbound(&flows.tuple(flow), sizes, number, frame);
        })
    }

    /// Lets answers come in at a worker, a batch after the other.
    ///
    /// # Errors
    /// When one was not forwarded.
    pub fn send_inbound(&mut self, replies: &[FiveTuple], order: &[u32], sizes: Sizes) -> Result<Sample> {
        self.send(Side::Outside, order, |frames, number, flow, frame| {
            frames.write_inbound(&replies[flow as usize], sizes, number, frame);
        })
    }

    fn send(
        &mut self,
        side: Side,
        order: &[u32],
        write: impl Fn(&Frames, usize, u32, &mut fastpath::io::Frame),
    ) -> Result<Sample> {
        let before = self.transmitted(side.other());
        let mut time = Duration::ZERO;
        for flows in order.chunks(BATCH_FRAMES) {
            let frames = &self.frames;
            let line = &self.lines[0][usize::from(side == Side::Outside)];
            let armed = line.arm(flows.len(), |number, frame| write(frames, number, flows[number], frame));
            ensure!(armed == flows.len(), "only {armed} of {} frames could arrive", flows.len());
            time += self.turn();
        }
        let count = self.transmitted(side.other()) - before;
        ensure!(count == order.len() as u64, "{count} of {} frames were forwarded", order.len());
        Ok(Sample { time, count })
    }

    /// Lets every worker turn once, in order; returns the time, by which the workers' clock goes.
    #[inline(never)] // instructions are counted in it, by its name
    pub fn turn(&mut self) -> Duration {
        let now = Tick::since_start(self.elapsed);
        let start = Instant::now();
        for worker in &mut self.workers {
            worker.turn(now);
        }
        let time = start.elapsed();
        self.elapsed += time;
        time
    }

    /// Lets time pass.
    pub fn wait(&mut self, duration: Duration) {
        self.elapsed += duration;
    }

    /// Lets all sessions expire that are due; counts sessions.
    pub fn expire(&mut self) -> Sample {
        let before = self.sessions();
        let mut time = Duration::ZERO;
        loop {
            let sessions = self.sessions();
            time += self.turn();
            if self.sessions() == sessions {
                break;
            }
        }
        Sample { time, count: u64::from(before - self.sessions()) }
    }

    /// Puts another snapshot with the same facts before the workers; every session is then checked with its next packet.
    pub fn publish(&mut self) {
        let applied = self.epoch;
        self.epoch = Epoch(self.epoch.0 + 1);
        let next = Arc::new(Snapshot::compile(facts(self.epoch)).with_shared(&mut self.book, applied));
        for mailbox in &self.mailboxes {
            mailbox.put_snapshot(Arc::clone(&next));
        }
        self.retired.try_iter().for_each(drop);
    }

    fn transmitted(&self, side: Side) -> u64 {
        self.lines.iter().map(|lines| lines[usize::from(side == Side::Outside)].transmitted()).sum()
    }
}

/// Returns the reference gateway, with one tenant.
pub(crate) fn facts(epoch: Epoch) -> SnapshotSpec {
    let net = |text: &str| text.parse().expect("it is a network");
    let link = |last, mac| LinkSpec { mac, address: Ipv4Addr::new(192, 168, last, 12), mtu: 1500 };
    let node = Ipv4Addr::new(192, 168, 99, 21);
    let router = Ipv4Addr::new(192, 168, 55, 1);
    let route = |side, prefix, gateway| RouteSpec { side, prefix: net(prefix), gateway };
    let neighbour =
        |side, address, last| NeighbourSpec { side, address, mac: MacAddr6::new(2, 0, 0, 0, 0, last) };
    SnapshotSpec {
        epoch,
        inside: link(99, MacAddr6::new(2, 0, 0, 0, 1, 0x12)),
        outside: link(55, OUTSIDE_MAC),
        tenants: vec![TenantSpec {
            id: TenantId(0),
            gateway_mac: TENANT_MAC,
            gateway_address: Ipv4Addr::new(192, 168, 99, 13),
            egress_addresses: vec![EGRESS],
            sources: vec![net("10.132.0.0/14")],
            source_kind: SourceKind::Networks,
            is_draining: false,
            policy: Policy::default(),
            mss_clamp: 0,
        }],
        pod_cidrs: vec![net("10.132.0.0/14")],
        own_addresses: vec![Ipv4Addr::new(192, 168, 99, 12), Ipv4Addr::new(192, 168, 55, 12)],
        routes: vec![
            route(Side::Inside, "192.168.99.0/24", None),
            route(Side::Inside, "10.132.0.0/16", Some(node)),
            route(Side::Outside, "192.168.55.0/24", None),
            route(Side::Outside, "0.0.0.0/0", Some(router)),
        ],
        neighbours: vec![neighbour(Side::Inside, node, 0x21), neighbour(Side::Outside, router, 0x01)],
        timeouts: Timeouts::default(),
        tcp: TcpPolicy::default(),
    }
}

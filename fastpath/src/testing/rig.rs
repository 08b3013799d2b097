//! Workers on simulated wires, and the laws that hold at the end of every scenario.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use conntrack::checksum::{checksum, sum};
use conntrack::{
    Conntrack, Epoch, FiveTuple, Session, Shared, SharedBook, TcpState, TenantId, Tick, WorkerSlot,
};
use crossbeam::channel::{Receiver, Sender, bounded};
use crossbeam::queue::ArrayQueue;

use crate::counters::WorkerCounters;
use crate::dataplane::{NeighbourRequest, TenantReport};
use crate::fragments::Limits;
use crate::io::sim::{Faults, SimPort, Wire};
use crate::io::{Frame, FrameArea, FramePool};
use crate::layout::sender_for;
use crate::mailbox::{Mailbox, Notice, RequestQueue};
use crate::parse::read_u16;
use crate::pipeline::Engine;
use crate::snapshot::{Side, Snapshot, SnapshotSpec};
use crate::verdict::DropReason;
use crate::worker::{Port, PortChange, Worker, WorkerParts};

use super::BLUE;
use super::fragments::{payload_at, place};

/// How big a rig is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Number of workers.
    pub(crate) workers: u16,
    /// Frames that each worker starts with.
    pub(crate) frames: usize,
    /// Frames that each fill and tx ring holds.
    pub(crate) ring: usize,
    /// Sessions that each worker can hold.
    pub(crate) sessions: u32,
    /// What each worker remembers of fragments.
    pub(crate) fragments: Limits,
}

impl Size {
    /// One worker, as most scenarios need it.
    pub(crate) const USUAL: Self =
        Self { workers: 1, frames: 640, ring: 64, sessions: 256, fragments: Self::FRAGMENTS };

    /// Room for fewer datagrams than a worker has, so that a rig is made quickly.
    const FRAGMENTS: Limits = Limits { datagrams: 256, datagrams_per_tenant: 64, ..Limits::WORKER };
}

/// A session, as tests see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeenSession {
    pub(crate) worker: u16,
    /// The worker that packets to its outside port belong to.
    pub(crate) port_owner: Option<u16>,
    pub(crate) inside: FiveTuple,
    pub(crate) outside: FiveTuple,
    pub(crate) tcp: Option<TcpState>,
}

impl SeenSession {
    /// Tells whether its outside port is lent.
    pub(crate) fn is_borrowed(&self) -> bool {
        self.port_owner != Some(self.worker)
    }
}

/// Some workers, each with wires on both sides.
pub(crate) struct Rig {
    pub(crate) workers: Vec<Worker<SimPort>>,
    wires: Vec<[Vec<Wire>; 2]>,
    port_changes: Vec<Sender<PortChange<SimPort>>>,
    size: Size,
    commons: Arc<ArrayQueue<Frame>>,
    pub(crate) mailboxes: Vec<Arc<Mailbox>>,
    requests: Arc<RequestQueue>,
    retired: Receiver<Arc<Snapshot>>,
    book: SharedBook,
    shared: Arc<Shared>,
    pub(crate) now: Tick,
    frames: usize,
}

impl Rig {
    /// Makes one worker on wires without faults.
    pub(crate) fn new(spec: SnapshotSpec) -> Self {
        Self::with(spec, 1, Faults::default(), 1)
    }

    /// Makes `workers` workers on wires with faults.
    pub(crate) fn with(spec: SnapshotSpec, workers: u16, faults: Faults, seed: u64) -> Self {
        Self::of_size(spec, Size { workers, ..Size::USUAL }, faults, seed)
    }

    /// Makes one worker that can hold so many sessions, on wires without faults.
    pub(crate) fn with_room_for(sessions: u32, spec: SnapshotSpec) -> Self {
        Self::of_size(spec, Size { sessions, ..Size::USUAL }, Faults::default(), 1)
    }

    /// Makes workers that can hold so many sessions each, on wires without faults.
    pub(crate) fn with_workers(workers: u16, sessions: u32, spec: SnapshotSpec) -> Self {
        Self::of_size(spec, Size { workers, sessions, ..Size::USUAL }, Faults::default(), 1)
    }

    /// Makes workers on wires with faults, and lets them turn once.
    pub(crate) fn of_size(spec: SnapshotSpec, size: Size, faults: Faults, seed: u64) -> Self {
        Self::with_queues(spec, size, &vec![[1, 1]; usize::from(size.workers)], (faults, seed))
    }

    /// Makes workers that share these frames, as many as their size asks for; they have not turned yet.
    pub(crate) fn assemble(
        spec: SnapshotSpec,
        size: Size,
        faults: Faults,
        seed: u64,
        frames: FramePool,
    ) -> Self {
        let queues = vec![[1, 1]; usize::from(size.workers)];
        Self::assemble_with(spec, size, &queues, (faults, seed), frames)
    }

    /// Makes workers of which each has so many queues inside and outside, and lets them turn once.
    pub(crate) fn with_queues(
        spec: SnapshotSpec,
        size: Size,
        queues: &[[usize; 2]],
        faults: (Faults, u64),
    ) -> Self {
        let size = Size { workers: u16::try_from(queues.len()).unwrap(), ..size };
        let (_area, frames) = FrameArea::allocate(queues.len() * size.frames).unwrap();
        let mut rig = Self::assemble_with(spec, size, queues, faults, frames);
        rig.run();
        // Announcements of the first snapshot.
        Side::BOTH.iter().for_each(|side| drop(rig.take(*side)));
        rig
    }

    fn assemble_with(
        spec: SnapshotSpec,
        size: Size,
        queues: &[[usize; 2]],
        (faults, seed): (Faults, u64),
        mut frames: FramePool,
    ) -> Self {
        let count = usize::from(size.workers);
        let total = count * size.frames;
        let commons = Arc::new(ArrayQueue::new(total));
        let mailboxes: Vec<_> = (0..count).map(|_| Arc::new(Mailbox::new().unwrap())).collect();
        let requests = Arc::new(RequestQueue::new().unwrap());
        let mut book = SharedBook::default();
        let snapshot = Arc::new(Snapshot::compile(spec).with_shared(&mut book, Epoch::default()));
        let (retire, retired) = bounded(64);
        let mut seeds = seed..;
        let mut wires_of =
            |queues| -> Vec<_> { seeds.by_ref().take(queues).map(|seed| Wire::new(faults, seed)).collect() };
        let wires: Vec<_> = queues.iter().map(|queues| queues.map(&mut wires_of)).collect();
        let mut port_changes = Vec::new();
        let workers = (0..size.workers).zip(&wires).map(|(number, wires)| {
            let mut pool = FramePool::with_capacity(total);
            (0..size.frames).for_each(|_| pool.put(frames.take().unwrap()));
            let ports = Side::BOTH.into_iter().flat_map(|side| ports_on(side, &wires[side.index()], size));
            let (changes, changed) = bounded(4);
            port_changes.push(changes);
            let slot = WorkerSlot { worker: number, workers: size.workers };
            let shared = Arc::clone(snapshot.shared().unwrap());
            let conntrack = Conntrack::new(size.sessions, slot, shared, [7; 32]);
            let counters = Arc::new(WorkerCounters::default());
            Worker::new(WorkerParts {
                engine: Engine::new(Arc::clone(&snapshot), conntrack, size.fragments, counters),
                ports: ports.collect(),
                senders: Side::BOTH.map(|side| sender_on(side, number, queues)),
                port_changes: changed,
                pool,
                commons: Arc::clone(&commons),
                mailboxes: mailboxes.clone(),
                requests: Arc::clone(&requests),
                retired: retire.clone(),
            })
        });
        let workers: Vec<_> = workers.collect();
        let now = Tick::default();
        let shared = Arc::clone(snapshot.shared().unwrap());
        Self {
            workers,
            wires,
            port_changes,
            size,
            commons,
            mailboxes,
            requests,
            retired,
            book,
            shared,
            now,
            frames: total,
        }
    }

    /// Puts a frame on the first wire of a worker.
    pub(crate) fn inject(&self, worker: usize, side: Side, frame: &[u8]) {
        self.inject_by((worker, 0), side, frame);
    }

    /// Puts a frame on one of the wires of a worker.
    pub(crate) fn inject_by(&self, (worker, queue): (usize, usize), side: Side, frame: &[u8]) {
        self.wires[worker][side.index()][queue].inject(frame);
    }

    /// Has tenants compete for a worker's first wire.
    pub(crate) fn contend(&self, worker: usize, side: Side) {
        self.wires[worker][side.index()][0].contend();
    }

    /// Gives workers other queues on a side, in the middle of whatever they do. The frames of the rings that they had
    /// come home only then.
    pub(crate) fn exchange(&mut self, side: Side, queues: &[usize]) {
        let both = queues.iter().map(|count| [*count; 2]).collect::<Vec<_>>();
        for (number, count) in (0..).zip(queues) {
            let wires: Vec<_> = (0..*count as u64).map(|seed| Wire::new(Faults::default(), seed)).collect();
            let (replaced, given_back) = bounded(1);
            let ports = ports_on(side, &wires, self.size).collect();
            let sender = sender_on(side, number, &both);
            let worker = usize::from(number);
            let change = PortChange { side, ports, sender, home_frames: self.size.frames, replaced };
            self.port_changes[worker].try_send(change).unwrap();
            self.mailboxes[worker].note(Notice::NewPorts);
            self.turn(worker);
            self.wires[worker][side.index()] = wires;
            let frames = given_back.try_recv().unwrap().into_iter().flat_map(|port| port.io.into_frames());
            frames.for_each(|frame| self.commons.push(frame).unwrap());
        }
    }

    /// Lets all workers turn until none finds anything.
    pub(crate) fn run(&mut self) {
        for _ in 0..10_000 {
            let found: usize = (0..self.workers.len()).map(|worker| self.turn(worker)).sum();
            if found == 0 && self.is_at_rest() {
                return;
            }
        }
        panic!("the workers find no rest");
    }

    /// Lets one worker do one turn; returns how many frames it found.
    pub(crate) fn turn(&mut self, worker: usize) -> usize {
        self.workers[worker].turn(self.now)
    }

    /// Tells whether nothing is left to do, unless a frame comes.
    pub(crate) fn is_at_rest(&self) -> bool {
        let waits = self.mailboxes.iter().any(|mailbox| !mailbox.is_empty());
        !waits && !self.workers.iter().any(|worker| worker.is_busy() || worker.is_asked())
    }

    /// Lets time pass, and the workers turn.
    pub(crate) fn wait(&mut self, duration: Duration) {
        self.now = self.now.after(duration);
        self.run();
    }

    /// Sends a frame in at the first worker and returns what leaves on a side.
    pub(crate) fn send(&mut self, side: Side, frame: &[u8], leaves_by: Side) -> Vec<Vec<u8>> {
        self.inject(0, side, frame);
        self.run();
        self.take(leaves_by)
    }

    /// Sends a frame in at the first worker, which panics with it in hand and recovers.
    #[cfg(test)]
    pub(crate) fn fail_at(&mut self, side: Side, frame: &[u8]) {
        self.inject(0, side, frame);
        self.fail(0);
        self.run();
    }

    /// Lets a worker turn, which panics with the next frame in hand and recovers.
    #[cfg(test)]
    pub(crate) fn fail(&mut self, worker: usize) {
        let (worker, now) = (&mut self.workers[worker], self.now);
        worker.fail_at_next_frame();
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.turn(now)));
        assert!(panic.is_err(), "the worker was asked to panic");
        worker.recover();
    }

    /// Takes what left on a side, at any worker.
    pub(crate) fn take(&self, side: Side) -> Vec<Vec<u8>> {
        (0..self.wires.len()).flat_map(|worker| self.take_from(worker, side)).collect()
    }

    /// Takes what left on a side of one worker.
    pub(crate) fn take_from(&self, worker: usize, side: Side) -> impl Iterator<Item = Vec<u8>> {
        self.wires[worker][side.index()].iter().flat_map(|wire| std::iter::from_fn(|| wire.take()))
    }

    /// Puts a snapshot before all workers, which adopt it with their next turns; returns it.
    pub(crate) fn offer(&mut self, spec: SnapshotSpec) -> Arc<Snapshot> {
        let applied = self.workers.iter().map(|worker| worker.counters().epoch.get()).min().unwrap();
        let applied = Epoch(u32::try_from(applied).unwrap());
        let snapshot = Arc::new(Snapshot::compile(spec).with_shared(&mut self.book, applied));
        for mailbox in &self.mailboxes {
            mailbox.put_snapshot(Arc::clone(&snapshot));
        }
        snapshot
    }

    /// Publishes a snapshot and waits until all workers use it.
    pub(crate) fn publish(&mut self, spec: SnapshotSpec) {
        self.offer(spec);
        self.run();
        assert_eq!(self.retired.try_iter().count(), self.workers.len(), "every worker acknowledges");
    }

    /// Takes the rig apart, and returns its frames from all the places where they lie while nothing waits.
    pub(crate) fn dismantle(mut self) -> Vec<Frame> {
        let mut frames: Vec<_> = std::iter::from_fn(|| self.commons.pop()).collect();
        for worker in std::mem::take(&mut self.workers) {
            let mut parts = worker.into_parts();
            frames.extend(std::iter::from_fn(|| parts.pool.take()));
            frames.extend(parts.ports.into_iter().flat_map(|port| port.io.into_frames()));
        }
        let mut places: Vec<_> = frames.iter().map(|frame| frame.bytes().as_ptr()).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!((frames.len(), places.len()), (self.frames, self.frames), "every frame is there, once");
        self.frames = 0;
        frames
    }

    pub(crate) fn drops(&self, reason: DropReason) -> u64 {
        self.workers.iter().map(|worker| worker.counters().drops(reason)).sum()
    }

    pub(crate) fn all_drops(&self) -> u64 {
        DropReason::ALL.iter().map(|reason| self.drops(*reason)).sum()
    }

    /// Returns how many packets came back in because they went to an egress address.
    pub(crate) fn hairpinned(&self) -> u64 {
        self.workers.iter().map(|worker| worker.counters().hairpinned.get()).sum()
    }

    /// Returns how many fragments were made of packets that were too large for their link.
    pub(crate) fn fragments_made(&self) -> u64 {
        self.workers.iter().map(|worker| worker.counters().fragments_made.get()).sum()
    }

    pub(crate) fn sessions(&self) -> u32 {
        self.workers.iter().map(|worker| worker.conntrack().len()).sum()
    }

    /// Returns the number of free entries in all tables.
    pub(crate) fn room(&self) -> u32 {
        self.workers.iter().map(|worker| worker.conntrack().room()).sum()
    }

    pub(crate) fn requests(&self) -> Vec<NeighbourRequest> {
        self.requests.drain()
    }

    /// Returns blue's counts at the first worker.
    pub(crate) fn blue(&self) -> TenantReport {
        let mut report = TenantReport::default();
        self.workers[0].counters().tenant(BLUE).add_to(&mut report);
        report
    }

    /// Returns how many packets of a tenant were dropped for a reason, at any worker.
    pub(crate) fn drops_of(&self, tenant: TenantId, reason: DropReason) -> u64 {
        let mut report = TenantReport::default();
        self.workers.iter().for_each(|worker| worker.counters().tenant(tenant).add_to(&mut report));
        report.drops.iter().filter(|(other, _)| *other == reason).map(|(_, count)| count).sum()
    }

    /// Returns the counts of all tenants at all workers, added up.
    pub(crate) fn all_tenants(&self) -> TenantReport {
        let mut report = TenantReport::default();
        let tenants = self.workers.iter().flat_map(|worker| worker.counters().tenants());
        tenants.for_each(|(_, counters)| counters.add_to(&mut report));
        report
    }

    /// Returns the sessions of all workers.
    pub(crate) fn all_sessions(&self) -> Vec<SeenSession> {
        let tables = self.workers.iter().map(Worker::conntrack);
        let see = |table: &Conntrack, session: &Session| SeenSession {
            worker: table.slot().worker,
            port_owner: table.owner_of_outside(&session.outside_tuple()),
            inside: session.inside_tuple(),
            outside: session.outside_tuple(),
            tcp: session.tcp_state(),
        };
        tables.flat_map(|table| table.scan(0, table.capacity()).map(move |it| see(table, it))).collect()
    }

    /// Tells whether nobody uses a port of an egress address.
    pub(crate) fn are_ports_free(&self, egress: Ipv4Addr) -> bool {
        self.shared.ports(egress).unwrap().is_free()
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.wires.iter().flatten().flatten().map(Wire::frames_accepted).sum()
    }
}

fn ports_on(side: Side, wires: &[Wire], size: Size) -> impl Iterator<Item = Port<SimPort>> {
    wires.iter().map(move |wire| Port::new(side, SimPort::new(wire, size.ring)))
}

fn sender_on(side: Side, worker: u16, queues: &[[usize; 2]]) -> Option<u16> {
    let counts: Vec<_> = queues.iter().map(|queues| queues[side.index()]).collect();
    sender_for(worker.into(), &counts)
}

impl Drop for Rig {
    /// No frame is lost, whatever happened.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let owned: usize = self.workers.iter().map(Worker::frames_owned).sum();
        let handed: usize = self.mailboxes.iter().map(|mailbox| mailbox.frames_waiting()).sum();
        assert_eq!(
            owned + handed + self.commons.len(),
            self.frames,
            "every frame is owned in exactly one place"
        );
        let counted = self.all_tenants().sessions;
        assert_eq!(counted, u64::from(self.sessions()), "tenants' sessions add up");
        let tenants: HashSet<_> =
            self.workers.iter().flat_map(|worker| worker.counters().tenants()).map(|(id, _)| id).collect();
        let in_use: u32 = tenants.iter().map(|tenant| self.shared.tenant(*tenant).sessions()).sum();
        assert_eq!(in_use, self.sessions(), "what quotas count adds up");
    }
}

/// Asserts both that a sent frame may leave by `side` and that its checksums are right.
pub(crate) fn check_sent(side: Side, frame: &[u8], egress_addresses: &[Ipv4Addr]) {
    check_source(side, frame, egress_addresses);
    check_checksums(frame);
}

/// Asserts that a frame that leaves outside has an egress address for source.
pub(crate) fn check_source(side: Side, frame: &[u8], egress_addresses: &[Ipv4Addr]) {
    let source = match frame[12..14] {
        [8, 0] => &frame[26..30],
        [8, 6] => &frame[28..32],
        _ => panic!("only IPv4 and ARP are sent"),
    };
    let source = Ipv4Addr::new(source[0], source[1], source[2], source[3]);
    assert!(
        side == Side::Inside || egress_addresses.contains(&source),
        "{source} left by the outside: {frame:02x?}"
    );
}

/// Asserts that every checksum of an IPv4 frame is what a computation from scratch gives.
pub(crate) fn check_checksums(frame: &[u8]) {
    if frame[12..14] != [8, 0] {
        return;
    }
    let transport_at = payload_at(frame);
    assert_eq!(checksum(0, &frame[14..transport_at]), 0, "IPv4 header checksum");
    if place(frame) != (0, false) {
        return; // The transport checksum is that of the whole datagram.
    }
    let transport = &frame[transport_at..];
    let [high, low] = u16::try_from(transport.len()).unwrap().to_be_bytes();
    let pseudo_header = sum(sum(0, &frame[26..34]), &[0, frame[23], high, low]);
    match frame[23] {
        1 => assert_eq!(checksum(0, transport), 0, "ICMP checksum"),
        6 => assert_eq!(checksum(pseudo_header, transport), 0, "TCP checksum"),
        17 if transport[6..8] != [0, 0] => assert_eq!(checksum(pseudo_header, transport), 0, "UDP checksum"),
        17 => {}
        136 => {
            assert_ne!(transport[6..8], [0, 0], "UDP-Lite always has a checksum");
            let covered = match read_u16(transport, 4) {
                0 => transport.len(),
                covered => covered.into(),
            };
            assert_eq!(checksum(pseudo_header, &transport[..covered]), 0, "UDP-Lite checksum");
        }
        // Nothing in these depends on addresses.
        4 | 47 | 50 | 132 => {}
        other => panic!("protocol {other} was sent"),
    }
}

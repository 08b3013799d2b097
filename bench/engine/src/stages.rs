//! The parts of a hit, each timed on its own over whole batches.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use conntrack::{Conntrack, Direction, Epoch, SharedBook, Tick, WorkerSlot};
use fastpath::counters::WorkerCounters;
use fastpath::express::{LANES, Lanes, glance};
use fastpath::fragments::Limits;
use fastpath::io::{Frame, FrameArea};
use fastpath::pipeline::Engine;
use fastpath::snapshot::{Side, Snapshot};
use fastpath::track::populate;
use fastpath::verdict::{Errand, Verdict};

use crate::rig::facts;
use crate::traffic::{Flows, Frames, Order, Sizes};

/// What the parts of a hit take, in nanoseconds a packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct StageTimes {
    /// Parse: every length, the header's checksum, the five-tuple.
    pub parse: f64,
    /// Classify and look up: parse again, tenant, key, hash, index, entry.
    pub look_ahead: f64,
    /// Track and rewrite: the session is the right one and valid, its time, addresses, ports, checksums, MACs.
    pub pass: f64,
}

/// A pipeline without a worker around it.
#[derive(Debug)]
pub struct Stages {
    engine: Engine,
    lanes: Lanes,
    batch: Vec<Frame>,
    flows: Flows,
    frames: Frames,
}

impl Stages {
    /// Makes a pipeline whose table holds all flows.
    ///
    /// # Errors
    /// When memory is short, or a flow gets no session.
    pub fn new(flows: Flows, entries: u32, order: &mut Order) -> Result<Self> {
        let mut book = SharedBook::default();
        let snapshot = Arc::new(Snapshot::compile(facts(Epoch(1))).with_shared(&mut book, Epoch(0)));
        let shared = Arc::clone(snapshot.shared().expect("it was given"));
        let conntrack = Conntrack::new(entries, WorkerSlot { worker: 0, workers: 1 }, shared, [7; 32]);
        populate(&conntrack);
        let counters = Arc::new(WorkerCounters::default());
        counters.adopt(&snapshot);
        let mut engine = Engine::new(snapshot, conntrack, Limits::WORKER, counters);
        let (_area, mut pool) = FrameArea::allocate(LANES)?;
        let mut batch: Vec<Frame> = std::iter::from_fn(|| pool.take()).collect();
        let frames = Frames::default();
        for flow in order.once(0, flows.count()) {
            let frame = &mut batch[0];
            frames.write_outbound(&flows.tuple(flow), Sizes::Small, 0, frame);
            let outcome = engine.process(frame, Side::Inside, Errand::NEW, Tick::default());
            ensure!(outcome.verdict == Verdict::Forward(Side::Outside), "flow {flow} has no session");
        }
        Ok(Self { engine, lanes: Lanes::default(), batch, flows, frames })
    }

    /// Times the stages over packets of these flows.
    ///
    /// # Errors
    /// When one has no session.
    pub fn measure(&mut self, flows: &[u32]) -> Result<StageTimes> {
        let mut times = [Duration::ZERO; 3];
        let mut packets = 0;
        for flows in flows.chunks_exact(LANES) {
            for (flow, frame) in flows.iter().zip(&mut self.batch) {
                self.frames.write_outbound(&self.flows.tuple(*flow), Sizes::Small, 0, frame);
            }
            let mtu = self.engine.snapshot.least_mtu();
            let start = Instant::now();
            for frame in &self.batch {
                black_box(glance(black_box(frame.bytes()), mtu));
            }
            let parsed = Instant::now();
            let Engine { snapshot, conntrack, .. } = &self.engine;
            self.lanes.look_ahead(snapshot, conntrack, Side::Inside, &self.batch);
            let looked_up = Instant::now();
            self.pass()?;
            let end = Instant::now();
            let spans = [parsed - start, looked_up - parsed, end - looked_up];
            times.iter_mut().zip(spans).for_each(|(time, span)| *time += span);
            packets += LANES as u64;
        }
        let each = times.map(|time| crate::rig::Sample { time, count: packets }.nanoseconds());
        Ok(StageTimes { parse: each[0], look_ahead: each[1], pass: each[2] })
    }

    /// Lets the batch pass; a packet whose key shares its hash with another's goes the whole way.
    fn pass(&mut self) -> Result<()> {
        let Self { engine, lanes, batch, .. } = self;
        let now = Tick::default();
        let mut lane = lanes.pass(0, Direction::Outbound, batch, engine, now);
        while lane < LANES {
            let outcome = engine.process(&mut batch[lane], Side::Inside, Errand::NEW, now);
            ensure!(outcome.verdict == Verdict::Forward(Side::Outside), "a packet has no session");
            lane += 1;
            lane += lanes.pass(lane, Direction::Outbound, &mut batch[lane..], engine, now);
        }
        Ok(())
    }
}

//! The least that a translator does: the same loop, with a session that is known by its position.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use conntrack::{ChecksumDelta, Direction, Rewrite};
use fastpath::express::{Glance, glance, write, write_macs};
use fastpath::io::{Frame, FrameArea, FrameIo, FramePool};

use crate::BATCH_FRAMES;
use crate::line::{Line, LinePort};
use crate::rig::Sample;
use crate::traffic::{EGRESS, Flows, Frames, Sizes};

const POOL_FRAMES: usize = 1024;
const MTU: u16 = 1500;
/// Of the router and of the gateway's outside interface.
const MACS: [u8; 12] = [2, 0, 0, 0, 0, 0x01, 2, 0, 0, 0, 2, 0x12];

/// Finds out what is written into a frame.
pub trait Translator {
    /// Returns the rewrite of a packet of the flow with this number, which only the floor may look at.
    fn translate(&mut self, glance: &Glance, frame: &[u8], flow: u32) -> Option<Rewrite>;
}

/// A forwarder that receives, parses, asks its translator, rewrites and sends.
#[derive(Debug)]
pub struct Forwarder<T> {
    /// What translates.
    pub translator: T,
    ports: [LinePort; 2],
    lines: [Line; 2],
    pool: FramePool,
    batch: VecDeque<Frame>,
    frames: Frames,
    packets: u64,
    bytes: u64,
}

impl<T: Translator> Forwarder<T> {
    /// Makes one on lines of its own.
    ///
    /// # Errors
    /// When there is no memory for frames.
    pub fn new(translator: T) -> Result<Self> {
        let (_area, mut frames) = FrameArea::allocate(POOL_FRAMES)?;
        let mut pool = FramePool::with_capacity(POOL_FRAMES);
        while let Some(frame) = frames.take() {
            pool.put(frame);
        }
        let lines = [Line::default(), Line::default()];
        let mut ports = [lines[0].port(), lines[1].port()];
        for port in &mut ports {
            port.refill(&mut pool);
        }
        let batch = VecDeque::with_capacity(BATCH_FRAMES);
        Ok(Self { translator, ports, lines, pool, batch, frames: Frames::default(), packets: 0, bytes: 0 })
    }

    /// Lets packets of pods come in, a batch after the other.
    ///
    /// # Errors
    /// When one was not forwarded.
    pub fn send_outbound(&mut self, flows: Flows, order: &[u32], sizes: Sizes) -> Result<Sample> {
        let before = self.lines[1].transmitted();
        let mut time = Duration::ZERO;
        for flows_of_batch in order.chunks(BATCH_FRAMES) {
            let frames = &self.frames;
            let armed = self.lines[0].arm(flows_of_batch.len(), |number, frame| {
                frames.write_outbound(&flows.tuple(flows_of_batch[number]), sizes, number, frame);
            });
            ensure!(armed == flows_of_batch.len(), "only {armed} frames could arrive");
            let start = Instant::now();
            self.turn(flows_of_batch);
            time += start.elapsed();
        }
        let count = self.lines[1].transmitted() - before;
        ensure!(count == order.len() as u64, "{count} of {} frames were forwarded", order.len());
        Ok(Sample { time, count })
    }

    fn turn(&mut self, flows: &[u32]) {
        let received = self.ports[0].receive(&mut self.batch, BATCH_FRAMES);
        for flow in &flows[..received] {
            let mut frame = self.batch.pop_front().expect("it was received");
            if forward(&mut self.translator, &mut frame, *flow) {
                self.packets += 1;
                self.bytes += frame.bytes().len() as u64;
                // A line takes every frame.
                let _ = self.ports[1].send(frame);
            } else {
                self.pool.put(frame);
            }
        }
        for port in &mut self.ports {
            port.flush();
            port.complete(&mut self.pool);
            port.refill(&mut self.pool);
        }
    }
}

fn forward<T: Translator>(translator: &mut T, frame: &mut Frame, flow: u32) -> bool {
    let Some(glance) = glance(frame.bytes(), MTU) else { return false };
    let Some(rewrite) = translator.translate(&glance, frame.bytes(), flow) else { return false };
    let bytes = frame.shorten(usize::from(glance.frame_bytes));
    write(bytes, false, &rewrite);
    write_macs(bytes, MACS);
    true
}

/// Sessions in the order of the flows.
#[derive(Debug)]
pub struct Floor(Vec<Rewrite>);

impl Floor {
    /// Makes the sessions of all flows.
    pub fn new(flows: Flows) -> Self {
        Self((0..flows.count()).map(|flow| rewrite_of(flows, flow)).collect())
    }
}

impl Translator for Floor {
    fn translate(&mut self, _: &Glance, _: &[u8], flow: u32) -> Option<Rewrite> {
        self.0.get(flow as usize).copied()
    }
}

/// Returns a rewrite as a session of the flow has it; the port is as good as any other.
pub(crate) fn rewrite_of(flows: Flows, flow: u32) -> Rewrite {
    let tuple = flows.tuple(flow);
    let port = tuple.source_port ^ 1;
    let header_delta = ChecksumDelta::default().replace_address(tuple.source, EGRESS);
    Rewrite {
        direction: Direction::Outbound,
        address: EGRESS,
        port,
        header_delta,
        transport_delta: header_delta.replace(tuple.source_port, port),
        next_hop: 0,
    }
}

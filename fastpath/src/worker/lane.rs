//! Lets a batch through the express lane.

use std::ops::Range;

use conntrack::{TenantId, Tick};

use super::ports::Unsent;
use super::{Arrival, Worker};
use crate::counters::{QueueCounters, WorkerCounters};
use crate::express::{Continuation, LANES, Passed};
use crate::io::FrameIo;
use crate::pipeline::{Engine, Outcome};
use crate::snapshot::Side;
use crate::verdict::{DropReason, Errand, Verdict};

/// Frames of one tenant that were sent one after the other.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    tenant: TenantId,
    frames: u64,
    bytes: u64,
}

impl Tally {
    fn count(self, counters: &WorkerCounters, side: Side, queue: &QueueCounters) {
        if self.frames > 0 {
            queue.transmitted.add(self.frames);
            counters.tenant(self.tenant).forwarded_many(side, self.frames, self.bytes);
        }
    }
}

impl<I: FrameIo> Worker<I> {
    /// Passes the frames of the batch that may take the express lane; all others, in their turn, go the whole way.
    pub(super) fn pass_batch(&mut self, arrival: Arrival, errand: Errand, now: Tick) {
        #[cfg(test)]
        if self.goes_whole_way {
            return self.process_batch(arrival, errand, now);
        }
        let direction = arrival.side.direction();
        while !self.batch.is_empty() {
            #[cfg(test)]
            assert!(!std::mem::take(&mut self.fails_at_next_frame), "asked to fail");
            let frames = self.batch.make_contiguous();
            let mut lanes = frames.len().min(LANES);
            let Engine { snapshot, conntrack, .. } = &self.parts.engine;
            if self.taps.looks_ahead() {
                lanes = self.taps.unwanted(&frames[..lanes], arrival.side, snapshot);
                if lanes == 0 {
                    self.process_first(arrival, errand, now);
                    continue;
                }
            }
            self.lanes.look_ahead(snapshot, conntrack, arrival.side, &frames[..lanes]);
            let (mut sent, mut lane, mut tries_again) = (0, 0, false);
            loop {
                let frames = &mut self.batch.make_contiguous()[lane - sent..lanes - sent];
                let passed = self.lanes.pass(lane, direction, frames, &mut self.parts.engine, now);
                #[cfg(test)]
                {
                    self.passed_by_lane += passed;
                }
                lane += passed;
                if lane == lanes {
                    self.send_passed(sent..lane, arrival);
                    break;
                }
                let continuation = if tries_again && passed == 0 {
                    Continuation::WholeWay
                } else {
                    let frames = &self.batch.make_contiguous()[lane - sent..lanes - sent];
                    self.lanes.go_on(lane, arrival.side, frames, &mut self.parts.engine, errand, now)
                };
                tries_again = continuation == Continuation::Pass;
                if tries_again {
                    continue;
                }
                self.send_passed(sent..lane, arrival);
                match continuation {
                    Continuation::HandOver { owner, tenant } => {
                        self.hand_over_first(lane, (owner, tenant), arrival, errand, now);
                    }
                    Continuation::Pass | Continuation::WholeWay => self.process_first(arrival, errand, now),
                }
                lane += 1;
                sent = lane;
            }
        }
    }

    /// Hands the first frame of the batch, which was seen in `lane`, over to the worker that owns its session.
    fn hand_over_first(
        &mut self,
        lane: usize,
        (owner, tenant): (u16, TenantId),
        arrival: Arrival,
        errand: Errand,
        now: Tick,
    ) {
        let mut frame = self.batch.pop_front().expect("it was seen");
        frame.shorten(self.lanes.frame_bytes(lane));
        let verdict = Verdict::HandOver(owner, errand.for_owner());
        let outcome = Outcome { verdict, tenant: Some(tenant), side: arrival.side, errand };
        self.settle(frame, outcome, arrival, now);
    }

    /// Sends the frames of some lanes, which are the first of the batch.
    fn send_passed(&mut self, lanes: Range<usize>, arrival: Arrival) {
        let side = arrival.side.other();
        let Some(port) = self.tx_port(side, arrival.port) else { return self.let_send_passed(lanes, side) };
        let engine = &self.parts.engine;
        let counters = &engine.counters;
        let port = &mut self.parts.ports[port];
        let mut sent = Tally::default();
        for Passed { tenant, frame_bytes } in self.lanes.passed(lanes) {
            let frame = self.batch.pop_front().expect("it has passed");
            if tenant != sent.tenant {
                sent.count(counters, side, &port.counters);
                sent = Tally { tenant, ..Tally::default() };
            }
            match port.io.send(frame) {
                Ok(()) => {
                    sent.frames += 1;
                    sent.bytes += u64::from(frame_bytes);
                }
                Err(frame) => {
                    let reason = DropReason::TxRingFull;
                    counters.dropped(arrival.side, reason, Some(tenant));
                    if !self.taps.is_empty() {
                        let verdict = Verdict::Drop(reason);
                        let outcome = Outcome {
                            verdict,
                            tenant: Some(tenant),
                            side: arrival.side,
                            errand: Errand::NEW,
                        };
                        self.taps.show_lost(engine, &frame, outcome, reason);
                    }
                    self.parts.pool.put(frame);
                }
            }
        }
        sent.count(counters, side, &port.counters);
    }

    /// Lets another worker send the frames of some lanes, because this one has no port on their side.
    #[cold]
    fn let_send_passed(&mut self, lanes: Range<usize>, side: Side) {
        for lane in lanes {
            let frame = self.batch.pop_front().expect("it has passed");
            let Passed { tenant, .. } = self.lanes.passed_in(lane);
            if let Err(Unsent { frame, reason }) = self.transmit(frame, side, 0, Some(tenant)) {
                self.parts.engine.counters.dropped(side.other(), reason, Some(tenant));
                self.parts.pool.put(frame);
            }
        }
    }
}

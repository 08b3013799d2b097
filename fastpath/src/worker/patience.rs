//! Frames that wait at a worker: for their next hop, or because a pod may still open a connection itself.

use conntrack::Tick;

use super::{Arrival, BATCH_FRAMES, Worker};
use crate::io::{Frame, FrameIo};
use crate::pipeline::{Engine, Outcome};
use crate::snapshot::Side;
use crate::stray::release_syn;
use crate::tap::Occasion;
use crate::verdict::Verdict;
use crate::waiting::WaitingFrame;

/// Waiting frames given up in one turn.
const GIVEN_UP_PER_TURN: usize = 16;

impl<I: FrameIo> Worker<I> {
    /// Tries some waiting frames under a new snapshot; those that still wait keep their deadline.
    pub(super) fn retry_waiting(&mut self, now: Tick) {
        for _ in 0..self.untried.min(BATCH_FRAMES) {
            self.untried -= 1;
            let Some(waiting) = self.waiting.take_oldest() else { break };
            let errand = waiting.errand;
            let (outcome, waiting) =
                self.in_hand(waiting, now, |engine, frame, side| engine.process(frame, side, errand, now));
            if let Verdict::Wait(next_hop) = outcome.verdict {
                let has_asked = waiting.has_asked && self.parts.requests.ask(next_hop);
                let (arrival, errand) = (outcome.side, outcome.errand.again());
                self.waiting.put_back(WaitingFrame {
                    arrival,
                    errand,
                    awaited: next_hop,
                    has_asked,
                    ..waiting
                });
            } else {
                self.settle(waiting.frame, outcome, Arrival { side: waiting.arrival, port: 0 }, now);
            }
        }
        self.has_more |= self.untried > 0;
    }

    pub(super) fn give_up_waiting(&mut self, now: Tick) {
        for _ in 0..GIVEN_UP_PER_TURN {
            let Some(waiting) = self.waiting.take_overdue(now) else { return };
            let (outcome, waiting) =
                self.in_hand(waiting, now, |engine, frame, side| engine.give_up(frame, side, now));
            self.settle(waiting.frame, outcome, Arrival { side: waiting.arrival, port: 0 }, now);
        }
        self.has_more = true;
    }

    /// Decides about some SYNs that were held long enough.
    pub(super) fn release_syns(&mut self, now: Tick) {
        for _ in 0..GIVEN_UP_PER_TURN {
            let Some(held) = self.held_syns.take_overdue(now) else { return };
            let (key, tenant) = (held.awaited, held.tenant);
            let (outcome, held) =
                self.in_hand(held, now, |engine, frame, _| release_syn(engine, frame, &key, tenant, now));
            self.settle(held.frame, outcome, Arrival { side: held.arrival, port: 0 }, now);
        }
        self.has_more = true;
    }

    /// Works on a frame that waited while it is in the batch, where [`Worker::recover`] finds it.
    fn in_hand<T>(
        &mut self,
        waiting: WaitingFrame<T>,
        now: Tick,
        work: impl FnOnce(&mut Engine, &mut Frame, Side) -> Outcome,
    ) -> (Outcome, WaitingFrame<T>) {
        let WaitingFrame { frame, arrival, .. } = waiting;
        self.batch.push_back(frame);
        let frame = self.batch.back_mut().expect("it was put there");
        let occasion = Occasion { side: arrival, is_first: false, is_counted: false, now };
        let outcome = self
            .taps
            .watch(&mut self.parts.engine, frame, occasion, |engine, frame| work(engine, frame, arrival));
        let frame = self.batch.pop_back().expect("it was put there");
        (outcome, WaitingFrame { frame, ..waiting })
    }
}

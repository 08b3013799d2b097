//! What a worker does after a panic, so that the next turn finds everything in order.

use std::sync::Arc;

use super::Worker;
use crate::io::FrameIo;
use crate::verdict::{Errand, Lending};

impl<I: FrameIo> Worker<I> {
    /// Makes the worker usable after a panic in a turn: the batch that it had in hand is dropped, and sessions
    /// are forgotten only if the panic came in the middle of changing them.
    pub fn recover(&mut self) {
        let counters = Arc::clone(&self.parts.engine.counters);
        counters.panics.add(1);
        while let Some(frame) = self.batch.pop_front() {
            counters.lost();
            self.parts.pool.put(frame);
        }
        self.forget_fragments();
        if self.parts.engine.conntrack.is_torn() {
            self.forget_sessions();
        }
        if let Some(Errand { lending: Lending::Lent(loan), .. }) = self.errand.take() {
            self.parts.engine.conntrack.settle_loan(&loan);
        }
        self.parts.engine.answers.fill();
        self.surveys.forget();
    }
}

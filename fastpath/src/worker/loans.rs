//! What a worker has to do with the others about ports that they lend to each other.

use conntrack::Tick;

use super::{BATCH_FRAMES, Worker};
use crate::io::FrameIo;
use crate::mailbox::RETURNS;
use crate::pipeline::Engine;

impl<I: FrameIo> Worker<I> {
    /// Takes back ports that were lent.
    pub(super) fn take_back_ports(&mut self, now: Tick) {
        self.learn_of_forgetful(now);
        self.has_more |= self.take_returns(BATCH_FRAMES) == BATCH_FRAMES;
    }

    /// Gives back ports that were borrowed.
    pub(super) fn give_back_ports(&mut self) {
        let engine = &mut self.parts.engine;
        while let Some(returned) = engine.conntrack.next_return() {
            if let Err(returned) = self.parts.mailboxes[usize::from(returned.lender)].give_back(returned) {
                engine.conntrack.put_back(returned);
                self.has_more = true;
                break;
            }
        }
    }

    /// Takes back at most `bound` ports that were lent; returns how many.
    fn take_returns(&mut self, bound: usize) -> usize {
        let mut taken = 0;
        while taken < bound
            && let Some(returned) = self.mailbox().take_return()
        {
            self.parts.engine.conntrack.take_back(&returned);
            taken += 1;
        }
        taken
    }

    /// Forgets what workers that lost their sessions had to do with this one.
    pub(super) fn learn_of_forgetful(&mut self, now: Tick) {
        while let Some(worker) = self.mailbox().take_forgetful() {
            // What it gave back before counts, and what it will give back is not yet lent.
            self.take_returns(RETURNS);
            let Engine { conntrack, counters, .. } = &mut self.parts.engine;
            conntrack.forget_worker(worker, now, |tenant| counters.tenant(tenant).session_ended());
        }
    }

    /// Forgets all sessions, and tells the other workers.
    pub(crate) fn forget_sessions(&mut self) {
        self.parts.engine.conntrack.forget_all();
        self.parts.engine.counters.sessions_lost();
        self.mailbox().discard_returns();
        let number = self.number();
        for (_, other) in (0..).zip(&self.parts.mailboxes).filter(|(other, _)| *other != number) {
            other.note_forgetful(number);
        }
    }
}

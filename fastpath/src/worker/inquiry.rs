//! What a worker does for those who want to know: surveys and taps.

use conntrack::Tick;

use super::Worker;
use crate::io::FrameIo;
use crate::pipeline::Engine;
use crate::survey::Ground;

impl<I: FrameIo> Worker<I> {
    /// Looks at the next piece of what is asked.
    pub(super) fn answer_questions(&mut self, now: Tick) {
        if !self.surveys.is_empty() || self.mailbox().has_question() {
            self.go_on_with_surveys(now);
        }
    }

    #[cold]
    fn go_on_with_surveys(&mut self, now: Tick) {
        let mailbox = &self.parts.mailboxes[usize::from(self.number())];
        self.surveys.begin(|| mailbox.take_question());
        let Engine { conntrack, counters, snapshot, .. } = &mut self.parts.engine;
        let timeouts = &snapshot.spec().timeouts;
        self.surveys.go_on(&mut Ground { conntrack, counters, timeouts, now });
    }

    /// Tells whether somebody waits for an answer that takes more turns.
    pub fn is_asked(&self) -> bool {
        !self.surveys.is_empty()
    }

    /// Shows frames to whom the control side says, from now on.
    pub(super) fn adopt_taps(&mut self, now: Tick) {
        self.taps.adopt(&self.parts.mailboxes[usize::from(self.number())]);
        self.taps.turn(now);
    }
}

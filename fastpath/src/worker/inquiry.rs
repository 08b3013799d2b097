//! What a worker does for those who want to know: surveys and taps.

use conntrack::Tick;

use super::Worker;
use crate::io::FrameIo;
use crate::pipeline::Engine;
use crate::survey::{Ground, Survey};

impl<I: FrameIo> Worker<I> {
    /// Looks at the next piece of what is asked.
    pub(super) fn answer_question(&mut self, now: Tick) {
        if self.survey.is_none() {
            self.survey = self.mailbox().take_question().map(Survey::new);
        }
        if let Some(survey) = self.survey.take() {
            let Engine { conntrack, counters, snapshot, .. } = &mut self.parts.engine;
            let (timeouts, is_busy) = (&snapshot.spec().timeouts, self.was_busy);
            self.survey = survey.go_on(&mut Ground { conntrack, counters, timeouts, now, is_busy });
            self.has_more |= self.survey.is_some();
        }
        if let Some(page) = self.port_page.take().or_else(|| self.mailbox().take_port_page()) {
            self.port_page = page.go_on(&self.parts.engine.conntrack);
            self.has_more |= self.port_page.is_some();
        }
    }

    /// Shows frames to whom the control side says, from now on.
    pub(super) fn adopt_taps(&mut self, now: Tick) {
        self.taps.adopt(&self.parts.mailboxes[usize::from(self.number())]);
        self.taps.turn(now);
    }
}

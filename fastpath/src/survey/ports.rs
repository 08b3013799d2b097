//! Finds the outside ports that are taken, for whoever counts them.

use std::thread;
use std::time::{Duration, Instant};

use conntrack::{Conntrack, PortUse};

use super::{Act, Answer, Cursor, SPAN, SessionFilter, SurveyError, Surveyor};
use crate::dataplane::ANSWER_WITHIN;

/// Ports on one page.
const PAGE: usize = 4096;

/// Pause before a worker is asked again that others ask too.
const PAUSE: Duration = Duration::from_millis(1);

/// Lists the ports that the next entries have taken; returns where it goes on.
pub(super) fn list(uses: &mut Vec<PortUse>, seen: &mut u32, from: u32, conntrack: &Conntrack) -> u32 {
    *seen += conntrack.survey_ports(from, SPAN, uses);
    // Entries are used from the first on: behind the last one in use there is nothing to see.
    if *seen < conntrack.used() { from.saturating_add(SPAN) } else { conntrack.capacity() }
}

/// Tells whether the ports of a turn have room: each entry has one at most.
pub(super) fn has_room(uses: &Vec<PortUse>) -> bool {
    uses.capacity() - uses.len() >= SPAN as usize
}

impl Surveyor {
    /// Shows each outside port that is taken to `count`, as far as it stays while this goes on.
    ///
    /// # Errors
    /// When a worker does not answer; `count` has seen the ports of those before it then.
    pub fn count_ports(&self, count: impl FnMut(&PortUse)) -> Result<(), SurveyError> {
        self.count_ports_by(PAGE, count)
    }

    /// The same, with pages for so many ports.
    pub(crate) fn count_ports_by(
        &self,
        page: usize,
        mut count: impl FnMut(&PortUse),
    ) -> Result<(), SurveyError> {
        let (mut met, mut cursor) = (0, Some(Cursor::default()));
        while let Some(from) = cursor {
            let answer = self.ask_for_ports(from, page, met)?;
            if let Act::Ports { uses, seen } = answer.act {
                uses.iter().for_each(&mut count);
                met = answer.next.map_or(0, |_| seen);
            }
            cursor = self.after(from, answer.next);
        }
        Ok(())
    }

    /// Asks for one page, and waits for its turn where many others ask: nobody is there who could ask again.
    fn ask_for_ports(&self, from: Cursor, page: usize, seen: u32) -> Result<Answer, SurveyError> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            let act = Act::Ports { uses: Vec::with_capacity(page.max(SPAN as usize)), seen };
            match self.ask(&SessionFilter::default(), from, act) {
                Err(SurveyError::Busy(_)) if Instant::now() < deadline => thread::sleep(PAUSE),
                answered => return answered,
            }
        }
    }
}

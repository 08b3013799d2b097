//! Keeps the fast path attached to the two interfaces, which may go away, come back, or change their queues.

use std::time::{Duration, Instant};

use fastpath::dataplane::{DataPlaneError, SideState};
use fastpath::snapshot::Side;
use tokio::task::block_in_place;
use tracing::{info, warn};

use super::gateway::Gateway;
use crate::sysctl;

/// What became of one interface.
#[derive(Clone, Debug, Default)]
pub(super) struct Attachment {
    away: Option<Away>,
    reattachments: u64,
}

/// Since when an interface is not usable, and why.
#[derive(Clone, Debug)]
struct Away {
    since: Instant,
    reason: String,
}

impl Attachment {
    /// Returns how long the interface has not been usable.
    pub(super) fn away_for(&self) -> Option<Duration> {
        self.away.as_ref().map(|away| away.since.elapsed())
    }

    /// Returns why it is not usable.
    pub(super) fn trouble(&self) -> Option<String> {
        self.away.as_ref().map(|away| away.reason.clone())
    }

    /// Returns how often its sockets were opened anew.
    pub(super) fn reattachments(&self) -> u64 {
        self.reattachments
    }

    /// Notes whether the interface is usable; returns how long it was away if it is back.
    fn note(&mut self, trouble: Option<String>) -> Option<Duration> {
        match (trouble, &mut self.away) {
            (None, away) => away.take().map(|away| away.since.elapsed()),
            (Some(reason), Some(away)) => {
                away.reason = reason;
                None
            }
            (Some(reason), away @ None) => {
                *away = Some(Away { since: Instant::now(), reason });
                None
            }
        }
    }
}

impl Gateway {
    /// Tells whether the fast path has to be attached anew to an interface, or given up there.
    pub fn has_stray_side(&self) -> bool {
        Side::BOTH.into_iter().any(|side| {
            let is_known_to_be_away = self.attachments[side.index()].away.is_some();
            match block_in_place(|| self.data_plane.inspect(side)) {
                SideState::Serving => false,
                SideState::Away => !is_known_to_be_away,
                SideState::Replaced | SideState::Requeued { .. } => true,
            }
        })
    }

    /// Attaches the fast path to interfaces that were replaced, and gives it up on those that went; tells which sides
    /// are usable now and were not before.
    pub(super) fn attend_interfaces(&mut self) -> Vec<Side> {
        Side::BOTH.into_iter().filter(|side| self.attend(*side)).collect()
    }

    fn attend(&mut self, side: Side) -> bool {
        let name = self.constants.interfaces.name(side).to_owned();
        let attached = block_in_place(|| self.attach(side, &name));
        let is_new = matches!(attached, Ok(true));
        let trouble = match attached {
            Err(error) => Some(format!("{:#}", anyhow::Error::from(error))),
            Ok(_) => self.trouble_with(side),
        };
        let known = self.attachments[side.index()].trouble();
        let (was_away, is_usable, side_name) = (known.is_some(), trouble.is_none(), side.name());
        if let Some(trouble) = &trouble
            && known.as_ref() != Some(trouble)
        {
            warn!(
                interface = name,
                "the {side_name} interface is away, its traffic is dropped until it is back: {trouble}"
            );
        }
        if let Some(away) = self.attachments[side.index()].note(trouble) {
            info!(interface = name, "the {side_name} interface is back after {:.1} s", away.as_secs_f64());
        }
        is_usable && (was_away || is_new)
    }

    /// Returns why an interface that the sockets fit is not usable.
    fn trouble_with(&self, side: Side) -> Option<String> {
        match self.facts.port(&self.constants.interfaces, side) {
            Ok((link, _)) if link.carrier => None,
            Ok((link, _)) => {
                let (side, name) = (side.name(), &link.name);
                Some(format!("{side}.interface: {name:?} has no carrier; look at its cable"))
            }
            Err(error) => Some(error.to_string()),
        }
    }

    /// Brings the sockets to what the interface is; tells whether they were opened anew.
    fn attach(&mut self, side: Side, name: &str) -> Result<bool, DataPlaneError> {
        match self.data_plane.inspect(side) {
            SideState::Serving => return Ok(false),
            SideState::Away => {
                self.data_plane.give_up_side(side)?;
                return Ok(false); // the facts tell why
            }
            SideState::Replaced => {}
            SideState::Requeued { from, to } => {
                info!(interface = name, "the {} interface has {to} queues instead of {from}", side.name());
            }
        }
        self.data_plane.give_up_side(side)?;
        if let Err(error) = sysctl::isolate_again(name) {
            warn!(error = &error as &dyn std::error::Error, interface = name, "ARP is not isolated");
        }
        self.data_plane.renew_side(side)?;
        self.attachments[side.index()].reattachments += 1;
        let queues = self.data_plane.queues(side);
        info!(interface = name, queues, "the {} interface's sockets are open again", side.name());
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_away_from_the_first_trouble_until_there_is_none() {
        let mut attachment = Attachment::default();
        assert_eq!(attachment.note(None), None);
        assert_eq!(attachment.note(Some("gone".to_owned())), None);
        assert_eq!(attachment.note(Some("down".to_owned())), None);
        assert_eq!(attachment.trouble().as_deref(), Some("down"), "the newest reason");
        assert!(attachment.away_for().is_some());
        assert!(attachment.note(None).is_some());
        assert_eq!((attachment.away_for(), attachment.trouble()), (None, None));
    }
}

//! Keeps the fast path attached to the two interfaces, which may go away, come back, or change their queues.

use std::time::{Duration, Instant};

use fastpath::dataplane::{DataPlaneError, Loss, SideState};
use fastpath::snapshot::Side;
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use tracing::{debug, error, info, warn};

use super::gateway::Gateway;
use crate::sysctl;

/// What became of one interface.
#[derive(Clone, Debug, Default)]
pub(super) struct Attachment {
    away: Option<Away>,
    reattachments: u64,
    disturbances: u64,
    /// What is lost and was told.
    told: Loss,
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

    /// Returns how often somebody else took its XDP program, or what belongs to that.
    pub(super) fn disturbances(&self) -> u64 {
        self.disturbances
    }

    /// Notes what is lost; tells whether that is news.
    fn lose(&mut self, loss: Loss) -> bool {
        let is_news = loss.any() && loss != self.told;
        self.disturbances += u64::from(is_news);
        self.told = loss;
        is_news
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
                SideState::Replaced | SideState::Disturbed(_) | SideState::Requeued { .. } => true,
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
            SideState::Serving => {
                self.attachments[side.index()].lose(Loss::default());
                return Ok(false);
            }
            SideState::Away => {
                self.data_plane.give_up_side(side)?;
                return Ok(false); // the facts tell why
            }
            SideState::Disturbed(loss) => return self.put_back(side, name, loss).map(|()| false),
            SideState::Replaced => {}
            SideState::Requeued { from, to } => {
                info!(interface = name, "the {} interface has {to} queues instead of {from}", side.name());
            }
        }
        self.data_plane.give_up_side(side)?;
        if let Err(error) = sysctl::isolate_again(name) {
            warn!(error = &error as &dyn std::error::Error, interface = name, "ARP is not isolated");
        }
        if let Err(error) = self.data_plane.renew_side(side) {
            if !matches!(error, DataPlaneError::Steer(_)) || !self.evict(name) {
                return Err(error);
            }
            self.data_plane.renew_side(side)?;
        }
        self.attachments[side.index()].lose(Loss::default());
        self.attachments[side.index()].reattachments += 1;
        let queues = self.data_plane.queues(side);
        info!(interface = name, queues, "the {} interface's sockets are open again", side.name());
        Ok(true)
    }

    /// Puts back what somebody else took from an interface.
    fn put_back(&mut self, side: Side, name: &str, loss: Loss) -> Result<(), DataPlaneError> {
        if self.attachments[side.index()].lose(loss) {
            let lost = describe(loss);
            error!(interface = name, "somebody took {lost} from the {} interface; putting back", side.name());
        }
        let mut outcome = self.data_plane.put_back(side);
        if outcome.is_err() && loss.program && self.evict(name) {
            outcome = self.data_plane.put_back(side);
        }
        outcome?;
        self.attachments[side.index()].lose(Loss::default());
        info!(interface = name, "the {} interface has its XDP program and pins again", side.name());
        Ok(())
    }
}

impl Gateway {
    /// Removes another's XDP program that is in the way, as what the config file names is Spillway's; tells whether it is
    /// gone. One that is held by a link stays, which only its owner can give up.
    fn evict(&self, name: &str) -> bool {
        let Some(link) = self.facts.link(name) else { return false };
        match Handle::current().block_on(self.netlink.remove_xdp(link.index, name)) {
            Ok(()) => true,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                debug!(error, interface = name, "the XDP program that is in the way stays");
                false
            }
        }
    }
}

fn describe(loss: Loss) -> String {
    let parts = [
        (loss.program, "the XDP program"),
        (loss.guard, "the second line behind it"),
        (loss.pins, "the pins that let it outlive the daemon"),
    ];
    let lost: Vec<_> = parts.into_iter().filter(|(is_lost, _)| *is_lost).map(|(_, name)| name).collect();
    lost.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_told_once_and_counted_once() {
        let mut attachment = Attachment::default();
        let program = Loss { program: true, ..Loss::default() };
        assert!(attachment.lose(program));
        assert!(!attachment.lose(program), "it is known");
        assert!(attachment.lose(Loss { guard: true, ..program }), "more is lost");
        assert!(!attachment.lose(Loss::default()));
        assert!(attachment.lose(program), "lost again");
        assert_eq!(attachment.disturbances(), 3);
    }

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

//! What a table tells a log of translations: sessions that begin and end, and blocks of ports that come and go.
//!
//! A session that is taken up from the process before ([`mod@crate::restore`]) is no beginning: the log has that already.

use std::fmt::Debug;
use std::net::Ipv4Addr;

use crate::flow::FiveTuple;
use crate::session::Session;
use crate::table::Conntrack;
use crate::tcp::TcpState;
use crate::time::Tick;

/// Takes down what happens in one table, in order.
pub trait Journal: Debug + Send {
    /// Takes down something that happened at this moment.
    fn note(&mut self, at: Tick, event: &Event);
}

/// Something that a log of translations may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session was made.
    Began(Translation),
    /// A session ended.
    Ended(Translation, Cause),
    /// A worker took a block of ports of an egress address, by its first port.
    BlockTaken(Ipv4Addr, u16),
    /// A worker gave it back.
    BlockReturned(Ipv4Addr, u16),
}

/// Who is behind what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Gateway address of the tenant.
    pub gateway: Ipv4Addr,
    /// The tuple of its packets as they come from the pod.
    pub inside_tuple: FiveTuple,
    /// Egress address and outside port.
    pub outside: (Ipv4Addr, u16),
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No packet came for as long as its timeout.
    Idle,
    /// Both ends of the connection had closed it.
    Closed,
    /// One end of the connection had reset it.
    Reset,
    /// Somebody ended it, the configuration no longer allows it, or the worker that lent its port forgot all that it knew.
    Removed,
    /// Its worker forgot all that it knew, after a panic.
    Lost,
    /// The process that had it ended, and the next did not take it up.
    NotRestored,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 6] =
        [Self::Idle, Self::Closed, Self::Reset, Self::Removed, Self::Lost, Self::NotRestored];

    /// Returns its name, as logs spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Removed => "removed",
            Self::Lost => "lost",
            Self::NotRestored => "notRestored",
        }
    }

    /// Returns why a session ends whose time is over.
    pub(crate) fn of_expired(session: &Session) -> Self {
        match session.tcp_state() {
            Some(TcpState::Closed) => Self::Closed,
            Some(TcpState::Reset) => Self::Reset,
            Some(
                TcpState::Opening
                | TcpState::OutsideOpening
                | TcpState::Established
                | TcpState::InsideFin
                | TcpState::OutsideFin,
            )
            | None => Self::Idle,
        }
    }
}

/// A journal, and what time it is for a table.
#[derive(Debug)]
pub(crate) struct Notebook {
    journal: Box<dyn Journal>,
    now: Tick,
}

impl Notebook {
    pub(crate) fn note(&mut self, event: &Event) {
        self.journal.note(self.now, event);
    }
}

impl Conntrack {
    /// Has what happens taken down from now on.
    pub fn report_to(&mut self, journal: Box<dyn Journal>) {
        self.notebook = Some(Notebook { journal, now: Tick::default() });
    }

    /// Tells what time it is for what is taken down.
    pub(crate) fn date(&mut self, now: Tick) {
        if let Some(notebook) = &mut self.notebook {
            notebook.now = now;
        }
    }

    /// Takes something down.
    pub(crate) fn note(&mut self, event: impl FnOnce(&Self) -> Event) {
        if self.notebook.is_some() {
            let event = event(self);
            if let Some(notebook) = &mut self.notebook {
                notebook.note(&event);
            }
        }
    }

    /// Returns who is behind what in a session.
    pub(crate) fn translation(&self, session: &Session) -> Translation {
        let gateway = self.shared.tenant(session.tenant()).gateway();
        Translation { gateway, inside_tuple: session.inside_tuple(), outside: session.outside() }
    }

    /// Takes down that a session of the process before did not go on.
    pub fn note_not_restored(&mut self, record: &crate::Record) {
        let crate::Record { gateway, inside_tuple, outside, .. } = *record;
        self.note(|_| Event::Ended(Translation { gateway, inside_tuple, outside }, Cause::NotRestored));
    }
}

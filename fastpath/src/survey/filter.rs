//! Which sessions are meant.

use std::net::Ipv4Addr;
use std::time::Duration;

use conntrack::{FiveTuple, Protocol, Session, TcpState, TenantId};
use ipnet::Ipv4Net;

/// Which sessions are meant: those that every part of it fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// Of this protocol.
    pub protocol: Option<Protocol>,
    /// With this pod.
    pub inside: EndFilter,
    /// With this other end.
    pub remote: EndFilter,
    /// With this egress address and outside port.
    pub outside: EndFilter,
    /// In this state.
    pub state: Option<SessionState>,
    /// That began at least so long ago, or were taken up then.
    pub older_than: Option<Duration>,
    /// That began at most so long ago.
    pub younger_than: Option<Duration>,
    /// Without a packet for at least so long.
    pub idle_for: Option<Duration>,
}

/// One end of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndFilter {
    /// Its address is in this network.
    pub network: Option<Ipv4Net>,
    /// Its port, or query identifier.
    pub port: Option<u16>,
}

/// State of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// A TCP connection whose handshake is not over.
    Opening,
    /// A TCP connection.
    Established,
    /// A TCP connection that one end has closed or reset.
    Closing,
    /// Not TCP.
    Active,
}

impl EndFilter {
    pub(crate) fn fits(&self, address: Ipv4Addr, port: u16) -> bool {
        self.network.is_none_or(|network| network.contains(&address)) && self.port.is_none_or(|it| it == port)
    }
}

impl SessionState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Opening, Self::Established, Self::Closing, Self::Active];

    pub(super) fn of(session: &Session) -> Self {
        match session.tcp_state() {
            None => Self::Active,
            Some(TcpState::Opening | TcpState::OutsideOpening) => Self::Opening,
            Some(TcpState::Established) => Self::Established,
            Some(TcpState::InsideFin | TcpState::OutsideFin | TcpState::Closed | TcpState::Reset) => {
                Self::Closing
            }
        }
    }

    /// Returns the state's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Active => "active",
        }
    }
}

impl SessionFilter {
    pub(super) fn fits(&self, session: &Session, age: Duration, idle: Duration) -> bool {
        let FiveTuple { source, source_port, destination, destination_port, protocol } =
            session.inside_tuple();
        let outside = session.outside_tuple();
        self.tenant.is_none_or(|tenant| tenant == session.tenant())
            && self.protocol.is_none_or(|it| it == protocol)
            && self.inside.fits(source, source_port)
            && self.remote.fits(destination, destination_port)
            && self.outside.fits(outside.source, outside.source_port)
            && self.state.is_none_or(|state| state == SessionState::of(session))
            && self.older_than.is_none_or(|least| age >= least)
            && self.younger_than.is_none_or(|most| age <= most)
            && self.idle_for.is_none_or(|least| idle >= least)
    }
}

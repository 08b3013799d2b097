//! Which outside ports are taken, and towards where, for whoever counts them.
//!
//! A port of an egress address is not simply taken or free: it serves a session towards each destination (RFC 4787 REQ-1,
//! address- and port-dependent mapping). It is taken towards a destination by a session that goes there, and towards all of
//! them by an endpoint-independent mapping. New sessions are refused when every port is taken towards where they go.

use std::net::Ipv4Addr;

use crate::anchor::{Anchor, Role};
use crate::flow::{Protocol, TenantId};
use crate::ports::SYSTEM_PORTS;
use crate::session::{PortHolder, Session};
use crate::slab::Kind;
use crate::table::Conntrack;

/// An outside port that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortUse {
    /// Tenant that has it.
    pub tenant: TenantId,
    /// Egress address.
    pub outside: Ipv4Addr,
    /// Protocol.
    pub protocol: Protocol,
    /// Address and port that it is taken towards; none: everybody.
    pub remote: Option<(Ipv4Addr, u16)>,
}

/// Returns how many ports of an egress address pods can have in a protocol towards one destination, those for their ports
/// below 1024 not counted; 0 in protocols without ports.
pub fn port_capacity(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp | Protocol::Udp => 65_536 - 1024,
        Protocol::Icmp => 65_536,
        Protocol::Portless(_) => 0,
    }
}

impl Conntrack {
    /// Adds the ports to `uses` that entries from `from` on have taken, `span` entries at most, and returns how many of these
    /// entries are in use. Ports that stand for ports below 1024 are left out, and so are those lent to other workers: they
    /// are found there.
    pub fn survey_ports(&self, from: u32, span: u32, uses: &mut Vec<PortUse>) -> u32 {
        let mut used = 0;
        for (_, entry) in self.slab.range(from, span) {
            let port = match &entry.kind {
                Kind::Free => continue,
                Kind::Session(session) => use_of_session(session),
                Kind::Anchor(anchor) => use_of_anchor(anchor),
            };
            used += 1;
            uses.extend(port);
        }
        used
    }

    /// Returns how many entries are in use, by sessions and what they have in common.
    pub fn used(&self) -> u32 {
        self.capacity() - self.room()
    }
}

fn use_of_session(session: &Session) -> Option<PortUse> {
    let has_port = match session.port {
        PortHolder::Session | PortHolder::Lender(_) => true,
        PortHolder::Mapping { .. } => false,
    };
    let (tenant, outside, protocol) = (session.tenant(), session.outside, session.protocol());
    let remote = Some((session.remote, session.remote_port));
    (has_port && is_counted(protocol, session.outside_port)).then_some(PortUse {
        tenant,
        outside,
        protocol,
        remote,
    })
}

fn use_of_anchor(anchor: &Anchor) -> Option<PortUse> {
    let is_mapping = match anchor.role {
        Role::Mapping { .. } => true,
        Role::Pod | Role::Peer | Role::LentPort { .. } | Role::LentMapping { .. } => false,
    };
    let Anchor { tenant, outside, protocol, .. } = *anchor;
    (is_mapping && is_counted(protocol, anchor.outside_port)).then_some(PortUse {
        tenant,
        outside,
        protocol,
        remote: None,
    })
}

fn is_counted(protocol: Protocol, port: u16) -> bool {
    match protocol {
        Protocol::Tcp | Protocol::Udp => port > *SYSTEM_PORTS.end(),
        Protocol::Icmp => true,
        Protocol::Portless(_) => false,
    }
}

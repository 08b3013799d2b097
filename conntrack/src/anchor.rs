//! What several sessions have in common: their pod, their mapping, an address that the pod has sent to. And ports that
//! are lent to another worker.

use std::net::Ipv4Addr;

use crate::flow::{Direction, FiveTuple, Key, Protocol, Scope, TenantId};
use crate::time::Tick;

/// An entry of the table that is no session. It is there as long as something counts on it.
#[derive(Clone, Debug)]
pub(crate) struct Anchor {
    pub(crate) tenant: TenantId,
    pub(crate) protocol: Protocol,
    pub(crate) role: Role,
    /// Where the pod stands: address, and port where that matters.
    pub(crate) inside: Ipv4Addr,
    pub(crate) inside_port: u16,
    /// What stands for it: egress address, and port where that matters.
    pub(crate) outside: Ipv4Addr,
    pub(crate) outside_port: u16,
    /// The other end, where that matters.
    pub(crate) remote: Ipv4Addr,
    pub(crate) remote_port: u16,
    /// Sessions that count on it.
    pub(crate) sessions: u32,
    pub(crate) tally: Tally,
}

/// What an anchor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A pod that has sessions: its egress address (RFC 4787 REQ-2) and its part of the quota.
    Pod,
    /// An outside port that stands for one inside port whatever the destination (RFC 4787 REQ-1).
    Mapping {
        /// Whether the port rests when the last session ends (RFC 6888 REQ-8).
        rests: bool,
        /// The worker that lent the port, if one did.
        lender: Option<u16>,
    },
    /// An address that a mapping has sent to, and that may answer from any port (RFC 4787 section 5).
    Peer,
    /// A port that is lent to another worker, towards one destination.
    LentPort { borrower: u16 },
    /// A port that is lent to another worker, towards all destinations.
    LentMapping { borrower: u16 },
}

/// What is counted besides sessions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Ports of a pod.
    pub(crate) ports: u32,
    /// A second of the gateway's clock, and the sessions of a pod that began in it.
    pub(crate) second: u32,
    pub(crate) begun: u32,
    /// When a resting mapping was freed.
    pub(crate) freed: Tick,
}

impl Anchor {
    /// Returns the anchor of a pod without sessions.
    pub(crate) fn pod(tenant: TenantId, inside: Ipv4Addr, outside: Ipv4Addr) -> Self {
        let nobody = Ipv4Addr::UNSPECIFIED;
        Self {
            tenant,
            protocol: Protocol::Icmp,
            role: Role::Pod,
            inside,
            inside_port: 0,
            outside,
            outside_port: 0,
            remote: nobody,
            remote_port: 0,
            sessions: 0,
            tally: Tally::default(),
        }
    }

    /// Returns the anchor of something that has this outside tuple and, where that matters, this inside address and
    /// port, without sessions.
    pub(crate) fn of_port(
        tenant: TenantId,
        role: Role,
        inside: (Ipv4Addr, u16),
        outside_tuple: &FiveTuple,
    ) -> Self {
        Self {
            tenant,
            protocol: outside_tuple.protocol,
            role,
            inside: inside.0,
            inside_port: inside.1,
            outside: outside_tuple.source,
            outside_port: outside_tuple.source_port,
            remote: outside_tuple.destination,
            remote_port: outside_tuple.destination_port,
            sessions: 0,
            tally: Tally::default(),
        }
    }

    /// Returns one of the keys that it is found by.
    pub(crate) fn key(&self, direction: Direction) -> Option<Key> {
        match (self.role, direction) {
            (Role::Pod, Direction::Outbound) => Some(pod_key(self.tenant, self.inside)),
            (Role::Mapping { .. }, Direction::Outbound) => {
                let inside = (self.inside, self.inside_port);
                Some(mapping_key_inside(self.tenant, self.protocol, inside, self.outside))
            }
            (Role::Mapping { .. } | Role::LentMapping { .. }, Direction::Inbound) => {
                Some(mapping_key_outside(self.tenant, self.protocol, (self.outside, self.outside_port)))
            }
            (Role::Peer, Direction::Inbound) => Some(peer_key(self.tenant, &self.outside_tuple())),
            (Role::LentPort { .. }, Direction::Inbound) => {
                Some(Key::new(self.tenant, direction, &self.outside_tuple().reversed()))
            }
            (Role::Pod, Direction::Inbound)
            | (Role::Peer | Role::LentPort { .. } | Role::LentMapping { .. }, Direction::Outbound) => None,
        }
    }

    /// Returns the outside tuple of what it stands for.
    pub(crate) fn outside_tuple(&self) -> FiveTuple {
        FiveTuple {
            source: self.outside,
            destination: self.remote,
            source_port: self.outside_port,
            destination_port: self.remote_port,
            protocol: self.protocol,
        }
    }
}

/// Returns the key of a pod.
pub(crate) fn pod_key(tenant: TenantId, inside: Ipv4Addr) -> Key {
    let tuple = from_inside((inside, 0), Protocol::Icmp);
    Key::scoped(Scope::Pod, tenant, Direction::Outbound, &tuple)
}

/// Returns the key of the mapping of an inside address and port by an egress address.
pub(crate) fn mapping_key_inside(
    tenant: TenantId,
    protocol: Protocol,
    inside: (Ipv4Addr, u16),
    outside: Ipv4Addr,
) -> Key {
    let tuple = FiveTuple { destination: outside, ..from_inside(inside, protocol) };
    Key::scoped(Scope::Mapping, tenant, Direction::Outbound, &tuple)
}

/// Returns the key of the mapping of an outside address and port.
pub(crate) fn mapping_key_outside(tenant: TenantId, protocol: Protocol, outside: (Ipv4Addr, u16)) -> Key {
    let tuple = from_inside(outside, protocol).reversed();
    Key::scoped(Scope::Mapping, tenant, Direction::Inbound, &tuple)
}

/// Returns the key of the other end's address, whatever its port, of a mapping with this outside tuple.
pub(crate) fn peer_key(tenant: TenantId, outside_tuple: &FiveTuple) -> Key {
    let tuple = FiveTuple { destination_port: 0, ..*outside_tuple }.reversed();
    Key::scoped(Scope::Peer, tenant, Direction::Inbound, &tuple)
}

fn from_inside(inside: (Ipv4Addr, u16), protocol: Protocol) -> FiveTuple {
    FiveTuple {
        source: inside.0,
        destination: Ipv4Addr::UNSPECIFIED,
        source_port: inside.1,
        destination_port: 0,
        protocol,
    }
}

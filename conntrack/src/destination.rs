//! Where sessions of an egress address go, as far as ports are counted.

use std::net::Ipv4Addr;

use crate::flow::{FiveTuple, Protocol, TenantId};

/// What ports are counted towards: an egress address of a tenant, and the other end, or any other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    pub(crate) tenant: TenantId,
    pub(crate) outside: Ipv4Addr,
    pub(crate) remote: Ipv4Addr,
    pub(crate) remote_port: u16,
    pub(crate) protocol: Protocol,
}

impl Destination {
    /// Returns the destination of sessions with this outside tuple.
    pub fn of(tenant: TenantId, outside_tuple: &FiveTuple) -> Self {
        Self {
            tenant,
            outside: outside_tuple.source,
            remote: outside_tuple.destination,
            remote_port: outside_tuple.destination_port,
            protocol: outside_tuple.protocol,
        }
    }

    /// Tells whether it stands for mappings, which have no destination.
    pub(crate) fn is_any(&self) -> bool {
        self.remote.is_unspecified() && self.remote_port == 0
    }

    /// Returns the one destination of mappings that are endpoint-independent: 0.0.0.0:0.
    #[cfg(test)]
    pub(crate) fn any(tenant: TenantId, outside: Ipv4Addr, protocol: Protocol) -> Self {
        Self { tenant, outside, remote: Ipv4Addr::UNSPECIFIED, remote_port: 0, protocol }
    }
}

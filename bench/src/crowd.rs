//! Tenants by number, thousands of them: they are on a gateway beside the tenant of the topology.

use std::net::Ipv4Addr;

use anyhow::Result;
use macaddr::MacAddr6;
use serde_json::{Value, json};

use crate::topology::{NODE, NODE_MAC, POD_CIDR, Topology};

/// First of the gateway addresses on an inside network that has room for them.
const FIRST_GATEWAY: u32 = 0xc0a8_8000;
/// First of the egress addresses, from the networks for benchmarks (RFC 2544).
const FIRST_EGRESS: u32 = 0xc612_0000;
/// First of those that take their place.
const FIRST_OTHER_EGRESS: u32 = 0xc613_0000;

/// Which egress address a tenant has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Egress {
    First,
    Other,
}

/// Tenant number so and so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbered(pub(crate) u32);

impl Numbered {
    pub(crate) fn path(self) -> String {
        format!("/v1/tenants/{}", self.name())
    }

    pub(crate) fn egress(self, egress: Egress) -> Ipv4Addr {
        let first = match egress {
            Egress::First => FIRST_EGRESS,
            Egress::Other => FIRST_OTHER_EGRESS,
        };
        Ipv4Addr::from_bits(first + 1 + self.0)
    }

    /// Returns the tenant as the API has it.
    pub(crate) fn body(self, egress: Egress, most_sessions: u32) -> Value {
        json!({
            "name": self.name(),
            "gatewayIP": self.gateway(),
            "egressIPs": [self.egress(egress)],
            "sources": { "podCIDRs": [POD_CIDR] },
            "limits": { "sessions": most_sessions },
        })
    }

    /// Returns the MAC of the gateway address, derived as Spillway does.
    pub(crate) fn mac(self) -> MacAddr6 {
        let [a, b, c, d] = self.gateway().octets();
        MacAddr6::new(0x02, 0x53, a, b, c, d)
    }

    fn name(self) -> String {
        format!("bench-{:05}", self.0)
    }

    fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(FIRST_GATEWAY + 1 + self.0)
    }
}

/// Returns the tenants with the first so many numbers as the API has them, and makes room for their gateway addresses.
pub(crate) fn invite(tenants: u32, topology: &Topology) -> Result<Vec<Value>> {
    widen_inside(topology)?;
    Ok((0..tenants).map(|number| Numbered(number).body(Egress::First, 0)).collect())
}

/// Puts the inside link on a network that has room for thousands of gateway addresses.
fn widen_inside(topology: &Topology) -> Result<()> {
    let inside = topology.inside_device();
    topology.gateway.ip(&format!("addr del 192.168.99.12/24 dev {inside}"))?;
    topology.gateway.ip(&format!("addr add 192.168.99.12/16 dev {inside}"))?;
    topology
        .gateway
        .ip(&format!("neigh replace {NODE} lladdr {NODE_MAC} dev {inside} nud permanent"))
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_tenants_have_addresses_of_their_own() {
        let last = Numbered(9_999 + 1000);
        assert_eq!(last.gateway(), Ipv4Addr::new(192, 168, 170, 248));
        assert_eq!(last.mac(), MacAddr6::new(2, 0x53, 192, 168, 170, 248));
        assert_eq!(last.egress(Egress::First), Ipv4Addr::new(198, 18, 42, 248));
        assert_eq!(last.egress(Egress::Other), Ipv4Addr::new(198, 19, 42, 248));
    }
}

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use control::client::BlockingClient;
use control::demo::wait;
use macaddr::MacAddr6;
use serde_json::{Value, json};

use crate::system::{Daemon, Setup, Wishes};
use crate::topology::{Cores, NODE, NODE_MAC, POD_CIDR, Topology};
use crate::traffic::{Kind, Plan, Rate, Receiving, Traffic, now};

/// First of the gateway addresses on an inside network that has room for them.
const FIRST_GATEWAY: u32 = 0xc0a8_8000;
/// First of the egress addresses, from the networks for benchmarks (RFC 2544).
const FIRST_EGRESS: u32 = 0xc612_0000;
/// First of those that take their place.
const FIRST_OTHER_EGRESS: u32 = 0xc613_0000;
const READY_WITHIN: Duration = Duration::from_secs(300);
const OBEYED_WITHIN: Duration = Duration::from_secs(30);
/// Packets a second whose first that obeys a change is looked for: one each 50 µs.
const LOOKING: u64 = 20_000;

/// A daemon with tenants, and traffic through it. The tenant of the topology is always there.
pub(super) struct World {
    // Dropped in this order: the daemon goes before the namespace that it is in.
    pub(super) traffic: Traffic,
    pub(super) client: BlockingClient,
    pub(super) daemon: Daemon,
    pub(super) topology: Topology,
    /// How long the daemon took to be ready.
    pub(super) start: Duration,
}

/// When a change was answered and obeyed, from its request on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Obeyed {
    pub(super) answer: Duration,
    pub(super) packet: Duration,
}

/// Which egress address a tenant has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Egress {
    First,
    Other,
}

/// Tenant number so and so.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbered(pub(super) u32);

impl Numbered {
    pub(super) fn path(self) -> String {
        format!("/v1/tenants/{}", self.name())
    }

    pub(super) fn egress(self, egress: Egress) -> Ipv4Addr {
        let first = match egress {
            Egress::First => FIRST_EGRESS,
            Egress::Other => FIRST_OTHER_EGRESS,
        };
        Ipv4Addr::from_bits(first + 1 + self.0)
    }

    /// Returns the tenant as the API has it.
    pub(super) fn body(self, egress: Egress, most_sessions: u32) -> Value {
        json!({
            "name": self.name(),
            "gatewayIP": self.gateway(),
            "egressIPs": [self.egress(egress)],
            "sources": { "podCIDRs": [POD_CIDR] },
            "limits": { "sessions": most_sessions },
        })
    }

    /// Returns the MAC of the gateway address, derived as Spillway does.
    fn mac(self) -> MacAddr6 {
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

impl World {
    /// Starts a daemon that has the tenants with the first so many numbers.
    pub(super) fn start(tenants: u32, cores: Cores, setup: &Setup) -> Result<Self> {
        let topology = Topology::build(cores, setup.flows)?;
        widen_inside(&topology)?;
        let wishes = Wishes {
            saved_tenants: (0..tenants).map(|number| Numbered(number).body(Egress::First, 0)).collect(),
            ready_within: Some(READY_WITHIN),
            ..Wishes::default()
        };
        let began = Instant::now();
        let daemon = Daemon::start_with(&topology, setup, &wishes)?;
        let start = began.elapsed();
        topology.place_receivers(cores.gateway)?;
        let client = BlockingClient::new(&daemon.socket())?;
        let traffic = Traffic::start(&topology, setup.flows, Kind::Datagrams, Receiving::Woken)?;
        Ok(Self { traffic, client, daemon, topology, start })
    }

    /// Sends a tenant's packets, changes something, and waits for the first packet that obeys.
    pub(super) fn time(
        &mut self,
        tenant: Option<Numbered>,
        to: Option<Ipv4Addr>,
        wanted_source: Option<Ipv4Addr>,
        change: impl FnOnce(&BlockingClient) -> Result<()>,
    ) -> Result<Obeyed> {
        let plan = Plan { rate: Rate::PerSecond(LOOKING), destination: to, ..Plan::default() };
        let gateway_mac = tenant.map_or(plan.gateway_mac, Numbered::mac);
        self.traffic.follow(Plan { gateway_mac, ..plan })?;
        self.traffic.want(wanted_source, to)?;
        let began = now()?;
        change(&self.client).with_context(|| tail(&self.daemon.log()))?;
        let answer = now()?.saturating_sub(began);
        let seen = wait::until("a packet obeys", OBEYED_WITHIN, || self.traffic.first_seen());
        let packet = seen.with_context(|| tail(&self.daemon.log()))?.saturating_sub(began);
        self.traffic.want(None, None)?;
        Ok(Obeyed { answer, packet })
    }

    /// Puts a tenant with one of its egress addresses and waits for a packet that leaves with it.
    pub(super) fn time_put(&mut self, tenant: Numbered, egress: Egress) -> Result<Obeyed> {
        self.time(Some(tenant), None, Some(tenant.egress(egress)), |client| {
            let _: Value = client.put(&tenant.path(), &tenant.body(egress, 0))?;
            Ok(())
        })
    }
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

/// Returns the last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
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

    #[test]
    fn a_log_is_cut_to_its_end() {
        assert_eq!(tail("a\nb"), "a\nb");
        let log: String = (0..20).map(|line| format!("{line}\n")).collect();
        assert!(tail(&log).starts_with("10\n") && tail(&log).ends_with("19"));
    }
}

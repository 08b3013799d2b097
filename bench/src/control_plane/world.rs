use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use control::client::BlockingClient;
use control::demo::wait;
use serde_json::Value;

use crate::crowd::{self, Egress, Numbered};
use crate::system::{Daemon, Setup, Wishes};
use crate::topology::{Cores, Topology};
use crate::traffic::{Kind, Plan, Rate, Receiving, Traffic, now};

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

impl World {
    /// Starts a daemon that has the tenants with the first so many numbers.
    pub(super) fn start(tenants: u32, cores: Cores, setup: &Setup) -> Result<Self> {
        let topology = Topology::build(cores, setup.flows)?;
        let wishes = Wishes { saved_tenants: crowd::invite(tenants, &topology)?, ..Wishes::default() };
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

/// Returns the last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_to_its_end() {
        assert_eq!(tail("a\nb"), "a\nb");
        let log: String = (0..20).map(|line| format!("{line}\n")).collect();
        assert!(tail(&log).starts_with("10\n") && tail(&log).ends_with("19"));
    }
}

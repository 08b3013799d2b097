//! One tenant floods the gateway; the other loses nothing, limits hold exactly, and no memory is taken.

use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use control::demo::topology::{BLUE, PODS, RED, SERVER};
use serde_json::Value;
use spillway_tests::fixture::Fixture;
use spillway_tests::flood::{Flood, Kind};
use spillway_tests::peers::Peer;
use spillway_tests::stream::Stream;

/// Memory that the daemon may take meanwhile, in bytes. Tables, frames and rings are taken at start; each of a worker's
/// few lists by tenant touches a page of 4 KiB when the tenant first needs it, and status and log take some buffers once.
const BUDGET: u64 = 64 * 4096;
/// Outside ports that stand for ports from 1024 on.
const PORTS: u64 = 64_512;

struct Test {
    fixture: Fixture,
    flood: Flood,
    peer: Peer,
}

/// What is counted of a tenant.
#[derive(Debug)]
struct Counts {
    sessions: u64,
    forwarded: u64,
    drops: Value,
}

impl Counts {
    fn dropped(&self, reason: &str) -> u64 {
        self.drops[reason].as_u64().unwrap_or(0)
    }

    /// Fails unless packets of a flood that were over a limit are counted as such. What a slow machine does not look at in
    /// time is over the tenant's share of the queue, or lost on the link.
    fn require_refused(&self, reason: &str, packets: u64) {
        let refused = self.dropped(reason) + self.dropped("queue_share");
        assert!(self.dropped(reason) > 0 && refused <= packets, "{packets} were over a limit: {self:?}");
    }
}

impl Test {
    /// Starts a gateway with both tenants, red's with these flags.
    fn start(limits: &[&str]) -> Result<Option<Self>> {
        let Some(fixture) = Fixture::with_tenants()? else { return Ok(None) };
        let (gateway, egress) = (RED.gateway.to_string(), RED.egress.to_string());
        let arguments = ["tenant", "add", RED.name, "--gw-ip", &gateway, "--egress-ip", &egress];
        let arguments: Vec<_> = arguments.iter().chain(limits).copied().collect();
        fixture.gateway.installation().json(&arguments)?;
        fixture.require_service()?;
        let (flood, peer) = (Flood::of(&fixture.lab, &PODS[3])?, Peer::udp_echo(&fixture.lab, 7)?);
        Ok(Some(Self { fixture, flood, peer }))
    }

    fn counts(&self, tenant: &str) -> Result<Counts> {
        let shown = self.fixture.gateway.installation().json(&["tenant", "show", tenant])?["status"].take();
        let number = |key: &str| shown[key].as_u64().with_context(|| format!("no `{key}` in {shown}"));
        Ok(Counts {
            sessions: number("sessions")?,
            forwarded: number("outboundPackets")?,
            drops: shown["drops"].clone(),
        })
    }

    /// Lets red flood while blue's datagrams come and go; returns what was counted of red meanwhile. Blue loses nothing,
    /// keeps its sessions, and the daemon's memory stays as it is.
    fn flood(&self, kind: Kind, packets: u32, server: Ipv4Addr) -> Result<(Counts, Counts)> {
        let streams = [&PODS[0], &PODS[2]].map(|pod| {
            Ok::<_, anyhow::Error>((pod, Stream::start(&self.fixture.lab, pod, self.peer.address())?))
        });
        let streams = streams.into_iter().collect::<Result<Vec<_>>>()?;
        streams.iter().try_for_each(|(_, stream)| stream.until_answered(100))?;
        let (before, blue) = (self.counts(RED.name)?, self.counts(BLUE.name)?);
        let resident = self.resident()?;
        self.flood.send(kind, packets, server)?;
        streams.iter().try_for_each(|(_, stream)| stream.until_answered(100))?;
        let grown = self.resident()?.saturating_sub(resident);
        ensure!(grown <= BUDGET, "{kind:?}: the daemon took {grown} bytes");
        for (pod, stream) in streams {
            let summary = self.fixture.finish_without_loss(pod, stream)?;
            assert_eq!(summary.seen_as.len(), 1, "pod {} kept its port: {summary:?}", pod.address);
        }
        assert_eq!(self.counts(BLUE.name)?.sessions, blue.sessions, "blue's sessions are what they were");
        Ok((before, self.counts(RED.name)?))
    }

    /// Returns the daemon's resident memory, in bytes.
    fn resident(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.fixture.gateway.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes * 1024)
    }
}

#[test]
fn a_flood_of_syns_ends_at_the_session_limit_and_costs_the_other_tenant_nothing() -> Result<()> {
    let Some(test) = Test::start(&["--max-sessions", "5000"])? else { return Ok(()) };
    let (before, after) = test.flood(Kind::Syns, 12_000, SERVER)?;
    assert_eq!(after.sessions, 5000, "exactly");
    after.require_refused("tenant_session_limit", 12_000 - (5000 - before.sessions));
    Ok(())
}

#[test]
fn a_flood_of_new_flows_ends_at_the_limit_of_a_second_and_costs_the_other_tenant_nothing() -> Result<()> {
    let Some(test) = Test::start(&["--max-new-sessions", "100"])? else { return Ok(()) };
    let start = Instant::now();
    let (before, after) = test.flood(Kind::Datagrams, 12_000, SERVER)?;
    let begun = after.sessions - before.sessions;
    // The flood may begin and end in the middle of a second.
    let seconds = start.elapsed().as_secs() + 2;
    assert!((100..=100 * seconds).contains(&begun), "{begun} in {seconds} s: {after:?}");
    after.require_refused("tenant_rate_limit", 12_000 - begun);
    Ok(())
}

#[test]
fn ports_that_run_out_cost_the_other_tenant_nothing() -> Result<()> {
    let Some(test) = Test::start(&[])? else { return Ok(()) };
    let (before, after) = test.flood(Kind::Datagrams, 66_000, SERVER)?;
    assert_eq!(after.sessions - before.sessions, PORTS, "to the last port: {after:?}");
    after.require_refused("no_port", 66_000 - PORTS);
    test.fixture.fetch(&PODS[1], &control::demo::server::url("whoami")).context("red still has TCP")?;
    Ok(())
}

#[test]
fn fragments_that_never_become_whole_cost_the_other_tenant_nothing() -> Result<()> {
    let Some(test) = Test::start(&[])? else { return Ok(()) };
    let (before, after) = test.flood(Kind::Fragments, 12_000, SERVER)?;
    let (forwarded, refused) = (after.forwarded - before.forwarded, after.dropped("fragment_limit"));
    assert!(
        refused > 5000 && forwarded <= 6000,
        "first fragments leave, as far as they are followed: {after:?}"
    );
    Ok(())
}

use std::fmt::Write;
use std::fs;
use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::Result;
use serde_json::Value;

use super::tenants::milliseconds;
use super::world::World;
use super::{Delay, RouteRow};
use crate::crowd::{Egress, Numbered};
use crate::namespace::PREFIX;
use crate::statistics::Summary;
use crate::system::Setup;
use crate::topology::{Cores, SERVER};
use crate::traffic::now;

/// First of the routed networks, of 256 addresses each, one after the other.
const FIRST_NETWORK: u32 = 0x1400_0000;
/// A destination without a route at first, from the networks for documentation (RFC 5737).
const UNROUTED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// Changes routes, and tenants, beside each number of routes.
pub(super) fn measure(present: &[u32], changes: u32, cores: Cores, setup: &Setup) -> Result<Vec<RouteRow>> {
    let mut world = World::start(0, cores, setup)?;
    let mut rows = Vec::new();
    for &present in present {
        eprintln!("{present} routes: adding them");
        let (batch_seconds, after_batch_ms) = add_all(&mut world, present)?;
        eprintln!("{present} routes: first packet {after_batch_ms:.1} ms after the last of them was added");
        let mut adds = Vec::new();
        let (mut egress_changes, mut snapshots) = (Vec::new(), Vec::new());
        let tenant = Numbered(0);
        world.time_put(tenant, Egress::Other)?;
        for _ in 0..changes {
            let device = world.topology.outside_device();
            let route = format!("route add {UNROUTED}/32 via {SERVER} dev {device}");
            let gateway = world.topology.gateway.name().to_owned();
            adds.push(world.time(None, Some(UNROUTED), None, |_| {
                crate::command::run(&format!("ip -n {gateway} {route}")).map(drop)
            })?);
            world.topology.gateway.ip(&format!("route del {UNROUTED}/32"))?;
            let began = now()?;
            let _: Value = world.client.put(&tenant.path(), &tenant.body(Egress::Other, 1_000_000))?;
            snapshots.push(milliseconds(now()?.saturating_sub(began)));
            egress_changes.push(world.time_put(tenant, Egress::First)?);
            world.time_put(tenant, Egress::Other)?;
        }
        world.traffic.rest()?;
        let (add, tenant) = (Delay::of(&adds), Delay::of(&egress_changes));
        eprintln!("{present} routes: first packet by one more {:.1} ms after it", add.packet.median);
        rows.push(RouteRow {
            present,
            batch_seconds,
            after_batch_ms,
            add,
            snapshot: Summary::of(&snapshots),
            tenant,
        });
    }
    Ok(rows)
}

/// Adds so many routes at once; returns how many seconds that took, and after how many milliseconds more the first
/// packet went by the last of them.
fn add_all(world: &mut World, count: u32) -> Result<(f64, f64)> {
    let Some(last) = count.checked_sub(1) else { return Ok((0.0, 0.0)) };
    let directory = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
    let file = directory.path().join("routes");
    fs::write(&file, batch(count, &world.topology.outside_device())?)?;
    let line = format!("ip -n {} -batch {}", world.topology.gateway.name(), file.display());
    let destination = network(last).saturating_add(1);
    let mut batch_seconds = 0.0;
    let obeyed = world.time(None, Some(Ipv4Addr::from_bits(destination)), None, |_| {
        let began = Instant::now();
        crate::command::run(&line)?;
        batch_seconds = began.elapsed().as_secs_f64();
        Ok(())
    })?;
    Ok((batch_seconds, milliseconds(obeyed.packet.saturating_sub(obeyed.answer))))
}

/// Writes what `ip -batch` reads.
fn batch(count: u32, device: &str) -> Result<String> {
    let mut text = String::new();
    for number in 0..count {
        let network = Ipv4Addr::from_bits(network(number));
        writeln!(text, "route add {network}/24 via {SERVER} dev {device}")?;
    }
    Ok(text)
}

fn network(number: u32) -> u32 {
    FIRST_NETWORK + (number << 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_a_network_of_its_own_in_each_line() {
        let text = batch(300, "out0").unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "route add 20.0.0.0/24 via 192.168.55.13 dev out0");
        assert_eq!(lines[299], "route add 20.1.43.0/24 via 192.168.55.13 dev out0");
    }

    #[test]
    fn a_million_networks_stay_below_multicast() {
        assert!(Ipv4Addr::from_bits(network(999_999)) < Ipv4Addr::new(127, 0, 0, 0));
    }
}

use std::time::Duration;

use anyhow::Result;

use super::world::{Obeyed, World};
use super::{Delay, TenantRow};
use crate::crowd::{Egress, Numbered};
use crate::statistics::Summary;
use crate::system::Setup;
use crate::topology::Cores;
use crate::traffic::now;

/// Adds, changes and removes tenants beside others, and tells how XDP is attached.
pub(super) fn measure(
    present: u32,
    changes: u32,
    cores: Cores,
    setup: &Setup,
) -> Result<(TenantRow, &'static str)> {
    eprintln!("{present} tenants: starting");
    // One of them is the topology's own.
    let mut world = World::start(present - 1, cores, setup)?;
    eprintln!("{present} tenants: ready after {:.1} s", world.start.as_secs_f64());
    let (mut adds, mut egress_changes, mut removals) = (Vec::new(), Vec::new(), Vec::new());
    for change in 0..changes {
        let tenant = Numbered(present + change);
        adds.push(world.time_put(tenant, Egress::First)?);
        egress_changes.push(world.time_put(tenant, Egress::Other)?);
        let began = now()?;
        world.client.delete(&tenant.path())?;
        removals.push(milliseconds(now()?.saturating_sub(began)));
        eprintln!(
            "{present} tenants: {}/{changes}  first packet of a new tenant after {:.1} ms, of a changed one after {:.1} ms",
            change + 1,
            milliseconds(adds[adds.len() - 1].packet),
            milliseconds(egress_changes[egress_changes.len() - 1].packet)
        );
    }
    world.traffic.rest()?;
    let row = TenantRow {
        present,
        start_seconds: world.start.as_secs_f64(),
        add: Delay::of(&adds),
        change: Delay::of(&egress_changes),
        remove: Summary::of(&removals),
    };
    Ok((row, world.topology.xdp_mode()?))
}

impl Delay {
    pub(super) fn of(times: &[Obeyed]) -> Self {
        let sum_up = |value: fn(&Obeyed) -> Duration| {
            Summary::of(&times.iter().map(|times| milliseconds(value(times))).collect::<Vec<_>>())
        };
        Self { answer: sum_up(|times| times.answer), packet: sum_up(|times| times.packet) }
    }
}

pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

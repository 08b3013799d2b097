use std::collections::BTreeMap;

use anyhow::Result;
use clap::{Args, value_parser};
use serde::Serialize;

use crate::statistics::Summary;
use crate::system::Setup;
use crate::topology::Cores;

/// Routes of the kernel, many and changing.
mod routes;
/// What is shown of it.
mod show;
/// Tenant changes in quick succession while others have traffic.
mod storm;
/// Tenants that are added, changed and removed one by one.
mod tenants;
/// A daemon with tenants, and traffic through it.
mod world;

/// Time from a change to the first packet that obeys it, and what changes cost others
///
/// Example: spillway-bench control --tenants 1 --tenants 10000 --routes 100000 --changes-a-second 1000
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Tenants that are there when others are added and changed; repeat it for several
    #[arg(long, num_args = 1.., default_values_t = [1, 10_000], value_parser = value_parser!(u32).range(1..=10_000))]
    tenants: Vec<u32>,
    /// Tenants that are added, changed and removed, one after the other
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u32).range(1..=1000))]
    changes: u32,
    /// Routes of the outside link, when routes change
    #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    routes: u32,
    /// Tenant changes in a second, under load
    #[arg(long, default_value_t = 1000, value_parser = value_parser!(u32).range(1..=10_000))]
    changes_a_second: u32,
    /// How long changes go on under load
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Load of another tenant meanwhile, in packets a second
    #[arg(long, default_value_t = 50_000, value_parser = value_parser!(u64).range(100..=10_000_000))]
    load: u64,
    /// Does with 1 and 500 tenants, 5 changes, 5,000 routes and 2 s
    #[arg(long, conflicts_with_all = ["tenants", "changes", "routes", "seconds"])]
    short: bool,
}

/// How fast changes are obeyed.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) xdp_mode: &'static str,
    pub(crate) load: u64,
    pub(crate) changes: u32,
    pub(crate) tenants: Vec<TenantRow>,
    pub(crate) routes: Vec<RouteRow>,
    pub(crate) storms: Vec<StormRow>,
}

/// From a request on, in milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Delay {
    /// Until the daemon answers.
    pub(crate) answer: Summary,
    /// Until the first packet that obeys arrives.
    pub(crate) packet: Summary,
}

/// Changes of tenants beside so many others.
#[derive(Debug, Serialize)]
pub(crate) struct TenantRow {
    pub(crate) present: u32,
    /// From the daemon's start until it is ready with all of them.
    pub(crate) start_seconds: f64,
    pub(crate) add: Delay,
    /// The egress address is replaced.
    pub(crate) change: Delay,
    /// Until the daemon answers.
    pub(crate) remove: Summary,
}

/// Changes of routes, and of tenants, beside so many routes.
#[derive(Debug, Serialize)]
pub(crate) struct RouteRow {
    pub(crate) present: u32,
    /// How long `ip` took to put them into the kernel.
    pub(crate) batch_seconds: f64,
    /// From then until the first packet by the last of them.
    pub(crate) after_batch_ms: f64,
    /// One route more: until `ip` is done, and until the first packet by it.
    pub(crate) add: Delay,
    /// Another limit of a tenant, in milliseconds until the answer: a snapshot is compiled, applied and acknowledged.
    pub(crate) snapshot: Summary,
    /// A tenant's egress address is replaced.
    pub(crate) tenant: Delay,
}

/// Changes in quick succession.
#[derive(Debug, Serialize)]
pub(crate) struct StormRow {
    pub(crate) kind: storm::Change,
    pub(crate) wanted_a_second: u32,
    pub(crate) done_a_second: f64,
    pub(crate) done: u64,
    /// What the daemon did not do, and why it says it did not for the first of them.
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Packets of the tenant that was left alone, sent and lost, while tenants changed.
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    /// Packets that the daemon says it dropped meanwhile, and those that rings had no room for, by reason.
    pub(crate) drops: BTreeMap<String, u64>,
    /// The same without changes.
    pub(crate) quiet_sent: u64,
    pub(crate) quiet_lost: u64,
}

/// Measures tenants, then routes, then many changes.
pub(crate) fn measure(options: &Options, cores: Cores, setup: &Setup) -> Result<Results> {
    let (present, changes, count, seconds) = match options.short {
        true => (&[1, 500][..], 5, 5000, 2),
        false => (options.tenants.as_slice(), options.changes, options.routes, options.seconds),
    };
    let mut xdp_mode = "none";
    let mut rows = Vec::new();
    for &present in present {
        let (row, mode) = tenants::measure(present, changes, cores, setup)?;
        xdp_mode = mode;
        rows.push(row);
    }
    let routes = routes::measure(&[0, count], changes, cores, setup)?;
    let storm = storm::Plan { changes_a_second: options.changes_a_second, seconds, load: options.load };
    let storms = storm::measure(&storm, cores, setup)?;
    Ok(Results { xdp_mode, load: options.load, changes, tenants: rows, routes, storms })
}

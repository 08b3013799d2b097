use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use control::api::types::Status;
use control::client::BlockingClient;
use control::demo::wait;
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::Value;

use super::StormRow;
use super::tenants::milliseconds;
use super::world::World;
use crate::crowd::{Egress, Numbered};
use crate::system::Setup;
use crate::topology::Cores;
use crate::traffic::Rate;

/// Tenants that are changed, one after the other.
const TENANTS: u32 = 64;
/// Clients at the same time.
const CLIENTS: u64 = 32;
/// Lets what is under way arrive before it is counted as lost.
const DRAIN: Duration = Duration::from_millis(500);

/// How many changes, and under which load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) changes_a_second: u32,
    pub(super) seconds: u64,
    pub(super) load: u64,
}

/// What is changed of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change {
    /// How many sessions it may have: nothing that the kernel knows of.
    Limit,
    /// Its egress address, which the kernel takes off and puts on the outside link.
    Egress,
}

/// What became of the changes.
struct Outcome {
    elapsed: Duration,
    done: u64,
    failed: u64,
    first_failure: Option<String>,
    delays: Histogram<u64>,
}

/// Changes tenants of a daemon in quick succession, by each kind of change, while another tenant has traffic.
pub(super) fn measure(plan: &Plan, cores: Cores, setup: &Setup) -> Result<Vec<StormRow>> {
    let mut world = World::start(TENANTS, cores, setup)?;
    world.traffic.follow(crate::traffic::Plan {
        rate: Rate::PerSecond(plan.load),
        ..crate::traffic::Plan::default()
    })?;
    wait::pause(Duration::from_secs(1))?; // all flows have their sessions now
    world.traffic.rest()?;
    let mut rows = Vec::new();
    for kind in [Change::Limit, Change::Egress] {
        let duration = Duration::from_secs(plan.seconds);
        let (_, [quiet_sent, quiet_lost]) = under_load(&mut world, plan.load, || wait::pause(duration))?;
        let socket = world.daemon.socket();
        let before = drops(&world)?;
        let (outcome, [sent, lost]) = under_load(&mut world, plan.load, || storm(plan, kind, &socket))?;
        let mut row = outcome.row(kind, plan, [sent, lost, quiet_sent, quiet_lost]);
        row.drops = drops(&world)?;
        row.drops.iter_mut().for_each(|(reason, count)| *count -= before.get(reason).unwrap_or(&0));
        row.drops.retain(|_, count| *count > 0);
        eprintln!(
            "{} changes a second of the {}: {:.0} done, {lost} of {sent} packets lost; without changes {quiet_lost} of \
             {quiet_sent}",
            plan.changes_a_second,
            kind.name(),
            row.done_a_second
        );
        rows.push(row);
    }
    Ok(rows)
}

/// Returns what the daemon, its rings and the links before and behind it have dropped so far, by reason.
fn drops(world: &World) -> Result<BTreeMap<String, u64>> {
    let status: Status = world.client.get("/v1/status")?;
    let inside =
        world.topology.gateway.ip(&format!("-j -s link show dev {}", world.topology.inside_device()))?;
    let inside: Value = serde_json::from_str(&inside)?;
    let queues = || status.workers.iter().flat_map(|worker| &worker.queues);
    let rings = [
        ("rx_dropped", queues().map(|queue| queue.rx_dropped).sum()),
        ("rx_ring_full", queues().map(|queue| queue.rx_ring_full).sum()),
        ("fill_ring_empty", queues().map(|queue| queue.fill_ring_empty).sum()),
        ("inside_link_full", inside[0]["stats64"]["rx"]["dropped"].as_u64().unwrap_or(0)),
        ("far_end_full", world.topology.lost_at_sink()?),
    ];
    let rings = rings.map(|(reason, count)| (reason.to_owned(), count));
    Ok(status.drops.clone().into_iter().chain(rings).collect())
}

/// Does something while packets are sent; returns how many of these were sent, and how many did not arrive.
fn under_load<T>(world: &mut World, load: u64, work: impl FnOnce() -> Result<T>) -> Result<(T, [u64; 2])> {
    wait::pause(DRAIN)?;
    let before = (world.traffic.progress()?.sent, world.traffic.counts()?.translated);
    let plan = crate::traffic::Plan { rate: Rate::PerSecond(load), ..crate::traffic::Plan::default() };
    world.traffic.follow(plan)?;
    let done = work();
    world.traffic.rest()?;
    wait::pause(DRAIN)?;
    let after = (world.traffic.progress()?.sent, world.traffic.counts()?.translated);
    let (sent, arrived) = (after.0 - before.0, after.1 - before.1);
    Ok((done?, [sent, sent.saturating_sub(arrived)]))
}

/// Has several clients put changes, each at its time, or at once when it is late.
fn storm(plan: &Plan, kind: Change, socket: &Path) -> Result<Outcome> {
    let next = AtomicU64::new(0);
    let began = Instant::now();
    let outcomes = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| scope.spawn(|| put_some(plan, kind, socket, &next, began))).collect();
        let joined = clients.into_iter().map(|client| client.join());
        joined
            .map(|outcome| outcome.unwrap_or_else(|_| Err(anyhow!("a client panicked"))))
            .collect::<Result<Vec<_>>>()
    })?;
    let mut all = Outcome::new()?;
    for outcome in outcomes {
        all.elapsed = all.elapsed.max(outcome.elapsed);
        all.done += outcome.done;
        all.failed += outcome.failed;
        all.first_failure = all.first_failure.or(outcome.first_failure);
        all.delays.add(&outcome.delays)?;
    }
    Ok(all)
}

/// Takes one change after the other until the time is over.
fn put_some(plan: &Plan, kind: Change, socket: &Path, next: &AtomicU64, began: Instant) -> Result<Outcome> {
    let client = BlockingClient::new(socket)?;
    let mut outcome = Outcome::new()?;
    let duration = Duration::from_secs(plan.seconds);
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let due = began + Duration::from_secs(number) / plan.changes_a_second;
        if due >= began + duration || began.elapsed() >= duration || wait::check_interrupted().is_err() {
            outcome.elapsed = began.elapsed();
            return Ok(outcome);
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let (tenant, body) = kind.of(number)?;
        let asked = Instant::now();
        match client.put::<Value>(&tenant.path(), &body) {
            Ok(_) => outcome.done += 1,
            Err(error) => {
                outcome.failed += 1;
                outcome.first_failure.get_or_insert(format!("{error}"));
            }
        }
        outcome.delays.record(u64::try_from(asked.elapsed().as_micros())?)?;
    }
}

impl Change {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Egress => "egress address",
        }
    }

    /// Returns the tenant that has its turn, and what becomes of it: never what it was in the round before.
    fn of(self, number: u64) -> Result<(Numbered, Value)> {
        let tenant = Numbered(u32::try_from(number % u64::from(TENANTS))?);
        let round = u32::try_from(number / u64::from(TENANTS))?;
        let body = match self {
            Self::Limit => tenant.body(Egress::First, 1_000_000 + round),
            Self::Egress if round.is_multiple_of(2) => tenant.body(Egress::Other, 0),
            Self::Egress => tenant.body(Egress::First, 0),
        };
        Ok((tenant, body))
    }
}

impl Outcome {
    fn new() -> Result<Self> {
        Ok(Self {
            elapsed: Duration::ZERO,
            done: 0,
            failed: 0,
            first_failure: None,
            delays: Histogram::new(3)?,
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "2^52 changes take longer than any measurement")]
    fn row(self, kind: Change, plan: &Plan, [sent, lost, quiet_sent, quiet_lost]: [u64; 4]) -> StormRow {
        let at = |quantile| milliseconds(Duration::from_micros(self.delays.value_at_quantile(quantile)));
        StormRow {
            kind,
            wanted_a_second: plan.changes_a_second,
            done_a_second: self.done as f64 / self.elapsed.as_secs_f64(),
            done: self.done,
            failed: self.failed,
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            first_failure: self.first_failure,
            sent,
            lost,
            drops: BTreeMap::new(),
            quiet_sent,
            quiet_lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_changes_something() {
        for kind in [Change::Limit, Change::Egress] {
            for number in [0, 5, 64, 6400] {
                let (tenant, body) = kind.of(number).unwrap();
                let (same, next) = kind.of(number + u64::from(TENANTS)).unwrap();
                assert_eq!(tenant.path(), same.path());
                assert_ne!(body, next, "{kind:?} {number}");
            }
        }
    }

    #[test]
    fn clients_that_find_no_daemon_tell_why() {
        let plan = Plan { changes_a_second: 1000, seconds: 1, load: 0 };
        let outcome = storm(&plan, Change::Limit, Path::new("/nonexistent/control.sock")).unwrap();
        assert!(outcome.failed > 0 && outcome.done == 0);
        assert!(outcome.first_failure.unwrap().contains("/nonexistent/control.sock"));
    }
}

//! Workers with and without queues: traffic passes, replies come back, and status tells who sends for whom.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::demo::LabOptions;
use control::demo::topology::PODS;
use serde_json::Value;
use spillway_tests::fixture::Fixture;
use spillway_tests::peers::Peer;
use spillway_tests::stream::Stream;

/// A veth holds 256 frames, of all streams together: where other programs have the cores, its receiver may have to wait
/// for a quarter of a second.
const PAUSE: Duration = Duration::from_millis(20);

/// Queues of one worker on one side, and the worker that sends for it there.
type Way = (Vec<u64>, u64);

#[test]
fn one_queue_in_and_four_out_serve_four_workers() -> Result<()> {
    let inside = [(vec![0], 0), (vec![], 0), (vec![], 0), (vec![], 0)];
    let outside = [(vec![0], 0), (vec![1], 1), (vec![2], 2), (vec![3], 3)];
    require_passage([1, 4], Some(4), [&inside, &outside])
}

#[test]
fn four_queues_in_and_two_out_serve_three_workers() -> Result<()> {
    let inside = [(vec![0, 3], 0), (vec![1], 1), (vec![2], 2)];
    let outside = [(vec![0], 0), (vec![1], 1), (vec![], 0)];
    require_passage([4, 2], Some(3), [&inside, &outside])
}

#[test]
fn two_queues_on_each_side_serve_four_workers() -> Result<()> {
    let both = [(vec![0], 0), (vec![1], 1), (vec![], 0), (vec![], 1)];
    require_passage([2, 2], Some(4), [&both, &both])
}

#[test]
fn more_queues_than_workers_are_dealt_out() -> Result<()> {
    let inside = [(vec![0, 2, 4], 0), (vec![1, 3], 1)];
    let outside = [(vec![0], 0), (vec![1], 1)];
    require_passage([5, 2], None, [&inside, &outside])
}

/// Sends flows of all pods through a gateway with so many queues inside and outside, and so many workers; compares what
/// status tells of each worker.
fn require_passage(queues: [u32; 2], workers: Option<u32>, ways: [&[Way]; 2]) -> Result<()> {
    let [inside_queues, outside_queues] = queues;
    let options = LabOptions { inside_queues, outside_queues, ..LabOptions::default() };
    let Some(fixture) = Fixture::with_layout(&options, workers)? else { return Ok(()) };
    let peer = Peer::udp_echo(&fixture.lab, 7)?;
    fixture.require_service()?;
    let pods = PODS.iter().cycle().take(4 * PODS.len());
    let streams = pods
        .map(|pod| Stream::start_with_pause(&fixture.lab, pod, peer.address(), PAUSE))
        .collect::<Result<Vec<_>>>()?;
    streams.iter().try_for_each(|stream| stream.until_answered(100))?;
    for stream in streams {
        let summary = stream.finish();
        ensure!(
            summary.missing.is_empty() && summary.seen_as.len() == 1,
            "{summary:?}, {}",
            fixture.gateway.status()?
        );
    }
    require_layout(&fixture, ways)?;
    let status = fixture.gateway.status()?;
    let workers = status["workers"].as_array().context("workers")?;
    ensure!(
        workers.iter().filter(|worker| worker["sessions"] != 0).count() > 1,
        "sessions are spread: {status}"
    );
    for (worker, index) in workers.iter().zip(0..) {
        let lacks = ways.iter().any(|ways| ways[index].0.is_empty());
        let is_used = worker["sessions"] != 0;
        let others = worker["sentByOthers"].as_u64().context("sentByOthers")?;
        ensure!((others > 0) == (lacks && is_used), "worker {index}: {status}");
        ensure!(worker["panics"] == 0, "{status}");
    }
    ensure!(fixture.drops("tx_ring_full")? == 0 && fixture.drops("interface_away")? == 0, "{status}");
    Ok(())
}

fn require_layout(fixture: &Fixture, ways: [&[Way]; 2]) -> Result<()> {
    let status = fixture.gateway.status()?;
    let workers = status["workers"].as_array().context("workers")?;
    for (side, ways) in ["inside", "outside"].into_iter().zip(ways) {
        let told: Vec<_> =
            workers.iter().map(|worker| way_of(worker, side)).collect::<Option<_>>().context("queues")?;
        ensure!(told == ways, "{side}: {told:?}");
    }
    let text = fixture.gateway.installation().cli(&["status"])?;
    let others: BTreeSet<_> =
        ways.into_iter().flatten().filter(|way| way.0.is_empty()).map(|way| way.1).collect();
    for sender in others {
        ensure!(text.contains(&format!("none, sends by worker {sender}")), "{text}");
    }
    Ok(())
}

fn way_of(worker: &Value, side: &str) -> Option<Way> {
    let queues = worker["queues"].as_array()?.iter().filter(|queue| queue["side"] == side);
    let numbers = queues.map(|queue| queue["queue"].as_u64()).collect::<Option<_>>()?;
    Some((numbers, worker[format!("{side}Sender")].as_u64()?))
}

//! Several queues and as many workers: whichever receives a frame, its owner forwards it.

use anyhow::{Context, Result, ensure};
use control::demo::LabOptions;
use control::demo::topology::PODS;
use spillway_tests::fixture::Fixture;
use spillway_tests::peers::Peer;
use spillway_tests::stream::Stream;

const QUEUES: u32 = 4;

#[test]
fn frames_are_handed_to_the_worker_that_owns_them() -> Result<()> {
    let options = LabOptions { inside_queues: QUEUES, outside_queues: QUEUES, ..LabOptions::default() };
    let Some(fixture) = Fixture::with_layout(&options, None)? else { return Ok(()) };
    let peer = Peer::udp_echo(&fixture.lab, 7)?;
    fixture.require_service()?;
    // Eight flows of four pods, which the kernel spreads over the queues by hash.
    let streams = PODS
        .iter()
        .chain(&PODS)
        .map(|pod| Stream::start(&fixture.lab, pod, peer.address()))
        .collect::<Result<Vec<_>>>()?;
    for stream in &streams {
        stream.until_answered(200)?;
    }
    for stream in streams {
        let summary = stream.finish();
        assert_eq!((summary.missing.len(), summary.seen_as.len()), (0, 1), "{summary:?}");
    }
    let status = fixture.gateway.status()?;
    let workers = status["workers"].as_array().context("status lists workers")?;
    let sum = |key: &str| workers.iter().filter_map(|worker| worker[key].as_u64()).sum::<u64>();
    assert_eq!(workers.len(), QUEUES as usize, "a worker for each queue");
    assert!(
        workers.iter().filter(|worker| worker["sessions"] != 0).count() > 1,
        "sessions are spread: {status}"
    );
    assert!(sum("handedOver") > 0, "some frames came to another worker: {status}");
    ensure!(sum("panics") == 0, "{status}");
    Ok(())
}

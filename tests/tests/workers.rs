//! Several queues and as many workers: whichever receives a frame, its owner forwards it.

use std::collections::BTreeMap;
use std::fs;
use std::thread;

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

#[test]
fn other_threads_keep_off_the_workers_cores_and_are_in_no_hurry() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    fixture.require_service()?;
    let status = fixture.gateway.status()?;
    let core = status["workers"][0]["core"].as_u64().context("the worker has a core")?;
    let (mut workers, mut others) = (0, 0);
    for task in fs::read_dir(format!("/proc/{}/task", fixture.gateway.pid()))? {
        let task = task?.path();
        let text = fs::read_to_string(task.join("status"))?;
        let fields: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once(":\t")).collect();
        let (name, cores) = (fields["Name"], fields["Cpus_allowed_list"]);
        // The policy is the forty-first field, and the first two are a number and a name in parentheses (proc(5)).
        let stat = fs::read_to_string(task.join("stat"))?;
        let policy = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(38));
        if name.starts_with("worker-") {
            // Its companion runs when nobody else wants the core.
            let wanted = if name.ends_with("-idle") { "5" } else { "1" };
            assert_eq!((cores, policy), (core.to_string().as_str(), Some(wanted)), "{name}");
            workers += 1;
        } else {
            let is_beside = !allows(cores, core)?;
            assert!(is_beside || thread::available_parallelism()?.get() == 1, "{name} runs on {cores}");
            assert_eq!(policy, Some("0"), "{name}");
            others += 1;
        }
    }
    assert!(workers == 2 && others >= 3, "{workers} and {others}");
    Ok(())
}

/// Tells whether a core is in a list such as `0-2,5`.
fn allows(cores: &str, core: u64) -> Result<bool> {
    let mut is_in = false;
    for range in cores.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        is_in |= (first.parse()?..=last.parse()?).contains(&core);
    }
    Ok(is_in)
}

//! Who watches over the gateway hears the truth: while it lives, while a part of it is stuck, and while it stops.

use std::time::Duration;

use anyhow::{Context, Result};
use control::demo::command::{self, text};
use control::demo::gateway::{Gateway, Installation};
use control::demo::process::Process;
use control::demo::server::Server;
use control::demo::topology::{BLUE, Host, INSIDE, OUTSIDE, PODS};
use control::demo::{Lab, LabOptions, wait};
use serde_json::Value;
use spillway_tests::doctor::edit_config;
use spillway_tests::fixture::{Fixture, LIMIT, executable, skipped};
use spillway_tests::manager::{Frozen, Manager};

const HEALTH: &str = "127.0.0.1:9478";

#[test]
fn a_stuck_worker_is_named_starves_the_watchdog_and_is_taken_back_when_it_moves() -> Result<()> {
    let Some((fixture, manager)) = managed(2)? else { return Ok(()) };
    until_heard(&manager, "READY=1")?;
    until_heard(&manager, "WATCHDOG=1")?;
    require_fitness(&fixture, "healthz", "")?;
    require_fitness(&fixture, "readyz", "")?;
    let frozen = Frozen::freeze(process(&fixture)?, "worker-1")?;
    until_logged(&fixture, "worker 1 is stuck")?;
    let line = logged(&fixture, "worker 1 is stuck")?;
    assert!(line.contains(&format!("thread={}", frozen.thread)), "{line}");
    assert!(line.contains("core=") && line.contains("thread state t (tracing stop)"), "{line}");
    manager.heard()?;
    wait::until("the worker has been stuck for three seconds", LIMIT, || {
        let health = fitness(&fixture, "healthz")?.1.to_string();
        Ok(["3.", "4.", "5."].iter().any(|time| health.contains(&format!("for {time}"))).then_some(()))
    })?;
    let heard = manager.heard()?;
    let is_told = heard.iter().all(|line| line.starts_with("STATUS=not ready: worker 1 is stuck"));
    assert!(is_told && !heard.is_empty(), "the watchdog was fed for a stuck worker: {heard:?}");
    require_fitness(&fixture, "healthz", "worker 1 is stuck")?;
    require_fitness(&fixture, "readyz", "worker 1 is stuck")?;
    let health = fixture.gateway.installation().output(&["health", "--json"])?;
    let told: Value = serde_json::from_slice(&health.stdout)?;
    assert!(
        !health.status.success() && told["live"]["ok"] == false && told["ready"]["ok"] == false,
        "{told}"
    );
    frozen.thaw()?;
    until_heard(&manager, "STATUS=ready")?;
    until_heard(&manager, "WATCHDOG=1")?;
    until_logged(&fixture, "worker 1 turns again")?;
    wait::until("the gateway is well", LIMIT, || {
        Ok(fixture.gateway.installation().output(&["health"])?.status.success().then_some(()))
    })?;
    assert_eq!(fixture.gateway.log().matches("worker 1 is stuck").count(), 1, "{}", fixture.gateway.log());
    Ok(())
}

#[test]
fn a_gateway_without_an_interface_lives_and_is_not_ready() -> Result<()> {
    let Some((fixture, _manager)) = managed(1)? else { return Ok(()) };
    let gateway = fixture.lab.namespace(Host::Gateway);
    for device in [INSIDE, OUTSIDE] {
        gateway.ip(&format!("link set {device} down"))?;
        wait::until("the gateway is not ready", LIMIT, || {
            let (status, told) = fitness(&fixture, "readyz")?;
            Ok((status == 503 && told.to_string().contains(device)).then_some(()))
        })?;
        require_fitness(&fixture, "healthz", "")?;
        let output = fixture.gateway.installation().output(&["health"])?;
        assert!(!output.status.success() && text(&output.stdout).contains("not ready"), "{output:?}");
        assert!(fixture.gateway.installation().output(&["health", "--live"])?.status.success());
        gateway.ip(&format!("link set {device} up"))?;
        wait::until("the gateway is ready", LIMIT, || {
            Ok((fitness(&fixture, "readyz")?.0 == 200).then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn a_stop_says_so_first_refuses_changes_withdraws_and_ends_even_if_a_worker_does_not() -> Result<()> {
    let Some((mut fixture, manager)) = managed(1)? else { return Ok(()) };
    fixture.gateway.add_tenant(&BLUE)?;
    fixture.seen_as(&PODS[0])?;
    let process = process(&fixture)?;
    let frozen = Frozen::freeze(process, "worker-0")?;
    fixture.gateway.ask_to_stop()?;
    // The daemon waits some seconds for the worker, so that all of this is seen while it stops.
    until_logged(&fixture, "stopping the workers")?;
    require_fitness(&fixture, "readyz", "the gateway is stopping")?;
    let installation = fixture.gateway.installation().clone();
    let refused = installation.output(&["tenant", "remove", BLUE.name])?;
    assert!(!refused.status.success(), "a change was taken");
    assert!(text(&refused.stderr).contains("the daemon is stopping"), "{}", text(&refused.stderr));
    let links = fixture.lab.namespace(Host::Gateway).ip("-brief link show type macvlan")?;
    assert_eq!(links, "", "withdrawn before the workers stop");
    wait::until("the daemon has ended but for the frozen thread", LIMIT, || {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        Ok(status.contains("State:\tZ").then_some(()))
    })?;
    frozen.thaw()?; // until then the kernel does not let the process go
    let status = fixture.gateway.until_ended()?;
    assert!(status.success(), "{status}: {}", fixture.gateway.log());
    let heard = manager.heard()?;
    assert!(heard.contains(&"STOPPING=1".to_owned()), "{heard:?}");
    let log = fixture.gateway.log();
    let steps = [" stopping\n", "removing tenant link", "stopping the workers", "worker 0 does not stop"];
    let places: Vec<_> = steps.iter().map(|step| log.find(step)).collect();
    assert!(places.is_sorted() && places[0].is_some(), "{places:?} in {log}");
    assert_eq!(fixture.attached()?, [true, true], "the programs guard the interfaces");
    Ok(())
}

#[test]
fn a_daemon_that_cannot_start_says_so_and_takes_its_time_to_end_so_that_the_next_does_not_flood_the_log()
-> Result<()> {
    if skipped()? {
        return Ok(());
    }
    let lab = Lab::build(&LabOptions::default())?;
    let mut installation = Installation::write(&lab, &executable()?)?;
    edit_config(&installation, "[cluster]", "[clutter]")?;
    let _manager = Manager::engage(&mut installation, Duration::from_secs(1))?;
    let mut daemon = Process::start(&mut installation.daemon(&lab), &installation.log)?;
    daemon.until_printed("unknown field `clutter`", LIMIT)?;
    assert_eq!(daemon.ended()?, None, "the service manager would start the next at once");
    assert!(!daemon.until_ended(LIMIT)?.success());
    Ok(())
}

/// Starts a gateway with so many workers under a service manager that wants to be fed every second.
fn managed(workers: u32) -> Result<Option<(Fixture, Manager)>> {
    if skipped()? {
        return Ok(None);
    }
    let lab = Lab::build(&LabOptions::default())?;
    let server = Server::start(&lab)?;
    let mut installation = Installation::write(&lab, &executable()?)?;
    edit_config(&installation, "[cluster]", &format!("[workers]\ncount = {workers}\n\n[cluster]"))?;
    edit_config(&installation, "[control]", &format!("[control]\nhealth = \"{HEALTH}\""))?;
    let manager = Manager::engage(&mut installation, Duration::from_secs(1))?;
    let gateway = Gateway::start(&lab, installation)?;
    Ok(Some((Fixture { gateway, server, lab }, manager)))
}

fn process(fixture: &Fixture) -> Result<i64> {
    fixture.gateway.status()?["pid"].as_i64().context("a status has the process")
}

/// Asks over plain HTTP, as a probe would; returns status code and body.
fn fitness(fixture: &Fixture, path: &str) -> Result<(u16, Value)> {
    let url = format!("http://{HEALTH}/{path}");
    let mut curl = fixture.lab.namespace(Host::Gateway).command("curl");
    let printed = command::run_ok(curl.args(["-sS", "-m", "10", "-w", "\n%{http_code}", &url]), LIMIT)?;
    let (body, status) = printed.trim_end().rsplit_once('\n').context("a body and a status")?;
    Ok((status.parse()?, serde_json::from_str(body)?))
}

/// Fails unless all is well, or not for this reason.
fn require_fitness(fixture: &Fixture, path: &str, reason: &str) -> Result<()> {
    let (status, told) = fitness(fixture, path)?;
    let is_well = reason.is_empty();
    assert_eq!((status, told["ok"].as_bool()), (if is_well { 200 } else { 503 }, Some(is_well)), "{told}");
    assert!(told["reasons"].to_string().contains(reason), "{told}");
    Ok(())
}

fn until_heard(manager: &Manager, message: &str) -> Result<()> {
    wait::until(&format!("the service manager hears {message}"), LIMIT, || {
        Ok(manager.heard()?.iter().any(|heard| heard == message).then_some(()))
    })
}

fn until_logged(fixture: &Fixture, words: &str) -> Result<()> {
    wait::until(&format!("`{words}` is logged"), LIMIT, || {
        Ok(fixture.gateway.log().contains(words).then_some(()))
    })
}

fn logged(fixture: &Fixture, words: &str) -> Result<String> {
    let log = fixture.gateway.log();
    log.lines().find(|line| line.contains(words)).map(str::to_owned).with_context(|| format!("no `{words}`"))
}

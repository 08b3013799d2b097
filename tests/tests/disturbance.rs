//! Somebody else at the gateway's interfaces: what he takes is noticed, told and put back, and nothing leaks meanwhile.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use control::demo::capture::Capture;
use control::demo::command;
use control::demo::topology::{BLUE, GATEWAY_INSIDE, Host, INSIDE, OUTSIDE, PODS};
use control::demo::wait;
use serde_json::Value;
use spillway_tests::doctor::edit_config;
use spillway_tests::fixture::{Fixture, LIMIT};
use spillway_tests::peers::Peer;
use spillway_tests::stream::Stream;

/// Times that each program is taken from each interface.
const TIMES: u64 = 5;

#[test]
fn programs_that_somebody_detaches_are_put_back_and_nothing_leaks_meanwhile() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    require_service_goes_on(&fixture, || {
        for _ in 0..TIMES {
            for device in [INSIDE, OUTSIDE] {
                for pin in ["link", "guard"] {
                    disturb(&fixture, device, || detach(&fixture, device, pin))?;
                }
            }
        }
        Ok(())
    })?;
    for device in [INSIDE, OUTSIDE] {
        let told = interface(&fixture, device)?;
        assert_eq!(told["disturbances"], 2 * TIMES, "{told}");
        assert_eq!(told["reattachments"], 0, "the sockets stay: {told}");
    }
    let log = fixture.gateway.log();
    for words in ["somebody took the XDP program from the inside", "somebody took the second line behind it"]
    {
        assert!(log.lines().any(|line| line.contains("ERROR") && line.contains(words)), "{words}: {log}");
    }
    assert!(fixture.gateway.installation().cli(&["status"])?.contains("somebody else took"));
    Ok(())
}

#[test]
fn what_is_taken_from_the_generic_hook_is_put_back_too() -> Result<()> {
    let Some(mut fixture) = Fixture::with_tenants()? else { return Ok(()) };
    fixture.gateway.stop()?;
    let installation = fixture.gateway.installation().clone();
    installation.detach(&fixture.lab)?;
    wait::until("the interfaces are free", LIMIT, || {
        Ok((fixture.attached()? == [false, false]).then_some(()))
    })?;
    edit_config(&installation, "[xdp]", "[xdp]\nmode = \"generic\"")?;
    fixture.start_again()?;
    require_service_goes_on(&fixture, || {
        for device in [INSIDE, OUTSIDE] {
            for pin in ["link", "guard"] {
                disturb(&fixture, device, || detach(&fixture, device, pin))?;
            }
        }
        Ok(())
    })?;
    let told = interface(&fixture, INSIDE)?;
    assert_eq!((&told["xdpMode"], &told["disturbances"]), (&"generic".into(), &2.into()), "{told}");
    Ok(())
}

#[test]
fn another_program_in_the_place_of_ours_is_removed() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    require_service_goes_on(&fixture, || {
        // That of the outside lets pods' packets pass; so it is a bad guest inside, and the other way round.
        for (device, other) in [(INSIDE, OUTSIDE), (OUTSIDE, INSIDE)] {
            let guest = pins(&fixture, other)?.join("program");
            let guest = guest.to_str().context("a path")?;
            let attach = ["net", "attach", "xdp", "pinned", guest, "dev", device];
            disturb(&fixture, device, || {
                wait::until("the guest is faster than the daemon", LIMIT, || {
                    detach(&fixture, device, "link")?;
                    let attached = bpftool(&fixture, &attach)?;
                    Ok(attached.then_some(()))
                })
            })?;
        }
        Ok(())
    })
}

#[test]
fn pins_that_somebody_removes_are_made_again() -> Result<()> {
    let Some(mut fixture) = Fixture::with_tenants()? else { return Ok(()) };
    require_service_goes_on(&fixture, || {
        for device in [INSIDE, OUTSIDE] {
            disturb(&fixture, device, || Ok(std::fs::remove_dir_all(pins(&fixture, device)?)?))?;
        }
        Ok(())
    })?;
    fixture.gateway.kill()?;
    assert_eq!(fixture.attached()?, [true, true], "the programs outlive the daemon as before");
    fixture.start_again()?;
    fixture.require_service()
}

#[test]
fn what_is_taken_while_an_interface_has_another_name_is_put_back_with_it() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let gateway = fixture.lab.namespace(Host::Gateway);
    require_service_goes_on(&fixture, || {
        gateway.ip(&format!("link set {INSIDE} name elsewhere"))?;
        wait::until("the interface is missed", LIMIT, || {
            Ok(interface(&fixture, INSIDE)?["trouble"].is_string().then_some(()))
        })?;
        std::fs::remove_dir_all(pins(&fixture, INSIDE)?)?;
        gateway.ip(&format!("link set elsewhere name {INSIDE}"))?;
        wait::until("the interface is back", LIMIT, || {
            Ok(interface(&fixture, INSIDE)?["trouble"].is_null().then_some(()))
        })
        .with_context(|| fixture.gateway.log())
    })?;
    assert!(pins(&fixture, INSIDE)?.join("link").exists());
    Ok(())
}

#[test]
fn the_kernel_refuses_to_take_the_program_away_without_its_link() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let gateway = fixture.lab.namespace(Host::Gateway);
    let guest = pins(&fixture, OUTSIDE)?.join("program");
    let guest = guest.to_str().context("a path")?;
    assert!(gateway.ip(&format!("link set dev {INSIDE} xdp off")).is_err());
    for attempt in [
        &["net", "detach", "xdp", "dev", INSIDE][..],
        &["net", "attach", "xdp", "pinned", guest, "dev", INSIDE, "overwrite"],
        &["net", "attach", "xdpgeneric", "pinned", guest, "dev", INSIDE],
    ] {
        assert!(!bpftool(&fixture, attempt)?, "{attempt:?}");
    }
    let told = interface(&fixture, INSIDE)?;
    assert_eq!(told["disturbances"], 0, "{told}");
    fixture.require_service()
}

/// Lets every pod talk to the server, and one send to the NIC's own MAC besides, while something happens; fails if a
/// pod's address leaves, a pod changes its port, or the gateway does not forward in the end.
fn require_service_goes_on(fixture: &Fixture, happens: impl FnOnce() -> Result<()>) -> Result<()> {
    fixture.require_service()?;
    let peer = Peer::udp_echo(&fixture.lab, 7)?;
    let streams = PODS[1..]
        .iter()
        .map(|pod| Stream::start(&fixture.lab, pod, peer.address()))
        .collect::<Result<Vec<_>>>()?;
    streams.iter().try_for_each(|stream| stream.until_answered(50))?;
    fixture.lab.route_pod(&PODS[0], GATEWAY_INSIDE)?;
    let stray = Stream::start(&fixture.lab, &PODS[0], peer.address())?;
    let capture = Capture::of_outside_switch(&fixture.lab)?;
    happens()?;
    streams.iter().try_for_each(|stream| stream.until_answered(100))?;
    let recording = capture.finish()?;
    ensure!(recording.pod_sources()? == 0, "a pod's address left");
    ensure!(
        recording.count(&format!("udp and src host {}", BLUE.egress))? > 0,
        "the capture missed the traffic"
    );
    let stray = stray.finish();
    ensure!(stray.answered == 0 && stray.sent + stray.refused > 0, "{stray:?}");
    for stream in streams {
        let summary = stream.finish();
        ensure!(summary.seen_as.len() == 1, "a pod changed its port: {summary:?}");
    }
    fixture.lab.route_pod(&PODS[0], BLUE.gateway)?;
    fixture.require_service()
}

/// Does something to an interface, and waits until the daemon has noticed and made it good.
fn disturb(fixture: &Fixture, device: &str, happens: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = interface(fixture, device)?["disturbances"].as_u64().context("disturbances")?;
    happens()?;
    wait::until("the daemon makes it good", LIMIT, || {
        let told = interface(fixture, device)?;
        let is_noticed = told["disturbances"].as_u64().is_some_and(|count| count > before);
        let is_whole = told["trouble"].is_null() && fixture.attached()? == [true, true];
        let is_put_back = fixture.gateway.log().lines().last().is_some_and(|line| line.contains("again"));
        Ok((is_noticed && is_whole && is_put_back).then_some(()))
    })
    .with_context(|| format!("{device}; daemon:\n{}", fixture.gateway.log()))
}

fn detach(fixture: &Fixture, device: &str, pin: &str) -> Result<()> {
    let pin = pins(fixture, device)?.join(pin);
    ensure!(bpftool(fixture, &["link", "detach", "pinned", pin.to_str().context("a path")?])?);
    Ok(())
}

/// Runs bpftool in the gateway's namespace; tells whether it succeeded.
fn bpftool(fixture: &Fixture, arguments: &[&str]) -> Result<bool> {
    let mut bpftool = fixture.lab.namespace(Host::Gateway).command("bpftool");
    Ok(command::run(bpftool.args(arguments), LIMIT)?.status.success())
}

/// Returns the directory of an interface's pins.
fn pins(fixture: &Fixture, device: &str) -> Result<PathBuf> {
    let side = if device == INSIDE { "inside-" } else { "outside-" };
    let mut entries = std::fs::read_dir(fixture.lab.pin_dir())?.filter_map(|entry| Some(entry.ok()?.path()));
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(side));
    entries.find(named).with_context(|| format!("no pins of {device}"))
}

fn interface(fixture: &Fixture, device: &str) -> Result<Value> {
    let status = fixture.gateway.status()?;
    let mut interfaces = status["interfaces"].as_array().context("interfaces")?.iter();
    interfaces.find(|it| it["name"] == device).cloned().with_context(|| format!("{device} in {status}"))
}

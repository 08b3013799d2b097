//! The daemon's life: what it keeps over a restart, what it leaves behind, and that there is one of it.

use std::path::Path;

use anyhow::{Context, Result};
use control::demo::command::{self, text};
use control::demo::gateway::Installation;
use control::demo::namespace::Namespace;
use control::demo::process::Process;
use control::demo::topology::{
    BLUE, GATEWAY_INSIDE, Host, INSIDE, NODES, OUTSIDE, PODS, RED, ROUTE_PROTOCOL,
};
use control::demo::{Lab, LabOptions, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use spillway_tests::fixture::{Fixture, LIMIT, skipped};
use spillway_tests::manifests;

#[test]
fn tenants_added_over_the_socket_survive_a_restart() -> Result<()> {
    let Some(mut fixture) = Fixture::with_tenants()? else { return Ok(()) };
    fixture.require_service()?;
    let status = fixture.gateway.stop()?;
    assert!(status.success(), "{status}: {}", fixture.gateway.log());
    fixture.start_again()?;
    let listed = fixture.gateway.installation().json(&["tenant", "list"])?.to_string();
    assert!(listed.contains(BLUE.name) && listed.contains(RED.name), "{listed}");
    fixture.require_service()
}

#[test]
fn a_clean_stop_leaves_nothing_that_it_made() -> Result<()> {
    if skipped()? {
        return Ok(());
    }
    let lab = Lab::build(&LabOptions::default())?;
    let gateway = lab.namespace(Host::Gateway);
    for device in [INSIDE, OUTSIDE] {
        // Unlike what the daemon sets and what the kernel starts with, so that neither passes for restored.
        let own = ["arp_announce=1", "rp_filter=2"].map(|own| format!("net.ipv4.conf.{device}.{own}"));
        gateway.run("sysctl", &["-q", "-w", &own[0], &own[1]])?;
    }
    let before = settings(&gateway)?;
    let mut fixture = Fixture::start(lab)?;
    fixture.gateway.add_tenant(&BLUE)?;
    fixture.require_links_of_blue(true)?;
    assert_ne!(settings(&gateway)?, before, "the daemon isolates its interfaces");
    fixture.gateway.stop()?;
    fixture.require_links_of_blue(false)?;
    assert_eq!(settings(&gateway)?, before);
    let own = gateway.ip(&format!("-brief address show dev {INSIDE}"))?;
    assert!(own.contains(&GATEWAY_INSIDE.to_string()), "the host's own address is gone: {own}");
    Ok(())
}

#[test]
fn what_it_did_not_make_stays_when_it_stops() -> Result<()> {
    let Some(mut fixture) = Fixture::without_tenants()? else { return Ok(()) };
    let gateway = fixture.lab.namespace(Host::Gateway);
    gateway.ip(&format!("addr add {}/32 dev {OUTSIDE}", BLUE.egress))?;
    gateway.ip(&format!("route add 10.140.0.0/24 via {} dev {INSIDE} proto static", NODES[0].address))?;
    fixture.gateway.add_tenant(&BLUE)?;
    fixture.seen_as(&PODS[0])?;
    fixture.gateway.stop()?;
    let addresses = gateway.ip(&format!("-brief address show dev {OUTSIDE}"))?;
    assert!(addresses.contains(&BLUE.egress.to_string()), "{addresses}");
    assert!(gateway.ip("route show proto static")?.contains("10.140.0.0/24"));
    Ok(())
}

/// systemd sends SIGTERM to what is left as soon as the unit's ExecStop has sent SIGINT: both may be there when the daemon
/// looks.
#[test]
fn a_stop_takes_links_away_also_if_sigterm_comes_with_it() -> Result<()> {
    let Some(mut fixture) = Fixture::without_tenants()? else { return Ok(()) };
    fixture.gateway.stop()?;
    let installation = fixture.gateway.installation().clone();
    for round in 0..5 {
        let mut process = Process::start(installation.daemon(&fixture.lab).arg("--keep"), &installation.log)?;
        process.until("the daemon answers", LIMIT, || {
            Ok(installation.output(&["status"])?.status.success().then_some(()))
        })?;
        if round == 0 {
            fixture.gateway.add_tenant(&BLUE)?; // the others find it in the state directory
        }
        fixture.require_links_of_blue(true)?;
        let daemon = Pid::from_raw(i32::try_from(process.id())?);
        for signal in [Signal::SIGSTOP, Signal::SIGTERM, Signal::SIGINT, Signal::SIGCONT] {
            kill(daemon, signal)?;
        }
        let status = process.until_ended(LIMIT)?;
        assert!(status.success(), "{status}: {}", process.output());
        fixture.require_links_of_blue(false)?;
    }
    Ok(())
}

#[test]
fn a_hangup_ends_nothing() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    kill(Pid::from_raw(i32::try_from(fixture.gateway.pid())?), Signal::SIGHUP)?;
    fixture.require_service()
}

#[test]
fn a_removed_tenant_leaves_no_link_and_no_address() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    fixture.require_links_of_blue(true)?;
    fixture.gateway.remove_tenant(&BLUE)?;
    let links = fixture.lab.namespace(Host::Gateway).ip("-brief link show type macvlan")?;
    assert!(!links.contains("02:53:c0:a8:63:0d") && links.contains("02:53:c0:a8:63:0e"), "{links}");
    Ok(())
}

#[test]
fn a_second_daemon_on_the_same_socket_is_refused() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    require_refusal(&fixture, fixture.gateway.installation())
}

#[test]
fn a_second_daemon_on_the_same_interfaces_is_refused() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let first = fixture.gateway.installation();
    let directory = fixture.lab.directory();
    let files = |text: String| {
        text.replace("spillway.sock", "second.sock")
            .replace("/state\"", "/second-state\"")
            .replace("/sys/fs/bpf/spillway-", "/sys/fs/bpf/spillway-second-")
    };
    let config = directory.join("second.toml");
    std::fs::write(&config, files(std::fs::read_to_string(&first.config)?))?;
    let second = Installation { config, socket: directory.join("second.sock"), ..first.clone() };
    let outcome = require_refusal(&fixture, &second);
    let pins = Path::new("/sys/fs/bpf").join(format!("spillway-second-{}", fixture.lab.name()));
    assert!(!pins.exists(), "the second daemon pinned its own program");
    outcome
}

#[test]
fn detach_is_refused_while_the_daemon_runs_and_frees_the_interfaces_afterwards() -> Result<()> {
    let Some(mut fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let installation = fixture.gateway.installation().clone();
    let refused = installation.detach(&fixture.lab)?;
    assert!(!refused.status.success(), "detached under a running daemon: {}", text(&refused.stdout));
    fixture.require_service()?;
    fixture.gateway.stop()?;
    assert_eq!(fixture.attached()?, [true, true], "the programs guard the interfaces while no daemon runs");
    let done = installation.detach(&fixture.lab)?;
    assert!(done.status.success(), "{}", text(&done.stderr));
    // The kernel detaches a program some time after its last pin is gone.
    wait::until("the interfaces are free", LIMIT, || {
        Ok((fixture.attached()? == [false, false]).then_some(()))
    })?;
    Ok(())
}

#[test]
fn the_service_is_started_again_for_ever() -> Result<()> {
    let unit = std::fs::read_to_string(manifests::root().join("deploy/spillway.service"))?;
    let (general, rest) = unit.split_once("[Service]").context("no [Service]")?;
    assert!(general.lines().any(|line| line == "StartLimitIntervalSec=0"), "{general}");
    assert!(rest.lines().any(|line| line == "Restart=always"), "{rest}");
    Ok(())
}

#[test]
fn the_service_is_watched_and_keeps_its_sessions_over_a_restart() -> Result<()> {
    let unit = std::fs::read_to_string(manifests::root().join("deploy/spillway.service"))?;
    // systemd removes the runtime directory, where the sessions are, when the service stops unless told otherwise.
    for line in ["Type=notify", "WatchdogSec=60", "RuntimeDirectory=spillway", "RuntimeDirectoryPreserve=yes"]
    {
        assert!(unit.lines().any(|own| own == line), "{line}");
    }
    Ok(())
}

#[test]
fn the_service_units_capabilities_are_enough() -> Result<()> {
    let Some(mut fixture) = Fixture::without_tenants()? else { return Ok(()) };
    fixture.gateway.stop()?;
    let unit = std::fs::read_to_string(manifests::root().join("deploy/spillway.service"))?;
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .context("no bounding set")?;
    let names: String =
        line.split_whitespace().map(|name| name.to_lowercase().replace("cap_", ",+")).collect();
    let installation = fixture.gateway.installation().clone();
    let mut daemon = fixture.lab.namespace(Host::Gateway).command("setpriv");
    daemon
        .args(["--no-new-privs", "--bounding-set", &format!("-all{names}"), "--"])
        .arg(&installation.executable);
    daemon.arg("run").arg("--config").arg(&installation.config);
    let mut process = Process::start(&mut daemon, &installation.log)?;
    process.until("the daemon answers", LIMIT, || {
        Ok(installation.output(&["status"])?.status.success().then_some(()))
    })?;
    fixture.gateway.add_tenant(&BLUE)?;
    fixture.seen_as(&PODS[0])?;
    fixture.gateway.remove_tenant(&BLUE)?;
    let status = process.stop()?;
    assert!(status.success(), "{status}: {}", process.output());
    Ok(())
}

/// Starts a second daemon, which has to end at once with a reason, and leave the first one alone.
fn require_refusal(fixture: &Fixture, second: &Installation) -> Result<()> {
    let output = command::run(&mut second.daemon(&fixture.lab), LIMIT).context("the second daemon runs")?;
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("error"), "no reason given: {}", text(&output.stderr));
    fixture.require_service()
}

/// Returns the gateway's kernel settings that concern ARP, source checks and forwarding.
fn settings(gateway: &Namespace) -> Result<String> {
    let names =
        "conf\\.(all|default|in0|out0)\\.(arp_|rp_filter|forwarding|accept_local|send_redirects)|ip_forward";
    gateway.run("sysctl", &["-a", "-r", &format!("^net\\.ipv4\\.({names})")])
}

trait Links {
    fn require_links_of_blue(&self, there: bool) -> Result<()>;
}

impl Links for Fixture {
    /// Fails unless the tenant's link, egress address and return routes are there, or all gone.
    fn require_links_of_blue(&self, there: bool) -> Result<()> {
        let gateway = self.lab.namespace(Host::Gateway);
        let links = gateway.ip("-brief link show type macvlan")?;
        assert_eq!(links.contains("02:53:c0:a8:63:0d"), there, "{links}");
        let addresses = gateway.ip(&format!("-brief address show dev {OUTSIDE}"))?;
        assert_eq!(addresses.contains(&BLUE.egress.to_string()), there, "{addresses}");
        let routes = gateway.ip(&format!("route show proto {ROUTE_PROTOCOL}"))?;
        for node in &NODES {
            assert_eq!(routes.contains(node.pod_cidr), there, "{routes}");
        }
        Ok(())
    }
}

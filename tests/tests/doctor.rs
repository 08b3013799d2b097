//! `spillway doctor` finds what is wrong with a gateway, and nothing where nothing is.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use control::demo::LabOptions;
use control::demo::command::{self, text};
use control::demo::topology::{BLUE, GATEWAY_OUTSIDE, Host, INSIDE, NODES, OUTSIDE, RED, ROUTER};
use spillway_tests::doctor::{
    Report, StandIn, edit_config, lab_without_daemon, play_daemon, stop_forwarding, word, write_kubeconfig,
};
use spillway_tests::fixture::{Fixture, LIMIT};

#[test]
fn a_healthy_gateway_has_no_findings() -> Result<()> {
    let Some(fixture) = healthy()? else { return Ok(()) };
    fixture.require_service()?;
    let report = Report::of(&fixture.lab, fixture.gateway.installation())?;
    assert_eq!((report.bad(), report.code), (BTreeSet::new(), Some(0)), "{report:?}");
    for probed in ["egress-address-taken", "gateway-address-taken", "own-address-taken"] {
        assert_eq!(word(report.finding(probed)?, "severity"), "fine");
    }
    fixture.require_service()
}

#[test]
fn the_report_is_grouped_and_fits_80_columns() -> Result<()> {
    let Some(fixture) = healthy()? else { return Ok(()) };
    let installation = fixture.gateway.installation();
    let mut doctor = fixture.lab.namespace(Host::Gateway).command(&installation.executable);
    let output = command::run(doctor.arg("doctor").arg("--config").arg(&installation.config), LIMIT)?;
    let printed = text(&output.stdout);
    for heading in ["Daemon", "Interfaces", "Networks and routes", "Kernel settings", "Clock"] {
        ensure!(printed.lines().any(|line| line == heading), "no {heading}: {printed}");
    }
    for line in printed.lines() {
        // A path is not broken, however long.
        let is_one_word = !line.trim().contains(' ');
        ensure!(line.chars().count() <= 80 || is_one_word, "`{line}` is too long");
    }
    Ok(())
}

#[test]
fn a_default_route_on_the_inside_interface_is_found() -> Result<()> {
    let Some(fixture) = healthy()? else { return Ok(()) };
    let gateway = fixture.lab.namespace(Host::Gateway);
    gateway.ip(&format!("route add default via {} dev {INSIDE} metric 50", NODES[0].address))?;
    let report = Report::of(&fixture.lab, fixture.gateway.installation())?;
    report.require_broken("default-route-inside", INSIDE)?;
    assert_eq!(report.bad(), BTreeSet::from(["default-route-inside"]));
    gateway.ip(&format!("route del default via {ROUTER} dev {OUTSIDE}"))?;
    let report = Report::of(&fixture.lab, fixture.gateway.installation())?;
    assert_eq!(report.bad(), BTreeSet::from(["default-route-inside", "no-default-route-outside"]));
    run_advice(&fixture, &report, "default-route-inside")?;
    let report = Report::of(&fixture.lab, fixture.gateway.installation())?;
    assert_eq!(report.bad(), BTreeSet::from(["no-default-route-outside"]));
    Ok(())
}

#[test]
fn settings_that_somebody_changed_are_found_and_the_advice_puts_them_right() -> Result<()> {
    let Some(fixture) = healthy()? else { return Ok(()) };
    let gateway = fixture.lab.namespace(Host::Gateway);
    let strict = "net.ipv4.conf.spw-c0a8630d.rp_filter=1";
    let changed = format!("net.ipv4.conf.{INSIDE}.arp_ignore=0");
    gateway.run("sysctl", &["-q", "-w", strict, &changed, "net.ipv4.ip_forward=1"])?;
    let report = Report::of(&fixture.lab, fixture.gateway.installation())?;
    report.require_broken("setting-changed", "arp_ignore is 0")?;
    report.require_broken("rp-filter-strict", "spw-c0a8630d")?;
    let found = ["setting-changed", "rp-filter-strict", "ip-forward-on"];
    assert_eq!(report.bad(), BTreeSet::from(found));
    for id in found {
        run_advice(&fixture, &report, id)?;
    }
    let report = Report::of(&fixture.lab, fixture.gateway.installation())?;
    assert_eq!((report.bad(), report.code), (BTreeSet::new(), Some(0)));
    Ok(())
}

#[test]
fn who_else_answers_for_the_gateways_addresses_is_found() -> Result<()> {
    let Some(fixture) = healthy()? else { return Ok(()) };
    let (server, node) = (fixture.lab.namespace(Host::Server), fixture.lab.namespace(Host::Node2));
    server.ip(&format!("address add {}/32 dev eth0", BLUE.egress))?;
    server.ip(&format!("address add {GATEWAY_OUTSIDE}/32 dev eth0"))?;
    node.ip(&format!("address add {}/32 dev eth0", RED.gateway))?;
    let stranger = format!("neigh replace 192.168.99.66 lladdr 02:53:c0:a8:63:0d dev {INSIDE}");
    fixture.lab.namespace(Host::Gateway).ip(&stranger)?;
    let report = Report::of(&fixture.lab, fixture.gateway.installation())?;
    report.require_broken("egress-address-taken", &BLUE.egress.to_string())?;
    report.require_broken("own-address-taken", &GATEWAY_OUTSIDE.to_string())?;
    report.require_broken("gateway-address-taken", &RED.gateway.to_string())?;
    report.require_broken("gateway-mac-elsewhere", "192.168.99.66")
}

#[test]
fn a_cluster_that_translates_pods_to_nodes_is_found_by_counters_that_grow() -> Result<()> {
    let Some(fixture) = healthy()? else { return Ok(()) };
    let installation = fixture.gateway.installation();
    let status = fixture.gateway.status()?;
    let counted = |count: u64| {
        let mut status = status.clone();
        status["tenants"][0]["status"]["drops"]["node_source"] = count.into();
        status.to_string()
    };
    let socket = fixture.lab.directory().join("stand-in.sock");
    let daemon = play_daemon(&socket, vec![counted(3), counted(12)])?;
    let mut doctor = fixture.lab.namespace(Host::Gateway).command(&installation.executable);
    doctor.arg("--socket").arg(&socket).args(["doctor", "--json", "--config"]).arg(&installation.config);
    let report = Report::read(&mut doctor)?;
    report.require_broken("wrong-snat-mode", "12 packets came from nodes, 9 of them just now")?;
    assert_eq!(report.bad(), BTreeSet::from(["wrong-snat-mode"]));
    ensure!(daemon.join().is_ok(), "the stand-in failed");
    Ok(())
}

#[test]
fn a_daemon_that_is_away_is_found_with_the_programs_that_it_left() -> Result<()> {
    let Some(mut fixture) = healthy()? else { return Ok(()) };
    let installation = fixture.gateway.installation().clone();
    let other = fixture.lab.directory().join("other.sock");
    let mut elsewhere = fixture.lab.namespace(Host::Gateway).command(&installation.executable);
    elsewhere.arg("--socket").arg(other).args(["doctor", "--json", "--config"]).arg(&installation.config);
    let report = Report::read(&mut elsewhere)?;
    report.require_broken("interface-held-by-another-daemon", INSIDE)?;
    assert_eq!(word(report.finding("programs-without-daemon")?, "severity"), "fine");
    fixture.gateway.kill()?;
    let report = Report::of(&fixture.lab, &installation)?;
    report.require_broken("daemon-not-running", "no daemon answers")?;
    report.require_broken("programs-without-daemon", "-native")?;
    assert_eq!(report.bad(), BTreeSet::from(["daemon-not-running", "programs-without-daemon"]));
    Ok(())
}

#[test]
fn a_daemon_in_generic_mode_without_a_capability_is_found() -> Result<()> {
    let Some((lab, installation)) = lab_without_daemon(&LabOptions::default())? else { return Ok(()) };
    edit_config(&installation, "[xdp]\n", "[xdp]\nmode = \"generic\"\n")?;
    let mut daemon = lab.namespace(Host::Gateway).command("setpriv");
    // CAP_SYS_ADMIN stands for CAP_PERFMON too, so that it starts.
    daemon.args(["--bounding-set", "-perfmon", "--"]).arg(&installation.executable);
    daemon.arg("run").arg("--config").arg(&installation.config);
    let mut process = lab.start(&mut daemon, &installation.log)?;
    process.until("the daemon answers", LIMIT, || {
        Ok(installation.output(&["status"])?.status.success().then_some(()))
    })?;
    let report = Report::of(&lab, &installation)?;
    report.require_broken("capability-missing", "CAP_PERFMON")?;
    assert_eq!(report.bad(), BTreeSet::from(["capability-missing", "xdp-not-native"]));
    // Asked from elsewhere, the socket answers, but the interfaces are not there.
    let mut elsewhere = std::process::Command::new(&installation.executable);
    elsewhere.args(["doctor", "--json", "--config"]).arg(&installation.config);
    Report::read(&mut elsewhere)?.require_broken("other-network-namespace", "process")?;
    process.stop()?;
    Ok(())
}

#[test]
fn interfaces_that_do_not_work_are_found_before_the_daemon_starts() -> Result<()> {
    let Some((lab, installation)) = lab_without_daemon(&LabOptions::default())? else { return Ok(()) };
    let gateway = lab.namespace(Host::Gateway);
    let bad = |expected: &[&str]| -> Result<()> {
        let report = Report::of(&lab, &installation)?;
        let mut expected: BTreeSet<&str> = expected.iter().copied().collect();
        expected.insert("daemon-not-running");
        assert_eq!((report.bad(), report.code), (expected, Some(1)), "{report:?}");
        Ok(())
    };
    bad(&[])?;
    gateway.ip(&format!("link set {OUTSIDE} mtu 1400"))?;
    bad(&["mtu-gap"])?;
    gateway.ip(&format!("link set {INSIDE} mtu 9000"))?;
    bad(&["mtu-gap", "mtu-too-large"])?;
    gateway.ip(&format!("link set {INSIDE} mtu 1400"))?;
    gateway.ip(&format!("route add {} via {ROUTER} dev {OUTSIDE}", NODES[1].pod_cidr))?;
    bad(&["pod-route-elsewhere"])?;
    gateway.ip(&format!("route del {}", NODES[1].pod_cidr))?;
    gateway.ip(&format!("link set {INSIDE} down"))?;
    bad(&["interface-down"])?;
    gateway.ip(&format!("link set {INSIDE} up"))?;
    gateway.ip(&format!("address flush dev {INSIDE}"))?;
    bad(&["interface-without-address"])?;
    gateway.ip(&format!("link del {INSIDE}"))?;
    bad(&["interface-missing"])
}

#[test]
fn a_config_file_that_contradicts_the_host_is_found() -> Result<()> {
    let Some((lab, installation)) = lab_without_daemon(&LabOptions::default())? else { return Ok(()) };
    let tenant = "[[tenant]]\nname = \"ns-blue\"\ngateway_ip = \"192.168.99.13\"\negress_ips = [\"10.132.9.9\"]\n\n[cluster]";
    let table = [
        ("[\"10.132.0.0/14\"]", "[\"192.168.96.0/20\"]".to_owned(), "overlapping-networks"),
        ("192.168.99.21", "192.168.77.21".to_owned(), "route-next-hop-not-inside"),
        ("[cluster]", tenant.to_owned(), "egress-address-misplaced"),
        ("/sys/fs/bpf/", "/proc/".to_owned(), "bpffs-missing"),
        ("/state\"", "/spillway.toml/state\"".to_owned(), "state-not-writable"),
        ("[cluster]", "[clutter]".to_owned(), "config-refused"),
    ];
    let sound = std::fs::read_to_string(&installation.config)?;
    for (from, to, id) in table {
        edit_config(&installation, from, &to)?;
        let report = Report::of(&lab, &installation)?;
        assert_eq!(report.bad(), BTreeSet::from(["daemon-not-running", id]), "{report:?}");
        report.require_broken(id, "")?;
        std::fs::write(&installation.config, &sound)?;
    }
    Ok(())
}

#[test]
fn checks_without_the_privilege_say_so_and_the_others_go_on() -> Result<()> {
    let Some((lab, installation)) = lab_without_daemon(&LabOptions::default())? else { return Ok(()) };
    lab.namespace(Host::Gateway).ip(&format!("link set {OUTSIDE} mtu 1400"))?;
    let mut doctor = lab.namespace(Host::Gateway).command("setpriv");
    doctor.args(["--bounding-set", "-all", "--inh-caps", "-all", "--"]).arg(&installation.executable);
    doctor.args(["doctor", "--json", "--config"]).arg(&installation.config);
    let report = Report::read(&mut doctor)?;
    let expected = ["daemon-not-running", "capability-missing", "mtu-gap"];
    assert_eq!(report.bad(), BTreeSet::from(expected), "{report:?}");
    for id in ["egress-address-taken", "gateway-address-taken"] {
        let finding = report.finding(id)?;
        assert_eq!(word(finding, "severity"), "skipped");
        assert!(word(finding, "summary").contains("CAP_NET_RAW"), "{finding}");
    }
    Ok(())
}

#[test]
fn an_api_that_cannot_be_used_is_found() -> Result<()> {
    let Some((lab, installation)) = lab_without_daemon(&LabOptions::default())? else { return Ok(()) };
    let kubeconfig = lab.directory().join("kubeconfig");
    let section =
        format!("[kubernetes]\nenabled = true\nkubeconfig = \"{}\"\n\n[cluster]", kubeconfig.display());
    edit_config(&installation, "[cluster]", &section)?;
    let report = Report::of(&lab, &installation)?;
    report.require_broken("kubeconfig-unusable", &kubeconfig.display().to_string())?;

    write_kubeconfig(&kubeconfig, SocketAddr::from(([127, 0, 0, 1], 1)))?;
    Report::of(&lab, &installation)?.require_broken("api-unreachable", "127.0.0.1:1")?;

    let refusing = StandIn::start(&lab, "401 Unauthorized", "{\"message\":\"token has expired\"}")?;
    refusing.write_kubeconfig(&kubeconfig)?;
    Report::of(&lab, &installation)?.require_broken("api-refuses-credentials", "token has expired")?;
    refusing.stop(&lab)?;

    // A server of long ago that has no kinds and grants nothing.
    let head = "200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT";
    let body = "{\"groupVersion\":\"v1\",\"resources\":[],\"spec\":{},\"status\":{\"allowed\":false}}";
    let denying = StandIn::start(&lab, head, body)?;
    denying.write_kubeconfig(&kubeconfig)?;
    let report = Report::of(&lab, &installation)?;
    denying.stop(&lab)?;
    for (id, words) in [
        ("crd-missing", "EgressTenant"),
        ("rbac-gap", "may not list nodes"),
        ("clock-differs-from-api", "ahead of"),
    ] {
        report.require_broken(id, words)?;
    }
    assert_eq!(word(report.finding("policy-kind-missing")?, "severity"), "warning");
    Ok(())
}

/// Returns a lab with two tenants, as the README asks for; nothing where tests that need namespaces are skipped.
fn healthy() -> Result<Option<Fixture>> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(None) };
    stop_forwarding(&fixture.lab)?;
    Ok(Some(fixture))
}

/// Runs the command that a finding advises, where the gateway is.
fn run_advice(fixture: &Fixture, report: &Report, id: &str) -> Result<()> {
    let line = word(report.finding(id)?, "command");
    ensure!(!line.is_empty(), "{id} advises no command");
    fixture.lab.namespace(Host::Gateway).run("sh", &["-c", line]).map(drop)
}

//! The service as operators have it: installed as the guide says, under systemd itself, with the unit's confinement. `make
//! systemd` tells what it finds.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::demo::capture::Capture;
use control::demo::command::text;
use control::demo::gateway::add_tenant_arguments;
use control::demo::topology::{BLUE, Host, INSIDE, OUTSIDE, PODS, RED, SERVER};
use control::demo::{Lab, LabOptions, wait};
use serde_json::Value;
use spillway_tests::fixture::{executable, skipped, variable};
use spillway_tests::machine::Machine;
use spillway_tests::manifests;
use spillway_tests::peers::Peer;
use spillway_tests::stream::Stream;
use spillway_tests::talk::Talk;

const LIMIT: Duration = Duration::from_secs(120);
const UNIT: &str = "spillway";
const CONFIG: &str = "/etc/spillway/spillway.toml";
/// What the tests add to the unit.
const DROP_IN: &str = "/etc/systemd/system/spillway.service.d/test.conf";
/// Where the guide's commands are run.
const SOURCES: &str = "/root/spillway";

type Check = fn(&mut Site) -> Result<()>;

/// One after the other, on the same machine, under the same traffic.
const CHECKS: [(&str, Check); 10] = [
    ("installed as the guide says, it is active once it is ready", becomes_ready),
    ("its lines are entries of the journal", speaks_to_the_journal),
    ("it has what the unit gives it, and misses nothing", is_confined),
    ("a restart costs no connection", restarts),
    ("a process that is killed is followed by another, and no connection ends", is_killed),
    ("a process that hangs is ended by the watchdog, and no connection ends", hangs),
    ("a stop takes its links away and leaves the programs that drop", stops),
    ("a start goes on with the sessions", starts_again),
    ("a config file that is wrong is told, and tried again until it is right", is_misconfigured),
    ("a program that is missing is not tried, and goes on with the sessions when it is back", is_missing),
];

#[test]
fn the_service_lives_under_systemd_as_the_guide_says() -> Result<()> {
    if skipped()? {
        return Ok(());
    }
    let mut site = Site::build()?;
    let outside = Capture::of_outside_link(&site.lab)?;
    for (what, check) in CHECKS {
        check(&mut site).with_context(|| format!("{what}\n{}", site.report()))?;
        if site.is_watched {
            writeln!(std::io::stderr(), "{what}")?;
        }
    }
    let streams = site.streams.drain(..).map(|stream| std::thread::spawn(move || stream.finish()));
    for stream in streams.collect::<Vec<_>>() {
        let summary = stream.join().map_err(|_| anyhow::anyhow!("a stream panicked"))?;
        assert_eq!(summary.seen_as.len(), 1, "a pod's port changed: {summary:?}");
    }
    let recording = outside.finish()?;
    assert_eq!(recording.pod_sources()?, 0, "a pod's address left");
    assert!(recording.count(&format!("tcp and src host {}", BLUE.egress))? > 0, "the capture saw nothing");
    if site.is_watched {
        writeln!(std::io::stderr(), "no packet left untranslated meanwhile")?;
    }
    Ok(())
}

/// Does what the guide says under "Install", but for building.
fn becomes_ready(site: &mut Site) -> Result<()> {
    let guide = std::fs::read_to_string(manifests::root().join("docs/operations.md"))?;
    let install = guide.split("```sh\n").find(|block| block.contains("deploy/spillway.service"));
    let install =
        install.and_then(|block| block.split("```").next()).context("the guide installs no unit")?;
    let (_build, install) = install.split_once('\n').context("the guide builds first")?;
    site.machine.run(&format!("cd {SOURCES}\n{install}rm -r {SOURCES}"))?;
    site.machine.run(&format!("sed -i 's/enp1s0/{INSIDE}/; s/enp7s0/{OUTSIDE}/' {CONFIG}"))?;
    site.machine.run("systemctl enable --now spillway")?;
    site.require("ActiveState", "active")?;
    site.require("UnitFileState", "enabled")?;
    site.require("StatusText", "ready")?;
    site.machine.run("spillway health")?; // at once: systemctl waits for READY=1
    for tenant in [&BLUE, &RED] {
        site.machine.run(&format!("spillway {}", add_tenant_arguments(tenant).join(" ")))?;
    }
    site.begin_traffic()
}

fn speaks_to_the_journal(site: &mut Site) -> Result<()> {
    let entry = site
        .machine
        .run("journalctl -u spillway SPILLWAY_TENANT=ns-blue SPILLWAY_TARGET=tenants -o json -n 1")?;
    let entry: Value = serde_json::from_str(&entry)?;
    assert!(entry["MESSAGE"].as_str().is_some_and(|line| line.contains("tenant=ns-blue")), "{entry}");
    let fields = ["PRIORITY", "SYSLOG_IDENTIFIER", "SPILLWAY_TARGET", "_SYSTEMD_UNIT"];
    let told = fields.map(|field| entry[field].as_str().unwrap_or_default());
    assert_eq!(told, ["6", "spillway", "tenants", "spillway.service"], "{entry}");
    Ok(())
}

fn restarts(site: &mut Site) -> Result<()> {
    let (before, links) = (site.sessions()?, site.links()?);
    site.machine.run("systemctl restart spillway")?;
    site.require("ActiveState", "active")?;
    site.require_succession(before)?;
    assert_eq!(site.links()?, links, "a restart leaves links alone");
    site.require("NRestarts", "0")
}

fn is_killed(site: &mut Site) -> Result<()> {
    let before = site.sessions()?;
    let process = site.process()?;
    site.machine.run(&format!("kill -KILL {process}"))?;
    site.until_followed(&process)?;
    site.require("NRestarts", "1")?;
    site.require_succession(before)
}

fn hangs(site: &mut Site) -> Result<()> {
    // The unit's own is a minute, for which `make systemd` waits.
    let (seconds, limit) = if site.is_watched { (60, "1min") } else { (5, "5s") };
    site.machine.write(DROP_IN, &format!("[Service]\nWatchdogSec={seconds}\n"))?;
    site.machine.run("systemctl daemon-reload && systemctl restart spillway")?;
    let (before, process) = (site.sessions()?, site.process()?);
    site.machine.run(&format!("kill -STOP {process}"))?;
    site.until_followed(&process)?;
    let told = site.machine.run("journalctl -u spillway _PID=1")?;
    assert!(told.contains(&format!("Watchdog timeout (limit {limit})")), "{told}");
    site.require_succession(before)?;
    std::fs::remove_file(site.machine.path(DROP_IN))?;
    site.machine.run("systemctl daemon-reload").map(drop)
}

fn stops(site: &mut Site) -> Result<()> {
    site.machine.run("systemctl stop spillway")?;
    for (name, value) in [("ActiveState", "inactive"), ("Result", "success"), ("ExecMainStatus", "0")] {
        site.require(name, value)?;
    }
    assert_eq!(site.links()?, "", "nodes have to see that the gateway is gone");
    let interfaces = site.lab.namespace(Host::Gateway).ip("link show")?;
    assert_eq!(interfaces.matches("prog/xdp").count(), 2, "{interfaces}");
    site.streams.iter().try_for_each(|stream| stream.until_sent(200))
}

fn starts_again(site: &mut Site) -> Result<()> {
    site.machine.run("systemctl start spillway")?;
    site.require_succession(PODS.len() as u64)
}

/// Here a system call that the unit denies ends the process, and the daemon tells what it had to do without.
fn is_confined(site: &mut Site) -> Result<()> {
    site.machine.write(DROP_IN, "[Service]\nSystemCallErrorNumber=kill\nEnvironment=RUST_LOG=debug\n")?;
    site.machine.run("systemctl daemon-reload; systemctl restart spillway")?;
    let other = "spillway tenant add other --gw-ip 192.168.99.15 --egress-ip 192.168.55.115";
    site.machine
        .run(&format!("{other}; spillway sessions; spillway metrics; spillway tenant remove other"))?;
    site.require_traffic()?;
    let process = site.process()?;
    let log = site.machine.run(&format!("journalctl -u spillway _PID={process} -o cat"))?;
    for words in ["not hurried", "not shortened", "may run on the workers' cores"] {
        assert!(!log.contains(words), "{log}");
    }
    assert!(log.contains("reading all links"), "not what the daemon had to do without: {log}");
    let tasks = site.machine.run(&format!("cat /proc/{process}/task/*/status"))?;
    let workers = tasks.split("Name:\t").filter(|task| task.starts_with("worker-"));
    assert!(
        workers.inspect(|task| assert!(task.contains("CapEff:\t0000000000000000"), "{task}")).count() > 0
    );
    for confined in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert_eq!(tasks.matches(confined).count(), tasks.matches("Name:").count(), "{tasks}");
    }
    std::fs::remove_file(site.machine.path(DROP_IN))?;
    site.machine.run("systemctl daemon-reload; systemctl restart spillway").map(drop)
}

fn is_misconfigured(site: &mut Site) -> Result<()> {
    let right = site.machine.run(&format!("cat {CONFIG}"))?;
    site.machine.write(CONFIG, &right.replace("[workers]", "[worker]"))?;
    let started = site.machine.shell("systemctl restart spillway")?;
    ensure!(!started.status.success(), "it started");
    let log = site.machine.run("journalctl -u spillway -p err -n 20 -o cat")?;
    assert!(log.contains("error: /etc/spillway/spillway.toml") && log.contains("`worker`"), "{log}");
    site.machine.write(CONFIG, &right)?;
    wait::until("it has started", LIMIT, || {
        Ok((site.machine.property(UNIT, "ActiveState")? == "active").then_some(()))
    })?;
    site.require_succession(PODS.len() as u64)
}

fn is_missing(site: &mut Site) -> Result<()> {
    site.machine.run("mv /usr/local/bin/spillway /root && systemctl kill -s KILL spillway")?;
    wait::until("it is not tried", LIMIT, || {
        Ok((site.machine.property(UNIT, "ActiveState")? == "inactive").then_some(()))
    })?;
    site.require("ConditionResult", "no")?;
    site.machine.run("mv /root/spillway /usr/local/bin && systemctl start spillway")?;
    site.require_succession(PODS.len() as u64)
}

/// The machine, what it talks to, and the traffic through it.
struct Site {
    /// Whether somebody watches who wants to be told, and has the time that the unit takes.
    is_watched: bool,
    streams: Vec<Stream>,
    talk: Option<Talk>,
    datagrams: Peer,
    greeter: Peer,
    machine: Machine,
    lab: Lab,
}

impl Site {
    fn build() -> Result<Self> {
        let lab = Lab::build(&LabOptions::default())?;
        let machine = Machine::boot(&lab)?;
        let program: Option<std::path::PathBuf> = variable("SERVICE_PROGRAM")?;
        let program = program.map_or_else(executable, Ok)?;
        let sources = machine.path(SOURCES);
        for directory in ["target/release", "deploy"] {
            std::fs::create_dir_all(sources.join(directory))?;
        }
        std::fs::copy(program, sources.join("target/release/spillway"))?;
        for file in ["deploy/spillway.toml", "deploy/spillway.service"] {
            std::fs::copy(manifests::root().join(file), sources.join(file))?;
        }
        let (datagrams, greeter) =
            (Peer::udp_echo(&lab, 7)?, Peer::tcp_echo(&lab, Host::Server, SERVER, 2222)?);
        let is_watched = variable::<u8>("SERVICE_TOLD")?.is_some();
        Ok(Self { is_watched, streams: Vec::new(), talk: None, datagrams, greeter, machine, lab })
    }

    fn begin_traffic(&mut self) -> Result<()> {
        for pod in &PODS {
            self.streams.push(Stream::start(&self.lab, pod, self.datagrams.address())?);
        }
        self.talk = Some(Talk::start(&self.lab, &PODS[0], self.greeter.address())?);
        self.require_traffic()
    }

    /// Fails unless datagrams of every pod and the connection go on.
    fn require_traffic(&mut self) -> Result<()> {
        self.streams.iter().try_for_each(|stream| stream.until_answered(50))?;
        self.talk.as_mut().context("no traffic yet")?.until_answered(50)
    }

    /// Fails unless this process has taken over so many sessions, at least, and traffic goes on.
    fn require_succession(&mut self, sessions: u64) -> Result<()> {
        self.require_traffic()?;
        let status = self.machine.json("spillway status --json")?;
        let restored = status["succession"]["restored"].as_u64().context("no succession")?;
        ensure!(restored >= sessions, "{restored} of {sessions} sessions go on: {status}");
        Ok(())
    }

    fn sessions(&self) -> Result<u64> {
        let status = self.machine.json("spillway status --json")?;
        status["sessions"].as_u64().context("a status tells the sessions")
    }

    /// Returns the tenants' links, by the kernel's numbers.
    fn links(&self) -> Result<String> {
        let links = self.lab.namespace(Host::Gateway).ip("-o link show type macvlan")?;
        let number = |line: &str| line.split(": <").next().unwrap_or_default().to_owned() + "\n";
        Ok(links.lines().map(number).collect())
    }

    fn process(&self) -> Result<String> {
        self.machine.property(UNIT, "MainPID")
    }

    /// Waits until the service is active with another process.
    fn until_followed(&self, before: &str) -> Result<()> {
        wait::until("another process has followed", LIMIT, || {
            let now = self.process()?;
            let is_active = self.machine.property(UNIT, "ActiveState")? == "active";
            Ok((is_active && now != before && now != "0").then_some(()))
        })
    }

    fn require(&self, name: &str, value: &str) -> Result<()> {
        let found = self.machine.property(UNIT, name)?;
        ensure!(found == value, "{name} is {found}, not {value}");
        Ok(())
    }

    /// Returns what systemd and the service have to say.
    fn report(&self) -> String {
        let line = "systemctl status -l --no-pager -n 0 spillway; journalctl --no-pager -n 80";
        self.machine.shell(line).map_or_else(|error| format!("{error:#}"), |output| text(&output.stdout))
    }
}

//! The daemon and its command line as processes, in namespaces of their own.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod namespace;

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use namespace::{World, eventually, in_namespace, ip};

#[test]
fn tenants_come_over_the_socket_and_a_stop_leaves_nothing() {
    in_namespace(async |_| {
        let before = state();
        let place = Place::new();
        let daemon = place.run(&[]);

        let added = place.spillway("tenant add ns-blue --gw-ip 192.168.99.13 --egress-ip 192.168.55.113");
        assert!(added.0.success(), "{}", added.2);
        assert!(ip("address").contains("192.168.55.113/32"));
        assert_ne!(state(), before);
        let list = place.spillway("tenant list").1;
        let [header, blue, red] = list.lines().collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(header.find("GATEWAY"), blue.find("192.168.99.13"), "{list}");
        assert!(red.starts_with("ns-red ") && red.ends_with("config file"), "{list}");

        let removed = place.spillway("remove-tenant --name ns-blue --mark 0x10");
        assert!(removed.0.success() && removed.2.contains("--mark 0x10 has no effect"), "{}", removed.2);
        assert!(!ip("address").contains("192.168.55.113/32"));

        assert!(daemon.stop(Signal::SIGTERM).success());
        assert_eq!(state(), before);
        assert!(!place.socket().exists());
    });
}

/// Returns what the kernel shows of tenants' links, but for their state: it tells that of a new link a moment later.
fn tenant_links() -> String {
    ip("-oneline link show type macvlan").replace("state UNKNOWN", "state UP")
}

#[test]
fn a_killed_daemons_tenants_and_links_are_taken_over() {
    in_namespace(async |_| {
        let settings_before = settings();
        let place = Place::new();
        let daemon = place.run(&[]);
        place.spillway("tenant add ns-blue --gw-ip 192.168.99.13 --egress-ip 192.168.55.113");
        let links = tenant_links();
        assert_eq!(daemon.stop(Signal::SIGKILL).signal(), Some(9));
        assert_eq!(tenant_links(), links);
        assert!(!place.spillway("status").0.success());

        let daemon = place.run(&[]);
        assert_eq!(tenant_links(), links, "the same links, not new ones");
        let shown = place.spillway("tenant show ns-blue --json").1;
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown["source"], "controlSocket");

        assert!(daemon.stop(Signal::SIGINT).success());
        assert_eq!(ip("-oneline link show type macvlan"), "");
        assert_eq!(settings(), settings_before, "values from before the first daemon");
    });
}

#[test]
fn a_tenants_policy_is_shown_and_survives_the_daemon() {
    in_namespace(async |_| {
        let place = Place::new();
        let daemon = place.run(&[]);
        let added = place.spillway(
            "tenant add ns-blue --gw-ip 192.168.99.13 --egress-ip 192.168.55.113 --mapping endpoint-independent \
             --filtering address --max-ports-per-pod 64 --mss-clamp 1360",
        );
        assert!(added.0.success(), "{}", added.2);
        assert!(added.1.contains("\nlimits    64 ports per pod\n"), "{}", added.1);
        assert_eq!(daemon.stop(Signal::SIGKILL).signal(), Some(9));

        let daemon = place.run(&[]);
        let shown = place.spillway("tenant show ns-blue --json").1;
        let tenant = &serde_json::from_str::<serde_json::Value>(&shown).unwrap()["tenant"];
        assert_eq!(tenant["mapping"], "EndpointIndependent", "{shown}");
        assert_eq!(tenant["filtering"], "AddressDependent", "{shown}");
        assert_eq!(tenant["limits"]["portsPerPod"], 64, "{shown}");
        assert_eq!(tenant["mssClamp"], 1360, "{shown}");
        drop(daemon);
    });
}

#[test]
fn a_start_that_fails_leaves_tenant_links_isolated_and_tells_of_the_programs() {
    in_namespace(async |_| {
        let place = Place::new();
        assert_eq!(place.run(&[]).stop(Signal::SIGKILL).signal(), Some(9));
        let isolated = settings();
        let config = std::fs::read_to_string(place.config()).unwrap();
        let failing = place.directory.path().join("failing.toml");
        // The program that the killed one left is in the driver.
        std::fs::write(&failing, format!("xdp.mode = \"generic\"\n{config}")).unwrap();
        let (status, _, error) = place.spillway(&format!("run --config {}", failing.display()));
        assert!(!status.success() && error.contains("set xdp.mode to \"native\""), "{error}");
        assert!(error.contains("`spillway detach --config FILE` removes them"), "{error}");
        assert!(ip("link").contains("spw-c0a8630e"));
        assert_eq!(settings(), isolated, "its link must not answer for others");
    });
}

#[test]
fn a_second_daemon_and_detach_are_refused_while_one_runs() {
    in_namespace(async |_| {
        let place = Place::new();
        let daemon = place.run(&[]);
        let (status, _, error) = place.spillway(&format!("run --config {}", place.config().display()));
        assert_eq!(status.code(), Some(1));
        assert!(error.contains("another spillway daemon runs on interface in0"), "{error}");
        let (status, _, error) = place.spillway("detach");
        assert!(
            !status.success() && error.contains("xdp.pin_dir: /sys/fs/bpf/spillway is in use"),
            "{error}"
        );
        let line = format!("--socket /none detach --config {}", place.config().display());
        let (status, _, error) = place.spillway(&line);
        assert!(!status.success() && error.contains("another spillway daemon runs on interface"), "{error}");
        for link in ["in0", "out0"] {
            assert!(ip(&format!("link show {link}")).contains("xdp"), "{link} lost its program");
        }
        drop(daemon);
    });
}

#[test]
fn a_daemon_on_other_interfaces_needs_directories_of_its_own() {
    in_namespace(async |_| {
        add_interfaces();
        let place = Place::new();
        let daemon = place.run(&[]);
        let other = place.directory.path().join("other.toml");
        let text = |more: &str| format!("inside.interface = \"in1\"\noutside.interface = \"out1\"\n{more}");
        let table = [
            (String::new(), "xdp.pin_dir: /sys/fs/bpf/spillway is in use"),
            (
                format!(
                    "xdp.pin_dir = \"/sys/fs/bpf/other\"\ncontrol.state_dir = {:?}",
                    place.directory.path().join("state")
                ),
                "control.state_dir: ",
            ),
        ];
        for (more, expected) in table {
            std::fs::write(&other, text(&more)).unwrap();
            let socket = place.directory.path().join("other.sock");
            let line = format!("--socket {} run --config {}", socket.display(), other.display());
            let (status, _, error) = place.spillway(&line);
            assert!(!status.success() && error.contains(expected), "{error}");
        }
        for link in ["in0", "out0"] {
            assert!(ip(&format!("link show {link}")).contains("xdp"), "{link} lost its program");
        }
        drop(daemon);
    });
}

#[test]
fn what_a_daemon_on_other_interfaces_left_is_removed() {
    in_namespace(async |_| {
        add_interfaces();
        let place = Place::new();
        assert_eq!(place.run(&[]).stop(Signal::SIGKILL).signal(), Some(9));
        let config = std::fs::read_to_string(place.config()).unwrap();
        let moved = config.replace("in0", "in1").replace("out0", "out1").replace("168.99.", "168.98.");
        std::fs::write(place.config(), moved.replace("168.55.", "168.54.")).unwrap();
        let daemon = place.run(&[]);
        let links = ip("-oneline link show type macvlan");
        assert!(!links.contains("@in0") && links.contains("@in1"), "{links}");
        assert!(!ip("address").contains("192.168.55.114"));
        let routes = ip("route show proto 83");
        assert!(!routes.contains("in0") && routes.contains("in1"), "{routes}");
        drop(daemon);
    });
}

#[test]
fn what_a_living_daemon_has_on_other_interfaces_stays() {
    in_namespace(async |_| {
        add_interfaces();
        let (first, second) = (Place::new(), Place::beside());
        let daemon = first.run(&[]);
        let before = state();
        let other = second.run(&[]);
        assert!(ip("-oneline link show type macvlan").contains("@in1"));
        assert!(other.stop(Signal::SIGTERM).success());
        assert_eq!(state(), before);
        drop(daemon);
    });
}

#[test]
fn links_that_are_kept_over_a_restart_go_when_the_gateway_is_taken_out_of_service() {
    in_namespace(async |_| {
        let place = Place::new();
        let before = state();
        assert!(place.run(&["--keep"]).stop(Signal::SIGTERM).success());
        assert!(ip("link").contains("spw-c0a8630e"));
        assert!(place.run(&["--keep"]).stop(Signal::SIGINT).success());
        assert_eq!(state(), before);
    });
}

#[test]
fn links_are_kept_when_told_so_and_detach_removes_them_before_the_programs() {
    in_namespace(async |_| {
        let place = Place::new();
        let before = state();
        assert!(place.run(&["--keep"]).stop(Signal::SIGTERM).success());
        assert!(ip("link").contains("spw-c0a8630e"));
        assert!(ip("route show proto 83").contains("10.132.0.0/24"));
        assert!(ip("link show in0").contains("xdp"), "tenant traffic is dropped while no daemon runs");
        let (status, _, error) = place.spillway("detach");
        assert!(!status.success() && error.contains("tenant link spw-c0a8630e still stands"), "{error}");
        assert!(ip("link show in0").contains("xdp"));
        let (status, output, error) =
            place.spillway(&format!("detach --config {}", place.config().display()));
        assert_eq!(state(), before);
        assert!(status.success() && output.starts_with("detached"), "{output}{error}");
        let gone = async || !ip("link show in0").contains("xdp");
        eventually("the program is detached", gone).await;
    });
}

#[test]
fn what_is_refused_is_undone_and_told() {
    in_namespace(async |_| {
        let place = Place::new();
        let daemon = place.run(&[]);
        let table = [
            ("tenant add ns-red --gw-ip 192.168.99.13 --egress-ip 192.168.55.113", "name: \"ns-red\""),
            ("tenant add x --gw-ip 192.168.99.14 --egress-ip 192.168.55.113", "gatewayIP: 192.168.99.14"),
            ("tenant add x --gw-ip 192.168.99.21 --egress-ip 192.168.55.113", "gatewayIP: 192.168.99.21"),
            ("tenant add x --gw-ip 192.168.99.13 --egress-ip 192.168.55.12", "egressIPs[0]: 192.168.55.12"),
            (
                "tenant add x --gw-ip 192.168.99.13 --egress-ip 192.168.55.113 --filtering address",
                "filtering: address needs endpoint-independent mapping",
            ),
            ("tenant remove ns-red", "name: \"ns-red\" comes from the config file"),
            (
                "add-tenant --name x --gw-ip 192.168.99.13 --egress-ip 192.168.55.113 --dev e9",
                "--dev: \"e9\"",
            ),
            ("sessions --tenant x", "name: tenant \"x\" does not exist"),
        ];
        for (line, expected) in table {
            let (status, output, error) = place.spillway(line);
            assert_eq!(status.code(), Some(1), "{line}: {output}");
            assert!(error.starts_with(&format!("error: {expected}")), "{line}: {error}");
        }
        // A link of this name that Spillway did not make: the kernel refuses, so the tenant is not there.
        ip("link add spw-c0a8630d type veth peer name other");
        let (status, _, error) =
            place.spillway("tenant add x --gw-ip 192.168.99.13 --egress-ip 192.168.55.113");
        assert!(!status.success() && error.contains("cannot make macvlan link spw-c0a8630d"), "{error}");
        assert!(!place.spillway("tenant list").1.contains("192.168.99.13"));
        assert!(!ip("address show dev out0").contains("192.168.55.113"));
        assert!(daemon.stop(Signal::SIGTERM).success());
        assert!(ip("link").contains("spw-c0a8630d"), "what Spillway did not make stays");
    });
}

#[test]
fn a_tenant_that_is_stuck_stops_no_other() {
    in_namespace(async |_| {
        let place = Place::new();
        let daemon = place.run(&[]);
        ip("link delete spw-c0a8630e");
        // The name may be taken only while the daemon has not repaired it.
        let taken = async || {
            let _ = Command::new("ip").args(["link", "delete", "spw-c0a8630e", "type", "macvlan"]).output();
            let line = "link add spw-c0a8630e type veth peer name other";
            Command::new("ip").args(line.split(' ')).output().unwrap().status.success()
        };
        eventually("somebody else's link has the name of the tenant's", taken).await;
        let added = place.spillway("tenant add ns-blue --gw-ip 192.168.99.13 --egress-ip 192.168.55.113");
        assert!(added.0.success(), "{}", added.2);
        assert!(ip("address").contains("192.168.55.113/32"));
        let removed = place.spillway("tenant remove ns-blue");
        assert!(removed.0.success(), "{}", removed.2);
        assert!(!ip("address").contains("192.168.55.113/32"));
        drop(daemon);
    });
}

#[test]
fn a_destination_on_the_link_is_resolved_when_a_worker_asks() {
    in_namespace(async |world| {
        add_pod(world);
        world.peer("ip address add 192.168.55.77/32 dev lo");
        let place = Place::new();
        let daemon = place.run(&[]);
        assert_eq!(ip("neigh show 192.168.55.77"), "");
        world.peer("ping -c 1 -W 3 -I 10.132.0.5 192.168.55.77");
        assert!(ip("neigh show 192.168.55.77").contains("lladdr"));
        drop(daemon);
    });
}

#[test]
fn pings_of_a_pod_leave_with_the_egress_address_and_come_back() {
    in_namespace(async |world| {
        add_pod(world);
        ip("route add 203.0.113.0/24 via 192.168.55.1");
        let place = Place::new();
        let daemon = place.run(&[]);
        world.peer("ping -c 3 -i 0.1 -W 2 -I 10.132.0.5 203.0.113.9");
        let sessions = place.spillway("sessions --json").1;
        let sessions: serde_json::Value = serde_json::from_str(&sessions).unwrap();
        assert_eq!(sessions[0]["insideAddress"], "10.132.0.5", "{sessions}");
        assert_eq!(sessions[0]["outsideAddress"], "192.168.55.114", "{sessions}");
        let status: serde_json::Value = serde_json::from_str(&place.spillway("status --json").1).unwrap();
        assert_eq!(status["epoch"]["wanted"], status["epoch"]["applied"]);
        assert_eq!(status["tenants"][0]["status"]["outboundPackets"], 3, "{status}");
        assert_eq!(status["tenants"][0]["status"]["inboundPackets"], 3, "{status}");
        drop(daemon);
    });
}

/// Adds a second pair of interfaces.
fn add_interfaces() {
    for (link, address) in [("in1", "192.168.98.12"), ("out1", "192.168.54.12")] {
        ip(&format!("link add {link} type veth peer name {link}peer"));
        ip(&format!("address add {address}/24 dev {link}"));
        ip(&format!("link set {link} up"));
        ip(&format!("link set {link}peer up"));
    }
}

/// Gives the other namespace a pod that uses ns-red's gateway, and a server behind the upstream router. Policy
/// routing keeps the two apart: the pod's packets leave by the wire though the server's address is local.
fn add_pod(world: &World) {
    for setting in ["all", "node0", "up0"] {
        let root = "/proc/sys/net/ipv4/conf";
        let line = format!("echo 0 > {root}/{setting}/rp_filter; echo 1 > {root}/{setting}/accept_local");
        world.peer_words(&["sh", "-c", &line]);
    }
    world.peer("ip link set lo up");
    world.peer("ip address add 10.132.0.5/32 dev lo");
    world.peer("ip address add 203.0.113.9/32 dev lo");
    world.peer("ip rule add pref 2 from 10.132.0.5 lookup 9");
    world.peer("ip route add default via 192.168.99.14 dev node0 table 9");
    world.peer("ip rule add pref 1 iif node0 lookup local");
    world.peer("ip rule add pref 1 iif up0 lookup local");
    world.peer("ip rule add pref 9 lookup local");
    world.peer("ip rule delete pref 0");
}

/// A directory for config, state and socket, and a bpffs of its own.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        Self::in_directory(tempfile::tempdir().unwrap())
    }

    fn in_directory(directory: TempDir) -> Self {
        let place = Self { directory };
        let state = place.directory.path().join("state");
        let config = format!(
            r#"
            inside.interface = "in0"
            outside.interface = "out0"
            sessions.capacity = 1024
            [cluster]
            pod_cidrs = ["10.132.0.0/14"]
            routes = [{{ pod_cidr = "10.132.0.0/24", via = "192.168.99.21" }}]
            [control]
            socket = {:?}
            state_dir = {state:?}
            [[tenant]]
            name = "ns-red"
            gateway_ip = "192.168.99.14"
            egress_ips = ["192.168.55.114"]
            "#,
            place.socket()
        );
        std::fs::write(place.config(), config).unwrap();
        place
    }

    /// Returns a place for a second daemon on the second pair of interfaces, beside one that is there.
    fn beside() -> Self {
        let place = Self::in_directory(tempfile::tempdir().unwrap());
        let config = std::fs::read_to_string(place.config()).unwrap();
        let config = config.replace("in0", "in1").replace("out0", "out1").replace("168.99.", "168.98.");
        let config = config.replace("168.55.", "168.54.").replace("10.132.", "10.136.");
        let pins = "xdp.pin_dir = \"/sys/fs/bpf/beside\"\n";
        std::fs::write(place.config(), pins.to_owned() + &config).unwrap();
        place
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("spillway.toml")
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("run/spillway.sock")
    }

    /// Starts the daemon and waits until it answers.
    fn run(&self, arguments: &[&str]) -> Daemon {
        let log = self.directory.path().join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_spillway"))
            .args(["run", "--config"])
            .arg(self.config())
            .args(arguments)
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut daemon = Daemon { child };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.spillway("status").0.success() {
            let log = std::fs::read_to_string(&log).unwrap();
            assert!(daemon.child.try_wait().unwrap().is_none(), "the daemon ended: {log}");
            assert!(Instant::now() < deadline, "the daemon does not answer: {log}");
        }
        daemon
    }

    /// Runs a command to its end and returns its status, output and errors.
    fn spillway(&self, line: &str) -> (ExitStatus, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_spillway"))
            .args(line.split_whitespace())
            .env("SPILLWAY_SOCKET", self.socket())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status, text(output.stdout), text(output.stderr))
    }
}

/// A running daemon; killed when dropped.
struct Daemon {
    child: Child,
}

impl Daemon {
    fn stop(mut self, signal: Signal) -> ExitStatus {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads everything that the daemon changes.
fn state() -> [String; 4] {
    // The kernel says UNKNOWN until it has looked at the carrier, which is later.
    let links = ip("-brief link show type macvlan").replace("UNKNOWN", "UP     ");
    [links, ip("-4 -oneline address"), ip("route"), settings().concat()]
}

/// Reads the settings that the daemon changes.
fn settings() -> Vec<String> {
    let names = ["arp_ignore", "arp_announce", "rp_filter"];
    let path = |link, name| format!("/proc/sys/net/ipv4/conf/{link}/{name}");
    let read = |(link, name)| std::fs::read_to_string(path(link, name)).unwrap();
    ["in0", "out0"].into_iter().flat_map(|link| names.map(|name| (link, name))).map(read).collect()
}

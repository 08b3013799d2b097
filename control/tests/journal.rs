//! What the daemon logs, read by the tools that operators read it with: a journal of its own with its `journalctl`, and JSON
//! line by line.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod namespace;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use namespace::{eventually, in_namespace};

/// Where systemd's journal is, which has no place in PATH.
const JOURNALD: &str = "/lib/systemd/systemd-journald";

#[test]
fn under_systemd_each_field_is_one_of_the_journal() {
    in_namespace(async |_| {
        let place = Place::new();
        let _journal = start_journal().await;
        let daemon = place.run(&[], true).await;
        assert!(place.spillway("tenant remove none").status.code() == Some(1));
        assert!(
            place
                .spillway("tenant add ns-blue --gw-ip 192.168.99.13 --egress-ip 192.168.55.113")
                .status
                .success()
        );
        let shown = async || journalctl(&["-F", "SPILLWAY_TENANT"]).lines().any(|line| line == "ns-blue");
        eventually("journalctl lists the tenant", shown).await;
        let entry = journalctl(&["SPILLWAY_TENANT=ns-blue", "SPILLWAY_TARGET=tenants", "-o", "json"]);
        let entry: Value = serde_json::from_str(entry.lines().next().unwrap()).unwrap();
        let message = entry["MESSAGE"].as_str().unwrap();
        assert!(message.starts_with("tenant put ") && message.contains(" tenant=ns-blue uid=0"), "{entry}");
        assert_eq!(entry["PRIORITY"], "6", "{entry}");
        assert_eq!(entry["SYSLOG_IDENTIFIER"], "spillway", "{entry}");
        assert_eq!(entry["SPILLWAY_UID"], "0", "{entry}");
        assert_eq!(daemon.log(), "", "nothing is said twice");
    });
}

#[test]
fn stderr_that_is_not_the_journal_gets_lines_for_people() {
    in_namespace(async |_| {
        let place = Place::new();
        let _journal = start_journal().await;
        let daemon = place.run(&[], false).await;
        assert!(daemon.log().contains(" INFO ready\n"), "{}", daemon.log());
    });
}

#[test]
fn every_line_is_an_object_of_json_when_asked_for() {
    in_namespace(async |_| {
        let place = Place::new();
        let daemon = place.run(&["--log-format", "json", "--log", "debug"], false).await;
        assert!(
            place
                .spillway("tenant add ns-blue --gw-ip 192.168.99.13 --egress-ip 192.168.55.113")
                .status
                .success()
        );
        let log = daemon.log();
        let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &lines {
            let fields = ["time", "level", "target", "message"].map(|name| line[name].is_string());
            assert_eq!(fields, [true; 4], "{line}");
        }
        let put = lines.iter().find(|line| line["message"] == "tenant put").unwrap();
        assert_eq!((&put["level"], &put["target"]), (&"info".into(), &"tenants".into()), "{put}");
        assert_eq!(
            (&put["fields"]["tenant"], &put["fields"]["uid"]),
            (&"ns-blue".into(), &0.into()),
            "{put}"
        );
    });
}

#[test]
fn a_filter_is_set_and_reset_while_the_daemon_runs() {
    in_namespace(async |_| {
        let place = Place::new();
        let daemon = place.run(&["--log", "warn"], false).await;
        let published = || daemon.log().matches("publishing snapshot").count();
        let add = |last: u8| {
            let line = format!("tenant add t{last} --gw-ip 192.168.99.{last} --egress-ip 192.168.55.{last}");
            assert!(place.spillway(&line).status.success());
        };
        add(100);
        assert_eq!(published(), 0);
        let set = place.spillway("log set warn,daemon=debug");
        assert_eq!(String::from_utf8(set.stdout).unwrap(), "warn,daemon=debug\n");
        add(101);
        assert_eq!(published(), 1);
        let shown = String::from_utf8(place.spillway("log").stdout).unwrap();
        let level = |name: &str| {
            let line = shown.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        assert_eq!([level("daemon"), level("kubernetes")], ["debug", "warn"], "{shown}");
        assert!(place.spillway("log reset").status.success());
        add(102);
        assert_eq!(published(), 1, "{}", daemon.log());

        let refused = place.spillway("log set kubernets=debug");
        assert_eq!(refused.status.code(), Some(1));
        let refused = String::from_utf8(refused.stderr).unwrap();
        assert!(
            refused.starts_with("error: filter: \"kubernets\" is no target; there are api, "),
            "{refused}"
        );

        let set = place.spillway("log set debug --for 1s");
        assert_eq!(String::from_utf8(set.stdout).unwrap(), "debug, for 1s more, then warn\n");
        let is_back = async || place.spillway("log").stdout.starts_with(b"warn\n");
        eventually("the filter goes back by itself", is_back).await;
    });
}

/// Starts a journal that nobody else sees.
async fn start_journal() -> Ended {
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    for directory in ["/run/systemd/journal", "/run/log/journal"] {
        std::fs::create_dir_all(directory).unwrap();
    }
    let journal =
        Ended(Command::new(JOURNALD).stderr(File::create("/run/journald.log").unwrap()).spawn().unwrap());
    eventually("the journal listens", async || Path::new("/run/systemd/journal/socket").exists()).await;
    journal
}

fn journalctl(arguments: &[&str]) -> String {
    let output =
        Command::new("journalctl").args(["-D", "/run/log/journal", "-q"]).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A directory for config, state and socket, and a bpffs of its own.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        let place = Self { directory: tempfile::tempdir().unwrap() };
        let config = format!(
            "inside.interface = 'in0'\noutside.interface = 'out0'\nsessions.capacity = 1024\n\
             cluster.pod_cidrs = ['10.132.0.0/14']\ncontrol.socket = {:?}\ncontrol.state_dir = {:?}\n",
            place.socket(),
            place.directory.path().join("state"),
        );
        std::fs::write(place.directory.path().join("spillway.toml"), config).unwrap();
        place
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("spillway.sock")
    }

    /// Starts the daemon, with the journal as stderr or another file, and waits until it answers.
    async fn run(&self, arguments: &[&str], is_journal: bool) -> Daemon {
        let path = self.directory.path().join("log");
        let log = File::create(&path).unwrap();
        let (device, inode) = (log.metadata().unwrap().dev(), log.metadata().unwrap().ino());
        let stream = if is_journal { format!("{device}:{inode}") } else { format!("{device}:{}", inode + 1) };
        let mut command = Command::new(env!("CARGO_BIN_EXE_spillway"));
        command.arg("run").arg("--config").arg(self.directory.path().join("spillway.toml"));
        command.args(arguments).env("JOURNAL_STREAM", stream).env_remove("RUST_LOG").stderr(log);
        let daemon = Daemon { _process: Ended(command.spawn().unwrap()), log: path };
        eventually("the daemon answers", async || self.spillway("status").status.success()).await;
        daemon
    }

    fn spillway(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spillway"));
        command.args(line.split_whitespace()).env("SPILLWAY_SOCKET", self.socket()).output().unwrap()
    }
}

/// A running daemon and its stderr.
struct Daemon {
    _process: Ended,
    log: PathBuf,
}

impl Daemon {
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

/// A process that ends when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

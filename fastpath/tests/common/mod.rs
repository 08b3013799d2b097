//! A network namespace of a test's own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use fastpath::dataplane::detach;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const BPFFS: &str = "/sys/fs/bpf";
/// Begins the name of a test process's directory on bpffs; its process id follows.
const PREFIX: &str = "spillway-steer-";

/// A network namespace of the calling thread with a veth pair, and a directory for pins.
pub(crate) struct Namespace {
    pub(crate) pins: PathBuf,
}

impl Namespace {
    /// Makes it; none without the privilege, unless that must be there.
    pub(crate) fn enter() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            let required = std::env::var_os("REQUIRE_NETNS").is_some_and(|value| value == "1");
            assert!(!required, "REQUIRE_NETNS=1, but this is not root");
            // Not println: what a passing test prints is not shown.
            let _ = writeln!(std::io::stderr(), "SKIPPED: needs root");
            return None;
        }
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link add spin0 type veth peer name peer0");
        ip("link set lo up");
        ip("link set spin0 up");
        ip("link set peer0 up");
        mount_bpffs();
        remove_abandoned_pins();
        let pins = Path::new(BPFFS).join(format!("{PREFIX}{}", std::process::id()));
        Some(Self { pins: pins.join(format!("{:?}", std::thread::current().id())) })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = detach(&self.pins);
        let _ = std::fs::remove_dir(&self.pins);
        let _ = std::fs::remove_dir(self.pins.parent().unwrap());
    }
}

pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn mount_bpffs() {
    static MOUNTING: Mutex<()> = Mutex::new(());
    let _guard = MOUNTING.lock().unwrap();
    let is_bpffs =
        nix::sys::statfs::statfs(BPFFS).unwrap().filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC;
    if !is_bpffs {
        mount(Some("bpffs"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
    }
}

/// Removes what killed test processes pinned: nobody else would.
fn remove_abandoned_pins() {
    for entry in std::fs::read_dir(BPFFS).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // Another test may remove it at the same time.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

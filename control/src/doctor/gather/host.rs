//! What the host's own files tell: processes, kernel settings, pins, the state directory, the clock.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::{AccessFlags, access, geteuid};
use procfs::process::LimitValue;
use tokio::time::timeout;

use super::described;
use crate::config::Config;
use crate::doctor::evidence::{Host, Known, Process};
use crate::netlink::facts::Facts;
use crate::state::StateDir;
use crate::sysctl;

const SETTINGS: &str = "/proc/sys";
const HELD_PREFIX: &str = "@spillway/interface/";
const CLOCK_WITHIN: Duration = Duration::from_secs(5);

/// Returns the daemon's process, or this one when no number is given.
///
/// # Errors
/// When it cannot be looked at.
pub fn process(daemon: Option<u32>) -> Known<Process> {
    let pid = daemon.unwrap_or_else(std::process::id);
    let number = i32::try_from(pid).map_err(described)?;
    let found = procfs::process::Process::new(number).map_err(|error| format!("process {pid}: {error}"))?;
    let status = found.status().map_err(described)?;
    let limit = found.limits().map_err(|error| format!("limits of process {pid}: {error}"))?;
    let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net"));
    let network = network("self").and_then(|own| Ok(own == network(&pid.to_string())?));
    Ok(Process {
        pid,
        is_daemon: daemon.is_some(),
        capabilities: status.capeff,
        lockable: match limit.max_locked_memory.soft_limit {
            LimitValue::Unlimited => None,
            LimitValue::Value(bytes) => Some(bytes),
        },
        shares_network: network.map_err(|error| format!("network namespace of process {pid}: {error}"))?,
    })
}

/// Returns the host's part in running the daemon.
pub fn host(config: &Known<Config>) -> Host {
    let unusable = || "the config file is not usable".to_owned();
    let config = config.as_ref().map_err(|_| unusable());
    Host {
        held: held(&fs::read_to_string("/proc/self/net/unix").unwrap_or_default()),
        pins: config.clone().and_then(|config| pins(&config.pin_dir)),
        is_bpffs: config.clone().and_then(|config| is_bpffs(&config.pin_dir)),
        state: config.and_then(|config| state(&config.state_dir)),
    }
}

/// Reads from the kernel's list of unix sockets which interfaces are held. Connecting would use up the holder's backlog.
fn held(sockets: &str) -> Vec<String> {
    let name = |line: &str| line.split_whitespace().last()?.strip_prefix(HELD_PREFIX).map(str::to_owned);
    sockets.lines().filter_map(name).collect()
}

fn pins(pin_dir: &Path) -> Known<Vec<String>> {
    let entries = match fs::read_dir(pin_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("{}: {error}", pin_dir.display())),
    };
    let linked = entries.filter_map(Result::ok).filter(|entry| entry.path().join("link").exists());
    let mut names: Vec<String> =
        linked.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

fn is_bpffs(pin_dir: &Path) -> Known<bool> {
    let place = nearest(pin_dir);
    let found = statfs(place).map_err(|error| format!("{}: {error}", place.display()))?;
    Ok(found.filesystem_type() == BPF_FS_MAGIC)
}

/// Returns why state cannot be written; none: it can.
fn state(state_dir: &Path) -> Known<Option<String>> {
    let place = nearest(state_dir);
    if !place.is_dir() {
        return Ok(Some(format!("{} is no directory", place.display())));
    }
    match access(place, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => Ok(None),
        Err(Errno::EACCES) if !geteuid().is_root() => {
            Err(format!("only root can tell whether {} is writable for the daemon", place.display()))
        }
        Err(error) => Ok(Some(format!("{} cannot be written to ({})", place.display(), error.desc()))),
    }
}

/// Returns the deepest part of a path that exists.
fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"))
}

/// Returns the settings that Spillway has changed and not restored, with the values that it gave them.
///
/// # Errors
/// When the state file cannot be read.
pub fn isolated(config: &Known<Config>) -> Known<Vec<(String, String)>> {
    let config = config.as_ref().map_err(|_| "the config file is not usable")?;
    if !config.state_dir.is_dir() {
        return Ok(Vec::new());
    }
    let saved =
        StateDir::open(&config.state_dir).and_then(|state| state.load_sysctls()).map_err(described)?;
    if setting("kernel/random/boot_id").is_none_or(|boot_id| boot_id != saved.boot_id) {
        return Ok(Vec::new());
    }
    let wanted = [&config.inside, &config.outside].map(|link| sysctl::wanted(Path::new(SETTINGS), link));
    let changed = |path: &str| saved.settings.iter().any(|saved| saved.path == path);
    let wanted = wanted.into_iter().flatten().filter(|(path, _)| changed(path));
    Ok(wanted.map(|(path, value)| (path, value.to_owned())).collect())
}

/// Returns the kernel settings that the checks look at.
pub fn settings(kernel: &Known<Facts>, isolated: &Known<Vec<(String, String)>>) -> BTreeMap<String, String> {
    let links = kernel.iter().flat_map(|facts| &facts.links).map(|link| link.name.as_str());
    let filters = links.chain(["all"]).map(|link| format!("net/ipv4/conf/{link}/rp_filter"));
    let single = ["net/ipv4/ip_forward", "net/ipv4/neigh/default/gc_thresh3"].map(str::to_owned);
    let isolated = isolated.iter().flatten().map(|(path, _)| path.clone());
    let paths = filters.chain(single).chain(isolated);
    paths.filter_map(|path| setting(&path).map(|value| (path, value))).collect()
}

fn setting(path: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new(SETTINGS).join(path)).ok()?;
    Some(text.trim().to_owned())
}

/// Tells whether the kernel's clock is synchronised: what adjtimex(2) says, by whatever service keeps the time.
///
/// # Errors
/// When `timedatectl` is not there, or has nobody to ask.
pub async fn clock() -> Known<bool> {
    let mut command = tokio::process::Command::new("timedatectl");
    command.args(["show", "--property=NTPSynchronized", "--value"]).kill_on_drop(true);
    let answer = timeout(CLOCK_WITHIN, command.output()).await.map_err(|_| "timedatectl does not answer")?;
    let output = answer.map_err(|error| format!("timedatectl: {error}"))?;
    match String::from_utf8_lossy(&output.stdout).trim() {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(format!("timedatectl: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_that_are_held_are_read_from_the_list_of_sockets() {
        let sockets = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 49 @spillway/interface/in0\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 50 /run/spillway/spillway.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 51\n";
        assert_eq!(held(sockets), ["in0"]);
    }

    #[test]
    fn a_state_directory_that_cannot_be_made_is_told() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(state(&directory.path().join("not/yet/there")), Ok(None));
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let problem = state(&file.join("state")).unwrap().unwrap();
        assert!(problem.ends_with("file is no directory"), "{problem}");
    }

    #[test]
    fn programs_are_pinned_where_there_is_a_link() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(pins(&directory.path().join("none")), Ok(Vec::new()));
        for name in ["outside-3-native", "inside-2-native"] {
            fs::create_dir_all(directory.path().join(name).join("link")).unwrap();
        }
        fs::create_dir(directory.path().join("empty")).unwrap();
        assert_eq!(pins(directory.path()).unwrap(), ["inside-2-native", "outside-3-native"]);
        assert_eq!(is_bpffs(directory.path()), Ok(false));
    }

    #[test]
    fn this_process_is_looked_at_when_there_is_no_daemon() {
        let own = process(None).unwrap();
        assert_eq!((own.pid, own.is_daemon, own.shares_network), (std::process::id(), false, true));
        assert!(process(Some(u32::MAX)).is_err());
    }
}

use std::fs::{self, File};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::command::{run, run_words};

/// Begins the name of everything that a run leaves in places shared with others.
pub(crate) const PREFIX: &str = "spillway-bench-";

/// A network namespace of this process's making; dropped, it is removed with all links in it.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes an empty namespace. `tag` is unique among the processes on this machine.
    pub(crate) fn create(role: &str, tag: &str) -> Result<Self> {
        let name = format!("{PREFIX}{tag}-{role}");
        run(&format!("ip netns add {name}"))?;
        let namespace = Self { name };
        // Neighbour discovery and multicast reports would be traffic in an idle measurement.
        for group in ["all", "default"] {
            namespace.write(&format!("/proc/sys/net/ipv6/conf/{group}/disable_ipv6"), "1").ok();
            namespace.write(&format!("/proc/sys/net/ipv4/conf/{group}/rp_filter"), "0")?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the file that stands for this namespace.
    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs `ip` with these arguments inside.
    pub(crate) fn ip(&self, arguments: &str) -> Result<String> {
        run(&format!("ip -n {} {arguments}", self.name))
    }

    /// Runs a command line inside, with a /sys that shows this namespace's links.
    pub(crate) fn run(&self, line: &str) -> Result<String> {
        run(&format!("ip netns exec {} {line}", self.name))
    }

    /// Writes a file under /proc/sys or /sys as it is seen inside.
    pub(crate) fn write(&self, path: &str, value: &str) -> Result<()> {
        let script = format!("echo {value} > {path}");
        run_words(&["ip", "netns", "exec", &self.name, "sh", "-c", &script]).map(drop)
    }

    /// Runs `work` on a thread of its own inside.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.join()?;
                work()
            });
            inside.join().unwrap_or_else(|_| Err(anyhow!("a thread in namespace {} panicked", self.name)))
        })
    }

    /// Moves the calling thread inside, for good.
    pub(crate) fn join(&self) -> Result<()> {
        join(&self.path())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run(&format!("ip netns del {}", self.name)) {
            eprintln!("warning: {error:#}");
        }
    }
}

/// Moves the calling thread into the namespace that `path` stands for.
pub(crate) fn join(path: &str) -> Result<()> {
    let file = File::open(path).with_context(|| format!("namespace {path} cannot be opened"))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("namespace {path} cannot be entered"))
}

/// Removes namespaces that killed runs left behind.
pub(crate) fn remove_stale() -> Result<()> {
    for name in abandoned("/run/netns")? {
        run(&format!("ip netns del {name}"))?;
    }
    Ok(())
}

/// Returns the names in a directory that runs gave which are no more.
pub(crate) fn abandoned(directory: &str) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if owner(&name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Returns the process that gave this name, when it was a benchmark.
fn owner(name: &str) -> Option<u32> {
    let tag = name.strip_prefix(PREFIX)?;
    tag.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Tells a test whether it may make namespaces; says so when it is skipped, and fails when it must not be.
#[cfg(test)]
pub(crate) fn allowed() -> bool {
    use std::io::Write;

    let allowed = nix::unistd::Uid::effective().is_root();
    if !allowed {
        let required = std::env::var_os("REQUIRE_NETNS").is_some_and(|value| value == "1");
        assert!(!required, "REQUIRE_NETNS=1, but network namespaces need root");
        // Not println: what a passing test prints is not shown.
        let _ = writeln!(std::io::stderr(), "SKIPPED: network namespaces need root");
    }
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_starts_with_loopback_alone_and_goes_when_dropped() {
        if !allowed() {
            return;
        }
        let namespace = Namespace::create("test", &format!("{}t", std::process::id())).unwrap();
        let path = namespace.path();
        let links = namespace.ip("-br link").unwrap();
        assert_eq!(links.lines().count(), 1, "{links}");
        drop(namespace);
        assert!(!Path::new(&path).exists());
    }

    #[test]
    fn the_owner_is_read_from_names_of_this_program_only() {
        let cases = [
            ("spillway-bench-4711a-gateway", Some(4711)),
            ("spillway-bench-4711-gateway", Some(4711)),
            ("spillway-bench-x-gateway", None),
            ("spw-4711-gw", None),
        ];
        for (name, expected) in cases {
            assert_eq!(owner(name), expected, "{name}");
        }
    }
}

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::Result;
use serde::Serialize;

use crate::command::{run, run_words};

/// What the figures were measured on.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) mhz: String,
    pub(crate) kernel: String,
    pub(crate) driver: &'static str,
    pub(crate) spillway: String,
    pub(crate) iptables: String,
    pub(crate) nftables: String,
    pub(crate) harness: &'static str,
    /// Whether the harness was optimised; the daemon is the program beside it.
    pub(crate) build: &'static str,
}

impl Machine {
    /// Looks around; what cannot be told is called unknown.
    pub(crate) fn describe(spillway: &Path) -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Self {
            date: run("date -u +%Y-%m-%dT%H:%MZ")?.trim().to_owned(),
            processor: field(&cpuinfo, "model name"),
            cores: thread::available_parallelism()?.get(),
            mhz: field(&cpuinfo, "cpu MHz"),
            kernel: kernel.trim().to_owned(),
            driver: "veth",
            spillway: version(run_words(&[&spillway.display().to_string(), "--version"])),
            iptables: version(run("iptables --version")),
            nftables: version(run("nft --version")),
            harness: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
        })
    }
}

fn version(answer: Result<String>) -> String {
    answer.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Returns a field of the first processor.
fn field(cpuinfo: &str, name: &str) -> String {
    let value = cpuinfo.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
    value.map_or_else(|| "unknown".to_owned(), |value| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_first_processor_are_found() {
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC\ncpu MHz\t\t: 2596.128\nmodel name\t: other\n";
        assert_eq!(field(cpuinfo, "model name"), "AMD EPYC");
        assert_eq!(field(cpuinfo, "cpu MHz"), "2596.128");
        assert_eq!(field(cpuinfo, "flags"), "unknown");
    }
}

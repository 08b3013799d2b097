//! Frames on a wire, recorded by tcpdump.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::command::{self, SOON};
use super::lab::Lab;
use super::process::Process;
use super::topology::{CLUSTER_CIDR, Host};

/// Records frames until it is finished.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

/// What a capture recorded.
#[derive(Clone, Debug)]
pub struct Recording {
    file: PathBuf,
}

impl Capture {
    /// Records all that crosses the gateway's outside link, at the switch's end, where also the frames are seen
    /// that the gateway's own taps would miss. Returns once it records.
    ///
    /// # Errors
    /// When tcpdump cannot be started.
    pub fn of_outside_link(lab: &Lab) -> Result<Self> {
        Self::start(lab, Host::SwitchOutside, Host::Gateway.name())
    }

    /// Records all that crosses the gateway's inside link, at the switch's end.
    ///
    /// # Errors
    /// When tcpdump cannot be started.
    pub fn of_inside_link(lab: &Lab) -> Result<Self> {
        Self::start(lab, Host::SwitchInside, Host::Gateway.name())
    }

    /// Records all that crosses the outside switch, also while the gateway's link is removed and made again.
    ///
    /// # Errors
    /// When tcpdump cannot be started.
    pub fn of_outside_switch(lab: &Lab) -> Result<Self> {
        Self::start(lab, Host::SwitchOutside, "br0")
    }

    fn start(lab: &Lab, host: Host, device: &str) -> Result<Self> {
        let file = lab.directory().join(format!("{}-{device}.pcap", host.name()));
        let mut command = lab.namespace(host).command("tcpdump");
        command.args(["-n", "-U", "--immediate-mode", "-s", "128", "-B", "8192", "-Z", "root"]);
        command.args(["-i", device, "-w"]).arg(&file);
        let mut tcpdump = lab.start(&mut command, &file.with_extension("log"))?;
        tcpdump.until_printed("listening on", Duration::from_secs(10))?;
        Ok(Self { tcpdump, file })
    }

    /// Ends the recording.
    ///
    /// # Errors
    /// When tcpdump does not end, or missed frames.
    pub fn finish(mut self) -> Result<Recording> {
        self.tcpdump.stop()?;
        let report = self.tcpdump.output();
        anyhow::ensure!(report.contains("0 packets dropped by kernel"), "tcpdump missed frames: {report}");
        Ok(Recording { file: self.file.clone() })
    }
}

impl Recording {
    /// Returns how many frames match a filter of tcpdump's.
    ///
    /// # Errors
    /// When tcpdump refuses the filter.
    pub fn count(&self, filter: &str) -> Result<u64> {
        let mut tcpdump = Command::new("tcpdump");
        tcpdump.args(["-n", "--count", "-Z", "root", "-r"]).arg(&self.file).arg(filter);
        let text = command::run_ok(&mut tcpdump, SOON)?;
        let count = text.split_whitespace().next().context("tcpdump printed no count")?;
        count.parse().with_context(|| format!("tcpdump printed `{text}`"))
    }

    /// Returns how many frames have a pod's address as source, in IPv4 or ARP: leaks.
    ///
    /// # Errors
    /// As [`Recording::count`].
    pub fn pod_sources(&self) -> Result<u64> {
        self.count(&format!("src net {CLUSTER_CIDR} or (vlan and src net {CLUSTER_CIDR})"))
    }
}

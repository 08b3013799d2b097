use std::env;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use control::demo::process::Process;
use tempfile::TempDir;

use crate::namespace::PREFIX;
use crate::raw::READY;
use crate::topology::{INSIDE_MAC, NODE_MAC, OUTSIDE_MAC, SERVER_MAC, Topology};

const READY_WITHIN: Duration = Duration::from_secs(10);

/// This program as a forwarder that changes MACs only, in a process of its own as the daemon is; dropped, it ends.
#[derive(Debug)]
pub(crate) struct RawForwarder {
    _process: Process,
    _directory: TempDir,
}

impl RawForwarder {
    /// Starts it in the topology's gateway and waits until it forwards.
    pub(super) fn start(topology: &Topology) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", topology.gateway.path())).arg("--").arg(env::current_exe()?);
        command.args(["forward-raw", "--core", &topology.cores.gateway.to_string(), "--inside"]);
        command.args([topology.inside_device(), INSIDE_MAC.to_string(), NODE_MAC.to_string()]);
        command.arg("--outside");
        command.args([topology.outside_device(), OUTSIDE_MAC.to_string(), SERVER_MAC.to_string()]);
        let mut process = Process::start(&mut command, &directory.path().join("log"))?;
        process.until_printed(READY, READY_WITHIN)?;
        Ok(Self { _process: process, _directory: directory })
    }
}

use std::env;
use std::path::PathBuf;
use std::thread;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand, value_parser};
use control::demo::wait;
use nix::unistd::Uid;

use crate::flows::Flows;
use crate::machine::Machine;
use crate::report::{Report, Results};
use crate::system::{Setup, System};
use crate::topology::Cores;
use crate::{first_frame, idle, namespace, nodes, ports, system, wire};

/// Measures Spillway beside its peers in the same run, in network namespaces of its own
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    measurement: Measurement,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Writes all figures to this file too
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The daemon's program; by default the one beside this program
    #[arg(long, global = true, value_name = "PATH")]
    spillway: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Measurement {
    /// Throughput of small UDP datagrams over veth, at overload
    ///
    /// Example: spillway-bench wire --flows 1024 --flows 65536 --rounds 5 --json wire.json
    Wire(WireOptions),
    /// Processor time of a daemon without traffic
    ///
    /// Example: spillway-bench idle --seconds 10
    Idle {
        /// How long to look
        #[arg(long, default_value_t = 10, value_parser = value_parser!(u64).range(1..=600))]
        seconds: u64,
    },
    /// Round trip of the first frame after idle
    ///
    /// Example: spillway-bench first-frame --samples 100
    FirstFrame {
        /// Round trips over each path
        #[arg(long, default_value_t = 30, value_parser = value_parser!(u32).range(1..=1000))]
        samples: u32,
        /// Idle time before each
        #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(1..=60))]
        idle_seconds: u64,
    },
    /// Cost of a pod's sessions to one destination until the last outside port is taken; no traffic
    ///
    /// Example: spillway-bench ports --rounds 5
    Ports {
        /// How often each number of workers has its turn
        #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..=50))]
        rounds: u32,
        /// Workers that share the ports; repeat it for several
        #[arg(long, num_args = 1.., default_values_t = [1, 2, 8], value_parser = value_parser!(u16).range(1..=64))]
        workers: Vec<u16>,
    },
    /// How fast the kernel has the routes to a cluster's nodes, from a stand-in API server
    ///
    /// Example: spillway-bench nodes --count 5000 --changes 100
    Nodes {
        /// Nodes of the cluster
        #[arg(long, default_value_t = 5000, value_parser = value_parser!(u32).range(1..=10_000))]
        count: u32,
        /// Changes of one node's pod network, one after the other
        #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(1..=10_000))]
        changes: u32,
        /// How often the daemon starts anew
        #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=50))]
        rounds: u32,
    },
}

#[derive(Debug, Args)]
struct WireOptions {
    /// Number of UDP flows; repeat it for several
    #[arg(long, num_args = 1.., default_values_t = [1024, 65_536, 1_000_000],
          value_parser = value_parser!(u32).range(1..=i64::from(Flows::MAXIMUM)))]
    flows: Vec<u32>,
    /// Gateways to measure; the first is what the others are compared with
    #[arg(long = "system", num_args = 1.., value_name = "SYSTEM",
          default_values_t = [System::KernelIptables, System::Spillway, System::SpillwaySplit])]
    systems: Vec<System>,
    /// Length of each measurement
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How often each gateway has its turn
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Measures 1,024 and 65,536 flows for 2 s in 3 rounds: about two minutes
    #[arg(long, conflicts_with_all = ["flows", "seconds", "rounds"])]
    short: bool,
}

impl WireOptions {
    fn plan(&self) -> wire::Plan {
        let systems = self.systems.clone();
        if self.short {
            return wire::Plan {
                flows: vec![Flows::new(1024), Flows::new(65_536)],
                systems,
                seconds: 2,
                rounds: 3,
            };
        }
        let flows = self.flows.iter().map(|count| Flows::new(*count)).collect();
        wire::Plan { flows, systems, seconds: self.seconds, rounds: self.rounds }
    }
}

impl Cli {
    /// Measures what was asked for and delivers the report.
    pub(crate) fn run(&self) -> Result<()> {
        if !Uid::effective().is_root() {
            bail!("measurements make network namespaces and load XDP programs; run as root");
        }
        wait::notice_signals()?;
        namespace::remove_stale()?;
        system::remove_stale()?;
        let cores = Cores::plan(thread::available_parallelism()?.get())?;
        let setup = Setup { flows: Flows::new(1024), spillway: self.find_spillway()? };
        let machine = Machine::describe(&setup.spillway)?;
        let results = match &self.measurement {
            Measurement::Wire(options) => Results::Wire(wire::measure(&options.plan(), cores, &setup)?),
            Measurement::Idle { seconds } => Results::Idle(idle::measure(*seconds, cores, &setup)?),
            Measurement::FirstFrame { samples, idle_seconds } => {
                Results::FirstFrame(first_frame::measure(*samples, *idle_seconds, cores, &setup)?)
            }
            Measurement::Ports { rounds, workers } => Results::Ports(ports::measure(*rounds, workers)?),
            Measurement::Nodes { count, changes, rounds } => {
                let plan = nodes::Plan { count: *count, changes: *changes, rounds: *rounds };
                Results::Nodes(nodes::measure(&plan, cores, &setup)?)
            }
        };
        let report = Report { machine, command: env::args().collect(), results };
        report.deliver(self.common.json.as_deref())
    }

    /// Returns the daemon's program, checked only when it is needed.
    fn find_spillway(&self) -> Result<PathBuf> {
        let path = match &self.common.spillway {
            Some(path) => path.clone(),
            None => env::current_exe()?.with_file_name("spillway"),
        };
        if self.needs_spillway() && !path.is_file() {
            bail!(
                "--spillway {}: no such program; build it with `cargo build --release -p control`",
                path.display()
            );
        }
        Ok(path.canonicalize().unwrap_or(path))
    }

    fn needs_spillway(&self) -> bool {
        match &self.measurement {
            Measurement::Wire(options) => options.systems.iter().any(|system| system.is_spillway()),
            Measurement::Idle { .. } | Measurement::FirstFrame { .. } | Measurement::Nodes { .. } => true,
            Measurement::Ports { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for words in [["wire", "--flows", "0"], ["wire", "--flows", "4161537"], ["idle", "--seconds", "0"]] {
            assert!(Cli::try_parse_from(["spillway-bench"].iter().chain(&words)).is_err(), "{words:?}");
        }
    }
}

use std::env;
use std::path::PathBuf;
use std::thread;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use control::demo::wait;
use nix::unistd::Uid;

use crate::flows::Flows;
use crate::machine::Machine;
use crate::report::{Destinations, Part, Report};
use crate::system::Setup;
use crate::topology::Cores;
use crate::{
    connections, control_plane, engine, first_frame, idle, latency, memory, namespace, neighbours, nodes,
    ports, raw, restart, system, tcp, watching, wire,
};

/// What `short` measures, one after the other.
const SHORT: [&[&str]; 6] = [
    &["engine", "--short"],
    &["wire", "--short"],
    &["connections", "--short"],
    &["latency", "--short"],
    &["control", "--short"],
    &["memory", "--short"],
];

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
    #[command(flatten)]
    destinations: Destinations,
    /// What everything random is drawn with; the same number draws the same
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
    /// The daemon's program; by default the one beside this program
    #[arg(long, global = true, value_name = "PATH")]
    spillway: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Measurement {
    /// A short selection of the others: less than five minutes
    ///
    /// Example: spillway-bench short --report bench
    Short,
    /// Cost of a packet in the pipeline alone, on wires in memory; no traffic
    ///
    /// Example: spillway-bench engine --sessions 1024 --sessions 1032192 --report engine
    Engine(engine::Options),
    /// Throughput of UDP over veth, at overload or without loss
    ///
    /// Example: spillway-bench wire --flows 1024 65536 --rate ndr --frames 64 imix --report wire
    Wire(wire::Options),
    /// Bulk transfer over TCP with iperf3, the kernel with and without segmentation offload
    ///
    /// Example: spillway-bench tcp --streams 1 4 --seconds 10
    Tcp(tcp::Options),
    /// Processor time of a daemon without traffic
    ///
    /// Example: spillway-bench idle --seconds 10
    Idle(idle::Options),
    /// Round trip of the first frame after idle
    ///
    /// Example: spillway-bench first-frame --samples 100
    FirstFrame(first_frame::Options),
    /// Cost of a pod's sessions to one destination until the last outside port is taken; no traffic
    ///
    /// Example: spillway-bench ports --rounds 5
    Ports(ports::Options),
    /// How fast the kernel has the routes to a cluster's nodes, from a stand-in API server
    ///
    /// Example: spillway-bench nodes --count 5000 --changes 100
    Nodes(nodes::Options),
    Connections(connections::Options),
    Latency(latency::Options),
    Neighbours(neighbours::Options),
    Control(control_plane::Options),
    Memory(memory::Options),
    Restart(restart::Options),
    Watching(watching::Options),
    /// Forwards frames as the peer raw-afxdp of other measurements
    #[command(hide = true)]
    ForwardRaw(raw::Options),
    /// Returns what it gets as the far end of other measurements
    #[command(hide = true)]
    Echo(restart::echo::Options),
}

impl Cli {
    /// Measures what was asked for and delivers the report.
    pub(crate) fn run(&self) -> Result<()> {
        if !Uid::effective().is_root() {
            bail!("measurements make network namespaces and load XDP programs; run as root");
        }
        wait::notice_signals()?;
        match &self.measurement {
            Measurement::ForwardRaw(options) => return raw::forward(options),
            Measurement::Echo(options) => return restart::echo::serve(options),
            _ => {}
        }
        namespace::remove_stale()?;
        system::remove_stale()?;
        let cores = Cores::plan(thread::available_parallelism()?.get())?;
        let flows = Flows::new(1024).with_seed(self.common.seed);
        let setup = Setup { flows, spillway: self.find_spillway()? };
        let machine = Machine::describe(&setup.spillway)?;
        let parts = match &self.measurement {
            Measurement::Short => SHORT
                .iter()
                .map(|words| {
                    eprintln!("{}", words.join(" "));
                    let words = ["spillway-bench"].iter().chain(*words);
                    Self::try_parse_from(words)?.measurement.carry_out(cores, &setup, self.common.seed)
                })
                .collect::<Result<_>>()?,
            measurement => vec![measurement.carry_out(cores, &setup, self.common.seed)?],
        };
        let command = env::args().collect();
        let report = Report { machine, command, seed: self.common.seed, parts };
        report.deliver(&self.common.destinations)
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
            Measurement::Wire(options) => options.needs_spillway(),
            Measurement::Tcp(_) | Measurement::Idle(_) => true,
            Measurement::FirstFrame(_) | Measurement::Nodes(_) => true,
            Measurement::Connections(options) => options.needs_spillway(),
            Measurement::Latency(options) => options.needs_spillway(),
            Measurement::Neighbours(options) => options.needs_spillway(),
            Measurement::Control(_) | Measurement::Memory(_) | Measurement::Short => true,
            Measurement::Restart(_) | Measurement::Watching(_) => true,
            Measurement::Engine(_)
            | Measurement::Ports(_)
            | Measurement::ForwardRaw(_)
            | Measurement::Echo(_) => false,
        }
    }
}

impl Measurement {
    /// Measures, and takes what was found together.
    fn carry_out(&self, cores: Cores, setup: &Setup, seed: u64) -> Result<Part> {
        match self {
            Self::Engine(options) => Part::of("engine", &engine::measure(options, seed)?),
            Self::Wire(options) => Part::of("wire", &wire::measure(options, cores, setup)?),
            Self::Tcp(options) => Part::of("tcp", &tcp::measure(options, cores, setup)?),
            Self::Idle(options) => Part::of("idle", &idle::measure(options, cores, setup)?),
            Self::FirstFrame(options) => {
                Part::of("first-frame", &first_frame::measure(options, cores, setup)?)
            }
            Self::Ports(options) => Part::of("ports", &ports::measure(options)?),
            Self::Nodes(options) => Part::of("nodes", &nodes::measure(options, cores, setup)?),
            Self::Connections(options) => {
                Part::of("connections", &connections::measure(options, cores, setup)?)
            }
            Self::Latency(options) => Part::of("latency", &latency::measure(options, cores, setup)?),
            Self::Neighbours(options) => Part::of("neighbours", &neighbours::measure(options, cores, setup)?),
            Self::Control(options) => Part::of("control", &control_plane::measure(options, cores, setup)?),
            Self::Memory(options) => Part::of("memory", &memory::measure(options, cores, setup)?),
            Self::Restart(options) => Part::of("restart", &restart::measure(options, cores, setup)?),
            Self::Watching(options) => Part::of("watching", &watching::measure(options, cores, setup)?),
            Self::ForwardRaw(_) | Self::Echo(_) | Self::Short => {
                unreachable!("they are no measurements of their own")
            }
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
    fn the_short_selection_is_made_of_command_lines() {
        for words in SHORT {
            assert!(Cli::try_parse_from(["spillway-bench"].iter().chain(words)).is_ok(), "{words:?}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for words in [["wire", "--flows", "0"], ["wire", "--flows", "4161537"], ["idle", "--seconds", "0"]] {
            assert!(Cli::try_parse_from(["spillway-bench"].iter().chain(&words)).is_err(), "{words:?}");
        }
    }
}

//! The benchmark harness: measures Spillway beside its peers in the same run.
//!
//! ```text
//!   generator namespace        gateway namespace             sink namespace
//!   XDP live frames ──veth──▶ inside  system  outside ──veth──▶ XDP counter
//!        core 0                      core 1                     another core
//! ```
//!
//! Systems take turns on topologies of their own, so that what disturbs the machine disturbs all of them.

#![forbid(unsafe_code)]

/// The command line.
mod cli;
/// External programs, run to their end.
mod command;
/// Measures new sessions in a second.
mod connections;
/// Measures how fast the gateway obeys a change, and what changes cost others.
mod control_plane;
/// Tenants by number.
mod crowd;
/// Measures the pipeline without the kernel.
mod engine;
/// Measures the round trip of the first frame after idle.
mod first_frame;
/// Which five-tuples are sent, and in which order.
mod flows;
/// How long frames are.
mod frames;
/// Sends live frames from an XDP test run.
mod generator;
/// Measures the processor time of an idle daemon.
mod idle;
/// Measures round trips under load.
mod latency;
/// What the figures were measured on.
mod machine;
/// Measures what sessions take of memory.
mod memory;
/// Network namespaces that vanish with their owner.
mod namespace;
/// The kernel threads that receive a link's frames.
mod napi;
/// Measures what a tenant's flood does to another tenant.
mod neighbours;
/// Measures how fast the gateway follows a cluster's nodes.
mod nodes;
/// Keeps a rate.
mod pacer;
/// Measures what the last outside ports cost.
mod ports;
/// A forwarder on the same sockets that leaves everything but MACs alone.
mod raw;
/// Results on the terminal, in a file and on a page.
mod report;
/// Measures what a restart costs.
mod restart;
/// How many sessions a gateway holds, and what the kernel takes for its own.
mod sessions;
/// Counts what arrives at the far end.
mod sink;
/// Medians and spreads.
mod statistics;
/// The gateways that are measured.
mod system;
/// Measures bulk transfers over TCP.
mod tcp;
/// The namespaces, links and addresses around a gateway.
mod topology;
/// Both ends of traffic whose rate is kept, as XDP programs.
mod traffic;
/// Measures what it costs to look.
mod watching;
/// Measures throughput over veth.
mod wire;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

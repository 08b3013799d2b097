//! Commands and their flags: clients of the control socket, and the daemon itself.
//!
//! - `run`: the daemon
//! - `demo`: the gateway at work
//! - `tenant`: add, remove, list and show tenants
//! - `policy`: what a tenant's sessions may do
//! - `legacy`: `add-tenant` and `remove-tenant` with the flags of the tool before
//! - `status`, `routes`, `sessions`: what the gateway does
//! - `explain`, `capture`, `trace`: what becomes of packets
//! - `top`: the same, live
//! - `metrics`: what Prometheus reads
//! - `who`: who is, or was, behind an egress address and port
//! - `log`: which lines the daemon logs
//! - `health`: whether the gateway lives and is ready
//! - `doctor`: what is wrong, and how to put it right
//! - `crd`: the custom resource definition
//! - `detach`: removes what outlives the daemon
//! - `man`, `completions`: manual pages, and what shells need to complete commands
//! - `reference`: the commands as a page of the documentation

mod capture;
mod completions;
mod crd;
mod demo;
mod detach;
mod doctor;
mod explain;
mod health;
mod legacy;
mod log;
mod man;
mod metrics;
mod policy;
pub(crate) mod reference;
mod routes;
mod run;
mod sessions;
mod status;
mod tenant;
mod top;
mod trace;
mod who;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::client::Client;
use crate::config::{Config, DEFAULT_SOCKET};
use crate::output;

/// Egress gateway for Kubernetes tenants, on AF_XDP.
#[derive(Debug, Parser)]
#[command(name = "spillway", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Arguments {
    /// Control socket [default: the config file's, else /run/spillway/spillway.sock]
    #[arg(long, global = true, env = "SPILLWAY_SOCKET", value_name = "PATH", hide_env_values = true)]
    socket: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    Run(run::Arguments),
    /// Show the gateway at work in network namespaces
    Demo(demo::Arguments),
    /// Add, remove, list and show tenants
    #[command(subcommand)]
    Tenant(tenant::Command),
    /// Show the gateway's state and counters
    Status(status::Arguments),
    /// Tell whether the gateway lives and is ready, by exit code
    Health(health::Arguments),
    /// Show what goes on right now, live
    Top(top::Arguments),
    /// Print the metrics that Prometheus reads
    Metrics(metrics::Arguments),
    /// Show the routes that the fast path uses
    Routes(routes::Arguments),
    /// Show translated sessions
    Sessions(Box<sessions::Arguments>),
    /// Tell what would happen to a packet, stage by stage
    Explain(Box<explain::Arguments>),
    /// Write packets to a file, with what was decided about them
    Capture(Box<capture::Arguments>),
    /// Show packets stage by stage, as they come
    Trace(Box<trace::Arguments>),
    /// Tell who is, or was, behind an egress address and port
    Who(who::Arguments),
    /// Show which lines the daemon logs, or set it while it runs
    Log(log::Arguments),
    /// Tell what is wrong, why it matters and how to put it right
    Doctor(doctor::Arguments),
    /// Print the custom resource definition of EgressTenants
    Crd(crd::Arguments),
    /// Write the manual pages into a directory
    Man(man::Arguments),
    /// Print what a shell needs to complete commands and flags
    Completions(completions::Arguments),
    /// Detach the XDP programs that outlive the daemon
    Detach(detach::Arguments),
    /// Add a tenant, with the flags of the Python gateway
    AddTenant(legacy::AddArguments),
    /// Remove a tenant, with the flags of the Python gateway
    RemoveTenant(legacy::RemoveArguments),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    match Arguments::parse().execute() {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

impl Arguments {
    fn execute(self) -> anyhow::Result<ExitCode> {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
        let command = match self.command {
            Command::Run(run) => return Ok(run.execute(self.socket)),
            Command::Demo(demo) => return demo.execute().map(|()| ExitCode::SUCCESS),
            Command::Doctor(doctor) => return runtime()?.block_on(doctor.execute(self.socket)),
            Command::Top(top) => {
                let socket = self.socket.unwrap_or_else(|| DEFAULT_SOCKET.into());
                return top.execute(&socket).map(|()| ExitCode::SUCCESS);
            }
            Command::Crd(crd) => return crd.execute().map(|()| ExitCode::SUCCESS),
            Command::Man(man) => return man.execute().map(|()| ExitCode::SUCCESS),
            Command::Completions(completions) => return completions.execute().map(|()| ExitCode::SUCCESS),
            command => command,
        };
        let socket = self.socket.unwrap_or_else(|| DEFAULT_SOCKET.into());
        let client = Client::new(&socket);
        runtime()?.block_on(async {
            let done = match command {
                Command::Health(health) => return health.execute(&client).await,
                // Executed above.
                Command::Run(_)
                | Command::Demo(_)
                | Command::Crd(_)
                | Command::Doctor(_)
                | Command::Top(_)
                | Command::Man(_)
                | Command::Completions(_) => Ok(()),
                Command::Who(who) => return who.execute(&client).await,
                Command::Tenant(tenant) => tenant.execute(&client).await,
                Command::Status(status) => status.execute(&client).await,
                Command::Metrics(metrics) => metrics.execute(&client).await,
                Command::Routes(routes) => routes.execute(&client).await,
                Command::Sessions(sessions) => sessions.execute(&client).await,
                Command::Explain(explain) => explain.execute(&client).await,
                Command::Capture(capture) => capture.execute(&client).await,
                Command::Trace(trace) => trace.execute(&client).await,
                Command::Log(log) => log.execute(&client).await,
                Command::Detach(detach) => detach.execute().await,
                Command::AddTenant(add) => add.execute(&client).await,
                Command::RemoveTenant(remove) => remove.execute(&client).await,
            };
            done.map(|()| ExitCode::SUCCESS)
        })
    }
}

/// Reads a config file; refusals say which.
fn load_config(path: &Path) -> anyhow::Result<Config> {
    Config::load(path).with_context(|| path.display().to_string())
}

/// Tells whether the reader of stdout, such as `head`, had enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use crate::flows::Flows;
use crate::topology::Topology;

/// What people use today: macvlan, marks and source NAT in the kernel.
mod kernel;
/// The daemon under its own name.
mod spillway;

use kernel::ConntrackLimits;
pub(crate) use spillway::Daemon;
pub(crate) use spillway::remove_stale;

/// A gateway that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum System {
    /// The kernel with a macvlan link per tenant, an iptables mark and SNAT by mark
    KernelIptables,
    /// The kernel, forwarding without translation
    KernelForward,
    /// One Spillway worker that shares its core with the thread that receives for it
    Spillway,
    /// One Spillway worker alone on its core; the generator's core receives for it
    SpillwaySplit,
}

/// What a gateway is told before it starts.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) flows: Flows,
    /// The daemon's program.
    pub(crate) spillway: PathBuf,
}

/// A gateway at work; dropped, it is taken down.
#[derive(Debug)]
pub(crate) enum Gateway {
    /// Lives in the topology's namespace and goes with it; what it changed outside is put back.
    Kernel { _limits: Option<ConntrackLimits> },
    /// A process.
    Spillway(Daemon),
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KernelIptables => "kernel-iptables",
            Self::KernelForward => "kernel-forward",
            Self::Spillway => "spillway",
            Self::SpillwaySplit => "spillway-split",
        }
    }

    /// Says on which cores the system's work is done.
    pub(crate) fn placement(self) -> &'static str {
        match self {
            Self::KernelIptables | Self::KernelForward => "receives and forwards on the gateway's core",
            Self::Spillway => "receives and forwards on the gateway's core",
            Self::SpillwaySplit => "receives on the generator's core, forwards on the gateway's core",
        }
    }

    /// Tells whether the source must be the egress address after this system.
    pub(crate) fn translates(self) -> bool {
        match self {
            Self::KernelForward => false,
            Self::KernelIptables | Self::Spillway | Self::SpillwaySplit => true,
        }
    }

    pub(crate) fn is_spillway(self) -> bool {
        match self {
            Self::KernelForward | Self::KernelIptables => false,
            Self::Spillway | Self::SpillwaySplit => true,
        }
    }

    /// Sets the gateway up in the topology and returns once it is ready.
    pub(crate) fn start(self, topology: &Topology, setup: &Setup) -> Result<Gateway> {
        let cores = topology.cores;
        let (gateway, receiver) = match self {
            Self::KernelIptables => {
                kernel::translate(topology)?;
                (Gateway::Kernel { _limits: ConntrackLimits::raise(setup.flows) }, cores.gateway)
            }
            Self::KernelForward => {
                kernel::forward(topology)?;
                (Gateway::Kernel { _limits: None }, cores.gateway)
            }
            Self::Spillway => (Gateway::Spillway(Daemon::start(topology, setup)?), cores.gateway),
            Self::SpillwaySplit => (Gateway::Spillway(Daemon::start(topology, setup)?), cores.generator),
        };
        topology.place_receivers(receiver)?;
        Ok(gateway)
    }
}

impl fmt::Display for System {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for system in System::value_variants() {
            let value = system.to_possible_value().unwrap();
            assert_eq!(value.get_name(), system.name());
        }
    }
}

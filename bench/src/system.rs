use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::flows::Flows;
use crate::topology::Topology;

/// What people use today: macvlan, marks and source NAT in the kernel.
mod kernel;
/// Frames from one link to the other, and nothing else.
mod raw;
/// The daemon under its own name.
mod spillway;

use kernel::ConntrackLimits;
use raw::RawForwarder;
pub(crate) use spillway::remove_stale;
pub(crate) use spillway::{Daemon, End, Wishes};

/// A gateway that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum System {
    /// The kernel with a macvlan link per tenant, an iptables mark and SNAT by mark
    KernelIptables,
    /// The kernel with a macvlan link per tenant and an nftables map from inside to egress addresses
    KernelNftables,
    /// The kernel, forwarding without translation
    KernelForward,
    /// AF_XDP without a gateway: frames get other MACs, on the same sockets and in the same turns as Spillway's
    RawAfxdp,
    /// The same, alone on its core; the generator's core receives for it
    RawAfxdpSplit,
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
    /// A process of this program.
    Raw { _forwarder: RawForwarder },
    /// A process.
    Spillway(Daemon),
}

impl System {
    /// Every gateway; the first is the one that the others are to replace.
    pub(crate) const ALL: [Self; 7] = [
        Self::KernelIptables,
        Self::KernelNftables,
        Self::KernelForward,
        Self::RawAfxdp,
        Self::RawAfxdpSplit,
        Self::Spillway,
        Self::SpillwaySplit,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KernelIptables => "kernel-iptables",
            Self::KernelNftables => "kernel-nftables",
            Self::KernelForward => "kernel-forward",
            Self::RawAfxdp => "raw-afxdp",
            Self::RawAfxdpSplit => "raw-afxdp-split",
            Self::Spillway => "spillway",
            Self::SpillwaySplit => "spillway-split",
        }
    }

    /// Says on which cores the system's work is done.
    pub(crate) fn placement(self) -> &'static str {
        match self {
            Self::KernelIptables | Self::KernelNftables | Self::KernelForward => {
                "receives and forwards on the gateway's core"
            }
            Self::RawAfxdp | Self::Spillway => "receives and forwards on the gateway's core, in two threads",
            Self::RawAfxdpSplit | Self::SpillwaySplit => {
                "receives on the generator's core, forwards on the gateway's core"
            }
        }
    }

    /// Tells whether the source must be the egress address after this system.
    pub(crate) fn translates(self) -> bool {
        match self {
            Self::KernelForward | Self::RawAfxdp | Self::RawAfxdpSplit => false,
            Self::KernelIptables | Self::KernelNftables | Self::Spillway | Self::SpillwaySplit => true,
        }
    }

    pub(crate) fn is_spillway(self) -> bool {
        match self {
            Self::KernelForward | Self::KernelIptables | Self::KernelNftables => false,
            Self::RawAfxdp | Self::RawAfxdpSplit => false,
            Self::Spillway | Self::SpillwaySplit => true,
        }
    }

    /// Sets the gateway up in the topology and returns once it is ready.
    pub(crate) fn start(self, topology: &Topology, setup: &Setup) -> Result<Gateway> {
        let cores = topology.cores;
        let (gateway, receiver) = match self {
            Self::KernelIptables => {
                kernel::translate_by_mark(topology)?;
                (Gateway::Kernel { _limits: ConntrackLimits::raise(setup.flows) }, cores.gateway)
            }
            Self::KernelNftables => {
                kernel::translate_by_map(topology)?;
                (Gateway::Kernel { _limits: ConntrackLimits::raise(setup.flows) }, cores.gateway)
            }
            Self::KernelForward => {
                kernel::forward(topology)?;
                (Gateway::Kernel { _limits: None }, cores.gateway)
            }
            Self::RawAfxdp => (Gateway::Raw { _forwarder: RawForwarder::start(topology)? }, cores.gateway),
            Self::RawAfxdpSplit => {
                (Gateway::Raw { _forwarder: RawForwarder::start(topology)? }, cores.generator)
            }
            Self::Spillway => (Gateway::Spillway(Daemon::start(topology, setup)?), cores.gateway),
            Self::SpillwaySplit => (Gateway::Spillway(Daemon::start(topology, setup)?), cores.generator),
        };
        topology.place_receivers(receiver)?;
        Ok(gateway)
    }
}

impl Gateway {
    /// Gives the gateway a second tenant, for the same pods.
    pub(crate) fn add_red(&self, topology: &Topology, setup: &Setup) -> Result<()> {
        match self {
            Self::Kernel { .. } => kernel::add_red(topology),
            Self::Raw { .. } => bail!("a raw forwarder knows no tenants"),
            Self::Spillway(daemon) => daemon.add_red(&setup.spillway),
        }
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
        assert_eq!(System::value_variants(), System::ALL);
        for system in System::value_variants() {
            let value = system.to_possible_value().unwrap();
            assert_eq!(value.get_name(), system.name());
        }
    }
}

use std::io;

use conntrack::Epoch;
use thiserror::Error;

use crate::io::xsk::XskError;
use crate::snapshot::Side;
use crate::steer::SteerError;
use crate::succession::SessionFileError;

/// Why the data plane could not start, or could not be kept in step.
#[derive(Debug, Error)]
pub enum DataPlaneError {
    /// An interface is not there.
    #[error("interface {interface} does not exist")]
    Interface {
        /// Its name.
        interface: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Too few or too many workers.
    #[error("workers.count: {wanted} cannot be; use 1 to {most}")]
    Workers {
        /// Number that was asked for.
        wanted: usize,
        /// Most that there can be.
        most: usize,
    },
    /// Packets that do not fit.
    #[error(
        "the {side} interface has an MTU of {mtu}, and packets of more than {most} bytes do not fit; set it to {most} or less"
    )]
    Mtu {
        /// Side of the interface.
        side: &'static str,
        /// Its MTU, in bytes.
        mtu: u16,
        /// Largest packet that fits, in bytes.
        most: usize,
    },
    /// A core that is not there.
    #[error("workers.cores: core {core} may not be used; available: {available:?}")]
    Core {
        /// Core that was asked for.
        core: usize,
        /// Cores that there are.
        available: Vec<usize>,
    },
    /// The XDP program is not in place.
    #[error(transparent)]
    Steer(#[from] SteerError),
    /// A queue could not be bound.
    #[error("queue {queue} of interface {interface}")]
    Queue {
        /// Interface.
        interface: String,
        /// Queue.
        queue: u32,
        /// What is wrong.
        #[source]
        source: XskError,
    },
    /// Sessions cannot outlive the process.
    #[error(transparent)]
    SessionFile(#[from] SessionFileError),
    /// Memory, descriptors or threads are short.
    #[error("{what} cannot be made")]
    Resources {
        /// What is missing.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A worker does not give up its ports.
    #[error("{missing} of {workers} workers have not given up their {} ports within a second", side.name())]
    NotGivenUp {
        /// Workers that did not answer.
        missing: usize,
        /// All workers.
        workers: usize,
        /// Side of the ports.
        side: Side,
    },
    /// A worker does not answer.
    #[error("{missing} of {workers} workers have not adopted epoch {} within a second", epoch.0)]
    NotAcknowledged {
        /// Workers that did not answer.
        missing: usize,
        /// All workers.
        workers: usize,
        /// Epoch of the snapshot.
        epoch: Epoch,
    },
}

//! Why an XDP program is not in place.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;
use thiserror::Error;

/// Why the XDP program is not in place.
#[derive(Debug, Error)]
pub enum SteerError {
    /// The object file was refused.
    #[error("the XDP program cannot be loaded; CAP_BPF and CAP_NET_ADMIN are needed")]
    Load(#[source] Box<EbpfError>),
    /// The kernel refused the program.
    #[error("the XDP program cannot be verified or attached to interface {interface} in {mode} mode")]
    Attach {
        /// Index of the interface.
        interface: u32,
        /// Mode that was tried last.
        mode: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// The kernel refused the second line.
    #[error("the second line behind the XDP program cannot be attached to interface {interface}")]
    Guard {
        /// Index of the interface.
        interface: u32,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// The program of an earlier process is attached in a mode that is not wanted now.
    #[error(
        "an earlier XDP program is attached to interface {interface} in {mode} mode; set xdp.mode to \"{mode}\" or \"auto\", \
         or run `spillway detach` first"
    )]
    OtherMode {
        /// Index of the interface.
        interface: u32,
        /// Mode that it is attached in.
        mode: &'static str,
    },
    /// A link is not one of an XDP program.
    #[error(
        "the XDP link of interface {interface} cannot be pinned; another XDP program may be attached without a link"
    )]
    Link {
        /// Index of the interface.
        interface: u32,
        /// What is wrong with it.
        #[source]
        source: LinkError,
    },
    /// A pin could not be made or removed.
    #[error("{}: the pin cannot be made or removed; is a bpffs mounted there?", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A map's memory could not be had.
    #[error("the memory of XDP map {map} cannot be mapped")]
    Memory {
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A map could not be changed.
    #[error("XDP map {map} cannot be changed")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: MapError,
    },
}

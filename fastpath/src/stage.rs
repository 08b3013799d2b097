//! The stages of a frame's way, and at which of them each reason drops it.

use crate::verdict::DropReason;

/// A stage, in the order of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The XDP program steers it to a worker's queue, to the kernel, or nowhere.
    Steer,
    /// Its headers are read.
    Parse,
    /// Its tenant and direction are found.
    Classify,
    /// The ports of a fragment are found.
    Fragments,
    /// Time to live and length are checked.
    Limits,
    /// Its session is found or made.
    Session,
    /// Its next hop is found.
    Route,
    /// Addresses, ports and checksums are written.
    Rewrite,
    /// It is handed to the link, or to another worker.
    Send,
}

impl Stage {
    /// Every stage, in the order of the way.
    pub const ALL: [Self; 9] = [
        Self::Steer,
        Self::Parse,
        Self::Classify,
        Self::Fragments,
        Self::Limits,
        Self::Session,
        Self::Route,
        Self::Rewrite,
        Self::Send,
    ];

    /// Returns the stage's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steer => "steer",
            Self::Parse => "parse",
            Self::Classify => "classify",
            Self::Fragments => "fragments",
            Self::Limits => "limits",
            Self::Session => "session",
            Self::Route => "route",
            Self::Rewrite => "rewrite",
            Self::Send => "send",
        }
    }
}

impl DropReason {
    /// Returns the stage at which packets are dropped for the reason.
    pub fn stage(self) -> Stage {
        match self {
            Self::QueueShare => Stage::Steer,
            Self::Malformed
            | Self::NotIpv4
            | Self::BadChecksum
            | Self::FragmentedError
            | Self::QuotedFragment
            | Self::UnsupportedProtocol
            | Self::UnsupportedIcmp => Stage::Parse,
            Self::Leak
            | Self::UnknownSource
            | Self::UnknownPod
            | Self::NodeSource
            | Self::PodSource
            | Self::UnknownTenant
            | Self::MartianAddress
            | Self::MisaddressedError => Stage::Classify,
            Self::FragmentOverlap | Self::FragmentIncomplete | Self::FragmentLimit => Stage::Fragments,
            Self::TtlExceeded | Self::TooBig => Stage::Limits,
            Self::AmbiguousProtocol
            | Self::NoSession
            | Self::TenantDraining
            | Self::NoPort
            | Self::SessionsFull
            | Self::TenantShare
            | Self::TenantSessionLimit
            | Self::TenantPortLimit
            | Self::TenantRateLimit
            | Self::PodSessionLimit
            | Self::PodPortLimit
            | Self::PodRateLimit => Stage::Session,
            Self::NoRoute | Self::NeighbourUnresolved => Stage::Route,
            Self::InterfaceAway
            | Self::TxRingFull
            | Self::NoFreeFrame
            | Self::HandOverFull
            | Self::WorkerPanic => Stage::Send,
        }
    }
}

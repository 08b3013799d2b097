//! The kernel's links, addresses, routes and neighbours, read and changed.
//!
//! Everything that Spillway makes carries [`OWNER`], so that it is recognised after a crash: as protocol of
//! routes, addresses and neighbours, and as name prefix and kind of links.
//!
//! - [`facts`]: everything read, at one moment
//! - [`monitor`]: what the kernel tells of changes
//! - [`notice`]: one such change, and what it means for the facts
//! - `bulk`: many requests at once
//! - [`links`], [`addresses`], [`routes`], [`neighbours`]: one kind of object each

pub mod addresses;
mod bulk;
pub mod facts;
pub mod links;
pub mod monitor;
pub mod neighbours;
pub mod notice;
pub mod routes;

use std::io;

use nix::errno::Errno;
use thiserror::Error;

use self::bulk::Bulk;
use self::links::TenantLink;

/// Protocol number on routes (`proto 83`), addresses and neighbours that Spillway made. No routing daemon
/// known to iproute2 uses it.
pub const OWNER: u8 = 83;

/// Why the kernel could not be asked, or refused.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// No netlink socket could be opened.
    #[error("cannot open a netlink socket")]
    Connect(#[source] io::Error),
    /// The kernel refused.
    #[error("cannot {action}")]
    Refused {
        /// What was asked of it.
        action: String,
        /// Cause.
        source: Box<rtnetlink::Error>,
    },
    /// A setting under `/proc/sys` could not be changed.
    #[error(transparent)]
    Sysctl(#[from] crate::sysctl::SysctlError),
}

impl NetlinkError {
    /// Tells whether the kernel has no room: of neighbours, under `net.ipv4.neigh.default.gc_thresh3`.
    pub fn is_out_of_room(&self) -> bool {
        let Self::Refused { source, .. } = self else { return false };
        matches!(&**source, rtnetlink::Error::NetlinkError(answer) if answer.raw_code() == -(Errno::ENOBUFS as i32))
    }

    /// Returns the error of a link that the kernel made and nobody finds.
    pub(crate) fn missing(link: &TenantLink) -> Self {
        Self::refused(format!("find link {}", link.name))(rtnetlink::Error::RequestFailed)
    }

    fn refused(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let action = action.into();
        move |source| Self::Refused { action, source: Box::new(source) }
    }
}

/// Counts what is gone already, or whose link is, as removed.
fn unless_gone(removed: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    const GONE: [Errno; 4] = [Errno::ENODEV, Errno::ENOENT, Errno::ESRCH, Errno::EADDRNOTAVAIL];
    match removed {
        Err(rtnetlink::Error::NetlinkError(answer))
            if GONE.contains(&Errno::from_raw(answer.raw_code().saturating_neg())) =>
        {
            Ok(())
        }
        removed => removed,
    }
}

/// A connection to the kernel, for requests.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    bulk: Bulk,
}

impl Netlink {
    /// Opens a connection in the calling thread's network namespace; needs a tokio runtime.
    ///
    /// # Errors
    /// When no socket can be opened.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Connect)?;
        tokio::spawn(connection);
        Ok(Self { handle, bulk: Bulk::connect()? })
    }
}

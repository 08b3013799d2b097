//! What the kernel tells of changes.

use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::time::{Instant, sleep_until, timeout};

use super::NetlinkError;
use super::notice::Notice;

/// How long changes are collected before they are acted upon: a routing daemon's changes come in bursts.
const DEBOUNCE: Duration = Duration::from_millis(10);
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);
const LOOPBACK: u32 = 1;
/// Room for what the kernel tells of thousands of tenants' links at once.
const BUFFER_BYTES: usize = 16 << 20;

/// Kinds of facts that changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Links or addresses.
    pub links: bool,
    /// Routes.
    pub routes: bool,
    /// Neighbours.
    pub neighbours: bool,
}

impl Changes {
    /// Everything may have changed.
    pub const ALL: Self = Self { links: true, routes: true, neighbours: true };

    /// Tells whether anything may have changed.
    pub fn any(self) -> bool {
        self.links || self.routes || self.neighbours
    }

    /// Adds what else may have changed.
    pub fn include(&mut self, other: Self) {
        self.links |= other.links;
        self.routes |= other.routes;
        self.neighbours |= other.neighbours;
    }
}

/// The kernel's notifications.
pub struct Monitor {
    handle: Handle,
    notices: BoxStream<'static, Notice>,
    told: Vec<Notice>,
    deadline: Option<Instant>,
}

impl Monitor {
    /// Subscribes to links, IPv4 addresses, IPv4 routes and neighbours in the calling thread's network
    /// namespace; needs a tokio runtime.
    ///
    /// # Errors
    /// When no socket can be opened.
    pub fn subscribe() -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Neigh,
        ];
        let (mut connection, handle, messages) =
            new_multicast_connection(&groups).map_err(NetlinkError::Connect)?;
        // Without the privilege the buffer stays as it is: then more is read again.
        let _ = setsockopt(connection.socket_mut().socket_mut(), RcvBufForce, &BUFFER_BYTES);
        tokio::spawn(connection);
        let notices = messages.filter_map(async |(message, _)| Notice::of(message.payload)).boxed();
        Ok(Self::over(handle, notices))
    }

    /// Waits for the next notices, and a few milliseconds for others that come with them. None when the
    /// subscription ended.
    ///
    /// Nothing is forgotten when the returned future is dropped, neither notices nor how long they waited.
    pub async fn changed(&mut self) -> Option<()> {
        if self.told.is_empty() {
            self.told.push(self.notices.next().await?);
        }
        sleep_until(*self.deadline.get_or_insert_with(|| Instant::now() + DEBOUNCE)).await;
        self.deadline = None;
        Some(())
    }

    /// Returns everything that the kernel told before this was called, in order. Lost notifications count as changes
    /// of everything.
    ///
    /// # Errors
    /// When the subscription ended.
    pub async fn take(&mut self) -> Result<Vec<Notice>, NetlinkError> {
        // The answer to a request comes by the same socket, after all that was told before.
        let mut answers = Box::pin(self.handle.link().get().match_index(LOOPBACK).execute());
        let is_lost = match timeout(ANSWERED_WITHIN, answers.next()).await {
            Ok(None | Some(Err(rtnetlink::Error::RequestFailed))) => {
                return Err(NetlinkError::refused("follow changes")(rtnetlink::Error::RequestFailed));
            }
            Ok(Some(_)) => false,
            Err(_) => true, // the socket's buffer had no room for it
        };
        self.deadline = None;
        while let Some(Some(notice)) = self.notices.next().now_or_never() {
            self.told.push(notice);
        }
        if is_lost {
            self.put_back(Changes::ALL);
        }
        Ok(std::mem::take(&mut self.told))
    }

    /// Lets changes be told again.
    pub fn put_back(&mut self, changes: Changes) {
        if changes.any() {
            self.told.push(Notice::Unread(changes));
        }
    }

    fn over(handle: Handle, notices: BoxStream<'static, Notice>) -> Self {
        Self { handle, notices, told: Vec::new(), deadline: None }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    #[tokio::test]
    async fn changes_come_though_the_future_is_dropped_again_and_again() {
        let (_connection, handle, _) = rtnetlink::new_connection().unwrap();
        let notices = stream::iter([Notice::LinkGone(7)]).chain(stream::pending()).boxed();
        let mut monitor = Monitor::over(handle, notices);
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match timeout(DEBOUNCE / 2, monitor.changed()).await {
                Ok(changed) => {
                    return assert_eq!((changed, monitor.told), (Some(()), vec![Notice::LinkGone(7)]));
                }
                Err(_) => assert!(Instant::now() < deadline, "the wait starts anew each time"),
            }
        }
    }
}

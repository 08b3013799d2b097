//! Which of the kernel's facts changed.

use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::time::{Instant, sleep_until};

use super::NetlinkError;

/// How long changes are collected before they are acted upon: a routing daemon's changes come in bursts.
const DEBOUNCE: Duration = Duration::from_millis(10);

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

    fn told_by(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Self {
        let NetlinkPayload::InnerMessage(message) = payload else { return Self::ALL };
        match message {
            RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => {
                Self { routes: true, ..Self::default() }
            }
            RouteNetlinkMessage::NewNeighbour(_) | RouteNetlinkMessage::DelNeighbour(_) => {
                Self { neighbours: true, ..Self::default() }
            }
            // The kernel removes the routes and neighbours of a link that goes down without a word on each.
            _ => Self::ALL,
        }
    }
}

/// The kernel's notifications.
pub struct Monitor {
    notifications: BoxStream<'static, Changes>,
    pending: Changes,
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
        let (connection, _, messages) = new_multicast_connection(&groups).map_err(NetlinkError::Connect)?;
        tokio::spawn(connection);
        let notifications = messages.map(|(message, _)| Changes::told_by(&message.payload)).boxed();
        Ok(Self::over(notifications))
    }

    /// Waits for the next changes and returns all that come within a few milliseconds. Lost notifications
    /// count as changes of everything. None when the subscription ended.
    ///
    /// Nothing is forgotten when the returned future is dropped, neither changes nor how long they waited.
    pub async fn changed(&mut self) -> Option<Changes> {
        if !self.pending.any() {
            self.pending.include(self.notifications.next().await?);
        }
        sleep_until(*self.deadline.get_or_insert_with(|| Instant::now() + DEBOUNCE)).await;
        while let Some(Some(changes)) = self.notifications.next().now_or_never() {
            self.pending.include(changes);
        }
        self.deadline = None;
        Some(std::mem::take(&mut self.pending))
    }

    fn over(notifications: BoxStream<'static, Changes>) -> Self {
        Self { notifications, pending: Changes::default(), deadline: None }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn changes_come_though_the_future_is_dropped_again_and_again() {
        let neighbours = Changes { neighbours: true, ..Changes::default() };
        let mut monitor = Monitor::over(stream::iter([neighbours]).chain(stream::pending()).boxed());
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match timeout(DEBOUNCE / 2, monitor.changed()).await {
                Ok(changes) => return assert_eq!(changes, Some(neighbours)),
                Err(_) => assert!(Instant::now() < deadline, "the wait starts anew each time"),
            }
        }
    }
}

//! IPv4 neighbours: read, and resolved on request.

use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use macaddr::MacAddr6;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::RouteProtocol;

use super::{Netlink, NetlinkError, OWNER, unless_gone};

/// How the kernel knows a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Set by somebody, never asked for.
    Fixed,
    /// Resolved not long ago.
    Fresh,
    /// Resolved once; not confirmed since.
    Stale,
    /// Not resolved.
    None,
}

/// An entry of the kernel's neighbour table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the link that it is on.
    pub link: u32,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its hardware address, when there is one.
    pub mac: Option<MacAddr6>,
    /// How the kernel knows it.
    pub resolution: Resolution,
    /// Whether Spillway asked the kernel to keep it resolved.
    pub ours: bool,
}

impl Neighbour {
    /// Returns the hardware address, if frames can be sent to it.
    pub fn usable_mac(&self) -> Option<MacAddr6> {
        let sound = |mac: &MacAddr6| mac.is_unicast() && !mac.is_nil();
        self.mac.filter(sound).filter(|_| self.resolution != Resolution::None)
    }

    fn from_message(message: NeighbourMessage) -> Option<Self> {
        let header = message.header;
        if header.family != AddressFamily::Inet || header.flags.contains(NeighbourFlags::Proxy) {
            return None;
        }
        let (mut address, mut mac, mut ours) = (None, None, false);
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(inet)) => address = Some(inet),
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddr6::from);
                }
                NeighbourAttribute::Protocol(RouteProtocol::Other(OWNER)) => ours = true,
                _ => {}
            }
        }
        let resolution = match header.state {
            NeighbourState::Permanent | NeighbourState::Noarp => Resolution::Fixed,
            NeighbourState::Reachable | NeighbourState::Delay | NeighbourState::Probe => Resolution::Fresh,
            NeighbourState::Stale => Resolution::Stale,
            _ => Resolution::None,
        };
        Some(Self { link: header.ifindex, address: address?, mac, resolution, ours })
    }
}

impl Netlink {
    /// Reads all IPv4 neighbours.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn read_neighbours(&self) -> Result<Vec<Neighbour>, NetlinkError> {
        let request = self.handle.neighbours().get().set_address_family(AddressFamily::Inet);
        let neighbours: Result<Vec<_>, _> =
            request.execute().map_ok(Neighbour::from_message).try_collect().await;
        Ok(neighbours.map_err(NetlinkError::refused("read neighbours"))?.into_iter().flatten().collect())
    }

    /// Asks the kernel to resolve a neighbour now, and to keep it resolved, marked as Spillway's. A kernel
    /// that cannot keep neighbours resolved (before 5.16) resolves it once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn keep_resolved(&self, link: u32, address: Ipv4Addr) -> Result<(), NetlinkError> {
        let mut request = self.resolve_request(link, address);
        let attributes = &mut request.message_mut().attributes;
        attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(OWNER)));
        match request.execute().await {
            Ok(()) => Ok(()),
            Err(rtnetlink::Error::NetlinkError(_)) => self.resolve_once(link, address).await,
            Err(error) => Err(NetlinkError::refused(format!("keep neighbour {address} resolved"))(error)),
        }
    }

    /// Asks the kernel to resolve a neighbour now, or to confirm it when it is stale.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn resolve_once(&self, link: u32, address: Ipv4Addr) -> Result<(), NetlinkError> {
        let request = self.resolve_request(link, address).flags(NeighbourFlags::Use);
        request.execute().await.map_err(NetlinkError::refused(format!("resolve neighbour {address}")))
    }

    /// Removes an entry; the kernel resolves the neighbour again when it needs it; one that is gone already counts as removed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_neighbour(&self, link: u32, address: Ipv4Addr) -> Result<(), NetlinkError> {
        let message = self.resolve_request(link, address).message_mut().clone();
        let refused = NetlinkError::refused(format!("remove neighbour {address}"));
        unless_gone(self.handle.neighbours().del(message).execute().await).map_err(refused)
    }

    fn resolve_request(&self, link: u32, address: Ipv4Addr) -> rtnetlink::NeighbourAddRequest {
        self.handle.neighbours().add(link, address.into()).state(NeighbourState::None).replace()
    }
}

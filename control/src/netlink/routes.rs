//! IPv4 unicast routes of the main table.

use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHopFlags, RouteProtocol, RouteType,
};

use super::{Netlink, NetlinkError, OWNER, unless_gone};

/// A route, or one next hop of a multipath route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destinations that it covers.
    pub prefix: Ipv4Net,
    /// Next hop; none when the destination is on the link.
    pub gateway: Option<Ipv4Addr>,
    /// Index of the link that it leaves by.
    pub link: u32,
    /// Priority; the smallest wins.
    pub metric: u32,
    /// Whether Spillway made it.
    pub ours: bool,
}

/// What is said of a route as a whole, and of each next hop of a multipath route.
#[derive(Default)]
struct Hop {
    gateway: Option<Ipv4Addr>,
    link: Option<u32>,
    unusable: bool,
}

impl Hop {
    fn read(&mut self, attribute: &RouteAttribute) {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => self.gateway = Some(*gateway),
            RouteAttribute::Oif(link) => self.link = Some(*link),
            RouteAttribute::Via(_) | RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => {
                self.unusable = true;
            }
            _ => {}
        }
    }
}

impl Route {
    /// Tells whether a message is of a route of the main table.
    pub(super) fn is_in_main(message: &RouteMessage) -> bool {
        let number = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Table(number) => Some(*number),
            _ => None,
        });
        number.unwrap_or(message.header.table.into()) == u32::from(RouteHeader::RT_TABLE_MAIN)
    }

    fn from_message(message: &RouteMessage) -> Vec<Self> {
        let header = &message.header;
        let (mut destination, mut metric, mut hops) = (Ipv4Addr::UNSPECIFIED, 0, vec![Hop::default()]);
        let dead = RouteNextHopFlags::Dead.bits() | RouteNextHopFlags::Linkdown.bits();
        hops[0].unusable = header.flags.bits() & u32::from(dead) != 0;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::MultiPath(nexthops) => hops.extend(nexthops.iter().map(|nexthop| {
                    let mut hop = Hop { link: Some(nexthop.interface_index), ..Hop::default() };
                    hop.unusable = nexthop.flags.bits() & dead != 0;
                    nexthop.attributes.iter().for_each(|attribute| hop.read(attribute));
                    hop
                })),
                other => hops[0].read(other),
            }
        }
        if !Self::is_in_main(message) || header.kind != RouteType::Unicast || header.tos != 0 {
            return Vec::new();
        }
        let Ok(prefix) = Ipv4Net::new(destination, header.destination_prefix_length) else {
            return Vec::new();
        };
        let ours = header.protocol == RouteProtocol::Other(OWNER);
        let usable = hops.into_iter().filter(|hop| !hop.unusable);
        usable
            .filter_map(|hop| Some(Self { prefix, gateway: hop.gateway, link: hop.link?, metric, ours }))
            .collect()
    }
}

impl Netlink {
    /// Reads the usable IPv4 unicast routes of the main table.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn read_routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let messages = self.handle.route().get(filter).execute();
        let routes: Result<Vec<_>, _> =
            messages.map_ok(|message| Route::from_message(&message)).try_collect().await;
        Ok(routes.map_err(NetlinkError::refused("read routes"))?.into_iter().flatten().collect())
    }

    /// Adds a route by a next hop, marked as Spillway's. A route to the same network that somebody else made
    /// is not replaced.
    ///
    /// # Errors
    /// When the kernel refuses, or has a route to this network.
    pub async fn add_route(&self, prefix: Ipv4Net, via: Ipv4Addr, link: u32) -> Result<(), NetlinkError> {
        let refused = NetlinkError::refused(format!("add route {prefix} via {via}"));
        self.handle.route().add(own_route(prefix, via, link)).execute().await.map_err(refused)
    }

    /// Removes a route that Spillway made; one that is gone already counts as removed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_route(&self, prefix: Ipv4Net, via: Ipv4Addr, link: u32) -> Result<(), NetlinkError> {
        let refused = NetlinkError::refused(format!("remove route {prefix} via {via}"));
        unless_gone(self.handle.route().del(own_route(prefix, via, link)).execute().await).map_err(refused)
    }
}

fn own_route(prefix: Ipv4Net, via: Ipv4Addr, link: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(prefix.network(), prefix.prefix_len())
        .gateway(via)
        .output_interface(link)
        .protocol(RouteProtocol::Other(OWNER))
        .build()
}

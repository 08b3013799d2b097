//! IPv4 addresses: the host's own, gateway addresses and egress addresses.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::AddressMessageBuilder;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressProtocol,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, NetlinkError, OWNER, unless_gone};

/// An IPv4 address on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the link.
    pub link: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// Length of its network's prefix.
    pub prefix_len: u8,
    /// Whether another address of the same network on the link comes first.
    pub secondary: bool,
    /// Whether Spillway made it.
    pub ours: bool,
}

impl Address {
    /// Tells whether another is the same address of the same link, whatever else is said of it.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        let place = |address: &Self| (address.link, address.address, address.prefix_len);
        place(self) == place(other)
    }

    pub(super) fn from_message(message: AddressMessage) -> Option<Self> {
        if message.header.family != AddressFamily::Inet {
            return None;
        }
        let (mut local, mut ours) = (None, false);
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => local = Some(address),
                AddressAttribute::Protocol(AddressProtocol::Other(OWNER)) => ours = true,
                _ => {}
            }
        }
        Some(Self {
            link: message.header.index,
            address: local?,
            prefix_len: message.header.prefix_len,
            secondary: message.header.flags.contains(AddressHeaderFlags::Secondary),
            ours,
        })
    }
}

impl Netlink {
    /// Reads all IPv4 addresses.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn read_addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        let mut request = self.handle.address().get();
        request.message_mut().header.family = AddressFamily::Inet;
        let addresses: Result<Vec<_>, _> =
            request.execute().map_ok(Address::from_message).try_collect().await;
        Ok(addresses.map_err(NetlinkError::refused("read addresses"))?.into_iter().flatten().collect())
    }

    /// Adds addresses, each as a /32, to a link, marked as Spillway's, and returns what became of each; one that
    /// someone else has added since addresses were last read stays theirs.
    pub async fn add_addresses(
        &self,
        link: u32,
        name: &str,
        addresses: &[Ipv4Addr],
    ) -> Vec<Result<(), NetlinkError>> {
        let requests = addresses.iter().map(|address| Self::add_address_request(link, *address)).collect();
        let outcomes = self.bulk.make(requests).await.into_iter().zip(addresses);
        outcomes.map(|(outcome, address)| address_added(outcome, name, *address)).collect()
    }

    pub(super) fn add_address_request(link: u32, address: Ipv4Addr) -> RouteNetlinkMessage {
        let mut message = AddressMessageBuilder::<Ipv4Addr>::new().index(link).address(address, 32).build();
        message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(OWNER)));
        RouteNetlinkMessage::NewAddress(message)
    }

    /// Removes `address`/32 from a link; one that is gone already counts as removed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_address(&self, link: u32, address: Ipv4Addr) -> Result<(), NetlinkError> {
        let message = AddressMessageBuilder::<Ipv4Addr>::new().index(link).address(address, 32).build();
        let refused = NetlinkError::refused(format!("remove {address}/32"));
        unless_gone(self.handle.address().del(message).execute().await).map_err(refused)
    }
}

pub(super) fn address_added(
    outcome: Result<(), rtnetlink::Error>,
    name: &str,
    address: Ipv4Addr,
) -> Result<(), NetlinkError> {
    match outcome {
        Err(rtnetlink::Error::NetlinkError(answer)) if answer.raw_code() == -(Errno::EEXIST as i32) => Ok(()),
        outcome => outcome.map_err(NetlinkError::refused(format!("add {address}/32 to {name}"))),
    }
}

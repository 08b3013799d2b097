//! Everything that the kernel knows and Spillway needs, at one moment.

use std::net::Ipv4Addr;

use fastpath::snapshot::Side;
use ipnet::Ipv4Net;
use thiserror::Error;
use tracing::debug;

use super::addresses::Address;
use super::links::Link;
use super::monitor::{Changes, Monitor};
use super::neighbours::Neighbour;
use super::routes::Route;
use super::{Netlink, NetlinkError};

/// Links, addresses, routes and neighbours of the network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// All links.
    pub links: Vec<Link>,
    /// All IPv4 addresses.
    pub addresses: Vec<Address>,
    /// The usable IPv4 unicast routes of the main table.
    pub routes: Vec<Route>,
    /// All IPv4 neighbours.
    pub neighbours: Vec<Neighbour>,
}

/// Names of the two interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interfaces {
    /// The inside interface.
    pub inside: String,
    /// The outside interface.
    pub outside: String,
}

impl Interfaces {
    /// Returns the name of one side's interface.
    pub fn name(&self, side: Side) -> &str {
        match side {
            Side::Inside => &self.inside,
            Side::Outside => &self.outside,
        }
    }
}

/// Link indices of the two interfaces, as far as they are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sides([(Side, Option<u32>); 2]);

impl Sides {
    /// Returns the side that a link index belongs to, if it is one of the two interfaces.
    pub fn of(self, index: u32) -> Option<Side> {
        self.0.into_iter().find(|(_, own)| *own == Some(index)).map(|(side, _)| side)
    }
}

/// Why an interface cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InterfaceError {
    /// There is no such link.
    #[error("{key}: {name:?} does not exist; there are {others}", key = key(*side))]
    Missing {
        /// Side that it should be.
        side: Side,
        /// Name that was asked for.
        name: String,
        /// Names that there are.
        others: String,
    },
    /// The link is down.
    #[error("{key}: {name:?} is down; run `ip link set {name} up`", key = key(*side))]
    Down {
        /// Side that it is.
        side: Side,
        /// Its name.
        name: String,
    },
    /// The link has no Ethernet address.
    #[error("{key}: {name:?} has no Ethernet address; give an Ethernet interface", key = key(*side))]
    NotEthernet {
        /// Side that it is.
        side: Side,
        /// Its name.
        name: String,
    },
    /// The link has no IPv4 address.
    #[error("{key}: {name:?} has no IPv4 address; give it one of its network", key = key(*side))]
    NoAddress {
        /// Side that it is.
        side: Side,
        /// Its name.
        name: String,
    },
}

fn key(side: Side) -> String {
    format!("{}.interface", side.name())
}

impl Facts {
    /// Reads everything.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn read(netlink: &Netlink) -> Result<Self, NetlinkError> {
        let mut facts = Self::default();
        facts.refresh(netlink, Changes::ALL).await?;
        Ok(facts)
    }

    /// Reads again what changed.
    ///
    /// # Errors
    /// When the kernel refuses; what was not read then stays as it was.
    pub async fn refresh(&mut self, netlink: &Netlink, changes: Changes) -> Result<(), NetlinkError> {
        if changes.links {
            debug!("reading all links and addresses");
            self.links = netlink.read_links().await?;
            self.addresses = netlink.read_addresses().await?;
        }
        if changes.routes {
            self.routes = netlink.read_routes().await?;
        }
        if changes.neighbours {
            self.neighbours = netlink.read_neighbours().await?;
        }
        Ok(())
    }

    /// Takes over what the kernel told until now, and reads again what it tells no details of and what is `wanted`.
    /// Returns what changed or was read.
    ///
    /// # Errors
    /// When the kernel refuses; everything has to be read again then.
    pub async fn catch_up(
        &mut self,
        netlink: &Netlink,
        monitor: &mut Monitor,
        wanted: Changes,
    ) -> Result<Changes, NetlinkError> {
        let learned = self.learn(monitor.take().await?);
        let mut unread = learned.unread;
        unread.include(wanted);
        self.refresh(netlink, unread).await?;
        if unread.links {
            // What was told while links were read is newer than some of what was read and older than the rest.
            let meanwhile = self.learn(monitor.take().await?);
            monitor.put_back(meanwhile.unread);
        }
        Ok(Changes { links: unread.links || learned.links_changed, ..unread })
    }

    /// Returns the link with this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Returns the usable link of one side, and the gateway's own address and network on it.
    ///
    /// # Errors
    /// When the link is missing, down, not Ethernet, or without an address.
    pub fn port(&self, interfaces: &Interfaces, side: Side) -> Result<(&Link, Ipv4Net), InterfaceError> {
        let name = interfaces.name(side).to_owned();
        let Some(link) = self.link(&name) else {
            let others: Vec<&str> = self.links.iter().map(|link| link.name.as_str()).collect();
            return Err(InterfaceError::Missing { side, name, others: others.join(", ") });
        };
        if !link.up {
            return Err(InterfaceError::Down { side, name });
        }
        if link.mac.is_none() {
            return Err(InterfaceError::NotEthernet { side, name });
        }
        let own = self.addresses.iter().filter(|address| address.link == link.index && !address.ours);
        // An egress address that somebody else put there is a /32; the interface's own address has a network.
        let first = own.min_by_key(|address| (address.prefix_len == 32, address.secondary));
        let network = first.and_then(|first| Ipv4Net::new(first.address, first.prefix_len).ok());
        network.map(|network| (link, network)).ok_or(InterfaceError::NoAddress { side, name })
    }

    /// Returns which link indices the two interfaces have.
    pub fn sides(&self, interfaces: &Interfaces) -> Sides {
        let index = |side| self.link(interfaces.name(side)).map(|link| link.index);
        Sides(Side::BOTH.map(|side| (side, index(side))))
    }

    /// Tells whether a link has this address.
    pub fn has_address(&self, link: u32, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|have| have.link == link && have.address == address)
    }
}

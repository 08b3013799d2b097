//! Links: the two interfaces, and the macvlan link that answers ARP for each tenant.

use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use macaddr::MacAddr6;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, LinkXdp, MacVlanMode,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{LinkMacVlan, LinkUnspec};

use super::addresses::address_added;
use super::{Netlink, NetlinkError, unless_gone};
use crate::sysctl;
use crate::tenant::LINK_PREFIX;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Hardware address, of Ethernet-like links.
    pub mac: Option<MacAddr6>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub up: bool,
    /// Whether there is somebody at the other end of the cable.
    pub carrier: bool,
    /// Index of the link that this one is a macvlan of.
    pub macvlan_parent: Option<u32>,
}

/// The macvlan link of one tenant: it answers ARP and ping for the gateway address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantLink {
    /// Name of the link.
    pub name: String,
    /// Hardware address.
    pub mac: MacAddr6,
    /// The tenant's gateway address.
    pub address: Ipv4Addr,
    /// Name of the tenant, kept as the link's alias.
    pub tenant: String,
}

impl Link {
    /// Tells whether Spillway made this link above `parent`.
    pub fn is_tenant_link_of(&self, parent: u32) -> bool {
        self.is_tenant_link() && self.macvlan_parent == Some(parent)
    }

    /// Tells whether Spillway made this link.
    pub fn is_tenant_link(&self) -> bool {
        let address = self.name.strip_prefix(LINK_PREFIX).unwrap_or_default();
        let named = address.len() == 8 && address.bytes().all(|byte| byte.is_ascii_hexdigit());
        named && self.macvlan_parent.is_some()
    }

    pub(super) fn from_message(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: message.header.flags.contains(LinkFlags::LowerUp),
            macvlan_parent: None,
        };
        let (mut macvlan, mut elsewhere) = (false, false);
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => {
                    link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddr6::from);
                }
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Link(parent) => link.macvlan_parent = Some(parent),
                LinkAttribute::LinkNetNsId(_) => elsewhere = true,
                LinkAttribute::LinkInfo(infos) => {
                    macvlan = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::MacVlan)));
                }
                _ => {}
            }
        }
        link.macvlan_parent = link.macvlan_parent.filter(|_| macvlan && !elsewhere);
        link
    }
}

impl Netlink {
    /// Reads all links.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn read_links(&self) -> Result<Vec<Link>, NetlinkError> {
        // The kernel takes as long for a link's counters as for the rest of it.
        let request =
            self.handle.link().get().set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        let messages = request.execute().map_ok(Link::from_message);
        messages.try_collect().await.map_err(NetlinkError::refused("read links"))
    }

    /// Makes links of tenants above `parent`, down and without addresses, and returns what became of each.
    pub async fn make_tenant_links(
        &self,
        links: &[&TenantLink],
        parent: u32,
    ) -> Vec<Result<(), NetlinkError>> {
        let request = |link: &&TenantLink| {
            let message = LinkMacVlan::new(&link.name, parent, MacVlanMode::Bridge);
            RouteNetlinkMessage::NewLink(message.address(link.mac.as_bytes().to_vec()).build())
        };
        let outcomes = self.bulk.make(links.iter().map(request).collect()).await.into_iter().zip(links);
        let refused = |link: &TenantLink| NetlinkError::refused(format!("make macvlan link {}", link.name));
        outcomes.map(|(outcome, link)| outcome.map_err(refused(link))).collect()
    }

    /// Isolates the ARP of tenants' links, given with their indices, gives each its address and sets it up.
    /// Returns what became of each; one that something is refused of is removed again.
    pub async fn dress_tenant_links(&self, links: &[(&TenantLink, u32)]) -> Vec<Result<(), NetlinkError>> {
        let isolated: Vec<_> = links.iter().map(|(link, _)| sysctl::isolate_new_link(&link.name)).collect();
        let to_dress = links.iter().zip(&isolated).filter(|(_, isolated)| isolated.is_ok());
        let requests = to_dress.flat_map(|((link, index), _)| {
            let up = LinkUnspec::new_with_index(*index).alias(link.tenant.as_str()).up().build();
            [Self::add_address_request(*index, link.address), RouteNetlinkMessage::SetLink(up)]
        });
        let mut answers = self.bulk.make(requests.collect()).await.into_iter();
        let mut outcomes = Vec::with_capacity(links.len());
        for ((link, index), isolated) in links.iter().zip(isolated) {
            let dressed = isolated.map_err(NetlinkError::from).and_then(|()| {
                let mut next = || answers.next().unwrap_or(Err(rtnetlink::Error::RequestFailed));
                let (address, up) = (next(), next());
                address_added(address, &link.name, link.address)?;
                up.map_err(NetlinkError::refused(format!("set link {} up", link.name)))
            });
            outcomes.push(match dressed {
                Ok(()) => Ok(()),
                Err(error) => self.remove_link(*index, &link.name).await.and(Err(error)),
            });
        }
        outcomes
    }

    /// Removes an XDP program that was attached to a link as `ip link set xdp` does.
    ///
    /// # Errors
    /// When the kernel refuses, as it does where a BPF link holds the program.
    pub async fn remove_xdp(&self, index: u32, name: &str) -> Result<(), NetlinkError> {
        const NO_PROGRAM: i32 = -1;
        let nothing = LinkAttribute::Xdp(vec![LinkXdp::Fd(NO_PROGRAM)]);
        let request = LinkUnspec::new_with_index(index).append_extra_attribute(nothing).build();
        let refused = NetlinkError::refused(format!("remove the XDP program from {name}"));
        self.handle.link().set(request).execute().await.map_err(refused)
    }

    /// Removes a link; one that is gone already counts as removed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_link(&self, index: u32, name: &str) -> Result<(), NetlinkError> {
        let refused = NetlinkError::refused(format!("remove link {name}"));
        unless_gone(self.handle.link().del(index).execute().await).map_err(refused)
    }
}

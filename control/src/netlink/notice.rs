//! What the kernel tells of changes, and what that means for the facts.

use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::addresses::Address;
use super::facts::Facts;
use super::links::Link;
use super::monitor::Changes;
use super::routes::Route;

/// From so many notices on it is cheaper to read everything again.
const MOST_NOTICES: usize = 1000;

/// Something that the kernel told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A link is there, or is another than it was.
    Link(Link),
    /// The link of this index is gone.
    LinkGone(u32),
    /// An address is there, or is another than it was.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// Something that has to be read to be known.
    Unread(Changes),
}

/// What came of notices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// Whether links or addresses changed.
    pub links_changed: bool,
    /// What has to be read again.
    pub unread: Changes,
}

impl Notice {
    /// Returns what a message tells; none when the facts have nothing of the kind.
    pub(super) fn of(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Self> {
        const PATHS: Changes = Changes { links: false, routes: true, neighbours: true };
        let NetlinkPayload::InnerMessage(message) = payload else { return Some(Self::Unread(Changes::ALL)) };
        match message {
            RouteNetlinkMessage::NewLink(message)
                if message.header.interface_family == AddressFamily::Unspec =>
            {
                let link = Link::from_message(message);
                let is_whole = !link.name.is_empty();
                Some(if is_whole { Self::Link(link) } else { Self::Unread(Changes::ALL) })
            }
            RouteNetlinkMessage::DelLink(message)
                if message.header.interface_family == AddressFamily::Unspec =>
            {
                Some(Self::LinkGone(message.header.index))
            }
            RouteNetlinkMessage::NewAddress(message) => Address::from_message(message).map(Self::Address),
            RouteNetlinkMessage::DelAddress(message) => Address::from_message(message).map(Self::AddressGone),
            RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
                Route::is_in_main(&message).then_some(Self::Unread(Changes { neighbours: false, ..PATHS }))
            }
            RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message) => {
                (message.header.family == AddressFamily::Inet)
                    .then_some(Self::Unread(Changes { routes: false, ..PATHS }))
            }
            _ => Some(Self::Unread(Changes::ALL)),
        }
    }
}

impl Facts {
    /// Takes over what the kernel told.
    pub fn learn(&mut self, notices: Vec<Notice>) -> Learned {
        let mut learned = Learned::default();
        if notices.len() > MOST_NOTICES {
            learned.unread = Changes::ALL;
            return learned;
        }
        for notice in notices {
            match notice {
                Notice::Link(link) => self.learn_link(link, &mut learned),
                Notice::LinkGone(index) => self.forget_link(index, &mut learned),
                Notice::Address(address) => self.learn_address(address, &mut learned),
                Notice::AddressGone(address) => self.forget_address(&address, &mut learned),
                Notice::Unread(changes) => learned.unread.include(changes),
            }
        }
        learned
    }

    fn learn_link(&mut self, link: Link, learned: &mut Learned) {
        let known = self.links.iter_mut().find(|known| known.index == link.index);
        if known.as_deref() == Some(&link) {
            return;
        }
        if !link.is_tenant_link() {
            learned.read_paths();
        }
        learned.links_changed = true;
        match known {
            Some(known) => *known = link,
            None => self.links.push(link),
        }
    }

    fn forget_link(&mut self, index: u32, learned: &mut Learned) {
        let Some(position) = self.links.iter().position(|known| known.index == index) else { return };
        let link = self.links.remove(position);
        let has_paths = self.routes.iter().any(|route| route.link == index)
            || self.neighbours.iter().any(|neighbour| neighbour.link == index);
        if has_paths || !link.is_tenant_link() {
            learned.read_paths();
        }
        self.addresses.retain(|address| address.link != index);
        learned.links_changed = true;
    }

    fn learn_address(&mut self, address: Address, learned: &mut Learned) {
        let known = self.addresses.iter_mut().find(|known| known.is_at(&address));
        if known.as_deref() == Some(&address) {
            return;
        }
        if !address.ours {
            learned.read_paths();
        }
        learned.links_changed = true;
        match known {
            Some(known) => *known = address,
            None => self.addresses.push(address),
        }
    }

    fn forget_address(&mut self, address: &Address, learned: &mut Learned) {
        let Some(position) = self.addresses.iter().position(|known| known.is_at(address)) else { return };
        self.addresses.remove(position);
        if !address.ours {
            learned.read_paths();
        }
        learned.links_changed = true;
    }
}

impl Learned {
    /// The kernel removes and revives routes and neighbours with their link or network without a word on each. A
    /// tenant's link and address have none.
    fn read_paths(&mut self) {
        self.unread.include(Changes { links: false, routes: true, neighbours: true });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;
    use rtnetlink::packet_core::{NetlinkHeader, NetlinkMessage};
    use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
    use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
    use rtnetlink::packet_route::neighbour::NeighbourMessage;
    use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_the_kernel_tells_is_learned_or_refused(
            messages in proptest::collection::vec(message_bytes(), 1..4),
        ) {
            let mut facts = Facts { links: vec![link(2, "in0", None)], ..Facts::default() };
            for bytes in messages {
                if let Ok(message) = NetlinkMessage::deserialize(&bytes)
                    && let Some(notice) = Notice::of(message.payload)
                {
                    facts.learn(vec![notice.clone(), notice]);
                }
            }
            let indices: std::collections::BTreeSet<_> = facts.links.iter().map(|link| link.index).collect();
            prop_assert_eq!(indices.len(), facts.links.len(), "a link is known once");
        }
    }

    /// A message as the kernel writes it, with some bytes changed or cut off; or any bytes.
    fn message_bytes() -> impl Strategy<Value = Vec<u8>> {
        let sound =
            (0..sound_messages().len(), proptest::collection::vec((any::<Index>(), any::<u8>()), 0..6));
        let sound = (sound, any::<Index>(), any::<bool>()).prop_map(|((which, edits), cut, is_cut)| {
            let mut bytes = sound_messages().swap_remove(which);
            edits.into_iter().for_each(|(place, byte)| {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            });
            let length = if is_cut { cut.index(bytes.len()) } else { bytes.len() };
            bytes.truncate(length);
            bytes
        });
        prop_oneof![8 => sound, 1 => proptest::collection::vec(any::<u8>(), 0..120)]
    }

    fn sound_messages() -> Vec<Vec<u8>> {
        let mut link = LinkMessage::default();
        link.header.index = 3;
        link.attributes = vec![
            LinkAttribute::IfName("spw-c0a8630d".to_owned()),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Link(2),
            LinkAttribute::Address(vec![2, 0x53, 192, 168, 99, 13]),
        ];
        let mut address = AddressMessage::default();
        (address.header.family, address.header.prefix_len, address.header.index) =
            (AddressFamily::Inet, 32, 3);
        let ip = std::net::IpAddr::from([192, 168, 99, 13]);
        address.attributes = vec![AddressAttribute::Address(ip), AddressAttribute::Local(ip)];
        let mut route = RouteMessage::default();
        (route.header.address_family, route.header.table) = (AddressFamily::Inet, 254);
        route.attributes = vec![RouteAttribute::Oif(2), RouteAttribute::Priority(5)];
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.family = AddressFamily::Inet;
        let messages = [
            RouteNetlinkMessage::NewLink(link.clone()),
            RouteNetlinkMessage::DelLink(link),
            RouteNetlinkMessage::NewAddress(address.clone()),
            RouteNetlinkMessage::DelAddress(address),
            RouteNetlinkMessage::NewRoute(route),
            RouteNetlinkMessage::NewNeighbour(neighbour),
        ];
        let bytes = messages.into_iter().map(|message| {
            let mut message =
                NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            bytes
        });
        bytes.collect()
    }

    const NONE: Changes = Changes { links: false, routes: false, neighbours: false };
    const PATHS: Changes = Changes { links: false, routes: true, neighbours: true };

    #[test]
    fn a_tenants_link_and_address_are_known_without_reading() {
        let mut facts = Facts { links: vec![link(2, "in0", None)], ..Facts::default() };
        let tenant = link(3, "spw-c0a8630d", Some(2));
        let told = vec![Notice::Link(tenant.clone()), Notice::Address(address(3, true))];
        assert_eq!(facts.learn(told.clone()), Learned { links_changed: true, unread: NONE });
        assert_eq!((facts.links.len(), facts.addresses.len()), (2, 1));
        assert_eq!(facts.learn(told), Learned::default(), "told twice, it changes nothing");
        let down = Link { up: false, ..tenant };
        assert_eq!(facts.learn(vec![Notice::Link(down.clone())]).unread, NONE);
        assert_eq!(facts.links[1], down);
        assert_eq!(facts.learn(vec![Notice::LinkGone(3)]), Learned { links_changed: true, unread: NONE });
        assert_eq!((facts.links.len(), facts.addresses.len()), (1, 0), "its address goes with it");
    }

    #[test]
    fn after_changes_of_other_links_and_addresses_routes_and_neighbours_are_read() {
        let mut facts = Facts { links: vec![link(2, "in0", None)], ..Facts::default() };
        let down = Link { carrier: false, ..link(2, "in0", None) };
        let table = [
            Notice::Link(down),
            Notice::Address(address(2, false)),
            Notice::AddressGone(address(2, false)),
            Notice::LinkGone(2),
        ];
        for notice in table {
            let learned = facts.learn(vec![notice.clone()]);
            assert_eq!(learned, Learned { links_changed: true, unread: PATHS }, "{notice:?}");
        }
        assert_eq!(facts, Facts::default());
    }

    #[test]
    fn everything_is_read_when_too_much_was_told_or_some_was_lost() {
        let mut facts = Facts::default();
        let many = vec![Notice::LinkGone(7); MOST_NOTICES + 1];
        assert_eq!(facts.learn(many).unread, Changes::ALL);
        let lost = Notice::of(NetlinkPayload::Overrun(Vec::new())).unwrap();
        assert_eq!(facts.learn(vec![lost]).unread, Changes::ALL);
    }

    fn link(index: u32, name: &str, macvlan_parent: Option<u32>) -> Link {
        let name = name.to_owned();
        Link { index, name, mac: None, mtu: 1500, up: true, carrier: true, macvlan_parent }
    }

    fn address(link: u32, ours: bool) -> Address {
        Address { link, address: [192, 168, 99, 13].into(), prefix_len: 32, secondary: false, ours }
    }
}

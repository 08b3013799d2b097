//! Gratuitous ARP: tells the neighbours which MAC stands for an address (RFC 5227 section 2.3).

use std::net::Ipv4Addr;

use macaddr::MacAddr6;

use crate::io::Frame;
use crate::snapshot::{Side, Snapshot};

/// Bytes of an ARP announcement without padding.
const ANNOUNCEMENT_BYTES: usize = 42;

/// An address that the gateway answers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Announcement {
    /// Side on which it is announced.
    pub side: Side,
    /// The address.
    pub address: Ipv4Addr,
    /// Its MAC.
    pub mac: MacAddr6,
}

impl Announcement {
    /// Tells whether the gateway answers for the address, with this MAC, under a snapshot too.
    pub fn holds_under(&self, snapshot: &Snapshot) -> bool {
        match self.side {
            Side::Inside => snapshot
                .tenant_by_mac(self.mac)
                .and_then(|tenant| snapshot.tenant(tenant))
                .is_some_and(|tenant| tenant.gateway_address == self.address),
            Side::Outside => {
                snapshot.tenant_by_egress(self.address).is_some()
                    && snapshot.link(Side::Outside).mac == self.mac
            }
        }
    }
}

/// Returns what `next` announces and `previous` did not.
pub fn new_announcements(previous: Option<&Snapshot>, next: &Snapshot) -> Vec<Announcement> {
    let mut announcements: Vec<_> = all_announcements(next).collect();
    if let Some(previous) = previous {
        let known: std::collections::HashSet<_> = all_announcements(previous).collect();
        announcements.retain(|announcement| !known.contains(announcement));
    }
    announcements
}

fn all_announcements(snapshot: &Snapshot) -> impl Iterator<Item = Announcement> {
    let outside = snapshot.link(Side::Outside).mac;
    snapshot.spec().tenants.iter().flat_map(move |tenant| {
        let gateway =
            Announcement { side: Side::Inside, address: tenant.gateway_address, mac: tenant.gateway_mac };
        let egress = tenant.egress_addresses.iter().map(move |address| Announcement {
            side: Side::Outside,
            address: *address,
            mac: outside,
        });
        std::iter::once(gateway).chain(egress)
    })
}

/// Writes an announcement into a frame: an ARP request from the address to itself, to everybody.
pub fn write_announcement(frame: &mut Frame, announcement: &Announcement) {
    let (mac, address) = (announcement.mac.as_bytes(), announcement.address.octets());
    frame.set_len(ANNOUNCEMENT_BYTES);
    let bytes = frame.bytes_mut();
    bytes[..6].fill(0xff);
    bytes[6..12].copy_from_slice(mac);
    // EtherType ARP; hardware Ethernet, protocol IPv4, their lengths; operation request (RFC 826).
    bytes[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes[22..28].copy_from_slice(mac);
    bytes[28..32].copy_from_slice(&address);
    bytes[32..38].fill(0);
    bytes[38..42].copy_from_slice(&address);
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket};

    use super::*;
    use crate::io::FrameArea;
    use crate::testing::gateway;

    #[test]
    fn an_announcement_is_an_arp_request_from_the_address_to_itself() {
        let (_area, mut pool) = FrameArea::allocate(1).unwrap();
        let mut frame = pool.take().unwrap();
        let mac = MacAddr6::new(2, 0x53, 192, 168, 99, 13);
        let address = Ipv4Addr::new(192, 168, 99, 13);
        write_announcement(&mut frame, &Announcement { side: Side::Inside, address, mac });
        let packet = SlicedPacket::from_ethernet(frame.bytes()).unwrap();
        let Some(NetSlice::Arp(arp)) = packet.net else { panic!("{packet:?}") };
        assert_eq!(arp.sender_hw_addr(), mac.as_bytes());
        assert_eq!(arp.sender_protocol_addr(), address.octets());
        assert_eq!(arp.target_protocol_addr(), address.octets());
    }

    #[test]
    fn only_what_is_new_is_announced() {
        let both = Snapshot::compile(gateway().spec());
        let blue = Snapshot::compile(gateway().without_red().spec());
        assert_eq!(new_announcements(None, &both).len(), 4);
        assert_eq!(new_announcements(Some(&both), &blue), []);
        let red = new_announcements(Some(&blue), &both);
        assert_eq!(red.len(), 2);
        assert!(red.iter().any(|new| new.address == Ipv4Addr::new(192, 168, 55, 114)));
    }
}

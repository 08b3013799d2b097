//! Probes addresses by ARP (RFC 5227 section 2.1.1): asks, announces nothing, and leaves no entry in anybody's cache.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacket, Ethernet2Slice, PacketBuilder, ether_type};
use fastpath::snapshot::Side;
use macaddr::MacAddr6;
use pnet_datalink::{Channel, DataLinkSender};

use crate::doctor::evidence::{ArpAnswer, Known};

/// Time after each round of probes in which answers are waited for.
const ROUND: Duration = Duration::from_millis(400);
/// Rounds, because a probe may be lost.
const ROUNDS: u32 = 2;
/// Longest wait for one frame.
const TURN: Duration = Duration::from_millis(50);

/// Asks on an interface who has these addresses and returns who answered. `own` are the gateway's own MACs, whose
/// own announcements are no answers.
///
/// # Errors
/// When the interface cannot be used, or the process may not: CAP_NET_RAW is needed.
pub fn probe(
    interface: &str,
    side: Side,
    addresses: &BTreeSet<Ipv4Addr>,
    own: &BTreeSet<MacAddr6>,
) -> Known<BTreeSet<ArpAnswer>> {
    let found = pnet_datalink::interfaces().into_iter().find(|found| found.name == interface);
    let found = found.ok_or_else(|| format!("{interface} does not exist"))?;
    let mac = found.mac.ok_or_else(|| format!("{interface} has no Ethernet address"))?;
    let mac = MacAddr6::from(mac.octets());
    let refused = |error: io::Error| {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        format!("cannot probe on {interface}: {error}{}", if denied { "; CAP_NET_RAW is needed" } else { "" })
    };
    let options = pnet_datalink::Config {
        read_timeout: Some(TURN),
        promiscuous: false,
        ..pnet_datalink::Config::default()
    };
    let Channel::Ethernet(mut sender, mut receiver) =
        pnet_datalink::channel(&found, options).map_err(refused)?
    else {
        return Err(format!("{interface} is no Ethernet interface"));
    };
    let mut answers = BTreeSet::new();
    for _ in 0..ROUNDS {
        for address in addresses {
            ask(sender.as_mut(), mac, *address).map_err(refused)?;
        }
        let deadline = Instant::now() + ROUND;
        while Instant::now() < deadline {
            match receiver.next() {
                Ok(frame) => answers.extend(read(frame, mac, own).and_then(|(address, mac)| {
                    addresses.contains(&address).then_some(ArpAnswer { side, address, mac })
                })),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                Err(error) => return Err(refused(error)),
            }
        }
    }
    Ok(answers)
}

fn ask(sender: &mut dyn DataLinkSender, mac: MacAddr6, address: Ipv4Addr) -> io::Result<()> {
    let frame = request(mac, address);
    sender.send_to(&frame, None).unwrap_or_else(|| Err(io::Error::other("the frame does not fit")))
}

/// Returns an ARP probe: a request without a sender's address.
fn request(mac: MacAddr6, address: Ipv4Addr) -> Vec<u8> {
    let probe = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac.into_array(),
        sender_ipv4: [0; 4],
        target_mac: [0; 6],
        target_ipv4: address.octets(),
    };
    let builder = PacketBuilder::ethernet2(mac.into_array(), MacAddr6::broadcast().into_array());
    let builder = builder.arp(ArpPacket::from(probe));
    let mut frame = Vec::with_capacity(builder.size());
    builder.write(&mut frame).expect("a vector takes any number of bytes");
    frame
}

/// Returns the address that the sender of an ARP packet says it has, and its MAC; none for other frames and for what
/// the gateway sends itself. What answers this probe counts whatever its MAC: nobody here heard the question.
fn read(frame: &[u8], mac: MacAddr6, own: &BTreeSet<MacAddr6>) -> Option<(Ipv4Addr, MacAddr6)> {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
    if ethernet.ether_type() != ether_type::ARP {
        return None;
    }
    let packet = ArpPacket::from_slice(ethernet.payload_slice()).ok()?.try_eth_ipv4().ok()?;
    let sender = MacAddr6::from(packet.sender_mac);
    let is_answer =
        packet.operation == ArpOperation::REPLY && MacAddr6::from(packet.target_mac) == mac && sender != mac;
    (is_answer || !own.contains(&sender)).then(|| (Ipv4Addr::from(packet.sender_ipv4), sender))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddr6 = MacAddr6::new(2, 0, 0, 0, 0, 2);
    const TENANT: MacAddr6 = MacAddr6::new(2, 0x53, 192, 168, 99, 13);
    const STRANGER: MacAddr6 = MacAddr6::new(2, 0xaa, 0, 0, 0, 1);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 99, 13);

    #[test]
    fn a_probe_has_no_sender_address() {
        let frame = request(OWN, ADDRESS);
        assert_eq!(frame[..6], [0xff; 6]);
        let packet = ArpPacket::from_slice(&frame[14..]).unwrap().try_eth_ipv4().unwrap();
        assert_eq!((packet.sender_ipv4, packet.target_ipv4), ([0; 4], ADDRESS.octets()));
        assert_eq!((packet.operation, packet.target_mac), (ArpOperation::REQUEST, [0; 6]));
    }

    #[test]
    fn answers_of_others_count_and_the_gateways_own_packets_do_not() {
        let own = BTreeSet::from([OWN, TENANT]);
        for (operation, sender, target, expected) in [
            (ArpOperation::REPLY, STRANGER, OWN, true),
            (ArpOperation::REPLY, TENANT, OWN, true), // another gateway with the same tenant
            (ArpOperation::REPLY, TENANT, STRANGER, false), // the tenant's link answers a node
            (ArpOperation::REQUEST, TENANT, MacAddr6::nil(), false), // the tenant's link announces itself
            (ArpOperation::REQUEST, STRANGER, MacAddr6::nil(), true),
        ] {
            let found = read(&packet(operation, sender, target), OWN, &own);
            assert_eq!(found, expected.then_some((ADDRESS, sender)), "{operation:?} {sender} {target}");
        }
    }

    #[test]
    fn frames_that_are_no_arp_are_passed_over() {
        let mut frame = packet(ArpOperation::REPLY, STRANGER, OWN);
        assert_eq!(read(&frame[..20], OWN, &BTreeSet::new()), None);
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        assert_eq!(read(&frame, OWN, &BTreeSet::new()), None);
    }

    fn packet(operation: ArpOperation, sender: MacAddr6, target: MacAddr6) -> Vec<u8> {
        let packet = ArpEthIpv4Packet {
            operation,
            sender_mac: sender.into_array(),
            sender_ipv4: ADDRESS.octets(),
            target_mac: target.into_array(),
            target_ipv4: [0; 4],
        };
        let builder = PacketBuilder::ethernet2(sender.into_array(), target.into_array());
        let mut frame = Vec::new();
        builder.arp(ArpPacket::from(packet)).write(&mut frame).unwrap();
        frame.resize(60, 0); // the least that Ethernet carries
        frame
    }
}

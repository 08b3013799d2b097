//! The frames of a storm, each a function of its kind and its dice.

use std::net::Ipv4Addr;

use control::demo::topology::{INTERNET, NODES, SERVER};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv4Header, Icmpv4Type, IpFragOffset, IpNumber,
    Ipv4Header, PacketBuilder, icmpv4,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::schedule::Traffic;
use super::tenants::{Slot, TENANTS};

/// First bytes of a datagram's payload, before the tenant's number: the detector looks for them.
pub(crate) const MARK: [u8; 3] = *b"spw";
/// The number in place of a tenant's of what must not leave, whatever its source.
pub(crate) const NOBODY: u8 = 0xff;
/// Port of the server's echo, and of its sink.
pub(crate) const ECHO: u16 = 7;
/// Port of the server to which new flows go.
pub(crate) const SINK: u16 = 53;

type Mac = [u8; 6];

/// MACs on the wire, which never change but for the server's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Macs {
    pub(crate) inside: Mac,
    pub(crate) outside: Mac,
    pub(crate) node: Mac,
    pub(crate) server: Mac,
}

/// Where a frame is put on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// At the first node.
    Node,
    /// At the server.
    Server,
}

/// Makes frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frames {
    pub(crate) macs: Macs,
    pub(crate) own_inside: Ipv4Addr,
}

impl Frames {
    /// Returns the frames of one event.
    pub(crate) fn of(&self, traffic: Traffic, dice: u64) -> (From, Vec<Vec<u8>>) {
        let mut rng = StdRng::seed_from_u64(dice);
        let slot = Slot(rng.random_range(0..TENANTS));
        let frames = match traffic {
            Traffic::Datagram => vec![self.datagram(slot, &mut rng, ECHO)],
            Traffic::Segment => vec![self.segment(slot, &mut rng)],
            Traffic::Echo => vec![self.echo(slot, &mut rng)],
            Traffic::NewFlow => vec![self.new_flow(slot, &mut rng)],
            Traffic::Hairpin => vec![self.hairpin(slot, &mut rng)],
            Traffic::StaleArp => vec![self.stale(&mut rng)],
            Traffic::Foreign => vec![self.foreign(slot, &mut rng)],
            Traffic::Malformed => return self.malformed(slot, &mut rng),
            Traffic::Fragments => self.fragments(slot, &mut rng),
            Traffic::Unsolicited => return (From::Server, vec![self.unsolicited(slot, &mut rng)]),
            Traffic::Error => return (From::Server, vec![self.error(slot, &mut rng)]),
            Traffic::Arp => vec![self.arp(slot, &mut rng)],
            Traffic::Burst => (0..3000).map(|_| self.datagram(slot, &mut rng, ECHO)).collect(),
            Traffic::Flood => (0..12_000).map(|_| self.new_flow(slot, &mut rng)).collect(),
        };
        (From::Node, frames)
    }

    fn datagram(&self, slot: Slot, rng: &mut StdRng, port: u16) -> Vec<u8> {
        let source = (pod(rng), 20_000 + rng.random_range(0..16));
        let to = *[SERVER, SERVER, SERVER, INTERNET].choose(rng).unwrap_or(&SERVER);
        self.udp(slot.mac(), source, (to, port), slot.0)
    }

    fn new_flow(&self, slot: Slot, rng: &mut StdRng) -> Vec<u8> {
        self.udp(slot.mac(), (pod(rng), rng.random_range(1024..=u16::MAX)), (SERVER, SINK), slot.0)
    }

    fn udp(&self, mac: Mac, source: (Ipv4Addr, u16), to: (Ipv4Addr, u16), number: u8) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.macs.node, mac)
            .ipv4(source.0.octets(), to.0.octets(), 62)
            .udp(source.1, to.1);
        let mut payload = [MARK.as_slice(), &[number]].concat();
        payload.resize(18 + usize::from(source.1 % 64), number);
        let mut frame = Vec::with_capacity(128);
        builder.write(&mut frame, &payload).expect("it is short");
        frame
    }

    fn segment(&self, slot: Slot, rng: &mut StdRng) -> Vec<u8> {
        let port = *[80, 81, 443].choose(rng).unwrap_or(&80);
        self.tcp(slot.mac(), (pod(rng), 30_000 + rng.random_range(0..8)), (SERVER, port), rng)
    }

    fn tcp(&self, mac: Mac, source: (Ipv4Addr, u16), to: (Ipv4Addr, u16), rng: &mut StdRng) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.macs.node, mac)
            .ipv4(source.0.octets(), to.0.octets(), 62)
            .tcp(source.1, to.1, rng.random(), 1000);
        let builder = match rng.random_range(0..5) {
            0 | 1 => builder.syn(),
            2 => builder.ack(rng.random()),
            3 => builder.ack(rng.random()).fin(),
            _ => builder.rst(),
        };
        let mut frame = Vec::with_capacity(96);
        builder.write(&mut frame, &[0; 8][..rng.random_range(0..8)]).expect("it is short");
        frame
    }

    fn echo(&self, slot: Slot, rng: &mut StdRng) -> Vec<u8> {
        let to = *[SERVER, INTERNET, slot.gateway(), self.own_inside].choose(rng).unwrap_or(&SERVER);
        let mut frame = Vec::with_capacity(96);
        PacketBuilder::ethernet2(self.macs.node, slot.mac())
            .ipv4(pod(rng).octets(), to.octets(), rng.random_range(1..64))
            .icmpv4_echo_request(rng.random_range(0..32), rng.random())
            .write(&mut frame, &[7; 24])
            .expect("it is short");
        frame
    }

    fn hairpin(&self, slot: Slot, rng: &mut StdRng) -> Vec<u8> {
        let to = Slot(rng.random_range(0..TENANTS)).egress(rng.random_range(0..8));
        self.udp(slot.mac(), (pod(rng), 20_000 + rng.random_range(0..16)), (to, rng.random()), slot.0)
    }

    /// What must not leave: its number is nobody's.
    fn stale(&self, rng: &mut StdRng) -> Vec<u8> {
        let source = (pod(rng), rng.random_range(1024..=u16::MAX));
        let to = (*[SERVER, INTERNET].choose(rng).unwrap_or(&SERVER), ECHO);
        match rng.random_range(0..4) {
            0 => self.tcp(self.macs.inside, source, to, rng),
            _ => self.udp(self.macs.inside, source, to, NOBODY),
        }
    }

    fn foreign(&self, slot: Slot, rng: &mut StdRng) -> Vec<u8> {
        let sources = [NODES[0].address, Ipv4Addr::from(rng.random::<u32>() | 0x8000_0000), SERVER];
        let source = *sources.choose(rng).unwrap_or(&SERVER);
        self.udp(slot.mac(), (source, rng.random()), (SERVER, ECHO), NOBODY)
    }

    fn fragments(&self, slot: Slot, rng: &mut StdRng) -> Vec<Vec<u8>> {
        let (source, count) = (pod(rng), rng.random_range(2..4_u16));
        let identification = rng.random();
        let mac = if rng.random_ratio(1, 4) { self.macs.inside } else { slot.mac() };
        let mut datagram = 20_000_u16.to_be_bytes().to_vec();
        datagram.extend(ECHO.to_be_bytes());
        datagram.extend((count * 64).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.resize(usize::from(count) * 64, 0);
        let piece = |number: u16| {
            let at = usize::from(number) * 64;
            let mut header = Ipv4Header::new(64, 62, IpNumber::UDP, source.octets(), SERVER.octets())
                .expect("64 bytes are few");
            header.identification = identification;
            header.dont_fragment = false;
            header.more_fragments = number + 1 < count;
            header.fragment_offset = IpFragOffset::try_new(number * 8).expect("it is small");
            let mut frame = [mac.as_slice(), &self.macs.node, &[8, 0]].concat();
            header.header_checksum = header.calc_header_checksum();
            header.write(&mut frame).expect("memory takes it");
            frame.extend_from_slice(&datagram[at..at + 64]);
            frame
        };
        let mut pieces: Vec<Vec<u8>> = (0..count).map(piece).collect();
        if rng.random_ratio(1, 3) {
            pieces.swap_remove(rng.random_range(0..pieces.len()));
        }
        pieces
    }

    fn unsolicited(&self, slot: Slot, rng: &mut StdRng) -> Vec<u8> {
        let to = slot.egress(rng.random_range(0..8));
        let builder = PacketBuilder::ethernet2(self.macs.server, self.macs.outside);
        let builder = builder.ipv4(SERVER.octets(), to.octets(), 64);
        let mut frame = Vec::with_capacity(96);
        let written = match rng.random_range(0..3) {
            0 => builder.udp(rng.random(), rng.random()).write(&mut frame, b"anyone?"),
            1 => builder.tcp(rng.random(), rng.random(), 1, 1000).syn().write(&mut frame, &[]),
            _ => builder.icmpv4_echo_request(rng.random(), 1).write(&mut frame, b"anyone?"),
        };
        written.expect("it is short");
        frame
    }

    /// An error about a packet as it may have left.
    fn error(&self, slot: Slot, rng: &mut StdRng) -> Vec<u8> {
        let egress = slot.egress(rng.random_range(0..8));
        let mut quoted = Vec::new();
        PacketBuilder::ipv4(egress.octets(), SERVER.octets(), 60)
            .udp(rng.random(), ECHO)
            .write(&mut quoted, &[0; 8])
            .expect("it is short");
        let what = match rng.random_range(0..2) {
            0 => icmpv4::DestUnreachableHeader::Port,
            _ => icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: rng.random() },
        };
        let header = Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(what), &quoted);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.macs.server, self.macs.outside)
            .ipv4(SERVER.octets(), egress.octets(), 64)
            .icmpv4(header.icmp_type)
            .write(&mut frame, &quoted)
            .expect("it is short");
        frame
    }

    fn arp(&self, slot: Slot, rng: &mut StdRng) -> Vec<u8> {
        let target = *[slot.gateway(), self.own_inside].choose(rng).unwrap_or(&self.own_inside);
        let sender = *[NODES[0].address, pod(rng), Ipv4Addr::UNSPECIFIED].choose(rng).unwrap_or(&target);
        let packet = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            ArpOperation::REQUEST,
            &self.macs.node,
            &sender.octets(),
            &[0; 6],
            &target.octets(),
        );
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.macs.node, [0xff; 6])
            .arp(packet.expect("the lengths agree"))
            .write(&mut frame)
            .expect("memory takes it");
        frame
    }

    /// Some frame, with bytes changed, cut off, or put in. It bears no tenant's number, which may be what is changed.
    fn malformed(&self, slot: Slot, rng: &mut StdRng) -> (From, Vec<Vec<u8>>) {
        let kinds = [
            Traffic::Segment,
            Traffic::Echo,
            Traffic::Fragments,
            Traffic::Unsolicited,
            Traffic::Error,
            Traffic::Arp,
            Traffic::Datagram,
        ];
        let kind = *kinds.choose(rng).unwrap_or(&Traffic::Echo);
        let (from, mut frames) = self.of(kind, rng.random());
        if kind == Traffic::Datagram {
            frames = vec![self.udp(slot.mac(), (pod(rng), 20_000), (SERVER, ECHO), 0)];
            frames[0][42..45].fill(0);
        }
        if from == From::Node && rng.random_ratio(1, 3) {
            frames[0][..6].copy_from_slice(&self.macs.inside);
        }
        for frame in &mut frames {
            match rng.random_range(0..6) {
                0 => frame.truncate(rng.random_range(14..=frame.len())),
                1 => frame.splice(12..12, vlan_tags(rng.random_range(1..4))).for_each(drop),
                2 => frame[12..14].copy_from_slice(&rng.random::<[u8; 2]>()),
                3 => frame[14] = rng.random(),
                _ => {
                    for _ in 0..rng.random_range(1..6) {
                        let at = rng.random_range(14..frame.len());
                        frame[at] = rng.random();
                    }
                    if frame[..6] == self.macs.inside && frame.len() > 28 {
                        // The host may forward for others than pods.
                        frame[26..28].copy_from_slice(&[10, 132]);
                    }
                }
            }
        }
        (from, frames)
    }
}

fn vlan_tags(count: usize) -> Vec<u8> {
    [0x81, 0, 0, 0].repeat(count)
}

/// Returns some pod's address: none of those that live in the lab.
fn pod(rng: &mut StdRng) -> Ipv4Addr {
    Ipv4Addr::new(10, 132, rng.random_range(0..2), rng.random_range(20..36))
}

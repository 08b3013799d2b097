//! Bytes to offsets and addresses. Every length is checked here and nowhere after.

use std::net::Ipv4Addr;

use conntrack::checksum::checksum;
use conntrack::{FiveTuple, Portless, Protocol, TcpFlags, TcpSegment};
use etherparse::{Ethernet2HeaderSlice, IpFragOffset, Ipv4HeaderSlice};
use macaddr::MacAddr6;

use crate::verdict::DropReason;

/// Bytes of an Ethernet header without tags; the IPv4 header follows.
pub const ETHERNET_BYTES: usize = 14;

/// Offset of the transport header in an ICMP message: what an error quotes begins there.
pub const ICMP_HEADER_BYTES: usize = 8;

const ETHERTYPE_IPV4: u16 = 0x0800;

/// One packet: where its fields are, and what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// MAC that the frame is addressed to.
    pub destination_mac: MacAddr6,
    /// Length of the frame without padding, in bytes.
    pub frame_bytes: usize,
    /// The network layer.
    pub ip: IpHeader,
    /// The transport layer.
    pub transport: Transport,
}

/// An IPv4 header and where its payload starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpHeader {
    /// Offset of the header in the frame.
    pub at: usize,
    /// Offset of the transport header in the frame.
    pub payload_at: usize,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Length of the packet, header included, in bytes.
    pub total_bytes: u16,
    /// Time to live.
    pub ttl: u8,
    /// Whether the packet may not be fragmented.
    pub dont_fragment: bool,
    /// Identification, which the fragments of a datagram share.
    pub identification: u16,
    /// Where the payload belongs in its datagram, in bytes; more than 0 in later fragments only.
    pub fragment_offset: u16,
    /// Whether the datagram goes on behind this fragment.
    pub more_fragments: bool,
}

impl IpHeader {
    /// Tells whether the packet is a part of its datagram only.
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset > 0
    }

    /// Returns the length of what follows the header, in bytes.
    ///
    /// # Panics
    /// When the header is longer than the packet; [`parse`] has checked that.
    pub fn payload_bytes(&self) -> usize {
        usize::from(self.total_bytes) - (self.payload_at - self.at)
    }
}

/// What the packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A packet of a flow.
    Flow(Flow),
    /// An ICMP error about a packet of a flow (RFC 792), which it quotes.
    Error(QuotedPacket),
    /// A later fragment of a packet of a flow: it has no transport header.
    Fragment(Protocol),
}

/// Ports and checksum of a packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Addresses and ports as they stand on the wire.
    pub tuple: FiveTuple,
    /// What the segment means to a session.
    pub segment: Segment,
    /// Offset of the transport header in the frame.
    pub at: usize,
    /// Whether the ports, or the query identifier, of the tuple stand there and can be rewritten.
    pub has_ports: bool,
    /// Offset of the transport checksum in the frame; none when there is none to update.
    pub checksum_at: Option<usize>,
}

/// What a packet means to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// A TCP segment.
    Tcp(TcpSegment),
    /// A UDP datagram.
    Udp,
    /// An ICMP query.
    Query,
    /// An answer to an ICMP query.
    Reply,
    /// A packet of a protocol without ports; what it means is the ends' own business.
    Opaque,
}

/// The beginning of a packet inside an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotedPacket {
    /// Its network layer.
    pub ip: IpHeader,
    /// Its addresses and ports.
    pub flow: Flow,
    /// Offset of the ICMP header of the error in the frame.
    pub icmp_at: usize,
}

/// Reads a frame.
///
/// # Errors
/// The reason to drop it, when it is not an IPv4 packet of a kind that is translated, or a fragment of one.
pub fn parse(frame: &[u8]) -> Result<Packet, DropReason> {
    let ethernet = Ethernet2HeaderSlice::from_slice(frame).map_err(|_| DropReason::Malformed)?;
    if ethernet.ether_type().0 != ETHERTYPE_IPV4 {
        return Err(DropReason::NotIpv4);
    }
    let header = Ipv4HeaderSlice::from_slice(&frame[ETHERNET_BYTES..]).map_err(|_| DropReason::Malformed)?;
    let frame_bytes = ETHERNET_BYTES + usize::from(header.total_len());
    let ip = read_ip(&header, ETHERNET_BYTES);
    if frame_bytes > frame.len() || ip.payload_at > frame_bytes {
        return Err(DropReason::Malformed);
    }
    if checksum(0, header.slice()) != 0 {
        return Err(DropReason::BadChecksum);
    }
    if ip.is_fragment() {
        check_fragment(&ip)?;
    }
    let protocol = Protocol::from_number(header.protocol().0).ok_or(DropReason::UnsupportedProtocol)?;
    let transport = match ip.fragment_offset {
        0 => parse_transport(&frame[..frame_bytes], &ip, protocol)?,
        _ => Transport::Fragment(protocol),
    };
    Ok(Packet { destination_mac: MacAddr6::from(ethernet.destination()), frame_bytes, ip, transport })
}

fn read_ip(header: &Ipv4HeaderSlice<'_>, at: usize) -> IpHeader {
    IpHeader {
        at,
        payload_at: at + header.slice().len(),
        source: header.source_addr(),
        destination: header.destination_addr(),
        total_bytes: header.total_len(),
        ttl: header.ttl(),
        dont_fragment: header.dont_fragment(),
        identification: header.identification(),
        fragment_offset: header.fragments_offset().value() * 8,
        more_fragments: header.more_fragments(),
    }
}

/// Checks the lengths of a fragment: only the last may end anywhere, and none beyond the longest packet (RFC
/// 791 section 3.1).
fn check_fragment(ip: &IpHeader) -> Result<(), DropReason> {
    let payload = ip.payload_bytes();
    let is_ragged = ip.more_fragments && !payload.is_multiple_of(8);
    let end = usize::from(ip.fragment_offset) + usize::from(ip.total_bytes);
    if payload == 0 || is_ragged || end > usize::from(u16::MAX) {
        return Err(DropReason::Malformed);
    }
    Ok(())
}

/// Reads the transport header. A first fragment has all of it or is malformed (RFC 1858 section 3.1); what
/// counts the bytes of the whole datagram is not checked in a fragment.
fn parse_transport(frame: &[u8], ip: &IpHeader, protocol: Protocol) -> Result<Transport, DropReason> {
    match protocol {
        Protocol::Tcp => parse_tcp(frame, ip).map(Transport::Flow),
        Protocol::Udp => parse_udp(frame, ip).map(Transport::Flow),
        Protocol::Icmp => parse_icmp(frame, ip),
        Protocol::Portless(protocol) => parse_portless(frame, ip, protocol).map(Transport::Flow),
    }
}

fn parse_tcp(frame: &[u8], ip: &IpHeader) -> Result<Flow, DropReason> {
    let at = ip.payload_at;
    let segment = frame.get(at..).filter(|segment| segment.len() >= 20).ok_or(DropReason::Malformed)?;
    let header_bytes = usize::from(segment[12] >> 4) * 4;
    if header_bytes < 20 || header_bytes > segment.len() {
        return Err(DropReason::Malformed);
    }
    let tuple = read_ports(frame, ip, Protocol::Tcp);
    let segment = TcpSegment {
        flags: TcpFlags(segment[13]),
        sequence: read_u32(segment, 4),
        acknowledgement: read_u32(segment, 8),
    };
    Ok(Flow { tuple, segment: Segment::Tcp(segment), at, has_ports: true, checksum_at: Some(at + 16) })
}

fn parse_udp(frame: &[u8], ip: &IpHeader) -> Result<Flow, DropReason> {
    let at = ip.payload_at;
    let datagram = frame.get(at..).filter(|datagram| datagram.len() >= 8).ok_or(DropReason::Malformed)?;
    let length = usize::from(read_u16(datagram, 4));
    if length < 8 || (length > datagram.len() && !ip.more_fragments) {
        return Err(DropReason::Malformed);
    }
    // A zero checksum means that there is none (RFC 768) and stays zero.
    let checksum_at = (read_u16(datagram, 6) != 0).then_some(at + 6);
    let tuple = read_ports(frame, ip, Protocol::Udp);
    Ok(Flow { tuple, segment: Segment::Udp, at, has_ports: true, checksum_at })
}

fn parse_portless(frame: &[u8], ip: &IpHeader, protocol: Portless) -> Result<Flow, DropReason> {
    let header_bytes = match protocol {
        Portless::IpIp => 20,
        Portless::Gre => 4,
        Portless::Esp | Portless::UdpLite => 8,
        Portless::Sctp => 12,
    };
    let packet = frame
        .get(ip.payload_at..)
        .filter(|packet| packet.len() >= header_bytes)
        .ok_or(DropReason::Malformed)?;
    if protocol == Portless::UdpLite {
        // The checksum covers so many bytes, the header at least, or all (RFC 3828 section 3.1).
        let covered = usize::from(read_u16(packet, 4));
        if covered != 0 && (covered < 8 || covered > packet.len() && !ip.more_fragments) {
            return Err(DropReason::Malformed);
        }
    }
    Ok(read_portless(frame, ip, protocol))
}

fn parse_icmp(frame: &[u8], ip: &IpHeader) -> Result<Transport, DropReason> {
    let at = ip.payload_at;
    let message =
        frame.get(at..).filter(|message| message.len() >= ICMP_HEADER_BYTES).ok_or(DropReason::Malformed)?;
    match icmp_kind(message[0]) {
        IcmpKind::Query(segment) => Ok(Transport::Flow(read_query(frame, ip, segment))),
        // An error is at most 576 bytes long (RFC 1812 section 4.3.2.3): its fragments are no loss.
        IcmpKind::Error if ip.more_fragments => Err(DropReason::FragmentedError),
        // RFC 5508 REQ-3: the checksum of an error is validated.
        IcmpKind::Error if checksum(0, message) != 0 => Err(DropReason::BadChecksum),
        IcmpKind::Error => parse_quoted(frame, at).map(Transport::Error),
        IcmpKind::Unsupported => Err(DropReason::UnsupportedIcmp),
    }
}

/// Reads the packet that an ICMP error quotes: its IPv4 header and at least 8 bytes more (RFC 792). Its
/// transport checksum is not validated (RFC 5508 REQ-3), nor need it be there. Padding and extensions behind it
/// (RFC 4884) are no part of it.
fn parse_quoted(frame: &[u8], icmp_at: usize) -> Result<QuotedPacket, DropReason> {
    let at = icmp_at + ICMP_HEADER_BYTES;
    // The length attribute, in 32-bit words; zero when there are no extensions (RFC 4884 section 4).
    let frame = match frame[icmp_at + 5] {
        0 => frame,
        words => frame.get(..at + usize::from(words) * 4).ok_or(DropReason::Malformed)?,
    };
    let header = Ipv4HeaderSlice::from_slice(&frame[at..]).map_err(|_| DropReason::Malformed)?;
    let ip = read_ip(&header, at);
    if checksum(0, header.slice()) != 0 {
        return Err(DropReason::BadChecksum);
    }
    if header.fragments_offset() != IpFragOffset::ZERO {
        return Err(DropReason::QuotedFragment);
    }
    let frame = &frame[..frame.len().min(at + usize::from(ip.total_bytes))];
    let transport =
        frame.get(ip.payload_at..).filter(|bytes| bytes.len() >= 8).ok_or(DropReason::Malformed)?;
    let protocol = Protocol::from_number(header.protocol().0).ok_or(DropReason::UnsupportedProtocol)?;
    let at = ip.payload_at;
    let flow = match protocol {
        Protocol::Tcp => Flow {
            tuple: read_ports(frame, &ip, protocol),
            segment: Segment::Tcp(TcpSegment::default()),
            at,
            has_ports: true,
            checksum_at: (transport.len() >= 18).then_some(at + 16),
        },
        Protocol::Udp => Flow {
            tuple: read_ports(frame, &ip, protocol),
            segment: Segment::Udp,
            at,
            has_ports: true,
            checksum_at: (read_u16(transport, 6) != 0).then_some(at + 6),
        },
        Protocol::Icmp => match icmp_kind(transport[0]) {
            IcmpKind::Query(segment) => read_query(frame, &ip, segment),
            IcmpKind::Error | IcmpKind::Unsupported => return Err(DropReason::UnsupportedIcmp),
        },
        Protocol::Portless(protocol) => read_portless(frame, &ip, protocol),
    };
    Ok(QuotedPacket { ip, flow, icmp_at })
}

fn read_query(frame: &[u8], ip: &IpHeader, segment: Segment) -> Flow {
    let at = ip.payload_at;
    let identifier = read_u16(frame, at + 4);
    let ports = match segment {
        Segment::Reply => [0, identifier],
        Segment::Query | Segment::Tcp(_) | Segment::Udp | Segment::Opaque => [identifier, 0],
    };
    let tuple = tuple_of(ip, Protocol::Icmp, ports);
    Flow { tuple, segment, at, has_ports: true, checksum_at: Some(at + 2) }
}

fn read_portless(frame: &[u8], ip: &IpHeader, protocol: Portless) -> Flow {
    let at = ip.payload_at;
    let checksum_at = match protocol {
        // Zero is not allowed (RFC 3828 section 3.1) and stays what it is, for the receiver to refuse.
        Portless::UdpLite => (read_u16(frame, at + 6) != 0).then_some(at + 6),
        Portless::IpIp | Portless::Gre | Portless::Esp | Portless::Sctp => None,
    };
    let tuple = tuple_of(ip, Protocol::Portless(protocol), [0, 0]);
    Flow { tuple, segment: Segment::Opaque, at, has_ports: false, checksum_at }
}

fn read_ports(frame: &[u8], ip: &IpHeader, protocol: Protocol) -> FiveTuple {
    tuple_of(ip, protocol, [read_u16(frame, ip.payload_at), read_u16(frame, ip.payload_at + 2)])
}

fn tuple_of(ip: &IpHeader, protocol: Protocol, [source_port, destination_port]: [u16; 2]) -> FiveTuple {
    FiveTuple { source: ip.source, destination: ip.destination, source_port, destination_port, protocol }
}

enum IcmpKind {
    Query(Segment),
    Error,
    Unsupported,
}

/// Sorts ICMP types (RFC 5508 sections 3 and 4).
fn icmp_kind(number: u8) -> IcmpKind {
    match number {
        // Echo and timestamp.
        8 | 13 => IcmpKind::Query(Segment::Query),
        0 | 14 => IcmpKind::Query(Segment::Reply),
        // Destination unreachable, time exceeded, parameter problem.
        3 | 11 | 12 => IcmpKind::Error,
        _ => IcmpKind::Unsupported,
    }
}

/// Reads a big-endian word.
///
/// # Panics
/// When it is not inside `bytes`; [`parse`] has checked the fields that it names.
#[inline]
pub fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a big-endian double word.
///
/// # Panics
/// When it is not inside `bytes`; [`parse`] has checked the fields that it names.
#[inline]
pub fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{corrupt, icmp_error_about, raw_frame, tcp_frame, udp_frame};

    #[test]
    fn a_udp_frame_is_read_and_its_padding_is_not_part_of_it() {
        let mut frame = udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"hi");
        let whole = frame.len();
        frame.resize(60, 0xaa);
        let packet = parse(&frame).unwrap();
        assert_eq!(packet.frame_bytes, whole);
        let Transport::Flow(flow) = packet.transport else { panic!("{packet:?}") };
        assert_eq!((flow.tuple.source_port, flow.tuple.destination_port), (40000, 53));
        assert_eq!((flow.at, flow.checksum_at), (34, Some(40)));
    }

    #[test]
    fn options_move_the_transport_header() {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ip(etherparse::IpHeaders::Ipv4(
                etherparse::Ipv4Header {
                    options: [7, 4, 4, 0].into(),
                    ..etherparse::Ipv4Header::new(
                        0,
                        64,
                        etherparse::IpNumber::UDP,
                        [10, 132, 0, 5],
                        [192, 168, 55, 13],
                    )
                    .unwrap()
                },
                Default::default(),
            ))
            .udp(1, 2);
        let mut frame = Vec::new();
        builder.write(&mut frame, b"x").unwrap();
        let Transport::Flow(flow) = parse(&frame).unwrap().transport else { panic!() };
        assert_eq!(flow.at, 38);
    }

    #[test]
    fn an_error_is_read_through_to_the_packet_that_it_quotes() {
        let about = tcp_frame("192.168.55.113:50000", "192.168.55.13:80", TcpFlags::SYN);
        let frame = icmp_error_about("192.168.55.1", &about, 11, 8);
        let Transport::Error(quoted) = parse(&frame).unwrap().transport else { panic!() };
        assert_eq!(quoted.flow.tuple.source_port, 50000);
        assert_eq!(quoted.flow.checksum_at, None, "the quote ends before the checksum");
    }

    #[test]
    fn broken_frames_are_dropped_for_their_reason() {
        let whole = udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"0123456789");
        let error = icmp_error_about("192.168.55.1", &whole, 3, 28);
        let raw = |protocol, payload: &[u8]| raw_frame("10.132.0.5", "192.168.55.13", protocol, payload);
        let cases: &[(&str, Vec<u8>, DropReason)] = &[
            ("runt", whole[..13].to_vec(), DropReason::Malformed),
            ("cut in the IP header", whole[..30].to_vec(), DropReason::Malformed),
            ("cut in the UDP header", whole[..40].to_vec(), DropReason::Malformed),
            ("IPv6", corrupt(&whole, &[(12, 0x86), (13, 0xdd)]), DropReason::NotIpv4),
            ("VLAN", corrupt(&whole, &[(12, 0x81), (13, 0x00)]), DropReason::NotIpv4),
            ("version 5", corrupt(&whole, &[(14, 0x55)]), DropReason::Malformed),
            ("header checksum", corrupt(&whole, &[(24, whole[24] ^ 1)]), DropReason::BadChecksum),
            ("UDP length", corrupt(&whole, &[(39, 255)]), DropReason::Malformed),
            ("IPIP", raw(4, &[0; 19]), DropReason::Malformed),
            ("GRE", raw(47, &[0; 3]), DropReason::Malformed),
            ("ESP", raw(50, &[0; 7]), DropReason::Malformed),
            ("SCTP", raw(132, &[0; 11]), DropReason::Malformed),
            ("UDP-Lite", raw(136, &[0; 7]), DropReason::Malformed),
            ("UDP-Lite coverage", raw(136, &[0, 1, 0, 2, 0, 13, 1, 1, 0, 0, 0, 0]), DropReason::Malformed),
            ("UDP-Lite header", raw(136, &[0, 1, 0, 2, 0, 7, 1, 1, 0, 0, 0, 0]), DropReason::Malformed),
            ("OSPF", raw(89, &[0; 40]), DropReason::UnsupportedProtocol),
            ("error checksum", corrupt(&error, &[(38, error[38] ^ 1)]), DropReason::BadChecksum),
        ];
        for (name, frame, reason) in cases {
            assert_eq!(parse(frame), Err(*reason), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_offsets_stay_inside(mut bytes in prop::collection::vec(any::<u8>(), 0..200), valid in any::<bool>()) {
            if valid && bytes.len() > 34 {
                bytes[12..15].copy_from_slice(&[8, 0, 0x45]);
                bytes[20] &= 0x60;
                bytes[21] &= 0x01;
                let total = u16::try_from(bytes.len() - 14).unwrap();
                bytes[16..18].copy_from_slice(&total.to_be_bytes());
                bytes[23] = [1, 4, 6, 17, 47, 50, 132, 136][usize::from(bytes[23] % 8)];
                bytes[24..26].fill(0);
                let sum = checksum(0, &bytes[14..34]);
                bytes[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            if let Ok(packet) = parse(&bytes) {
                prop_assert!(packet.frame_bytes <= bytes.len());
                let flow = match packet.transport {
                    Transport::Flow(flow) => flow,
                    Transport::Error(quoted) => quoted.flow,
                    Transport::Fragment(_) => {
                        prop_assert!(packet.ip.payload_at < packet.frame_bytes);
                        return Ok(());
                    }
                };
                let least = if flow.has_ports { 8 } else { 4 };
                prop_assert!(flow.at + least <= packet.frame_bytes);
                prop_assert!(flow.checksum_at.is_none_or(|at| at + 2 <= packet.frame_bytes));
            }
        }
    }
}

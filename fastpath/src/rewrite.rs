//! Writes a prepared rewrite into a packet.

use std::net::Ipv4Addr;

use conntrack::checksum::checksum;
use conntrack::{ChecksumDelta, Direction, Portless, Protocol, Rewrite};
use macaddr::MacAddr6;

use crate::parse::{Flow, IpHeader, QuotedPacket, read_u16};

/// Translates a packet of a flow: address, port, time to live and checksums (RFC 1624, RFC 3022 section 4.1).
pub fn rewrite_flow(frame: &mut [u8], ip: &IpHeader, flow: &Flow, rewrite: &Rewrite) {
    let at = match rewrite.direction {
        Direction::Outbound => End::Source,
        Direction::Inbound => End::Destination,
    };
    write_address(frame, ip, at, rewrite.address);
    if flow.has_ports {
        write_u16(frame, port_at(flow, at), rewrite.port);
    }
    if let Some(checksum_at) = flow.checksum_at {
        update_transport_checksum(frame, flow.tuple.protocol, checksum_at, rewrite.transport_delta);
    }
    decrement_ttl(frame, ip, rewrite.header_delta);
}

/// Translates an ICMP error about a packet of a session: the quoted packet back to what its sender sent,
/// and the error's own address (RFC 5508 REQ-4, REQ-5). `rewrite` is that of the session in the direction in
/// which the error goes.
pub fn rewrite_error(frame: &mut [u8], outer: &IpHeader, quoted: &QuotedPacket, rewrite: &Rewrite) {
    // The quoted packet went the other way, so its other end is the one that was translated.
    let (inner_end, outer_end) = match rewrite.direction {
        Direction::Outbound => (End::Destination, End::Source),
        Direction::Inbound => (End::Source, End::Destination),
    };
    let QuotedPacket { ip, flow, icmp_at } = quoted;
    write_address(frame, ip, inner_end, rewrite.address);
    if flow.has_ports {
        write_u16(frame, port_at(flow, inner_end), rewrite.port);
    }
    let inner = rewrite.header_delta.apply(read_u16(frame, ip.at + 10));
    write_u16(frame, ip.at + 10, inner);
    if let Some(checksum_at) = flow.checksum_at {
        update_transport_checksum(frame, flow.tuple.protocol, checksum_at, rewrite.transport_delta);
    }
    write_u16(frame, icmp_at + 2, 0);
    let icmp = checksum(0, &frame[*icmp_at..]);
    write_u16(frame, icmp_at + 2, icmp);

    let (old, end) = match outer_end {
        End::Source => (outer.source, End::Source),
        End::Destination => (outer.destination, End::Destination),
    };
    write_address(frame, outer, end, rewrite.address);
    decrement_ttl(frame, outer, ChecksumDelta::default().replace_address(old, rewrite.address));
}

/// Writes another identification into the packet whose IPv4 header is at `at`, and the header checksum that this asks
/// for (RFC 1624).
pub fn write_identification(frame: &mut [u8], at: usize, identification: u16) {
    let delta = ChecksumDelta::default().replace(read_u16(frame, at + 4), identification);
    write_u16(frame, at + 4, identification);
    let header = delta.apply(read_u16(frame, at + 10));
    write_u16(frame, at + 10, header);
}

/// Writes the MACs of the link that the frame leaves by.
pub fn write_macs(frame: &mut [u8], destination: MacAddr6, source: MacAddr6) {
    frame[..6].copy_from_slice(destination.as_bytes());
    frame[6..12].copy_from_slice(source.as_bytes());
}

#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// Returns where the port of one end is, if there are ports. An ICMP query has one identifier for both.
fn port_at(flow: &Flow, end: End) -> usize {
    match (flow.tuple.protocol, end) {
        (Protocol::Icmp, _) => flow.at + 4,
        (Protocol::Tcp | Protocol::Udp | Protocol::Portless(_), End::Source) => flow.at,
        (Protocol::Tcp | Protocol::Udp | Protocol::Portless(_), End::Destination) => flow.at + 2,
    }
}

fn write_address(frame: &mut [u8], ip: &IpHeader, end: End, address: Ipv4Addr) {
    let at = match end {
        End::Source => ip.at + 12,
        End::Destination => ip.at + 16,
    };
    frame[at..at + 4].copy_from_slice(&address.octets());
}

/// Takes one from the time to live and writes the header checksum, which `delta` changes besides.
fn decrement_ttl(frame: &mut [u8], ip: &IpHeader, delta: ChecksumDelta) {
    let old = read_u16(frame, ip.at + 8);
    frame[ip.at + 8] -= 1;
    let delta = delta.replace(old, read_u16(frame, ip.at + 8));
    let header = delta.apply(read_u16(frame, ip.at + 10));
    write_u16(frame, ip.at + 10, header);
}

fn update_transport_checksum(frame: &mut [u8], protocol: Protocol, at: usize, delta: ChecksumDelta) {
    let updated = delta.apply(read_u16(frame, at));
    let written = match (protocol, updated) {
        // A UDP checksum that comes out as zero is sent as all ones (RFC 768, RFC 3828 section 3.1).
        (Protocol::Udp | Protocol::Portless(Portless::UdpLite), 0) => 0xffff,
        (Protocol::Udp | Protocol::Tcp | Protocol::Icmp | Protocol::Portless(_), updated) => updated,
    };
    write_u16(frame, at, written);
}

/// Writes a big-endian word.
///
/// # Panics
/// When it is not inside `frame`.
#[inline]
pub fn write_u16(frame: &mut [u8], at: usize, word: u16) {
    frame[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

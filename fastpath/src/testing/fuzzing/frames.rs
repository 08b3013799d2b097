//! Frames written, answered and mended byte by byte, without a look at how the fast path reads them.

use std::net::Ipv4Addr;
use std::ops::Range;

use conntrack::checksum::{checksum, sum};
use macaddr::MacAddr6;

const ETHERNET: usize = 14;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The bits of a fragment's flags and offset that say that it is one (RFC 791): more fragments, and the offset.
const IS_FRAGMENT: u16 = 0x3fff;
const MORE_FRAGMENTS: u16 = 0x2000;

/// A packet that is not written yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draft {
    pub(crate) to_mac: MacAddr6,
    pub(crate) from_mac: MacAddr6,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) content: Content,
    pub(crate) ttl: u8,
    pub(crate) identification: u16,
    /// Flags and fragment offset, as they stand in the header.
    pub(crate) fragment: u16,
    /// Options, in words of four bytes.
    pub(crate) option_words: u8,
    pub(crate) payload_bytes: usize,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    /// A UDP datagram, with or without a checksum.
    Udp { has_checksum: bool },
    /// A TCP segment, perhaps with a maximum segment size.
    Tcp { flags: u8, mss: Option<u16> },
    /// An ICMP message that is no error; the source port is its identifier.
    Icmp { kind: u8 },
    /// Something else.
    Other { protocol: u8 },
}

impl Draft {
    /// Writes the frame, with every checksum right.
    pub(crate) fn write(&self) -> Vec<u8> {
        let (protocol, mut transport) = self.transport();
        transport.resize(transport.len() + self.payload_bytes, 0x5a);
        if let Content::Udp { .. } = self.content {
            let length = word(transport.len());
            transport[4..6].copy_from_slice(&length);
        }
        let header_words = 5 + self.option_words.min(10);
        let header_bytes = usize::from(header_words) * 4;
        let mut frame = [self.to_mac.into_array(), self.from_mac.into_array()].concat();
        frame.extend([8, 0, 0x40 | header_words, 0]);
        frame.extend(word(header_bytes + transport.len()));
        frame.extend([self.identification, self.fragment].map(u16::to_be_bytes).concat());
        frame.extend([self.ttl, protocol, 0, 0]);
        frame.extend([self.source.octets(), self.destination.octets()].concat());
        // No-operation options (RFC 791).
        frame.resize(ETHERNET + header_bytes, 1);
        frame.extend(transport);
        seal(&mut frame);
        frame
    }

    fn transport(&self) -> (u8, Vec<u8>) {
        let ports = [self.source_port, self.destination_port].map(u16::to_be_bytes).concat();
        match self.content {
            Content::Udp { has_checksum } => (UDP, [ports, vec![0, 0, u8::from(has_checksum), 0]].concat()),
            Content::Tcp { flags, mss } => {
                let option =
                    mss.map(|mss| [vec![2, 4], mss.to_be_bytes().to_vec()].concat()).unwrap_or_default();
                let words = if mss.is_some() { 6 } else { 5 };
                let numbers = [1000_u32, 2000].map(u32::to_be_bytes).concat();
                (TCP, [ports, numbers, vec![words << 4, flags, 250, 0, 0, 0, 0, 0], option].concat())
            }
            Content::Icmp { kind } => (ICMP, [vec![kind, 0, 0, 0], ports].concat()),
            Content::Other { protocol } => (protocol, ports),
        }
    }
}

/// Returns what the receiver of a frame may answer, with these flags if it is TCP.
pub(crate) fn answer(frame: &[u8], flags: u8) -> Option<Vec<u8>> {
    let ip = Header::of_frame(frame)?;
    let mut answer = frame.to_vec();
    swap(&mut answer, 0, 6, 6);
    swap(&mut answer, ip.at + 12, ip.at + 16, 4);
    answer[ip.at + 8] = 64;
    let at = ip.payload_at;
    match ip.protocol {
        TCP if ip.end >= at + 20 => {
            let header_bytes = usize::from(answer[at + 12] >> 4) * 4;
            let counted = (ip.end - at).saturating_sub(header_bytes) + usize::from(answer[at + 13] & 3);
            swap(&mut answer, at, at + 2, 2);
            swap(&mut answer, at + 4, at + 8, 4);
            let acknowledged = read_u32(&answer, at + 8).wrapping_add(u32::try_from(counted).ok()?);
            answer[at + 8..at + 12].copy_from_slice(&acknowledged.to_be_bytes());
            answer[at + 13] = flags;
        }
        UDP if ip.end >= at + 8 => swap(&mut answer, at, at + 2, 2),
        ICMP if ip.end >= at + 8 => {
            answer[at] = match answer[at] {
                8 => 0,
                13 => 14,
                other => other,
            };
        }
        _ => {}
    }
    seal(&mut answer);
    Some(answer)
}

/// An ICMP error that somebody may send about a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorDraft {
    pub(crate) kind: u8,
    pub(crate) code: u8,
    /// Who sends it, if not the packet's destination.
    pub(crate) speaker: Option<Ipv4Addr>,
    /// Bytes of the packet that it quotes, if there are as many.
    pub(crate) quoted_bytes: usize,
}

/// Returns an ICMP error about a frame, from its receiver's side of the link.
pub(crate) fn error_about(frame: &[u8], error: ErrorDraft) -> Option<Vec<u8>> {
    let ip = Header::of_frame(frame)?;
    let quote = &frame[ip.at..ip.end.min(ip.at + error.quoted_bytes)];
    let mut bytes = [&frame[6..12], &frame[..6], &[8, 0, 0x45, 0]].concat();
    bytes.extend(word(20 + 8 + quote.len()));
    bytes.extend([0, 0, 0, 0, 64, ICMP, 0, 0]);
    bytes.extend(error.speaker.map_or(read_array(frame, ip.at + 16), |speaker| speaker.octets()));
    bytes.extend(&frame[ip.at + 12..ip.at + 16]);
    // The next hop's MTU in the last word counts for fragmentation needed only (RFC 1191).
    bytes.extend([error.kind, error.code, 0, 0, 0, 0, 2, 128]);
    bytes.extend(quote);
    seal(&mut bytes);
    Some(bytes)
}

/// Cuts a packet into fragments that carry `piece` bytes each, rounded to what the offset can say.
pub(crate) fn fragments(frame: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let Some(ip) = Header::of_frame(frame) else { return Vec::new() };
    let piece = (piece / 8).max(1) * 8;
    let pieces: Vec<_> = frame[ip.payload_at..ip.end].chunks(piece).collect();
    let last = pieces.len().saturating_sub(1);
    let fragment = |(index, content): (usize, &&[u8])| {
        let mut bytes = [&frame[..ip.payload_at], *content].concat();
        let more = if index < last { MORE_FRAGMENTS } else { 0 };
        let offset = u16::try_from(index * piece / 8).unwrap();
        bytes[ip.at + 6..ip.at + 8].copy_from_slice(&(offset | more).to_be_bytes());
        let total = word(bytes.len() - ip.at);
        bytes[ip.at + 2..ip.at + 4].copy_from_slice(&total);
        seal(&mut bytes);
        bytes
    };
    pieces.iter().enumerate().map(fragment).collect()
}

/// Writes every checksum of a frame, as far as it has any.
pub(crate) fn seal(frame: &mut [u8]) {
    for Spot { at, covers, start, zero_is_none } in spots(frame) {
        frame[at..at + 2].fill(0);
        let right = match checksum(start, &frame[covers]) {
            0 if zero_is_none => 0xffff,
            right => right,
        };
        frame[at..at + 2].copy_from_slice(&right.to_be_bytes());
    }
}

/// Tells whether every checksum of a frame is right: those of its headers, and that of the header it quotes.
pub(crate) fn is_sealed(frame: &[u8]) -> bool {
    spots(frame).into_iter().all(|spot| checksum(spot.start, &frame[spot.covers]) == 0)
}

/// A checksum in a frame.
struct Spot {
    at: usize,
    covers: Range<usize>,
    /// Sum of the pseudo header.
    start: u16,
    zero_is_none: bool,
}

/// Returns the checksums of a frame, the innermost first.
fn spots(frame: &[u8]) -> Vec<Spot> {
    let Some(ip) = Header::of_frame(frame) else { return Vec::new() };
    let is_error = ip.protocol == ICMP && frame.get(ip.payload_at).is_some_and(|kind| is_error(*kind));
    let quoted =
        if is_error && !ip.is_fragment { Header::read(frame, ip.payload_at + 8, ip.end) } else { None };
    let transport = ip.transport_spot(frame);
    [quoted.map(|quoted| quoted.spot()), transport, Some(ip.spot())].into_iter().flatten().collect()
}

/// Tells whether an ICMP message of this type quotes a packet (RFC 792).
pub(crate) fn is_error(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

/// An IPv4 header, as far as it can be believed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) at: usize,
    pub(crate) payload_at: usize,
    /// Where the packet ends; behind the frame's end where a quote was cut.
    pub(crate) end: usize,
    pub(crate) protocol: u8,
    pub(crate) is_fragment: bool,
}

impl Header {
    /// Reads the header of a frame that holds a whole IPv4 packet.
    pub(crate) fn of_frame(frame: &[u8]) -> Option<Self> {
        let is_ipv4 = frame.get(12..14)? == [8, 0];
        Self::read(frame, ETHERNET, frame.len()).filter(|ip| is_ipv4 && ip.end <= frame.len())
    }

    /// Reads the header at an offset, if it ends before `limit`.
    pub(crate) fn read(frame: &[u8], at: usize, limit: usize) -> Option<Self> {
        let header = frame.get(at..limit).filter(|bytes| bytes.len() >= 20)?;
        let payload_at = at + usize::from(header[0] & 15) * 4;
        let end = at + usize::from(read_u16(header, 2));
        let is_header = header[0] >> 4 == 4 && (at + 20..=limit.min(end)).contains(&payload_at);
        let is_fragment = read_u16(header, 6) & IS_FRAGMENT != 0;
        is_header.then_some(Self { at, payload_at, end, protocol: header[9], is_fragment })
    }

    fn spot(&self) -> Spot {
        Spot { at: self.at + 10, covers: self.at..self.payload_at, start: 0, zero_is_none: false }
    }

    /// Returns the checksum of what the packet carries, where it is all there.
    fn transport_spot(&self, frame: &[u8]) -> Option<Spot> {
        let (at, length) = (self.payload_at, self.end - self.payload_at);
        let pseudo = |length: usize| {
            sum(sum(0, &frame[self.at + 12..self.at + 20]), &[[0, self.protocol], word(length)].concat())
        };
        let (offset, length, start) = match self.protocol {
            _ if self.is_fragment => return None,
            ICMP if length >= 8 => (2, length, 0),
            TCP if length >= 20 => (16, length, pseudo(length)),
            UDP if length >= 8 => {
                let own = usize::from(read_u16(frame, at + 4));
                let has_checksum = frame[at + 6..at + 8] != [0, 0] && (8..=length).contains(&own);
                has_checksum.then(|| (6, own, pseudo(own)))?
            }
            _ => return None,
        };
        let zero_is_none = self.protocol == UDP;
        Some(Spot { at: at + offset, covers: at..at + length, start, zero_is_none })
    }
}

/// Returns the address at an offset.
pub(crate) fn read_address(frame: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::from(read_array(frame, at))
}

/// Returns the word at an offset.
pub(crate) fn read_u16(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn read_u32(frame: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(read_array(frame, at))
}

fn read_array(frame: &[u8], at: usize) -> [u8; 4] {
    frame[at..at + 4].try_into().unwrap()
}

fn word(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap().to_be_bytes()
}

fn swap(frame: &mut [u8], first: usize, second: usize, bytes: usize) {
    for offset in 0..bytes {
        frame.swap(first + offset, second + offset);
    }
}

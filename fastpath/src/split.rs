//! Cuts packets that are too large for their link into fragments (RFC 791 section 3.2, RFC 4787 REQ-13a).

use conntrack::checksum::checksum;

use crate::io::Frame;
use crate::parse::{ETHERNET_BYTES, read_u16};
use crate::rewrite::write_u16;

/// Every link carries packets of this length (RFC 791 section 3.2), so a fragment of it holds 8 bytes behind
/// the longest header.
const LEAST_MTU: u16 = 68;

/// Bytes of an IPv4 header without options, and of the longest one.
const PLAIN_BYTES: usize = 20;
const LONGEST_BYTES: usize = 60;

/// "More fragments" in the word that also holds the offset.
const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// How a packet is cut. The packet may itself be a fragment.
#[derive(Clone, Debug)]
pub struct Cut {
    first_header_bytes: usize,
    later_header: [u8; LONGEST_BYTES],
    later_header_bytes: usize,
    first_payload_bytes: usize,
    later_payload_bytes: usize,
    payload_bytes: usize,
}

impl Cut {
    /// Plans how to cut the packet in a frame, which [`mod@crate::parse`] has read, into fragments of at most
    /// `mtu` bytes.
    pub fn plan(frame: &[u8], mtu: u16) -> Self {
        let mtu = usize::from(mtu.max(LEAST_MTU));
        let first_header_bytes = usize::from(frame[ETHERNET_BYTES] & 0xf) * 4;
        let header = &frame[ETHERNET_BYTES..ETHERNET_BYTES + first_header_bytes];
        let (later_header, later_header_bytes) = later_header(header);
        Self {
            first_header_bytes,
            later_header,
            later_header_bytes,
            first_payload_bytes: (mtu - first_header_bytes) & !7,
            later_payload_bytes: (mtu - later_header_bytes) & !7,
            payload_bytes: frame.len() - ETHERNET_BYTES - first_header_bytes,
        }
    }

    /// Returns the number of fragments.
    pub fn pieces(&self) -> usize {
        1 + self.payload_bytes.saturating_sub(self.first_payload_bytes).div_ceil(self.later_payload_bytes)
    }

    /// Writes one of the fragments of the packet in `from`.
    ///
    /// # Panics
    /// When there are not that many, or `from` is not the packet that was planned for.
    pub fn write_piece(&self, piece: usize, from: &[u8], to: &mut Frame) {
        let (start, room, header) = match piece {
            0 => (0, self.first_payload_bytes, &from[ETHERNET_BYTES..][..self.first_header_bytes]),
            _ => (
                self.first_payload_bytes + (piece - 1) * self.later_payload_bytes,
                self.later_payload_bytes,
                &self.later_header[..self.later_header_bytes],
            ),
        };
        let end = self.payload_bytes.min(start + room);
        let payload = &from[ETHERNET_BYTES + self.first_header_bytes..][start..end];
        let payload_at = ETHERNET_BYTES + header.len();
        to.set_len(payload_at + payload.len());
        let bytes = to.bytes_mut();
        bytes[..ETHERNET_BYTES].copy_from_slice(&from[..ETHERNET_BYTES]);
        bytes[ETHERNET_BYTES..payload_at].copy_from_slice(header);
        bytes[payload_at..].copy_from_slice(payload);
        self.write_place(&mut bytes[ETHERNET_BYTES..], start, end == self.payload_bytes);
    }

    /// Writes into a fragment's header where it belongs.
    fn write_place(&self, packet: &mut [u8], start: usize, is_last: bool) {
        let narrow = |number: usize| u16::try_from(number).expect("a frame is shorter than 64 KiB");
        let header_bytes = usize::from(packet[0] & 0xf) * 4;
        let whole = read_u16(packet, 6);
        let more = if is_last { whole & MORE } else { MORE };
        let offset = (whole & OFFSET) + narrow(start / 8);
        write_u16(packet, 6, (whole & !(MORE | OFFSET)) | more | offset);
        write_u16(packet, 2, narrow(packet.len()));
        write_u16(packet, 10, 0);
        let header = checksum(0, &packet[..header_bytes]);
        write_u16(packet, 10, header);
    }
}

/// Returns the header of all fragments but the first: some options are not copied (RFC 791 section 3.1).
fn later_header(header: &[u8]) -> ([u8; LONGEST_BYTES], usize) {
    let mut later = [0; LONGEST_BYTES];
    later[..PLAIN_BYTES].copy_from_slice(&header[..PLAIN_BYTES]);
    let mut bytes = PLAIN_BYTES;
    let mut options = &header[PLAIN_BYTES..];
    // An end of options, or one whose length makes no sense, ends them.
    while let Some((option, rest)) = split_option(options) {
        if option[0] & 0x80 != 0 {
            later[bytes..bytes + option.len()].copy_from_slice(option);
            bytes += option.len();
        }
        options = rest;
    }
    // What is left of the last word is 0, end of options.
    let bytes = bytes.next_multiple_of(4);
    later[0] = 0x40 | u8::try_from(bytes / 4).expect("a header has at most 15 words");
    (later, bytes)
}

/// Splits the first option off (RFC 791 section 3.1): one byte, or a type, a length and what it says.
fn split_option(options: &[u8]) -> Option<(&[u8], &[u8])> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    let length = match *options.first()? {
        END => return None,
        NO_OPERATION => 1,
        _ => usize::from(*options.get(1).filter(|length| **length >= 2)?),
    };
    options.split_at_checked(length)
}

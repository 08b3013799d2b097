//! Lowers the greatest segment that the ends of a TCP connection announce, where tunnels carry less than their links.

use conntrack::{ChecksumDelta, TcpFlags};

use crate::parse::{Flow, Segment, read_u16};
use crate::rewrite::write_u16;

/// Bytes of a TCP header without options.
const TCP_BYTES: usize = 20;

/// Kinds of TCP options (RFC 9293 section 3.1).
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// Bytes of the option that announces the maximum segment size: kind, length, and the size in two bytes.
const MSS_OPTION_BYTES: usize = 4;

/// Tells whether a packet may announce a maximum segment size: a SYN, or the SYN that answers it.
pub fn announces_mss(flow: &Flow) -> bool {
    match flow.segment {
        Segment::Tcp(segment) => segment.flags.has(TcpFlags::SYN),
        Segment::Udp | Segment::Query | Segment::Reply | Segment::Opaque => false,
    }
}

/// Lowers the maximum segment size that a SYN announces to `most` bytes (RFC 9293 section 3.7.1); 0: as the ends
/// like. None is added to a SYN without one, and nothing changes from an option on that cannot be read.
#[cold]
pub fn clamp_mss(frame: &mut [u8], flow: &Flow, most: u16) {
    if most == 0 {
        return;
    }
    let options_end = flow.at + usize::from(frame[flow.at + 12] >> 4) * 4;
    let mut at = flow.at + TCP_BYTES;
    while let Some(option_bytes) = option_bytes(&frame[at..options_end]) {
        if frame[at] == MAXIMUM_SEGMENT_SIZE && option_bytes == MSS_OPTION_BYTES {
            lower_word(frame, flow.at, at + 2, most);
        }
        at += option_bytes;
    }
}

/// Returns the length of the first of some options; none at their end, and where it cannot be read.
fn option_bytes(options: &[u8]) -> Option<usize> {
    match *options {
        [] | [END_OF_OPTIONS, ..] => None,
        [NO_OPERATION, ..] => Some(1),
        [_, bytes, ..] => Some(usize::from(bytes)).filter(|bytes| (2..=options.len()).contains(bytes)),
        [_] => None,
    }
}

/// Lowers a word of the TCP header at `tcp_at`, and updates the checksum (RFC 1624).
fn lower_word(frame: &mut [u8], tcp_at: usize, at: usize, most: u16) {
    let word = read_u16(frame, at);
    if word <= most {
        return;
    }
    write_u16(frame, at, most);
    // A word at an odd place is the halves of two words of the checksum: it counts with its bytes swapped (RFC 1071
    // section 2).
    let [old, new] =
        if (at - tcp_at).is_multiple_of(2) { [word, most] } else { [word, most].map(u16::swap_bytes) };
    let delta = ChecksumDelta::default().replace(old, new);
    let checksum = delta.apply(read_u16(frame, tcp_at + 16));
    write_u16(frame, tcp_at + 16, checksum);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::parse::{Transport, parse};
    use crate::testing::rig::check_checksums;
    use crate::testing::tcp_frame_with_options;

    const OPTIONS_AT: usize = 54;

    /// Returns the options of a SYN after its maximum segment size was lowered to 1,400 bytes.
    fn clamped(options: &[u8]) -> Vec<u8> {
        let mut frame =
            tcp_frame_with_options("10.132.0.5:40000", "192.168.55.13:80", TcpFlags::SYN, options);
        let before = frame.clone();
        let Transport::Flow(flow) = parse(&frame).unwrap().transport else { panic!() };
        clamp_mss(&mut frame, &flow, 1400);
        check_checksums(&frame);
        assert_eq!((&frame[..50], &frame[52..OPTIONS_AT]), (&before[..50], &before[52..OPTIONS_AT]));
        frame[OPTIONS_AT..].to_vec()
    }

    #[test]
    fn a_greater_size_is_lowered_wherever_it_stands() {
        let [high, low] = 1400u16.to_be_bytes();
        let cases: &[(&str, &[u8], &[u8])] = &[
            ("alone", &[2, 4, 5, 0xb4], &[2, 4, high, low]),
            ("at an odd place", &[1, 2, 4, 5, 0xb4, 1, 1, 1], &[1, 2, 4, high, low, 1, 1, 1]),
            ("behind a longer option", &[3, 3, 7, 2, 4, 0xff, 0xff, 0], &[3, 3, 7, 2, 4, high, low, 0]),
            ("twice", &[2, 4, 5, 0xb4, 2, 4, 5, 0xb5], &[2, 4, high, low, 2, 4, high, low]),
            ("at the end", &[4, 2, 1, 1, 2, 4, 5, 0xb4], &[4, 2, 1, 1, 2, 4, high, low]),
        ];
        for (name, options, expected) in cases {
            assert_eq!(clamped(options), *expected, "{name}");
        }
    }

    #[test]
    fn nothing_else_is_changed() {
        let cases: &[(&str, &[u8])] = &[
            ("no options", &[]),
            ("no size", &[1, 1, 4, 2]),
            ("a smaller size", &[2, 4, 5, 0]),
            ("the same size", &[2, 4, 0x05, 0x78]),
            ("behind the end", &[0, 2, 4, 5, 0xb4, 0, 0, 0]),
            ("behind an option of no length", &[8, 0, 2, 4, 5, 0xb4, 0, 0]),
            ("behind an option that is too long", &[8, 9, 2, 4, 5, 0xb4, 0, 0]),
            ("a size of three bytes", &[2, 5, 5, 0xb4, 1, 1, 1, 1]),
            ("cut after its length", &[1, 1, 2, 4]),
            ("cut after its kind", &[1, 1, 1, 2]),
        ];
        for (name, options) in cases {
            assert_eq!(clamped(options), *options, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_options_keep_their_length_and_a_right_checksum(
            words in prop::collection::vec(any::<[u8; 4]>(), 0..10),
        ) {
            let options = words.concat();
            prop_assert_eq!(clamped(&options).len(), options.len());
        }
    }
}

//! ICMP errors with extensions (RFC 4884), and with little of the packet that they are about.

use conntrack::TcpFlags;
use conntrack::checksum::checksum;

use super::{EGRESS, POD, answer, come_back, ends, leave, with_ttl};
use crate::snapshot::Side::{Inside, Outside};
use crate::testing::rig::Rig;
use crate::testing::{gateway, raw_frame, tcp_frame, udp_frame};
use crate::verdict::DropReason;

/// Where the quoted packet begins in a frame.
const QUOTE_AT: usize = 42;

/// An extension structure with one MPLS label stack object (RFC 4950).
const EXTENSION: [u8; 12] = [0x20, 0, 0xa5, 0x4c, 0, 8, 1, 1, 0x18, 0x6a, 0x21, 0x40];

/// Returns an ICMP error to `destination` that says `words` of its length attribute and quotes `quote`.
fn error_to(destination: &str, kind: u8, words: u8, quote: &[u8], extension: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0, 0, words, 0, 0], quote, extension].concat();
    let sum = checksum(0, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    raw_frame("192.168.55.1", destination, 1, &message)
}

/// Returns the packet of a frame, cut or padded with zeros to `bytes`.
fn quote_of(frame: &[u8], bytes: usize) -> Vec<u8> {
    let mut quote = frame[14..].to_vec();
    quote.resize(bytes, 0);
    quote
}

#[test]
fn extensions_behind_a_padded_quote_arrive_as_they_were_sent() {
    for kind in [3, 11, 12] {
        for sent in [
            udp_frame("10.132.0.5:40000", "198.51.100.7:33434", b"0123456789"),
            tcp_frame("10.132.0.5:40000", "198.51.100.7:80", TcpFlags::SYN),
        ] {
            let mut rig = Rig::new(gateway().spec());
            let out = leave(&mut rig, &sent);
            let back =
                come_back(&mut rig, &error_to("192.168.55.113", kind, 32, &quote_of(&out, 128), &EXTENSION));
            assert_eq!(back[39], 32, "length attribute");
            let arrived = with_ttl(back[QUOTE_AT - 14..].to_vec(), 64);
            assert_eq!(arrived[14..142], quote_of(&sent, 128), "what the pod sent, padded");
            assert_eq!(back[QUOTE_AT + 128..], EXTENSION);
        }
    }
}

#[test]
fn extensions_of_an_error_from_inside_leave_as_they_were_sent() {
    let mut rig = Rig::new(gateway().spec());
    let out = leave(&mut rig, &udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"query"));
    let back = come_back(&mut rig, &answer(&out, TcpFlags::default()));
    let sent = leave(&mut rig, &error_to("192.168.55.13", 11, 32, &quote_of(&back, 128), &EXTENSION));
    assert_eq!(ends(&sent).source.0, EGRESS);
    assert_eq!(sent[58..62], EGRESS.octets(), "destination of the quoted packet");
    assert_eq!(sent[QUOTE_AT + 128..], EXTENSION);
}

#[test]
fn what_lies_behind_the_quoted_packet_is_not_taken_for_its_checksum() {
    let sent = tcp_frame("10.132.0.5:40000", "198.51.100.7:80", TcpFlags::SYN);
    // The length attribute ends the quote after 8 bytes of TCP; or the quoted packet, a first fragment, itself does.
    for ends_by_itself in [false, true] {
        let mut rig = Rig::new(gateway().spec());
        let mut quoted = leave(&mut rig, &sent);
        if ends_by_itself {
            quoted[16..18].copy_from_slice(&28u16.to_be_bytes());
            quoted[20] |= 0x20;
            quoted = with_ttl(quoted, 63);
        }
        let words = if ends_by_itself { 0 } else { 7 };
        let error = error_to("192.168.55.113", 11, words, &quote_of(&quoted, 28), &EXTENSION);
        let back = come_back(&mut rig, &error);
        assert_eq!(ends(&back).destination.0, POD.parse::<std::net::Ipv4Addr>().unwrap());
        assert_eq!(back[QUOTE_AT + 20..QUOTE_AT + 28], sent[34..42], "ports and sequence number");
        assert_eq!(back[QUOTE_AT + 28..], EXTENSION);
    }
}

#[test]
fn eight_bytes_of_the_quoted_packet_are_enough_and_seven_are_not() {
    let sent = tcp_frame("10.132.0.5:40000", "198.51.100.7:80", TcpFlags::SYN);
    let mut rig = Rig::new(gateway().spec());
    let out = leave(&mut rig, &sent);
    let back = come_back(&mut rig, &error_to("192.168.55.113", 11, 0, &quote_of(&out, 28), &[]));
    assert_eq!(back[QUOTE_AT + 20..], sent[34..42]);
    let too_short = error_to("192.168.55.113", 11, 0, &quote_of(&out, 27), &[]);
    assert!(rig.send(Outside, &too_short, Inside).is_empty());
    assert_eq!(rig.drops(DropReason::Malformed), 1);
}

#[test]
fn a_length_attribute_that_contradicts_the_message_is_malformed() {
    let mut rig = Rig::new(gateway().spec());
    let out = leave(&mut rig, &udp_frame("10.132.0.5:40000", "198.51.100.7:33434", b"0123456789"));
    let whole = error_to("192.168.55.113", 11, 35, &quote_of(&out, 128), &EXTENSION);
    come_back(&mut rig, &whole);
    for words in [36, 255, 6, 1] {
        let error = error_to("192.168.55.113", 11, words, &quote_of(&out, 128), &EXTENSION);
        assert!(rig.send(Outside, &error, Inside).is_empty(), "{words} words");
    }
    assert_eq!((rig.drops(DropReason::Malformed), rig.all_drops()), (4, 4));
}

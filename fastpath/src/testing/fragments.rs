//! Datagrams in fragments: a naive way to cut them, and one to put them together.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use conntrack::Protocol;
use conntrack::checksum::checksum;

use super::builder;
use super::rig::check_checksums;

/// Returns a packet to blue's MAC, of any length, that may be fragmented. Of an ICMP query, the pod's port is
/// the identifier.
pub(crate) fn packet(
    protocol: Protocol,
    source: &str,
    destination: &str,
    payload: &[u8],
    is_reply: bool,
) -> Vec<u8> {
    let (source, destination): (SocketAddrV4, SocketAddrV4) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let step = builder(source, destination);
    let mut frame = Vec::new();
    match (protocol, is_reply) {
        (Protocol::Udp, _) => {
            step.udp(source.port(), destination.port()).write(&mut frame, payload).unwrap();
        }
        (Protocol::Tcp, _) => {
            let step = step.tcp(source.port(), destination.port(), 1001, 64000).ack(2001);
            step.write(&mut frame, payload).unwrap();
        }
        (Protocol::Icmp, false) => {
            step.icmpv4_echo_request(source.port(), 1).write(&mut frame, payload).unwrap();
        }
        (Protocol::Icmp, true) => {
            step.icmpv4_echo_reply(destination.port(), 1).write(&mut frame, payload).unwrap();
        }
        (Protocol::Portless(protocol), _) => panic!("{protocol:?} has no ports"),
    }
    with_header(frame, |header| header[6] = 0)
}

/// Returns a frame with its IPv4 header changed, and the checksum of that.
pub(crate) fn with_header(mut frame: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let end = payload_at(&frame);
    change(&mut frame[14..end]);
    frame[24..26].fill(0);
    let sum = checksum(0, &frame[14..end]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Returns a frame with another identification.
pub(crate) fn with_identification(frame: Vec<u8>, identification: u16) -> Vec<u8> {
    with_header(frame, |header| header[4..6].copy_from_slice(&identification.to_be_bytes()))
}

/// Returns a part of a packet as a fragment: `bytes` of its payload from `offset` on; less where it ends.
pub(crate) fn fragment(frame: &[u8], offset: usize, bytes: usize) -> Vec<u8> {
    let at = payload_at(frame);
    let end = (at + offset + bytes).min(frame.len());
    let mut part = frame[..at].to_vec();
    part.extend_from_slice(&frame[at + offset..end]);
    let total = u16::try_from(part.len() - 14).unwrap();
    let more = if end < frame.len() { 0x2000 } else { 0 };
    let place = u16::try_from(offset / 8).unwrap() | more;
    with_header(part, |header| {
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[6..8].copy_from_slice(&place.to_be_bytes());
    })
}

/// Cuts a packet into fragments of `bytes` bytes each, the last excepted.
pub(crate) fn fragments(frame: &[u8], bytes: usize) -> Vec<Vec<u8>> {
    let payload_bytes = frame.len() - payload_at(frame);
    (0..payload_bytes).step_by(bytes).map(|offset| fragment(frame, offset, bytes)).collect()
}

/// Puts one datagram together. Fails when the fragments are not all of it, overlap, or do not belong
/// together.
pub(crate) fn reassemble(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut parts = BTreeMap::new();
    let mut whole = None;
    let mut total = None;
    for fragment in fragments {
        check_checksums(fragment);
        let of_one = |frame: &[u8]| (frame[18..20].to_vec(), frame[23], frame[26..34].to_vec());
        assert_eq!(of_one(fragment), of_one(&fragments[0]), "identification, protocol and addresses");
        let (offset, more) = place(fragment);
        let payload = &fragment[payload_at(fragment)..];
        assert!(!more || payload.len().is_multiple_of(8), "only the last may end anywhere");
        assert!(parts.insert(offset, payload.to_vec()).is_none(), "two fragments at {offset}");
        if offset == 0 {
            whole = Some(fragment[..payload_at(fragment)].to_vec());
        }
        if !more {
            assert_eq!(total.replace(offset + payload.len()), None, "two last fragments");
        }
    }
    let mut whole = whole.expect("the first fragment is there");
    let header_bytes = whole.len();
    for (offset, payload) in parts {
        assert_eq!(offset, whole.len() - header_bytes, "without a gap or an overlap");
        whole.extend(payload);
    }
    assert_eq!(Some(whole.len() - header_bytes), total, "the last fragment is there");
    let total = u16::try_from(whole.len() - 14).unwrap();
    with_header(whole, |header| {
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[6..8].fill(0);
    })
}

/// Returns where a frame's payload belongs in its datagram, and whether that goes on.
pub(crate) fn place(frame: &[u8]) -> (usize, bool) {
    let word = u16::from_be_bytes([frame[20], frame[21]]);
    (usize::from(word & 0x1fff) * 8, word & 0x2000 != 0)
}

/// Returns a frame's identification.
pub(crate) fn identification(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[18], frame[19]])
}

/// Returns where the payload of a frame's IPv4 packet starts.
pub(crate) fn payload_at(frame: &[u8]) -> usize {
    14 + usize::from(frame[14] & 0xf) * 4
}

//! Packets that are too large for the outgoing link and may be fragmented leave in fragments, in order.

use std::time::Duration;

use conntrack::Protocol::Udp;

use super::{EGRESS, leave};
use crate::io::sim::Faults;
use crate::snapshot::Side::{Inside, Outside};
use crate::snapshot::SnapshotSpec;
use crate::testing::fragments::{
    fragment, fragments, identification, packet, payload_at, place, reassemble, with_header,
};
use crate::testing::rig::{Rig, Size, check_sent};
use crate::testing::{BLUE_MAC, RED_MAC, gateway, udp_frame};
use crate::verdict::DropReason;

const FROM_POD: &str = "10.132.0.5:40000";
const SERVER: &str = "192.168.55.13:53";

fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

fn with_mtu(mtu: u16) -> SnapshotSpec {
    gateway().change(|spec| (spec.outside.mtu, spec.inside.mtu) = (mtu, mtu)).spec()
}

/// Returns a frame with options in its IPv4 header.
fn with_options(frame: &[u8], options: &[u8]) -> Vec<u8> {
    let mut longer = frame[..34].to_vec();
    longer.extend_from_slice(options);
    longer.extend_from_slice(&frame[34..]);
    let words = u8::try_from((20 + options.len()) / 4).unwrap();
    let total = u16::try_from(longer.len() - 14).unwrap();
    longer[14] = 0x40 | words;
    with_header(longer, |header| header[2..4].copy_from_slice(&total.to_be_bytes()))
}

fn check_order(sent: &[Vec<u8>], mtu: u16) {
    assert!(sent.iter().all(|frame| frame.len() <= 14 + usize::from(mtu)));
    assert!(sent.is_sorted_by_key(|frame| place(frame).0), "in order");
}

#[test]
fn an_oversize_packet_leaves_in_fragments_in_order() {
    for (mtu, bytes, pieces) in
        [(1500, 1473, 2), (1400, 1700, 2), (576, 1600, 3), (68, 1600, 34), (100, 1001, 13)]
    {
        let mut rig = Rig::new(with_mtu(mtu));
        let sent = packet(Udp, FROM_POD, SERVER, &payload(bytes), false);
        let left = rig.send(Inside, &sent, Outside);
        assert_eq!(left.len(), pieces, "{bytes} bytes by {mtu}");
        check_order(&left, mtu);
        let out = reassemble(&left);
        check_sent(Outside, &out, &[EGRESS]);
        assert!(out[42..] == sent[42..], "the payload is unchanged");
        assert_eq!((rig.all_drops(), rig.blue().outbound_packets), (0, pieces as u64));
    }
}

#[test]
fn an_oversize_reply_reaches_the_pod_in_fragments() {
    let mut rig = Rig::new(gateway().change(|spec| spec.inside.mtu = 1400).spec());
    let out = leave(&mut rig, &packet(Udp, FROM_POD, SERVER, b"query", false));
    let egress = format!("{EGRESS}:{}", u16::from_be_bytes([out[34], out[35]]));
    let left = rig.send(Outside, &packet(Udp, SERVER, &egress, &payload(1450), true), Inside);
    check_order(&left, 1400);
    let back = reassemble(&left);
    check_sent(Inside, &back, &[]);
    assert_eq!((left.len(), &back[30..34], &back[36..38]), (2, &[10, 132, 0, 5][..], &[0x9c, 0x40][..]));
}

#[test]
fn options_that_are_not_to_be_copied_are_in_the_first_fragment_only() {
    // Record route, security (copied), no operation, stream identifier (copied), end.
    let record = [7, 7, 4, 0, 0, 0, 0];
    let security = [130, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let stream = [136, 4, 1, 2];
    let options = [&record[..], &security[..], &[1], &stream[..], &[0]].concat();
    let mut rig = Rig::new(with_mtu(576));
    let sent = with_options(&packet(Udp, FROM_POD, SERVER, &payload(1500), false), &options);
    let left = rig.send(Inside, &sent, Outside);
    check_order(&left, 576);
    assert_eq!(left[0][34..payload_at(&left[0])], options);
    for later in &left[1..] {
        assert_eq!(later[34..payload_at(later)], [&security[..], &stream[..], &[0]].concat());
    }
    let out = reassemble(&left);
    check_sent(Outside, &out, &[EGRESS]);
    assert!(out[payload_at(&out) + 8..] == sent[payload_at(&sent) + 8..], "the payload is unchanged");
}

#[test]
fn options_that_make_no_sense_are_not_copied() {
    for options in [[130, 0, 0, 0], [130, 9, 0, 0], [1, 1, 1, 130]] {
        let mut rig = Rig::new(with_mtu(576));
        let left = rig.send(
            Inside,
            &with_options(&packet(Udp, FROM_POD, SERVER, &payload(900), false), &options),
            Outside,
        );
        assert_eq!((payload_at(&left[0]), payload_at(&left[1])), (38, 34), "{options:?}");
        check_sent(Outside, &reassemble(&left), &[EGRESS]);
    }
}

#[test]
fn an_oversize_fragment_is_fragmented_again() {
    for order in [[0, 1, 2], [2, 1, 0]] {
        let mut rig = Rig::new(with_mtu(576));
        let sent = packet(Udp, FROM_POD, SERVER, &payload(4000), false);
        let pieces = fragments(&sent, 1480);
        let mut left = Vec::new();
        for index in order {
            left.extend(rig.send(Inside, &pieces[index], Outside));
        }
        assert_eq!(left.len(), 3 + 3 + 2);
        let out = reassemble(&left);
        check_sent(Outside, &out, &[EGRESS]);
        assert!(out[42..] == sent[42..], "the payload is unchanged");
    }
}

#[test]
fn a_fragment_that_may_not_be_fragmented_is_answered_if_it_is_the_first() {
    let mut rig = Rig::new(with_mtu(576));
    let sent = packet(Udp, FROM_POD, SERVER, &payload(2000), false);
    for offset in [0, 1000] {
        let piece = with_header(fragment(&sent, offset, 1000), |header| header[6] |= 0x40);
        let answers = rig.send(Inside, &piece, Inside);
        assert_eq!(answers.len(), usize::from(offset == 0));
        for answer in answers {
            assert_eq!((answer[34], answer[35], &answer[40..42]), (3, 4, &576u16.to_be_bytes()[..]));
        }
    }
    assert_eq!((rig.drops(DropReason::TooBig), rig.all_drops()), (2, 2));
}

#[test]
fn packets_that_are_cut_get_identifications_of_their_own() {
    let mut rig = Rig::new(with_mtu(576));
    let mut identifications = std::collections::HashSet::new();
    for pod in 0..20 {
        let sent = packet(Udp, &format!("10.132.0.{pod}:40000"), SERVER, &payload(1000), false);
        identifications.insert(identification(&reassemble(&rig.send(Inside, &sent, Outside))));
    }
    assert_eq!(identifications.len(), 20);
}

#[test]
fn fragments_that_find_no_room_are_counted() {
    let mut rig = Rig::new(with_mtu(68));
    for _ in 0..3 {
        rig.inject(0, Inside, &packet(Udp, FROM_POD, SERVER, &payload(1600), false));
    }
    rig.run();
    assert_eq!(rig.take(Outside).len(), 64, "the ring's worth");
    assert_eq!((rig.drops(DropReason::TxRingFull), rig.all_drops()), (3 * 34 - 64, 3 * 34 - 64));
    assert_eq!(rig.blue().dropped_packets, 3 * 34 - 64);
}

#[test]
fn fragments_that_find_no_free_frame_are_counted() {
    // As many frames as two tenants may have wait for neighbours, 256 and 128, and what the fill rings hold.
    let size = Size { frames: 256 + 128 + 2 * Size::USUAL.ring, ..Size::USUAL };
    let mut rig = Rig::of_size(gateway().spec(), size, Faults::default(), 1);
    for (mac, hosts) in [(BLUE_MAC, 20..23), (RED_MAC, 30..33)] {
        for (host, port) in hosts.flat_map(|host| (2000..2100).map(move |port| (host, port))) {
            let (pod, dark) = (format!("10.132.0.5:{port}"), format!("192.168.55.{host}:53"));
            let mut frame = udp_frame(&pod, &dark, b"x");
            frame[..6].copy_from_slice(mac.as_bytes());
            rig.send(Inside, &frame, Outside);
        }
    }
    let oversize = packet(Udp, FROM_POD, SERVER, &payload(1600), false);
    assert!(rig.send(Inside, &oversize, Outside).is_empty());
    assert_eq!(rig.drops(DropReason::NoFreeFrame), 2);
    rig.wait(Duration::from_secs(3));
    rig.take(Inside);
    check_sent(Outside, &reassemble(&rig.send(Inside, &oversize, Outside)), &[EGRESS]);
}

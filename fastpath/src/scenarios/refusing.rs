//! What may not pass is refused, counted, and leaves nothing behind.

use std::time::Duration;

use conntrack::TcpFlags;

use super::{Ends, POD, answer, come_back, ends, leave, only, with_ttl};
use crate::snapshot::Side::{Inside, Outside};
use crate::testing::rig::{Rig, check_sent};
use crate::testing::{BLUE_MAC, INSIDE_MAC, corrupt, gateway, icmp_error_about, tcp_frame, udp_frame};
use crate::verdict::DropReason;

#[test]
fn what_may_not_pass_is_refused_counted_and_leaves_nothing_behind() {
    let to_nic = |frame: Vec<u8>| {
        let mut frame = frame;
        frame[..6].copy_from_slice(INSIDE_MAC.as_bytes());
        frame
    };
    let udp = udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x");
    let syn = tcp_frame("10.132.0.5:40000", "192.168.55.13:80", TcpFlags::SYN);
    type Case = (&'static str, Vec<u8>, DropReason, Option<(u8, u8)>);
    let cases: Vec<Case> = vec![
        ("leak, UDP", to_nic(udp.clone()), DropReason::Leak, Some((3, 13))),
        ("leak, TCP", to_nic(syn.clone()), DropReason::Leak, None),
        (
            "unknown source",
            udp_frame("172.16.0.5:1", "192.168.55.13:53", b"x"),
            DropReason::UnknownSource,
            Some((3, 13)),
        ),
        (
            "no session",
            tcp_frame("10.132.0.5:1", "192.168.55.13:80", TcpFlags::ACK),
            DropReason::NoSession,
            None,
        ),
        (
            "too big",
            udp_frame("10.132.0.5:1", "192.168.55.13:53", &[0; 1480]),
            DropReason::TooBig,
            Some((3, 4)),
        ),
    ];
    for (name, mut frame, reason, icmp) in cases {
        let mut rig = Rig::new(gateway().spec());
        if reason == DropReason::TooBig {
            frame = corrupt(&frame, &[(20, 0x40)]);
            frame[24..26].fill(0);
            let sum = conntrack::checksum::checksum(0, &frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        let answer = only(rig.send(Inside, &frame, Inside));
        check_sent(Inside, &answer, &[]);
        assert_eq!(answer[..6], frame[6..12], "{name}: back to where it came from");
        match icmp {
            Some(error) => assert_eq!((answer[34], answer[35]), error, "{name}"),
            None => assert_eq!((answer[23], answer[47] & 0x04), (6, 0x04), "{name}: RST"),
        }
        assert!(rig.take(Outside).is_empty(), "{name}");
        assert_eq!((rig.drops(reason), rig.all_drops(), rig.sessions()), (1, 1, 0), "{name}");
    }
}

#[test]
fn a_reset_is_believable_to_the_client_that_it_refuses() {
    let mut rig = Rig::new(gateway().spec());
    let mut syn = tcp_frame("10.132.0.5:40000", "192.168.55.13:80", TcpFlags::SYN);
    syn[..6].copy_from_slice(INSIDE_MAC.as_bytes());
    let rst = only(rig.send(Inside, &syn, Inside));
    assert_eq!(
        ends(&rst),
        Ends { source: ("192.168.55.13".parse().unwrap(), 80), destination: (POD.parse().unwrap(), 40000) }
    );
    assert_eq!(u32::from_be_bytes(rst[42..46].try_into().unwrap()), 1001, "it acknowledges the SYN");
    let reset = tcp_frame("10.132.0.5:40000", "192.168.55.13:80", TcpFlags::RST);
    assert!(rig.send(Inside, &reset, Inside).is_empty(), "a RST is not answered");
}

#[test]
fn the_world_gets_no_answer_to_what_it_was_not_asked_for() {
    let mut rig = Rig::new(gateway().spec());
    for frame in [
        udp_frame("192.168.55.13:53", "192.168.55.113:40000", b"x"),
        tcp_frame("192.168.55.13:80", "192.168.55.113:40000", TcpFlags::SYN),
    ] {
        assert!(rig.send(Outside, &frame, Outside).is_empty());
        assert!(rig.take(Inside).is_empty());
    }
    assert_eq!(rig.drops(DropReason::NoSession), 2);
}

#[test]
fn a_flood_of_refused_packets_gets_a_bounded_number_of_answers() {
    let mut rig = Rig::new(gateway().spec());
    let mut answers = 0;
    for port in 1..=3000 {
        answers += rig
            .send(Inside, &udp_frame(&format!("172.16.0.5:{port}"), "192.168.55.13:53", b"x"), Inside)
            .len();
    }
    assert_eq!(answers, 1000);
    rig.wait(Duration::from_millis(500));
    assert_eq!(rig.send(Inside, &udp_frame("172.16.0.5:1", "192.168.55.13:53", b"x"), Inside).len(), 1);
}

#[test]
fn a_tenant_with_its_share_of_the_table_gets_no_new_sessions_and_keeps_the_old() {
    let mut rig = Rig::new(gateway().spec());
    let frame = |port: u32| udp_frame(&format!("10.132.0.5:{}", 2000 + port), "192.168.55.13:53", b"x");
    // One of the 256 entries is the pod's, and 2 are kept for others.
    for port in 0..253 {
        leave(&mut rig, &frame(port));
    }
    assert_eq!(rig.send(Inside, &frame(253), Inside).len(), 1);
    assert_eq!(rig.drops(DropReason::TenantShare), 1);
    leave(&mut rig, &frame(0));
}

#[test]
fn lack_of_room_is_told_with_an_error_and_not_a_reset() {
    // 1,023 outside ports stand for the inside ports below 1024, and one pod and one session fill a table for two.
    for (reason, sessions, room) in [(DropReason::NoPort, 2000, 1023), (DropReason::SessionsFull, 2, 1)] {
        let mut rig = Rig::with_room_for(sessions, gateway().spec());
        let syn =
            |pod: &str, port: u32| tcp_frame(&format!("{pod}:{port}"), "192.168.55.13:80", TcpFlags::SYN);
        for port in 1..=room {
            leave(&mut rig, &syn(POD, port));
        }
        let refused = syn("10.132.0.6", 1);
        let error = only(rig.send(Inside, &refused, Inside));
        check_sent(Inside, &error, &[]);
        assert_eq!((error[34], error[35]), (3, 13), "{}", reason.name());
        assert_eq!(error[42..], refused[14..], "about the SYN");
        assert_eq!(rig.blue().drops, [(reason, 1)]);
        assert_eq!(rig.sessions(), room, "and none is ended to make room");
        leave(&mut rig, &syn(POD, 1));
    }
}

#[test]
fn a_full_tx_ring_is_a_counted_drop() {
    let mut rig = Rig::new(gateway().spec());
    let open = |rig: &mut Rig, port: u32| {
        leave(rig, &udp_frame(&format!("10.132.0.5:{}", 2000 + port), "192.168.55.13:53", b"x"))
    };
    let out: Vec<_> = (0..64).map(|port| open(&mut rig, port)).collect();
    // Both ports receive a batch towards the same side before the ring is flushed.
    for frame in &out {
        rig.inject(0, Outside, &answer(frame, TcpFlags::default()));
    }
    for port in 0..10u32 {
        rig.inject(0, Inside, &udp_frame(&format!("172.16.0.5:{}", 2000 + port), "192.168.55.13:53", b"x"));
    }
    rig.run();
    let sent = rig.take(Inside).len() as u64;
    assert_eq!(sent + rig.drops(DropReason::TxRingFull), 74, "replies that found room after ten answers");
    assert_eq!(rig.drops(DropReason::TxRingFull), 10);
}

#[test]
fn a_leak_by_a_mac_that_is_somebody_elses_is_counted_and_not_answered() {
    let mut rig = Rig::new(gateway().spec());
    let mut frame = tcp_frame("10.132.0.5:40000", "192.168.55.13:80", TcpFlags::ACK);
    frame[..6].copy_from_slice(&[2, 0x53, 192, 168, 99, 77]);
    assert!(rig.send(Inside, &frame, Inside).is_empty());
    assert_eq!(rig.drops(DropReason::Leak), 1);
}

#[test]
fn the_world_learns_nothing_from_a_packet_that_expires_without_a_session() {
    let mut rig = Rig::new(gateway().spec());
    let frame = with_ttl(udp_frame("192.168.55.13:53", "192.168.55.113:40000", b"x"), 1);
    assert!(rig.send(Outside, &frame, Outside).is_empty());
    assert_eq!(rig.drops(DropReason::NoSession), 1);
    let out = leave(&mut rig, &udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x"));
    let expired = with_ttl(answer(&out, TcpFlags::default()), 1);
    assert_eq!(rig.send(Outside, &expired, Outside).len(), 1, "the other end of a session is told");
}

#[test]
fn an_error_to_somebody_else_than_the_sender_of_what_it_quotes_is_dropped() {
    let mut rig = Rig::new(gateway().spec());
    let out = leave(&mut rig, &udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"query"));
    let back = come_back(&mut rig, &answer(&out, TcpFlags::default()));
    let mut error = icmp_error_about("10.132.0.5", &back, 3, 8);
    error[..6].copy_from_slice(BLUE_MAC.as_bytes());
    error[30..34].copy_from_slice(&[198, 51, 100, 7]);
    let error = with_ttl(error, 64);
    assert!(rig.send(Inside, &error, Outside).is_empty());
    assert_eq!(rig.drops(DropReason::MisaddressedError), 1);
}

#[test]
fn packets_that_get_no_answer_do_not_use_up_answers() {
    let mut rig = Rig::new(gateway().spec());
    for _ in 0..2000 {
        rig.send(Inside, &tcp_frame("10.132.0.5:1", "192.168.55.13:80", TcpFlags::RST), Inside);
    }
    let refused = tcp_frame("10.132.0.5:1", "192.168.55.13:80", TcpFlags::ACK);
    assert_eq!(rig.send(Inside, &refused, Inside).len(), 1);
}

#[test]
fn a_packet_that_cannot_be_read_to_its_end_is_counted_for_its_tenant() {
    let mut rig = Rig::new(gateway().spec());
    // A fragment that others follow has a multiple of 8 bytes.
    let mut fragment = udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x");
    fragment[20] = 0x20;
    rig.send(Inside, &with_ttl(fragment, 64), Outside);
    assert_eq!((rig.drops(DropReason::Malformed), rig.blue().dropped_packets), (1, 1));
}

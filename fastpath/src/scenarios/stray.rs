//! Packets that belong to no session and may not open one.

use std::net::Ipv4Addr;
use std::time::Duration;

use conntrack::{TcpFlags, TenantId};
use macaddr::MacAddr6;

use super::{EGRESS, SYN_ACK, come_back, ends, leave, only};
use crate::snapshot::Side::{Inside, Outside};
use crate::snapshot::{MidStream, UnsolicitedSyn};
use crate::testing::rig::{Rig, check_sent};
use crate::testing::{Gateway, OUTSIDE_MAC, SERVER_MAC, echo_frame, gateway, tcp_frame, udp_frame};
use crate::verdict::DropReason;

/// How long a SYN is held (RFC 5382 REQ-4).
const HELD: Duration = Duration::from_secs(6);
const TENTH: Duration = Duration::from_millis(100);

#[test]
fn a_pod_in_the_middle_of_an_unknown_connection_is_reset_or_hears_nothing() {
    for flags in [TcpFlags::ACK, SYN_ACK, TcpFlags(0x11)] {
        let segment = tcp_frame("10.132.0.5:40000", "192.168.55.13:80", flags);
        let mut rig = Rig::new(gateway().spec());
        let rst = only(rig.send(Inside, &segment, Inside));
        check_sent(Inside, &rst, &[]);
        assert_eq!((rst[23], rst[47] & TcpFlags::RST.0), (6, TcpFlags::RST.0));

        let silent = gateway().change(|spec| spec.tcp.mid_stream = MidStream::Drop);
        let mut rig = Rig::new(silent.spec());
        assert!(rig.send(Inside, &segment, Inside).is_empty());
        assert!(rig.take(Outside).is_empty());
        assert_eq!(rig.blue().drops, [(DropReason::NoSession, 1)]);
        assert_eq!(rig.sessions(), 0);
    }
}

#[test]
fn silence_in_the_middle_of_connections_is_for_tcp_alone() {
    let silent = gateway().change(|spec| spec.tcp.mid_stream = MidStream::Drop);
    let mut rig = Rig::new(silent.spec());
    let reply = echo_frame("10.132.0.5", "192.168.55.13", 4711, true);
    let error = only(rig.send(Inside, &reply, Inside));
    assert_eq!((error[34], error[35]), (3, 13));
}

/// A gateway that answers SYNs that nobody asked for.
fn answering() -> Gateway {
    gateway().change(|spec| spec.tcp.unsolicited_syn = UnsolicitedSyn::Unreachable)
}

fn stray_syn(port: u16) -> Vec<u8> {
    let mut frame = tcp_frame("192.168.55.13:80", &format!("192.168.55.113:{port}"), TcpFlags::SYN);
    frame[..6].copy_from_slice(OUTSIDE_MAC.as_bytes());
    frame[6..12].copy_from_slice(SERVER_MAC.as_bytes());
    frame
}

/// Returns what a rig says to the outside about a frame, at once and then for as long as a SYN is held.
fn said_about(rig: &mut Rig, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut said = rig.send(Outside, frame, Outside);
    rig.wait(HELD);
    said.extend(rig.take(Outside));
    assert!(rig.take(Inside).is_empty(), "pods hear nothing");
    said
}

#[test]
fn a_syn_that_nobody_asked_for_is_answered_after_six_seconds() {
    let mut rig = Rig::new(answering().spec());
    let syn = stray_syn(40000);
    assert!(rig.send(Outside, &syn, Outside).is_empty());
    rig.wait(HELD - TENTH);
    assert!(rig.take(Outside).is_empty());
    assert_eq!(rig.all_drops(), 0);
    rig.wait(TENTH);
    let error = only(rig.take(Outside));
    check_sent(Outside, &error, &[EGRESS]);
    assert_eq!((error[34], error[35]), (3, 3));
    assert_eq!(ends(&error).destination.0, ends(&syn).source.0);
    assert_eq!((&error[..6], &error[6..12]), (SERVER_MAC.as_bytes(), OUTSIDE_MAC.as_bytes()));
    assert_eq!(error[42..], syn[14..], "the SYN as it came");
    assert_eq!((rig.blue().drops, rig.sessions()), (vec![(DropReason::NoSession, 1)], 0));
}

#[test]
fn a_connection_that_the_pod_opens_meanwhile_swallows_the_syn() {
    let pod_syn = tcp_frame("10.132.0.5:40000", "192.168.55.13:80", TcpFlags::SYN);
    // Ports follow the rig's seed: this is the one that the first session gets.
    let port = ends(&leave(&mut Rig::new(answering().spec()), &pod_syn)).source.1;
    let mut rig = Rig::new(answering().spec());
    assert!(rig.send(Outside, &stray_syn(port), Outside).is_empty());
    rig.wait(HELD - TENTH);
    assert_eq!(ends(&leave(&mut rig, &pod_syn)).source.1, port);
    rig.wait(TENTH);
    assert!(rig.take(Outside).is_empty() && rig.take(Inside).is_empty());
    assert_eq!(rig.blue().drops, [(DropReason::NoSession, 1)]);
    come_back(&mut rig, &stray_syn(port));
}

#[test]
fn only_a_syn_to_an_egress_address_is_held() {
    let mut rig = Rig::new(answering().spec());
    for flags in [SYN_ACK, TcpFlags::ACK, TcpFlags::RST] {
        let segment = tcp_frame("192.168.55.13:80", "192.168.55.113:40000", flags);
        assert!(said_about(&mut rig, &segment).is_empty());
    }
    let datagram = udp_frame("192.168.55.13:80", "192.168.55.113:40000", b"x");
    assert!(said_about(&mut rig, &datagram).is_empty());
    let elsewhere = tcp_frame("192.168.55.13:80", "192.168.55.99:40000", TcpFlags::SYN);
    assert!(said_about(&mut rig, &elsewhere).is_empty());
    assert_eq!((rig.drops(DropReason::NoSession), rig.drops(DropReason::UnknownTenant)), (4, 1));
}

#[test]
fn a_syn_that_is_sent_again_is_answered_once() {
    let mut rig = Rig::new(answering().spec());
    for second in [1, 2] {
        assert!(rig.send(Outside, &stray_syn(40000), Outside).is_empty());
        rig.wait(Duration::from_secs(second));
    }
    assert_eq!(rig.drops(DropReason::NoSession), 1, "the second one");
    rig.wait(HELD);
    assert_eq!(rig.take(Outside).len(), 1);
    assert_eq!(said_about(&mut rig, &stray_syn(40000)).len(), 1, "and after that as if it were new");
}

/// Egress addresses of the tenants of [`crowd`], by their last byte.
const CROWD: [u8; 6] = [113, 114, 122, 123, 124, 125];

/// An answering gateway with four tenants more.
fn crowd() -> Gateway {
    answering().change(|spec| {
        for (id, host) in (2..).zip(&CROWD[2..]) {
            let mut tenant = spec.tenants[0].clone();
            tenant.id = TenantId(id);
            tenant.gateway_mac = MacAddr6::new(2, 0x53, 192, 168, 99, *host);
            tenant.egress_addresses = vec![Ipv4Addr::new(192, 168, 55, *host)];
            spec.tenants.push(tenant);
        }
    })
}

fn send_forty_syns(rig: &mut Rig, host: u8) {
    for port in 2000..2040 {
        let to = format!("192.168.55.{host}:{port}");
        rig.inject(0, Outside, &tcp_frame("192.168.55.13:80", &to, TcpFlags::SYN));
    }
    rig.run();
    assert!(rig.take(Outside).is_empty());
}

#[test]
fn few_syns_are_held_for_a_tenant_and_in_all_and_the_rest_are_dropped_at_once() {
    let mut rig = Rig::new(crowd().spec());
    let dropped = CROWD.map(|host| {
        send_forty_syns(&mut rig, host);
        rig.drops(DropReason::NoSession)
    });
    assert_eq!(dropped, [8, 16, 24, 53, 89, 128], "32 of each tenant, fewer where others have most places");
    rig.wait(HELD);
    assert_eq!(rig.take(Outside).len(), 112);
    assert_eq!(rig.drops(DropReason::NoSession), 240);
}

#[test]
fn answers_to_held_syns_are_bounded_with_all_others_of_their_tenant() {
    let mut rig = Rig::new(crowd().spec());
    CROWD.iter().for_each(|host| send_forty_syns(&mut rig, *host));
    rig.wait(HELD - TENTH);
    for port in 1..=1000 {
        rig.send(Inside, &udp_frame(&format!("172.16.0.5:{port}"), "192.168.55.13:53", b"x"), Inside);
    }
    for port in 1..=200 {
        rig.inject(0, Inside, &udp_frame(&format!("172.16.0.5:{port}"), "192.168.55.13:53", b"x"));
    }
    rig.wait(TENTH);
    let answers = rig.take(Outside).len() + rig.take(Inside).len();
    assert_eq!(answers, 100 + 80, "what blue earned in a tenth of a second, and all of the others");
    assert_eq!(rig.drops(DropReason::NoSession), 240);
}

#[test]
fn a_held_syn_is_judged_by_the_snapshot_of_the_day() {
    let moved = vec![Ipv4Addr::new(192, 168, 55, 120)];
    let silent = [
        gateway().epoch(2),
        answering().epoch(2).change(|spec| spec.tenants[0].egress_addresses = moved),
        answering().epoch(2).change(|spec| spec.tenants.truncate(0)),
    ];
    for next in silent {
        let mut rig = Rig::new(answering().spec());
        rig.send(Outside, &stray_syn(40000), Outside);
        rig.publish(next.spec());
        rig.take(Outside); // announcements of new addresses
        rig.wait(HELD);
        assert!(rig.take(Outside).is_empty());
        assert_eq!(rig.blue().drops, [(DropReason::NoSession, 1)]);
    }
}

#[test]
fn held_syns_outlive_a_panic() {
    let mut rig = Rig::new(answering().spec());
    rig.send(Outside, &stray_syn(40000), Outside);
    rig.fail_at(Inside, &tcp_frame("10.132.0.5:40000", "192.168.55.13:80", TcpFlags::SYN));
    rig.wait(HELD);
    assert_eq!(rig.take(Outside).len(), 1);
    assert_eq!((rig.drops(DropReason::WorkerPanic), rig.drops(DropReason::NoSession)), (1, 1));
}

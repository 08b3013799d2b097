//! A tenant that is being removed keeps the sessions that it has and gets no new ones.

use std::net::Ipv4Addr;
use std::time::Duration;

use conntrack::Protocol::Udp;
use conntrack::{Filtering, Mapping, TcpFlags, owner_of_inside};

use super::{EGRESS, Ends, RED_EGRESS, SYN_ACK, answer, come_back, ends, leave, leave_by, only, with_ttl};
use crate::io::sim::Faults;
use crate::snapshot::Side::{Inside, Outside};
use crate::snapshot::{NeighbourSpec, UnsolicitedSyn};
use crate::testing::fragments::{fragments, packet, reassemble};
use crate::testing::rig::{Rig, check_sent};
use crate::testing::{
    BLUE, BLUE_MAC, Gateway, SERVER_MAC, echo_frame, gateway, icmp_error_about, raw_frame, red, tcp_frame,
    udp_frame,
};
use crate::verdict::DropReason::{self, NoSession, TenantDraining};

const SERVER: &str = "192.168.55.13:53";
const FLOW: &str = "10.132.0.5:40000";
const OTHER: &str = "10.132.0.6:8000";
const WORKERS: [u16; 2] = [1, 4];

/// The same gateway where blue is being removed.
fn draining(gateway: Gateway) -> Gateway {
    gateway.epoch(2).change(|spec| spec.tenants[0].is_draining = true)
}

/// A gateway where everybody may talk to blue's mappings.
fn open() -> Gateway {
    gateway().change(|spec| {
        spec.tenants[0].policy.mapping = Mapping::EndpointIndependent;
        spec.tenants[0].policy.filtering = Filtering::EndpointIndependent;
    })
}

fn rig_of(gateway: &Gateway, workers: u16) -> Rig {
    Rig::with(gateway.spec(), workers, Faults::default(), 1)
}

/// Asserts that the first packet of a session is refused, that its pod is told, and that nothing is left of it.
fn refuse(rig: &mut Rig, frame: &[u8]) {
    let before = (rig.sessions(), rig.room(), rig.drops_of(BLUE, TenantDraining), rig.all_drops());
    let error = only(rig.send(Inside, frame, Inside));
    check_sent(Inside, &error, &[]);
    assert_eq!((error[34], error[35]), (3, 13));
    assert_eq!(error[26..30], [192, 168, 99, 13], "blue's gateway says so");
    assert!(rig.take(Outside).is_empty());
    let after = (rig.sessions(), rig.room(), rig.drops_of(BLUE, TenantDraining), rig.all_drops());
    assert_eq!(after, (before.0, before.1, before.2 + 1, before.3 + 1));
}

/// Asserts that a packet from outside is dropped and that nobody hears of it.
fn refuse_stranger(rig: &mut Rig, frame: &[u8], reason: DropReason) {
    let before = (rig.sessions(), rig.room(), rig.drops(reason), rig.all_drops());
    assert!(rig.send(Outside, frame, Inside).is_empty() && rig.take(Outside).is_empty());
    let after = (rig.sessions(), rig.room(), rig.drops(reason), rig.all_drops());
    assert_eq!(after, (before.0, before.1, before.2 + 1, before.3 + 1));
}

fn text((address, port): (Ipv4Addr, u16)) -> String {
    format!("{address}:{port}")
}

#[test]
fn no_session_of_any_protocol_begins_and_the_pod_is_told() {
    for workers in WORKERS {
        let mut rig = rig_of(&draining(gateway()), workers);
        for pod in 5..13 {
            let (host, flow) = (format!("10.132.0.{pod}"), format!("10.132.0.{pod}:40000"));
            refuse(&mut rig, &udp_frame(&flow, SERVER, b"x"));
            refuse(&mut rig, &tcp_frame(&flow, SERVER, TcpFlags::SYN));
            refuse(&mut rig, &echo_frame(&host, "192.168.55.13", 7, false));
            refuse(&mut rig, &raw_frame(&host, "192.168.55.13", 47, &[0; 20]));
        }
        leave_by(&mut rig, &red(udp_frame(FLOW, SERVER, b"x")), &[RED_EGRESS]);
        rig.publish(gateway().epoch(3).spec());
        leave(&mut rig, &udp_frame(FLOW, SERVER, b"x"));
    }
}

#[test]
fn sessions_that_live_go_on_both_ways_until_they_end() {
    for workers in WORKERS {
        let mut rig = rig_of(&gateway(), workers);
        let first = [udp_frame(FLOW, SERVER, b"x"), tcp_frame(FLOW, SERVER, TcpFlags::SYN)];
        let out = first.each_ref().map(|frame| leave(&mut rig, frame));
        come_back(&mut rig, &answer(&out[1], SYN_ACK));
        rig.publish(draining(gateway()).spec());
        let next = [first[0].clone(), tcp_frame(FLOW, SERVER, TcpFlags::ACK)];
        for (next, out) in next.iter().zip(&out) {
            assert_eq!(ends(&leave(&mut rig, next)), ends(out));
            come_back(&mut rig, &answer(out, TcpFlags::ACK));
        }
        assert_eq!((rig.sessions(), rig.all_drops()), (2, 0));
        rig.wait(Duration::from_secs(300));
        refuse(&mut rig, &first[0]);
        leave(&mut rig, &next[1]);
        assert_eq!(rig.sessions(), 1, "the connection lives on");
    }
}

#[test]
fn a_connection_that_is_over_is_not_opened_anew() {
    let mut rig = Rig::new(gateway().spec());
    let syn = tcp_frame(FLOW, SERVER, TcpFlags::SYN);
    let out = leave(&mut rig, &syn);
    rig.publish(draining(gateway()).spec());
    leave(&mut rig, &syn);
    come_back(&mut rig, &answer(&out, SYN_ACK));
    leave(&mut rig, &tcp_frame(FLOW, SERVER, TcpFlags(0x11)));
    come_back(&mut rig, &answer(&out, TcpFlags(0x11)));
    leave(&mut rig, &tcp_frame(FLOW, SERVER, TcpFlags::ACK));
    refuse(&mut rig, &syn);
    refuse_stranger(&mut rig, &answer(&out, TcpFlags::SYN), TenantDraining);
    rig.publish(gateway().epoch(3).spec());
    leave(&mut rig, &syn);
}

#[test]
fn a_segment_without_a_session_is_reset_as_ever() {
    let mut rig = Rig::new(draining(gateway()).spec());
    let rst = only(rig.send(Inside, &tcp_frame(FLOW, SERVER, TcpFlags::ACK), Inside));
    assert_eq!((rst[23], rst[47] & TcpFlags::RST.0), (6, TcpFlags::RST.0));
    assert_eq!((rig.drops(NoSession), rig.all_drops()), (1, 1));
}

#[test]
fn errors_about_what_a_session_sends_and_gets_come_through() {
    for workers in WORKERS {
        let mut rig = rig_of(&gateway(), workers);
        let out = leave(&mut rig, &udp_frame(FLOW, SERVER, b"query"));
        let back = come_back(&mut rig, &answer(&out, TcpFlags::default()));
        rig.publish(draining(gateway()).spec());
        let error = come_back(&mut rig, &icmp_error_about("192.168.55.1", &out, 3, 8));
        assert_eq!(error[30..34], [10, 132, 0, 5]);
        let mut error = icmp_error_about("100.64.0.3", &back, 3, 8);
        error[..6].copy_from_slice(BLUE_MAC.as_bytes());
        assert_eq!(leave(&mut rig, &error)[30..34], [192, 168, 55, 13]);
        assert_eq!(rig.all_drops(), 0);
    }
}

#[test]
fn fragments_of_a_session_pass_and_those_of_a_new_one_are_refused_once() {
    for workers in WORKERS {
        for is_reversed in [false, true] {
            let mut rig = rig_of(&gateway(), workers);
            leave(&mut rig, &udp_frame(FLOW, SERVER, b"x"));
            rig.publish(draining(gateway()).spec());
            let mut cross = |source: &str| {
                let mut pieces = fragments(&packet(Udp, source, SERVER, &[7; 2500], false), 1000);
                if is_reversed {
                    pieces.reverse();
                }
                for (index, piece) in pieces.iter().enumerate() {
                    rig.inject(index % usize::from(workers), Inside, piece);
                    rig.run();
                }
                (rig.take(Outside), rig.take(Inside), rig.drops(TenantDraining))
            };
            let (out, answers, drops) = cross(FLOW);
            check_sent(Outside, &reassemble(&out), &[EGRESS]);
            assert_eq!((answers.len(), drops), (0, 0));
            let (out, answers, drops) = cross(OTHER);
            assert!(out.is_empty());
            let error = only(answers);
            assert_eq!((error[34], error[35], drops), (3, 13, 3), "the first fragment is answered");
            assert_eq!((rig.sessions(), rig.all_drops()), (1, 3));
        }
    }
}

#[test]
fn an_old_mapping_serves_its_sessions_and_no_new_peer() {
    for workers in WORKERS {
        let mut rig = rig_of(&open(), workers);
        let first = udp_frame(FLOW, "198.51.100.7:80", b"x");
        let out = leave(&mut rig, &first);
        let seen = text(ends(&out).source);
        rig.publish(draining(open()).spec());
        refuse(&mut rig, &udp_frame(FLOW, "198.51.100.8:80", b"x"));
        refuse_stranger(&mut rig, &udp_frame("203.0.113.9:80", &seen, b"x"), TenantDraining);
        refuse_stranger(&mut rig, &tcp_frame("203.0.113.9:80", &seen, TcpFlags::SYN), NoSession);
        refuse_stranger(&mut rig, &with_ttl(udp_frame("203.0.113.9:80", &seen, b"x"), 1), TenantDraining);
        assert_eq!(ends(&leave(&mut rig, &first)), ends(&out));
        come_back(&mut rig, &answer(&out, TcpFlags::default()));
        assert_eq!(rig.sessions(), 1);
    }
}

#[test]
fn pods_talk_on_by_egress_addresses_and_begin_nothing_new() {
    for workers in WORKERS {
        let mut rig = rig_of(&open(), workers);
        let hairpin = |rig: &mut Rig, frame: &[u8]| -> Ends { ends(&only(rig.send(Inside, frame, Inside))) };
        let blue = text(ends(&leave(&mut rig, &udp_frame(FLOW, SERVER, b"x"))).source);
        let there = hairpin(&mut rig, &red(udp_frame(OTHER, &blue, b"x")));
        let seen = text(there.source);
        rig.publish(draining(open()).spec());
        assert_eq!(hairpin(&mut rig, &red(udp_frame(OTHER, &blue, b"x"))), there);
        assert_eq!(hairpin(&mut rig, &udp_frame(FLOW, &seen, b"x")).destination.1, 8000);
        assert_eq!(rig.all_drops(), 0);

        let sessions = rig.sessions();
        let stranger = red(udp_frame("10.132.0.9:9000", &blue, b"x"));
        assert!(rig.send(Inside, &stranger, Inside).is_empty() && rig.take(Outside).is_empty());
        assert_eq!((rig.drops_of(BLUE, TenantDraining), rig.all_drops()), (1, 1));
        assert_eq!(rig.sessions(), sessions + 1, "red's own, which nobody answers");
        refuse(&mut rig, &udp_frame("10.132.0.9:9000", &seen, b"x"));
        refuse(&mut rig, &udp_frame("10.132.0.9:9000", &blue, b"x"));
    }
}

#[test]
fn a_frame_that_waits_for_its_neighbour_is_refused_when_the_draining_begins() {
    let dark = || gateway().without_neighbour("192.168.55.13");
    let mut rig = Rig::new(dark().spec());
    assert!(rig.send(Inside, &udp_frame(FLOW, SERVER, b"x"), Outside).is_empty());
    rig.publish(draining(dark()).spec());
    let error = only(rig.take(Inside));
    assert_eq!((error[34], error[35], rig.drops(TenantDraining)), (3, 13, 1));

    let mut rig = Rig::new(gateway().spec());
    leave(&mut rig, &udp_frame(FLOW, SERVER, b"x"));
    rig.publish(draining(dark()).spec());
    assert!(rig.send(Inside, &udp_frame(FLOW, SERVER, b"x"), Outside).is_empty(), "it may wait");
    let server = NeighbourSpec { side: Outside, address: "192.168.55.13".parse().unwrap(), mac: SERVER_MAC };
    rig.publish(draining(dark()).epoch(3).change(|spec| spec.neighbours.push(server)).spec());
    assert_eq!((rig.take(Outside).len(), rig.all_drops()), (1, 0));
}

#[test]
fn a_held_syn_finds_no_listener_where_the_pod_may_not_open() {
    for workers in WORKERS {
        let answering = || gateway().change(|spec| spec.tcp.unsolicited_syn = UnsolicitedSyn::Unreachable);
        let mut rig = rig_of(&answering(), workers);
        let syn = tcp_frame("192.168.55.13:80", "192.168.55.113:40000", TcpFlags::SYN);
        assert!(rig.send(Outside, &syn, Outside).is_empty());
        rig.publish(draining(answering()).spec());
        refuse(&mut rig, &tcp_frame(FLOW, "192.168.55.13:80", TcpFlags::SYN));
        rig.wait(Duration::from_secs(6));
        let error = only(rig.take(Outside));
        assert_eq!((error[34], error[35], rig.drops(NoSession)), (3, 3, 1));
    }
}

/// Lets one of four workers take nearly every port for the inside ports below 1024, and another ask for one; after some
/// turns on the way blue begins to drain. Returns whether the session began.
fn borrow(turns_before: usize) -> bool {
    let pods_of =
        |worker| (1..=254u8).filter(move |pod| owner_of_inside(BLUE, [10, 132, 0, *pod].into(), 4) == worker);
    let mut rig = Rig::with_workers(4, 2500, gateway().spec());
    let flows = pods_of(0).flat_map(|pod| (1..40).map(move |port| format!("10.132.0.{pod}:{port}")));
    for flow in flows.take(1000) {
        leave(&mut rig, &udp_frame(&flow, SERVER, b"x"));
    }
    let before = (rig.sessions(), rig.room());
    let asking = udp_frame(&format!("10.132.0.{}:1", pods_of(1).next().unwrap()), SERVER, b"x");
    rig.inject(1, Inside, &asking);
    for worker in [1, 2, 3, 0, 1].iter().take(turns_before) {
        rig.turn(*worker);
    }
    rig.offer(draining(gateway()).spec());
    rig.run();
    let sent = rig.take(Outside).len();
    if sent == 0 {
        assert_eq!((rig.drops(TenantDraining), rig.all_drops(), rig.take(Inside).len()), (1, 1, 1));
        assert_eq!((rig.sessions(), rig.room()), before, "what was lent is given back");
        rig.offer(gateway().epoch(3).spec());
        rig.run();
        leave(&mut rig, &asking);
    }
    assert!(rig.all_sessions().iter().any(|session| session.is_borrowed()), "the port was lent");
    sent == 1
}

#[test]
fn a_port_that_is_lent_while_the_draining_begins_is_given_back() {
    let began = [0, 1, 2, 3, 4, 5].map(borrow);
    assert_eq!(began, [false, false, false, false, false, true]);
}

#[test]
fn a_stranger_is_refused_at_whichever_worker_it_and_the_mapping_are() {
    for workers in WORKERS {
        let mut rig = rig_of(&open(), workers);
        for pod in 10..20 {
            leave(&mut rig, &udp_frame(&format!("10.132.0.{pod}:7"), SERVER, b"x"));
        }
        rig.publish(draining(open()).spec());
        let seen: Vec<_> =
            rig.all_sessions().iter().map(|it| (it.outside.source, it.outside.source_port)).collect();
        for (index, seen) in seen.into_iter().enumerate() {
            rig.inject(
                index % usize::from(workers),
                Outside,
                &udp_frame("203.0.113.9:80", &text(seen), b"x"),
            );
        }
        rig.run();
        assert!(rig.take(Inside).is_empty() && rig.take(Outside).is_empty());
        assert_eq!((rig.drops(TenantDraining), rig.all_drops(), rig.sessions()), (10, 10, 10));
    }
}

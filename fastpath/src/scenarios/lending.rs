//! Outside ports at several workers: leased in blocks, lent one by one, and never lost.
//!
//! 1,023 outside ports, in 16 blocks, stand for the inside ports below 1024: few enough to use them all.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use conntrack::{Mapping, Policy, Quota, TcpFlags, owner_of_inside};

use super::{EGRESS, Ends, SYN_ACK, answer, ends, only, with_ttl};
use crate::snapshot::Side::{Inside, Outside};
use crate::testing::rig::{Rig, SeenSession, check_sent};
use crate::testing::{BLUE, Gateway, gateway, icmp_error_about, raw_frame, tcp_frame, udp_frame};
use crate::verdict::DropReason;

const WORKERS: u16 = 4;
const PORTS: u32 = 1023;
const SERVER: &str = "192.168.55.13:53";

/// A gateway with four workers, and pods that use up its ports.
struct Crowd {
    rig: Rig,
    is_tcp: bool,
}

impl Crowd {
    fn new(gateway: &Gateway) -> Self {
        Self { rig: Rig::with_workers(WORKERS, 3500, gateway.spec()), is_tcp: false }
    }

    /// Returns the source of the `nth` flow: none is of the same pod and port as another.
    fn source(nth: u32) -> (Ipv4Addr, u16) {
        (Ipv4Addr::from_bits(0x0a84_0000 + nth % 256), u16::try_from(1 + nth / 256).unwrap())
    }

    /// Returns the flows from `first` on that belong to a worker.
    fn flows_of(worker: u16, first: u32) -> impl Iterator<Item = u32> {
        (first..).filter(move |nth| owner_of_inside(BLUE, Self::source(*nth).0, WORKERS) == worker)
    }

    fn frame(&self, nth: u32) -> Vec<u8> {
        let (pod, port) = Self::source(nth);
        let source = format!("{pod}:{port}");
        match self.is_tcp {
            true => tcp_frame(&source, SERVER, TcpFlags::SYN),
            false => udp_frame(&source, SERVER, b"0123456789abcdefghij"),
        }
    }

    /// Sends a frame of a flow in at some worker; returns what leaves outside, if it does.
    fn try_open(&mut self, nth: u32) -> Option<Vec<u8>> {
        let worker = usize::from(WORKERS);
        self.rig.inject(nth as usize * 7 % worker, Inside, &self.frame(nth));
        self.rig.run();
        let mut sent = self.rig.take(Outside);
        sent.iter().for_each(|frame| check_sent(Outside, frame, &[EGRESS]));
        assert!(sent.len() < 2);
        sent.pop()
    }

    fn open(&mut self, nth: u32) -> Vec<u8> {
        self.try_open(nth).unwrap_or_else(|| panic!("flow {nth} is refused"))
    }

    /// Asserts that a flow finds no port, is told, and leaves nothing behind.
    fn assert_refused(&mut self, nth: u32) {
        let before = (self.rig.sessions(), self.rig.room(), self.rig.drops(DropReason::NoPort));
        assert_eq!(self.try_open(nth), None);
        let error = only(self.rig.take(Inside));
        check_sent(Inside, &error, &[]);
        assert_eq!((error[34], error[35]), (3, 13));
        let after = (self.rig.sessions(), self.rig.room(), self.rig.drops(DropReason::NoPort));
        assert_eq!(after, (before.0, before.1, before.2 + 1));
    }

    /// Asserts that a packet from outside reaches a flow's pod, whichever worker it comes to.
    fn assert_reaches(&mut self, nth: u32, frame: &[u8]) {
        for worker in 0..usize::from(WORKERS) {
            self.rig.inject(worker, Outside, frame);
            self.rig.run();
            let came = only(self.rig.take(Inside));
            check_sent(Inside, &came, &[]);
            assert_eq!(ends(&came).destination.0, Self::source(nth).0, "flow {nth}");
            if came[23] != 1 {
                assert_eq!(ends(&came).destination.1, Self::source(nth).1, "flow {nth}");
            }
        }
    }

    fn flags(&self) -> TcpFlags {
        if self.is_tcp { SYN_ACK } else { TcpFlags::default() }
    }

    /// Opens flows until there is no port; returns what left of each. All tell each other apart.
    fn fill(&mut self) -> Vec<(u32, Vec<u8>)> {
        let out: Vec<_> = (0..PORTS).map(|nth| (nth, self.open(nth))).collect();
        let ports: HashSet<_> = out.iter().map(|(_, frame)| ends(frame).source.1).collect();
        assert!(ports.len() == PORTS as usize && ports.iter().all(|port| (1..1024).contains(port)));
        self.assert_refused(PORTS);
        out
    }

    /// Returns how many sessions have a port that belongs to another worker.
    fn borrowed(&self) -> usize {
        self.rig.all_sessions().iter().filter(|session| session.is_borrowed()).count()
    }

    /// Lets all sessions end but those of some flows, which stay for five minutes.
    fn end_all_but(&mut self, keep: impl Fn(u32) -> bool) {
        self.rig.wait(Duration::from_secs(200));
        (0..PORTS).filter(|nth| keep(*nth)).for_each(|nth| drop(self.open(nth)));
        self.rig.wait(Duration::from_secs(100));
    }

    /// Asserts that a number of ports is free, whoever wants them.
    fn assert_free(&mut self, free: u32) {
        (0..free).for_each(|nth| drop(self.open(5 * PORTS + nth)));
        self.assert_refused(7 * PORTS);
    }

    /// Asserts that nothing is left when all sessions have ended.
    fn assert_ends_empty(&mut self) {
        self.rig.wait(Duration::from_secs(300));
        let room = self.rig.workers.iter().map(|worker| worker.conntrack().capacity()).sum::<u32>();
        assert_eq!((self.rig.sessions(), self.rig.room()), (0, room));
        assert!(self.rig.are_ports_free(EGRESS), "every block was returned");
    }
}

fn endpoint_independent() -> Gateway {
    let policy = Policy { mapping: Mapping::EndpointIndependent, ..Policy::default() };
    gateway().change(|spec| spec.tenants[0].policy = policy)
}

#[test]
fn pods_at_four_workers_use_every_port_and_replies_at_any_worker_reach_them() {
    for gateway in [gateway(), endpoint_independent()] {
        for is_tcp in [false, true] {
            let mut crowd = Crowd { is_tcp, ..Crowd::new(&gateway) };
            let out = crowd.fill();
            assert!(crowd.borrowed() > 0, "no worker has every port that its pods need");
            for (nth, frame) in &out {
                crowd.assert_reaches(*nth, &answer(frame, crowd.flags()));
                crowd.assert_reaches(*nth, &icmp_error_about("192.168.55.1", frame, 3, 8));
                let again = if is_tcp { TcpFlags::ACK } else { TcpFlags::default() };
                crowd.assert_reaches(*nth, &answer(frame, again));
            }
            assert_eq!(crowd.rig.all_drops(), 1, "the one flow that was refused");
            if !is_tcp {
                crowd.assert_ends_empty();
                crowd.fill();
            }
        }
    }
}

#[test]
fn a_burst_of_first_packets_gets_every_port_and_no_more() {
    for gateway in [gateway(), endpoint_independent()] {
        let mut crowd = Crowd::new(&gateway);
        for nth in 0..PORTS + 200 {
            crowd.rig.inject(nth as usize % 4, Inside, &crowd.frame(nth));
            crowd.rig.inject(nth as usize % 3, Inside, &crowd.frame(nth));
            if nth % 20 == 0 {
                crowd.rig.run();
            }
        }
        crowd.rig.run();
        let sent: HashSet<_> = crowd.rig.take(Outside).iter().map(|frame| ends(frame).source.1).collect();
        assert_eq!((sent.len(), crowd.rig.sessions()), (1023, PORTS));
        assert_eq!((crowd.rig.drops(DropReason::NoPort), crowd.rig.all_drops()), (400, 400));
        crowd.assert_ends_empty();
    }
}

#[test]
fn two_first_packets_of_one_inside_port_use_one_lent_port() {
    let mut crowd = Crowd::new(&endpoint_independent());
    crowd.fill();
    crowd.end_all_but(|nth| nth > 1);
    for destination in ["198.51.100.7:53", "198.51.100.8:53"] {
        crowd.rig.inject(0, Inside, &udp_frame("10.132.0.77:900", destination, b"x"));
    }
    crowd.rig.run();
    let ports: HashSet<_> = crowd.rig.take(Outside).iter().map(|frame| ends(frame).source.1).collect();
    assert_eq!(ports.len(), 1);
    crowd.assert_free(1);
    crowd.assert_ends_empty();
}

#[test]
fn a_port_that_comes_back_is_there_for_any_worker() {
    let mut crowd = Crowd::new(&gateway());
    crowd.fill();
    let sessions = crowd.rig.all_sessions();
    let gone = *sessions.iter().find(|session| session.is_borrowed()).unwrap();
    let stays = |nth: u32| Crowd::source(nth) != (gone.inside.source, gone.inside.source_port);
    crowd.end_all_but(stays);
    assert_eq!(crowd.rig.sessions(), PORTS - 1);
    for worker in 0..WORKERS {
        let nth = Crowd::flows_of(worker, PORTS + 1).next().unwrap();
        let out = crowd.open(nth);
        assert_eq!(ends(&out).source.1, gone.outside.source_port);
        crowd.assert_reaches(nth, &answer(&out, TcpFlags::default()));
        crowd.assert_refused(2 * PORTS);
        crowd.end_all_but(stays);
    }
}

#[test]
fn a_hand_over_queue_that_is_full_costs_a_frame_and_no_port() {
    let mut crowd = Crowd::new(&gateway());
    crowd.fill();
    // The first worker asks the second, which has a port again.
    let sessions = crowd.rig.all_sessions();
    let gone = *sessions.iter().find(|session| session.worker == 1 && !session.is_borrowed()).unwrap();
    crowd.end_all_but(|nth| Crowd::source(nth) != (gone.inside.source, gone.inside.source_port));
    let wants = Crowd::flows_of(0, PORTS + 1).next().unwrap();
    crowd.rig.inject(0, Inside, &crowd.frame(wants));
    crowd.rig.turn(0);
    assert_eq!(crowd.rig.mailboxes[1].frames_waiting(), 1);
    let mut known = Crowd::flows_of(0, 0).take(200).collect::<Vec<_>>().into_iter().cycle();
    while crowd.rig.drops(DropReason::HandOverFull) == 0 {
        for worker in [2, 3] {
            crowd.rig.inject(worker, Inside, &crowd.frame(known.next().unwrap()));
            crowd.rig.turn(worker);
        }
    }
    let before = crowd.rig.drops(DropReason::HandOverFull);
    crowd.rig.turn(1);
    assert_eq!(crowd.rig.drops(DropReason::HandOverFull), before + 1, "the frame that brought the port");
    crowd.rig.run();
    crowd.rig.take(Outside);
    assert_eq!(crowd.rig.sessions(), PORTS - 1);
    crowd.assert_free(1);
}

#[test]
fn a_quota_counts_a_session_once_wherever_its_port_comes_from() {
    let quotas = [
        (Quota { sessions: 1003, ..Quota::default() }, DropReason::TenantSessionLimit),
        (Quota { ports: 1003, ..Quota::default() }, DropReason::TenantPortLimit),
        (Quota { new_per_second: 3, ..Quota::default() }, DropReason::TenantRateLimit),
    ];
    for (tenant_quota, reason) in quotas {
        let mut crowd = Crowd::new(&gateway());
        let mut flows: Vec<_> = Crowd::flows_of(0, 0).take(1000).collect();
        flows.drain(..).for_each(|nth| drop(crowd.open(nth)));
        let policy = Policy { tenant_quota, ..Policy::default() };
        crowd.rig.publish(gateway().epoch(2).change(|spec| spec.tenants[0].policy = policy).spec());
        let opened = (1..WORKERS).flat_map(|worker| Crowd::flows_of(worker, 0).take(3));
        let opened = opened.filter(|nth| crowd.try_open(*nth).is_some()).count();
        assert_eq!((opened, crowd.rig.drops_of(BLUE, reason)), (3, 6), "{}", reason.name());
        assert_eq!(crowd.borrowed(), 3);
    }
}

/// Returns a reply that may not be fragmented and is larger than the inside allows.
fn too_big(about: &[u8]) -> Vec<u8> {
    let Ends { source, destination } = ends(about);
    let (from, to) = (format!("{}:{}", destination.0, destination.1), format!("{}:{}", source.0, source.1));
    let mut frame = udp_frame(&from, &to, &[0; 1400]);
    frame[20] = 0x40;
    with_ttl(frame, 64)
}

#[test]
fn a_reply_that_is_too_big_for_the_inside_is_answered_wherever_its_port_comes_from() {
    for gateway in [gateway(), endpoint_independent()] {
        let mut crowd = Crowd::new(&gateway.change(|spec| spec.inside.mtu = 1400));
        let out = crowd.fill();
        for (_, frame) in &out {
            for (packet, kind) in
                [(too_big(frame), (3, 4)), (with_ttl(answer(frame, TcpFlags::default()), 1), (11, 0))]
            {
                crowd.rig.inject(usize::from(frame[35]) % 4, Outside, &packet);
                crowd.rig.run();
                let error = only(crowd.rig.take(Outside));
                assert_eq!((error[34], error[35]), kind);
                assert_eq!(ends(&error).source.0, EGRESS);
            }
        }
    }
}

#[test]
fn a_worker_that_panics_with_a_loan_in_hand_gives_it_back() {
    for gateway in [gateway(), endpoint_independent()] {
        for fails in [0, 1] {
            let mut crowd = Crowd::new(&gateway);
            crowd.fill();
            crowd.end_all_but(|nth| nth > 0);
            // Lends, or gets the port, with the next turn.
            let wants = Crowd::flows_of(0, PORTS + 1).next().unwrap();
            crowd.rig.inject(0, Inside, &crowd.frame(wants));
            crowd.rig.turn(0);
            while crowd.rig.mailboxes[fails].frames_waiting() == 0 {
                for worker in (0..4).filter(|worker| *worker != fails) {
                    crowd.rig.turn(worker);
                }
            }
            crowd.rig.fail(fails);
            assert_eq!(crowd.rig.drops(DropReason::WorkerPanic), 1);
            crowd.rig.run();
            assert_eq!((crowd.rig.take(Outside).len(), crowd.rig.sessions()), (0, PORTS - 1));
            crowd.assert_free(1);
        }
    }
}

#[test]
fn a_worker_that_forgets_leaves_no_port_unusable_and_no_reply_astray() {
    for gateway in [gateway(), endpoint_independent()] {
        for forgetful in 0..usize::from(WORKERS) {
            let mut crowd = Crowd::new(&gateway);
            let out = crowd.fill();
            crowd.rig.workers[forgetful].forget_sessions();
            // Another worker may claim the free blocks before those that had borrowed of them are told.
            crowd.rig.inject(0, Inside, &crowd.frame(Crowd::flows_of(0, PORTS + 500).next().unwrap()));
            crowd.rig.run();
            crowd.rig.take(Outside);
            let sessions = crowd.rig.all_sessions();
            let alive: HashSet<_> =
                sessions.iter().map(|it| (it.inside.source, it.inside.source_port)).collect();
            for (nth, frame) in out.iter().filter(|(nth, _)| alive.contains(&Crowd::source(*nth))) {
                crowd.assert_reaches(*nth, &answer(frame, TcpFlags::default()));
            }
            let free = PORTS - crowd.rig.sessions();
            assert!(free > 100);
            for nth in 5 * PORTS..5 * PORTS + free {
                let out = crowd.open(nth);
                crowd.assert_reaches(nth, &answer(&out, TcpFlags::default()));
            }
            crowd.assert_refused(7 * PORTS);
            crowd.assert_ends_empty();
        }
    }
}

#[test]
fn a_loan_under_way_when_a_worker_forgets_does_no_harm() {
    for gateway in [gateway(), endpoint_independent()] {
        for forgetful in [0, 1] {
            let mut crowd = Crowd::new(&gateway);
            // All ports are the second worker's.
            Crowd::flows_of(1, 0).take(1020).for_each(|nth| drop(crowd.open(nth)));
            for nth in Crowd::flows_of(0, PORTS).take(3) {
                crowd.rig.inject(0, Inside, &crowd.frame(nth));
            }
            crowd.rig.turn(0);
            crowd.rig.turn(1);
            assert_eq!(crowd.rig.mailboxes[0].frames_waiting(), 3, "three loans");
            crowd.rig.workers[forgetful].forget_sessions();
            crowd.rig.run();
            let out = crowd.rig.take(Outside);
            assert_eq!(out.len(), 3);
            for frame in out {
                let wire = answer(&frame, TcpFlags::default());
                crowd.rig.inject(3, Outside, &wire);
                crowd.rig.run();
                assert_eq!(crowd.rig.take(Inside).len(), 1);
            }
            let free = PORTS - crowd.rig.sessions();
            crowd.assert_free(free);
            crowd.assert_ends_empty();
        }
    }
}

#[test]
fn a_protocol_without_ports_serves_one_pod_for_each_address_at_any_worker() {
    let mut rig = Rig::with_workers(WORKERS, 256, gateway().spec());
    for host in 1..40u8 {
        let (pod, server) = (format!("10.132.0.{host}"), format!("198.51.100.{host}"));
        rig.inject(usize::from(host) % 4, Inside, &raw_frame(&pod, &server, 47, &[0; 20]));
        rig.run();
        let out = only(rig.take(Outside));
        check_sent(Outside, &out, &[EGRESS]);
        for worker in 0..4 {
            let reply = raw_frame(&server, "192.168.55.113", 47, &[0; 20]);
            for frame in [reply, icmp_error_about("192.168.55.1", &out, 3, 8)] {
                rig.inject(worker, Outside, &frame);
                rig.run();
                assert_eq!(ends(&only(rig.take(Inside))).destination.0, pod.parse::<Ipv4Addr>().unwrap());
            }
            let other = format!("10.132.0.{}", 100 + worker);
            rig.inject(worker, Inside, &raw_frame(&other, &server, 47, &[0; 20]));
            rig.run();
            assert_eq!(only(rig.take(Inside))[34..36], [3, 13]);
        }
    }
    assert_eq!((rig.sessions(), rig.drops(DropReason::AmbiguousProtocol), rig.all_drops()), (39, 156, 156));
    assert!(rig.all_sessions().iter().any(SeenSession::is_borrowed), "some are lent");
    rig.wait(Duration::from_secs(300));
    assert_eq!((rig.sessions(), rig.room()), (0, 4 * 256));
}

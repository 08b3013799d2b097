//! Limits by tenant and by pod: exact at any number of workers, told to the pod, and never at the cost of what is there.

use std::time::Duration;

use conntrack::{Filtering, Mapping, Policy, Quota, TcpFlags};

use super::{POD, answer, come_back, ends, leave, leave_by, only};
use crate::snapshot::Side::{Inside, Outside};
use crate::testing::rig::{Rig, check_sent};
use crate::testing::{BLUE, Gateway, gateway, red, tcp_frame, udp_frame};
use crate::verdict::DropReason;

/// How many there may be in these tests.
const LIMIT: u32 = 6;

const NONE: Quota = Quota { sessions: 0, ports: 0, new_per_second: 0 };
const SESSIONS: Quota = Quota { sessions: LIMIT, ..NONE };
const PORTS: Quota = Quota { ports: LIMIT, ..NONE };
const RATE: Quota = Quota { new_per_second: LIMIT, ..NONE };

/// A gateway where blue has a policy.
fn with(policy: Policy) -> Gateway {
    gateway().change(|spec| spec.tenants[0].policy = policy)
}

fn of_tenant(tenant_quota: Quota) -> Policy {
    Policy { tenant_quota, ..Policy::default() }
}

fn of_pod(pod_quota: Quota) -> Policy {
    Policy { pod_quota, ..Policy::default() }
}

/// Returns the first packet of the `nth` flow of a test, all of one pod or each of another.
fn flow(is_one_pod: bool, nth: u32) -> Vec<u8> {
    let (pod, port) = if is_one_pod { (5, 40_000 + nth) } else { (10 + nth, 40_000) };
    udp_frame(&format!("10.132.0.{pod}:{port}"), "192.168.55.13:53", b"x")
}

/// Asserts that a packet is refused for a reason, that its pod is told, and that nothing is left of it.
fn refuse(rig: &mut Rig, frame: &[u8], reason: DropReason) {
    let before = (rig.sessions(), rig.room(), rig.drops_of(BLUE, reason), rig.all_drops());
    let error = only(rig.send(Inside, frame, Inside));
    check_sent(Inside, &error, &[]);
    assert_eq!((error[34], error[35]), (3, 13), "{}", reason.name());
    assert_eq!(ends(&error).source.0, "192.168.99.13".parse::<std::net::Ipv4Addr>().unwrap());
    assert_eq!(error[42..], frame[14..], "about the packet");
    assert!(rig.take(Outside).is_empty());
    let after = (rig.sessions(), rig.room(), rig.drops_of(BLUE, reason), rig.all_drops());
    assert_eq!(after, (before.0, before.1, before.2 + 1, before.3 + 1), "{}", reason.name());
}

#[test]
fn as_many_sessions_or_ports_pass_as_may_and_one_more_when_one_has_ended() {
    let cases = [
        (of_tenant(SESSIONS), false, DropReason::TenantSessionLimit),
        (of_tenant(SESSIONS), true, DropReason::TenantSessionLimit),
        (of_tenant(PORTS), false, DropReason::TenantPortLimit),
        (of_tenant(PORTS), true, DropReason::TenantPortLimit),
        (of_pod(SESSIONS), true, DropReason::PodSessionLimit),
        (of_pod(PORTS), true, DropReason::PodPortLimit),
    ];
    for workers in [1, 4] {
        for (policy, is_one_pod, reason) in cases {
            let mut rig = Rig::with_workers(workers, 256, with(policy).spec());
            leave(&mut rig, &flow(is_one_pod, 0));
            rig.wait(Duration::from_secs(100));
            (1..LIMIT).for_each(|nth| drop(leave(&mut rig, &flow(is_one_pod, nth))));
            for nth in LIMIT..LIMIT + 3 {
                refuse(&mut rig, &flow(is_one_pod, nth), reason);
            }
            (0..LIMIT).for_each(|nth| drop(leave(&mut rig, &flow(is_one_pod, nth))));
            rig.wait(Duration::from_secs(200));
            (1..LIMIT).for_each(|nth| drop(leave(&mut rig, &flow(is_one_pod, nth))));
            rig.wait(Duration::from_secs(100));
            leave(&mut rig, &flow(is_one_pod, LIMIT));
            refuse(&mut rig, &flow(is_one_pod, LIMIT + 1), reason);
            assert_eq!(rig.sessions(), LIMIT);
        }
    }
}

#[test]
fn as_many_sessions_begin_in_a_second_as_may() {
    let cases = [
        (of_tenant(RATE), false, DropReason::TenantRateLimit),
        (of_tenant(RATE), true, DropReason::TenantRateLimit),
        (of_pod(RATE), true, DropReason::PodRateLimit),
    ];
    for workers in [1, 4] {
        for (policy, is_one_pod, reason) in cases {
            let mut rig = Rig::with_workers(workers, 256, with(policy).spec());
            rig.wait(Duration::from_millis(59_000));
            for second in 0..3 {
                let mut flows = (0..20).map(|nth| flow(is_one_pod, second * 20 + nth));
                flows.by_ref().take(3).for_each(|frame| drop(leave(&mut rig, &frame)));
                rig.wait(Duration::from_millis(900));
                flows.by_ref().take(3).for_each(|frame| drop(leave(&mut rig, &frame)));
                flows.by_ref().take(2).for_each(|frame| refuse(&mut rig, &frame, reason));
                leave(&mut rig, &flow(is_one_pod, second * 20));
                rig.wait(Duration::from_millis(100));
            }
        }
    }
}

#[test]
fn a_mapping_is_one_port_whatever_the_number_of_its_sessions() {
    let cases = [(of_tenant(PORTS), DropReason::TenantPortLimit), (of_pod(PORTS), DropReason::PodPortLimit)];
    for workers in [1, 4] {
        for (policy, reason) in cases {
            let policy = Policy { mapping: Mapping::EndpointIndependent, ..policy };
            let mut rig = Rig::with_workers(workers, 256, with(policy).spec());
            let frame = |port: u32, server: u8| {
                udp_frame(&format!("{POD}:{}", 40_000 + port), &format!("198.51.100.{server}:53"), b"x")
            };
            for port in 0..LIMIT {
                (0..3).for_each(|server| drop(leave(&mut rig, &frame(port, server))));
            }
            refuse(&mut rig, &frame(LIMIT, 0), reason);
            leave(&mut rig, &frame(0, 3));
            rig.wait(Duration::from_secs(299));
            leave(&mut rig, &frame(0, 3));
            rig.wait(Duration::from_secs(1));
            assert_eq!(rig.sessions(), 1, "of the first port");
            (1..LIMIT).for_each(|port| drop(leave(&mut rig, &frame(LIMIT + port, 0))));
            refuse(&mut rig, &frame(1, 0), reason);
        }
    }
}

#[test]
fn a_port_that_rests_is_not_one_that_its_pod_has() {
    let policy = Policy {
        mapping: Mapping::EndpointIndependent,
        filtering: Filtering::EndpointIndependent,
        tenant_quota: PORTS,
        pod_quota: PORTS,
    };
    let mut rig = Rig::new(with(policy).spec());
    (0..LIMIT).for_each(|nth| drop(leave(&mut rig, &flow(true, nth))));
    rig.wait(Duration::from_secs(300));
    leave(&mut rig, &flow(true, 0));
    (1..LIMIT).for_each(|nth| drop(leave(&mut rig, &flow(true, LIMIT + nth))));
    refuse(&mut rig, &flow(true, 1), DropReason::PodPortLimit);
}

#[test]
fn a_connection_that_is_refused_hears_of_it_like_everybody() {
    let limit = Quota { sessions: 1, ..NONE };
    for (policy, reason) in
        [(of_tenant(limit), DropReason::TenantSessionLimit), (of_pod(limit), DropReason::PodSessionLimit)]
    {
        let mut rig = Rig::new(with(policy).spec());
        leave(&mut rig, &flow(true, 0));
        refuse(&mut rig, &tcp_frame("10.132.0.5:1", "192.168.55.13:80", TcpFlags::SYN), reason);
    }
}

#[test]
fn a_stranger_that_a_limit_keeps_out_hears_nothing() {
    let (mapping, filtering) = (Mapping::EndpointIndependent, Filtering::EndpointIndependent);
    for (policy, reason) in
        [(of_tenant(SESSIONS), DropReason::TenantSessionLimit), (of_pod(RATE), DropReason::PodRateLimit)]
    {
        let mut rig = Rig::new(with(Policy { mapping, filtering, ..policy }).spec());
        let (egress, port) = ends(&leave(&mut rig, &flow(true, 0))).source;
        for stranger in 1..LIMIT + 3 {
            let frame = udp_frame(&format!("203.0.113.{stranger}:80"), &format!("{egress}:{port}"), b"x");
            let came = rig.send(Outside, &frame, Inside).len();
            assert_eq!(came, usize::from(stranger < LIMIT), "{}", reason.name());
            assert!(rig.take(Outside).is_empty());
        }
        assert_eq!((rig.drops_of(BLUE, reason), rig.all_drops()), (3, 3));
    }
}

#[test]
fn another_pod_and_another_tenant_do_not_feel_a_limit() {
    let mut rig = Rig::with_workers(4, 256, with(of_pod(SESSIONS)).spec());
    (0..LIMIT).for_each(|nth| drop(leave(&mut rig, &flow(true, nth))));
    refuse(&mut rig, &flow(true, LIMIT), DropReason::PodSessionLimit);
    (0..20).for_each(|nth| drop(leave(&mut rig, &flow(false, nth))));

    let mut rig = Rig::with_workers(4, 256, with(of_tenant(SESSIONS)).spec());
    (0..LIMIT).for_each(|nth| drop(leave(&mut rig, &flow(false, nth))));
    refuse(&mut rig, &flow(false, LIMIT), DropReason::TenantSessionLimit);
    (0..20).for_each(|nth| drop(leave_by(&mut rig, &red(flow(false, nth)), &[super::RED_EGRESS])));
}

#[test]
fn sessions_that_a_new_limit_would_not_allow_stay_as_they_are() {
    let quota = Quota { sessions: 2, ports: 2, new_per_second: 2 };
    for workers in [1, 4] {
        for (policy, reason) in
            [(of_tenant(quota), DropReason::TenantSessionLimit), (of_pod(quota), DropReason::PodSessionLimit)]
        {
            let mut rig = Rig::with_workers(workers, 256, gateway().spec());
            let out: Vec<_> = (0..5).map(|nth| leave(&mut rig, &flow(true, nth))).collect();
            rig.publish(with(policy).epoch(2).spec());
            for (nth, before) in (0..).zip(&out) {
                assert_eq!(ends(&leave(&mut rig, &flow(true, nth))), ends(before));
                come_back(&mut rig, &answer(before, TcpFlags::default()));
            }
            refuse(&mut rig, &flow(true, 5), reason);
            rig.wait(Duration::from_secs(299));
            leave(&mut rig, &flow(true, 0));
            rig.wait(Duration::from_secs(1));
            leave(&mut rig, &flow(true, 5));
            refuse(&mut rig, &flow(true, 6), reason);
            assert_eq!(rig.sessions(), 2);
        }
    }
}

#[test]
fn a_flood_of_refused_sessions_gets_a_bounded_number_of_answers_and_is_counted_in_full() {
    let mut rig = Rig::new(with(of_pod(SESSIONS)).spec());
    (0..LIMIT).for_each(|nth| drop(leave(&mut rig, &flow(true, nth))));
    let answers: usize = (0..3000).map(|nth| rig.send(Inside, &flow(true, LIMIT + nth), Inside).len()).sum();
    assert_eq!((answers, rig.drops_of(BLUE, DropReason::PodSessionLimit)), (1000, 3000));
    (0..LIMIT).for_each(|nth| drop(leave(&mut rig, &flow(true, nth))));
}

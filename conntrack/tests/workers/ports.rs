//! Outside ports: to the last one, at any number of workers, and what each costs.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use crate::gateway::{Ask, Workers, tick, tuple};
use conntrack::{Direction, FiveTuple, Mapping, Policy, Portless, Protocol, Refusal, TenantId};

const EGRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 113);
const BLUE: TenantId = TenantId(0);
/// Ports from 1024 on.
const USER_PORTS: u32 = 64_512;

fn ask(tuple: FiveTuple, policy: &Policy) -> Ask<'_> {
    Ask { tenant: BLUE, tuple, opened_by: Direction::Outbound, pool: &[EGRESS], policy }
}

fn endpoint_independent() -> Policy {
    Policy { mapping: Mapping::EndpointIndependent, ..Policy::default() }
}

#[test]
fn one_pod_uses_every_port_towards_one_destination_at_any_number_of_workers() {
    for workers in [1, 2, 8] {
        let mut gateway = Workers::new(workers, 140_000, &[EGRESS], 3);
        let policy = Policy::default();
        let mut ports = HashSet::new();
        for port in 1024..=65_535 {
            let at = gateway.admit(&ask(tuple(5, port), &policy), tick(0)).unwrap();
            let outside = gateway.tables[at.worker].session(at.id).outside_tuple();
            assert!(outside.source_port >= 1024 && ports.insert(outside.source_port));
        }
        let other = FiveTuple { source_port: 1024, ..tuple(6, 1024) };
        assert_eq!(gateway.admit(&ask(other, &policy), tick(0)), Err(Refusal::NoPort));
        assert_eq!(gateway.sessions(), USER_PORTS, "a refusal leaves nothing behind");
        let elsewhere = FiveTuple { destination_port: 54, ..other };
        gateway.admit(&ask(elsewhere, &policy), tick(0)).unwrap();
        gateway.expire(tick(1_000_000));
        gateway.assert_empty(&[EGRESS], 1);
    }
}

#[test]
fn many_pods_at_many_workers_use_every_port_towards_one_destination() {
    for policy in [Policy::default(), endpoint_independent()] {
        let mut gateway = Workers::new(4, 140_000, &[EGRESS], 5);
        let mut outside = HashSet::new();
        for session in 0..USER_PORTS {
            let at = gateway.admit(
                &ask(tuple(session % 1000, u16::try_from(2000 + session / 1000).unwrap()), &policy),
                tick(0),
            );
            let at = at.unwrap_or_else(|refusal| panic!("session {session}: {refusal}"));
            let tuple = gateway.tables[at.worker].session(at.id).outside_tuple();
            assert!(outside.insert(tuple.source_port), "no port twice towards one destination");
            assert_eq!(gateway.find_inbound(BLUE, &tuple.reversed()), Some(at), "replies find their session");
        }
        assert_eq!(gateway.admit(&ask(tuple(2000, 4000), &policy), tick(0)), Err(Refusal::NoPort));
        gateway.expire(tick(1_000_000));
        gateway.assert_empty(&[EGRESS], 1);
    }
}

#[test]
fn a_port_that_comes_free_at_any_worker_is_found_by_any_other() {
    let mut gateway = Workers::new(3, 140_000, &[EGRESS], 9);
    let policy = Policy::default();
    for session in 0..USER_PORTS {
        gateway.admit(&ask(tuple(session, 2000), &policy), tick(0)).unwrap();
    }
    for round in 0..300 {
        let gone = gateway.find_outbound(BLUE, &tuple(round * 7, 2000)).unwrap();
        gateway.tables[gone.worker].remove(gone.id, tick(0));
        gateway.settle();
        gateway.admit(&ask(tuple(100_000 + round, 2000), &policy), tick(0)).unwrap();
        assert_eq!(gateway.admit(&ask(tuple(200_000 + round, 2000), &policy), tick(0)), Err(Refusal::NoPort));
    }
}

#[test]
fn system_ports_stand_for_system_ports_only_and_are_random_to_the_last() {
    let mut gateway = Workers::new(2, 4000, &[EGRESS], 1);
    let policy = Policy::default();
    let mut upwards = 0;
    let mut before = 0;
    for pod in 0..1023 {
        let at = gateway.admit(&ask(tuple(pod, 500), &policy), tick(0)).unwrap();
        let port = gateway.tables[at.worker].session(at.id).outside_tuple().source_port;
        assert!((1..1024).contains(&port));
        upwards += u32::from(port > before);
        before = port;
    }
    assert!((400..620).contains(&upwards), "{upwards} of 1023 ports are above the one before");
    assert_eq!(gateway.admit(&ask(tuple(1023, 500), &policy), tick(0)), Err(Refusal::NoPort));
    gateway.admit(&ask(tuple(1023, 1024), &policy), tick(0)).unwrap();
}

#[test]
fn a_protocol_without_ports_serves_one_pod_for_each_address_at_any_worker() {
    let mut gateway = Workers::new(4, 400, &[EGRESS], 1);
    let policy = Policy::default();
    let esp = |pod: u32, host: u8| FiveTuple {
        source: Ipv4Addr::from_bits(0x0a84_0000 + pod),
        destination: Ipv4Addr::new(192, 0, 2, host),
        source_port: 0,
        destination_port: 0,
        protocol: Protocol::Portless(Portless::Esp),
    };
    for host in 0..50 {
        let at = gateway.admit(&ask(esp(u32::from(host) % 7, host), &policy), tick(0)).unwrap();
        let wire = gateway.tables[at.worker].session(at.id).outside_tuple().reversed();
        assert_eq!(gateway.find_inbound(BLUE, &wire), Some(at));
        for other in 7..12 {
            assert_eq!(gateway.admit(&ask(esp(other, host), &policy), tick(0)), Err(Refusal::NoPort));
        }
    }
    gateway.expire(tick(1_000_000));
    gateway.assert_empty(&[EGRESS], 1);
    gateway.admit(&ask(esp(9, 0), &policy), tick(0)).unwrap();
}

#[test]
fn ports_lent_to_a_worker_that_forgets_are_free_again_and_so_are_those_it_lent() {
    let mut gateway = Workers::new(2, 140_000, &[EGRESS], 9);
    let policy = Policy::default();
    let mut borrowed = 0;
    for session in 0..USER_PORTS {
        let at = gateway.admit(&ask(tuple(session, 2000), &policy), tick(0)).unwrap();
        let outside = gateway.tables[at.worker].session(at.id).outside_tuple();
        borrowed += u32::from(gateway.tables[0].owner_of_outside(&outside) != u16::try_from(at.worker).ok());
    }
    assert!(borrowed > 0, "the last ports are lent");
    gateway.tables[0].forget_all();
    let mut ended = 0;
    gateway.tables[1].forget_worker(0, tick(0), |_| ended += 1);
    gateway.settle();
    let left = gateway.sessions();
    assert_eq!(gateway.shared.tenant(BLUE).sessions(), left);
    for session in 0..USER_PORTS - left {
        gateway.admit(&ask(tuple(100_000 + session, 2000), &policy), tick(0)).unwrap();
    }
    assert_eq!(gateway.admit(&ask(tuple(300_000, 2000), &policy), tick(0)), Err(Refusal::NoPort));
    gateway.expire(tick(1_000_000));
    gateway.assert_empty(&[EGRESS], 1);
}

#[test]
fn a_mapping_takes_no_port_that_an_older_session_has_towards_its_destination() {
    for workers in [1, 3] {
        let mut gateway = Workers::new(workers, 4000, &[EGRESS], 2);
        let mut outside = HashSet::new();
        let policies = [Policy::default(), endpoint_independent()];
        let mut refused = 0;
        for pod in 0..1023 {
            let policy = &policies[usize::from(pod >= 500)];
            match gateway.admit(&ask(tuple(pod, 500), policy), tick(0)) {
                Ok(at) => assert!(outside.insert(gateway.tables[at.worker].session(at.id).outside_tuple())),
                Err(refusal) => {
                    assert_eq!(refusal, Refusal::NoPort);
                    refused += 1;
                }
            }
        }
        // Workers lend no mapping out of a block in which older sessions are.
        assert!(refused == 0 || workers > 1, "{refused} refused at {workers} workers");
        let one_more = gateway.admit(&ask(tuple(2000, 500), &policies[1]), tick(0));
        assert!(workers > 1 || one_more == Err(Refusal::NoPort));
        gateway.expire(tick(1_000_000));
        gateway.assert_empty(&[EGRESS], 1);
    }
}

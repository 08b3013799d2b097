//! Endpoint-independent mappings where the model does not go: egress addresses that come and go.

use std::net::Ipv4Addr;

use crate::gateway::{Ask, Workers, tick};
use conntrack::{Direction, Filtering, FiveTuple, Mapping, Policy, Protocol, Quota, Refusal, TenantId};

const POOL: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 55, 113), Ipv4Addr::new(192, 168, 55, 200)];
const BLUE: TenantId = TenantId(0);

fn tuple(port: u16, remote_port: u16) -> FiveTuple {
    FiveTuple {
        source: Ipv4Addr::new(10, 132, 0, 5),
        destination: Ipv4Addr::new(198, 51, 100, 1),
        source_port: port,
        destination_port: remote_port,
        protocol: Protocol::Udp,
    }
}

fn ask<'a>(tuple: FiveTuple, pool: &'a [Ipv4Addr], policy: &'a Policy) -> Ask<'a> {
    Ask { tenant: BLUE, tuple, opened_by: Direction::Outbound, pool, policy }
}

fn endpoint_independent() -> Policy {
    Policy { mapping: Mapping::EndpointIndependent, ..Policy::default() }
}

#[test]
fn ports_of_mappings_that_ended_serve_sessions_when_the_tenants_mapping_has_changed() {
    let pool = &POOL[..1];
    let mut workers = Workers::new(1, 140_000, pool, 1);
    let (mapped, default) = (endpoint_independent(), Policy::default());
    for port in 0..100 {
        workers.admit(&ask(tuple(2000 + port, 53), pool, &mapped), tick(0)).unwrap();
    }
    let of_pod = |pod: u32| FiveTuple { source: Ipv4Addr::from_bits(0x0a85_0000 + pod), ..tuple(2000, 80) };
    let sessions =
        (0..).take_while(|pod| workers.admit(&ask(of_pod(*pod), pool, &default), tick(1000)).is_ok());
    assert_eq!(sessions.count(), 64_412, "mappings keep their ports to themselves");
    workers.expire(tick(3500));
    for more in 100_000..100_100 {
        workers.admit(&ask(of_pod(more), pool, &default), tick(3500)).unwrap();
    }
}

#[test]
fn a_refused_session_leaves_the_mapping_of_its_inside_port_as_it_is() {
    let mut gateway = Workers::new(1, 100, &POOL, 1);
    let policy = endpoint_independent();
    let first = gateway.admit(&ask(tuple(4000, 53), &POOL[..1], &policy), tick(0)).unwrap();
    let outside = gateway.tables[0].session(first.id).outside_tuple();
    let full = Policy { tenant_quota: Quota { sessions: 1, ..Quota::default() }, ..policy };
    let refused = gateway.admit(&ask(tuple(4000, 54), &POOL[1..], &full), tick(0));
    assert_eq!((refused, gateway.sessions()), (Err(Refusal::TenantSessions), 1));
    let second = gateway.admit(&ask(tuple(4000, 54), &POOL[..1], &policy), tick(0)).unwrap();
    let same = FiveTuple { destination_port: 54, ..outside };
    assert_eq!(gateway.find_inbound(BLUE, &same.reversed()), Some(second));
    assert_eq!(gateway.find_outbound(BLUE, &tuple(4000, 54)), Some(second));
    gateway.expire(tick(1_000_000));
    gateway.assert_empty(&POOL, 1);
}

#[test]
fn a_worker_that_forgets_counts_no_port_out_twice() {
    let mut gateway = Workers::new(2, 100, &POOL, 1);
    let policy = Policy { filtering: Filtering::EndpointIndependent, ..endpoint_independent() };
    let resting = gateway.admit(&ask(tuple(4000, 53), &POOL, &policy), tick(0)).unwrap();
    gateway.tables[resting.worker].remove(resting.id, tick(0));
    let from = |pod: u8| FiveTuple { source: Ipv4Addr::new(10, 132, 0, pod), ..tuple(4000, 53) };
    let elsewhere = (6..).find(|pod| gateway.owner(BLUE, from(*pod).source) != resting.worker).unwrap();
    gateway.admit(&ask(from(elsewhere), &POOL, &policy), tick(0)).unwrap();
    gateway.tables[resting.worker].forget_all();
    let used = gateway.shared.tenant(BLUE);
    assert_eq!((used.sessions(), used.ports()), (1, 1), "those of the other worker");
}

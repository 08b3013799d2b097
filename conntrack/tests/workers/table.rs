//! One table: its memory, its room, its bounds.
use std::net::Ipv4Addr;

use crate::gateway::{Ask, Workers, tick, tuple};
use conntrack::{Direction, FiveTuple, Policy, Refusal, TcpSegment, TenantId};

const EGRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 113);
const BLUE: TenantId = TenantId(0);

fn admit(workers: &mut Workers, tuple: FiveTuple, now: u64) -> Result<(), Refusal> {
    let ask = Ask {
        tenant: BLUE,
        tuple,
        opened_by: Direction::Outbound,
        pool: &[EGRESS],
        policy: &Policy::default(),
    };
    workers.admit(&ask, tick(now)).map(drop)
}

#[test]
fn a_session_takes_at_most_128_bytes() {
    for capacity in [1 << 16, (1 << 16) + 1, (1 << 18) / 3 + 1, 1 << 18] {
        let workers = Workers::new(1, capacity, &[EGRESS], 0);
        let bytes = workers.tables[0].memory_bytes();
        assert!(bytes <= 128 * capacity as usize, "{capacity}: {bytes}");
    }
}

#[test]
fn a_full_table_refuses_and_has_room_again_when_a_session_ends() {
    let mut workers = Workers::new(1, 4, &[EGRESS], 0);
    for port in 0..3 {
        admit(&mut workers, tuple(5, 2000 + port), 0).unwrap();
    }
    assert_eq!(admit(&mut workers, tuple(5, 2003), 0), Err(Refusal::SessionsFull));
    assert_eq!((workers.sessions(), workers.tables[0].room()), (3, 0), "three sessions and their pod");
    let gone = workers.find_outbound(BLUE, &tuple(5, 2001)).unwrap();
    workers.tables[0].remove(gone.id, tick(0));
    assert_eq!(
        admit(&mut workers, tuple(6, 2000), 0),
        Err(Refusal::SessionsFull),
        "another pod needs two entries"
    );
    admit(&mut workers, tuple(5, 2003), 0).unwrap();
}

#[test]
fn expiry_stops_at_its_bound_and_takes_the_oldest_first() {
    let mut workers = Workers::new(1, 16, &[EGRESS], 0);
    for port in 1..5u16 {
        admit(&mut workers, tuple(5, 2000 + port), u64::from(port)).unwrap();
    }
    let (late, timeouts) = (tick(1_000_000), workers.timeouts);
    assert_eq!(workers.tables[0].expire(late, &timeouts, 3, |_, _| {}), 3);
    assert!(workers.find_outbound(BLUE, &tuple(5, 2004)).is_some());
    assert_eq!(workers.tables[0].expire(late, &timeouts, 3, |_, _| {}), 1);
    assert_eq!(workers.tables[0].expire(late, &timeouts, 3, |_, _| {}), 0);
}

#[test]
fn packets_to_a_pod_keep_a_udp_session_alive_unless_the_configuration_says_otherwise() {
    for (inbound_refreshes, is_alive) in [(true, true), (false, false)] {
        let mut workers = Workers::new(1, 16, &[EGRESS], 0);
        workers.timeouts.inbound_refreshes = inbound_refreshes;
        admit(&mut workers, tuple(5, 2000), 0).unwrap();
        let at = workers.find_outbound(BLUE, &tuple(5, 2000)).unwrap();
        let (segment, timeouts) = (TcpSegment::default(), workers.timeouts);
        workers.tables[0].touch(at.id, Direction::Inbound, &segment, tick(2000), &timeouts);
        workers.expire(tick(3500));
        assert_eq!(workers.find_outbound(BLUE, &tuple(5, 2000)).is_some(), is_alive);
    }
}

#[test]
fn a_flood_towards_a_full_destination_costs_no_more_than_a_flood_of_new_flows() {
    let mut workers = Workers::new(1, 140_000, &[EGRESS], 3);
    for pod in 0..64_512 {
        admit(&mut workers, tuple(pod, 2000), 0).unwrap();
    }
    // A search of every port for each of these would be 6.5 billion look-ups, which no test runner waits for.
    for pod in 64_512..164_512 {
        assert_eq!(admit(&mut workers, tuple(pod, 2000), 0), Err(Refusal::NoPort));
    }
    let gone = workers.find_outbound(BLUE, &tuple(7, 2000)).unwrap();
    let freed = workers.tables[0].session(gone.id).outside_tuple().source_port;
    workers.tables[0].remove(gone.id, tick(0));
    admit(&mut workers, tuple(200_000, 2000), 0).unwrap();
    let last = workers.find_outbound(BLUE, &tuple(200_000, 2000)).unwrap();
    let found = workers.tables[0].session(last.id).outside_tuple().source_port;
    assert_eq!(found, freed, "the one free port is found");
}

#[test]
fn a_table_that_forgot_everything_has_room_for_all_again() {
    let mut workers = Workers::new(1, 3, &[EGRESS], 0);
    for _ in 0..2 {
        admit(&mut workers, tuple(5, 2000), 0).unwrap();
        admit(&mut workers, tuple(5, 2001), 0).unwrap();
        assert_eq!(admit(&mut workers, tuple(5, 2002), 0), Err(Refusal::SessionsFull));
        workers.tables[0].forget_all();
        assert!(!workers.tables[0].is_torn());
        workers.assert_empty(&[EGRESS], 1);
    }
}

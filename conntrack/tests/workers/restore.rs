//! Sessions go on in the tables of another process: with the same ports, whatever the number of workers.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::gateway::{Ask, At, Workers, gateway_of, tick};
use conntrack::{
    Conntrack, Direction, Filtering, FiveTuple, Mapping, NotRestored, Policy, Protocol, Record, Refusal,
    Replica, Resumption, SessionId, TcpFlags, TcpSegment, TcpState, TenantId, restore,
};
use proptest::prelude::*;

const POOL: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 55, 113), Ipv4Addr::new(192, 168, 55, 114)];
const BLUE: TenantId = TenantId(0);
const TENANTS: u16 = 2;
const CAPACITY: u32 = 4000;

/// What was taken down of all tables: by worker and entry.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<BTreeMap<(u16, u32), Record>>>);

#[derive(Debug)]
struct PartOf(Memory, u16);

impl Replica for PartOf {
    fn put(&mut self, entry: u32, record: &Record) {
        self.0.0.lock().unwrap().insert((self.1, entry), *record);
    }

    fn remove(&mut self, entry: u32) {
        let removed = self.0.0.lock().unwrap().remove(&(self.1, entry));
        assert!(removed.is_some(), "entry {entry} was never taken down");
    }
}

impl Memory {
    fn records(&self) -> Vec<Record> {
        self.0.lock().unwrap().values().copied().collect()
    }
}

/// A gateway whose sessions are taken down.
fn gateway(workers: u16, seed: u8) -> (Workers, Memory) {
    let mut gateway = Workers::new(workers, CAPACITY, &POOL, seed);
    let memory = Memory::default();
    for (worker, table) in (0..).zip(&mut gateway.tables) {
        table.replicate_to(Box::new(PartOf(memory.clone(), worker)));
    }
    (gateway, memory)
}

fn tenant_of(record: &Record) -> TenantId {
    (0..TENANTS).map(TenantId).find(|tenant| gateway_of(*tenant) == record.gateway).unwrap()
}

fn resume(gateway: &mut Workers, record: &Record, age: Duration) -> Result<(), NotRestored> {
    let timeouts = gateway.timeouts;
    let resumption =
        Resumption { tenant: tenant_of(record), record, age, timeouts: &timeouts, next_hops: [7, 8] };
    restore(&mut gateway.tables, &resumption, tick(0))
}

/// What is seen of a session from outside: its tuples, its state and whether a stranger is let in.
type Face = (TenantId, FiveTuple, FiveTuple, Option<TcpState>, bool);

fn faces(gateway: &Workers, policies: &HashMap<TenantId, Policy>) -> Vec<Face> {
    let sessions = gateway.tables.iter().flat_map(|table| table.scan(0, table.capacity()));
    let mut faces: Vec<Face> = sessions
        .map(|session| {
            let (tenant, outside) = (session.tenant(), session.outside_tuple());
            let by_stranger = FiveTuple { source_port: 9, ..outside.reversed() };
            let owner = gateway.tables[0].owner_of_outside(&outside).unwrap();
            let table = &gateway.tables[usize::from(owner)];
            let at = table.lent_mapping(tenant, &by_stranger).unwrap_or(owner);
            let table = &gateway.tables[usize::from(at)];
            let is_open = table.admitted_from_outside(tenant, &by_stranger, &policies[&tenant]).is_some();
            (tenant, session.inside_tuple(), outside, session.tcp_state(), is_open)
        })
        .collect();
    faces.sort_by_key(|face| {
        (
            face.0,
            face.1.source,
            face.1.source_port,
            face.1.destination,
            face.1.destination_port,
            face.1.protocol.number(),
        )
    });
    faces
}

/// Asserts that packets of both directions find each session.
fn assert_found(gateway: &Workers) {
    for (worker, table) in gateway.tables.iter().enumerate() {
        for session in table.scan(0, table.capacity()) {
            let outbound = gateway.find_outbound(session.tenant(), &session.inside_tuple()).unwrap();
            let inbound = gateway.find_inbound(session.tenant(), &session.outside_tuple().reversed());
            assert_eq!((outbound.worker, Some(outbound)), (worker, inbound), "{session:?}");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Open { tenant: u16, pod: u32, port: u16, remote: u16, tcp: bool },
    Segment { nth: usize, inbound: bool, flags: u8 },
    End { nth: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..TENANTS, 0..40u32, 1000..1040u16, 1..4u16, any::<bool>())
            .prop_map(|(tenant, pod, port, remote, tcp)| Step::Open { tenant, pod, port, remote, tcp }),
        2 => (any::<usize>(), any::<bool>(), prop::sample::select(vec![0x02u8, 0x12, 0x10, 0x11, 0x04]))
            .prop_map(|(nth, inbound, flags)| Step::Segment { nth, inbound, flags }),
        1 => any::<usize>().prop_map(|nth| Step::End { nth }),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let filterings =
        vec![Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];
    (any::<bool>(), prop::sample::select(filterings)).prop_map(|(is_mapped, filtering)| Policy {
        mapping: if is_mapped { Mapping::EndpointIndependent } else { Mapping::default() },
        filtering,
        ..Policy::default()
    })
}

fn take(gateway: &mut Workers, live: &mut Vec<At>, step: &Step, policies: &HashMap<TenantId, Policy>) {
    match *step {
        Step::Open { tenant, pod, port, remote, tcp } => {
            let tuple = FiveTuple {
                source: Ipv4Addr::from_bits(0x0a84_0000 + pod),
                destination: Ipv4Addr::new(198, 51, 100, 7),
                source_port: port,
                destination_port: remote,
                protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
            };
            let tenant = TenantId(tenant);
            let pool = [POOL[usize::from(tenant.0)]];
            let policy = policies[&tenant];
            let ask = Ask { tenant, tuple, opened_by: Direction::Outbound, pool: &pool, policy: &policy };
            if gateway.find_outbound(tenant, &tuple).is_none() {
                live.push(gateway.admit(&ask, tick(0)).unwrap());
            }
        }
        Step::Segment { nth, inbound, flags } if !live.is_empty() => {
            let At { worker, id } = live[nth % live.len()];
            let direction = if inbound { Direction::Inbound } else { Direction::Outbound };
            let segment = TcpSegment { flags: TcpFlags(flags), ..TcpSegment::default() };
            let timeouts = gateway.timeouts;
            gateway.tables[worker].touch(id, direction, &segment, tick(0), &timeouts);
        }
        Step::End { nth } if !live.is_empty() => {
            let At { worker, id } = live.swap_remove(nth % live.len());
            gateway.tables[worker].remove(id, tick(0));
            gateway.settle();
        }
        Step::Segment { .. } | Step::End { .. } => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn sessions_go_on_with_another_number_of_workers(
        steps in prop::collection::vec(step(), 0..300),
        policies in [policy(), policy()],
        before in 1..5u16,
        after in 1..5u16,
    ) {
        let policies: HashMap<_, _> = (0..TENANTS).map(TenantId).zip(policies).collect();
        let (mut old, memory) = gateway(before, 3);
        let mut live = Vec::new();
        for step in &steps {
            take(&mut old, &mut live, step, &policies);
        }
        prop_assert_eq!(memory.records().len(), live.len());
        let (mut new, copied) = gateway(after, 5);
        for record in memory.records() {
            let read = Record::from_bytes(&record.to_bytes()).unwrap();
            prop_assert_eq!(resume(&mut new, &read, Duration::ZERO), Ok(()));
        }
        prop_assert_eq!(faces(&old, &policies), faces(&new, &policies));
        assert_found(&new);
        let sorted = |memory: &Memory| {
            let mut bytes: Vec<_> = memory.records().iter().map(Record::to_bytes).collect();
            bytes.sort_unstable();
            bytes
        };
        prop_assert_eq!(sorted(&memory), sorted(&copied), "what is taken up is taken down again");
        for tenant in (0..TENANTS).map(TenantId) {
            let [was, is] = [&old, &new].map(|gateway| gateway.shared.tenant(tenant));
            prop_assert_eq!((was.sessions(), was.ports()), (is.sessions(), is.ports()));
        }
        // A new session of a restored pod gets no port that a restored session has.
        let more = Step::Open { tenant: 0, pod: 1, port: 999, remote: 3, tcp: false };
        take(&mut new, &mut Vec::new(), &more, &policies);
        assert_found(&new);
        new.expire(tick(10 * 86_400));
        new.expire(tick(11 * 86_400));
        new.assert_empty(&POOL, TENANTS);
        prop_assert!(copied.records().is_empty());
    }
}

fn record(port: u16, tcp: TcpState) -> Record {
    let inside_tuple = FiveTuple {
        source: Ipv4Addr::new(10, 132, 0, 5),
        destination: Ipv4Addr::new(198, 51, 100, 7),
        source_port: 40_000,
        destination_port: 443,
        protocol: Protocol::Tcp,
    };
    Record { gateway: gateway_of(BLUE), inside_tuple, outside: (POOL[0], port), tcp, mapping: None }
}

#[test]
fn what_would_have_ended_is_not_taken_up() {
    let (mut gateway, _memory) = gateway(1, 1);
    let opening = gateway.timeouts.tcp_opening;
    assert_eq!(resume(&mut gateway, &record(5000, TcpState::Opening), opening), Err(NotRestored::Over));
    assert_eq!(resume(&mut gateway, &record(5000, TcpState::Established), opening), Ok(()));
    assert_eq!(gateway.tables[0].session(SessionId(1)).tcp_state(), Some(TcpState::Established));
}

#[test]
fn what_does_not_fit_changes_nothing() {
    for workers in [1, 3] {
        let (mut gateway, memory) = gateway(workers, 1);
        let first = record(5000, TcpState::Established);
        assert_eq!(resume(&mut gateway, &first, Duration::ZERO), Ok(()));
        let same_port = FiveTuple { source: Ipv4Addr::new(10, 132, 0, 9), ..first.inside_tuple };
        let strange = Ipv4Addr::new(192, 168, 55, 99);
        for (bad, why) in [
            (first, NotRestored::Taken),
            (Record { inside_tuple: same_port, ..first }, NotRestored::Taken),
            (Record { outside: (strange, 5001), inside_tuple: same_port, ..first }, NotRestored::NoAddress),
        ] {
            assert_eq!(resume(&mut gateway, &bad, Duration::ZERO), Err(why), "{bad:?}");
        }
        assert_eq!(memory.records(), [first]);
        assert_eq!(gateway.sessions(), 1);
        gateway.expire(tick(10 * 86_400));
        gateway.assert_empty(&POOL, TENANTS);
    }
}

#[test]
fn a_full_table_takes_up_no_more() {
    let mut gateway = Workers::new(1, 8, &POOL, 1);
    let results: Vec<_> = (0..8)
        .map(|port| {
            let mut record = record(5000 + port, TcpState::Established);
            record.inside_tuple.source_port = port;
            resume(&mut gateway, &record, Duration::ZERO)
        })
        .collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 4);
    assert_eq!(results[7], Err(NotRestored::Full));
    assert_eq!(gateway.sessions(), 4);
}

#[test]
fn a_worker_that_forgets_its_sessions_has_them_taken_out() {
    let (mut gateway, memory) = gateway(1, 1);
    assert_eq!(resume(&mut gateway, &record(5000, TcpState::Established), Duration::ZERO), Ok(()));
    gateway.tables[0].forget_all();
    assert!(memory.records().is_empty());
    let ask = Ask {
        tenant: BLUE,
        tuple: record(5000, TcpState::Opening).inside_tuple,
        opened_by: Direction::Outbound,
        pool: &POOL[..1],
        policy: &Policy::default(),
    };
    let made: Result<At, Refusal> = gateway.admit(&ask, tick(0));
    assert!(made.is_ok());
    assert_eq!(memory.records().len(), 1, "and what it makes then is taken down again");
    assert_eq!(gateway.tables.iter().map(Conntrack::len).sum::<u32>(), 1);
}

//! The session table against a naive model: maps and loops, nothing shared with the code under test.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use conntrack::{
    Admission, Conntrack, Direction, Epoch, FiveTuple, Key, PortShare, Protocol, Refusal, Revision, TcpFlags,
    TenantId, Tick, TimeoutClass, Timeouts,
};
use proptest::prelude::*;

const CAPACITY: u32 = 24;
const EGRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 113);

#[derive(Clone, Debug)]
enum Event {
    Outbound { flow: u8, flags: u8 },
    Inbound { flow: u8, flags: u8 },
    Wait { seconds: u16 },
    Remove { flow: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum ModelTcp {
    Opening,
    Open { inside_fin: bool, outside_fin: bool },
    Reset,
}

#[derive(Clone, Debug)]
struct ModelSession {
    outside: (Ipv4Addr, u16),
    tcp: ModelTcp,
    deadline: u64,
}

/// Sessions by flow, time in tenths of a second.
#[derive(Default)]
struct Model {
    sessions: HashMap<u8, ModelSession>,
    now: u64,
}

impl Model {
    fn touch(&mut self, flow: u8, outbound: bool, flags: u8) {
        let now = self.now;
        let session = self.sessions.get_mut(&flow).unwrap();
        let (syn, fin, rst) = (flags & 2 != 0, flags & 1 != 0, flags & 4 != 0);
        let closed = |tcp| tcp == ModelTcp::Open { inside_fin: true, outside_fin: true };
        let before = session.tcp;
        session.tcp = match before {
            ModelTcp::Opening if rst => before,
            _ if rst => {
                if closed(before) {
                    before
                } else {
                    ModelTcp::Reset
                }
            }
            ModelTcp::Opening if syn && !outbound => ModelTcp::Open { inside_fin: false, outside_fin: false },
            ModelTcp::Opening => ModelTcp::Opening,
            _ if (closed(before) || before == ModelTcp::Reset) && outbound && flags & 0x17 == 2 => {
                ModelTcp::Opening
            }
            ModelTcp::Reset => ModelTcp::Open { inside_fin: false, outside_fin: false },
            ModelTcp::Open { inside_fin, outside_fin } => ModelTcp::Open {
                inside_fin: inside_fin || fin && outbound,
                outside_fin: outside_fin || fin && !outbound,
            },
        };
        let dying = closed(session.tcp) || session.tcp == ModelTcp::Reset;
        let idle = match (protocol_of(flow), session.tcp) {
            (Protocol::Udp | Protocol::Portless(_), _) => 3000,
            (Protocol::Icmp, _) => 600,
            (Protocol::Tcp, ModelTcp::Open { .. }) if !dying => 74400,
            (Protocol::Tcp, _) => 2400,
        };
        if protocol_of(flow) != Protocol::Tcp || !dying || before != session.tcp {
            session.deadline = now + idle;
        }
    }
}

fn protocol_of(flow: u8) -> Protocol {
    [Protocol::Tcp, Protocol::Udp, Protocol::Icmp][usize::from(flow % 3)]
}

/// 36 flows of four pods of two tenants, with the same pod addresses, towards few destinations.
fn flow_of(flow: u8) -> (TenantId, FiveTuple) {
    let flow = flow % 36;
    let protocol = protocol_of(flow);
    let tuple = FiveTuple {
        source: Ipv4Addr::new(10, 132, 0, flow / 3 % 2),
        destination: Ipv4Addr::new(192, 168, 55, 13),
        source_port: if flow < 18 { 500 } else { 40000 },
        destination_port: if protocol == Protocol::Icmp { 0 } else { 80 + u16::from(flow / 6 % 3) },
        protocol,
    };
    (
        TenantId(u16::from(flow / 9 % 2)),
        FiveTuple { source_port: tuple.source_port + u16::from(flow), ..tuple },
    )
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let flags = prop_oneof![Just(2u8), Just(0x12), Just(0x10), Just(0x11), Just(4)];
    let event = prop_oneof![
        6 => (0u8..36, flags.clone()).prop_map(|(flow, flags)| Event::Outbound { flow, flags }),
        4 => (0u8..36, flags).prop_map(|(flow, flags)| Event::Inbound { flow, flags }),
        2 => (0u16..400).prop_map(|seconds| Event::Wait { seconds }),
        1 => Just(Event::Wait { seconds: 7440 }),
        1 => (0u8..36).prop_map(|flow| Event::Remove { flow }),
    ];
    prop::collection::vec(event, 1..200)
}

fn tick(tenths: u64) -> Tick {
    Tick::since_start(Duration::from_millis(tenths * 100))
}

fn admission(flow: u8) -> Admission {
    let (tenant, tuple) = flow_of(flow);
    let revision = Revision { epoch: Epoch(1), next_hops: [1, 2] };
    Admission { tenant, tuple, outside: EGRESS, revision }
}

fn outbound(table: &mut Conntrack, model: &mut Model, flow: u8, flags: u8) {
    let (tenant, tuple) = flow_of(flow);
    let now = tick(model.now);
    let key = Key::new(tenant, Direction::Outbound, &tuple);
    let found = table.find(&key);
    assert_eq!(found.is_some(), model.sessions.contains_key(&flow));
    let id = match found {
        Some(id) => id,
        None => match table.admit(&admission(flow), now) {
            Ok(id) => {
                let outside = table.session(id).outside_tuple();
                let outside = (outside.source, outside.source_port);
                model.sessions.insert(flow, ModelSession { outside, tcp: ModelTcp::Opening, deadline: 0 });
                id
            }
            Err(refusal) => {
                assert_eq!(refusal, Refusal::SessionsFull);
                assert_eq!(model.sessions.len(), CAPACITY as usize);
                return;
            }
        },
    };
    table.touch(id, Direction::Outbound, TcpFlags(flags), now);
    model.touch(flow, true, flags);
}

fn inbound(table: &mut Conntrack, model: &mut Model, flow: u8, flags: u8) {
    let Some(session) = model.sessions.get(&flow) else { return };
    let (tenant, tuple) = flow_of(flow);
    let outside = FiveTuple { source: session.outside.0, source_port: session.outside.1, ..tuple };
    let id = table.find(&Key::new(tenant, Direction::Inbound, &outside.reversed())).unwrap();
    let rewrite = table.session(id).rewrite(Direction::Inbound);
    assert_eq!((rewrite.address, rewrite.port), (tuple.source, tuple.source_port));
    table.touch(id, Direction::Inbound, TcpFlags(flags), tick(model.now));
    model.touch(flow, false, flags);
}

fn check_laws(table: &Conntrack, model: &Model) {
    assert_eq!(table.len() as usize, model.sessions.len());
    let live: Vec<_> = table.scan(0, CAPACITY).collect();
    assert_eq!(live.len(), model.sessions.len());
    let outside: HashSet<_> =
        live.iter().map(|session| (session.tenant(), session.outside_tuple())).collect();
    assert_eq!(outside.len(), live.len(), "no two sessions share an outside tuple");
    for session in live {
        let (out, back) = (session.rewrite(Direction::Outbound), session.rewrite(Direction::Inbound));
        assert_eq!(back.header_delta.apply(out.header_delta.apply(0x1234)), 0x1234);
        assert_eq!(back.transport_delta.apply(out.transport_delta.apply(0x1234)), 0x1234);
        assert_eq!((out.next_hop, back.next_hop), (1, 2));
    }
}

proptest! {
    #[test]
    fn table_behaves_like_the_model(events in events(), seed in any::<[u8; 32]>()) {
        let mut table = Conntrack::new(CAPACITY, PortShare::new(0, 1), seed);
        let mut model = Model::default();
        for event in events {
            match event {
                Event::Outbound { flow, flags } => outbound(&mut table, &mut model, flow, flags),
                Event::Inbound { flow, flags } => inbound(&mut table, &mut model, flow, flags),
                Event::Wait { seconds } => {
                    model.now += u64::from(seconds) * 10;
                    let now = model.now;
                    model.sessions.retain(|_, session| session.deadline > now);
                    table.expire(tick(now), &Timeouts::default(), usize::MAX, |_| {});
                }
                Event::Remove { flow } => {
                    if model.sessions.remove(&flow).is_some() {
                        let (tenant, tuple) = flow_of(flow);
                        let id = table.find(&Key::new(tenant, Direction::Outbound, &tuple)).unwrap();
                        table.remove(id);
                    }
                }
            }
            check_laws(&table, &model);
        }
    }
}

#[test]
fn a_session_takes_at_most_128_bytes() {
    for capacity in [1 << 16, (1 << 16) + 1, (1 << 18) / 3 + 1, 1 << 18] {
        let table = Conntrack::new(capacity, PortShare::new(0, 1), [0; 32]);
        assert!(table.memory_bytes() <= 128 * capacity as usize, "{capacity}: {}", table.memory_bytes());
    }
}

#[test]
fn the_last_free_port_towards_a_destination_is_found_and_another_destination_starts_afresh() {
    let mut table = Conntrack::new(70_000, PortShare::new(0, 1), [3; 32]);
    let mut next = admission(1);
    next.tuple.protocol = Protocol::Udp;
    let mut ports = HashSet::new();
    for pod in 0..64_512u32 {
        next.tuple.source = Ipv4Addr::from_bits(0x0a84_0000 + pod);
        next.tuple.source_port = 40000;
        let id = table.admit(&next, Tick::default()).unwrap();
        assert!(ports.insert(table.session(id).outside_tuple().source_port));
    }
    assert!(ports.iter().all(|port| *port >= 1024));
    next.tuple.source = Ipv4Addr::new(10, 140, 0, 1);
    assert_eq!(table.admit(&next, Tick::default()), Err(Refusal::NoPort));
    assert_eq!(table.len(), 64_512, "a refusal leaves nothing behind");
    next.tuple.destination_port += 1;
    table.admit(&next, Tick::default()).unwrap();
}

#[test]
fn expiry_stops_at_its_bound_and_takes_the_oldest_first() {
    let mut table = Conntrack::new(16, PortShare::new(0, 1), [0; 32]);
    for flow in [1u8, 4, 7, 10] {
        table.admit(&admission(flow), tick(u64::from(flow))).unwrap();
    }
    let late = tick(1_000_000);
    assert_eq!(table.expire(late, &Timeouts::default(), 3, |_| {}), 3);
    let (tenant, tuple) = flow_of(10);
    assert!(table.find(&Key::new(tenant, Direction::Outbound, &tuple)).is_some());
    assert_eq!(table.expire(late, &Timeouts::default(), 3, |_| {}), 1);
    assert_eq!(table.expire(late, &Timeouts::default(), 3, |_| {}), 0);
}

#[test]
fn classes_have_the_timeouts_of_their_kind() {
    let mut table = Conntrack::new(16, PortShare::new(0, 1), [0; 32]);
    let expected = [TimeoutClass::TcpOpening, TimeoutClass::Udp, TimeoutClass::IcmpQuery];
    for (flow, class) in [0u8, 1, 2].into_iter().zip(expected) {
        let id = table.admit(&admission(flow), Tick::default()).unwrap();
        assert_eq!(table.session(id).class(), class);
    }
}

#[test]
fn a_flood_towards_a_full_destination_costs_no_more_than_a_flood_of_new_flows() {
    let mut table = Conntrack::new(70_000, PortShare::new(0, 1), [3; 32]);
    let mut flow = admission(1);
    flow.tuple.protocol = Protocol::Udp;
    flow.tuple.source_port = 40000;
    let admit = |table: &mut Conntrack, pod: u32, flow: &mut Admission| {
        flow.tuple.source = Ipv4Addr::from_bits(0x0a84_0000 + pod);
        table.admit(flow, Tick::default())
    };
    for pod in 0..64_512 {
        admit(&mut table, pod, &mut flow).unwrap();
    }
    // A search of every port for each of these would be 6.5 billion look-ups, which no test runner waits for.
    for pod in 64_512..164_512 {
        assert_eq!(admit(&mut table, pod, &mut flow), Err(Refusal::NoPort));
    }
    let (tenant, tuple) = (flow.tenant, FiveTuple { source: Ipv4Addr::from_bits(0x0a84_0007), ..flow.tuple });
    let id = table.find(&Key::new(tenant, Direction::Outbound, &tuple)).unwrap();
    let freed = table.session(id).outside_tuple().source_port;
    table.remove(id);
    let id = admit(&mut table, 200_000, &mut flow).unwrap();
    assert_eq!(table.session(id).outside_tuple().source_port, freed, "the one free port is found");
}

#[test]
fn a_table_that_forgot_everything_has_room_for_all_again() {
    let mut table = Conntrack::new(2, PortShare::new(0, 1), [0; 32]);
    for _ in 0..2 {
        table.admit(&admission(0), Tick::default()).unwrap();
        table.admit(&admission(1), Tick::default()).unwrap();
        assert_eq!(table.admit(&admission(2), Tick::default()), Err(Refusal::SessionsFull));
        table.forget_all();
        assert!(table.is_empty() && !table.is_torn());
    }
}

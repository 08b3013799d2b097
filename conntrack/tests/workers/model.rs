//! Tables of several workers against a naive model: lists and loops, nothing shared with the code under test.

use std::collections::{HashMap, HashSet};

use crate::gateway::{Ask, At, Workers, tick};
use crate::oracle::{Flow, Model, POOL, POOLS, REST, Rest, Session, Tcp};
use conntrack::{
    Direction, Filtering, FiveTuple, Mapping, Policy, Portless, Protocol, Quota, TcpFlags, TcpSegment,
    TenantId,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Event {
    Outbound(Flow, u8),
    Inbound(Flow, u8),
    /// A packet to where the flow came out, from another end.
    Stranger(Flow, u8, u16),
    Wait(u64),
    Remove(Flow),
    /// The first tenant's egress addresses change to one of [`POOLS`].
    Pool(usize),
}

/// How late a session may end, in tenths of a second: it may wait for others that were last seen in the same span.
const SPAN: u64 = 64;

struct Test {
    workers: Workers,
    model: Model,
}

impl Test {
    fn outbound(&mut self, flow: Flow, direction: Direction, flags: u8) {
        let tenant = TenantId(flow.tenant);
        let found = self.workers.find_outbound(tenant, &flow.tuple());
        assert_eq!(found.is_some(), self.model.find(flow).is_some(), "{flow:?}");
        let at = match found {
            Some(at) => at,
            None => match self.admit(flow, direction) {
                Some(at) => at,
                None => return,
            },
        };
        self.touch(at, flow, direction, flags);
    }

    fn admit(&mut self, flow: Flow, opened_by: Direction) -> Option<At> {
        let expected = self.model.admit(flow, opened_by);
        let policy = self.model.policy(flow);
        let ask = Ask {
            tenant: TenantId(flow.tenant),
            tuple: flow.tuple(),
            opened_by,
            pool: self.model.pool(flow.tenant),
            policy: &policy,
        };
        let admitted = self.workers.admit(&ask, tick(self.model.now));
        let (address, port) = match (expected, admitted) {
            (Ok(expected), Ok(_)) => expected,
            (Err(expected), Err(refusal)) => {
                assert_eq!(refusal, expected);
                return None;
            }
            (expected, admitted) => panic!("{flow:?}: {admitted:?} instead of {expected:?}"),
        };
        let at = admitted.unwrap();
        let outside = self.workers.tables[at.worker].session(at.id).outside_tuple();
        assert_eq!(outside.source, address, "a pod has one egress address");
        assert!(port.is_none_or(|port| port == outside.source_port), "an inside port has one outside port");
        if !flow.is_portless() && flow.protocol != Protocol::Icmp {
            assert_eq!(outside.source_port < 1024, flow.port < 1024, "a port keeps its class");
        }
        let outside = (outside.source, outside.source_port);
        let revived = |rest: &Rest| rest.flow.shares_inside(flow) && self.model.is_mapped(flow);
        let rests = self.model.rests.iter().filter(|rest| !(revived(rest) && rest.outside == outside));
        let rests: Vec<_> = rests.copied().collect();
        assert!(
            rests.iter().all(|rest| (rest.flow.protocol, rest.outside) != (flow.protocol, outside)),
            "a resting port is not handed out"
        );
        self.model.rests = rests;
        self.model.paired.insert((flow.tenant, flow.pod), address);
        self.model.begun.push((flow.tenant, self.model.now / 10));
        self.model.begun_by_pods.push((flow.tenant, flow.pod, self.model.now / 10));
        self.model.sessions.push(Session {
            flow,
            outside,
            tcp: Tcp::Opening(opened_by),
            deadline: self.model.now + 2400,
        });
        Some(at)
    }

    fn touch(&mut self, at: At, flow: Flow, direction: Direction, flags: u8) {
        // Both sides begin at 0 and never send data, so every RST is where it is expected.
        let sequence = u32::from(flags & 2 == 0);
        let segment = TcpSegment { flags: TcpFlags(flags), sequence, acknowledgement: 1 };
        let (now, timeouts) = (tick(self.model.now), self.workers.timeouts);
        self.workers.tables[at.worker].touch(at.id, direction, &segment, now, &timeouts);
        let at = self.model.find(flow).unwrap();
        self.model.touch(at, direction, flags);
    }

    fn inbound(&mut self, flow: Flow, flags: u8) {
        let Some(known) = self.model.find(flow).map(|at| self.model.sessions[at]) else { return };
        let wire =
            FiveTuple { source: known.outside.0, source_port: known.outside.1, ..flow.tuple() }.reversed();
        let at = self.workers.find_inbound(TenantId(flow.tenant), &wire).unwrap();
        self.touch(at, flow, Direction::Inbound, flags);
    }

    fn stranger(&mut self, flow: Flow, remote: u8, remote_port: u16) {
        let Some(known) = self.model.find(flow).map(|at| self.model.sessions[at]) else { return };
        if flow.is_portless() {
            return;
        }
        let stranger = Flow { remote, remote_port, ..flow };
        if self.model.find(stranger).is_some() {
            return;
        }
        let outside = FiveTuple { source: known.outside.0, source_port: known.outside.1, ..stranger.tuple() };
        let tenant = TenantId(flow.tenant);
        let worker = self.workers.owner(tenant, flow.tuple().source);
        let policy = self.model.policy(flow);
        let admitted =
            self.workers.tables[worker].admitted_from_outside(tenant, &outside.reversed(), &policy);
        let inside = (stranger.tuple().source, stranger.tuple().source_port);
        assert_eq!(admitted, self.model.lets_in(&known, remote).then_some(inside));
        if admitted.is_some() {
            self.outbound(stranger, Direction::Inbound, 2);
        }
    }

    fn wait(&mut self, tenths: u64) {
        self.model.now += tenths;
        let now = self.model.now;
        self.model.rests.retain(|rest| rest.until > now);
        self.workers.expire(tick(now));
        let mut at = 0;
        while let Some(session) = self.model.sessions.get(at) {
            let (tenant, tuple) = (TenantId(session.flow.tenant), session.flow.tuple());
            let is_late = session.deadline <= now && self.workers.find_outbound(tenant, &tuple).is_some();
            assert!(!is_late || now - session.deadline < SPAN, "{session:?} at {now}");
            if session.deadline > now || is_late {
                at += 1;
            } else {
                self.model.end(at); // another takes its place
            }
        }
    }

    fn remove(&mut self, flow: Flow) {
        if let Some(at) = self.model.find(flow) {
            self.model.end(at);
            let at = self.workers.find_outbound(TenantId(flow.tenant), &flow.tuple()).unwrap();
            self.workers.tables[at.worker].remove(at.id, tick(self.model.now));
            self.workers.settle();
        }
    }

    fn check_laws(&self) {
        assert_eq!(self.workers.sessions() as usize, self.model.sessions.len());
        let mut outside = HashSet::new();
        for session in &self.model.sessions {
            let tuple = FiveTuple {
                source: session.outside.0,
                source_port: session.outside.1,
                ..session.flow.tuple()
            };
            assert!(outside.insert(tuple), "no two sessions share an outside tuple");
            let at = self.workers.find_inbound(TenantId(session.flow.tenant), &tuple.reversed()).unwrap();
            let found = self.workers.tables[at.worker].session(at.id);
            assert_eq!((found.inside_tuple(), found.outside_tuple()), (session.flow.tuple(), tuple));
            let (out, back) = (found.rewrite(Direction::Outbound), found.rewrite(Direction::Inbound));
            assert_eq!(back.header_delta.apply(out.header_delta.apply(0x1234)), 0x1234);
            assert_eq!(back.transport_delta.apply(out.transport_delta.apply(0x1234)), 0x1234);
        }
    }
}

fn flow() -> impl Strategy<Value = Flow> {
    let protocol = prop_oneof![
        3 => Just(Protocol::Tcp),
        3 => Just(Protocol::Udp),
        1 => Just(Protocol::Icmp),
        1 => Just(Protocol::Portless(Portless::Gre)),
    ];
    let port = prop_oneof![Just(500u16), Just(40_000), Just(40_001)];
    (0u16..3, 0u8..3, protocol, port, 0u8..2, 80u16..82).prop_map(
        |(tenant, pod, protocol, port, remote, remote_port)| Flow {
            tenant,
            pod,
            protocol,
            port,
            remote,
            remote_port,
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let flags = || prop_oneof![Just(2u8), Just(0x12), Just(0x10), Just(0x11), Just(4)];
    prop_oneof![
        8 => (flow(), flags()).prop_map(|(flow, flags)| Event::Outbound(flow, flags)),
        4 => (flow(), flags()).prop_map(|(flow, flags)| Event::Inbound(flow, flags)),
        3 => (flow(), 0u8..3, 80u16..83).prop_map(|(flow, remote, port)| Event::Stranger(flow, remote, port)),
        2 => (0u64..4000).prop_map(Event::Wait),
        2 => (0u64..15).prop_map(Event::Wait),
        1 => Just(Event::Wait(74_400)),
        1 => flow().prop_map(Event::Remove),
        1 => (0..POOLS.len()).prop_map(Event::Pool),
    ]
}

fn quota() -> impl Strategy<Value = Quota> {
    let limit = || prop_oneof![3 => Just(0u32), 1 => 1u32..6];
    (limit(), limit(), limit()).prop_map(|(sessions, ports, new_per_second)| Quota {
        sessions,
        ports,
        new_per_second,
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let kinds = prop_oneof![
        Just((Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent)),
        Just((Mapping::EndpointIndependent, Filtering::AddressAndPortDependent)),
        Just((Mapping::EndpointIndependent, Filtering::AddressDependent)),
        Just((Mapping::EndpointIndependent, Filtering::EndpointIndependent)),
    ];
    (kinds, quota(), quota()).prop_map(|((mapping, filtering), tenant_quota, pod_quota)| Policy {
        mapping,
        filtering,
        tenant_quota,
        pod_quota,
    })
}

proptest! {
    #[test]
    fn tables_behave_like_the_model(
        events in prop::collection::vec(event(), 1..150),
        policies in [policy(), policy(), policy()],
        workers in 1u16..4,
        seed in any::<u8>(),
    ) {
        let model = Model {
            policies, pool: 0, sessions: Vec::new(), rests: Vec::new(), paired: HashMap::new(), begun: Vec::new(),
            begun_by_pods: Vec::new(), now: 0,
        };
        let mut test = Test { workers: Workers::new(workers, 600, &POOL, seed), model };
        for event in events {
            match event {
                Event::Outbound(flow, flags) => test.outbound(flow, Direction::Outbound, flags),
                Event::Inbound(flow, flags) => test.inbound(flow, flags),
                Event::Stranger(flow, remote, port) => test.stranger(flow, remote, port),
                Event::Wait(tenths) => test.wait(tenths),
                Event::Remove(flow) => test.remove(flow),
                Event::Pool(pool) => test.model.pool = pool,
            }
            test.check_laws();
        }
        test.wait(100_000);
        test.wait(REST);
        test.workers.assert_empty(&POOL, 3);
    }
}

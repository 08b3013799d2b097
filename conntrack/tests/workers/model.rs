//! Tables of several workers against a naive model: lists and loops, nothing shared with the code under test.
use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use crate::gateway::{Ask, At, Workers, tick};
use conntrack::{
    Direction, Filtering, FiveTuple, Mapping, Policy, Portless, Protocol, Quota, Refusal, TcpFlags,
    TcpSegment, TenantId, pair_egress,
};
use proptest::prelude::*;

const POOL: [Ipv4Addr; 4] = [
    Ipv4Addr::new(192, 168, 55, 113),
    Ipv4Addr::new(192, 168, 55, 200),
    Ipv4Addr::new(192, 168, 55, 114),
    Ipv4Addr::new(192, 168, 55, 115),
];
const REST: u64 = 1200;

/// One flow of few pods of three tenants, which use the same pod addresses, towards few ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    tenant: u16,
    pod: u8,
    protocol: Protocol,
    port: u16,
    remote: u8,
    remote_port: u16,
}

#[derive(Clone, Debug)]
enum Event {
    Outbound(Flow, u8),
    Inbound(Flow, u8),
    /// A packet to where the flow came out, from another end.
    Stranger(Flow, u8, u16),
    Wait(u64),
    Remove(Flow),
    /// The first tenant has one egress address, or two.
    Pool(bool),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Tcp {
    Opening(Direction),
    Open { inside_fin: bool, outside_fin: bool },
    Reset,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    flow: Flow,
    outside: (Ipv4Addr, u16),
    tcp: Tcp,
    deadline: u64,
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    flow: Flow,
    outside: (Ipv4Addr, u16),
    until: u64,
}

/// What should be. Time in tenths of a second.
struct Model {
    policies: [Policy; 3],
    has_two: bool,
    sessions: Vec<Session>,
    rests: Vec<Rest>,
    /// Egress address of each tenant's pod, as long as it has sessions.
    paired: HashMap<(u16, u8), Ipv4Addr>,
    /// Tenant and second of every session that began.
    begun: Vec<(u16, u64)>,
    /// Tenant, pod and second of every session that began; of pods that have sessions.
    begun_by_pod: Vec<(u16, u8, u64)>,
    now: u64,
}

impl Flow {
    fn tuple(self) -> FiveTuple {
        let (port, remote_port) = match self.protocol {
            Protocol::Tcp | Protocol::Udp => (self.port, self.remote_port),
            Protocol::Icmp => (self.port, 0),
            Protocol::Portless(_) => (0, 0),
        };
        FiveTuple {
            source: Ipv4Addr::new(10, 132, 0, self.pod),
            destination: Ipv4Addr::new(198, 51, 100, self.remote),
            source_port: port,
            destination_port: remote_port,
            protocol: self.protocol,
        }
    }

    /// Tells whether both are of one inside port.
    fn shares_inside(self, other: Self) -> bool {
        let (mine, others) = (self.tuple(), other.tuple());
        (self.tenant, mine.source, mine.source_port, mine.protocol)
            == (other.tenant, others.source, others.source_port, others.protocol)
    }

    fn is_portless(self) -> bool {
        matches!(self.protocol, Protocol::Portless(_))
    }
}

impl Model {
    fn pool(&self, tenant: u16) -> &'static [Ipv4Addr] {
        match tenant {
            0 if self.has_two => &POOL[..2],
            0 => &POOL[..1],
            1 => &POOL[2..3],
            _ => &POOL[3..],
        }
    }

    fn policy(&self, flow: Flow) -> Policy {
        self.policies[usize::from(flow.tenant)]
    }

    fn is_mapped(&self, flow: Flow) -> bool {
        self.policy(flow).mapping == Mapping::EndpointIndependent && !flow.is_portless()
    }

    fn find(&self, flow: Flow) -> Option<usize> {
        self.sessions
            .iter()
            .position(|session| (session.flow.tenant, session.flow.tuple()) == (flow.tenant, flow.tuple()))
    }

    fn of_pod(&self, flow: Flow) -> impl Iterator<Item = &Session> {
        self.sessions
            .iter()
            .filter(move |other| (other.flow.tenant, other.flow.pod) == (flow.tenant, flow.pod))
    }

    fn ports<'a>(&self, sessions: impl Iterator<Item = &'a Session>) -> usize {
        let holders: HashSet<_> = sessions
            .map(|session| {
                let whole = if self.is_mapped(session.flow) { None } else { Some(session.flow.tuple()) };
                let tuple = session.flow.tuple();
                (session.flow.tenant, tuple.protocol, tuple.source, tuple.source_port, session.outside, whole)
            })
            .collect();
        holders.len()
    }

    /// Returns the egress address, and the port if it is given by a mapping, that a session should have.
    fn admit(&self, flow: Flow, opened_by: Direction) -> Result<(Ipv4Addr, Option<u16>), Refusal> {
        let policy = self.policy(flow);
        let pool = self.pool(flow.tenant);
        let paired =
            self.paired.get(&(flow.tenant, flow.pod)).copied().filter(|address| pool.contains(address));
        let paired = paired.filter(|_| self.of_pod(flow).next().is_some());
        let address = paired.unwrap_or_else(|| pair_egress(flow.tuple().source, pool).unwrap());
        let same_inside = |other: &Flow| self.is_mapped(flow) && other.shares_inside(flow);
        let live = self.sessions.iter().find(|other| same_inside(&other.flow) && other.outside.0 == address);
        let rest = self.rests.iter().find(|rest| same_inside(&rest.flow) && rest.outside.0 == address);
        let more = usize::from(live.is_none());
        let exceeds =
            |count: usize, more: usize, limit: u32| limit > 0 && more > 0 && count + more > limit as usize;
        let second = self.now / 10;
        let of_tenant = || self.sessions.iter().filter(|other| other.flow.tenant == flow.tenant);
        let begun_by_pod =
            self.begun_by_pod.iter().filter(|begun| **begun == (flow.tenant, flow.pod, second)).count();
        let begun = self.begun.iter().filter(|begun| **begun == (flow.tenant, second)).count();
        let quotas = [
            (self.of_pod(flow).count(), 1, policy.pod_quota.sessions, Refusal::PodSessions),
            (self.ports(self.of_pod(flow)), more, policy.pod_quota.ports, Refusal::PodPorts),
            (begun_by_pod, 1, policy.pod_quota.new_per_second, Refusal::PodRate),
            (of_tenant().count(), 1, policy.tenant_quota.sessions, Refusal::TenantSessions),
            (self.ports(of_tenant()), more, policy.tenant_quota.ports, Refusal::TenantPorts),
            (begun, 1, policy.tenant_quota.new_per_second, Refusal::TenantRate),
        ];
        for (count, more, limit, refusal) in quotas {
            if exceeds(count, more, limit) {
                return Err(refusal);
            }
        }
        let is_taken = |other: &Session| {
            let (mine, others) = (flow.tuple(), other.flow.tuple());
            other.outside.0 == address
                && (mine.protocol, mine.destination) == (others.protocol, others.destination)
        };
        if opened_by == Direction::Inbound && live.is_none()
            || flow.is_portless() && self.sessions.iter().any(is_taken)
        {
            return Err(Refusal::NoPort);
        }
        let port = live.map(|live| live.outside.1).or(rest.map(|rest| rest.outside.1));
        Ok((address, port))
    }

    fn touch(&mut self, at: usize, direction: Direction, flags: u8) {
        let (now, session) = (self.now, &mut self.sessions[at]);
        let (fin, rst) = (flags & 1 != 0, flags & 4 != 0);
        let outbound = direction == Direction::Outbound;
        let closed = |tcp| tcp == Tcp::Open { inside_fin: true, outside_fin: true };
        let before = session.tcp;
        session.tcp = match before {
            Tcp::Opening(_) if rst => before,
            _ if rst && closed(before) => before,
            _ if rst => Tcp::Reset,
            Tcp::Opening(by) if by != direction && flags & 2 != 0 => {
                Tcp::Open { inside_fin: false, outside_fin: false }
            }
            Tcp::Opening(_) => before,
            _ if (closed(before) || before == Tcp::Reset) && flags & 0x17 == 2 => Tcp::Opening(direction),
            Tcp::Reset => Tcp::Open { inside_fin: false, outside_fin: false },
            Tcp::Open { inside_fin, outside_fin } => Tcp::Open {
                inside_fin: inside_fin || fin && outbound,
                outside_fin: outside_fin || fin && !outbound,
            },
        };
        let dying = closed(session.tcp) || session.tcp == Tcp::Reset;
        let idle = match (session.flow.protocol, session.tcp) {
            (Protocol::Udp | Protocol::Portless(_), _) => 3000,
            (Protocol::Icmp, _) => 600,
            (Protocol::Tcp, Tcp::Open { .. }) if !dying => 74400,
            (Protocol::Tcp, _) => 2400,
        };
        if session.flow.protocol != Protocol::Tcp || !dying && !rst || before != session.tcp {
            session.deadline = now + idle;
        }
    }

    fn end(&mut self, at: usize) {
        let gone = self.sessions.swap_remove(at);
        if self.of_pod(gone.flow).next().is_none() {
            let pod = (gone.flow.tenant, gone.flow.pod);
            self.begun_by_pod.retain(|(tenant, pod_number, _)| (*tenant, *pod_number) != pod);
        }
        let rests = self.policy(gone.flow).filtering == Filtering::EndpointIndependent
            && gone.flow.protocol != Protocol::Tcp
            && self.is_mapped(gone.flow);
        let is_last = !self
            .sessions
            .iter()
            .any(|other| other.flow.shares_inside(gone.flow) && other.outside == gone.outside);
        if rests && is_last {
            self.rests.push(Rest { flow: gone.flow, outside: gone.outside, until: self.now + REST });
        }
    }

    fn lets_in(&self, known: &Session, remote: u8) -> bool {
        let of_mapping = |other: &&Session| {
            other.flow.shares_inside(known.flow)
                && other.outside == known.outside
                && other.flow.remote == remote
        };
        self.is_mapped(known.flow)
            && match self.policy(known.flow).filtering {
                Filtering::AddressAndPortDependent => false,
                Filtering::AddressDependent => self.sessions.iter().any(|other| of_mapping(&other)),
                Filtering::EndpointIndependent => true,
            }
    }
}

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
        let second = self.model.now / 10;
        self.model.begun.push((flow.tenant, second));
        self.model.begun_by_pod.push((flow.tenant, flow.pod, second));
        self.model.sessions.push(Session {
            flow,
            outside,
            tcp: Tcp::Opening(opened_by),
            deadline: self.model.now + 2400,
        });
        Some(at)
    }

    fn touch(&mut self, at: At, flow: Flow, direction: Direction, flags: u8) {
        let segment = TcpSegment { flags: TcpFlags(flags), ..TcpSegment::default() };
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
        if flow.is_portless() || !self.model.pool(flow.tenant).contains(&known.outside.0) {
            return;
        }
        let stranger = Flow { remote, remote_port, ..flow };
        if self.model.find(stranger).is_some() {
            return;
        }
        let outside = FiveTuple { source: known.outside.0, source_port: known.outside.1, ..stranger.tuple() };
        let tenant = TenantId(flow.tenant);
        let worker = self.workers.owner(tenant, flow.tuple().source);
        let filtering = self.model.policy(flow).filtering;
        let admitted =
            self.workers.tables[worker].admitted_from_outside(tenant, &outside.reversed(), filtering);
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
        while let Some(at) = self.model.sessions.iter().position(|session| session.deadline <= now) {
            self.model.end(at);
        }
        self.workers.expire(tick(now));
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
        1 => any::<bool>().prop_map(Event::Pool),
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
            policies, has_two: true, sessions: Vec::new(), rests: Vec::new(), paired: HashMap::new(), begun: Vec::new(), begun_by_pod: Vec::new(),
            now: 0,
        };
        let mut test = Test { workers: Workers::new(workers, 600, &POOL, seed), model };
        for event in events {
            match event {
                Event::Outbound(flow, flags) => test.outbound(flow, Direction::Outbound, flags),
                Event::Inbound(flow, flags) => test.inbound(flow, flags),
                Event::Stranger(flow, remote, port) => test.stranger(flow, remote, port),
                Event::Wait(tenths) => test.wait(tenths),
                Event::Remove(flow) => test.remove(flow),
                Event::Pool(has_two) => test.model.has_two = has_two,
            }
            test.check_laws();
        }
        test.wait(100_000);
        test.wait(REST);
        test.workers.assert_empty(&POOL, 3);
    }
}

//! What tables should do, in lists and loops. Time is in tenths of a second.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use conntrack::{Direction, Filtering, FiveTuple, Mapping, Policy, Protocol, Refusal, pair_egress};

/// All egress addresses: those that the first tenant may have, and one of each of the others.
pub(crate) const POOL: [Ipv4Addr; 10] = {
    let mut pool = [Ipv4Addr::new(192, 168, 55, 113); 10];
    let mut at = 1;
    while at < pool.len() {
        pool[at] = Ipv4Addr::from_bits(pool[at - 1].to_bits() + 7);
        at += 1;
    }
    pool
};

/// Which of them the first tenant has, one after the other.
pub(crate) const POOLS: [&[Ipv4Addr]; 5] = [
    POOL.split_at(2).0,
    POOL.split_at(1).0,
    POOL.split_at(8).0,
    POOL.split_at(2).0.split_at(1).1,
    POOL.split_at(8).0.split_at(2).1,
];

/// Addresses that a pod chooses from.
const CHOICES: usize = 5;

pub(crate) const REST: u64 = 1200;

/// One flow of few pods of three tenants, which use the same pod addresses, towards few ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) tenant: u16,
    pub(crate) pod: u8,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) remote: u8,
    pub(crate) remote_port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tcp {
    Opening(Direction),
    Open { inside_fin: bool, outside_fin: bool },
    Reset,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) flow: Flow,
    pub(crate) outside: (Ipv4Addr, u16),
    pub(crate) tcp: Tcp,
    pub(crate) deadline: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    pub(crate) flow: Flow,
    pub(crate) outside: (Ipv4Addr, u16),
    pub(crate) until: u64,
}

/// What should be.
pub(crate) struct Model {
    pub(crate) policies: [Policy; 3],
    pub(crate) pool: usize,
    pub(crate) sessions: Vec<Session>,
    pub(crate) rests: Vec<Rest>,
    /// Egress address of each tenant's pod, as long as it has sessions.
    pub(crate) paired: HashMap<(u16, u8), Ipv4Addr>,
    /// Tenant and second of every session that began.
    pub(crate) begun: Vec<(u16, u64)>,
    /// Tenant, pod and second of those of pods that have had sessions since.
    pub(crate) begun_by_pods: Vec<(u16, u8, u64)>,
    pub(crate) now: u64,
}

impl Flow {
    pub(crate) fn tuple(self) -> FiveTuple {
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
    pub(crate) fn shares_inside(self, other: Self) -> bool {
        let (mine, others) = (self.tuple(), other.tuple());
        (self.tenant, mine.source, mine.source_port, mine.protocol)
            == (other.tenant, others.source, others.source_port, others.protocol)
    }

    pub(crate) fn is_portless(self) -> bool {
        matches!(self.protocol, Protocol::Portless(_))
    }
}

impl Model {
    pub(crate) fn pool(&self, tenant: u16) -> &'static [Ipv4Addr] {
        match tenant {
            0 => POOLS[self.pool],
            1 => &POOL[8..9],
            _ => &POOL[9..],
        }
    }

    pub(crate) fn policy(&self, flow: Flow) -> Policy {
        self.policies[usize::from(flow.tenant)]
    }

    pub(crate) fn is_mapped(&self, flow: Flow) -> bool {
        self.policy(flow).mapping == Mapping::EndpointIndependent && !flow.is_portless()
    }

    pub(crate) fn find(&self, flow: Flow) -> Option<usize> {
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
                (
                    session.flow.tenant,
                    tuple.protocol,
                    tuple.source,
                    tuple.source_port,
                    session.outside.0,
                    whole,
                )
            })
            .collect();
        holders.len()
    }

    /// Returns the egress address that a pod without one should get: of those that it ranks best, the best with the
    /// fewest pods.
    fn pair(&self, flow: Flow, pool: &[Ipv4Addr]) -> Ipv4Addr {
        let pods_of = |egress: Ipv4Addr| {
            let has_sessions = |pod: &(u16, u8)| {
                self.sessions.iter().any(|session| (session.flow.tenant, session.flow.pod) == *pod)
            };
            self.paired.iter().filter(|(pod, paired)| **paired == egress && has_sessions(pod)).count()
        };
        let mut left = pool.to_vec();
        let mut best: Option<(usize, Ipv4Addr)> = None;
        for _ in 0..CHOICES.min(pool.len()) {
            let next = pair_egress(flow.tuple().source, &left, |_| 0).unwrap();
            left.retain(|egress| *egress != next);
            if best.is_none_or(|(pods, _)| pods_of(next) < pods) {
                best = Some((pods_of(next), next));
            }
        }
        best.unwrap().1
    }

    /// Returns the egress address, and the port if it is given by a mapping, that a session should have.
    pub(crate) fn admit(&self, flow: Flow, opened_by: Direction) -> Result<(Ipv4Addr, Option<u16>), Refusal> {
        let policy = self.policy(flow);
        let pool = self.pool(flow.tenant);
        let paired =
            self.paired.get(&(flow.tenant, flow.pod)).copied().filter(|address| pool.contains(address));
        let paired = paired.filter(|_| self.of_pod(flow).next().is_some());
        let address = paired.unwrap_or_else(|| self.pair(flow, pool));
        let same_inside = |other: &Flow| self.is_mapped(flow) && other.shares_inside(flow);
        let live = self.sessions.iter().find(|other| same_inside(&other.flow) && other.outside.0 == address);
        let rest = self.rests.iter().find(|rest| same_inside(&rest.flow) && rest.outside.0 == address);
        let more = usize::from(live.is_none());
        let exceeds =
            |count: usize, more: usize, limit: u32| limit > 0 && more > 0 && count + more > limit as usize;
        let second = self.now / 10;
        let of_tenant = || self.sessions.iter().filter(|other| other.flow.tenant == flow.tenant);
        let begun_by_pod =
            self.begun_by_pods.iter().filter(|begun| **begun == (flow.tenant, flow.pod, second)).count();
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
        let is_astray = opened_by == Direction::Inbound && live.is_none();
        if is_astray || flow.is_portless() && self.sessions.iter().any(is_taken) {
            return Err(Refusal::NoPort);
        }
        let port = live.map(|live| live.outside.1).or(rest.map(|rest| rest.outside.1));
        Ok((address, port))
    }

    pub(crate) fn touch(&mut self, at: usize, direction: Direction, flags: u8) {
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

    pub(crate) fn end(&mut self, at: usize) {
        let gone = self.sessions.swap_remove(at);
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
        if self.of_pod(gone.flow).next().is_none() {
            self.begun_by_pods.retain(|begun| (begun.0, begun.1) != (gone.flow.tenant, gone.flow.pod));
        }
    }

    pub(crate) fn lets_in(&self, known: &Session, remote: u8) -> bool {
        let of_mapping = |other: &&Session| {
            other.flow.shares_inside(known.flow)
                && other.outside == known.outside
                && other.flow.remote == remote
        };
        let paired = self.paired.get(&(known.flow.tenant, known.flow.pod));
        self.is_mapped(known.flow)
            && paired == Some(&known.outside.0)
            && match self.policy(known.flow).filtering {
                Filtering::AddressAndPortDependent => false,
                Filtering::AddressDependent => self.sessions.iter().any(|other| of_mapping(&other)),
                Filtering::EndpointIndependent => true,
            }
    }
}

//! Makes sessions: pairing, quota, mapping, port.

use std::net::Ipv4Addr;

use crate::anchor::{Anchor, Role, mapping_key_inside, mapping_key_outside, peer_key, pod_key};
use crate::blocks::EgressPorts;
use crate::checksum::ChecksumDelta;
use crate::flow::{Direction, FiveTuple, Key, Portless, Protocol, Scope, Tail, TenantId};
use crate::journal::Event;
use crate::lending::{Loan, LoanRequest};
use crate::mapping::rests;
use crate::pairing::pair_egress;
use crate::policy::{Filtering, Mapping, Policy, Quota};
use crate::session::{PortHolder, Session, SessionId};
use crate::slab::Kind;
use crate::table::{Conntrack, Refusal, Revision};
use crate::tcp::{Expected, TcpState};
use crate::time::{Tick, Timeouts};

/// A session that shall be made for the first packet of a flow that has none.
#[derive(Clone, Copy, Debug)]
pub struct Admission<'a> {
    /// Tenant of the packet.
    pub tenant: TenantId,
    /// Who opens the session. From outside only what [`Conntrack::admitted_from_outside`] allows.
    pub opened_by: Direction,
    /// The tuple of its packets as they come from the pod.
    pub tuple: FiveTuple,
    /// Egress addresses of the tenant.
    pub egress_addresses: &'a [Ipv4Addr],
    /// What the tenant's sessions may do.
    pub policy: &'a Policy,
    /// Timeouts.
    pub timeouts: &'a Timeouts,
    /// A port that another worker has lent for this session, if it still fits.
    pub loan: Option<Loan>,
    /// What the session is checked under, and where its packets go.
    pub revision: Revision,
}

/// What an admission has found of its pod and mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ground {
    pub(crate) pod: Option<u32>,
    pub(crate) outside: Ipv4Addr,
    pub(crate) mapping: Option<u32>,
    /// Ports that the pod gets by the session: one, if its mapping has none yet.
    pub(crate) new_ports: u32,
}

/// The port of a session that shall be made, and the worker that lends it, if one does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundPort {
    pub(crate) port: u16,
    pub(crate) lender: Option<u16>,
}

impl Conntrack {
    /// Makes a session.
    ///
    /// The pod keeps the egress address that it has as long as it has sessions, else it gets the one that it asked for
    /// another worker's port of, or that [`pair_egress`] gives (RFC 4787 REQ-2). With [`Mapping::EndpointIndependent`] the session takes the port of its
    /// mapping, or makes the mapping.
    ///
    /// # Errors
    /// Why there is none. Nothing has changed then.
    #[cold]
    pub fn admit(&mut self, admission: &Admission<'_>, now: Tick) -> Result<SessionId, Refusal> {
        self.date(now);
        let ground = self.survey(admission)?;
        self.check_share(admission.tenant, needed(admission, ground))?;
        let second = now.whole_seconds();
        self.check_pod_quota(admission, ground, second)?;
        let quota = &admission.policy.tenant_quota;
        let counted = self.shared.tenant(admission.tenant).begin(quota, ground.new_ports, second)?;
        match self.find_port(admission, ground) {
            Ok(port) => {
                let id = self.begin(admission, ground, port, now);
                self.note(|table| Event::Began(table.translation(table.session(id))));
                Ok(id)
            }
            Err(refusal) => {
                self.shared.tenant(admission.tenant).undo(quota, ground.new_ports, counted);
                Err(refusal)
            }
        }
    }

    /// Returns the inside address and port that an unexpected packet from outside may open a session to: those of the
    /// mapping of its destination, if filtering lets its source in (RFC 4787 section 5). `wire` is the packet's tuple.
    /// Nobody is let in to a mapping by an egress address that its pod had before, nor to one from before its tenant's
    /// mapping became dependent on the other end.
    pub fn admitted_from_outside(
        &self,
        tenant: TenantId,
        wire: &FiveTuple,
        policy: &Policy,
    ) -> Option<(Ipv4Addr, u16)> {
        let outside = (wire.destination, wire.destination_port);
        let mapping = self.find_entry(&mapping_key_outside(tenant, wire.protocol, outside))?;
        let mapping = self.slab.anchor(mapping);
        let pod = self.find_entry(&pod_key(tenant, mapping.inside));
        let is_alive = matches!(mapping.role, Role::Mapping { .. })
            && mapping.sessions > 0
            && pod.is_some_and(|pod| self.slab.anchor(pod).outside == mapping.outside);
        let is_let_in = match (policy.mapping, policy.filtering) {
            (Mapping::AddressAndPortDependent, _) => false,
            (Mapping::EndpointIndependent, Filtering::AddressAndPortDependent) => false,
            (Mapping::EndpointIndependent, Filtering::AddressDependent) => {
                self.find_entry(&peer_key(tenant, &wire.reversed())).is_some()
            }
            (Mapping::EndpointIndependent, Filtering::EndpointIndependent) => true,
        };
        (is_alive && is_let_in).then_some((mapping.inside, mapping.inside_port))
    }

    /// Returns the worker that a port of an egress address that is a mapping, or is lent as one, belongs to; none when it
    /// is neither, or is this worker's own.
    pub fn lent_mapping(&self, tenant: TenantId, wire: &FiveTuple) -> Option<u16> {
        if self.mappings == 0 {
            return None;
        }
        let outside = (wire.destination, wire.destination_port);
        let entry = self.find_entry(&mapping_key_outside(tenant, wire.protocol, outside))?;
        match self.slab.anchor(entry).role {
            Role::LentMapping { borrower } => Some(borrower),
            Role::Pod | Role::Mapping { .. } | Role::Peer | Role::LentPort { .. } => None,
        }
    }

    fn survey(&self, admission: &Admission<'_>) -> Result<Ground, Refusal> {
        let Admission { tenant, tuple, egress_addresses, .. } = *admission;
        let pod = self.lookup().find_pod(self.hash_of_inside(tenant, tuple.source), tenant, tuple.source);
        let paired =
            pod.map(|pod| self.slab.anchor(pod).outside).filter(|paired| egress_addresses.contains(paired));
        let outside = paired
            .or_else(|| self.asked_for(admission))
            .or_else(|| pair_egress(tuple.source, egress_addresses, |egress| self.pods_of(egress)))
            .ok_or(Refusal::NoPort)?;
        let mapping = match admission.policy.mapping {
            Mapping::AddressAndPortDependent => None,
            Mapping::EndpointIndependent if !has_ports(tuple.protocol) => None,
            Mapping::EndpointIndependent => {
                let inside = (tuple.source, tuple.source_port);
                self.find_entry(&mapping_key_inside(tenant, tuple.protocol, inside, outside))
            }
        };
        let has_port = mapping.is_some_and(|mapping| self.slab.anchor(mapping).sessions > 0);
        Ok(Ground { pod, outside, mapping, new_ports: u32::from(!has_port) })
    }

    /// Returns the egress address of the port that was lent for a session.
    fn asked_for(&self, admission: &Admission<'_>) -> Option<Ipv4Addr> {
        let outside = admission.loan.filter(|loan| self.is_valid(loan))?.request.outside_tuple.source;
        admission.egress_addresses.contains(&outside).then_some(outside)
    }

    fn pods_of(&self, egress: Ipv4Addr) -> u32 {
        self.shared.ports(egress).map_or(0, EgressPorts::pods)
    }

    fn check_pod_quota(&self, admission: &Admission<'_>, ground: Ground, second: u32) -> Result<(), Refusal> {
        let Quota { sessions, ports, new_per_second } = admission.policy.pod_quota;
        let Some(pod) = ground.pod.map(|pod| self.slab.anchor(pod)) else { return Ok(()) };
        let begun = if pod.tally.second == second { pod.tally.begun } else { 0 };
        let exceeds = |count: u32, more: u32, limit: u32| limit > 0 && more > 0 && count + more > limit;
        match () {
            () if exceeds(pod.sessions, 1, sessions) => Err(Refusal::PodSessions),
            () if exceeds(pod.tally.ports, ground.new_ports, ports) => Err(Refusal::PodPorts),
            () if exceeds(begun, 1, new_per_second) => Err(Refusal::PodRate),
            () => Ok(()),
        }
    }

    fn find_port(&mut self, admission: &Admission<'_>, ground: Ground) -> Result<FoundPort, Refusal> {
        let Admission { tenant, tuple, loan, .. } = *admission;
        let outside_tuple = FiveTuple { source: ground.outside, ..tuple };
        if let Some(mapping) = ground.mapping {
            let port = self.slab.anchor(mapping).outside_port;
            let outside_tuple = FiveTuple { source_port: port, ..outside_tuple };
            let key = Key::new(tenant, Direction::Inbound, &outside_tuple.reversed());
            // A session from before the mapping may have the port towards this destination.
            return match self.find_entry(&key) {
                None => Ok(FoundPort { port, lender: None }),
                Some(_) => Err(Refusal::NoPort),
            };
        }
        if admission.opened_by == Direction::Inbound {
            // The mapping that let it in is by an address that the pod no longer has.
            return Err(Refusal::NoPort);
        }
        let is_mapping = is_mapped(admission);
        let request = LoanRequest { borrower: self.party(), tenant, outside_tuple, is_mapping };
        match loan.filter(|loan| loan.request == request && self.is_valid(loan)) {
            Some(loan) => Ok(FoundPort { port: loan.port, lender: Some(loan.lender.worker) }),
            None => Ok(FoundPort { port: self.choose_port(request)?, lender: None }),
        }
    }

    pub(crate) fn begin(
        &mut self,
        admission: &Admission<'_>,
        ground: Ground,
        FoundPort { port, lender }: FoundPort,
        now: Tick,
    ) -> SessionId {
        let outside_tuple = FiveTuple { source: ground.outside, source_port: port, ..admission.tuple };
        let mut session = prepare(admission, &outside_tuple, now);
        self.is_changing = true;
        session.port = match (is_mapped(admission), lender) {
            (true, _) => {
                self.join_mapping(admission, ground.mapping, &outside_tuple, lender);
                PortHolder::Mapping { has_peer: admission.policy.filtering == Filtering::AddressDependent }
            }
            (false, Some(lender)) => PortHolder::Lender(lender),
            (false, None) => {
                self.take_port(admission.tenant, &outside_tuple);
                PortHolder::Session
            }
        };
        if session.has_peer() {
            self.join_peer(admission.tenant, &outside_tuple);
        }
        self.join_pod(admission, ground, now);
        let class = session.class;
        let id = self.put_session(session);
        self.expiry.append(self.slab.entries_mut(), id, class);
        self.begun[id as usize] = now;
        self.live += 1;
        self.is_changing = false;
        self.replicate(SessionId(id), rests(admission));
        SessionId(id)
    }

    fn join_pod(&mut self, admission: &Admission<'_>, ground: Ground, now: Tick) {
        let Admission { tenant, tuple, .. } = *admission;
        let id = ground.pod.unwrap_or_else(|| {
            self.count_pod(ground.outside, EgressPorts::add_pod);
            self.put_entry(Kind::Anchor(Anchor::pod(tenant, tuple.source, ground.outside)))
        });
        let former = std::mem::replace(&mut self.slab.anchor_mut(id).outside, ground.outside);
        if former != ground.outside {
            self.count_pod(former, EgressPorts::remove_pod);
            self.count_pod(ground.outside, EgressPorts::add_pod);
        }
        let pod = self.slab.anchor_mut(id);
        pod.sessions += 1;
        pod.tally.ports += ground.new_ports;
        if pod.tally.second != now.whole_seconds() {
            (pod.tally.second, pod.tally.begun) = (now.whole_seconds(), 0);
        }
        pod.tally.begun += 1;
    }

    /// Counts a pod in or out at an egress address.
    pub(crate) fn count_pod(&self, egress: Ipv4Addr, count: impl FnOnce(&EgressPorts)) {
        if let Some(ports) = self.shared.ports(egress) {
            count(ports);
        }
    }

    fn join_peer(&mut self, tenant: TenantId, outside_tuple: &FiveTuple) {
        let id = self.find_entry(&peer_key(tenant, outside_tuple)).unwrap_or_else(|| {
            let nobody = (Ipv4Addr::UNSPECIFIED, 0);
            self.put_entry(Kind::Anchor(Anchor::of_port(tenant, Role::Peer, nobody, outside_tuple)))
        });
        self.slab.anchor_mut(id).sessions += 1;
    }
}

/// Returns how many entries a session takes, at most.
fn needed(admission: &Admission<'_>, ground: Ground) -> u32 {
    let makes_mapping = is_mapped(admission) && ground.mapping.is_none();
    1 + u32::from(ground.pod.is_none())
        + u32::from(makes_mapping)
        + u32::from(admission.policy.filtering == Filtering::AddressDependent)
}

/// Tells whether a session has an endpoint-independent mapping. What has no ports has none to map.
pub(crate) fn is_mapped(admission: &Admission<'_>) -> bool {
    admission.policy.mapping == Mapping::EndpointIndependent && has_ports(admission.tuple.protocol)
}

pub(crate) fn has_ports(protocol: Protocol) -> bool {
    match protocol {
        Protocol::Icmp | Protocol::Tcp | Protocol::Udp => true,
        Protocol::Portless(_) => false,
    }
}

fn prepare(admission: &Admission<'_>, outside_tuple: &FiveTuple, now: Tick) -> Session {
    let Admission { tenant, tuple, opened_by, timeouts, revision, .. } = *admission;
    let header_delta = ChecksumDelta::default().replace_address(tuple.source, outside_tuple.source);
    let base = match tuple.protocol {
        Protocol::Tcp | Protocol::Udp | Protocol::Portless(Portless::UdpLite) => header_delta,
        Protocol::Icmp
        | Protocol::Portless(Portless::IpIp | Portless::Gre | Portless::Esp | Portless::Sctp) => {
            ChecksumDelta::default()
        }
    };
    let tcp = TcpState::opened_by(opened_by);
    Session {
        inside: tuple.source,
        remote: tuple.destination,
        outside: outside_tuple.source,
        tail: Tail::new(Scope::Session, tenant, tuple.protocol.number()),
        outside_port: outside_tuple.source_port,
        remote_port: tuple.destination_port,
        inside_port: tuple.source_port,
        tcp,
        class: timeouts.class_of(tuple.protocol, tcp, tuple.destination_port),
        port: PortHolder::Session,
        header_delta,
        transport_delta: base.replace(tuple.source_port, outside_tuple.source_port),
        epoch: revision.epoch,
        last_seen: now,
        next_hops: revision.next_hops,
        expected: Expected::default(),
    }
}

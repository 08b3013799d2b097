//! What holds of every frame that the gateway sends, and of its sessions, whatever came in.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use conntrack::blocks::EgressPorts;
use conntrack::{Conntrack, FiveTuple, Session, Shared, TenantId};
use ipnet::Ipv4Net;
use macaddr::MacAddr6;

use super::frames::{Header, is_error, is_sealed, read_address, read_u16};
use crate::snapshot::{Side, SnapshotSpec, TenantSpec};

const ARP_SENDER: usize = 28;

/// What the snapshots allowed, by epoch.
#[derive(Debug, Default)]
pub(crate) struct Laws {
    by_epoch: HashMap<u64, Allowed>,
    shared: Vec<Arc<Shared>>,
    tenants: HashSet<TenantId>,
}

#[derive(Debug)]
struct Allowed {
    egress_addresses: Vec<Ipv4Addr>,
    gateway_addresses: Vec<Ipv4Addr>,
    inside_mac: MacAddr6,
    tenants: Vec<AllowedTenant>,
    mtus: [u16; 2],
}

#[derive(Debug)]
struct AllowedTenant {
    id: TenantId,
    mac: MacAddr6,
    sources: Vec<Ipv4Net>,
    is_draining: bool,
}

/// Sessions, by how they look from outside.
pub(crate) type Seen = HashSet<(TenantId, FiveTuple)>;

impl Laws {
    /// Notes what a snapshot allows, and what workers share under it.
    pub(crate) fn learn(&mut self, spec: &SnapshotSpec, shared: Arc<Shared>) {
        let tenants = || spec.tenants.iter();
        self.shared.push(shared);
        self.tenants.extend(tenants().map(|tenant| tenant.id));
        let allowed = Allowed {
            egress_addresses: tenants().flat_map(|tenant| tenant.egress_addresses.clone()).collect(),
            gateway_addresses: tenants().map(|tenant| tenant.gateway_address).collect(),
            inside_mac: spec.inside.mac,
            tenants: tenants().map(AllowedTenant::of).collect(),
            mtus: [spec.inside.mtu, spec.outside.mtu],
        };
        self.by_epoch.insert(u64::from(spec.epoch.0), allowed);
    }

    /// Checks a frame that a worker sent under the snapshot of an epoch. `was_sealed` says that no frame with a wrong
    /// checksum had come in.
    pub(crate) fn check(&self, epoch: u64, side: Side, frame: &[u8], was_sealed: bool) {
        let allowed = &self.by_epoch[&epoch];
        match frame[12..14] {
            [8, 0] => allowed.check_packet(side, frame, was_sealed),
            [8, 6] => allowed.check_announcement(side, frame),
            _ => panic!("neither IPv4 nor ARP was sent: {frame:02x?}"),
        }
    }

    /// Checks what a turn under the snapshot of an epoch has made of a worker's sessions: those that were checked are of
    /// sources that their tenant may use, and a tenant that drains has none that it had not before.
    pub(crate) fn check_turn(&self, epoch: u64, before: &Seen, table: &Conntrack) {
        for session in table.scan(0, table.capacity()) {
            let tenant = self.by_epoch[&epoch].tenant(session.tenant());
            let (inside, outside) = (session.inside_tuple(), session.outside_tuple());
            if u64::from(session.epoch().0) == epoch {
                assert!(tenant.is_some_and(|it| it.has(inside.source)), "{inside:?} was checked");
            }
            let is_draining = tenant.is_some_and(|tenant| tenant.is_draining);
            let is_old = before.contains(&(session.tenant(), outside));
            assert!(is_old || !is_draining, "{inside:?} began while its tenant drains");
        }
    }

    /// Checks that a frame that a worker sent outside is of a session, and from a source that the session's tenant may
    /// use. What has no ports, or is no whole packet, is not looked at.
    pub(crate) fn check_origin(&self, epoch: u64, frame: &[u8], table: &Conntrack) {
        let Some(ip) = Header::of_frame(frame).filter(|ip| !ip.is_fragment && matches!(ip.protocol, 6 | 17))
        else {
            return;
        };
        let source = (read_address(frame, ip.at + 12), read_u16(frame, ip.payload_at));
        let destination = (read_address(frame, ip.at + 16), read_u16(frame, ip.payload_at + 2));
        let sent = |tuple: &FiveTuple| {
            (tuple.source, tuple.source_port) == source
                && (tuple.destination, tuple.destination_port) == destination
        };
        let mut sessions = table.scan(0, table.capacity()).filter(|it| sent(&it.outside_tuple()));
        let may_send = |session: &Session| {
            let tenant = self.by_epoch[&epoch].tenant(session.tenant());
            tenant.is_some_and(|tenant| tenant.has(session.inside_tuple().source))
        };
        assert!(sessions.any(may_send), "nobody may have sent {frame:02x?}");
    }

    /// Checks when all sessions have ended that nobody has a port any more, and that no tenant uses any of its quota.
    pub(crate) fn check_end(&self) {
        let egress_addresses = self.by_epoch.values().flat_map(|allowed| &allowed.egress_addresses);
        for address in egress_addresses.collect::<HashSet<_>>() {
            let is_free = |shared: &Arc<Shared>| shared.ports(*address).is_none_or(EgressPorts::is_free);
            assert!(self.shared.iter().all(is_free), "no port of {address} is in use");
        }
        for shared in &self.shared {
            let used = self.tenants.iter().map(|tenant| shared.tenant(*tenant));
            let used: Vec<_> = used.map(|used| (used.sessions(), used.ports())).collect();
            assert!(
                used.iter().all(|used| *used == (0, 0)),
                "sessions and ports of ended sessions: {used:?}"
            );
        }
    }
}

/// Tells whether a packet is an ICMP error or a TCP RST.
fn may_be_refusal(ip: &Header, frame: &[u8]) -> bool {
    match ip.protocol {
        _ if ip.is_fragment => false,
        1 => is_error(frame[ip.payload_at]),
        6 => frame[ip.payload_at + 13] & 4 != 0,
        _ => false,
    }
}

/// Returns the sessions of a worker.
pub(crate) fn see_sessions(table: &Conntrack) -> Seen {
    let sessions = table.scan(0, table.capacity());
    sessions.map(|session| (session.tenant(), session.outside_tuple())).collect()
}

/// Checks that no two sessions of a tenant, at any worker, look the same from outside.
pub(crate) fn check_sessions<'a>(tables: impl Iterator<Item = &'a Conntrack>) {
    let mut seen = HashSet::new();
    for session in tables.flat_map(|table| table.scan(0, table.capacity())) {
        let outside = (session.tenant(), session.outside_tuple());
        assert!(seen.insert(outside), "two sessions are {outside:?}");
    }
}

impl AllowedTenant {
    fn of(tenant: &TenantSpec) -> Self {
        let TenantSpec { id, gateway_mac: mac, is_draining, .. } = *tenant;
        Self { id, mac, sources: tenant.sources.clone(), is_draining }
    }

    fn has(&self, source: Ipv4Addr) -> bool {
        self.sources.iter().any(|network| network.contains(&source))
    }
}

impl Allowed {
    fn tenant(&self, id: TenantId) -> Option<&AllowedTenant> {
        self.tenants.iter().find(|tenant| tenant.id == id)
    }

    fn check_packet(&self, side: Side, frame: &[u8], was_sealed: bool) {
        let ip = Header::of_frame(frame).expect("what is sent is a whole packet");
        assert_eq!(ip.end, frame.len(), "no byte is sent that is not the packet's");
        assert!(ip.end - ip.at <= usize::from(self.mtus[side.index()]), "it fits the link");
        assert!(frame[ip.at + 8] > 0, "time to live");
        assert_eq!(conntrack::checksum::checksum(0, &frame[ip.at..ip.payload_at]), 0, "header checksum");
        assert!(!was_sealed || is_sealed(frame), "checksums that were right stay right: {frame:02x?}");
        match side {
            Side::Inside => self.check_tenant(&ip, frame),
            Side::Outside => self.check_leak(&ip, frame),
        }
    }

    /// What a tenant's MAC sends is for that tenant's pods; but anybody is told that a packet was refused.
    fn check_tenant(&self, ip: &Header, frame: &[u8]) {
        let mac = &frame[6..12];
        let tenant = self.tenants.iter().find(|tenant| tenant.mac.as_bytes() == mac);
        assert!(tenant.is_some() || self.inside_mac.as_bytes() == mac, "{mac:02x?} sent inside");
        let destination = read_address(frame, ip.at + 16);
        let is_theirs = tenant.is_some_and(|tenant| tenant.has(destination));
        assert!(is_theirs || may_be_refusal(ip, frame), "a packet of {mac:02x?} went to {destination}");
    }

    /// No inside address gets out: not as source, and not as receiver of what an ICMP error quotes.
    fn check_leak(&self, ip: &Header, frame: &[u8]) {
        let source = read_address(frame, ip.at + 12);
        assert!(self.egress_addresses.contains(&source), "{source} left by the outside");
        if ip.protocol == 1 && !ip.is_fragment && is_error(frame[ip.payload_at]) {
            let quoted = read_address(frame, ip.payload_at + 8 + 16);
            assert!(self.egress_addresses.contains(&quoted), "an error about a packet to {quoted} left");
        }
    }

    fn check_announcement(&self, side: Side, frame: &[u8]) {
        let sender = read_address(frame, ARP_SENDER);
        let addresses = match side {
            Side::Inside => &self.gateway_addresses,
            Side::Outside => &self.egress_addresses,
        };
        assert!(addresses.contains(&sender), "{sender} is announced on the {}", side.name());
    }
}

//! Which tenant a packet belongs to and which way it goes, or why not.

use std::net::Ipv4Addr;

use conntrack::{Direction, FiveTuple, TenantId};
use macaddr::MacAddr6;

use crate::parse::{ETHERNET_BYTES, Packet, Transport};
use crate::snapshot::{Side, Snapshot, SourceKind};
use crate::verdict::DropReason;

/// Tenant and direction of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Tenant.
    pub tenant: TenantId,
    /// Direction.
    pub direction: Direction,
}

/// Classifies a packet: inside by destination MAC and source address, outside by destination address.
///
/// # Errors
/// The reason to drop it; where the tenant is known, the tenant too.
pub fn classify(
    snapshot: &Snapshot,
    side: Side,
    packet: &Packet,
) -> Result<Class, (DropReason, Option<TenantId>)> {
    match side {
        Side::Inside => classify_inside(snapshot, packet),
        Side::Outside => classify_outside(snapshot, packet),
    }
}

fn classify_inside(snapshot: &Snapshot, packet: &Packet) -> Result<Class, (DropReason, Option<TenantId>)> {
    let source = packet.ip.source;
    let Some(tenant) = snapshot.tenant_by_mac(packet.destination_mac) else {
        let reason = if snapshot.is_pod(source) { DropReason::Leak } else { DropReason::UnknownTenant };
        return Err((reason, None));
    };
    let drop = |reason| Err((reason, Some(tenant)));
    if is_martian(packet.ip.destination) || is_martian(source) {
        return drop(DropReason::MartianAddress);
    }
    if is_misaddressed(packet) {
        return drop(DropReason::MisaddressedError);
    }
    // An error is matched by the packet that it quotes, whatever router sent it (RFC 5508 REQ-5).
    let is_allowed = match packet.transport {
        Transport::Flow(_) | Transport::Fragment(_) => snapshot.may_send_from(tenant, source),
        Transport::Error(_) => true,
    };
    if !is_allowed {
        return drop(refuse_source(snapshot, tenant, source));
    }
    Ok(Class { tenant, direction: Direction::Outbound })
}

/// Tells whether a packet of a flow, whose tenant is known, is classified as one of it.
pub fn is_allowed(snapshot: &Snapshot, class: Class, tuple: &FiveTuple) -> bool {
    !is_martian(tuple.source)
        && match class.direction {
            Direction::Outbound => {
                !is_martian(tuple.destination) && snapshot.may_send_from(class.tenant, tuple.source)
            }
            Direction::Inbound => true,
        }
}

/// Returns why a tenant may not send from an address.
#[cold]
fn refuse_source(snapshot: &Snapshot, tenant: TenantId, source: Ipv4Addr) -> DropReason {
    let kind = snapshot.tenant(tenant).map_or(SourceKind::default(), |tenant| tenant.source_kind);
    let is_pod = snapshot.is_pod(source);
    let is_node = !is_pod && snapshot.is_on_link(Side::Inside, source);
    match kind {
        SourceKind::LivePods if is_pod => DropReason::UnknownPod,
        SourceKind::Nodes if is_pod => DropReason::PodSource,
        SourceKind::Networks | SourceKind::LivePods if is_node => DropReason::NodeSource,
        SourceKind::Networks | SourceKind::LivePods | SourceKind::Nodes => DropReason::UnknownSource,
    }
}

fn classify_outside(snapshot: &Snapshot, packet: &Packet) -> Result<Class, (DropReason, Option<TenantId>)> {
    let tenant = snapshot.tenant_by_egress(packet.ip.destination).ok_or((DropReason::UnknownTenant, None))?;
    if is_martian(packet.ip.source) {
        return Err((DropReason::MartianAddress, Some(tenant)));
    }
    if is_misaddressed(packet) {
        return Err((DropReason::MisaddressedError, Some(tenant)));
    }
    Ok(Class { tenant, direction: Direction::Inbound })
}

/// Tells whether a packet is an ICMP error to somebody else than the sender of what it quotes (RFC 1122 section
/// 3.2.2). Its session would lead it astray.
fn is_misaddressed(packet: &Packet) -> bool {
    match packet.transport {
        Transport::Flow(_) | Transport::Fragment(_) => false,
        Transport::Error(quoted) => quoted.ip.source != packet.ip.destination,
    }
}

/// Returns the tenant that a frame which cannot be read to its end would belong to.
#[cold]
pub fn tenant_of_broken(snapshot: &Snapshot, side: Side, frame: &[u8]) -> Option<TenantId> {
    match side {
        Side::Inside => {
            let mac: [u8; 6] = frame.get(..6)?.try_into().ok()?;
            snapshot.tenant_by_mac(MacAddr6::from(mac))
        }
        Side::Outside => {
            let destination: [u8; 4] =
                frame.get(ETHERNET_BYTES + 16..ETHERNET_BYTES + 20)?.try_into().ok()?;
            snapshot.tenant_by_egress(Ipv4Addr::from(destination))
        }
    }
}

/// Tells whether a router may not forward packets from or to an address (RFC 1812 section 5.3.7, RFC 6890).
pub fn is_martian(address: Ipv4Addr) -> bool {
    address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.octets()[0] == 0
        || address.octets()[0] >= 240
}

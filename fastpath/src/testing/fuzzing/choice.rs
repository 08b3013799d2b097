//! Choices read from any bytes, one byte each, so that a fuzzer that changes a byte changes one choice.

use std::net::Ipv4Addr;

use arbitrary::{Result, Unstructured};
use conntrack::{Filtering, Mapping, Policy, Quota};
use ipnet::Ipv4Net;
use macaddr::MacAddr6;

use super::frames::{Content, Draft, ErrorDraft};
use crate::snapshot::{MidStream, RouteSpec, Side, SnapshotSpec, SourceKind, UnsolicitedSyn};
use crate::testing::{BLUE_MAC, INSIDE_MAC, NODE_MAC, OUTSIDE_MAC, ROUTER_MAC, SERVER_MAC, gateway};

const RED_MAC: MacAddr6 = MacAddr6::new(2, 0x53, 192, 168, 99, 14);
const GREEN_MAC: MacAddr6 = MacAddr6::new(2, 0x53, 192, 168, 99, 15);

/// Who sends inside: pods, some without a way back, a node, and some that may not.
const INSIDERS: [Ipv4Addr; 8] = [
    Ipv4Addr::new(10, 132, 0, 5),
    Ipv4Addr::new(10, 132, 0, 6),
    Ipv4Addr::new(10, 132, 0, 1),
    Ipv4Addr::new(192, 168, 99, 21),
    Ipv4Addr::new(10, 132, 1, 7),
    Ipv4Addr::new(172, 16, 0, 5),
    Ipv4Addr::new(100, 64, 0, 3),
    Ipv4Addr::new(192, 168, 55, 113),
];

/// Who is outside: hosts near and far, one that never resolves, the gateway, and addresses that nobody may use.
const OUTSIDERS: [Ipv4Addr; 8] = [
    Ipv4Addr::new(192, 168, 55, 13),
    Ipv4Addr::new(198, 51, 100, 7),
    Ipv4Addr::new(192, 168, 55, 20),
    Ipv4Addr::new(192, 168, 55, 114),
    Ipv4Addr::new(192, 168, 55, 113),
    Ipv4Addr::new(192, 168, 55, 12),
    Ipv4Addr::new(10, 132, 0, 5),
    Ipv4Addr::new(224, 0, 0, 1),
];

/// Egress addresses of one snapshot or another, and one that is none.
const EGRESSES: [Ipv4Addr; 6] = [
    Ipv4Addr::new(192, 168, 55, 113),
    Ipv4Addr::new(192, 168, 55, 114),
    Ipv4Addr::new(192, 168, 55, 115),
    Ipv4Addr::new(192, 168, 55, 120),
    Ipv4Addr::new(192, 168, 55, 121),
    Ipv4Addr::new(192, 168, 55, 12),
];

/// MACs that frames inside are addressed to: tenants', the gateway's own, everybody's and nobody's.
const INSIDE_MACS: [MacAddr6; 8] = [
    BLUE_MAC,
    BLUE_MAC,
    RED_MAC,
    RED_MAC,
    GREEN_MAC,
    INSIDE_MAC,
    MacAddr6::broadcast(),
    MacAddr6::new(2, 0x53, 192, 168, 99, 77),
];

const PORTS: [u16; 8] = [40000, 53, 80, 443, 40001, 1, 1023, 1024];
const SIZES: [usize; 8] = [0, 1, 8, 17, 100, 548, 1372, 1480];
const MTUS: [u16; 4] = [1500, 1400, 1280, 576];
const TTLS: [u8; 8] = [64, 64, 64, 64, 255, 2, 1, 0];

/// Flags and offset of a header: whole packets, and fragments that may fit together or overlap.
const FRAGMENTS: [u16; 8] = [0, 0, 0x4000, 0x4000, 0x2000, 0x2001, 0x00b9, 0x1fff];

/// Returns one of some values.
pub(crate) fn pick<T: Copy>(u: &mut Unstructured<'_>, values: &[T]) -> Result<T> {
    Ok(values[usize::from(u.arbitrary::<u8>()?) % values.len()])
}

/// Returns the bits of a byte.
pub(crate) fn bits(u: &mut Unstructured<'_>) -> Result<[bool; 8]> {
    let byte: u8 = u.arbitrary()?;
    Ok(std::array::from_fn(|bit| byte >> bit & 1 == 1))
}

/// Returns a packet that might come in on a side.
pub(crate) fn draft(u: &mut Unstructured<'_>, side: Side) -> Result<Draft> {
    let (to_mac, from_mac, source, destination) = match side {
        Side::Inside => (pick(u, &INSIDE_MACS)?, NODE_MAC, pick(u, &INSIDERS)?, pick(u, &OUTSIDERS)?),
        Side::Outside => (OUTSIDE_MAC, SERVER_MAC, pick(u, &OUTSIDERS)?, pick(u, &EGRESSES)?),
    };
    let content = content(u)?;
    let (source_port, destination_port) = (pick(u, &PORTS)?, pick(u, &PORTS)?);
    let payload_bytes = pick(u, &SIZES)?;
    let [is_odd, has_options, has_identification, ..] = bits(u)?;
    let (ttl, fragment) = if is_odd { (pick(u, &TTLS)?, pick(u, &FRAGMENTS)?) } else { (64, 0x4000) };
    let option_words = if has_options { u.arbitrary::<u8>()? % 11 } else { 0 };
    let identification = if has_identification { u.arbitrary::<u8>()?.into() } else { 7 };
    Ok(Draft {
        to_mac,
        from_mac,
        source,
        destination,
        source_port,
        destination_port,
        content,
        ttl,
        identification,
        fragment,
        option_words,
        payload_bytes,
    })
}

fn content(u: &mut Unstructured<'_>) -> Result<Content> {
    Ok(match u.arbitrary::<u8>()? % 8 {
        0 => Content::Udp { has_checksum: true },
        1 => Content::Udp { has_checksum: false },
        2 | 3 => Content::Tcp { flags: flags(u)?, mss: None },
        4 => Content::Tcp { flags: 0x02, mss: Some(pick(u, &[1460, 536, 0, 65535])?) },
        5 | 6 => Content::Icmp { kind: pick(u, &[8, 13, 0, 14, 17, 40])? },
        _ => Content::Other { protocol: pick(u, &[47, 50, 132, 136, 4, 255])? },
    })
}

/// Returns TCP flags, those of a connection that goes well more often than others.
pub(crate) fn flags(u: &mut Unstructured<'_>) -> Result<u8> {
    pick(u, &[0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, 0x00, 0x01, 0x29, 0x03])
}

/// Returns an ICMP error.
pub(crate) fn error(u: &mut Unstructured<'_>) -> Result<ErrorDraft> {
    let speakers = [None, Some(INSIDERS[6]), Some(OUTSIDERS[1]), Some(OUTSIDERS[7])];
    Ok(ErrorDraft {
        kind: pick(u, &[3, 11, 12, 5])?,
        code: pick(u, &[0, 1, 3, 4, 13])?,
        speaker: pick(u, &speakers)?,
        quoted_bytes: pick(u, &[28, 40, 548, 20, 27, 128, 1500])?,
    })
}

/// Returns what the gateway may be told next; its epoch is still to be set.
pub(crate) fn snapshot(u: &mut Unstructured<'_>) -> Result<SnapshotSpec> {
    let (tenants, links, policies) = (bits(u)?, bits(u)?, bits(u)?);
    let mut spec = gateway().spec();
    if policies[0] {
        set_policies(u, &mut spec)?;
    }
    if policies[1] {
        (spec.inside.mtu, spec.outside.mtu) = (pick(u, &MTUS)?, pick(u, &MTUS)?);
    }
    spec.timeouts.inbound_refreshes = !policies[2];
    if policies[3] {
        set_sources(u, &mut spec)?;
    }
    spec.tenants.iter_mut().zip(&policies[4..]).for_each(|(tenant, drains)| tenant.is_draining = *drains);
    set_links(links, &mut spec);
    set_tenants(tenants, &mut spec);
    Ok(spec)
}

/// Lets tenants' packets come from networks, from few or many live pods, or from nodes.
fn set_sources(u: &mut Unstructured<'_>, spec: &mut SnapshotSpec) -> Result<()> {
    let few = [INSIDERS[0], INSIDERS[4]].map(Ipv4Net::from);
    let many: Vec<_> = (6..18).map(|host| Ipv4Net::from(Ipv4Addr::new(10, 132, 0, host))).collect();
    for tenant in &mut spec.tenants {
        (tenant.source_kind, tenant.sources) = match u.arbitrary::<u8>()? % 4 {
            0 => continue,
            1 => (SourceKind::LivePods, few.to_vec()),
            2 => (SourceKind::LivePods, many.clone()),
            _ => (SourceKind::Nodes, vec![INSIDERS[3].into()]),
        };
    }
    Ok(())
}

fn set_policies(u: &mut Unstructured<'_>, spec: &mut SnapshotSpec) -> Result<()> {
    for tenant in &mut spec.tenants {
        let free = |filtering| (Mapping::EndpointIndependent, filtering);
        let (mapping, filtering) = pick(
            u,
            &[
                (Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent),
                free(Filtering::AddressAndPortDependent),
                free(Filtering::AddressDependent),
                free(Filtering::EndpointIndependent),
            ],
        )?;
        let (tenant_quota, pod_quota) = (quota(u)?, quota(u)?);
        tenant.policy = Policy { mapping, filtering, tenant_quota, pod_quota };
        tenant.mss_clamp = pick(u, &[0, 536, 1360])?;
    }
    spec.tcp.mid_stream = pick(u, &[MidStream::Reset, MidStream::Drop])?;
    spec.tcp.unsolicited_syn = pick(u, &[UnsolicitedSyn::Drop, UnsolicitedSyn::Unreachable])?;
    Ok(())
}

fn quota(u: &mut Unstructured<'_>) -> Result<Quota> {
    let [has_sessions, has_ports, has_rate, ..] = bits(u)?;
    let mut most = |is_there: bool| if is_there { pick(u, &[1, 2, 4]) } else { Ok(0) };
    Ok(Quota { sessions: most(has_sessions)?, ports: most(has_ports)?, new_per_second: most(has_rate)? })
}

/// Takes neighbours and routes away, or gives other ones.
fn set_links(changes: [bool; 8], spec: &mut SnapshotSpec) {
    let [no_server, no_node, no_router, no_default, no_pods, moves, has_second_node, no_pod_cidrs] = changes;
    let gone = [no_server.then_some(13), no_router.then_some(1), no_node.then_some(21)];
    spec.neighbours.retain(|neighbour| !gone.contains(&Some(neighbour.address.octets()[3])));
    spec.routes.retain(|route| !(no_default && route.prefix.prefix_len() == 0));
    spec.routes.retain(|route| !(no_pods && route.gateway == Some(Ipv4Addr::new(192, 168, 99, 21))));
    if moves {
        spec.neighbours.reverse();
        spec.neighbours.iter_mut().for_each(|neighbour| neighbour.mac = ROUTER_MAC);
    }
    if has_second_node {
        let (prefix, gateway) = ("10.132.1.0/24".parse().unwrap(), Some(Ipv4Addr::new(192, 168, 99, 22)));
        spec.routes.push(RouteSpec { side: Side::Inside, prefix, gateway });
    }
    if no_pod_cidrs {
        spec.pod_cidrs.clear();
    }
}

/// Changes tenants' addresses and sources, and takes tenants away.
fn set_tenants(changes: [bool; 8], spec: &mut SnapshotSpec) {
    let [no_red, no_blue, is_green, moves, has_two, is_swapped, is_narrow, is_renumbered] = changes;
    let [blue, red] = &mut spec.tenants[..] else { unreachable!("the gateway has two tenants") };
    if is_green {
        // Another tenant in red's slot.
        red.gateway_mac = GREEN_MAC;
        red.gateway_address = Ipv4Addr::new(192, 168, 99, 15);
        red.egress_addresses = vec![EGRESSES[2]];
    }
    if moves {
        blue.egress_addresses = vec![EGRESSES[3]];
    }
    if has_two {
        blue.egress_addresses.push(EGRESSES[4]);
    }
    if is_swapped {
        std::mem::swap(&mut blue.egress_addresses, &mut red.egress_addresses);
    }
    if is_narrow {
        blue.sources = vec!["10.132.0.4/31".parse().unwrap()];
    }
    if is_renumbered {
        std::mem::swap(&mut blue.id, &mut red.id);
    }
    let (blue_id, red_id) = (blue.id, red.id);
    spec.tenants.retain(|tenant| !(no_red && tenant.id == red_id || no_blue && tenant.id == blue_id));
}

//! What the tests of this crate share: a gateway with the reference addresses, and frames.

pub(crate) mod fragments;
pub mod fuzzing;
pub(crate) mod rig;

use std::net::{Ipv4Addr, SocketAddrV4};

use conntrack::checksum::checksum;
use conntrack::{Epoch, Policy, TcpFlags, TenantId, Timeouts};
use etherparse::PacketBuilder;
use macaddr::MacAddr6;

use crate::snapshot::{
    LinkSpec, NeighbourSpec, RouteSpec, Side, SnapshotSpec, SourceKind, TcpPolicy, TenantSpec,
};

pub(crate) const NODE_MAC: MacAddr6 = MacAddr6::new(2, 0, 0, 0, 0, 0x21);
pub(crate) const ROUTER_MAC: MacAddr6 = MacAddr6::new(2, 0, 0, 0, 0, 0x01);
pub(crate) const SERVER_MAC: MacAddr6 = MacAddr6::new(2, 0, 0, 0, 0, 0x13);
pub(crate) const INSIDE_MAC: MacAddr6 = MacAddr6::new(2, 0, 0, 0, 1, 0x12);
pub(crate) const OUTSIDE_MAC: MacAddr6 = MacAddr6::new(2, 0, 0, 0, 2, 0x12);
pub(crate) const BLUE_MAC: MacAddr6 = MacAddr6::new(2, 0x53, 192, 168, 99, 13);
pub(crate) const RED_MAC: MacAddr6 = MacAddr6::new(2, 0x53, 192, 168, 99, 14);
pub(crate) const BLUE: TenantId = TenantId(0);

/// Facts of a gateway, to be changed by a test.
#[derive(Clone, Debug)]
pub(crate) struct Gateway(SnapshotSpec);

/// Returns a gateway with the reference addresses, blue and red, and all neighbours resolved.
pub(crate) fn gateway() -> Gateway {
    let net = |text: &str| text.parse().unwrap();
    let address = |text: &str| text.parse().unwrap();
    let tenant = |id, host: u8| TenantSpec {
        id: TenantId(id),
        gateway_mac: MacAddr6::new(2, 0x53, 192, 168, 99, host),
        gateway_address: Ipv4Addr::new(192, 168, 99, host),
        egress_addresses: vec![Ipv4Addr::new(192, 168, 55, 100 + host)],
        sources: vec![net("10.132.0.0/14")],
        source_kind: SourceKind::Networks,
        is_draining: false,
        policy: Policy::default(),
        mss_clamp: 0,
    };
    let route = |side, prefix, gateway: Option<&str>| RouteSpec {
        side,
        prefix: net(prefix),
        gateway: gateway.map(address),
    };
    let neighbour = |side, text, mac| NeighbourSpec { side, address: address(text), mac };
    Gateway(SnapshotSpec {
        epoch: Epoch(1),
        inside: LinkSpec { mac: INSIDE_MAC, address: address("192.168.99.12"), mtu: 1500 },
        outside: LinkSpec { mac: OUTSIDE_MAC, address: address("192.168.55.12"), mtu: 1500 },
        tenants: vec![tenant(0, 13), tenant(1, 14)],
        pod_cidrs: vec![net("10.132.0.0/14")],
        own_addresses: vec![address("192.168.99.12"), address("192.168.55.12")],
        routes: vec![
            route(Side::Inside, "192.168.99.0/24", None),
            route(Side::Inside, "10.132.0.0/24", Some("192.168.99.21")),
            route(Side::Outside, "192.168.55.0/24", None),
            route(Side::Outside, "0.0.0.0/0", Some("192.168.55.1")),
        ],
        neighbours: vec![
            neighbour(Side::Inside, "192.168.99.21", NODE_MAC),
            neighbour(Side::Outside, "192.168.55.1", ROUTER_MAC),
            neighbour(Side::Outside, "192.168.55.13", SERVER_MAC),
        ],
        timeouts: Timeouts::default(),
        tcp: TcpPolicy::default(),
    })
}

impl Gateway {
    pub(crate) fn spec(&self) -> SnapshotSpec {
        self.0.clone()
    }

    pub(crate) fn without_red(mut self) -> Self {
        self.0.tenants.truncate(1);
        self
    }

    pub(crate) fn without_neighbour(mut self, address: &str) -> Self {
        let address: Ipv4Addr = address.parse().unwrap();
        self.0.neighbours.retain(|neighbour| neighbour.address != address);
        self
    }

    pub(crate) fn epoch(mut self, epoch: u32) -> Self {
        self.0.epoch = Epoch(epoch);
        self
    }

    pub(crate) fn change(mut self, change: impl FnOnce(&mut SnapshotSpec)) -> Self {
        change(&mut self.0);
        self
    }
}

fn builder(
    source: SocketAddrV4,
    destination: SocketAddrV4,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2(NODE_MAC.into_array(), BLUE_MAC.into_array()).ipv4(
        source.ip().octets(),
        destination.ip().octets(),
        64,
    )
}

/// Returns a UDP frame to blue's MAC.
pub(crate) fn udp_frame(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let (source, destination): (SocketAddrV4, SocketAddrV4) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let mut frame = Vec::new();
    builder(source, destination).udp(source.port(), destination.port()).write(&mut frame, payload).unwrap();
    frame
}

/// Returns a TCP frame to blue's MAC, with sequence number 1000 and acknowledgement number 2000.
pub(crate) fn tcp_frame(source: &str, destination: &str, flags: TcpFlags) -> Vec<u8> {
    tcp_frame_with_options(source, destination, flags, &[])
}

/// Returns a TCP frame like [`tcp_frame`], with these options.
pub(crate) fn tcp_frame_with_options(
    source: &str,
    destination: &str,
    flags: TcpFlags,
    options: &[u8],
) -> Vec<u8> {
    let (source, destination): (SocketAddrV4, SocketAddrV4) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let mut step = builder(source, destination)
        .tcp(source.port(), destination.port(), 1000, 64000)
        .options_raw(options)
        .unwrap();
    if flags.has(TcpFlags::SYN) {
        step = step.syn();
    }
    if flags.has(TcpFlags::FIN) {
        step = step.fin();
    }
    if flags.has(TcpFlags::RST) {
        step = step.rst();
    }
    if flags.has(TcpFlags::ACK) {
        step = step.ack(2000);
    }
    let mut frame = Vec::new();
    step.write(&mut frame, b"").unwrap();
    frame
}

/// Returns an ICMP echo frame to blue's MAC.
pub(crate) fn echo_frame(source: &str, destination: &str, identifier: u16, is_reply: bool) -> Vec<u8> {
    let (source, destination): (Ipv4Addr, Ipv4Addr) = (source.parse().unwrap(), destination.parse().unwrap());
    let step = builder(SocketAddrV4::new(source, 0), SocketAddrV4::new(destination, 0));
    let step = if is_reply {
        step.icmpv4_echo_reply(identifier, 1)
    } else {
        step.icmpv4_echo_request(identifier, 1)
    };
    let mut frame = Vec::new();
    step.write(&mut frame, b"ping").unwrap();
    frame
}

/// Returns a frame of any protocol to blue's MAC.
pub(crate) fn raw_frame(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (source, destination): (Ipv4Addr, Ipv4Addr) = (source.parse().unwrap(), destination.parse().unwrap());
    let mut frame = Vec::new();
    builder(SocketAddrV4::new(source, 0), SocketAddrV4::new(destination, 0))
        .write(&mut frame, etherparse::IpNumber(protocol), payload)
        .unwrap();
    frame
}

/// Returns an ICMP error of `kind` that quotes `transport_bytes` of a frame's transport layer, from `sender`
/// to the source of what it quotes.
pub(crate) fn icmp_error_about(sender: &str, about: &[u8], kind: u8, transport_bytes: usize) -> Vec<u8> {
    let sender: Ipv4Addr = sender.parse().unwrap();
    let quote = &about[14..(34 + transport_bytes).min(about.len())];
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(quote);
    let sum = checksum(0, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(ROUTER_MAC.into_array(), OUTSIDE_MAC.into_array())
        .ipv4(sender.octets(), about[26..30].try_into().unwrap(), 64)
        .write(&mut frame, etherparse::IpNumber::ICMP, &message)
        .unwrap();
    frame
}

/// Returns a frame to red's MAC.
pub(crate) fn red(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(RED_MAC.as_bytes());
    frame
}

/// Returns a copy of a frame with some bytes replaced.
pub(crate) fn corrupt(frame: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for (at, byte) in changes {
        frame[*at] = *byte;
    }
    frame
}

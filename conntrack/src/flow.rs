//! Who talks to whom: five-tuples, directions, and the key under which a session is found.

use std::hash::{Hash, Hasher};
use std::net::Ipv4Addr;

/// A tenant, by its slot in the snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u16);

/// Which way a packet goes, as the tenant sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From a pod to the world: the source is translated.
    Outbound,
    /// From the world to a pod: the destination is translated back.
    Inbound,
}

/// A protocol that is translated: by port, by query identifier, or by address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// ICMP queries (RFC 5508 section 3): the identifier stands for the port of the pod's side.
    Icmp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// A protocol without ports that the translator knows: all ports are 0, so one pod at a time talks to one address
    /// through one egress address.
    Portless(Portless),
}

/// A protocol that is translated by address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Portless {
    /// IPv4 in IPv4 (RFC 2003).
    IpIp = 4,
    /// Generic routing encapsulation (RFC 2784).
    Gre = 47,
    /// IPsec payload (RFC 4303).
    Esp = 50,
    /// SCTP (RFC 9260). Its checksum does not cover addresses.
    Sctp = 132,
    /// UDP-Lite (RFC 3828).
    UdpLite = 136,
}

impl Protocol {
    /// Returns the protocol with this IANA number, if it is one that is translated.
    #[inline]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Icmp),
            4 => Some(Self::Portless(Portless::IpIp)),
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            47 => Some(Self::Portless(Portless::Gre)),
            50 => Some(Self::Portless(Portless::Esp)),
            132 => Some(Self::Portless(Portless::Sctp)),
            136 => Some(Self::Portless(Portless::UdpLite)),
            _ => None,
        }
    }

    /// Returns the protocol's name, as lists of sessions spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Portless(Portless::IpIp) => "ipip",
            Self::Portless(Portless::Gre) => "gre",
            Self::Portless(Portless::Esp) => "esp",
            Self::Portless(Portless::Sctp) => "sctp",
            Self::Portless(Portless::UdpLite) => "udplite",
        }
    }

    /// Returns the IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Portless(protocol) => protocol as u8,
        }
    }
}

/// Source, destination and protocol of a packet as it stands on the wire.
///
/// For an ICMP query the identifier is the port of the pod's side (source when outbound, destination when
/// inbound), and the port of the other side is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FiveTuple {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// A five-tuple in the words that it is made of on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Source and destination address, one after the other as they lie in memory.
    pub addresses: u64,
    /// Source port above destination port.
    pub ports: u32,
    /// IANA number of the protocol.
    pub protocol_number: u8,
}

impl FiveTuple {
    /// Returns the tuple of packets to no destination in particular.
    pub(crate) fn towards_anybody(self) -> Self {
        Self { destination: Ipv4Addr::UNSPECIFIED, destination_port: 0, ..self }
    }

    /// Returns the tuple of a packet that answers this one.
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

/// What a key stands for, so that equal addresses and ports never make equal keys of different things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Scope {
    Session,
    Mapping,
    Peer,
    Pod,
}

/// What a session is found by: tenant, direction and five-tuple in 16 bytes, compared as two words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Key {
    /// Source and destination address, one after the other as they lie in memory.
    addresses: u64,
    /// Source port above destination port.
    ports: u32,
    tail: Tail,
}

const _: () = assert!(size_of::<Key>() == 16);

impl Key {
    /// Returns the key of a packet of `tenant` that goes in `direction` and reads `tuple` on the wire.
    pub fn new(tenant: TenantId, direction: Direction, tuple: &FiveTuple) -> Self {
        Self::scoped(Scope::Session, tenant, direction, tuple)
    }

    /// Returns the key of a packet of `tenant` that goes in `direction`, from what stands in its headers.
    #[inline]
    pub fn of_wire(tenant: TenantId, direction: Direction, wire: Wire) -> Self {
        let Wire { addresses, ports, protocol_number } = wire;
        let tail = Tail::new(Scope::Session, tenant, protocol_number).in_direction(direction);
        Self { addresses, ports, tail }
    }

    /// Returns the key of something that is no session; what does not matter is zero in `tuple`.
    pub(crate) fn scoped(scope: Scope, tenant: TenantId, direction: Direction, tuple: &FiveTuple) -> Self {
        let tail = Tail::new(scope, tenant, tuple.protocol.number()).in_direction(direction);
        let (source, destination) =
            ((tuple.source, tuple.source_port), (tuple.destination, tuple.destination_port));
        Self::between(source, destination, tail)
    }

    /// Returns the key of what goes from one address and port to another.
    #[inline]
    pub(crate) fn between(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), tail: Tail) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (source.0.octets(), destination.0.octets());
        let ports = u32::from(source.1) << 16 | u32::from(destination.1);
        Self { addresses: u64::from_ne_bytes([a, b, c, d, e, f, g, h]), ports, tail }
    }

    /// Returns the tuple of a packet that it is the key of.
    #[expect(clippy::cast_possible_truncation, reason = "they are these bits")]
    pub fn tuple(self) -> Option<FiveTuple> {
        let [_, _, _, _, e, f, g, h] = self.addresses.to_ne_bytes();
        Some(FiveTuple {
            source: self.source(),
            destination: [e, f, g, h].into(),
            source_port: (self.ports >> 16) as u16,
            destination_port: self.ports as u16,
            protocol: self.tail.protocol()?,
        })
    }

    /// Returns the tenant.
    #[inline]
    pub fn tenant(self) -> TenantId {
        self.tail.tenant()
    }

    /// Returns the IANA number of the protocol.
    #[inline]
    pub fn protocol_number(self) -> u8 {
        self.tail.protocol_number()
    }

    /// Returns the source address.
    pub(crate) fn source(self) -> Ipv4Addr {
        let [a, b, c, d, ..] = self.addresses.to_ne_bytes();
        [a, b, c, d].into()
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.addresses);
        state.write_u64(u64::from(self.ports) << 32 | u64::from(self.tail.0));
    }
}

/// The half word of a key behind the ports: tenant, protocol, and what the key stands for. A session keeps it as it is in its
/// keys, so that a packet's key is compared with little work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tail(u32);

impl Tail {
    /// Returns the tail of outbound keys.
    #[inline]
    pub(crate) fn new(scope: Scope, tenant: TenantId, protocol_number: u8) -> Self {
        Self(u32::from(tenant.0) << 16 | u32::from(protocol_number) << 8 | (scope as u32) << 1)
    }

    /// Returns the tail of keys in a direction, from that of outbound keys.
    #[inline]
    pub(crate) fn in_direction(self, direction: Direction) -> Self {
        match direction {
            Direction::Outbound => self,
            Direction::Inbound => Self(self.0 | 1),
        }
    }

    #[inline]
    pub(crate) fn tenant(self) -> TenantId {
        TenantId((self.0 >> 16) as u16)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "it is these bits")]
    pub(crate) fn protocol_number(self) -> u8 {
        (self.0 >> 8) as u8
    }

    #[inline]
    pub(crate) fn protocol(self) -> Option<Protocol> {
        Protocol::from_number(self.protocol_number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_changes_the_key() {
        let tuple = FiveTuple {
            source: Ipv4Addr::new(10, 132, 0, 5),
            destination: Ipv4Addr::new(192, 168, 55, 13),
            source_port: 40000,
            destination_port: 80,
            protocol: Protocol::Tcp,
        };
        let base = Key::new(TenantId(1), Direction::Outbound, &tuple);
        assert_eq!(base.tuple(), Some(tuple));
        let others = [
            Key::new(TenantId(2), Direction::Outbound, &tuple),
            Key::new(TenantId(1), Direction::Inbound, &tuple),
            Key::new(TenantId(1), Direction::Outbound, &tuple.reversed()),
            Key::new(TenantId(1), Direction::Outbound, &FiveTuple { protocol: Protocol::Udp, ..tuple }),
            Key::new(TenantId(1), Direction::Outbound, &FiveTuple { source_port: 40001, ..tuple }),
            Key::new(TenantId(1), Direction::Outbound, &FiveTuple { destination_port: 81, ..tuple }),
        ];
        for other in others {
            assert_ne!(base, other);
        }
    }
}

//! Who talks to whom: five-tuples, directions, and the key under which a session is found.

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
    /// Source address above destination address.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Key {
    addresses: u64,
    rest: u64,
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
        let tail = tail(Scope::Session, tenant, direction, protocol_number);
        Self { addresses, rest: u64::from(ports) << 32 | tail }
    }

    /// Returns the key of something that is no session; what does not matter is zero in `tuple`.
    pub(crate) fn scoped(scope: Scope, tenant: TenantId, direction: Direction, tuple: &FiveTuple) -> Self {
        Self {
            addresses: u64::from(tuple.source.to_bits()) << 32 | u64::from(tuple.destination.to_bits()),
            rest: u64::from(tuple.source_port) << 48
                | u64::from(tuple.destination_port) << 32
                | tail(scope, tenant, direction, tuple.protocol.number()),
        }
    }

    /// Returns the tuple of a packet that it is the key of.
    #[expect(clippy::cast_possible_truncation, reason = "they are these bits")]
    pub fn tuple(self) -> Option<FiveTuple> {
        Some(FiveTuple {
            source: self.source(),
            destination: Ipv4Addr::from_bits(self.addresses as u32),
            source_port: (self.rest >> 48) as u16,
            destination_port: (self.rest >> 32) as u16,
            protocol: Protocol::from_number((self.rest >> 8) as u8)?,
        })
    }

    /// Returns the tenant.
    #[expect(clippy::cast_possible_truncation, reason = "it is these 16 bits")]
    pub(crate) fn tenant(self) -> TenantId {
        TenantId((self.rest >> 16) as u16)
    }

    /// Returns the source address.
    pub(crate) fn source(self) -> Ipv4Addr {
        Ipv4Addr::from_bits((self.addresses >> 32) as u32)
    }

    /// Returns the key as two words.
    pub fn words(self) -> [u64; 2] {
        [self.addresses, self.rest]
    }
}

/// Returns the half word behind the ports.
#[inline]
fn tail(scope: Scope, tenant: TenantId, direction: Direction, protocol_number: u8) -> u64 {
    let direction = match direction {
        Direction::Outbound => 0,
        Direction::Inbound => 1,
    };
    u64::from(tenant.0) << 16 | u64::from(protocol_number) << 8 | (scope as u64) << 1 | direction
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

//! What a session is outside its table, so that another table can take it up: that of the next process, or of another
//! gateway.
//!
//! A [`Replica`] is told of every session that is made, that moves on, and that ends. It is told nothing of packets that
//! change nothing but a time, so that a hit costs nothing. What a record does not hold is made anew by whoever takes the
//! session up ([`mod@crate::restore`]): pods, mappings, counts, who owns which block of ports, next hops, and the sequence
//! numbers that a RST is measured by, which the next segments tell again.
//!
//! ```text
//!   0        2         3     4       5        8         12       16       20
//!   │ format │protocol │ TCP │ flags │ 0      │ gateway │ inside │ remote │ outside │
//!   24            26            28             30             36        40
//!   │ inside port │ remote port │ outside port │ 0            │ CRC-32  │
//! ```
//!
//! Numbers are in network byte order. The tenant is named by its gateway address, which is the same in every process and
//! on every gateway that serves it.

use std::net::Ipv4Addr;

use thiserror::Error;

use crate::flow::{FiveTuple, Protocol};
use crate::policy::Filtering;
use crate::tcp::TcpState;

/// Version of the format, in the first two bytes of each record; a record that begins with 0 is none.
pub const FORMAT: u16 = 1;

/// Bytes of a record.
pub const RECORD_BYTES: usize = 40;

const CHECKED_BYTES: usize = 36;
const MAPPED: u8 = 0x01;
const RESTS: u8 = 0x02;
const HAS_PEER: u8 = 0x04;

/// Takes down the sessions of one table, each under the number of its entry.
pub trait Replica: std::fmt::Debug + Send {
    /// Takes down a session that was made, or that moved on.
    fn put(&mut self, entry: u32, record: &Record);

    /// Notes that a session ended.
    fn remove(&mut self, entry: u32);
}

/// A session, outside its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Gateway address of the tenant.
    pub gateway: Ipv4Addr,
    /// The tuple of its packets as they come from the pod.
    pub inside_tuple: FiveTuple,
    /// Egress address and outside port.
    pub outside: (Ipv4Addr, u16),
    /// State of its connection; [`TcpState::Opening`] where there is none.
    pub tcp: TcpState,
    /// What its endpoint-independent mapping lets in, if it has one: [`Filtering::EndpointIndependent`] if the port rests
    /// when it is freed, [`Filtering::AddressDependent`] if the other end's address may answer from any port.
    pub mapping: Option<Filtering>,
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadRecord {
    /// There is none.
    #[error("there is no record")]
    Empty,
    /// Written in part, or damaged.
    #[error("the check sum does not match")]
    Damaged,
    /// Of a version that is not known.
    #[error("the format is version {0}; known is {FORMAT}")]
    Format(u16),
    /// A value that this version does not have.
    #[error("{0} has a value that means nothing")]
    Meaningless(&'static str),
}

impl Record {
    /// Returns the record's bytes.
    pub fn to_bytes(&self) -> [u8; RECORD_BYTES] {
        let FiveTuple { source, destination, source_port, destination_port, protocol } = self.inside_tuple;
        let mut bytes = [0; RECORD_BYTES];
        bytes[0..2].copy_from_slice(&FORMAT.to_be_bytes());
        bytes[2] = protocol.number();
        bytes[3] = self.tcp as u8;
        bytes[4] = match self.mapping {
            None => 0,
            Some(Filtering::EndpointIndependent) => MAPPED | RESTS,
            Some(Filtering::AddressDependent) => MAPPED | HAS_PEER,
            Some(Filtering::AddressAndPortDependent) => MAPPED,
        };
        let addresses = [self.gateway, source, destination, self.outside.0];
        for (place, address) in bytes[8..24].chunks_exact_mut(4).zip(addresses) {
            place.copy_from_slice(&address.octets());
        }
        let ports = [source_port, destination_port, self.outside.1];
        for (place, port) in bytes[24..30].chunks_exact_mut(2).zip(ports) {
            place.copy_from_slice(&port.to_be_bytes());
        }
        let sum = crc32fast::hash(&bytes[..CHECKED_BYTES]);
        bytes[CHECKED_BYTES..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Reads a record.
    ///
    /// # Errors
    /// When the bytes are none of this version.
    pub fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Result<Self, BadRecord> {
        let half = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let address = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        match half(0) {
            0 => return Err(BadRecord::Empty),
            _ if crc32fast::hash(&bytes[..CHECKED_BYTES]).to_be_bytes() != bytes[CHECKED_BYTES..] => {
                return Err(BadRecord::Damaged);
            }
            FORMAT => {}
            other => return Err(BadRecord::Format(other)),
        }
        if bytes[5..8].iter().chain(&bytes[30..CHECKED_BYTES]).any(|byte| *byte != 0) {
            return Err(BadRecord::Meaningless("what is kept for later versions"));
        }
        let protocol = Protocol::from_number(bytes[2]).ok_or(BadRecord::Meaningless("the protocol"))?;
        let tcp = TcpState::from_number(bytes[3]).ok_or(BadRecord::Meaningless("the TCP state"))?;
        let mapping = match bytes[4] {
            0 => None,
            MAPPED => Some(Filtering::AddressAndPortDependent),
            flags if flags == MAPPED | RESTS => Some(Filtering::EndpointIndependent),
            flags if flags == MAPPED | HAS_PEER => Some(Filtering::AddressDependent),
            _ => return Err(BadRecord::Meaningless("the flags")),
        };
        let inside_tuple = FiveTuple {
            source: address(12),
            destination: address(16),
            source_port: half(24),
            destination_port: half(26),
            protocol,
        };
        Ok(Self { gateway: address(8), inside_tuple, outside: (address(20), half(28)), tcp, mapping })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::flow::Portless;

    fn record() -> impl Strategy<Value = Record> {
        let protocols = [
            Protocol::Icmp,
            Protocol::Tcp,
            Protocol::Udp,
            Protocol::Portless(Portless::Gre),
            Protocol::Portless(Portless::UdpLite),
        ];
        let mappings = [
            None,
            Some(Filtering::EndpointIndependent),
            Some(Filtering::AddressDependent),
            Some(Filtering::AddressAndPortDependent),
        ];
        let protocol = prop::sample::select(protocols.to_vec());
        let tcp = prop::sample::select(TcpState::ALL.to_vec());
        let mapping = prop::sample::select(mappings.to_vec());
        (any::<[u32; 4]>(), any::<[u16; 3]>(), protocol, tcp, mapping).prop_map(
            |(addresses, [source_port, destination_port, outside_port], protocol, tcp, mapping)| {
                let [gateway, source, destination, outside] = addresses.map(Ipv4Addr::from_bits);
                let inside_tuple = FiveTuple { source, destination, source_port, destination_port, protocol };
                Record { gateway, inside_tuple, outside: (outside, outside_port), tcp, mapping }
            },
        )
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(record in record()) {
            prop_assert_eq!(Record::from_bytes(&record.to_bytes()), Ok(record));
        }

        #[test]
        fn a_changed_byte_is_noticed(record in record(), at in 2..RECORD_BYTES, change in 1..=u8::MAX) {
            let mut bytes = record.to_bytes();
            bytes[at] ^= change;
            prop_assert_eq!(Record::from_bytes(&bytes), Err(BadRecord::Damaged));
        }

        #[test]
        fn anything_is_a_record_or_an_error(mut bytes: [u8; RECORD_BYTES], is_sealed: bool) {
            if is_sealed {
                bytes[..2].copy_from_slice(&FORMAT.to_be_bytes());
                let sum = crc32fast::hash(&bytes[..CHECKED_BYTES]);
                bytes[CHECKED_BYTES..].copy_from_slice(&sum.to_be_bytes());
            }
            if let Ok(record) = Record::from_bytes(&bytes) {
                prop_assert_eq!(record.to_bytes(), bytes);
            }
        }
    }

    /// A change of these bytes is a change of the format, and takes a new version.
    #[test]
    fn the_format_is_fixed() {
        let record = Record {
            gateway: Ipv4Addr::new(192, 168, 99, 13),
            inside_tuple: FiveTuple {
                source: Ipv4Addr::new(10, 132, 0, 5),
                destination: Ipv4Addr::new(198, 51, 100, 7),
                source_port: 40_000,
                destination_port: 443,
                protocol: Protocol::Tcp,
            },
            outside: (Ipv4Addr::new(192, 168, 55, 113), 50_123),
            tcp: TcpState::Established,
            mapping: Some(Filtering::AddressDependent),
        };
        let expected = "000106020500000\
            0c0a8630d0a840005c6336407c0a837719c4001bbc3cb000000000000";
        let bytes = record.to_bytes();
        let text: String = bytes[..CHECKED_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, expected);
        let (mut empty, mut newer) = (bytes, bytes);
        empty[..2].fill(0);
        assert_eq!(Record::from_bytes(&empty), Err(BadRecord::Empty));
        newer[1] = 2;
        let sum = crc32fast::hash(&newer[..CHECKED_BYTES]);
        newer[CHECKED_BYTES..].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(Record::from_bytes(&newer), Err(BadRecord::Format(2)));
    }
}

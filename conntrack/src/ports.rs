//! Which outside ports may stand for an inside port.

use std::ops::RangeInclusive;

use crate::flow::Protocol;

/// Returns the port of a class that a random number stands for.
pub fn port_at(random: u64, class: &RangeInclusive<u16>) -> u16 {
    let ports = u64::from(*class.end() - *class.start()) + 1;
    // The upper half of the number, as a fraction of all ports: a product, where a remainder would be a division.
    let offset = ((random >> 32) * ports) >> 32;
    class.start() + u16::try_from(offset).expect("a class has at most 65536 ports")
}

/// The outside ports that stand for ports 0 to 1023 (RFC 6335 section 6).
pub const SYSTEM_PORTS: RangeInclusive<u16> = 1..=1023;

/// The one number that stands for the port in protocols without ports.
pub const NO_PORTS: RangeInclusive<u16> = 0..=0;

/// Returns the ports that stand for an inside port: 0–1023 is 1–1023 and 1024–65535 is itself (RFC 4787
/// REQ-3a); query identifiers have one class, and protocols without ports have the one number 0.
pub fn class_of(protocol: Protocol, inside_port: u16) -> RangeInclusive<u16> {
    match protocol {
        Protocol::Tcp | Protocol::Udp if inside_port < 1024 => SYSTEM_PORTS,
        Protocol::Tcp | Protocol::Udp => 1024..=65535,
        Protocol::Icmp => 0..=65535,
        Protocol::Portless(_) => NO_PORTS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_keeps_its_class() {
        assert_eq!(class_of(Protocol::Udp, 53), 1..=1023);
        assert_eq!(class_of(Protocol::Tcp, 1024), 1024..=65535);
        assert_eq!(class_of(Protocol::Icmp, 7), 0..=65535);
        for random in (0..2000u64).map(|seed| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            assert!(SYSTEM_PORTS.contains(&port_at(random, &SYSTEM_PORTS)));
        }
    }
}

//! Which outside port a new session gets.
//!
//! Ports are shared between workers in blocks of 64, so that the owner of a reply is known from its
//! destination port alone.

use std::ops::RangeInclusive;

use crate::flow::Protocol;
use crate::pairing::mix;

/// Ports in one block.
pub const BLOCK_PORTS: u16 = 64;

/// The part of the outside ports that one worker may hand out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortShare {
    worker: u16,
    workers: u16,
}

impl PortShare {
    /// Returns the share of one worker out of `workers`.
    ///
    /// # Panics
    /// When `worker` is not less than `workers`.
    pub fn new(worker: u16, workers: u16) -> Self {
        assert!(worker < workers, "worker {worker} of {workers}");
        Self { worker, workers }
    }

    /// Returns the worker whose share this is.
    pub fn worker(self) -> u16 {
        self.worker
    }

    /// Returns the number of workers that share the ports.
    pub fn workers(self) -> u16 {
        self.workers
    }

    /// Returns the worker that owns a port.
    pub fn owner(self, port: u16) -> u16 {
        port / BLOCK_PORTS % self.workers
    }

    /// Tells whether a port is of this share.
    pub fn owns(self, port: u16) -> bool {
        self.owner(port) == self.worker
    }

    /// Returns how many ports are of this share.
    pub fn ports(self) -> u32 {
        (0..=u16::MAX).map(|port| u32::from(self.owns(port))).sum()
    }

    /// Returns a free port out of [`PROBES`] random ones of this share; none when all of those are taken.
    ///
    /// Which ones, `random` decides (RFC 6056 section 3.3).
    pub fn probe(
        self,
        random: u64,
        class: &RangeInclusive<u16>,
        is_free: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let ports = (0..2 * u64::from(PROBES) * u64::from(self.workers))
            .map(|probe| port_at(mix(random.wrapping_add(probe)), class));
        ports.filter(|port| self.owns(*port)).take(PROBES as usize).find(|port| is_free(*port))
    }
}

/// Random ports that are tried before all are looked at.
pub const PROBES: u32 = 64;

/// Returns the port of a class that a random number stands for.
pub fn port_at(random: u64, class: &RangeInclusive<u16>) -> u16 {
    let ports = u64::from(*class.end() - *class.start()) + 1;
    class.start() + u16::try_from(random % ports).expect("a class has at most 65536 ports")
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
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn probes_stay_in_the_class_and_in_the_share() {
        let share = PortShare::new(1, 3);
        for random in (0..2000u64).map(|seed| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            for (protocol, inside) in [(Protocol::Udp, 53), (Protocol::Tcp, 40000), (Protocol::Icmp, 7)] {
                let class = class_of(protocol, inside);
                let port = share.probe(random, &class, |_| true).unwrap();
                assert!(class.contains(&port) && share.owner(port) == 1, "{port}");
            }
        }
    }

    #[test]
    fn probes_spread_over_the_class() {
        let class = class_of(Protocol::Tcp, 40000);
        let draw = |seed: u64| {
            PortShare::new(0, 1).probe(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), &class, |_| true).unwrap()
        };
        let ports: HashSet<_> = (0..1000).map(draw).collect();
        assert!(ports.len() > 980, "{} of 1000 draws differ", ports.len());
    }

    #[test]
    fn every_port_is_owned_by_one_worker() {
        let owned =
            |worker| (0..=u16::MAX).filter(move |port| PortShare::new(worker, 3).owner(*port) == worker);
        assert_eq!((0..3).map(|worker| owned(worker).count()).sum::<usize>(), 65_536);
    }
}

//! Which outside port a new session gets.
//!
//! Ports are shared between workers in blocks of 64, so that the owner of a reply is known from its
//! destination port alone.

use crate::flow::Protocol;

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

    /// Returns a random free port of this share, of the class that the inside port is of; none only when
    /// every one of them is taken.
    ///
    /// The search starts where `random` says (RFC 6056 section 3.3.1) and covers the whole class. 0–1023 maps to 1–1023 and 1024–65535 to itself (RFC 4787 REQ-3a); query identifiers have one
    /// class.
    pub fn choose(
        self,
        random: u64,
        protocol: Protocol,
        inside_port: u16,
        is_free: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let (low, high) = match protocol {
            Protocol::Tcp | Protocol::Udp if inside_port < 1024 => (1, 1023),
            Protocol::Tcp | Protocol::Udp => (1024, 65535),
            Protocol::Icmp => (0, 65535),
        };
        let ports = u64::from(high - low) + 1;
        let start = low + u16::try_from(random % ports).expect("a class has at most 65536 ports");
        (start..=high).chain(low..start).find(|port| self.owner(*port) == self.worker && is_free(*port))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashSet;

    use super::*;

    fn exhaust(share: PortShare, protocol: Protocol, inside_port: u16) -> HashSet<u16> {
        let taken = RefCell::new(HashSet::new());
        let mut random = 7u64;
        while let Some(port) =
            share.choose(random, protocol, inside_port, |port| !taken.borrow().contains(&port))
        {
            assert!(taken.borrow_mut().insert(port));
            random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        }
        taken.into_inner()
    }

    #[test]
    fn every_port_of_the_class_is_handed_out_once() {
        let all = PortShare::new(0, 1);
        assert_eq!(exhaust(all, Protocol::Udp, 53), (1..=1023).collect());
        let taken = RefCell::new((1024..=65534).collect::<HashSet<u16>>());
        let last = all.choose(1, Protocol::Tcp, 40000, |port| !taken.borrow().contains(&port));
        assert_eq!(last, Some(65535));
    }

    #[test]
    fn shares_of_workers_are_disjoint_and_complete() {
        let shares: Vec<_> =
            (0..3).map(|worker| exhaust(PortShare::new(worker, 3), Protocol::Udp, 1)).collect();
        assert_eq!(shares.iter().map(HashSet::len).sum::<usize>(), 1023);
        let union: HashSet<_> = shares.into_iter().flatten().collect();
        assert_eq!(union, (1..=1023).collect());
    }
}

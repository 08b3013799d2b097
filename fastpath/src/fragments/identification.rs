//! Identifications of the gateway's own. Pods share an egress address, so those that they chose for
//! themselves may meet, and a receiver would put together what does not belong together (RFC 6864 section
//! 5.3.1, RFC 7857 section 10).

use std::net::Ipv4Addr;

use ahash::RandomState;
use conntrack::{Protocol, WorkerSlot};

/// Counters, so that packets to one destination do not use up the identifications of another.
const COUNTERS: usize = 1024;

/// The identifications that one worker may give: every `workers`th, so that two workers never give the same.
#[derive(Debug)]
pub struct Identifications {
    slot: WorkerSlot,
    given: Vec<u32>,
    hasher: RandomState,
}

impl Identifications {
    /// Makes the identifications of a worker. They begin anywhere.
    pub fn new(slot: WorkerSlot) -> Self {
        let hasher = RandomState::default();
        #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash will do")]
        let given = (0..COUNTERS).map(|counter| hasher.hash_one(counter) as u32 >> 1).collect();
        Self { slot, given, hasher }
    }

    /// Returns an identification for a datagram, other than the last ones towards its destination.
    pub fn draw(&mut self, destination: Ipv4Addr, protocol: Protocol) -> u16 {
        #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash will do")]
        let counter = self.hasher.hash_one((destination, protocol)) as usize % COUNTERS;
        let (worker, workers) = (u32::from(self.slot.worker), u32::from(self.slot.workers));
        let rounds = (u32::from(u16::MAX) + 1) / workers;
        let round = (self.given[counter] + 1) % rounds;
        self.given[counter] = round;
        u16::try_from(round * workers + worker).expect("the last round ends below 65,536")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn workers_give_no_identification_twice_before_they_have_given_all() {
        let server = Ipv4Addr::new(192, 168, 55, 13);
        for workers in [1, 3, 4, 7] {
            let rounds = 65_536 / usize::from(workers);
            let mut given = HashSet::new();
            for worker in 0..workers {
                let mut identifications = Identifications::new(WorkerSlot { worker, workers });
                given.extend((0..rounds).map(|_| identifications.draw(server, Protocol::Udp)));
            }
            assert_eq!(given.len(), rounds * usize::from(workers), "{workers} workers");
        }
    }

    #[test]
    fn packets_to_one_destination_do_not_use_up_the_identifications_of_others() {
        let mut identifications = Identifications::new(WorkerSlot { worker: 0, workers: 1 });
        let mut draw = |host: u8| identifications.draw(Ipv4Addr::new(192, 168, 55, host), Protocol::Udp);
        let first: Vec<_> = (0..=255).map(&mut draw).collect();
        for _ in 0..1000 {
            draw(0);
        }
        let passed_over = |host: &u8| draw(*host).wrapping_sub(first[usize::from(*host)]) >= 1000;
        let shared = (1..=255u8).filter(passed_over).count();
        assert!(shared < 20, "{shared} of 255 destinations share the counter of the first");
    }
}

use std::fmt;
use std::net::Ipv4Addr;

use crate::statistics::group_digits;

/// First of the source addresses; 4,096 pods follow one another.
pub(crate) const FIRST_POD: Ipv4Addr = Ipv4Addr::new(10, 132, 0, 0);
/// First of the destinations; one more for each 32,768 flows.
pub(crate) const FIRST_DESTINATION: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 128);
/// First of the 32,768 source ports.
pub(crate) const FIRST_SOURCE_PORT: u16 = 1024;
/// Where all flows go to.
pub(crate) const DESTINATION_PORT: u16 = 9000;

const FLOWS_PER_DESTINATION: u32 = 1 << 15;

/// A number of UDP flows, spread so that each has a five-tuple of its own, and the order in which they come.
///
/// Flows to one destination differ in their source port, so that a translator that tries to keep the port
/// never searches, and 32,768 of them leave half the ports of the egress address free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flows {
    count: u32,
    seed: u64,
    has_one_destination: bool,
}

impl Flows {
    /// Most flows that the destinations .128 to .254 hold.
    pub(crate) const MAXIMUM: u32 = 127 * FLOWS_PER_DESTINATION;

    /// More flows than one destination can have through one egress address: 64,512 ports are from 1024 on.
    const TOO_MANY: u32 = 65_536;

    /// Takes a number of flows that the command line has checked against [`Flows::MAXIMUM`].
    pub(crate) fn new(count: u32) -> Self {
        Self { count: count.clamp(1, Self::MAXIMUM), seed: 1, has_one_destination: false }
    }

    /// Makes flows to one destination, so many that the last ones find no outside port.
    pub(crate) fn out_of_ports() -> Self {
        Self { has_one_destination: true, ..Self::new(Self::TOO_MANY) }
    }

    /// Returns the same flows in the order that this seed gives.
    pub(crate) fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    pub(crate) fn seed(self) -> u64 {
        self.seed
    }

    pub(crate) fn count(self) -> u32 {
        self.count
    }

    pub(crate) fn has_one_destination(self) -> bool {
        self.has_one_destination
    }

    /// Returns how far one frame's flow is from the next one's, modulo the number of flows.
    ///
    /// The golden ratio of the whole, and coprime to it: every flow has its turn once in a round, and neighbours in
    /// time are far apart in any table that was filled in order.
    pub(crate) fn stride(self) -> u32 {
        let golden = u64::from(self.count) * 618_033_989 / 1_000_000_000;
        let golden = u32::try_from(golden).expect("a part of a u32 is one");
        (golden.max(1)..)
            .find(|stride| greatest_common_divisor(*stride, self.count) == 1)
            .expect("1 divides everything")
    }

    /// Returns every address that the flows go to.
    pub(crate) fn destinations(self) -> impl Iterator<Item = Ipv4Addr> {
        let first = u32::from(FIRST_DESTINATION);
        let count = if self.has_one_destination { 1 } else { self.count.div_ceil(FLOWS_PER_DESTINATION) };
        (0..count).map(move |index| Ipv4Addr::from(first + index))
    }
}

impl fmt::Display for Flows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = group_digits(self.count.into());
        let suffix = if self.has_one_destination { " to one destination" } else { "" };
        formatter.pad(&format!("{count}{suffix}"))
    }
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_visits_every_flow_once() {
        for count in [1, 2, 3, 1024, 65_536, 99_991] {
            let stride = Flows::new(count).stride() as usize;
            let mut seen = vec![false; count as usize];
            let mut flow = 0;
            for _ in 0..count {
                assert!(!seen[flow], "{count} flows, stride {stride}: flow {flow} twice");
                seen[flow] = true;
                flow = (flow + stride) % count as usize;
            }
        }
    }

    #[test]
    fn destinations_stay_inside_the_outside_subnet() {
        let last = Flows::new(u32::MAX).destinations().last();
        assert_eq!(last, Some(Ipv4Addr::new(192, 168, 55, 254)));
        assert_eq!(Flows::new(1).destinations().count(), 1);
        assert_eq!(Flows::new(32_769).destinations().count(), 2);
        assert_eq!(Flows::out_of_ports().destinations().count(), 1);
    }

    #[test]
    fn flows_are_named_by_their_number() {
        assert_eq!(Flows::new(1).to_string(), "1");
        assert_eq!(Flows::new(1_000_000).to_string(), "1,000,000");
        assert_eq!(Flows::out_of_ports().to_string(), "65,536 to one destination");
    }
}

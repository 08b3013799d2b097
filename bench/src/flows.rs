use std::net::Ipv4Addr;

/// First of the source addresses; 4,096 pods follow one another.
pub(crate) const FIRST_POD: Ipv4Addr = Ipv4Addr::new(10, 132, 0, 0);
/// First of the destinations; one more for each 32,768 flows.
pub(crate) const FIRST_DESTINATION: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 128);
/// First of the 32,768 source ports.
pub(crate) const FIRST_SOURCE_PORT: u16 = 1024;
/// Where all flows go to.
pub(crate) const DESTINATION_PORT: u16 = 9000;

const FLOWS_PER_DESTINATION: u32 = 1 << 15;

/// A number of UDP flows, spread so that one egress address has ports enough and keeps each source port.
///
/// Flows to one destination differ in their source port, so that a translator that tries to keep the port
/// never searches, and 32,768 of them leave half the ports of the egress address free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flows {
    count: u32,
    seed: u64,
}

impl Flows {
    /// Most flows that the destinations .128 to .254 hold.
    pub(crate) const MAXIMUM: u32 = 127 * FLOWS_PER_DESTINATION;

    /// Takes a number of flows that the command line has checked against [`Flows::MAXIMUM`].
    pub(crate) fn new(count: u32) -> Self {
        Self { count: count.clamp(1, Self::MAXIMUM), seed: 1 }
    }

    /// Returns the same flows in the order that this seed gives.
    pub(crate) fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    pub(crate) fn count(self) -> u32 {
        self.count
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
        (0..self.count.div_ceil(FLOWS_PER_DESTINATION)).map(move |index| Ipv4Addr::from(first + index))
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
    }
}

//! Flows, the order in which their packets come, and frames.

use std::net::Ipv4Addr;

use conntrack::checksum::checksum;
use conntrack::{ChecksumDelta, FiveTuple, Protocol};
use etherparse::PacketBuilder;
use fastpath::io::Frame;
use macaddr::MacAddr6;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The tenant's gateway.
pub const TENANT_MAC: MacAddr6 = MacAddr6::new(0x02, 0x53, 192, 168, 99, 13);
/// The gateway's own outside interface.
pub const OUTSIDE_MAC: MacAddr6 = MacAddr6::new(2, 0, 0, 0, 2, 0x12);
/// The tenant's egress address.
pub const EGRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 113);

const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x21];
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x01];
const FIRST_POD: Ipv4Addr = Ipv4Addr::new(10, 132, 0, 0);
const PODS: u32 = 4096;
const FIRST_DESTINATION: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// A quarter of the ports of an egress address.
const FLOWS_PER_DESTINATION: u32 = 16_128;
const DESTINATION_PORT: u16 = 9000;

/// Lengths of frames, without the frame check sequence.
const HEADER_BYTES: usize = 42;
const SMALLEST: usize = 60;
/// Seven small, four middle-sized and one large: simple IMIX.
const IMIX: [usize; 12] = [60, 60, 566, 60, 60, 566, 60, 566, 60, 1514, 566, 60];

/// A number of UDP flows of one tenant, of 4,096 pods, to as many destinations as take a quarter of the ports each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flows {
    count: u32,
    destinations: u32,
}

impl Flows {
    /// Takes so many flows.
    pub fn new(count: u32) -> Self {
        let count = count.max(1);
        Self { count, destinations: count.div_ceil(FLOWS_PER_DESTINATION) }
    }

    /// Returns the same flows and some more to the same destinations.
    #[must_use]
    pub fn with_more(self, more: u32) -> Self {
        Self { count: self.count + more, ..self }
    }

    /// Returns how many there are.
    pub fn count(self) -> u32 {
        self.count
    }

    /// Returns the tuple of a flow's packets as its pod sends them.
    pub fn tuple(self, flow: u32) -> FiveTuple {
        let port = 1024 + flow / PODS % 60_000;
        FiveTuple {
            source: Ipv4Addr::from_bits(FIRST_POD.to_bits() + flow % PODS),
            destination: Ipv4Addr::from_bits(FIRST_DESTINATION.to_bits() + flow % self.destinations),
            source_port: u16::try_from(port).expect("61,024 at most"),
            destination_port: DESTINATION_PORT,
            protocol: Protocol::Udp,
        }
    }
}

/// An order of flows that never ends.
#[derive(Debug)]
pub struct Order {
    rng: StdRng,
}

impl Order {
    /// Makes the order of a seed.
    pub fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed) }
    }

    /// Draws flows at random, each as likely as any other.
    pub fn draw(&mut self, count: u32, flows: &mut [u32]) {
        for flow in flows {
            *flow = self.rng.random_range(0..count);
        }
    }

    /// Returns every flow from `from` to `to` once, shuffled.
    pub fn once(&mut self, from: u32, to: u32) -> Vec<u32> {
        let mut flows: Vec<u32> = (from..to).collect();
        for last in (1..flows.len()).rev() {
            flows.swap(last, self.rng.random_range(0..=last));
        }
        flows
    }
}

/// How long frames are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// 64 bytes on the wire.
    Small,
    /// Simple IMIX: 64, 570 and 1,518 bytes, 7 : 4 : 1.
    Imix,
}

impl Sizes {
    fn frame_bytes(self, number: usize) -> usize {
        match self {
            Self::Small => SMALLEST,
            Self::Imix => IMIX[number % IMIX.len()],
        }
    }
}

/// A frame of UDP from which those of all flows are made.
#[derive(Clone, Debug)]
pub struct Template {
    bytes: Vec<u8>,
    tuple: FiveTuple,
    header_sum: u16,
    udp_sum: u16,
}

impl Template {
    /// Makes the frames that pods send.
    pub fn outbound() -> Vec<Self> {
        Self::of_all_sizes(NODE_MAC, TENANT_MAC, Flows::new(1).tuple(0))
    }

    /// Makes the frames that servers answer with.
    pub fn inbound() -> Vec<Self> {
        let tuple = FiveTuple { source: EGRESS, ..Flows::new(1).tuple(0) };
        Self::of_all_sizes(ROUTER_MAC, OUTSIDE_MAC, tuple.reversed())
    }

    fn of_all_sizes(source: [u8; 6], destination: MacAddr6, tuple: FiveTuple) -> Vec<Self> {
        IMIX.iter().map(|bytes| Self::new(source, destination, tuple, *bytes)).collect()
    }

    fn new(source: [u8; 6], destination: MacAddr6, tuple: FiveTuple, frame_bytes: usize) -> Self {
        let builder = PacketBuilder::ethernet2(source, destination.into_array())
            .ipv4(tuple.source.octets(), tuple.destination.octets(), 64)
            .udp(tuple.source_port, tuple.destination_port);
        let mut bytes = Vec::new();
        let payload = vec![0; frame_bytes - HEADER_BYTES];
        builder.write(&mut bytes, &payload).expect("writing to memory does not fail");
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        debug_assert_eq!(checksum(0, &bytes[14..34]), 0);
        let (header_sum, udp_sum) = (word(24), word(40));
        Self { bytes, tuple, header_sum, udp_sum }
    }

    /// Writes the frame of a tuple.
    pub fn write(&self, tuple: &FiveTuple, frame: &mut Frame) {
        let addresses = ChecksumDelta::default()
            .replace_address(self.tuple.source, tuple.source)
            .replace_address(self.tuple.destination, tuple.destination);
        let all = addresses
            .replace(self.tuple.source_port, tuple.source_port)
            .replace(self.tuple.destination_port, tuple.destination_port);
        frame.set_len(self.bytes.len());
        let bytes = frame.bytes_mut();
        // The payload is never looked at, nor changed.
        bytes[..HEADER_BYTES].copy_from_slice(&self.bytes[..HEADER_BYTES]);
        bytes[24..26].copy_from_slice(&addresses.apply(self.header_sum).to_be_bytes());
        bytes[26..30].copy_from_slice(&tuple.source.octets());
        bytes[30..34].copy_from_slice(&tuple.destination.octets());
        bytes[34..36].copy_from_slice(&tuple.source_port.to_be_bytes());
        bytes[36..38].copy_from_slice(&tuple.destination_port.to_be_bytes());
        bytes[40..42].copy_from_slice(&all.apply(self.udp_sum).to_be_bytes());
    }
}

/// The frames of both directions.
#[derive(Clone, Debug)]
pub struct Frames {
    outbound: Vec<Template>,
    inbound: Vec<Template>,
}

impl Default for Frames {
    fn default() -> Self {
        Self { outbound: Template::outbound(), inbound: Template::inbound() }
    }
}

impl Frames {
    /// Writes a frame as a pod sends it; `number` decides its length where lengths are mixed.
    pub fn write_outbound(&self, tuple: &FiveTuple, sizes: Sizes, number: usize, frame: &mut Frame) {
        of_size(&self.outbound, sizes.frame_bytes(number)).write(tuple, frame);
    }

    /// Writes a frame as a server answers.
    pub fn write_inbound(&self, tuple: &FiveTuple, sizes: Sizes, number: usize, frame: &mut Frame) {
        of_size(&self.inbound, sizes.frame_bytes(number)).write(tuple, frame);
    }
}

fn of_size(templates: &[Template], frame_bytes: usize) -> &Template {
    let place = IMIX.iter().position(|bytes| *bytes == frame_bytes).expect("it is one of them");
    &templates[place]
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastpath::io::FrameArea;
    use fastpath::parse::{Transport, parse};

    #[test]
    fn frames_say_what_their_tuples_say_and_their_checksums_hold() {
        let (_area, mut pool) = FrameArea::allocate(1).expect("there is memory");
        let mut frame = pool.take().expect("there is one");
        let (frames, flows) = (Frames::default(), Flows::new(258_048));
        for number in 0..100_000 {
            let flow = u32::try_from(number).expect("it is small") * 7 % flows.count();
            let tuple = flows.tuple(flow);
            frames.write_outbound(&tuple, Sizes::Imix, number, &mut frame);
            let packet = parse(frame.bytes()).expect("the header's checksum is right");
            let Transport::Flow(parsed) = packet.transport else { panic!("a flow") };
            assert_eq!(parsed.tuple, tuple);
            assert_eq!(packet.frame_bytes, Sizes::Imix.frame_bytes(number));
        }
    }

    #[test]
    fn every_flow_is_another() {
        let flows = Flows::new(1_032_192);
        let mut tuples: Vec<_> = (0..flows.count())
            .map(|flow| flows.tuple(flow))
            .map(|tuple| (tuple.source, tuple.source_port, tuple.destination))
            .collect();
        tuples.sort_unstable();
        tuples.dedup();
        assert_eq!(tuples.len(), flows.count() as usize);
    }
}

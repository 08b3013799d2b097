//! What takes the express lane comes to the same as what goes the whole way.

use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;

use crate::io::sim::Faults;
use crate::snapshot::Side::{self, Inside, Outside};
use crate::snapshot::SnapshotSpec;
use crate::testing::fuzzing::frames::{Content, Draft, answer};
use crate::testing::rig::{Rig, Size};
use crate::testing::{BLUE_MAC, NODE_MAC, RED_MAC, gateway};
use crate::verdict::DropReason;

/// Frames that were sent outside and may be answered.
const REMEMBERED: usize = 24;

#[derive(Clone, Debug)]
enum Event {
    /// Frames that come in one batch.
    Batch(Vec<Arriving>),
    /// Time passes.
    Wait(u64),
    /// Another snapshot.
    Publish { has_red: bool, mtu: u16, clamp: u16, change: Change },
}

/// What ends sessions, or sends their packets elsewhere.
#[derive(Clone, Copy, Debug)]
enum Change {
    Nothing,
    /// The router's MAC is not known.
    RouterUnresolved,
    /// The router has another MAC.
    RouterMac,
    /// Blue leaves with another address.
    Egress,
    /// Blue may only send from its first two addresses.
    Sources,
}

#[derive(Clone, Debug)]
enum Arriving {
    /// From a pod.
    FromPod(PodFrame),
    /// An answer to something that was sent outside, with these flags if it is TCP.
    Answer { which: usize, flags: u8, ttl: u8 },
    /// One of these, with a byte changed or cut there.
    Broken { frame: PodFrame, at: prop::sample::Index, change: Option<u8> },
}

#[derive(Clone, Debug)]
struct PodFrame {
    is_red: bool,
    source: (u8, u16),
    destination: Ipv4Addr,
    content: Content,
    ttl: u8,
    fragment: u16,
    option_words: u8,
    payload_bytes: usize,
    padding: usize,
}

impl PodFrame {
    fn write(&self) -> Vec<u8> {
        let mut frame = Draft {
            to_mac: if self.is_red { RED_MAC } else { BLUE_MAC },
            from_mac: NODE_MAC,
            source: Ipv4Addr::new(10, 132, 0, self.source.0),
            destination: self.destination,
            source_port: self.source.1,
            destination_port: 9000,
            content: self.content,
            ttl: self.ttl,
            identification: 7,
            fragment: self.fragment,
            option_words: self.option_words,
            payload_bytes: self.payload_bytes,
        }
        .write();
        frame.resize(frame.len() + self.padding, 0xee);
        frame
    }
}

fn any_flags() -> impl Strategy<Value = u8> {
    prop_oneof![4 => Just(0x10u8), 2 => Just(0x02), 1 => Just(0x12), 1 => Just(0x11), 1 => Just(0x04)]
}

fn any_content() -> impl Strategy<Value = Content> {
    prop_oneof![
        4 => any::<bool>().prop_map(|has_checksum| Content::Udp { has_checksum }),
        4 => any_flags().prop_map(|flags| Content::Tcp { flags, mss: (flags & 2 != 0).then_some(1460) }),
        1 => Just(Content::Icmp { kind: 8 }),
        1 => Just(Content::Other { protocol: 47 }),
    ]
}

fn any_frame() -> impl Strategy<Value = PodFrame> {
    let destination = prop_oneof![
        6 => (0u8..3).prop_map(|host| Ipv4Addr::new(198, 51, 100, host)),
        1 => Just(Ipv4Addr::new(192, 168, 55, 114)),
        1 => Just(Ipv4Addr::new(127, 0, 0, 1)),
    ];
    let ttl = prop_oneof![8 => Just(64u8), 1 => 0u8..4];
    let fragment = prop_oneof![8 => Just(0x4000u16), 4 => Just(0), 1 => Just(0x2000), 1 => Just(0x0001)];
    let payload = prop_oneof![8 => 0usize..64, 1 => 1380usize..1500];
    let source = (0u8..4, prop_oneof![3 => 40_000u16..40_003, 1 => Just(1u16)]);
    let rest = (
        prop_oneof![12 => Just(0u8), 1 => Just(1)],
        payload,
        prop_oneof![3 => Just(0usize), 1 => 1usize..20],
    );
    (any::<bool>(), source, destination, any_content(), ttl, fragment, rest).prop_map(
        |(is_red, source, destination, content, ttl, fragment, (option_words, payload_bytes, padding))| {
            PodFrame {
                is_red,
                source,
                destination,
                content,
                ttl,
                fragment,
                option_words,
                payload_bytes,
                padding,
            }
        },
    )
}

fn any_arriving() -> impl Strategy<Value = Arriving> {
    prop_oneof![
        8 => any_frame().prop_map(Arriving::FromPod),
        6 => (0..REMEMBERED, any_flags(), prop_oneof![8 => Just(64u8), 1 => 0u8..4])
            .prop_map(|(which, flags, ttl)| Arriving::Answer { which, flags, ttl }),
        1 => (any_frame(), any::<prop::sample::Index>(), any::<Option<u8>>())
            .prop_map(|(frame, at, change)| Arriving::Broken { frame, at, change }),
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    use Change::{Egress, Nothing, RouterMac, RouterUnresolved, Sources};
    prop_oneof![Just(Nothing), Just(RouterUnresolved), Just(RouterMac), Just(Egress), Just(Sources)]
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => prop::collection::vec(any_arriving(), 1..50).prop_map(Event::Batch),
        2 => prop_oneof![Just(100u64), Just(7000), Just(130_000)].prop_map(Event::Wait),
        3 => (any::<bool>(), prop_oneof![Just(1500u16), Just(1400)], prop_oneof![Just(0u16), Just(1300)], any_change())
            .prop_map(|(has_red, mtu, clamp, change)| Event::Publish { has_red, mtu, clamp, change }),
    ]
}

impl Change {
    fn make(self, spec: &mut SnapshotSpec) {
        let router = Ipv4Addr::new(192, 168, 55, 1);
        match self {
            Self::Nothing => {}
            Self::RouterUnresolved => spec.neighbours.retain(|neighbour| neighbour.address != router),
            Self::RouterMac => {
                let router = spec.neighbours.iter_mut().find(|neighbour| neighbour.address == router);
                router.unwrap().mac = NODE_MAC;
            }
            Self::Egress => spec.tenants[0].egress_addresses = vec![Ipv4Addr::new(192, 168, 55, 115)],
            Self::Sources => spec.tenants[0].sources = vec!["10.132.0.0/31".parse().unwrap()],
        }
    }
}

/// A worker that uses the lane, and one that does not.
struct Twins {
    rigs: [Rig; 2],
    epoch: u32,
    sent: Vec<Vec<u8>>,
}

impl Twins {
    fn new(workers: u16) -> Self {
        let size = Size { workers, frames: 320, ring: 96, ..Size::USUAL };
        let rigs = [false, true].map(|goes_whole_way| {
            let mut rig = Rig::of_size(gateway().spec(), size, Faults::default(), 1);
            rig.workers.iter_mut().for_each(|worker| worker.goes_whole_way = goes_whole_way);
            rig
        });
        Self { rigs, epoch: 1, sent: Vec::new() }
    }

    fn perform(&mut self, event: &Event) {
        match event {
            Event::Batch(frames) => {
                let frames: Vec<_> = frames.iter().filter_map(|frame| self.frame(frame)).collect();
                for rig in &mut self.rigs {
                    let workers = rig.workers.len();
                    for (number, (side, frame)) in frames.iter().enumerate() {
                        rig.inject(number % workers, *side, frame);
                    }
                    rig.run();
                }
            }
            Event::Wait(milliseconds) => {
                self.rigs.iter_mut().for_each(|rig| rig.wait(Duration::from_millis(*milliseconds)));
            }
            Event::Publish { has_red, mtu, clamp, change } => {
                self.epoch += 1;
                let gateway = if *has_red { gateway() } else { gateway().without_red() };
                let gateway = gateway.epoch(self.epoch).change(|spec| {
                    spec.outside.mtu = *mtu;
                    spec.tenants[0].mss_clamp = *clamp;
                    change.make(spec);
                });
                self.rigs.iter_mut().for_each(|rig| rig.publish(gateway.spec()));
            }
        }
    }

    fn frame(&self, arriving: &Arriving) -> Option<(Side, Vec<u8>)> {
        match arriving {
            Arriving::FromPod(frame) => Some((Inside, frame.write())),
            Arriving::Answer { which, flags, ttl } => {
                let sent = self.sent.iter().rev().cycle().nth(*which)?;
                let mut frame = answer(sent, *flags)?;
                frame[22] = *ttl;
                crate::testing::fuzzing::frames::seal(&mut frame);
                Some((Outside, frame))
            }
            Arriving::Broken { frame, at, change } => {
                let mut frame = frame.write();
                let at = at.index(frame.len());
                match change {
                    Some(change) => frame[at] ^= change,
                    None => frame.truncate(at.max(1)),
                }
                Some((Inside, frame))
            }
        }
    }

    fn compare(&mut self) {
        let [lane, whole] = &self.rigs;
        for side in Side::BOTH {
            let (mut sent, mut expected) = (lane.take(side), whole.take(side));
            if lane.workers.len() > 1 {
                // Between workers flows may pass each other; each stays in order.
                let by_ends = |frame: &Vec<u8>| (frame[23], frame[26..34].to_vec());
                sent.sort_by_key(by_ends);
                expected.sort_by_key(by_ends);
            }
            let seen = sent.iter().map(|frame| without_identification(frame));
            let differs = seen.ne(expected.iter().map(|frame| without_identification(frame)));
            assert!(!differs, "what leaves by the {} side:\n{sent:02x?}\n{expected:02x?}", side.name());
            if side == Outside {
                self.sent.extend(sent);
                self.sent.drain(..self.sent.len().saturating_sub(REMEMBERED));
            }
        }
        assert_eq!(lane.all_tenants(), whole.all_tenants());
        for reason in DropReason::ALL {
            assert_eq!(lane.drops(*reason), whole.drops(*reason), "{reason:?}");
        }
        let sessions =
            |rig: &Rig| rig.all_sessions().iter().map(|seen| format!("{seen:?}")).collect::<Vec<_>>();
        assert_eq!(sessions(lane), sessions(whole));
    }
}

/// Returns a frame without what each gateway draws at random.
fn without_identification(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[18..20].fill(0);
    frame[24..26].fill(0);
    frame
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_lane_and_the_whole_way_come_to_the_same(
        workers in 1u16..=3,
        events in prop::collection::vec(any_event(), 1..24),
    ) {
        let mut twins = Twins::new(workers);
        for event in &events {
            twins.perform(event);
            twins.compare();
        }
        for worker in &twins.rigs[1].workers {
            prop_assert_eq!(worker.passed_by_lane, 0);
        }
    }
}

#[test]
fn packets_of_sessions_that_exist_take_the_lane_both_ways() {
    let mut twins = Twins::new(1);
    let frame = datagram();
    let tcp = |flags| PodFrame { content: Content::Tcp { flags, mss: None }, ..frame.clone() };
    for arriving in [Arriving::FromPod(frame.clone()), Arriving::FromPod(tcp(0x02))] {
        twins.perform(&Event::Batch(vec![arriving]));
        twins.compare();
        twins.perform(&Event::Batch(vec![Arriving::Answer { which: 0, flags: 0x12, ttl: 64 }]));
        twins.compare();
    }
    let before = twins.rigs[0].workers[0].passed_by_lane;
    let batch = vec![
        Arriving::FromPod(frame.clone()),
        Arriving::FromPod(tcp(0x10)),
        Arriving::Answer { which: 0, flags: 0x10, ttl: 64 },
    ];
    twins.perform(&Event::Batch(batch));
    twins.compare();
    assert_eq!(twins.rigs[0].workers[0].passed_by_lane - before, 3);
}

#[test]
fn a_syn_takes_the_lane_where_its_session_begins_with_it_and_nothing_else_is_to_be_written() {
    let mut twins = Twins::new(1);
    let syn = |port, flags| {
        let content = Content::Tcp { flags, mss: Some(1460) };
        Arriving::FromPod(PodFrame { source: (5, port), content, ..datagram() })
    };
    let mut passed = |event| {
        let before = twins.rigs[0].workers[0].passed_by_lane;
        twins.perform(&event);
        twins.compare();
        twins.rigs[0].workers[0].passed_by_lane - before
    };
    let batch =
        vec![syn(40_000, 0x02), syn(40_001, 0x02), syn(40_000, 0x02), syn(40_002, 0x12), syn(40_003, 0xc2)];
    assert_eq!(passed(Event::Batch(batch)), 3, "neither the one that comes again nor an answer to none");
    passed(Event::Publish { has_red: true, mtu: 1500, clamp: 1300, change: Change::Nothing });
    assert_eq!(passed(Event::Batch(vec![syn(40_004, 0x02)])), 0);
}

fn datagram() -> PodFrame {
    PodFrame {
        is_red: false,
        source: (5, 40_000),
        destination: Ipv4Addr::new(198, 51, 100, 7),
        content: Content::Udp { has_checksum: true },
        ttl: 64,
        fragment: 0,
        option_words: 0,
        payload_bytes: 20,
        padding: 3,
    }
}

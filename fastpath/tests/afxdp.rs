//! AF_XDP sockets for real, on both ends of a veth pair.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use common::Namespace;
use conntrack::{Epoch, Policy, TenantId, Timeouts};
use etherparse::PacketBuilder;
use fastpath::dataplane::AttachPreference;
use fastpath::io::xsk::XskPort;
use fastpath::io::{Frame, FrameArea, FrameIo, FramePool};
use fastpath::snapshot::{LinkSpec, Side, Snapshot, SnapshotSpec, SourceKind, TcpPolicy, TenantSpec};
use fastpath::steer::Steering;
use macaddr::MacAddr6;
use nix::net::if_::if_nametoindex;

const FRAMES: usize = 16_384;
const EGRESS: [u8; 4] = [192, 168, 55, 113];

fn snapshot() -> Snapshot {
    let mac = MacAddr6::new(2, 0, 0, 0, 1, 0x12);
    let link = LinkSpec { mac, address: [192, 168, 55, 12].into(), mtu: 1500 };
    Snapshot::compile(SnapshotSpec {
        epoch: Epoch(1),
        inside: link,
        outside: link,
        tenants: vec![TenantSpec {
            id: TenantId(0),
            gateway_mac: mac,
            gateway_address: [192, 168, 99, 13].into(),
            egress_addresses: vec![EGRESS.into()],
            sources: Vec::new(),
            source_kind: SourceKind::Networks,
            is_draining: false,
            policy: Policy::default(),
            mss_clamp: 0,
        }],
        pod_cidrs: Vec::new(),
        own_addresses: Vec::new(),
        routes: Vec::new(),
        neighbours: Vec::new(),
        timeouts: Timeouts::default(),
        tcp: TcpPolicy::default(),
    })
}

fn numbered(number: u32) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([192, 168, 55, 13], EGRESS, 64)
        .udp(1, 2)
        .write(&mut frame, &number.to_be_bytes())
        .unwrap();
    frame
}

fn number_of(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[42..46].try_into().unwrap())
}

/// A socket at each end of a veth pair, and their frames.
struct Pair {
    // Dropped in this order: sockets go before programs, and those before the namespace.
    spin: XskPort,
    peer: XskPort,
    pool: FramePool,
    area: FrameArea,
    programs: [Steering; 2],
    namespace: Namespace,
}

impl Pair {
    fn open() -> Option<Self> {
        let namespace = Namespace::enter()?;
        let snapshot = snapshot();
        let mut programs = ["spin0", "peer0"].map(|_| Steering::load(Side::Outside, 1, &snapshot).unwrap());
        for (program, interface) in programs.iter_mut().zip(["spin0", "peer0"]) {
            let index = if_nametoindex(interface).unwrap();
            program.attach(index, AttachPreference::Auto, &namespace.pins.join(interface)).unwrap();
        }
        let (area, mut pool) = FrameArea::allocate(FRAMES).unwrap();
        let [spin, peer] = ["spin0", "peer0"].map(|interface| {
            let mut port = XskPort::open(&area, interface, 0).unwrap();
            port.refill(&mut pool);
            port
        });
        Some(Self { spin, peer, pool, area, programs, namespace })
    }

    /// Sends frames to the peer, and waits until they are in its ring.
    fn send(&mut self, frames: u32) {
        let before = self.received();
        for number in 0..frames {
            self.spin.send(numbered_frame(&mut self.pool, number)).unwrap();
        }
        self.spin.flush();
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.received() < before + u64::from(frames) {
            assert!(Instant::now() < deadline, "{} of {frames} frames arrived", self.received() - before);
        }
        // They are counted a moment before they are in the ring.
        std::thread::sleep(Duration::from_millis(10));
    }

    /// Returns how many frames have arrived at the peer.
    fn received(&self) -> u64 {
        let report = self.programs[1].report().unwrap();
        report
            .verdicts
            .into_iter()
            .find_map(|(row, count)| (row == "egress_to_worker").then_some(count))
            .unwrap()
    }
}

fn numbered_frame(pool: &mut FramePool, number: u32) -> Frame {
    let mut frame = pool.take().unwrap();
    let bytes = numbered(number);
    frame.set_len(bytes.len());
    frame.bytes_mut().copy_from_slice(&bytes);
    frame
}

/// Sends frames `numbers` from one port to the other; returns those that arrived, in order.
fn transfer(from: &mut XskPort, to: &mut XskPort, pool: &mut FramePool, count: u32) -> Vec<u32> {
    let mut arrived = Vec::new();
    let mut batch = VecDeque::with_capacity(64);
    let mut next = 0;
    let deadline = Instant::now() + Duration::from_secs(20);
    while (arrived.len() < count as usize || from.is_transmitting()) && Instant::now() < deadline {
        to.refill(pool);
        for _ in 0..32 {
            if next == count || pool.is_empty() {
                break;
            }
            match from.send(numbered_frame(pool, next)) {
                Ok(()) => next += 1,
                Err(frame) => pool.put(frame),
            }
        }
        from.flush();
        from.complete(pool);
        to.receive(&mut batch, 64);
        for frame in batch.drain(..) {
            arrived.push(number_of(frame.bytes()));
            pool.put(frame);
        }
    }
    arrived
}

#[test]
fn frames_arrive_whole_in_order_and_none_is_lost() {
    let Some(pair) = Pair::open() else { return };
    let Pair { mut spin, mut peer, mut pool, area, programs: _programs, namespace } = pair;
    let expected: Vec<_> = (0..20_000).collect();
    assert_eq!(transfer(&mut spin, &mut peer, &mut pool, 20_000), expected);
    assert_eq!(transfer(&mut peer, &mut spin, &mut pool, 20_000), expected);
    assert_eq!(pool.len() + spin.frames_owned() + peer.frames_owned(), FRAMES);
    let statistics = spin.probe().unwrap().statistics().unwrap();
    assert_eq!(statistics.invalid_descriptors, 0);
    assert!(!spin.probe().unwrap().is_zero_copy().unwrap(), "veth copies");

    drop(spin);
    let again = XskPort::open(&area, "spin0", 0);
    assert!(again.is_ok(), "a queue is free when its port is dropped: {again:?}");
    for interface in ["spin0", "peer0"] {
        fastpath::dataplane::detach(&namespace.pins.join(interface)).unwrap();
        let _ = std::fs::remove_dir(namespace.pins.join(interface));
    }
}

#[test]
fn who_receives_fewer_frames_than_wanted_has_received_all_that_came() {
    let Some(mut pair) = Pair::open() else { return };
    let mut batch = VecDeque::with_capacity(256);
    for (sent, limit, expected) in [(100, 64, 64), (100, 64, 64), (0, 128, 72), (0, 128, 0)] {
        pair.send(sent);
        assert_eq!(pair.peer.receive(&mut batch, limit), expected, "{limit} of those that are there");
    }
    assert_eq!(batch.len(), 200);
}

#[test]
fn frames_in_the_rings_of_a_socket_that_is_closed_are_made_anew_each_once() {
    let Some(namespace) = Namespace::enter() else { return };
    let snapshot = snapshot();
    let mut program = Steering::load(Side::Outside, 1, &snapshot).unwrap();
    program.attach(if_nametoindex("spin0").unwrap(), AttachPreference::Auto, &namespace.pins).unwrap();
    let (area, mut pool) = FrameArea::allocate(FRAMES).unwrap();
    for cycle in 0..5 {
        let mut port = XskPort::open(&area, "spin0", 0).unwrap();
        port.set_fill_frames(1000);
        port.refill(&mut pool);
        assert_eq!(port.frames_owned(), 1000);
        for number in 0..300 {
            port.send(numbered_frame(&mut pool, number)).unwrap();
            if number == 150 {
                port.flush();
            }
        }
        if cycle % 2 == 0 {
            // Completions that were seen are in the pool again, and not in the port.
            port.complete(&mut pool);
        }
        let owned = port.frames_owned();
        assert_eq!(pool.len() + owned, FRAMES);
        let probe = port.probe().unwrap();
        assert!(!probe.is_dead());
        let frames: Vec<_> = port.close(probe).into_frames().collect();
        assert_eq!(frames.len(), owned);
        frames.into_iter().for_each(|frame| pool.put(frame));
    }
    let mut places: Vec<_> = std::iter::from_fn(|| pool.take())
        .map(|mut frame| {
            frame.set_len(1);
            frame.bytes().as_ptr()
        })
        .collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), FRAMES, "every frame is there, once");
}

#[test]
fn a_socket_knows_when_its_interface_was_removed() {
    let Some(namespace) = Namespace::enter() else { return };
    let mut program = Steering::load(Side::Outside, 1, &snapshot()).unwrap();
    program.attach(if_nametoindex("spin0").unwrap(), AttachPreference::Auto, &namespace.pins).unwrap();
    let (area, mut pool) = FrameArea::allocate(8192).unwrap();
    let mut port = XskPort::open(&area, "spin0", 0).unwrap();
    port.refill(&mut pool);
    let probe = port.probe().unwrap();
    common::ip("link set spin0 down");
    assert!(!probe.is_dead(), "a link that is down comes up again");
    common::ip("link set spin0 up");
    common::ip("link delete spin0");
    assert!(probe.is_dead() && probe.is_dead(), "for good");
    assert_eq!(port.close(probe).into_frames().count() + pool.len(), 8192);
}

#[test]
fn a_queue_that_is_taken_is_refused_with_the_reason() {
    let Some(namespace) = Namespace::enter() else { return };
    let mut program = Steering::load(Side::Outside, 1, &snapshot()).unwrap();
    program.attach(if_nametoindex("spin0").unwrap(), AttachPreference::Auto, &namespace.pins).unwrap();
    let (area, _pool) = FrameArea::allocate(64).unwrap();
    let _port = XskPort::open(&area, "spin0", 0).unwrap();
    let second = XskPort::open(&area, "spin0", 0).unwrap_err();
    assert!(second.to_string().contains("another AF_XDP program"), "{second}");
}

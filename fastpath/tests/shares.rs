//! Shares of a receiving queue, as the XDP program gives them: it runs in the kernel on synthetic frames, and the test
//! takes the place of the worker, who says what it takes out of the ring.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::VecDeque;

use common::Namespace;
use conntrack::{Epoch, Policy, TenantId, Timeouts};
use etherparse::PacketBuilder;
use fastpath::dataplane::AttachPreference;
use fastpath::io::FrameArea;
use fastpath::io::turnstile::Turnstile;
use fastpath::io::xsk::XskPort;
use fastpath::snapshot::{LinkSpec, Side, Snapshot, SnapshotSpec, SourceKind, TcpPolicy, TenantSpec};
use fastpath::steer::Steering;
use macaddr::MacAddr6;
use nix::net::if_::if_nametoindex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const DROP: u32 = 1;
const REDIRECT: u32 = 4;
/// Frames that a ring holds, and how many of them one tenant may have where there are others that have few.
const RING: usize = 2048;
const SHARE: usize = RING / 2;
/// Frames that a worker takes in one turn while a queue stands.
const TURN: usize = 32;
/// Turns in 20 ms that leave frames in the ring, of a worker that does not keep up.
const STANDING_TURNS: usize = 64;
/// Frames that are enough for a worker to do.
const BACKLOG: usize = 256;
/// Tenants, by number.
const RED: u8 = 0;
const BLUE: u8 = 1;

fn spec() -> SnapshotSpec {
    let link = |host: u8| LinkSpec {
        mac: MacAddr6::new(2, 0, 0, 0, host, 0x12),
        address: [192, 168, host, 12].into(),
        mtu: 1500,
    };
    let tenant = |number: u8| TenantSpec {
        id: TenantId(number.into()),
        gateway_mac: MacAddr6::new(2, 0x53, 192, 168, 99, 13 + number),
        gateway_address: [192, 168, 99, 13 + number].into(),
        egress_addresses: vec![[192, 168, 55, 113 + number].into()],
        sources: vec!["10.132.0.0/14".parse().unwrap()],
        source_kind: SourceKind::Networks,
        is_draining: false,
        policy: Policy::default(),
        mss_clamp: 0,
    };
    SnapshotSpec {
        epoch: Epoch(1),
        inside: link(99),
        outside: link(55),
        tenants: (0..20).map(tenant).collect(),
        pod_cidrs: Vec::new(),
        own_addresses: Vec::new(),
        routes: Vec::new(),
        neighbours: Vec::new(),
        timeouts: Timeouts::default(),
        tcp: TcpPolicy::default(),
    }
}

/// The program of one side, and a ring that the test keeps as a list of the tenants whose frames are in it.
struct Queue {
    steering: Steering,
    turnstile: Turnstile,
    side: Side,
    ring: VecDeque<u8>,
    refused: [u64; 20],
    _socket: XskPort,
    _namespace: Namespace,
}

impl Queue {
    fn open(side: Side) -> Option<Self> {
        let namespace = Namespace::enter()?;
        let mut steering = Steering::load(side, 1, &Snapshot::compile(spec())).unwrap();
        let index = if_nametoindex("spin0").unwrap();
        steering.attach(index, AttachPreference::Auto, &namespace.pins).unwrap();
        let (area, _pool) = FrameArea::allocate(64).unwrap();
        let socket = XskPort::open(&area, "spin0", 0).unwrap();
        let turnstile = steering.turnstile(0);
        let mut queue = Self {
            steering,
            turnstile,
            side,
            ring: VecDeque::new(),
            refused: [0; 20],
            _socket: socket,
            _namespace: namespace,
        };
        // The program does not ask more of a worker that says nothing.
        assert!(queue.send(RED));
        queue.take(RING);
        Some(queue)
    }

    /// Lets a frame of a tenant come; tells whether it was let in.
    fn send(&mut self, tenant: u8) -> bool {
        let mut frame = Vec::new();
        let (source, destination, mac) = match self.side {
            Side::Inside => ([10, 132, 0, 5], [192, 168, 55, 13], [2, 0x53, 192, 168, 99, 13 + tenant]),
            Side::Outside => ([192, 168, 55, 13], [192, 168, 55, 113 + tenant], [2, 0, 0, 0, 55, 0x12]),
        };
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0x21], mac)
            .ipv4(source, destination, 64)
            .udp(1, 2)
            .write(&mut frame, b"x")
            .unwrap();
        match self.steering.test_run(&frame).unwrap() {
            REDIRECT => self.ring.push_back(tenant),
            DROP => self.refused[usize::from(tenant)] += 1,
            other => panic!("XDP action {other}"),
        }
        let refused = self.steering.refused(TenantId(tenant.into()));
        assert_eq!(refused, self.refused[usize::from(tenant)], "what is dropped is counted for its tenant");
        self.ring.back() == Some(&tenant)
    }

    fn send_many(&mut self, tenant: u8, frames: usize) -> usize {
        let before = self.held(tenant);
        for _ in 0..frames {
            self.send(tenant);
        }
        self.held(tenant) - before
    }

    /// Takes as many frames out of the ring as a worker that asks for so many.
    fn take(&mut self, limit: usize) {
        let found = self.ring.len().min(limit);
        self.ring.drain(..found);
        self.turnstile.pass(found, found < limit);
    }

    fn held(&self, tenant: u8) -> usize {
        self.ring.iter().filter(|owner| **owner == tenant).count()
    }
}

#[test]
fn who_is_alone_may_fill_the_ring_and_not_one_frame_more() {
    for side in Side::BOTH {
        let Some(mut queue) = Queue::open(side) else { return };
        assert_eq!(queue.send_many(RED, RING + 100), RING);
        queue.take(64);
        assert_eq!(queue.send_many(RED, 100), 64);
        // The worker finds the ring empty: whatever was thought to be in it.
        queue.take(RING + 1);
        assert_eq!(queue.send_many(RED, RING + 100), RING);
    }
}

#[test]
fn where_another_comes_nobody_has_more_than_a_share() {
    for side in Side::BOTH {
        let Some(mut queue) = Queue::open(side) else { return };
        assert!(queue.send(BLUE));
        assert_eq!(queue.send_many(RED, 5000), SHARE, "exactly");
        assert_eq!(
            queue.send_many(BLUE, 5000),
            SHARE / 2 - 1,
            "the other gets what is free, as long as it has less"
        );
        queue.take(RING + 1);
        assert_eq!(queue.send_many(RED, 5000), SHARE, "also after a while of its own");
    }
}

#[test]
fn where_the_worker_does_not_keep_up_nobody_has_more_than_two_turns_take_and_is_served_on() {
    for (side, is_received_here) in Side::BOTH.into_iter().flat_map(|side| [(side, true), (side, false)]) {
        let Some(mut queue) = Queue::open(side) else { return };
        let cores = core_affinity::get_core_ids().unwrap();
        core_affinity::set_for_current(cores[0]);
        assert!(queue.send(BLUE));
        assert_eq!(queue.send_many(RED, 5000), SHARE);
        let ask = |queue: &mut Queue| {
            core_affinity::set_for_current(if is_received_here { cores[0] } else { *cores.last().unwrap() });
            let is_contended = queue.turnstile.note_backlog();
            core_affinity::set_for_current(cores[0]);
            let is_here = is_received_here || cores.len() == 1;
            assert_eq!(is_contended, is_here && queue.ring.len() < BACKLOG, "{}", queue.ring.len());
        };
        for _ in 0..STANDING_TURNS {
            queue.take(8);
            ask(&mut queue);
        }
        while queue.ring.len() >= 2 * TURN {
            queue.take(TURN);
        }
        let mut let_in = 0;
        for _ in 0..50 {
            let_in += queue.send_many(RED, 200);
            assert!(queue.held(RED) <= 2 * TURN, "{}", queue.held(RED));
            assert!(queue.send(BLUE));
            queue.take(TURN);
            ask(&mut queue);
        }
        assert!(let_in > 50 * TURN / 2, "{let_in} frames were let in");
        queue.take(RING + 1);
        assert!(queue.send_many(RED, 5000) <= 2 * TURN, "it may soon be so again");
        std::thread::sleep(std::time::Duration::from_millis(200));
        queue.take(RING + 1);
        assert_eq!(queue.send_many(RED, 5000), SHARE, "nobody waits in a ring that has been empty for long");
    }
}

#[test]
fn a_burst_that_fits_into_the_ring_is_let_in_as_a_whole() {
    let Some(mut queue) = Queue::open(Side::Inside) else { return };
    for _ in 0..3 {
        assert!(queue.send(BLUE));
        assert_eq!(queue.send_many(RED, SHARE), SHARE);
        for _ in 0..SHARE / TURN {
            queue.take(TURN);
            queue.turnstile.note_backlog();
        }
        queue.take(TURN);
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
}

#[test]
fn a_ring_is_contended_for_a_second_after_two_tenants_came_by_the_core_of_who_asks() {
    let cores: Vec<_> = core_affinity::get_core_ids().unwrap();
    core_affinity::set_for_current(cores[0]);
    let Some(mut queue) = Queue::open(Side::Inside) else { return };
    queue.send_many(RED, 10);
    assert!(!queue.turnstile.note_backlog(), "one is alone");
    queue.send(BLUE);
    assert!(queue.turnstile.note_backlog());
    if let Some(other) = cores.get(1) {
        core_affinity::set_for_current(*other);
        assert!(!queue.turnstile.note_backlog(), "it was received elsewhere");
        core_affinity::set_for_current(cores[0]);
    }
    std::thread::sleep(std::time::Duration::from_millis(1100));
    queue.send(BLUE);
    assert!(!queue.turnstile.note_backlog(), "the other has not come again");
}

#[test]
fn who_comes_last_finds_room_whatever_many_others_want() {
    let Some(mut queue) = Queue::open(Side::Inside) else { return };
    for round in 0..400 {
        for tenant in 2..20 {
            queue.send_many(tenant, 20);
        }
        assert!(queue.send(BLUE), "round {round}: {} frames wait", queue.ring.len());
        queue.take(64);
        assert!(queue.ring.len() <= RING);
    }
    assert!(queue.refused[2..].iter().all(|refused| *refused > 1000), "{:?}", queue.refused);
}

#[test]
fn a_paced_tenant_loses_nothing_beside_a_flood_in_any_order() {
    for seed in 0..4 {
        let Some(mut queue) = Queue::open(Side::Outside) else { return };
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..300 {
            for _ in 0..random.random_range(1..8) {
                queue.send_many(RED, random.random_range(0..60));
                queue.send_many(BLUE, random.random_range(0..3));
            }
            assert!(queue.held(RED) <= SHARE || queue.refused[usize::from(RED)] == 0, "seed {seed}");
            queue.take(if random.random_bool(0.1) { RING + 1 } else { 64 });
        }
        assert!(queue.refused[usize::from(RED)] > 0, "seed {seed}");
        assert_eq!(queue.refused[usize::from(BLUE)], 0, "seed {seed}");
    }
}

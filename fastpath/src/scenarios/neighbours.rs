//! One tenant floods, whatever it sends and in whatever order: the other loses nothing, and limits hold.

use conntrack::Protocol::Udp;
use conntrack::{Policy, Quota, TcpFlags, TenantId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::EGRESS;
use crate::dataplane::TenantReport;
use crate::io::sim::Faults;
use crate::snapshot::Side::{Inside, Outside};
use crate::testing::fragments::{fragment, fragments, packet, with_identification};
use crate::testing::rig::{Rig, Size, check_sent};
use crate::testing::{BLUE, gateway, red, tcp_frame, udp_frame};
use crate::verdict::DropReason;

const RED: TenantId = TenantId(1);
const SERVER: &str = "192.168.55.13:53";

/// What red floods with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    Syns,
    NewFlows,
    /// More pods than there are outside ports for their port.
    OneDestination,
    FirstFragments,
    LaterFragments,
    /// To ever other hosts that do not exist.
    DarkNeighbours,
    /// From addresses that it may not use.
    Refused,
}

const FLOODS: [Flood; 7] = [
    Flood::Syns,
    Flood::NewFlows,
    Flood::OneDestination,
    Flood::FirstFragments,
    Flood::LaterFragments,
    Flood::DarkNeighbours,
    Flood::Refused,
];

impl Flood {
    fn frame(self, number: u16) -> Vec<u8> {
        let [high, low] = number.to_be_bytes();
        let pod = format!("10.133.{high}.{low}");
        let piece = |at| {
            let whole = packet(Udp, &format!("{pod}:4000"), SERVER, &[7; 100], false);
            fragment(&with_identification(whole, number), at, 48)
        };
        red(match self {
            Self::Syns => tcp_frame(&format!("{pod}:4000"), "192.168.55.13:80", TcpFlags::SYN),
            Self::NewFlows => udp_frame(&format!("10.132.0.9:{number}"), SERVER, b"x"),
            Self::OneDestination => udp_frame(&format!("{pod}:500"), SERVER, b"x"),
            Self::FirstFragments => piece(0),
            Self::LaterFragments => piece(48),
            Self::DarkNeighbours => {
                udp_frame(&format!("{pod}:4000"), &format!("192.168.55.{}:53", 130 + number % 100), b"x")
            }
            Self::Refused => udp_frame(&format!("172.16.{high}.{low}:4000"), SERVER, b"x"),
        })
    }

    /// What has to stop it.
    fn bound(self) -> DropReason {
        match self {
            Self::Syns | Self::NewFlows => DropReason::TenantShare,
            Self::OneDestination => DropReason::NoPort,
            Self::FirstFragments | Self::LaterFragments => DropReason::FragmentLimit,
            Self::DarkNeighbours => DropReason::NeighbourUnresolved,
            Self::Refused => DropReason::UnknownSource,
        }
    }
}

/// Sends everything that blue may want, at a worker: a packet of an old session and one that may be new, a datagram in fragments,
/// and a packet to a host that is yet to be found. All but the last leave.
fn require_service(rig: &mut Rig, worker: usize, visit: u16) {
    let dark = [BLUE].map(|tenant| rig.drops_of(tenant, DropReason::NeighbourUnresolved));
    rig.take(Outside);
    rig.inject(worker, Inside, &udp_frame("10.132.0.5:4000", SERVER, b"old"));
    rig.inject(worker, Inside, &udp_frame(&format!("10.132.0.5:{}", 5000 + visit % 3), SERVER, b"new"));
    let whole = packet(Udp, "10.132.0.5:4001", SERVER, &[7; 2500], false);
    let pieces = fragments(&with_identification(whole, visit), 1000);
    pieces.iter().rev().for_each(|piece| rig.inject(worker, Inside, piece));
    rig.inject(worker, Inside, &udp_frame("10.132.0.5:4002", "192.168.55.240:53", b"dark"));
    rig.run();
    let sent = rig.take(Outside);
    let mine: Vec<_> = sent.iter().filter(|frame| frame[26..30] == EGRESS.octets()).collect();
    let drops = report(rig, BLUE).drops;
    assert_eq!(mine.len(), 2 + pieces.len(), "visit {visit}: {drops:?}");
    mine.iter().for_each(|frame| check_sent(Outside, frame, &[EGRESS]));
    assert_eq!([BLUE].map(|tenant| rig.drops_of(tenant, DropReason::NeighbourUnresolved)), dark);
}

/// Sends what is refused, and requires an answer.
fn require_answer(rig: &mut Rig, worker: usize) {
    rig.take(Inside);
    rig.inject(worker, Inside, &udp_frame("172.16.0.5:1", SERVER, b"x"));
    rig.run();
    let to_blue = |frame: &&Vec<u8>| frame[26..30] == [192, 168, 99, 13];
    assert_eq!(rig.take(Inside).iter().filter(to_blue).count(), 1, "blue is told");
}

fn report(rig: &Rig, tenant: TenantId) -> TenantReport {
    let mut report = TenantReport::default();
    rig.workers.iter().for_each(|worker| worker.counters().tenant(tenant).add_to(&mut report));
    report
}

#[test]
fn whatever_a_tenant_floods_with_the_other_loses_nothing() {
    for flood in FLOODS {
        for (workers, sessions, seed) in [(1, 4096, 1), (4, 1024, 2)] {
            let size = Size { workers, sessions, frames: 2048, ring: 256, ..Size::USUAL };
            let mut rig = Rig::of_size(gateway().spec(), size, Faults::default(), seed);
            let mut random = StdRng::seed_from_u64(seed);
            let mut number = 1024;
            for visit in 0..8 {
                for _ in 0..random.random_range(1..30) {
                    let worker = random.random_range(0..usize::from(workers));
                    for _ in 0..random.random_range(0..96) {
                        number += 1;
                        rig.inject(worker, Inside, &flood.frame(number));
                    }
                    rig.turn(worker);
                }
                let worker = random.random_range(0..usize::from(workers));
                require_service(&mut rig, worker, visit);
                require_answer(&mut rig, worker);
            }
            let blue = report(&rig, BLUE);
            assert_eq!(blue.drops, [(DropReason::UnknownSource, 8)], "{flood:?}, {workers} workers");
            assert!(rig.drops_of(RED, flood.bound()) > 0, "{flood:?}: {:?}", report(&rig, RED));
        }
    }
}

#[test]
fn limits_hold_exactly_in_a_flood_at_several_workers() {
    let quota = |sessions, ports, new_per_second| Quota { sessions, ports, new_per_second };
    let none = quota(0, 0, 0);
    let cases = [
        (quota(777, 0, 0), none, 777, DropReason::TenantSessionLimit),
        (quota(0, 777, 0), none, 777, DropReason::TenantPortLimit),
        (quota(0, 0, 777), none, 777, DropReason::TenantRateLimit),
        (none, quota(7, 0, 0), 7 * 100, DropReason::PodSessionLimit),
        (none, quota(0, 7, 0), 7 * 100, DropReason::PodPortLimit),
        (none, quota(0, 0, 7), 7 * 100, DropReason::PodRateLimit),
    ];
    for (tenant_quota, pod_quota, most, reason) in cases {
        let policy = Policy { tenant_quota, pod_quota, ..Policy::default() };
        let spec = gateway().change(|spec| spec.tenants[1].policy = policy).spec();
        let size = Size { workers: 4, sessions: 4096, frames: 2048, ring: 256, ..Size::USUAL };
        let mut rig = Rig::of_size(spec, size, Faults::default(), 1);
        for number in 0..4000u32 {
            let pod = format!("10.132.1.{}:{}", number % 100, 2000 + number / 100);
            rig.inject(number as usize % 4, Inside, &red(udp_frame(&pod, SERVER, b"x")));
            if number.is_multiple_of(37) {
                rig.turn(number as usize % 4);
            }
        }
        rig.run();
        assert_eq!(rig.sessions(), most, "{}", reason.name());
        assert_eq!(rig.drops_of(RED, reason), 4000 - u64::from(most), "{}", reason.name());
        assert_eq!(report(&rig, RED).dropped_packets, 4000 - u64::from(most), "{}", reason.name());
    }
}

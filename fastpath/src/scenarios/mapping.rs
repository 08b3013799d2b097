//! Mapping, filtering and pairing: which outside address and port stand for a pod's, for how long, and who may use them.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use conntrack::{Filtering, Mapping, Policy, TcpFlags, TcpState};

use super::{EGRESS, POD, SYN_ACK, answer, come_back, ends, leave, leave_by, only};
use crate::snapshot::Side::{Inside, Outside};
use crate::snapshot::TenantSpec;
use crate::testing::rig::Rig;
use crate::testing::{Gateway, echo_frame, gateway, tcp_frame, udp_frame};
use crate::verdict::DropReason;

const TENTH: Duration = Duration::from_millis(100);
const FILTERINGS: [Filtering; 3] =
    [Filtering::AddressAndPortDependent, Filtering::AddressDependent, Filtering::EndpointIndependent];

/// A gateway whose tenants have endpoint-independent mapping and this filtering.
fn endpoint_independent(filtering: Filtering) -> Gateway {
    let policy = Policy { mapping: Mapping::EndpointIndependent, filtering, ..Policy::default() };
    gateway().change(|spec| spec.tenants.iter_mut().for_each(|tenant| tenant.policy = policy))
}

/// A first packet of UDP or TCP from a pod.
fn first(is_tcp: bool, source: &str, destination: &str) -> Vec<u8> {
    if is_tcp { tcp_frame(source, destination, TcpFlags::SYN) } else { udp_frame(source, destination, b"x") }
}

/// Returns the outside port of what a pod sends.
fn port_of(rig: &mut Rig, frame: &[u8]) -> u16 {
    let sent = leave(rig, frame);
    if sent[23] == 1 { u16::from_be_bytes([sent[38], sent[39]]) } else { ends(&sent).source.1 }
}

#[test]
fn one_outside_port_stands_for_a_pods_port_towards_everybody() {
    let mut rig = Rig::new(endpoint_independent(Filtering::default()).spec());
    let destinations = ["192.168.55.13:53", "192.168.55.13:54", "198.51.100.7:53"];
    let mut outside = HashSet::new();
    for is_tcp in [false, true] {
        for pod in ["10.132.0.5:40000", "10.132.0.5:40001", "10.132.0.6:40000"] {
            let ports = destinations.map(|destination| port_of(&mut rig, &first(is_tcp, pod, destination)));
            assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
            assert!(outside.insert((is_tcp, ports[0])), "two never share one");
        }
    }
    let echo = |pod: &str, destination: &str| echo_frame(pod, destination, 4711, false);
    let identifiers =
        ["192.168.55.13", "198.51.100.7"].map(|destination| port_of(&mut rig, &echo(POD, destination)));
    assert_eq!(identifiers[0], identifiers[1]);
    assert_ne!(identifiers[0], port_of(&mut rig, &echo("10.132.0.6", "192.168.55.13")));
    assert_eq!((rig.sessions(), rig.all_drops()), (6 * 3 + 3, 0));
}

#[test]
fn by_default_one_outside_port_serves_pods_towards_different_destinations() {
    let mut rig = Rig::with_room_for(3000, gateway().spec());
    let mut ports = HashSet::new();
    for destination in ["192.168.55.13:53", "192.168.55.13:54"] {
        for pod in 0..1023u32 {
            let source = format!("10.132.0.{}:{}", pod % 256, 1 + pod / 256);
            ports.insert(port_of(&mut rig, &udp_frame(&source, destination, b"x")));
        }
    }
    assert_eq!((rig.sessions(), ports.len()), (2046, 1023), "each of 1,023 ports serves two");
}

#[test]
fn filtering_lets_in_whom_it_says() {
    let lets_in = |filtering, is_same_address: bool| match filtering {
        Filtering::AddressAndPortDependent => false,
        Filtering::AddressDependent => is_same_address,
        Filtering::EndpointIndependent => true,
    };
    for filtering in FILTERINGS {
        for is_tcp in [false, true] {
            for (stranger, is_same_address) in [("198.51.100.7:99", true), ("203.0.113.9:80", false)] {
                let mut rig = Rig::new(endpoint_independent(filtering).spec());
                let port = port_of(&mut rig, &first(is_tcp, "10.132.0.5:40000", "198.51.100.7:80"));
                let frame = first(is_tcp, stranger, &format!("{EGRESS}:{port}"));
                let came = rig.send(Outside, &frame, Inside);
                assert!(rig.take(Outside).is_empty(), "the world hears nothing");
                if lets_in(filtering, is_same_address) {
                    assert_eq!(ends(&only(came)).destination, (POD.parse().unwrap(), 40000));
                    assert_eq!((rig.sessions(), rig.all_drops()), (2, 0));
                } else {
                    assert!(came.is_empty(), "{filtering:?}: {stranger}");
                    assert_eq!((rig.sessions(), rig.drops(DropReason::NoSession)), (1, 1));
                }
            }
        }
    }
}

#[test]
fn a_stranger_who_may_enter_hears_that_its_first_packet_is_too_big() {
    let open = endpoint_independent(Filtering::EndpointIndependent);
    let mut rig = Rig::new(open.change(|spec| spec.inside.mtu = 1400).spec());
    let (address, port) =
        ends(&leave(&mut rig, &udp_frame("10.132.0.5:7000", "192.168.55.13:53", b"x"))).source;
    let big = udp_frame("192.168.55.77:9", &format!("{address}:{port}"), &[0; 1420]);
    let error = only(rig.send(Outside, &big, Outside));
    assert_eq!((error[34], error[35]), (3, 4));
}

#[test]
fn nobody_is_let_in_where_no_pod_has_opened_a_port() {
    let mut rig = Rig::new(endpoint_independent(Filtering::EndpointIndependent).spec());
    let port = port_of(&mut rig, &udp_frame("10.132.0.5:40000", "198.51.100.7:80", b"x"));
    for to in [format!("{EGRESS}:{}", port ^ 1), format!("192.168.55.114:{port}")] {
        assert!(rig.send(Outside, &udp_frame("198.51.100.7:80", &to, b"x"), Inside).is_empty());
    }
    let tcp = tcp_frame("198.51.100.7:80", &format!("{EGRESS}:{port}"), TcpFlags::SYN);
    assert!(rig.send(Outside, &tcp, Inside).is_empty(), "a port of UDP is none of TCP");
    assert_eq!((rig.drops(DropReason::NoSession), rig.sessions()), (3, 1));
}

#[test]
fn a_connection_that_the_world_opens_is_established_and_carries_data_both_ways() {
    let mut rig = Rig::new(endpoint_independent(Filtering::EndpointIndependent).spec());
    let port = port_of(&mut rig, &first(true, "10.132.0.5:40000", "198.51.100.7:80"));
    let (stranger, egress) = ("203.0.113.9:5000", format!("{EGRESS}:{port}"));
    let world = |rig: &mut Rig, flags| {
        let came = come_back(rig, &tcp_frame(stranger, &egress, flags));
        assert_eq!(ends(&came).source, ("203.0.113.9".parse().unwrap(), 5000));
        assert_eq!(ends(&came).destination, (POD.parse().unwrap(), 40000));
    };
    let pod = |rig: &mut Rig, flags| {
        let sent = leave(rig, &tcp_frame("10.132.0.5:40000", stranger, flags));
        assert_eq!(ends(&sent).source, (EGRESS, port));
    };
    let state = |rig: &Rig| {
        let mut sessions = rig.all_sessions().into_iter();
        sessions.find(|session| session.inside.destination_port == 5000).and_then(|session| session.tcp)
    };
    assert!(rig.send(Outside, &tcp_frame(stranger, &egress, TcpFlags::ACK), Inside).is_empty());
    world(&mut rig, TcpFlags::SYN);
    assert_eq!(state(&rig), Some(TcpState::OutsideOpening));
    pod(&mut rig, SYN_ACK);
    world(&mut rig, TcpFlags::ACK);
    assert_eq!(state(&rig), Some(TcpState::Established));
    pod(&mut rig, TcpFlags::ACK);
    world(&mut rig, TcpFlags::ACK);
    rig.wait(Duration::from_secs(7439));
    world(&mut rig, TcpFlags::ACK);
    assert_eq!(rig.drops(DropReason::NoSession), 1, "the segment that opened nothing");
}

#[test]
fn a_stranger_is_let_in_by_what_is_allowed_today() {
    let without_pod = |tenant: &mut TenantSpec| tenant.sources = vec!["10.140.0.0/16".parse().unwrap()];
    let by_session = |tenant: &mut TenantSpec| tenant.policy.mapping = Mapping::AddressAndPortDependent;
    let filtered = |tenant: &mut TenantSpec| tenant.policy.filtering = Filtering::AddressDependent;
    let changes: [fn(&mut TenantSpec); 3] = [without_pod, by_session, filtered];
    for change in changes {
        let open = endpoint_independent(Filtering::EndpointIndependent);
        let mut rig = Rig::new(open.spec());
        let port = port_of(&mut rig, &udp_frame("10.132.0.5:40000", "198.51.100.7:80", b"x"));
        rig.publish(open.epoch(2).change(|spec| change(&mut spec.tenants[0])).spec());
        let frame = udp_frame("203.0.113.9:80", &format!("{EGRESS}:{port}"), b"x");
        assert!(rig.send(Outside, &frame, Inside).is_empty());
        assert_eq!(rig.drops(DropReason::NoSession), 1);
    }
}

/// Takes all ports below 1024 but that of a first session, lets this one end, and returns how long another pod is then
/// refused a port.
fn rest_of(filtering: Filtering, is_tcp: bool) -> Duration {
    let mut rig = Rig::with_room_for(4000, endpoint_independent(filtering).spec());
    let server = "198.51.100.7:80";
    let port = port_of(&mut rig, &first(is_tcp, "10.132.0.5:1", server));
    let idle = Duration::from_secs(if is_tcp { 240 } else { 300 });
    rig.wait(idle - TENTH);
    for other in 1..1023 {
        leave(&mut rig, &first(is_tcp, &format!("10.132.0.6:{other}"), server));
    }
    let another = first(is_tcp, "10.132.0.7:1", server);
    assert!(rig.send(Inside, &another, Outside).is_empty());
    rig.take(Inside); // what the pod is told
    rig.wait(TENTH);
    assert_eq!(rig.sessions(), 1022);
    let stranger = first(is_tcp, "203.0.113.9:80", &format!("{EGRESS}:{port}"));
    assert!(rig.send(Outside, &stranger, Inside).is_empty(), "nobody is let in to a port that nobody has");
    let mut rest = Duration::ZERO;
    loop {
        let sent = rig.send(Inside, &another, Outside);
        if !sent.is_empty() {
            assert_eq!(ends(&only(sent)).source.1, port);
            return rest;
        }
        rig.wait(TENTH * 10);
        rest += TENTH * 10;
    }
}

#[test]
fn a_port_rests_that_anybody_may_still_send_to() {
    assert_eq!(rest_of(Filtering::EndpointIndependent, false), Duration::from_secs(120));
    assert_eq!(rest_of(Filtering::EndpointIndependent, true), Duration::ZERO, "TCP's state tells its end");
    assert_eq!(rest_of(Filtering::AddressDependent, false), Duration::ZERO);
    assert_eq!(rest_of(Filtering::AddressAndPortDependent, false), Duration::ZERO);
}

#[test]
fn a_resting_port_is_its_pods_at_once() {
    let mut rig = Rig::new(endpoint_independent(Filtering::EndpointIndependent).spec());
    let frame = udp_frame("10.132.0.5:40000", "198.51.100.7:80", b"x");
    let port = port_of(&mut rig, &frame);
    rig.wait(Duration::from_secs(300 + 119));
    assert_eq!(rig.sessions(), 0);
    assert_eq!(port_of(&mut rig, &frame), port);
    let stranger = udp_frame("203.0.113.9:80", &format!("{EGRESS}:{port}"), b"x");
    assert_eq!(ends(&come_back(&mut rig, &stranger)).destination.1, 40000);
}

/// Returns what happens to some packets: whether ports are the same, and who is let in.
fn behaviour(rig: &mut Rig) -> Vec<bool> {
    let mut seen = Vec::new();
    for is_tcp in [false, true] {
        let servers = ["198.51.100.7:80", "198.51.100.8:80"];
        let ports = servers.map(|server| port_of(rig, &first(is_tcp, "10.132.0.5:40000", server)));
        seen.push(ports[0] == ports[1]);
        for stranger in ["198.51.100.7:99", "203.0.113.9:80"] {
            let frame = first(is_tcp, stranger, &format!("{EGRESS}:{}", ports[0]));
            seen.push(!rig.send(Outside, &frame, Inside).is_empty());
        }
    }
    seen
}

#[test]
fn mapping_and_filtering_are_the_same_with_ten_thousand_other_sessions() {
    for filtering in FILTERINGS {
        let idle = behaviour(&mut Rig::new(endpoint_independent(filtering).spec()));
        let mut rig = Rig::with_room_for(35_000, endpoint_independent(filtering).spec());
        for session in 0..10_000u32 {
            let source = format!("10.132.0.{}:{}", 10 + session / 100, 30_000 + session % 100);
            rig.inject(0, Inside, &udp_frame(&source, "198.51.100.7:80", b"x"));
            if session % 50 == 49 {
                rig.run();
                rig.take(Outside);
            }
        }
        assert_eq!((rig.sessions(), rig.all_drops()), (10_000, 0));
        assert_eq!(behaviour(&mut rig), idle, "{filtering:?}");
    }
}

/// Egress addresses that are not next to each other.
const POOL: [Ipv4Addr; 4] = [
    EGRESS,
    Ipv4Addr::new(192, 168, 55, 130),
    Ipv4Addr::new(192, 168, 55, 201),
    Ipv4Addr::new(192, 168, 55, 77),
];

fn with_pool(epoch: u32, pool: &[Ipv4Addr]) -> Gateway {
    gateway().epoch(epoch).change(|spec| spec.tenants[0].egress_addresses = pool.to_vec())
}

/// Returns the address that a pod leaves by.
fn egress_of(rig: &mut Rig, pod: u8, port: u32) -> Ipv4Addr {
    let frame = udp_frame(&format!("10.132.0.{pod}:{port}"), "192.168.55.13:53", b"x");
    ends(&leave_by(rig, &frame, &POOL)).source.0
}

fn publish(rig: &mut Rig, gateway: &Gateway) {
    rig.publish(gateway.spec());
    rig.take(Outside); // announcements of new addresses
}

#[test]
fn all_sessions_of_a_pod_leave_by_one_address_whatever_is_added() {
    let mut rig = Rig::with_workers(4, 1000, with_pool(1, &POOL[..3]).spec());
    let addresses = |rig: &mut Rig, port| (0..60).map(|pod| egress_of(rig, pod, port)).collect::<Vec<_>>();
    let first = addresses(&mut rig, 40_000);
    for egress in &POOL[..3] {
        assert_eq!(first.iter().filter(|address| *address == egress).count(), 20, "even to the last");
    }
    assert_eq!(addresses(&mut rig, 40_001), first);
    publish(&mut rig, &with_pool(2, &POOL));
    assert_eq!(addresses(&mut rig, 40_000), first);
    assert_eq!(addresses(&mut rig, 40_002), first);
    let new: Vec<_> = (100..120).map(|pod| egress_of(&mut rig, pod, 40_000)).collect();
    assert!(new.iter().all(|address| *address == POOL[3]), "the new address has the fewest pods");
    assert_eq!(rig.all_drops(), 0);
}

#[test]
fn pods_move_off_an_address_that_is_taken_away_and_others_stay() {
    let mut rig = Rig::with_workers(4, 1000, with_pool(1, &POOL[..3]).spec());
    let before: Vec<_> = (0..60).map(|pod| egress_of(&mut rig, pod, 40_000)).collect();
    publish(&mut rig, &with_pool(2, &POOL[1..3]));
    for (pod, before) in (0..).zip(before) {
        let after = [40_000, 40_001].map(|port| egress_of(&mut rig, pod, port));
        assert_eq!(after[0], after[1]);
        assert!(after[0] == before || before == POOL[0] && POOL[1..3].contains(&after[0]));
    }
    assert_eq!((rig.sessions(), rig.all_drops()), (120, 0), "sessions by the lost address have ended");
}

#[test]
fn a_reply_to_a_pod_comes_by_its_address_only() {
    let mut rig = Rig::new(with_pool(1, &POOL[..3]).spec());
    let frame = udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x");
    let sent = leave_by(&mut rig, &frame, &POOL);
    let (egress, port) = ends(&sent).source;
    come_back(&mut rig, &answer(&sent, TcpFlags::default()));
    for other in POOL[..3].iter().filter(|other| **other != egress) {
        let reply = udp_frame("192.168.55.13:53", &format!("{other}:{port}"), b"x");
        assert!(rig.send(Outside, &reply, Inside).is_empty());
    }
    assert_eq!(rig.drops(DropReason::NoSession), 2);
}

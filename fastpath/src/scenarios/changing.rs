//! Neighbours and policies change while packets come.

use std::net::Ipv4Addr;
use std::time::Duration;

use conntrack::TcpFlags;

use super::{answer, ends, leave, only};
use crate::snapshot::Side::{Inside, Outside};
use crate::snapshot::{NeighbourSpec, SnapshotSpec};
use crate::testing::rig::Rig;
use crate::testing::{ROUTER_MAC, gateway, udp_frame};
use crate::verdict::DropReason;

fn without_server(epoch: u32) -> SnapshotSpec {
    gateway().without_neighbour("192.168.55.13").epoch(epoch).spec()
}

#[test]
fn a_frame_waits_for_its_neighbour_and_then_leaves() {
    let mut rig = Rig::new(without_server(1));
    let frame = udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x");
    assert!(rig.send(Inside, &frame, Outside).is_empty());
    assert!(rig.send(Inside, &frame, Outside).is_empty());
    let asked: Vec<_> = rig.requests().into_iter().map(|request| (request.side, request.address)).collect();
    assert_eq!(asked, [(Outside, "192.168.55.13".parse().unwrap())], "asked once");
    assert_eq!(rig.sessions(), 0);
    rig.publish(gateway().epoch(2).spec());
    let sent = rig.take(Outside);
    assert_eq!(sent.len(), 2);
    assert_eq!(rig.sessions(), 1);
}

#[test]
fn a_frame_whose_neighbour_never_answers_is_given_up_with_a_word_to_the_pod() {
    let mut rig = Rig::new(without_server(1));
    rig.send(Inside, &udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x"), Outside);
    rig.wait(Duration::from_secs(2));
    rig.publish(without_server(2));
    assert!(rig.take(Inside).is_empty());
    rig.wait(Duration::from_secs(1));
    let error = only(rig.take(Inside));
    assert_eq!((error[34], error[35]), (3, 1), "another snapshot does not prolong the wait");
    assert_eq!(rig.drops(DropReason::NeighbourUnresolved), 1);
}

#[test]
fn few_frames_wait_for_one_address_and_the_rest_are_dropped() {
    let mut rig = Rig::new(without_server(1));
    for port in 0..120 {
        rig.inject(0, Inside, &udp_frame(&format!("10.132.0.5:{}", 40000 + port), "192.168.55.13:53", b"x"));
    }
    rig.run();
    assert_eq!(rig.drops(DropReason::NeighbourUnresolved), 120 - 100);
}

#[test]
fn sessions_survive_a_policy_change_that_does_not_concern_them() {
    let mut rig = Rig::new(gateway().spec());
    let frame = udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x");
    let before = leave(&mut rig, &frame);
    let moved = NeighbourSpec { side: Outside, address: "192.168.55.13".parse().unwrap(), mac: ROUTER_MAC };
    rig.publish(
        gateway()
            .without_red()
            .without_neighbour("192.168.55.13")
            .epoch(2)
            .change(|spec| spec.neighbours.insert(0, moved))
            .spec(),
    );
    let after = leave(&mut rig, &frame);
    assert_eq!(ends(&before), ends(&after), "same egress address and port");
    assert_eq!(&after[..6], ROUTER_MAC.as_bytes(), "to the neighbour's new MAC");
    assert_eq!(rig.sessions(), 1);
}

#[test]
fn sessions_end_with_the_right_to_have_them() {
    let frame = udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x");
    let mut rig = Rig::new(gateway().spec());
    let out = leave(&mut rig, &frame);
    rig.publish(
        gateway()
            .epoch(2)
            .change(|spec| spec.tenants[0].sources = vec!["10.140.0.0/16".parse().unwrap()])
            .spec(),
    );
    assert!(rig.send(Outside, &answer(&out, TcpFlags::default()), Inside).is_empty());
    assert_eq!((rig.sessions(), rig.drops(DropReason::NoSession)), (0, 1));

    let mut rig = Rig::new(gateway().spec());
    leave(&mut rig, &frame);
    let other = Ipv4Addr::new(192, 168, 55, 120);
    rig.publish(gateway().epoch(2).change(|spec| spec.tenants[0].egress_addresses = vec![other]).spec());
    rig.take(Outside); // the announcement of the new address
    let sent = only(rig.send(Inside, &frame, Outside));
    assert_eq!(ends(&sent).source.0, other, "a new session by the new address");
    assert_eq!(rig.sessions(), 1);
}

#[test]
fn an_address_that_is_gone_before_its_turn_is_not_announced() {
    let many = |spec: &mut SnapshotSpec| {
        spec.tenants[1].egress_addresses = (1..=40).map(|host| Ipv4Addr::new(192, 168, 56, host)).collect();
    };
    let mut rig = Rig::new(gateway().spec());
    rig.offer(gateway().epoch(2).change(many).spec());
    rig.turn(0);
    let announced = rig.take(Outside).len();
    assert!(0 < announced && announced < 40, "{announced} in one turn");
    rig.offer(gateway().epoch(3).spec());
    rig.run();
    let late: Vec<_> = rig.take(Outside).into_iter().map(|frame| frame[28..32].to_vec()).collect();
    assert_eq!(late, [[192, 168, 55, 114]], "what is back, and nothing that is gone");
}

#[test]
fn no_tenant_takes_all_places_of_those_that_wait() {
    let dark = |spec: &mut SnapshotSpec| spec.neighbours.retain(|neighbour| neighbour.side == Inside);
    let mut rig = Rig::new(gateway().change(dark).spec());
    for host in 20..26 {
        for port in 0..60 {
            rig.send(
                Inside,
                &udp_frame(&format!("10.132.0.5:{}", 2000 + port), &format!("192.168.55.{host}:53"), b"x"),
                Outside,
            );
        }
    }
    assert!(rig.drops(DropReason::NeighbourUnresolved) >= 360 - 256);
    let dropped = rig.drops(DropReason::NeighbourUnresolved);
    let mut red = udp_frame("10.132.0.6:1", "192.168.55.30:53", b"x");
    red[..6].copy_from_slice(&[2, 0x53, 192, 168, 99, 14]);
    rig.send(Inside, &red, Outside);
    assert_eq!(rig.drops(DropReason::NeighbourUnresolved), dropped, "red still may wait");
}

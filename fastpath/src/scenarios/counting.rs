//! What is counted, and for whom.

use conntrack::{TcpFlags, TenantId};

use super::leave;
use crate::snapshot::Side::{Inside, Outside};
use crate::testing::rig::Rig;
use crate::testing::{gateway, tcp_frame, udp_frame};
use crate::verdict::DropReason;

#[test]
fn drops_are_counted_by_tenant_and_reason() {
    let mut rig = Rig::new(gateway().spec());
    leave(&mut rig, &udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x"));
    for _ in 0..2 {
        rig.send(Inside, &udp_frame("172.16.0.5:1", "192.168.55.13:53", b"x"), Inside);
    }
    rig.send(Inside, &tcp_frame("10.132.0.5:1", "192.168.55.13:80", TcpFlags::ACK), Inside);
    rig.send(Outside, &udp_frame("192.168.55.13:53", "192.168.55.114:40000", b"x"), Inside);
    rig.send(Outside, &udp_frame("192.168.55.13:53", "192.168.55.99:40000", b"x"), Inside);

    let blue = rig.blue();
    assert_eq!(blue.drops, [(DropReason::UnknownSource, 2), (DropReason::NoSession, 1)]);
    assert_eq!(blue.outbound_drops, blue.drops, "all came from pods");
    assert_eq!((blue.dropped_packets, blue.sessions_begun), (3, 1));
    assert_eq!(rig.all_tenants().drops, [(DropReason::UnknownSource, 2), (DropReason::NoSession, 2)]);
    let all = rig.all_tenants();
    assert_eq!(all.outbound_drops, [(DropReason::UnknownSource, 2), (DropReason::NoSession, 1)]);
    let counters = rig.workers[0].counters();
    assert_eq!(counters.drops_from(Outside, DropReason::UnknownTenant), 1);
    assert_eq!(rig.drops(DropReason::UnknownTenant), 1, "in the total, of no tenant");
}

#[test]
fn counts_of_a_tenant_outlive_it_and_begin_with_its_first_snapshot() {
    let mut rig = Rig::new(gateway().without_red().spec());
    let slots = |rig: &Rig| rig.workers[0].counters().tenants().map(|(id, _)| id.0).collect::<Vec<_>>();
    rig.send(Inside, &udp_frame("172.16.0.5:1", "192.168.55.13:53", b"x"), Inside);
    assert_eq!(slots(&rig), [0]);
    rig.publish(
        gateway()
            .epoch(2)
            .change(|spec| {
                spec.tenants.remove(0);
                spec.tenants[0].id = TenantId(u16::MAX);
            })
            .spec(),
    );
    assert_eq!(slots(&rig), [0, u16::MAX]);
    assert_eq!(rig.blue().drops, [(DropReason::UnknownSource, 1)]);
}

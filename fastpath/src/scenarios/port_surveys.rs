//! The outside ports that are taken are found while frames go on.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use conntrack::{Mapping, Policy, Protocol, TcpFlags};

use super::leave;
use super::surveys::ask;
use crate::testing::rig::Rig;
use crate::testing::{gateway, tcp_frame, udp_frame};

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 13);

/// Counts what a survey of all workers finds, on pages that are smaller than what there is.
fn count(rig: &mut Rig) -> HashMap<(Protocol, Option<(Ipv4Addr, u16)>), u32> {
    let mut counts = HashMap::new();
    let counted = ask(rig, |surveyor| {
        surveyor.count_ports_by(300, |port| *counts.entry((port.protocol, port.remote)).or_default() += 1)
    });
    counted.expect("every worker answers");
    counts
}

#[test]
fn every_port_is_found_once_towards_where_it_is_taken() {
    let mut rig = Rig::with_workers(2, 3000, gateway().spec());
    for port in 0..700 {
        leave(
            &mut rig,
            &udp_frame(&format!("10.132.0.{}:{}", port % 7, 2000 + port), "192.168.55.13:53", b"x"),
        );
    }
    for port in 0..5 {
        let pod = format!("10.132.0.5:{}", 3000 + port);
        leave(&mut rig, &tcp_frame(&pod, "192.168.55.13:80", TcpFlags::SYN));
    }
    // Stands for a system port, of which there are others.
    leave(&mut rig, &udp_frame("10.132.0.5:53", "192.168.55.13:53", b"x"));
    let expected = [((Protocol::Udp, Some((SERVER, 53))), 700), ((Protocol::Tcp, Some((SERVER, 80))), 5)];
    assert_eq!(count(&mut rig), HashMap::from(expected));
}

#[test]
fn a_mapping_takes_one_port_towards_everybody() {
    let policy = Policy { mapping: Mapping::EndpointIndependent, ..Policy::default() };
    let spec =
        gateway().change(|spec| spec.tenants.iter_mut().for_each(|tenant| tenant.policy = policy)).spec();
    let mut rig = Rig::with_workers(2, 3000, spec);
    for destination in ["192.168.55.13:53", "192.168.55.13:54", "198.51.100.7:53"] {
        leave(&mut rig, &udp_frame("10.132.0.5:40000", destination, b"x"));
        leave(&mut rig, &udp_frame("10.132.0.6:40000", destination, b"x"));
    }
    assert_eq!(count(&mut rig), HashMap::from([((Protocol::Udp, None), 2)]));
}

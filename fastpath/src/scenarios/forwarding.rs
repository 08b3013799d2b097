//! What passes is translated, both ways.

use std::net::Ipv4Addr;
use std::time::Duration;

use conntrack::TcpFlags;

use super::{EGRESS, POD, SYN_ACK, answer, come_back, ends, leave, only, with_ttl};
use crate::snapshot::Side::{Inside, Outside};
use crate::testing::rig::{Rig, check_sent};
use crate::testing::{
    BLUE_MAC, NODE_MAC, OUTSIDE_MAC, SERVER_MAC, corrupt, echo_frame, gateway, icmp_error_about, tcp_frame,
    udp_frame,
};
use crate::verdict::DropReason;

#[test]
fn a_udp_exchange_is_translated_both_ways() {
    let mut rig = Rig::new(gateway().spec());
    let out = leave(&mut rig, &udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"query"));
    assert_eq!(ends(&out).source.0, EGRESS);
    assert_eq!(ends(&out).destination, (Ipv4Addr::new(192, 168, 55, 13), 53));
    assert_eq!((&out[..6], &out[6..12]), (SERVER_MAC.as_bytes(), OUTSIDE_MAC.as_bytes()));
    assert_eq!(out[22], 63, "time to live");

    let back = come_back(&mut rig, &answer(&out, TcpFlags::default()));
    assert_eq!(ends(&back).destination, (POD.parse().unwrap(), 40000));
    assert_eq!((&back[..6], &back[6..12]), (NODE_MAC.as_bytes(), BLUE_MAC.as_bytes()));
    let blue = rig.blue();
    assert_eq!((blue.outbound_packets, blue.inbound_packets, blue.sessions), (1, 1, 1));
    assert_eq!(rig.all_drops(), 0);
}

#[test]
fn a_tcp_connection_is_translated_from_syn_to_fin_and_its_port_is_freed() {
    let mut rig = Rig::new(gateway().spec());
    let pod = |flags| tcp_frame("10.132.0.5:40000", "192.168.55.13:80", flags);
    let out = leave(&mut rig, &pod(TcpFlags::SYN));
    for (from_pod, flags) in
        [(false, SYN_ACK), (true, TcpFlags::ACK), (true, TcpFlags(0x11)), (false, TcpFlags(0x11))]
    {
        let sent =
            if from_pod { leave(&mut rig, &pod(flags)) } else { come_back(&mut rig, &answer(&out, flags)) };
        assert_eq!(sent[47] & 0x17, flags.0);
    }
    rig.wait(Duration::from_secs(239));
    assert_eq!(rig.sessions(), 1);
    rig.wait(Duration::from_secs(1));
    assert_eq!(rig.sessions(), 0);
    assert_eq!(rig.blue().sessions, 0);
}

#[test]
fn a_ping_keeps_its_identifier_towards_the_pod() {
    let mut rig = Rig::new(gateway().spec());
    let out = leave(&mut rig, &echo_frame(POD, "192.168.55.13", 4711, false));
    let identifier = u16::from_be_bytes([out[38], out[39]]);
    let reply = echo_frame("192.168.55.13", "192.168.55.113", identifier, true);
    let back = come_back(&mut rig, &reply);
    assert_eq!(u16::from_be_bytes([back[38], back[39]]), 4711);
    let request = echo_frame("192.168.55.13", "192.168.55.113", identifier, false);
    assert!(rig.send(Outside, &request, Inside).is_empty(), "a query from outside is not a reply");
}

#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    let mut rig = Rig::new(gateway().spec());
    let frame = corrupt(&udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"x"), &[(40, 0), (41, 0)]);
    assert_eq!(leave(&mut rig, &frame)[40..42], [0, 0]);
}

#[test]
fn an_error_of_a_router_reaches_the_pod_about_its_own_packet() {
    let mut rig = Rig::new(gateway().spec());
    for kind in [3, 11] {
        for quoted in [8, 28] {
            let out = leave(
                &mut rig,
                &udp_frame("10.132.0.5:40000", "198.51.100.7:33434", b"0123456789abcdefghij"),
            );
            let back = come_back(&mut rig, &icmp_error_about("192.168.55.1", &out, kind, quoted));
            assert_eq!(ends(&back).source.0, Ipv4Addr::new(192, 168, 55, 1));
            assert_eq!(ends(&back).destination.0, POD.parse::<Ipv4Addr>().unwrap());
            assert_eq!(back[54..58], [10, 132, 0, 5], "source of the quoted packet");
            assert_eq!(u16::from_be_bytes([back[62], back[63]]), 40000, "its port");
            assert_eq!(conntrack::checksum::checksum(0, &back[42..62]), 0, "its header checksum");
        }
    }
    let stray = udp_frame("192.168.55.113:1", "198.51.100.7:33434", b"");
    assert!(rig.send(Outside, &icmp_error_about("192.168.55.1", &stray, 3, 8), Inside).is_empty());
    assert_eq!(rig.drops(DropReason::NoSession), 1);
}

#[test]
fn an_error_from_inside_leaves_with_the_egress_address_whatever_its_source_was() {
    let mut rig = Rig::new(gateway().spec());
    let out = leave(&mut rig, &udp_frame("10.132.0.5:40000", "192.168.55.13:53", b"query"));
    let back = come_back(&mut rig, &answer(&out, TcpFlags::default()));
    let mut error = icmp_error_about("100.64.0.3", &back, 3, 8);
    error[..6].copy_from_slice(BLUE_MAC.as_bytes());
    let sent = leave(&mut rig, &error);
    assert_eq!(ends(&sent).source.0, EGRESS);
    assert_eq!(sent[58..62], EGRESS.octets(), "destination of the quoted packet");
}

#[test]
fn a_trace_sees_the_gateway_as_a_hop() {
    let mut rig = Rig::new(gateway().spec());
    let frame = with_ttl(udp_frame("10.132.0.5:40000", "198.51.100.7:33434", b"0123456789"), 1);
    let error = only(rig.send(Inside, &frame, Inside));
    check_sent(Inside, &error, &[]);
    assert_eq!(ends(&error).source.0, Ipv4Addr::new(192, 168, 99, 13), "the tenant's gateway address");
    assert_eq!((error[34], error[35]), (11, 0));
    assert_eq!(error[42..], frame[14..], "the packet as it was sent");
    assert_eq!(rig.sessions(), 0, "nothing is left behind");
}

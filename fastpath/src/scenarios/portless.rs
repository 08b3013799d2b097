//! Protocols without ports are translated by address, as long as that says who is meant.

use std::net::Ipv4Addr;
use std::time::Duration;

use conntrack::checksum::{checksum, sum};

use super::{EGRESS, POD, come_back, ends, leave, only};
use crate::snapshot::Side::{Inside, Outside};
use crate::testing::rig::{Rig, check_sent};
use crate::testing::{gateway, icmp_error_about, raw_frame};
use crate::verdict::DropReason;

const SERVER: &str = "192.168.55.13";
const IPIP: u8 = 4;
const GRE: u8 = 47;
const ESP: u8 = 50;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// A transport header of 20 bytes that no protocol here refuses; for UDP-Lite its checksum covers `covered`.
fn payload(covered: u8) -> Vec<u8> {
    let mut payload: Vec<u8> = (0x30..0x44).collect();
    payload[4..8].copy_from_slice(&[0, covered, 0xab, 0xcd]);
    payload
}

fn frame(protocol: u8, source: &str, destination: &str, mut payload: Vec<u8>) -> Vec<u8> {
    if protocol == UDP_LITE {
        let (source, destination): (Ipv4Addr, Ipv4Addr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        payload[6..8].fill(0);
        let sum = udp_lite_checksum(source, destination, &payload);
        payload[6..8].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    }
    raw_frame(source, destination, protocol, &payload)
}

fn udp_lite_checksum(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> u16 {
    let covered = if payload[5] == 0 { payload.len() } else { payload[5].into() };
    let addresses = sum(sum(0, &source.octets()), &destination.octets());
    let pseudo_header = sum(addresses, &[0, UDP_LITE, 0, u8::try_from(payload.len()).unwrap()]);
    checksum(pseudo_header, &payload[..covered])
}

#[test]
fn each_protocol_is_translated_by_address_both_ways() {
    for (protocol, covered) in [(IPIP, 0), (GRE, 0), (ESP, 0), (SCTP, 0), (UDP_LITE, 0), (UDP_LITE, 8)] {
        let mut rig = Rig::new(gateway().spec());
        for _ in 0..2 {
            let sent = frame(protocol, POD, SERVER, payload(covered));
            let out = leave(&mut rig, &sent);
            assert_eq!(ends(&out).source.0, EGRESS);
            let back = come_back(&mut rig, &frame(protocol, SERVER, "192.168.55.113", payload(covered)));
            assert_eq!(ends(&back).destination.0, POD.parse::<Ipv4Addr>().unwrap());
            assert_eq!(without_checksum(&out), without_checksum(&sent), "{protocol}");
            assert_eq!(without_checksum(&back), without_checksum(&sent), "{protocol}");
        }
        assert_eq!((rig.sessions(), rig.all_drops()), (1, 0), "{protocol}");
        assert_eq!(rig.blue().sessions, 1);
    }
}

/// Returns what is behind the IPv4 header, but for the one field that depends on addresses.
fn without_checksum(frame: &[u8]) -> Vec<u8> {
    let mut transport = frame[34..].to_vec();
    if frame[23] == UDP_LITE {
        transport[6..8].fill(0);
    }
    transport
}

#[test]
fn a_udp_lite_checksum_that_comes_out_as_zero_is_sent_as_all_ones() {
    let mut rig = Rig::new(gateway().spec());
    let mut payload = payload(0);
    payload[18..20].fill(0);
    payload[6..8].fill(0);
    let rest = udp_lite_checksum(EGRESS, SERVER.parse().unwrap(), &payload);
    payload[18..20].copy_from_slice(&rest.to_be_bytes());
    let out = leave(&mut rig, &frame(UDP_LITE, POD, SERVER, payload));
    assert_eq!(out[40..42], [0xff, 0xff]);
}

#[test]
fn a_udp_lite_checksum_of_zero_is_left_for_the_receiver_to_refuse() {
    let mut rig = Rig::new(gateway().spec());
    let mut payload = payload(0);
    payload[6..8].fill(0);
    let out = only(rig.send(Inside, &raw_frame(POD, SERVER, UDP_LITE, &payload), Outside));
    assert_eq!(out[40..42], [0, 0]);
}

#[test]
fn a_second_pod_towards_the_same_address_is_refused_until_the_first_is_done() {
    let mut rig = Rig::new(gateway().spec());
    let second = "10.132.0.6";
    for protocol in [IPIP, GRE, ESP, SCTP, UDP_LITE] {
        leave(&mut rig, &frame(protocol, POD, SERVER, payload(0)));
        for refused in 1..3 {
            let answer = only(rig.send(Inside, &frame(protocol, second, SERVER, payload(0)), Inside));
            check_sent(Inside, &answer, &[]);
            assert_eq!((answer[34], answer[35]), (3, 13), "{protocol}");
            assert_eq!(rig.blue().drops, [(DropReason::AmbiguousProtocol, refused)]);
        }
        assert_eq!(rig.sessions(), 1, "{protocol}");
        leave(&mut rig, &frame(protocol, second, "198.51.100.7", payload(0)));
        let back = come_back(&mut rig, &frame(protocol, SERVER, "192.168.55.113", payload(0)));
        assert_eq!(ends(&back).destination.0, POD.parse::<Ipv4Addr>().unwrap(), "the first is not disturbed");

        rig.wait(Duration::from_secs(300));
        assert_eq!(rig.sessions(), 0);
        leave(&mut rig, &frame(protocol, second, SERVER, payload(0)));
        let back = come_back(&mut rig, &frame(protocol, SERVER, "192.168.55.113", payload(0)));
        assert_eq!(ends(&back).destination.0, second.parse::<Ipv4Addr>().unwrap());
        rig = Rig::new(gateway().spec());
    }
}

#[test]
fn the_world_may_not_begin() {
    let mut rig = Rig::new(gateway().spec());
    assert!(rig.send(Outside, &frame(GRE, SERVER, "192.168.55.113", payload(0)), Inside).is_empty());
    assert!(rig.take(Outside).is_empty());
    leave(&mut rig, &frame(GRE, POD, SERVER, payload(0)));
    assert!(rig.send(Outside, &frame(ESP, SERVER, "192.168.55.113", payload(0)), Inside).is_empty());
    assert_eq!((rig.drops(DropReason::NoSession), rig.sessions()), (2, 1));
}

#[test]
fn an_error_about_each_protocol_reaches_the_pod() {
    for protocol in [IPIP, GRE, ESP, SCTP, UDP_LITE] {
        for quoted in [8, 20] {
            let mut rig = Rig::new(gateway().spec());
            let sent = frame(protocol, POD, "198.51.100.7", payload(0));
            let out = leave(&mut rig, &sent);
            let back = come_back(&mut rig, &icmp_error_about("192.168.55.1", &out, 11, quoted));
            assert_eq!(ends(&back).destination.0, POD.parse::<Ipv4Addr>().unwrap());
            assert_eq!(back[54..], sent[26..34 + quoted], "the quoted addresses and all behind, as sent");
            assert_eq!(checksum(0, &back[42..62]), 0, "the quoted header's checksum");
        }
        let stray = frame(protocol, "192.168.55.113", "198.51.100.8", payload(0));
        let mut rig = Rig::new(gateway().spec());
        assert!(rig.send(Outside, &icmp_error_about("192.168.55.1", &stray, 11, 8), Inside).is_empty());
        assert_eq!(rig.drops(DropReason::NoSession), 1);
    }
}

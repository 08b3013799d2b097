//! The XDP program, run in the kernel on synthetic frames: each row of the decision table, and frames that try
//! to get around it.
//!
//! ```text
//!   namespace of the test thread:   spin0 (steer_inside, then steer_outside) ── peer0
//! ```
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::Namespace;

use conntrack::{Epoch, Policy, TenantId, Timeouts};
use etherparse::{EtherType, IpFragOffset, IpNumber, Ipv4Header, PacketBuilder, VlanId};
use fastpath::dataplane::{AttachMode, AttachPreference, detach};
use fastpath::io::FrameArea;
use fastpath::io::xsk::XskPort;
use fastpath::snapshot::{LinkSpec, Side, Snapshot, SnapshotSpec, SourceKind, TcpPolicy, TenantSpec};
use fastpath::steer::{Loss, Steering};
use macaddr::MacAddr6;
use nix::net::if_::if_nametoindex;

const DROP: u32 = 1;
const PASS: u32 = 2;
const REDIRECT: u32 = 4;

const SECOND_LINE: &str = "second_line_dropped";

const NIC: [u8; 6] = [2, 0, 0, 0, 1, 0x12];
const BLUE: [u8; 6] = [2, 0x53, 192, 168, 99, 13];
const NODE: [u8; 6] = [2, 0, 0, 0, 0, 0x21];
const POD: [u8; 4] = [10, 132, 0, 5];
const SERVER: [u8; 4] = [192, 168, 55, 13];
const BLUE_GATEWAY: [u8; 4] = [192, 168, 99, 13];
const OWN: [u8; 4] = [192, 168, 99, 12];
const EGRESS: [u8; 4] = [192, 168, 55, 113];

fn spec(epoch: u32, tenants: Vec<TenantSpec>) -> SnapshotSpec {
    let link = |address: [u8; 4]| LinkSpec { mac: MacAddr6::from(NIC), address: address.into(), mtu: 1500 };
    SnapshotSpec {
        epoch: Epoch(epoch),
        inside: link(OWN),
        outside: link([192, 168, 55, 12]),
        tenants,
        pod_cidrs: vec!["10.132.0.0/14".parse().unwrap()],
        own_addresses: vec![OWN.into(), BLUE_GATEWAY.into()],
        routes: Vec::new(),
        neighbours: Vec::new(),
        timeouts: Timeouts::default(),
        tcp: TcpPolicy::default(),
    }
}

fn blue() -> TenantSpec {
    TenantSpec {
        id: TenantId(0),
        gateway_mac: MacAddr6::from(BLUE),
        gateway_address: BLUE_GATEWAY.into(),
        egress_addresses: vec![EGRESS.into()],
        sources: vec!["10.132.0.0/14".parse().unwrap()],
        source_kind: SourceKind::Networks,
        is_draining: false,
        policy: Policy::default(),
        mss_clamp: 0,
    }
}

fn ipv4(mac: [u8; 6], source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(NODE, mac)
        .ipv4(source, destination, 64)
        .udp(1, 2)
        .write(&mut frame, b"x")
        .unwrap();
    frame
}

fn tagged(mac: [u8; 6], vlan: u16, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(NODE, mac)
        .single_vlan(VlanId::try_new(vlan).unwrap())
        .ipv4(source, destination, 64)
        .udp(1, 2)
        .write(&mut frame, b"x")
        .unwrap();
    frame
}

fn twice_tagged(mac: [u8; 6], source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::new();
    let tag = |id| VlanId::try_new(id).unwrap();
    PacketBuilder::ethernet2(NODE, mac)
        .double_vlan(tag(5), tag(6))
        .ipv4(source, destination, 64)
        .udp(1, 2)
        .write(&mut frame, b"x")
        .unwrap();
    frame
}

/// A frame behind three priority tags, which the kernel takes off one by one.
fn many_tags(mac: [u8; 6], source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut frame = twice_tagged(mac, source, destination);
    frame.splice(12..12, [0x81, 0x00, 0, 0]);
    frame
}

fn with_header(mac: [u8; 6], change: impl FnOnce(&mut Ipv4Header)) -> Vec<u8> {
    let mut header = Ipv4Header::new(8, 64, IpNumber::UDP, POD, SERVER).unwrap();
    change(&mut header);
    let mut frame = Vec::new();
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&NODE);
    frame.extend_from_slice(&[8, 0]);
    header.header_checksum = header.calc_header_checksum();
    header.write_raw(&mut frame).unwrap();
    frame.extend_from_slice(&[0, 1, 0, 2, 0, 8, 0, 0]);
    frame
}

fn other(mac: [u8; 6], ether_type: EtherType, payload: &[u8]) -> Vec<u8> {
    let mut frame = [mac, NODE].concat();
    frame.extend_from_slice(&ether_type.0.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn arp(mac: [u8; 6]) -> Vec<u8> {
    other(mac, EtherType::ARP, &[0; 28])
}

type Row = (&'static str, Vec<u8>, u32, &'static str);

/// Frames that come in inside while a worker serves the queue: description, frame, action, row that counts it.
fn inside_rows() -> Vec<Row> {
    let broadcast = [0xff; 6];
    vec![
        ("ARP request", arp(broadcast), PASS, "arp_passed"),
        ("ARP reply to a tenant MAC", arp(BLUE), PASS, "arp_passed"),
        ("ping to the tenant's gateway", ipv4(BLUE, POD, BLUE_GATEWAY), PASS, "gateway_address_passed"),
        ("pod to the world", ipv4(BLUE, POD, SERVER), REDIRECT, "tenant_to_worker"),
        ("any source to a tenant MAC", ipv4(BLUE, [1, 2, 3, 4], SERVER), REDIRECT, "tenant_to_worker"),
        ("tenant MAC, another own address", ipv4(BLUE, POD, OWN), REDIRECT, "tenant_to_worker"),
        (
            "IP options",
            with_header(BLUE, |ip| ip.options = [7, 4, 4, 0].into()),
            REDIRECT,
            "tenant_to_worker",
        ),
        ("first fragment", with_header(BLUE, |ip| ip.more_fragments = true), REDIRECT, "tenant_to_worker"),
        (
            "last fragment",
            with_header(BLUE, |ip| ip.fragment_offset = IpFragOffset::try_new(9).unwrap()),
            REDIRECT,
            "tenant_to_worker",
        ),
        ("IPv6 to a tenant MAC", other(BLUE, EtherType::IPV6, &[0x60; 40]), DROP, "tenant_not_ipv4_dropped"),
        ("LLDP to a tenant MAC", other(BLUE, EtherType(0x88cc), &[0; 46]), DROP, "tenant_not_ipv4_dropped"),
        ("VLAN to a tenant MAC", tagged(BLUE, 5, POD, SERVER), DROP, "tenant_not_ipv4_dropped"),
        ("priority tag to a tenant MAC", tagged(BLUE, 0, POD, SERVER), DROP, "tenant_not_ipv4_dropped"),
        ("tagged ping to the gateway", tagged(BLUE, 0, POD, BLUE_GATEWAY), DROP, "tenant_not_ipv4_dropped"),
        ("runt to a tenant MAC", ipv4(BLUE, POD, SERVER)[..33].to_vec(), DROP, "tenant_not_ipv4_dropped"),
        ("leak", ipv4(NIC, POD, SERVER), REDIRECT, "leak_to_worker"),
        ("leak by broadcast", ipv4(broadcast, POD, SERVER), REDIRECT, "leak_to_worker"),
        ("leak to an egress address", ipv4(NIC, POD, EGRESS), REDIRECT, "leak_to_worker"),
        ("leak behind a VLAN tag", tagged(NIC, 5, POD, SERVER), DROP, "leak_tagged_dropped"),
        ("leak behind a priority tag", tagged(NIC, 0, POD, SERVER), DROP, "leak_tagged_dropped"),
        ("leak behind two tags", twice_tagged(NIC, POD, SERVER), DROP, "leak_tagged_dropped"),
        ("leak behind three tags", many_tags(NIC, POD, SERVER), DROP, "many_tags_dropped"),
        ("three tags to a tenant MAC", many_tags(BLUE, POD, SERVER), DROP, "tenant_not_ipv4_dropped"),
        ("node to an egress address", ipv4(NIC, [192, 168, 99, 21], EGRESS), DROP, "egress_address_dropped"),
        (
            "tagged node to an egress address",
            tagged(NIC, 0, [192, 168, 99, 21], EGRESS),
            DROP,
            "egress_address_dropped",
        ),
        ("pod to the gateway's own address", ipv4(NIC, POD, OWN), PASS, "rest_passed"),
        ("node to the gateway", ipv4(NIC, [192, 168, 99, 21], OWN), PASS, "rest_passed"),
        ("just below the pod networks", ipv4(NIC, [10, 131, 255, 255], SERVER), PASS, "rest_passed"),
        ("LLDP", other([1, 0x80, 0xc2, 0, 0, 0x0e], EtherType(0x88cc), &[0; 46]), PASS, "rest_passed"),
        ("IPv6", other(NIC, EtherType::IPV6, &[0x60; 40]), PASS, "rest_passed"),
        ("runt", ipv4(NIC, POD, SERVER)[..33].to_vec(), PASS, "rest_passed"),
    ]
}

/// Frames that come in outside while a worker serves the queue.
fn outside_rows() -> Vec<Row> {
    vec![
        ("reply", ipv4(NIC, SERVER, EGRESS), REDIRECT, "egress_to_worker"),
        (
            "fragment of a reply",
            with_header(NIC, |ip| {
                ip.destination = EGRESS;
                ip.fragment_offset = IpFragOffset::try_new(9).unwrap();
            }),
            REDIRECT,
            "egress_to_worker",
        ),
        ("reply behind a priority tag", tagged(NIC, 0, SERVER, EGRESS), DROP, "egress_tagged_dropped"),
        ("reply behind three tags", many_tags(NIC, SERVER, EGRESS), DROP, "many_tags_dropped"),
        ("the gateway's own address", ipv4(NIC, SERVER, [192, 168, 55, 12]), PASS, "rest_passed"),
        ("ARP", arp([0xff; 6]), PASS, "rest_passed"),
        ("runt", ipv4(NIC, SERVER, EGRESS)[..33].to_vec(), PASS, "rest_passed"),
    ]
}

/// The same frames while no worker serves the queue: what was redirected is dropped.
fn without_worker(rows: Vec<Row>) -> Vec<Row> {
    let renamed = |row| match row {
        "tenant_to_worker" => "tenant_without_worker_dropped",
        "leak_to_worker" => "leak_without_worker_dropped",
        "egress_to_worker" => "egress_without_worker_dropped",
        row => row,
    };
    rows.into_iter()
        .map(|(name, frame, action, row)| {
            (name, frame, if action == REDIRECT { DROP } else { action }, renamed(row))
        })
        .collect()
}

fn count_of(steering: &Steering, row: &str) -> u64 {
    steering.report().unwrap().verdicts.iter().find(|(name, _)| *name == row).unwrap().1
}

fn check(steering: &mut Steering, rows: &[Row]) {
    for (name, frame, action, row) in rows {
        let before = count_of(steering, row);
        assert_eq!(steering.test_run(frame).unwrap(), *action, "{name}");
        assert_eq!(count_of(steering, row), before + 1, "{name} is counted as {row}");
    }
}

#[test]
fn every_row_of_the_decision_table_holds() {
    let Some(namespace) = Namespace::enter() else { return };
    let index = if_nametoindex("spin0").unwrap();
    let snapshot = Snapshot::compile(spec(1, vec![blue()]));
    let mut seen = HashSet::new();
    for (side, rows) in [(Side::Inside, inside_rows()), (Side::Outside, outside_rows())] {
        let mut steering = Steering::load(side, 1, &snapshot).unwrap();
        check(&mut steering, &without_worker(rows.clone()));
        let mode = steering.attach(index, AttachPreference::Auto, &namespace.pins).unwrap();
        assert_eq!(mode, AttachMode::Native);
        let (area, _pool) = FrameArea::allocate(64).unwrap();
        let port = XskPort::open(&area, "spin0", 0).unwrap();
        check(&mut steering, &rows);
        drop(port);
        check(&mut steering, &without_worker(rows.clone()));
        seen.extend(without_worker(rows.clone()).into_iter().chain(rows).map(|(_, _, _, row)| (side, row)));
        let reported = steering.report().unwrap().verdicts;
        // `shares.rs` tests what is over a share.
        let is_elsewhere = |row: &str| row == SECOND_LINE || row.contains("over_share");
        for (row, _) in reported.iter().filter(|(row, _)| !is_elsewhere(row)) {
            assert!(seen.contains(&(side, *row)), "{row} is tested");
        }
        assert!(detach(&namespace.pins).unwrap());
    }
}

#[test]
fn the_second_line_drops_what_the_program_would_not_let_pass_and_nothing_else() {
    let Some(_namespace) = Namespace::enter() else { return };
    let snapshot = Snapshot::compile(spec(1, vec![blue()]));
    for (side, rows) in [(Side::Inside, inside_rows()), (Side::Outside, outside_rows())] {
        let mut steering = Steering::load(side, 1, &snapshot).unwrap();
        let mut dropped = 0;
        for (name, frame, action, _) in without_worker(rows) {
            // The kernel runs no classifier for a test on what is cut short.
            if frame.len() >= 34 {
                assert_eq!(steering.test_run_guard(&frame).unwrap(), action != PASS, "{name}");
                dropped += u64::from(action != PASS);
            }
        }
        assert!(dropped > 0 && count_of(&steering, SECOND_LINE) == dropped, "all are counted: {dropped}");
    }
}

#[test]
fn a_kernel_without_links_for_classifiers_has_the_second_line_too() {
    let Some(namespace) = Namespace::enter() else { return };
    let index = if_nametoindex("spin0").unwrap();
    let snapshot = Snapshot::compile(spec(1, vec![blue()]));
    let filters = || {
        let output = Command::new("tc").args(["filter", "show", "dev", "spin0", "ingress"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| line.contains("guard_inside")).map(str::to_owned).collect::<Vec<_>>()
    };
    let load = || Steering::load(Side::Inside, 1, &snapshot).unwrap().without_links();
    let mut first = load();
    first.attach(index, AttachPreference::Auto, &namespace.pins).unwrap();
    assert!(!first.loss().any());
    let attached = filters();
    assert_eq!(attached.len(), 1);
    drop(first);
    assert_eq!(filters(), attached, "it outlives its loader");
    let mut second = load();
    second.attach(index, AttachPreference::Auto, &namespace.pins).unwrap();
    let replaced = filters();
    assert!(replaced.len() == 1 && replaced != attached, "in the place of the old one: {replaced:?}");
    drop(second);
    assert!(detach(&namespace.pins).unwrap());
    assert!(filters().is_empty(), "{:?}", filters());
}

#[test]
fn what_is_taken_from_an_interface_is_noticed_and_put_back() {
    let Some(namespace) = Namespace::enter() else { return };
    let index = if_nametoindex("spin0").unwrap();
    let snapshot = Snapshot::compile(spec(1, vec![blue()]));
    let mut steering = Steering::load(Side::Inside, 1, &snapshot).unwrap();
    assert!(!steering.loss().any(), "nothing was attached");
    steering.attach(index, AttachPreference::Auto, &namespace.pins).unwrap();
    assert!(!steering.loss().any());
    let pins = namespace.pins.join(format!("inside-{index}-native"));
    for (pin, loss) in [
        ("link", Loss { program: true, ..Loss::default() }),
        ("guard", Loss { guard: true, ..Loss::default() }),
    ] {
        let pin = pins.join(pin);
        let detach = ["link", "detach", "pinned", pin.to_str().unwrap()];
        assert!(Command::new("bpftool").args(detach).status().unwrap().success());
        assert_eq!(steering.loss(), loss);
        steering.make_good(&namespace.pins).unwrap();
        assert!(!steering.loss().any() && pin.exists());
    }
    std::fs::remove_dir_all(&pins).unwrap();
    assert_eq!(steering.loss(), Loss { pins: true, ..Loss::default() }, "the process still holds them");
    steering.make_good(&namespace.pins).unwrap();
    assert!(!steering.loss().any());
    drop(steering);
    assert!(pins.join("link").exists() && pins.join("guard").exists() && pins.join("program").exists());
    assert!(detach(&namespace.pins).unwrap());
}

#[test]
fn maps_follow_the_snapshot_and_close_a_way_before_they_open_another() {
    let Some(_namespace) = Namespace::enter() else { return };
    let (without, with) = (spec(1, Vec::new()), spec(2, vec![blue()]));
    let (without, with) = (Snapshot::compile(without), Snapshot::compile(with));
    let mut steering = Steering::load(Side::Inside, 1, &without).unwrap();
    let to_blue = ipv4(BLUE, [1, 2, 3, 4], SERVER);
    assert_eq!(steering.test_run(&to_blue).unwrap(), PASS);
    steering.open(&with).unwrap();
    assert_eq!(steering.test_run(&to_blue).unwrap(), DROP, "steered before the workers know");
    steering.close(&with).unwrap();
    steering.open(&without).unwrap();
    assert_eq!(steering.test_run(&to_blue).unwrap(), DROP, "still steered while workers may know");
    steering.close(&without).unwrap();
    assert_eq!(steering.test_run(&to_blue).unwrap(), PASS);
}

/// Tells the kernel's number of the XDP program at `spin0`.
fn attached() -> Option<u32> {
    let output = Command::new("ip").args(["-d", "link", "show", "spin0"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let id = text.split("prog/xdp id ").nth(1).map(|rest| rest.split(' ').next().unwrap().to_owned());
    id.map(|id| id.parse().unwrap())
}

/// Waits until the kernel, which frees an unpinned link a moment later, has done so.
fn await_that(mut is_done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !is_done() {
        assert!(Instant::now() < deadline, "the program is still attached");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_program_outlives_its_loader_and_is_replaced_in_place() {
    let Some(namespace) = Namespace::enter() else { return };
    let index = if_nametoindex("spin0").unwrap();
    let snapshot = Snapshot::compile(spec(1, vec![blue()]));
    let mut first = Steering::load(Side::Inside, 1, &snapshot).unwrap();
    first.attach(index, AttachPreference::Generic, &namespace.pins).unwrap();
    let first_id = attached().unwrap();
    drop(first);
    assert_eq!(attached(), Some(first_id), "it outlives its loader");
    let mut second = Steering::load(Side::Inside, 1, &snapshot).unwrap();
    let mode = second.attach(index, AttachPreference::Auto, &namespace.pins).unwrap();
    assert_eq!(mode, AttachMode::Generic, "the link keeps its mode");
    let mut third = Steering::load(Side::Inside, 1, &snapshot).unwrap();
    third.attach(index, AttachPreference::Auto, &namespace.pins).unwrap();
    assert!(second.loss().any(), "another took its place");
    drop(std::mem::replace(&mut second, third));
    assert!(!second.loss().any(), "the descriptor of the old one is no matter");
    assert_ne!(attached(), Some(first_id));
    let refused = second.attach(index, AttachPreference::Native, &namespace.pins).unwrap_err();
    assert!(refused.to_string().contains("spillway detach"), "{refused}");
    drop(second);
    assert!(attached().is_some());
    assert!(detach(&namespace.pins).unwrap());
    await_that(|| attached().is_none());
    assert!(!detach(&namespace.pins).unwrap(), "nothing is left to detach");
}

/// Tells the kernel's numbers of the programs in pinned links.
fn programs_in(pins: &Path) -> [Option<u64>; 2] {
    ["link", "guard"].map(|pin| {
        let link = pins.join(pin);
        let command = ["-j", "link", "show", "pinned", link.to_str().unwrap()];
        let output = Command::new("bpftool").args(command).output().unwrap();
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        told["prog_id"].as_u64()
    })
}

#[test]
fn a_process_of_the_same_build_takes_over_what_is_attached() {
    let Some(namespace) = Namespace::enter() else { return };
    let index = if_nametoindex("spin0").unwrap();
    let inherit = |queues, preference, snapshot: &Snapshot| {
        Steering::inherit(Side::Inside, queues, index, preference, &namespace.pins, snapshot).unwrap()
    };
    let first = Snapshot::compile(spec(1, vec![blue()]));
    assert!(inherit(1, AttachPreference::Auto, &first).is_none(), "nothing is there");
    let mut steering = Steering::load(Side::Inside, 1, &first).unwrap();
    steering.attach(index, AttachPreference::Auto, &namespace.pins).unwrap();
    let (to_blue, to_green) =
        (ipv4(BLUE, [1, 2, 3, 4], SERVER), ipv4([2, 0x53, 192, 168, 99, 14], [1, 2, 3, 4], SERVER));
    assert_eq!(steering.test_run(&to_blue).unwrap(), DROP);
    let pins = namespace.pins.join(format!("inside-{index}-native"));
    let before = programs_in(&pins);
    assert!(before.iter().all(Option::is_some), "{before:?}");
    drop(steering);

    let green = TenantSpec {
        gateway_mac: MacAddr6::from([2, 0x53, 192, 168, 99, 14]),
        gateway_address: [192, 168, 99, 14].into(),
        egress_addresses: vec![[192, 168, 55, 114].into()],
        ..blue()
    };
    let mut next = spec(1, vec![green]);
    next.pod_cidrs = vec!["10.140.0.0/14".parse().unwrap()];
    next.own_addresses = vec![OWN.into(), [192, 168, 99, 14].into()];
    let next = Snapshot::compile(next);
    let mut steering = inherit(1, AttachPreference::Auto, &next).unwrap();
    assert_eq!(programs_in(&pins), before, "the same programs go on to run");
    assert!(!steering.loss().any());
    assert!(steering.report().unwrap().verdicts.iter().all(|(_, count)| *count == 0), "counted from zero");
    assert_eq!(steering.test_run(&to_blue).unwrap(), PASS, "no tenant has it now");
    assert_eq!(steering.test_run(&to_green).unwrap(), DROP, "this one has, and no worker");
    assert_eq!(steering.test_run(&ipv4(NIC, POD, SERVER)).unwrap(), PASS, "pods are elsewhere now");
    assert_eq!(steering.test_run(&ipv4(NIC, [10, 140, 0, 5], SERVER)).unwrap(), DROP);
    let mode = steering.attach(index, AttachPreference::Auto, &namespace.pins).unwrap();
    assert_eq!((mode, programs_in(&pins)), (AttachMode::Native, before), "it is attached");
    drop(steering);
    let mut again = inherit(1, AttachPreference::Native, &first).unwrap();
    assert_eq!(again.test_run(&to_blue).unwrap(), DROP, "maps follow on");
    assert!(detach(&namespace.pins).unwrap());
}

#[test]
fn what_is_not_all_there_or_another_is_not_taken_over() {
    let Some(namespace) = Namespace::enter() else { return };
    let index = if_nametoindex("spin0").unwrap();
    let snapshot = Snapshot::compile(spec(1, vec![blue()]));
    let pins = namespace.pins.join(format!("inside-{index}-native"));
    let inherit = |queues, preference| {
        Steering::inherit(Side::Inside, queues, index, preference, &namespace.pins, &snapshot).unwrap()
    };
    let attach = || {
        let mut steering = Steering::load(Side::Inside, 1, &snapshot).unwrap();
        steering.attach(index, AttachPreference::Auto, &namespace.pins).unwrap();
    };
    attach();
    assert!(inherit(2, AttachPreference::Auto).is_none(), "for another number of queues");
    assert!(inherit(1, AttachPreference::Generic).is_none(), "in another mode");
    let names =
        || -> Vec<_> { std::fs::read_dir(&pins).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
    let all = names();
    assert_eq!(all.len(), 12, "two links, two programs, eight maps: {all:?}");
    for name in all {
        assert!(inherit(1, AttachPreference::Auto).is_some());
        std::fs::remove_file(pins.join(&name)).unwrap();
        let inherited = inherit(1, AttachPreference::Auto);
        if name == "guard" {
            let mut inherited = inherited.unwrap();
            assert_eq!(inherited.loss(), Loss { guard: true, ..Loss::default() }, "it is attached anew");
            await_that(|| inherited.attach(index, AttachPreference::Auto, &namespace.pins).is_ok());
            assert!(!inherited.loss().any());
        } else {
            assert!(inherited.is_none(), "without {name:?}");
            detach(&namespace.pins).unwrap();
            await_that(|| attached().is_none());
            attach();
        }
    }
    let link = pins.join("link");
    let detached = ["link", "detach", "pinned", link.to_str().unwrap()];
    assert!(Command::new("bpftool").args(detached).status().unwrap().success());
    assert!(inherit(1, AttachPreference::Auto).is_none(), "its link is attached nowhere");
}

use fastpath::parse::{Flow, Packet, Segment, Transport, parse};
use fastpath::verdict::DropReason;

use super::*;
use crate::system::{Setup, System};
use crate::topology::Cores;

#[test]
fn intervals_are_those_of_the_rate() {
    assert_eq!(Rate::PerSecond(1_000_000).interval(), 256_000);
    assert_eq!(Rate::PerSecond(3).interval(), INTERVAL_UNITS / 3);
    assert_eq!(Rate::PerSecond(u64::MAX).interval(), 1);
    assert_eq!([Rate::Unbounded.interval(), Rate::PerSecond(0).interval()], [0, NEVER]);
}

#[test]
fn only_an_interruption_cuts_short() {
    let wrap = |kind| anyhow::Error::from(io::Error::from(kind)).context("a run");
    assert!(was_cut_short(&wrap(io::ErrorKind::Interrupted)));
    assert!(!was_cut_short(&wrap(io::ErrorKind::PermissionDenied)));
}

#[test]
fn a_mac_reads_as_it_is_written() {
    assert_eq!(mac_number(MacAddr6::new(2, 0x53, 0xc0, 0xa8, 0x63, 0x0d)), 0x0253_c0a8_630d);
}

#[test]
fn the_kernel_forwards_all_of_a_bounded_number_and_answers_probes() {
    if !namespace::allowed() {
        return;
    }
    let (cores, flows) = (Cores::plan(2).unwrap(), Flows::new(64));
    let topology = Topology::build(cores, flows).unwrap();
    let setup = Setup { flows, spillway: "unused".into() };
    let _gateway = System::KernelIptables.start(&topology, &setup).unwrap();
    let mut traffic = Traffic::start(&topology, flows, Kind::Datagrams, Receiving::Woken).unwrap();
    let plan = Plan { last: 500, rate: Rate::PerSecond(5000), ..Plan::default() };
    traffic.follow(Plan { probes: Rate::PerSecond(100), ..plan }).unwrap();
    let done = || {
        let arrived = traffic.counts().unwrap().translated == 500;
        Ok((arrived && traffic.progress().unwrap().probes >= 10).then_some(()))
    };
    wait::until("500 datagrams and 10 probes", Duration::from_secs(10), done).unwrap();
    traffic.follow(plan).unwrap();
    thread::sleep(Duration::from_millis(100));
    let counts = traffic.counts().unwrap();
    let probes = traffic.progress().unwrap().probes;
    assert_eq!(counts, Counts { translated: 500, ..Counts::default() });
    assert!(traffic.round_trips(0..probes).unwrap().iter().any(Option::is_some));
}

#[test]
fn floods_are_what_they_are_called() {
    if !namespace::allowed() {
        return;
    }
    let sent = |flood, count| -> Vec<_> {
        let mut object = load(1, Flows::new(64), Kind::Datagrams).unwrap();
        let plan = Plan { flood, rate: Rate::Unbounded, ..Plan::default() };
        let mut plan_map = map::<[u64; 11]>(&mut object, "plan").unwrap();
        plan_map.set(0, plan.words(), 0).unwrap();
        let send = program(&mut object, "send").unwrap();
        send.load().unwrap();
        let frames = (0..count).map(|_| {
            let mut frame = [0; FRAME_BYTES];
            let options = TestRunOptions {
                data_in: Some(&[0; FRAME_BYTES]),
                data_out: Some(&mut frame),
                ..Default::default()
            };
            send.test_run(options).unwrap();
            parse(&frame)
        });
        frames.collect()
    };
    let fragments = sent(Flood::Fragments, 8).into_iter().map(Result::unwrap);
    assert!(fragments.into_iter().all(|packet| packet.ip.is_fragment() && packet.ip.more_fragments));
    let is_syn = |packet: &Packet| match &packet.transport {
        Transport::Flow(Flow { segment: Segment::Tcp(segment), .. }) => segment.flags.opens(),
        _ => false,
    };
    assert!(sent(Flood::Syns, 8).into_iter().all(|packet| is_syn(&packet.unwrap())));
    assert!(sent(Flood::NotIpv4, 8).into_iter().all(|packet| packet == Err(DropReason::NotIpv4)));
    assert!(sent(Flood::None, 8).into_iter().all(|packet| !packet.unwrap().ip.is_fragment()));
}

#[test]
fn handshakes_go_through_the_kernel() {
    if !namespace::allowed() {
        return;
    }
    let (cores, flows) = (Cores::plan(2).unwrap(), Flows::new(4096));
    let topology = Topology::build(cores, flows).unwrap();
    let setup = Setup { flows, spillway: "unused".into() };
    let _gateway = System::KernelIptables.start(&topology, &setup).unwrap();
    let mut traffic = Traffic::start(&topology, flows, Kind::Handshakes, Receiving::Polled).unwrap();
    let plan = Plan { last: 200, window: 32, rate: Rate::Unbounded, ..Plan::default() };
    traffic.follow(plan).unwrap();
    let done = || Ok((traffic.counts()?.completed == 200).then_some(()));
    wait::until("200 handshakes", Duration::from_secs(10), done).unwrap();
    let expected = Counts { asked: 200, completed: 200, ..Counts::default() };
    assert_eq!(traffic.counts().unwrap(), expected);
}

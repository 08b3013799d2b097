//! Interfaces that go away and come back, links that flap, and queues that change: sessions stay, and nothing leaks.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use control::demo::capture::Capture;
use control::demo::topology::{BLUE, Host, INSIDE, OUTSIDE, PODS, RED, SERVER};
use control::demo::{Lab, LabOptions, wait};
use serde_json::Value;
use spillway_tests::fixture::{Fixture, LIMIT, skipped};
use spillway_tests::peers::{BANNER, Peer};
use spillway_tests::stream::Stream;

/// Times that an interface is removed and made again to see whether anything is lost by and by.
const CYCLES: u64 = 20;

#[test]
fn an_inside_interface_that_is_removed_and_made_again_keeps_its_sessions() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    require_sessions_outlive(&fixture, |fixture| replace(fixture, INSIDE, &LabOptions::default()))?;
    require_reattachments(&fixture, [1, 0])
}

#[test]
fn an_outside_interface_that_is_removed_and_made_again_keeps_its_sessions() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    require_sessions_outlive(&fixture, |fixture| replace(fixture, OUTSIDE, &LabOptions::default()))?;
    require_reattachments(&fixture, [0, 1])
}

#[test]
fn interfaces_that_move_away_and_back_keep_their_sessions() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    for device in [INSIDE, OUTSIDE] {
        require_sessions_outlive(&fixture, |fixture| {
            let (gateway, elsewhere) =
                (fixture.lab.namespace(Host::Gateway), fixture.lab.namespace(Host::Internet));
            gateway.ip(&format!("link set {device} netns {}", elsewhere.name()))?;
            require_away(fixture, device, "does not exist")?;
            elsewhere.ip(&format!("link set {device} netns {}", gateway.name()))?;
            fixture.lab.set_up_interface(device)
        })?;
    }
    require_reattachments(&fixture, [1, 1])
}

#[test]
fn links_that_flap_keep_their_sessions() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let gateway = fixture.lab.namespace(Host::Gateway);
    for device in [INSIDE, OUTSIDE, INSIDE] {
        require_sessions_outlive(&fixture, |fixture| {
            gateway.ip(&format!("link set {device} down"))?;
            require_away(fixture, device, "is down")?;
            gateway.ip(&format!("link set {device} up")).map(drop)
        })?;
    }
    for (device, switch) in [(INSIDE, Host::SwitchInside), (OUTSIDE, Host::SwitchOutside)] {
        let (switch, port) = (fixture.lab.namespace(switch), Host::Gateway.name());
        require_sessions_outlive(&fixture, |fixture| {
            switch.ip(&format!("link set {port} down"))?;
            require_away(fixture, device, "no carrier")?;
            switch.ip(&format!("link set {port} up")).map(drop)
        })?;
    }
    require_reattachments(&fixture, [0, 0])
}

#[test]
fn an_interface_may_come_back_with_other_queues() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    for queues in [4, 2, 1] {
        let options = LabOptions { inside_queues: queues, outside_queues: queues, ..LabOptions::default() };
        for device in [INSIDE, OUTSIDE] {
            require_sessions_outlive(&fixture, |fixture| replace(fixture, device, &options))?;
        }
        let status = fixture.gateway.status()?;
        for interface in status["interfaces"].as_array().context("interfaces")? {
            assert_eq!(interface["queues"], queues, "{status}");
        }
    }
    Ok(())
}

#[test]
fn queues_that_are_added_while_the_daemon_runs_are_served() -> Result<()> {
    if skipped()? {
        return Ok(());
    }
    let lab = Lab::build(&LabOptions { inside_queues: 4, outside_queues: 4, ..LabOptions::default() })?;
    for device in [INSIDE, OUTSIDE] {
        set_peer_queues(&lab, device, 2)?;
        set_queues(&lab, device, 2)?;
    }
    let fixture = Fixture::start(lab)?;
    fixture.gateway.add_tenant(&BLUE)?;
    fixture.gateway.add_tenant(&RED)?;
    for device in [INSIDE, OUTSIDE] {
        require_sessions_outlive(&fixture, |fixture| {
            set_queues(&fixture.lab, device, 4)?;
            wait::until("the new queues are served", LIMIT, || {
                let status = fixture.gateway.status()?;
                Ok((interface(&status, device)?["queues"] == 4).then_some(()))
            })?;
            // A veth's new queues have no XDP program until one is set again, so they get frames only now.
            set_peer_queues(&fixture.lab, device, 4)
        })?;
    }
    let status = fixture.gateway.status()?;
    let workers = status["workers"].as_array().context("workers")?;
    assert_eq!(workers.len(), 2, "workers are as many as before");
    let queues = workers.iter().map(|worker| worker["queues"].as_array().map_or(0, Vec::len)).sum::<usize>();
    assert_eq!(queues, 8, "{status}");
    require_reattachments(&fixture, [1, 1])?;
    set_peer_queues(&fixture.lab, INSIDE, 2)?;
    let refused =
        set_queues(&fixture.lab, INSIDE, 2).expect_err("the kernel takes no queue from under a socket");
    ensure!(refused.to_string().contains("AF_XDP"), "{refused}");
    fixture.require_service()
}

#[test]
fn nothing_is_lost_however_often_an_interface_is_replaced() -> Result<()> {
    let Some(fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let peer = Peer::udp_echo(&fixture.lab, 7)?;
    let stream = Stream::start(&fixture.lab, &PODS[0], peer.address())?;
    stream.until_answered(50)?;
    let before = (total_frames(&fixture)?, descriptors(&fixture)?);
    for cycle in 0..CYCLES {
        let device = if cycle % 2 == 0 { INSIDE } else { OUTSIDE };
        fixture.lab.remove_interface(device)?;
        fixture.lab.add_interface(device, &LabOptions::default())?;
        stream.until_answered(20).with_context(|| fixture.gateway.log())?;
    }
    let summary = stream.finish();
    assert_eq!(summary.seen_as.len(), 1, "{summary:?}");
    require_every_frame(&fixture)?;
    assert_eq!((total_frames(&fixture)?, descriptors(&fixture)?), before);
    require_reattachments(&fixture, [CYCLES / 2, CYCLES / 2])?;
    fixture.require_service()
}

/// Lets a UDP flow of every pod and a TCP connection go on while something happens to an interface; fails unless they do
/// so from the same outside ports, without a pod's address outside and without a frame lost to the gateway.
fn require_sessions_outlive(fixture: &Fixture, happens: impl FnOnce(&Fixture) -> Result<()>) -> Result<()> {
    let process = fixture.gateway.status()?["pid"].clone();
    let peer = Peer::udp_echo(&fixture.lab, 7)?;
    let tcp = Peer::tcp_echo(&fixture.lab, Host::Server, SERVER, 2222)?;
    let capture = Capture::of_outside_switch(&fixture.lab)?;
    let streams = PODS
        .iter()
        .map(|pod| Stream::start(&fixture.lab, pod, peer.address()))
        .collect::<Result<Vec<_>>>()?;
    let mut connection = connect(fixture, &tcp)?;
    streams.iter().try_for_each(|stream| stream.until_answered(50))?;
    converse(&mut connection, b"before")?;
    happens(fixture)?;
    for stream in &streams {
        stream.until_answered(100).with_context(|| format!("daemon:\n{}", fixture.gateway.log()))?;
    }
    converse(&mut connection, b"after")?;
    for (pod, stream) in PODS.iter().zip(streams) {
        let summary = stream.finish();
        ensure!(summary.seen_as.len() == 1, "pod {} changed its port: {summary:?}", pod.address);
    }
    let recording = capture.finish()?;
    ensure!(recording.pod_sources()? == 0, "a pod's address left");
    ensure!(
        recording.count(&format!("udp and src host {}", BLUE.egress))? > 0,
        "the capture missed the traffic"
    );
    let status = fixture.gateway.status()?;
    ensure!(status["pid"] == process, "the daemon is another");
    for interface in status["interfaces"].as_array().context("interfaces")? {
        ensure!(interface["awaySeconds"].is_null() && interface["trouble"].is_null(), "{status}");
        ensure!(interface["xdpMode"] == "native", "{status}");
    }
    require_every_frame(fixture)?;
    fixture.require_service()
}

fn replace(fixture: &Fixture, device: &str, options: &LabOptions) -> Result<()> {
    fixture.lab.remove_interface(device)?;
    require_away(fixture, device, "does not exist")?;
    fixture.lab.add_interface(device, options)
}

/// Waits until status tells that an interface is away, and why.
fn require_away(fixture: &Fixture, device: &str, reason: &str) -> Result<()> {
    wait::until("status tells that the interface is away", LIMIT, || {
        let status = fixture.gateway.status()?;
        let told = interface(&status, device)?;
        let is_told = told["awaySeconds"].is_u64()
            && told["trouble"].as_str().is_some_and(|trouble| trouble.contains(reason));
        Ok(is_told.then_some(()))
    })
    .with_context(|| format!("{:?}\n{}", fixture.gateway.status(), fixture.gateway.log()))?;
    let text = fixture.gateway.installation().cli(&["status"])?;
    ensure!(text.contains(&format!("{device} is away since")), "{text}");
    Ok(())
}

fn interface<'a>(status: &'a Value, device: &str) -> Result<&'a Value> {
    let mut interfaces = status["interfaces"].as_array().context("interfaces")?.iter();
    interfaces.find(|interface| interface["name"] == device).with_context(|| format!("{device} in {status}"))
}

fn require_reattachments(fixture: &Fixture, expected: [u64; 2]) -> Result<()> {
    let status = fixture.gateway.status()?;
    for (device, expected) in [INSIDE, OUTSIDE].into_iter().zip(expected) {
        assert_eq!(
            interface(&status, device)?["reattachments"],
            expected,
            "{device}: {}",
            fixture.gateway.log()
        );
    }
    Ok(())
}

/// Waits until all frames are where they belong.
fn require_every_frame(fixture: &Fixture) -> Result<()> {
    wait::until("every frame is somewhere", LIMIT, || {
        let frames = fixture.gateway.status()?["frames"].clone();
        let count = |place: &str| frames[place].as_u64().context("frames");
        let found = count("atWorkers")? + count("inCommons")? + count("handedOver")?;
        Ok((found == count("total")?).then_some(()))
    })
    .with_context(|| format!("{:?}", fixture.gateway.status().map(|status| status["frames"].to_string())))
}

fn total_frames(fixture: &Fixture) -> Result<u64> {
    fixture.gateway.status()?["frames"]["total"].as_u64().context("frames")
}

/// Returns how many AF_XDP sockets the daemon has open.
fn descriptors(fixture: &Fixture) -> Result<usize> {
    let pid = &fixture.gateway.status()?["pid"];
    let links = std::fs::read_dir(format!("/proc/{pid}/fd"))?
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    Ok(links
        .filter(|target| {
            target.to_string_lossy().starts_with("anon_inode:bpf")
                || target.to_string_lossy().starts_with("socket:")
        })
        .count())
}

fn set_queues(lab: &Lab, device: &str, queues: u32) -> Result<()> {
    let queues = queues.to_string();
    let gateway = lab.namespace(Host::Gateway);
    gateway.run("ethtool", &["-L", device, "rx", &queues, "tx", &queues]).map(drop)
}

/// Sets by how many queues the switch sends to one of the gateway's interfaces.
fn set_peer_queues(lab: &Lab, device: &str, queues: u32) -> Result<()> {
    let switch = if device == INSIDE { Host::SwitchInside } else { Host::SwitchOutside };
    let queues = queues.to_string();
    lab.namespace(switch)
        .run("ethtool", &["-L", Host::Gateway.name(), "rx", &queues, "tx", &queues])
        .map(drop)
}

fn connect(fixture: &Fixture, peer: &Peer) -> Result<TcpStream> {
    let connect = || TcpStream::connect_timeout(&peer.address().into(), LIMIT);
    let mut stream = fixture.lab.namespace(PODS[0].host).enter(connect)?.context("a pod cannot connect")?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut greeting = [0; BANNER.len()];
    stream.read_exact(&mut greeting)?;
    Ok(stream)
}

fn converse(connection: &mut TcpStream, words: &[u8]) -> Result<()> {
    connection.write_all(words)?;
    let mut echo = vec![0; words.len()];
    connection.read_exact(&mut echo).context("the connection did not outlive it")?;
    ensure!(echo == words, "the connection returned something else");
    Ok(())
}

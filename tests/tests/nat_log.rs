//! Who was behind an address and port: the log of translations, and `spillway who`.

use std::collections::BTreeSet;
use std::net::{SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use control::demo::Lab;
use control::demo::command::{self, text};
use control::demo::gateway::{Gateway, Installation};
use control::demo::server::Server;
use control::demo::topology::{BLUE, Host, PODS, RED, SERVER};
use control::demo::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use spillway_tests::cluster::{Prepared, SOON};
use spillway_tests::doctor::edit_config;
use spillway_tests::fixture::{Fixture, LIMIT, executable, skipped};
use spillway_tests::peers::{Peer, exchange_with};
use spillway_tests::stream::Stream;

/// A gateway with both tenants and this `[nat_log]`; `LOG` stands for the path of its file.
fn start(section: &str) -> Result<Option<(Fixture, PathBuf)>> {
    if skipped()? {
        return Ok(None);
    }
    let lab = Lab::build(&control::demo::LabOptions::default())?;
    let server = Server::start(&lab)?;
    let installation = Installation::write(&lab, &executable()?)?;
    let log = lab.directory().join("nat.jsonl");
    let section = section.replace("LOG", &log.display().to_string());
    edit_config(&installation, "[cluster]", &format!("{section}\n\n[cluster]"))?;
    let fixture = Fixture { gateway: Gateway::start(&lab, installation)?, server, lab };
    fixture.gateway.add_tenant(&BLUE)?;
    fixture.gateway.add_tenant(&RED)?;
    Ok(Some((fixture, log)))
}

const FILE: &str = "[nat_log.file]\npath = \"LOG\"";

fn records(log: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Waits until the log holds what is looked for.
fn until<T>(log: &Path, what: &str, found: impl Fn(&[Value]) -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let records = records(log)?;
        if let Some(found) = found(&records) {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("the log does not tell {what}: {records:#?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn of_event<'a>(records: &'a [Value], event: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["event"] == event).collect()
}

/// The ends of a session, as records and the API spell them alike.
fn ends(session: &Value) -> Vec<String> {
    let fields = ["tenant", "protocol", "insideAddress", "insidePort", "outsideAddress", "outsidePort"];
    fields.iter().map(|field| session[field].to_string()).collect()
}

/// Asks who is or was behind an address; returns the exit code and the answer.
fn who(fixture: &Fixture, outside: SocketAddrV4, more: &[&str]) -> Result<(Option<i32>, Value)> {
    let outside = outside.to_string();
    let arguments = [&["who", &outside, "--json"], more].concat();
    let output = fixture.gateway.installation().output(&arguments)?;
    let answer = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{}{}", text(&output.stdout), text(&output.stderr)))?;
    Ok((output.status.code(), answer))
}

fn holders(answer: &Value) -> Vec<String> {
    let holders = answer["holders"].as_array().into_iter().flatten();
    holders
        .map(|holder| format!("{}:{}", holder["insideAddress"].as_str().unwrap_or("-"), holder["insidePort"]))
        .collect()
}

#[test]
fn every_session_is_logged_and_found_again_over_a_restart() -> Result<()> {
    let Some((mut fixture, log)) = start(FILE)? else { return Ok(()) };
    let echo = Peer::udp_echo(&fixture.lab, 7)?;
    let streams = PODS.iter().map(|pod| Stream::start(&fixture.lab, pod, echo.address()));
    let streams = streams.collect::<Result<Vec<_>>>()?;
    streams.iter().try_for_each(|stream| stream.until_answered(20))?;
    let sessions = fixture.gateway.installation().json(&["sessions"])?;
    let live: BTreeSet<_> = sessions.as_array().context("no list")?.iter().map(ends).collect();
    let begun = until(&log, "every session", |records| {
        let begun: BTreeSet<_> = of_event(records, "sessionBegin").into_iter().map(ends).collect();
        begun.is_superset(&live).then_some(begun)
    })?;
    assert!(live.len() >= PODS.len() && begun == live, "{begun:?}\n{live:?}");
    let session = &sessions[0];
    let outside = format!("{}:{}", session["outsideAddress"].as_str().unwrap_or(""), session["outsidePort"]);
    let inside = format!("{}:{}", session["insideAddress"].as_str().unwrap_or(""), session["insidePort"]);
    let outside: SocketAddrV4 = outside.parse()?;
    let (code, answer) = who(&fixture, outside, &["--proto", "udp"])?;
    assert_eq!((code, holders(&answer)), (Some(0), vec![inside.clone()]), "{answer}");
    assert_eq!(answer["holders"][0]["remoteAddress"], SERVER.to_string());
    let nobody = SocketAddrV4::new(*outside.ip(), 1);
    assert_eq!(who(&fixture, nobody, &[])?.0, Some(1));
    let before = records(&log)?.len();
    fixture.gateway.stop()?;
    fixture.start_again()?;
    streams.iter().try_for_each(|stream| stream.until_answered(20))?;
    let after = until(&log, "the second start", |records| {
        (of_event(records, "logBegin").len() == 2).then(|| records.to_vec())
    })?;
    assert!(after[before..].iter().all(|record| record["event"] == "logBegin"), "{after:#?}");
    assert_eq!(after[before]["continues"], true);
    let begin = after.iter().find(|record| ends(record) == ends(session)).context("no begin")?;
    let at = begin["time"].as_str().context("a time")?.to_owned();
    let (code, answer) = who(&fixture, outside, &["--at", &at])?;
    assert_eq!((code, holders(&answer)), (Some(0), vec![inside.clone()]), "{answer}");
    assert_eq!((&answer["holders"][0]["isLive"], &answer["log"]["notWritten"]), (&true.into(), &0.into()));
    let offline = ["--at", &at, "--file", log.to_str().context("a path")?];
    let (code, answer) = who(&fixture, outside, &offline)?;
    assert_eq!((code, holders(&answer)), (Some(0), vec![inside]), "{answer}");
    Ok(())
}

#[test]
fn ends_are_logged_with_their_reason_and_no_destinations() -> Result<()> {
    let short =
        format!("[timeouts]\nports = [{{ protocol = \"udp\", port = 7, timeout = \"1s\" }}]\n\n{FILE}");
    let Some((fixture, log)) = start(&short)? else { return Ok(()) };
    let echo = Peer::udp_echo(&fixture.lab, 7)?;
    let stream = Stream::start(&fixture.lab, &PODS[0], echo.address())?;
    stream.until_answered(5)?;
    drop(stream);
    let ended = until(&log, "the end", |records| {
        of_event(records, "sessionEnd").first().map(|record| (*record).clone())
    })?;
    assert_eq!((&ended["reason"], &ended["tenant"]), (&"idle".into(), &PODS[0].tenant.name.into()));
    let begun = records(&log)?;
    let begun = of_event(&begun, "sessionBegin")[0].clone();
    assert_eq!(ends(&begun), ends(&ended));
    let text = std::fs::read_to_string(&log)?;
    assert!(!text.contains("remote") && !text.contains(&SERVER.to_string()), "{text}");
    let port = u16::try_from(begun["outsidePort"].as_u64().context("a port")?)?;
    let outside = SocketAddrV4::new(PODS[0].tenant.egress, port);
    assert_eq!(who(&fixture, outside, &[])?.0, Some(1), "it has ended");
    let at = begun["time"].as_str().context("a time")?;
    let (code, answer) = who(&fixture, outside, &["--at", at])?;
    assert_eq!((code, &answer["holders"][0]["reason"]), (Some(0), &"idle".into()), "{answer}");
    assert_eq!(answer["holders"][0]["isLive"], false);
    let status = fixture.gateway.status()?;
    let shown = fixture.gateway.installation().cli(&["status"])?;
    assert!(shown.contains(&format!("records to file {}", log.display())), "{shown}");
    ensure!(status["natLog"]["sinks"][0]["trouble"].is_null() && status["natLog"]["lost"] == 0, "{status}");
    Ok(())
}

#[test]
fn nothing_is_logged_unless_it_is_asked_for() -> Result<()> {
    let Some((fixture, log)) = start("")? else { return Ok(()) };
    fixture.require_service()?;
    let status = fixture.gateway.status()?;
    assert!(status["natLog"].is_null() && !log.exists(), "{status}");
    let outside = SocketAddrV4::new(BLUE.egress, 40_000).to_string();
    let output = fixture.gateway.installation().output(&["who", &outside, "--at", "1s ago"])?;
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("add [nat_log.file]"), "{said}");
    Ok(())
}

/// Opens a session from the first pod with each of so many sockets.
fn open_sessions(fixture: &Fixture, echo: &Peer, count: usize) -> Result<Vec<UdpSocket>> {
    let open = || -> Result<UdpSocket> {
        let socket = fixture.lab.namespace(PODS[0].host).enter(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.set_read_timeout(Some(LIMIT))?;
        exchange_with(&socket, echo, b"hello")?;
        Ok(socket)
    };
    (0..count).map(|_| open()).collect()
}

#[test]
fn more_records_in_a_second_than_may_be_are_counted_to_the_last() -> Result<()> {
    const SESSIONS: usize = 60;
    const RATE: usize = 7;
    let section = format!("[nat_log]\nmax_per_second = {RATE}\n{FILE}");
    let Some((fixture, log)) = start(&section)? else { return Ok(()) };
    let echo = Peer::udp_echo(&fixture.lab, 7)?;
    let _sockets = open_sessions(&fixture, &echo, SESSIONS)?;
    let (begun, skipped) = until(&log, "what was not written", |records| {
        let begun = of_event(records, "sessionBegin");
        let skipped = of_event(records, "notWritten")
            .iter()
            .filter_map(|record| record["records"].as_u64())
            .sum::<u64>();
        let times: Vec<_> = begun.iter().map(|record| record["time"].to_string()).collect();
        (times.len() as u64 + skipped == SESSIONS as u64).then_some((times, skipped))
    })?;
    let seconds: BTreeSet<_> = begun.iter().map(|time| &time[..20]).collect();
    for second in &seconds {
        let count = begun.iter().filter(|time| time.starts_with(*second)).count();
        assert!(count <= RATE, "{count} records in {second}");
    }
    assert!(skipped > 0, "{SESSIONS} sessions took {} seconds", seconds.len());
    let status = fixture.gateway.status()?;
    assert_eq!(status["natLog"]["overRate"], skipped, "{status}");
    Ok(())
}

#[test]
fn a_file_that_was_moved_away_is_made_anew_on_sighup() -> Result<()> {
    let Some((fixture, log)) = start(FILE)? else { return Ok(()) };
    let echo = Peer::udp_echo(&fixture.lab, 7)?;
    let first = open_sessions(&fixture, &echo, 1)?;
    until(&log, "the session", |records| (!of_event(records, "sessionBegin").is_empty()).then_some(()))?;
    let moved = log.with_extension("moved");
    std::fs::rename(&log, &moved)?;
    let daemon = Pid::from_raw(i32::try_from(fixture.gateway.pid())?);
    kill(daemon, Signal::SIGHUP)?;
    wait::until("there is a new file", SOON, || {
        open_sessions(&fixture, &echo, 1)?;
        Ok(log.exists().then_some(()))
    })?;
    let port = first[0].local_addr()?.port();
    let has_first =
        |log: &Path| records(log).map(|all| all.iter().any(|record| record["insidePort"] == port));
    assert_eq!((has_first(&moved)?, has_first(&log)?), (true, false));
    Ok(())
}

/// A socket of the gateway's own that takes datagrams.
fn collector(lab: &Lab, port: u16) -> Result<UdpSocket> {
    let socket = lab.namespace(Host::Gateway).enter(|| UdpSocket::bind(("127.0.0.1", port)))??;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket)
}

fn receive(socket: &UdpSocket) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    let length = socket.recv(&mut buffer).context("nothing was sent")?;
    buffer.truncate(length);
    Ok(buffer)
}

#[test]
fn syslog_and_ipfix_say_the_same_as_the_file() -> Result<()> {
    if skipped()? {
        return Ok(());
    }
    let section = format!(
        "[nat_log]\ndestinations = true\n{FILE}\n[nat_log.syslog]\nto = \"udp:127.0.0.1:5514\"\n\
         [nat_log.ipfix]\nto = \"udp:127.0.0.1:4739\""
    );
    let Some((fixture, log)) = start(&section)? else { return Ok(()) };
    let (syslog, ipfix) = (collector(&fixture.lab, 5514)?, collector(&fixture.lab, 4739)?);
    let echo = Peer::udp_echo(&fixture.lab, 7)?;
    let _sockets = open_sessions(&fixture, &echo, 1)?;
    let record = until(&log, "the session", |records| {
        of_event(records, "sessionBegin").first().map(|record| (*record).clone())
    })?;
    assert_eq!(record["remoteAddress"], SERVER.to_string());
    let message = loop {
        let message = String::from_utf8(receive(&syslog)?)?;
        if message.contains("sessionBegin") {
            break message;
        }
    };
    let (header, json) = message.split_once(" - ").context("no structured data")?;
    let words: Vec<_> = header.split(' ').collect();
    assert_eq!((words[0], words[3], words[5]), ("<134>1", "spillway-nat", "sessionBegin"), "{message}");
    assert_eq!(serde_json::from_str::<Value>(json)?, record);
    let mut messages = Vec::new();
    while messages.len() < 2 {
        messages.push(receive(&ipfix)?); // templates, then the session
    }
    let decoded = decode(&fixture.lab.directory(), &messages)?;
    let fields =
        ["insideAddress", "insidePort", "outsideAddress", "outsidePort", "remoteAddress", "remotePort"];
    let expected: Vec<_> = fields
        .iter()
        .map(|field| record[field].as_str().map_or(record[field].to_string(), str::to_owned))
        .collect();
    let line = decoded.lines().find(|line| line.contains(&expected[0])).with_context(|| decoded.clone())?;
    let got: Vec<_> = line.split('|').collect();
    assert_eq!(
        (&got[..2], &got[2..]),
        (&["4", "17"][..], &expected.iter().map(String::as_str).collect::<Vec<_>>()[..])
    );
    Ok(())
}

/// Has tshark take IPFIX messages apart.
fn decode(directory: &Path, messages: &[Vec<u8>]) -> Result<String> {
    let (dump, capture) = (directory.join("ipfix.txt"), directory.join("ipfix.pcap"));
    let line = |message: &Vec<u8>| {
        let bytes: Vec<_> = message.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("000000 {}\n", bytes.join(" "))
    };
    std::fs::write(&dump, messages.iter().map(line).collect::<String>())?;
    command::run_ok(
        Command::new("text2pcap").args(["-q", "-u", "40000,4739"]).args([&dump, &capture]),
        LIMIT,
    )?;
    let fields = [
        "nat_event",
        "protocol",
        "srcaddr",
        "srcport",
        "post_natsource_ipv4_address",
        "post_naptsource_transport_port",
        "dstaddr",
        "dstport",
    ];
    let fields = fields.iter().flat_map(|field| ["-e".to_owned(), format!("cflow.{field}")]);
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(&capture).args(["-d", "udp.port==4739,cflow", "-T", "fields", "-E", "separator=|"]);
    command::run_ok(tshark.args(fields), LIMIT)
}

#[test]
fn pods_have_their_names_where_the_cluster_is_followed() -> Result<()> {
    let Some(prepared) = Prepared::build()? else { return Ok(()) };
    let log = prepared.lab.directory().join("nat.jsonl");
    let cluster = prepared.start_with(&format!("\n{}\n", FILE.replace("LOG", &log.display().to_string())))?;
    cluster.add_tenant(&BLUE)?;
    let pods = PODS.iter().filter(|pod| pod.tenant.name == BLUE.name).count() as u64;
    cluster.until_pods(BLUE.name, pods)?;
    let outside =
        wait::until("the pod reaches the server", SOON, || Ok(cluster.fixture.seen_as(&PODS[0]).ok()))?;
    let port = outside.port();
    let record = until(&log, "the session", |records| {
        let begun = of_event(records, "sessionBegin");
        begun.into_iter().find(|record| record["outsidePort"] == port).cloned()
    })?;
    let (pod, node) = (PODS[0].host.name(), PODS[0].node.host.name());
    let named =
        |of: &Value| [&of["namespace"], &of["pod"], &of["node"]].map(|name| name.as_str().map(str::to_owned));
    let expected = [BLUE.name, pod, node].map(|name| Some(name.to_owned()));
    assert_eq!(named(&record), expected);
    let at = record["time"].as_str().context("a time")?;
    for more in [&[][..], &["--at", at]] {
        let (code, answer) = who(&cluster.fixture, outside, more)?;
        assert_eq!((code, named(&answer["holders"][0])), (Some(0), expected.clone()), "{answer}");
    }
    Ok(())
}

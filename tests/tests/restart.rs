//! Sessions go on in the next process: after a restart and after a kill, with the same ports.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::demo::Lab;
use control::demo::topology::{Host, INSIDE, OUTSIDE, PODS, Pod, SERVER};
use spillway_tests::fixture::{Fixture, LIMIT};
use spillway_tests::peers::{BANNER, Peer};
use spillway_tests::stream::Stream;

/// How the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stop,
    Kill,
}

#[test]
fn sessions_go_on_after_a_restart() -> Result<()> {
    require_succession(End::Stop)
}

#[test]
fn sessions_go_on_after_a_kill() -> Result<()> {
    require_succession(End::Kill)
}

#[test]
fn a_file_of_sessions_that_is_damaged_is_set_aside() -> Result<()> {
    let Some(mut fixture) = Fixture::with_tenants()? else { return Ok(()) };
    fixture.require_service()?;
    fixture.gateway.stop()?;
    let file = session_file(&fixture);
    std::fs::write(&file, "something else")?;
    fixture.start_again()?;
    let aside = file.with_extension("sessions.refused");
    assert_eq!(std::fs::read_to_string(&aside)?, "something else");
    let status = fixture.gateway.status()?;
    let told = status["succession"]["setAside"].as_str().unwrap_or_default();
    assert!(told.contains("has 14 bytes") && told.contains("sessions.refused"), "{status}");
    assert!(fixture.gateway.log().contains("starts without sessions"), "{}", fixture.gateway.log());
    assert_eq!(status["sessions"], 0);
    fixture.require_service()
}

fn require_succession(end: End) -> Result<()> {
    let Some(mut fixture) = Fixture::with_tenants()? else { return Ok(()) };
    let lab = &fixture.lab;
    let (datagrams, greeter) = (Peer::udp_echo(lab, 7)?, Peer::tcp_echo(lab, Host::Server, SERVER, 2222)?);
    let connections = PODS.iter().map(|pod| Connection::open(lab, pod, &greeter));
    let mut connections = connections.collect::<Result<Vec<_>>>()?;
    let streams = PODS.iter().map(|pod| Stream::start(lab, pod, datagrams.address()));
    let streams = streams.collect::<Result<Vec<_>>>()?;
    streams.iter().try_for_each(|stream| stream.until_answered(50))?;
    let (before, programs) = (translations(&fixture)?, programs(&fixture)?);
    match end {
        End::Stop => drop(fixture.gateway.stop()?),
        End::Kill => drop(fixture.gateway.kill()?),
    }
    fixture.start_again()?;
    assert_eq!(self::programs(&fixture)?, programs, "the same build takes over what is attached");
    connections.iter_mut().try_for_each(Connection::echo)?;
    streams.iter().try_for_each(|stream| stream.until_answered(50))?;
    let after = translations(&fixture)?;
    assert!(before.len() >= 2 * PODS.len() && before.is_subset(&after), "{before:?}\n{after:?}");
    let status = fixture.gateway.status()?;
    let (restored, known) = (&status["succession"]["restored"], before.len() as u64);
    assert_eq!((restored.as_u64(), status["succession"]["setAside"].is_null()), (Some(known), true));
    for (pod, stream) in PODS.iter().zip(streams) {
        let summary = stream.finish();
        assert_eq!(summary.seen_as.len(), 1, "pod {} changed its port: {summary:?}", pod.address);
        assert_eq!(summary.refused, 0, "{summary:?}");
    }
    fixture.require_service()
}

/// Returns the inside and the outside end of every session.
fn translations(fixture: &Fixture) -> Result<BTreeSet<[String; 5]>> {
    let sessions = fixture.gateway.installation().json(&["sessions"])?;
    let sessions = sessions.as_array().context("no list")?.iter();
    let fields = ["protocol", "insideAddress", "insidePort", "outsideAddress", "outsidePort"];
    Ok(sessions.map(|session| fields.map(|field| session[field].to_string())).collect())
}

/// Returns the kernel's numbers of the XDP programs of both sides.
fn programs(fixture: &Fixture) -> Result<[u64; 2]> {
    let gateway = fixture.lab.namespace(Host::Gateway);
    let number = |device| -> Result<u64> {
        let link: serde_json::Value =
            serde_json::from_str(&gateway.ip(&format!("-d -j link show dev {device}"))?)?;
        link[0]["xdp"]["prog"]["id"].as_u64().with_context(|| format!("no program: {link}"))
    };
    Ok([number(INSIDE)?, number(OUTSIDE)?])
}

fn session_file(fixture: &Fixture) -> PathBuf {
    fixture.gateway.installation().socket.with_extension("sessions")
}

/// A TCP connection from a pod to the server.
struct Connection(TcpStream);

impl Connection {
    fn open(lab: &Lab, pod: &Pod, to: &Peer) -> Result<Self> {
        let connect = || TcpStream::connect_timeout(&to.address().into(), LIMIT);
        let stream = lab.namespace(pod.host).enter(connect)??;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut connection = Self(stream);
        connection.read(BANNER)?;
        connection.echo()?;
        Ok(connection)
    }

    /// Sends a line and waits for it to come back.
    fn echo(&mut self) -> Result<()> {
        self.0.write_all(b"still here\r\n")?;
        self.read("still here\r\n")
    }

    fn read(&mut self, expected: &str) -> Result<()> {
        let mut read = vec![0; expected.len()];
        self.0.read_exact(&mut read)?;
        ensure!(read == expected.as_bytes(), "the server said {read:?}");
        Ok(())
    }
}

//! What the pods and the nodes talk to besides nginx and dnsmasq: small services on threads inside a namespace.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use control::demo::Lab;
use control::demo::topology::{Host, SERVER};

/// The service's first line, like that of an SSH server.
pub const BANNER: &str = "SSH-2.0-lab\r\n";

/// Bytes of the largest datagram.
const LARGEST: usize = 1 << 16;

const TURN: Duration = Duration::from_millis(50);

/// A service; it ends when this is dropped.
#[derive(Debug)]
pub struct Peer {
    address: SocketAddrV4,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Answers every datagram to a port of the server with the client's address and port, as seen there, a blank,
    /// and what the datagram held.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn udp_echo(lab: &Lab, port: u16) -> Result<Self> {
        let address = SocketAddrV4::new(SERVER, port);
        let socket = lab.namespace(Host::Server).enter(|| UdpSocket::bind(address))?.context("UDP echo")?;
        socket.set_read_timeout(Some(TURN))?;
        Ok(Self::run(address, move |stop| answer_datagrams(&socket, stop)))
    }

    /// Greets every TCP client on an address of a host with [`BANNER`], then returns what it sends.
    ///
    /// # Errors
    /// When the address is taken, or not the host's.
    pub fn tcp_echo(lab: &Lab, host: Host, address: Ipv4Addr, port: u16) -> Result<Self> {
        let address = SocketAddrV4::new(address, port);
        let listener = lab.namespace(host).enter(|| TcpListener::bind(address))?.context("TCP echo")?;
        listener.set_nonblocking(true)?;
        Ok(Self::run(address, move |stop| greet_clients(&listener, stop)))
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    fn run(address: SocketAddrV4, work: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        Self { address, stop, thread: Some(std::thread::spawn(move || work(&flag))) }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the service shows as a client's failure.
            let _ = thread.join();
        }
    }
}

/// Talks to a [`Peer::tcp_echo`] like a client of SSH: reads the banner, then sends `total` bytes in turns and reads
/// each back.
///
/// # Errors
/// When the connection fails, or something else comes back.
pub fn converse(lab: &Lab, from: Host, with: SocketAddrV4, total: usize) -> Result<()> {
    let limit = Duration::from_secs(10);
    let mut stream = lab
        .namespace(from)
        .enter(|| TcpStream::connect_timeout(&with.into(), limit))?
        .with_context(|| format!("{from:?} cannot connect to {with}"))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut greeting = [0; BANNER.len()];
    stream.read_exact(&mut greeting)?;
    anyhow::ensure!(greeting == BANNER.as_bytes(), "{with} greets with {greeting:?}");
    for turn in 0..total.div_ceil(8192) {
        let sent = vec![turn.to_le_bytes()[0]; 8192];
        stream.write_all(&sent)?;
        let mut got = vec![0; sent.len()];
        stream.read_exact(&mut got).with_context(|| format!("{with} fell silent in turn {turn}"))?;
        anyhow::ensure!(got == sent, "{with} returned something else in turn {turn}");
    }
    Ok(())
}

/// Sends one datagram from a host to a [`Peer::udp_echo`]; returns the host's address as the peer saw it, and what came
/// back.
///
/// # Errors
/// When nothing comes back, or no echo.
pub fn exchange(lab: &Lab, from: Host, peer: &Peer, sent: &[u8]) -> Result<(Ipv4Addr, Vec<u8>)> {
    let socket = lab.namespace(from).enter(|| UdpSocket::bind("0.0.0.0:0"))??;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (client, got) = exchange_with(&socket, peer, sent)?;
    Ok((*client.ip(), got))
}

/// Does the same with a socket that is there; returns its address and port as the peer saw them.
///
/// # Errors
/// As [`exchange`].
pub fn exchange_with(socket: &UdpSocket, peer: &Peer, sent: &[u8]) -> Result<(SocketAddrV4, Vec<u8>)> {
    socket.send_to(sent, peer.address())?;
    let mut buffer = vec![0; LARGEST];
    let length = socket.recv(&mut buffer)?;
    let blank = buffer.iter().position(|byte| *byte == b' ').context("the answer has no blank")?;
    let client = std::str::from_utf8(&buffer[..blank])?.parse()?;
    Ok((client, buffer[blank + 1..length].to_vec()))
}

/// Returns bytes without a pattern, the same on every call.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(length)
    .collect()
}

fn answer_datagrams(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0; LARGEST];
    while !stop.load(Ordering::Relaxed) {
        // Nothing within a turn, or an ICMP error about an earlier answer.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let mut answer = format!("{client} ").into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        let _ = socket.send_to(&answer, client);
    }
}

fn greet_clients(listener: &TcpListener, stop: &AtomicBool) {
    std::thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                // The client's own checks tell what went wrong.
                Ok((client, _)) => drop(scope.spawn(move || echo(client, stop))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(_) => return,
            }
        }
    });
}

fn echo(mut client: TcpStream, stop: &AtomicBool) -> std::io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(TURN))?;
    client.write_all(BANNER.as_bytes())?;
    let mut buffer = [0; 8192];
    while !stop.load(Ordering::Relaxed) {
        match client.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => client.write_all(&buffer[..length])?,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

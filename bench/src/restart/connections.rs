use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::echo::{self, EchoServer, allow_descriptors, epoll, wait};
use crate::topology::{SERVER, Topology};

const TURN: u16 = 10;
const CONNECTS_WITHIN: Duration = Duration::from_secs(10);
/// A segment that is lost after some others is sent again after a second or two.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// Connections that say something in each turn of a millisecond.
const ASKED_PER_TURN: usize = 5;
const MESSAGE: [u8; 8] = *b"alive?\r\n";

/// Connections of the kernel's TCP from a pod to a server that returns what it gets; dropped, they end.
pub(super) struct Connections {
    shared: Arc<Shared>,
    _server: EchoServer,
    client: Option<JoinHandle<Result<Outcome>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop_asking: AtomicBool,
    answers: AtomicU64,
}

/// What became of the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Those that broke.
    pub(super) broken: u64,
    /// Those that were asked at last, and did not answer.
    pub(super) silent: u64,
}

impl Connections {
    /// Opens so many, and lets them talk one after the other from then on.
    pub(super) fn open(topology: &Topology, count: usize) -> Result<Self> {
        allow_descriptors(count)?;
        let shared = Arc::new(Shared::default());
        let server = EchoServer::start(topology)?;
        let address = SocketAddr::from((SERVER.parse::<Ipv4Addr>()?, echo::PORT));
        let mut connections = Self { shared: Arc::clone(&shared), _server: server, client: None };
        let connect = || (0..count).map(|_| connect(address)).collect::<Result<Vec<_>>>();
        let streams = topology.generator.enter(connect)?;
        connections.client = Some(thread::spawn(move || ask(streams, &shared)));
        Ok(connections)
    }

    /// Returns how many answers have come.
    pub(super) fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// Asks each once more, and tells what became of them.
    pub(super) fn finish(mut self) -> Result<Outcome> {
        self.shared.stop_asking.store(true, Ordering::Relaxed);
        let client = self.client.take().context("connections are finished once")?;
        client.join().unwrap_or_else(|_| Err(anyhow!("the clients' thread panicked")))
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.shared.stop_asking.store(true, Ordering::Relaxed);
        if let Some(client) = self.client.take() {
            // Whoever wanted the outcome has it.
            let _ = client.join();
        }
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, CONNECTS_WITHIN)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// The clients' ends.
struct Clients<'a> {
    streams: Vec<Option<TcpStream>>,
    /// Bytes that each waits for.
    owed: Vec<usize>,
    shared: &'a Shared,
    broken: u64,
}

impl Clients<'_> {
    fn send(&mut self, number: usize) {
        let Some(stream) = &mut self.streams[number] else { return };
        match stream.write(&MESSAGE) {
            Ok(length) => self.owed[number] += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.lose(number),
        }
    }

    fn receive(&mut self, number: usize) {
        let mut buffer = [0; 4096];
        while let Some(stream) = &mut self.streams[number] {
            match stream.read(&mut buffer) {
                Ok(0) => self.lose(number),
                Ok(length) => {
                    self.owed[number] = self.owed[number].saturating_sub(length);
                    self.shared.answers.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.lose(number),
            }
        }
    }

    fn lose(&mut self, number: usize) {
        self.streams[number] = None;
        self.owed[number] = 0;
        self.broken += 1;
    }
}

fn ask(streams: Vec<TcpStream>, shared: &Shared) -> Result<Outcome> {
    let epoll = epoll()?;
    for (number, stream) in (0..).zip(&streams) {
        epoll.add(stream, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
    }
    let count = streams.len();
    ensure!(count > 0, "there are no connections");
    let owed = vec![0; count];
    let mut clients = Clients { streams: streams.into_iter().map(Some).collect(), owed, shared, broken: 0 };
    let mut next = 0;
    while !shared.stop_asking.load(Ordering::Relaxed) {
        for _ in 0..ASKED_PER_TURN {
            clients.send(next % count);
            next += 1;
        }
        wait(&epoll, 1, |number| clients.receive(number))?;
    }
    for number in 0..count {
        clients.send(number);
        if number % 100 == 0 {
            wait(&epoll, 1, |number| clients.receive(number))?;
        }
    }
    let deadline = Instant::now() + ANSWERS_WITHIN;
    while clients.owed.iter().any(|owed| *owed > 0) && Instant::now() < deadline {
        wait(&epoll, TURN, |number| clients.receive(number))?;
    }
    let silent = clients.owed.iter().filter(|owed| **owed > 0).count() as u64;
    Ok(Outcome { broken: clients.broken, silent })
}

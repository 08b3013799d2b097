//! A steady stream of datagrams from a pod to an echo service, that knows what was lost.

use std::collections::BTreeSet;
use std::net::{SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use control::demo::topology::Pod;
use control::demo::{Lab, wait};

/// Pause between two datagrams.
const PACE: Duration = Duration::from_millis(2);
/// Time that the last answers may take.
const LAST: Duration = Duration::from_secs(2);
/// After a minute without a gateway TCP sends again when most of another is over.
const MORE_WITHIN: Duration = Duration::from_secs(90);

/// A running stream; it ends when this is dropped.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Summary>>,
}

/// What became of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that came back, each counted once.
    pub answered: u64,
    /// Sends or receives that an ICMP error refused.
    pub refused: u64,
    /// Numbers of the datagrams that did not come back.
    pub missing: BTreeSet<u64>,
    /// Addresses and ports that the server saw them come from.
    pub seen_as: BTreeSet<SocketAddrV4>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    abandoned: AtomicBool,
    sent: AtomicU64,
    answered: AtomicU64,
}

impl Stream {
    /// Starts one from a pod to a [`Peer::udp_echo`](crate::peers::Peer::udp_echo).
    ///
    /// # Errors
    /// When the pod cannot open a socket.
    pub fn start(lab: &Lab, pod: &Pod, to: SocketAddrV4) -> Result<Self> {
        Self::start_with_pause(lab, pod, to, PACE)
    }

    /// Starts one that pauses for so long after each datagram.
    ///
    /// # Errors
    /// When the pod cannot open a socket.
    pub fn start_with_pause(lab: &Lab, pod: &Pod, to: SocketAddrV4, pause: Duration) -> Result<Self> {
        let open = || {
            let socket = UdpSocket::bind((pod.address, 0))?;
            socket.connect(to)?;
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(socket)
        };
        let socket = lab.namespace(pod.host).enter(open)?.context("stream")?;
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        Ok(Self { shared, thread: Some(std::thread::spawn(move || pump(&socket, &own, pause))) })
    }

    /// Waits until `count` more datagrams were sent.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn until_sent(&self, count: u64) -> Result<()> {
        until_grown("datagrams are sent", &self.shared.sent, count)
    }

    /// Waits until `count` more datagrams were answered.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn until_answered(&self, count: u64) -> Result<()> {
        until_grown("datagrams are answered", &self.shared.answered, count)
    }

    /// Ends the stream, once the last answers came or had time to.
    ///
    /// # Panics
    /// When the stream's thread did.
    pub fn finish(mut self) -> Summary {
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("a stream is finished once");
        thread.join().expect("the stream's thread does not panic")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.abandoned.store(true, Ordering::Relaxed);
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The test is failing already, or did not want the summary.
            let _ = thread.join();
        }
    }
}

fn until_grown(what: &str, counter: &AtomicU64, by: u64) -> Result<()> {
    let goal = counter.load(Ordering::Relaxed) + by;
    wait::until(&format!("{by} more {what}"), MORE_WITHIN, || {
        Ok((counter.load(Ordering::Relaxed) >= goal).then_some(()))
    })
}

fn pump(socket: &UdpSocket, shared: &Shared, pause: Duration) -> Summary {
    let mut summary = Summary::default();
    let mut open = BTreeSet::new();
    while !shared.stop.load(Ordering::Relaxed) {
        match socket.send(&summary.sent.to_be_bytes()) {
            Ok(_) => {
                open.insert(summary.sent);
                summary.sent += 1;
                shared.sent.store(summary.sent, Ordering::Relaxed);
            }
            Err(_) => summary.refused += 1,
        }
        take_answers(socket, shared, &mut open, &mut summary);
        std::thread::sleep(pause);
    }
    let deadline = Instant::now() + LAST;
    while !open.is_empty() && !shared.abandoned.load(Ordering::Relaxed) && Instant::now() < deadline {
        take_answers(socket, shared, &mut open, &mut summary);
        std::thread::sleep(PACE);
    }
    summary.missing = open;
    summary
}

fn take_answers(socket: &UdpSocket, shared: &Shared, open: &mut BTreeSet<u64>, summary: &mut Summary) {
    let mut buffer = [0; 128];
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let Some((client, number)) = read_answer(&buffer[..length]) else { continue };
                if open.remove(&number) {
                    summary.answered += 1;
                    summary.seen_as.insert(client);
                    shared.answered.store(summary.answered, Ordering::Relaxed);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(_) => {
                summary.refused += 1;
                return;
            }
        }
    }
}

fn read_answer(answer: &[u8]) -> Option<(SocketAddrV4, u64)> {
    let (head, number) = answer.split_at_checked(answer.len().checked_sub(8)?)?;
    let client = std::str::from_utf8(head).ok()?.trim_end().parse().ok()?;
    Some((client, u64::from_be_bytes(number.try_into().ok()?)))
}

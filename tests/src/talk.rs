//! A TCP connection from a pod that is in use all the time.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use control::demo::topology::Pod;
use control::demo::{Lab, wait};

use crate::peers::BANNER;

/// Pause between two turns.
const PACE: Duration = Duration::from_millis(2);
/// Longest time that the other end may be silent: after a minute without a gateway TCP sends again late in the next.
const PATIENCE: Duration = Duration::from_secs(150);

/// A running connection; it is closed when this is dropped.
#[derive(Debug)]
pub struct Talk {
    stream: TcpStream,
    stop: Arc<AtomicBool>,
    turns: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Talk {
    /// Connects a pod to a [`Peer::tcp_echo`](crate::peers::Peer::tcp_echo), and sends and reads back from then on.
    ///
    /// # Errors
    /// When it cannot connect.
    pub fn start(lab: &Lab, pod: &Pod, with: SocketAddrV4) -> Result<Self> {
        let connect = || TcpStream::connect_timeout(&with.into(), PATIENCE);
        let mut stream = lab.namespace(pod.host).enter(connect)?.context("talk")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut greeting = [0; BANNER.len()];
        stream.read_exact(&mut greeting)?;
        let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (Arc::clone(&stop), Arc::clone(&turns));
        let own = stream.try_clone()?;
        let thread = std::thread::spawn(move || talk(own, &until, &count));
        Ok(Self { stream, stop, turns, thread: Some(thread) })
    }

    /// Waits until `count` more turns were answered.
    ///
    /// # Errors
    /// When the connection broke, or that takes too long.
    pub fn until_answered(&mut self, count: u64) -> Result<()> {
        let goal = self.turns.load(Ordering::Relaxed) + count;
        wait::until("the connection goes on", 2 * PATIENCE, || {
            if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                self.close()?;
                bail!("the connection ended");
            }
            Ok((self.turns.load(Ordering::Relaxed) >= goal).then_some(()))
        })
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// When it broke before.
    pub fn finish(mut self) -> Result<()> {
        self.close()
    }

    fn close(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| anyhow::anyhow!("the connection's thread panicked"))?
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // Who finished it has heard already; the others fail for another reason, and do not wait for an answer.
        let _ = self.stream.shutdown(Shutdown::Both);
        let _ = self.close();
    }
}

fn talk(mut stream: TcpStream, stop: &AtomicBool, turns: &AtomicU64) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let turn = turns.load(Ordering::Relaxed);
        let sent = [turn.to_le_bytes()[0]; 512];
        stream.write_all(&sent)?;
        let mut got = [0; 512];
        stream.read_exact(&mut got).with_context(|| format!("the server fell silent in turn {turn}"))?;
        ensure!(got == sent, "the server returned something else in turn {turn}");
        turns.store(turn + 1, Ordering::Relaxed);
        std::thread::sleep(PACE);
    }
    Ok(())
}

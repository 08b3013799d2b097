use std::env;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use control::demo::process::Process;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

use crate::namespace::PREFIX;
use crate::topology::{SERVER, Topology};

pub(super) const PORT: u16 = 7777;
const TURN: u16 = 10;
const READY: &str = "listening";
const READY_WITHIN: Duration = Duration::from_secs(10);

/// A server of TCP that returns what it gets.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where it listens
    listen: SocketAddrV4,
}

/// This program as an echo server, in a process of its own, which may have as many connections as this one; dropped, it
/// ends.
pub(super) struct EchoServer {
    _process: Process,
    _directory: TempDir,
}

impl EchoServer {
    /// Starts it at the topology's far end and waits until it listens.
    pub(super) fn start(topology: &Topology) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", topology.sink.path())).arg("--").arg(env::current_exe()?);
        command.args(["echo", &format!("{SERVER}:{PORT}")]);
        let mut process = Process::start(&mut command, &directory.path().join("log"))?;
        process.until_printed(READY, READY_WITHIN)?;
        Ok(Self { _process: process, _directory: directory })
    }
}

/// Lets this process have so many sockets, or as many as it may.
pub(super) fn allow_descriptors(sockets: usize) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = (sockets as u64 + 1000).min(hard);
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    Ok(())
}

pub(super) fn epoll() -> Result<Epoll> {
    Ok(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?)
}

/// Shows the numbers of what is readable within a turn.
pub(super) fn wait(epoll: &Epoll, milliseconds: u16, mut on_ready: impl FnMut(usize)) -> Result<()> {
    let mut events = [EpollEvent::empty(); 256];
    let ready = match epoll.wait(&mut events, EpollTimeout::from(milliseconds)) {
        Err(nix::errno::Errno::EINTR) => 0,
        ready => ready?,
    };
    events[..ready].iter().for_each(|event| on_ready(usize::try_from(event.data()).unwrap_or(usize::MAX)));
    Ok(())
}

/// Returns what clients send, until a signal comes.
pub(crate) fn serve(options: &Options) -> Result<()> {
    allow_descriptors(usize::from(u16::MAX))?;
    let listener = TcpListener::bind(options.listen)?;
    listener.set_nonblocking(true)?;
    println!("{READY}");
    let epoll = epoll()?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, u64::MAX))?;
    let mut clients: Vec<Option<TcpStream>> = Vec::new();
    while control::demo::wait::check_interrupted().is_ok() {
        wait(&epoll, TURN, |number| match clients.get_mut(number) {
            Some(client) => {
                if client.as_mut().is_some_and(|stream| !returns(stream)) {
                    *client = None;
                }
            }
            None => {
                while let Ok((stream, _)) = listener.accept() {
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, clients.len() as u64);
                    let is_watched =
                        stream.set_nonblocking(true).is_ok() && epoll.add(&stream, event).is_ok();
                    clients.push(is_watched.then_some(stream));
                }
            }
        })?;
    }
    Ok(())
}

/// Returns what a client sends; tells whether it is still there.
fn returns(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) => {
                if stream.write_all(&buffer[..length]).is_err() {
                    return false;
                }
            }
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

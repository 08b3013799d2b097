use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{Context, Result, anyhow, bail};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use clap::Args;
use control::demo::wait;
use fastpath::io::xsk::{RING_FRAMES, XskPort};
use fastpath::io::{Frame, FrameArea, FrameIo, FramePool};
use fastpath::placement::run_first;
use fastpath::runner::Patience;
use macaddr::MacAddr6;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::Pid;

use crate::napi;

/// As the worker: see `fastpath/src/worker.rs` and `fastpath/src/runner.rs`, whose turn and sleep this repeats.
const BATCH_FRAMES: usize = 64;
const FRAMES_PER_QUEUE: usize = 3 * RING_FRAMES;
const SLEEP_MS: u16 = 100;
const SLEEP_WHILE_TRANSMITTING_MS: u16 = 1;

/// Printed once frames are forwarded.
pub(crate) const READY: &str = "forwarding";

static PROGRAM: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirect.bpf.o"));

/// Two links with one queue each.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The interface towards the pods, its MAC, and the node's behind it
    #[arg(long, num_args = 3)]
    inside: Vec<String>,
    /// The interface towards the server, its MAC, and the server's
    #[arg(long, num_args = 3)]
    outside: Vec<String>,
    /// The core to work on
    #[arg(long)]
    core: usize,
}

/// A port, and the MACs of frames that leave by it: destination, then source.
struct Side {
    io: XskPort,
    ethernet: [u8; 12],
    // Holds the attachment.
    _program: Ebpf,
}

/// Forwards frames between two interfaces until a signal comes, changing nothing but their MACs.
pub(crate) fn forward(options: &Options) -> Result<()> {
    napi::pin(Pid::from_raw(0), options.core)?;
    let (area, mut pool) = FrameArea::allocate(2 * FRAMES_PER_QUEUE)?;
    let mut sides = [Side::open(&area, &options.inside)?, Side::open(&area, &options.outside)?];
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for side in &mut sides {
        side.io.refill(&mut pool);
        let descriptor = side.descriptor();
        let number = u64::try_from(descriptor.as_raw_fd())?;
        epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
    }
    run_first().map_err(|error| anyhow!("SCHED_FIFO cannot be had: {error}"))?;
    println!("{READY}");
    let mut batch = VecDeque::with_capacity(BATCH_FRAMES);
    let mut patience = Patience::default();
    while wait::check_interrupted().is_ok() {
        if turn(&mut sides, &mut batch, &mut pool) > 0 {
            patience.reward();
        } else if patience.is_over() {
            let is_transmitting = sides.iter().any(|side| side.io.is_transmitting());
            let limit = if is_transmitting { SLEEP_WHILE_TRANSMITTING_MS } else { SLEEP_MS };
            // An interrupted wait is a short one.
            epoll.wait(&mut [EpollEvent::empty(); 1], EpollTimeout::from(limit)).ok();
        }
    }
    Ok(())
}

fn turn(sides: &mut [Side; 2], batch: &mut VecDeque<Frame>, pool: &mut FramePool) -> usize {
    let mut found = 0;
    for (from, to) in [(0, 1), (1, 0)] {
        found += sides[from].io.receive(batch, BATCH_FRAMES);
        for mut frame in batch.drain(..) {
            let sent = match frame.bytes_mut().get_mut(..12) {
                Some(macs) => {
                    macs.copy_from_slice(&sides[to].ethernet);
                    sides[to].io.send(frame)
                }
                None => Err(frame),
            };
            if let Err(frame) = sent {
                pool.put(frame);
            }
        }
    }
    for side in &mut *sides {
        side.io.flush();
        side.io.complete(pool);
    }
    for side in sides {
        side.io.refill(pool);
    }
    found
}

impl Side {
    fn open(area: &FrameArea, words: &[String]) -> Result<Self> {
        let [interface, own, peer] = words else { bail!("an interface and two MACs are wanted: {words:?}") };
        let mut ethernet = [0; 12];
        for (place, mac) in ethernet.chunks_exact_mut(6).zip([peer, own]) {
            let mac: MacAddr6 = mac.parse().with_context(|| format!("{mac} is no MAC"))?;
            place.copy_from_slice(mac.as_bytes());
        }
        let program = attach(interface).with_context(|| format!("{interface} takes no XDP program"))?;
        let io = XskPort::open(area, interface, 0).with_context(|| interface.clone())?;
        Ok(Self { io, ethernet, _program: program })
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.io.descriptor().expect("a socket has a descriptor")
    }
}

/// Gives all frames of an interface to the socket of their queue.
fn attach(interface: &str) -> Result<Ebpf> {
    let mut object = EbpfLoader::new().load(PROGRAM)?;
    let program: &mut Xdp =
        object.program_mut("redirect").context("the object has no program `redirect`")?.try_into()?;
    program.load()?;
    program.attach(interface, XdpMode::Driver)?;
    Ok(object)
}

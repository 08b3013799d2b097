//! AF_XDP sockets behind [`FrameIo`]; the only file that names `afxdp`.
//!
//! What the `afxdp` crate leaves to its caller, and this file therefore does:
//! - its sockets must be freed before the rings that they point into (see `Drop`);
//! - its ring reservations are all or nothing, so free places are counted here;
//! - it hides its descriptor, which polling, statistics and waking need (see `find_new_socket`);
//! - it has no way to take frames out of the rings of a socket that is closed (see [`Stranded`]).

#![allow(unsafe_code, reason = "frames are memory shared with the kernel")]

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use afxdp::PENDING_LEN;
pub(super) use afxdp::buf::Buf;
use afxdp::buf_mmap::BufMmap;
use afxdp::mmap_area::{MmapArea, MmapAreaOptions};
use afxdp::socket::{Socket, SocketNewError, SocketOptions, SocketRx, SocketTx};
use afxdp::umem::{Umem, UmemCompletionQueue, UmemFillQueue, UmemNewError};
use arraydeque::{ArrayDeque, Wrapping};
use thiserror::Error;

use super::FrameIo;
use super::frames::{Frame, FrameArea, FramePool};
use super::probe::{XskProbe, find_new_socket, option_bytes, sockets_of_process};
use super::turnstile::Turnstile;

/// Descriptors in each ring; a power of two.
const RING_DESCRIPTORS: u32 = 2048;

/// Frames that each ring holds.
pub const RING_FRAMES: usize = RING_DESCRIPTORS as usize;

/// Turns without a frame to send after which the kernel is asked again to transmit what it has, while it has not told that
/// it did. It has nearly always taken all at once, and tells when the frames are gone: asking in every turn would be most of
/// what a worker does between two batches.
const FLUSHES_BETWEEN_KICKS: u32 = 16;

/// How long the kernel may take to free a queue whose socket was closed.
const FREED_WITHIN: Duration = Duration::from_secs(1);

/// Frames that one transmit system call may send in copy mode, where the kernel lets it be raised from 32.
const TX_BUDGET: u32 = 256;

/// `XDP_MAX_TX_SKB_BUDGET` of `linux/if_xdp.h`, Linux 6.17.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// A chunk of an area, and an area.
pub(super) type RawFrame = BufMmap<'static, ()>;
pub(super) type Area = MmapArea<'static, ()>;
type RawQueue = Box<ArrayDeque<[RawFrame; PENDING_LEN], Wrapping>>;

/// Why a socket could not be opened.
#[derive(Debug, Error)]
pub enum XskError {
    /// The memory area could not be registered.
    #[error("the frame area cannot be registered; raise RLIMIT_MEMLOCK or run with CAP_IPC_LOCK")]
    Umem(#[source] io::Error),
    /// The socket could not be bound.
    #[error("the queue cannot be bound; is another AF_XDP program using it?")]
    Socket(#[source] io::Error),
    /// A privilege is missing. The library finds the program's map by number, which takes CAP_SYS_ADMIN
    /// (`BPF_PROG_GET_FD_BY_ID`, bpf(2)).
    #[error(
        "the socket cannot be entered into the XDP program's map; CAP_SYS_ADMIN and CAP_NET_RAW are needed"
    )]
    Permission(#[source] io::Error),
    /// The socket's descriptor was not found.
    #[error("the socket's descriptor was not found among those of the process")]
    Descriptor,
}

struct Rings {
    rx: SocketRx<'static, ()>,
    tx: SocketTx<'static, ()>,
    socket: Arc<Socket<'static, ()>>,
    fill: UmemFillQueue<'static, ()>,
    completion: UmemCompletionQueue<'static, ()>,
}

/// One AF_XDP socket with its own four rings.
pub struct XskPort {
    rings: ManuallyDrop<Rings>,
    descriptor: RawFd,
    received: RawQueue,
    pending: RawQueue,
    tx_budget: usize,
    in_rx: usize,
    in_tx: usize,
    /// Turns without a frame to send since the kernel was last asked to transmit.
    flushes_since_kick: u32,
    /// Frames to keep in the fill and rx rings.
    fill_frames: usize,
    /// Whether the interface has vanished.
    is_dead: bool,
    /// Tells the XDP program what was received.
    turnstile: Option<Turnstile>,
    area: FrameArea,
    /// Which chunks are in the rings, or about to be: the crate has no way to take them out again.
    held: Box<[bool]>,
}

/// Frames that were in the rings of a socket that is closed now.
#[derive(Debug)]
pub struct Stranded {
    area: FrameArea,
    held: Box<[bool]>,
}

impl Stranded {
    /// Makes the frames anew. To be called when the kernel has let go of the queue: it can be bound again, or the
    /// interface is gone. Until then a driver without copies may still write to them.
    pub fn into_frames(self) -> impl Iterator<Item = Frame> {
        let Self { area, held } = self;
        let chunks = held.into_iter().enumerate().filter(|(_, is_held)| *is_held).map(|(chunk, _)| chunk);
        chunks.map(move |chunk| {
            // SAFETY: the handle that was first went into a ring of a port, which is closed; nobody but the port, which
            // noted that, could have taken it out again.
            Frame(unsafe { area.twins[chunk].assume_init_read() })
        })
    }
}

impl XskPort {
    /// Binds a socket to one queue of an interface to which an XDP program with an `xsks_map` is attached,
    /// and enters it there. A queue that was just given up may take the kernel a moment to free; it is tried
    /// again for up to a second.
    ///
    /// # Errors
    /// When memory may not be locked, or the queue does not exist or is taken.
    pub fn open(area: &FrameArea, interface: &str, queue: u32) -> Result<Self, XskError> {
        static OPENING: Mutex<()> = Mutex::new(());
        let _guard = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + FREED_WITHIN;
        loop {
            match Self::try_open(area, interface, queue) {
                Err(XskError::Socket(error)) if is_busy(&error) && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(5));
                }
                result => return result,
            }
        }
    }

    fn try_open(area: &FrameArea, interface: &str, queue: u32) -> Result<Self, XskError> {
        let before = sockets_of_process();
        let ring = RING_DESCRIPTORS;
        let (umem, completion, fill) = Umem::new(Arc::clone(&area.area), ring, ring).map_err(umem_error)?;
        let (socket, rx, tx) =
            Socket::new(umem, interface, queue as usize, ring, ring, SocketOptions::default())
                .map_err(socket_error)?;
        let rings = ManuallyDrop::new(Rings { rx, tx, socket, fill, completion });
        let descriptor = find_new_socket(&before).ok_or(XskError::Descriptor)?;
        Ok(Self {
            rings,
            descriptor,
            received: Box::new(ArrayDeque::new()),
            pending: Box::new(ArrayDeque::new()),
            tx_budget: raise_tx_budget(descriptor),
            in_rx: 0,
            in_tx: 0,
            flushes_since_kick: 0,
            fill_frames: RING_FRAMES,
            is_dead: false,
            turnstile: None,
            area: area.clone(),
            held: vec![false; area.twins.len()].into(),
        })
    }

    /// Sets how many frames the kernel shall have to receive into, a full ring at most.
    pub fn set_fill_frames(&mut self, frames: usize) {
        self.fill_frames = frames.clamp(1, RING_FRAMES);
    }

    /// Lets the XDP program know what is received.
    pub fn set_turnstile(&mut self, turnstile: Turnstile) {
        self.turnstile = Some(turnstile);
    }

    /// Closes the socket, of which the probe is the only other handle.
    pub fn close(mut self, probe: XskProbe) -> Stranded {
        let (area, held) = (self.area.clone(), std::mem::take(&mut self.held));
        drop((self, probe));
        Stranded { area, held }
    }

    fn note_held(&mut self, frame: &RawFrame, is_held: bool) {
        self.held[self.area.chunk_of(frame)] = is_held;
    }

    /// Returns a handle for statistics.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn probe(&self) -> io::Result<XskProbe> {
        XskProbe::of(self.borrow_descriptor())
    }

    fn borrow_descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket in `rings` keeps the descriptor open until this port is dropped.
        unsafe { BorrowedFd::borrow_raw(self.descriptor) }
    }

    /// Submits pending frames and wakes the kernel; returns how many were submitted.
    ///
    /// The crate panics when the interface has vanished. The frames are in the ring by then; the port takes no more.
    fn submit(&mut self) -> usize {
        let waiting = self.pending.len();
        let sending = AssertUnwindSafe(|| self.rings.tx.try_send(&mut self.pending, self.tx_budget));
        if catch_unwind(sending).is_err() {
            tracing::error!(
                descriptor = self.descriptor,
                "the interface of a socket has vanished; its port is closed"
            );
            self.is_dead = true;
        }
        waiting - self.pending.len()
    }

    /// Asks the kernel to go on. Errors are harmless: it is asked again, or a link that is gone loses frames as a cable does.
    fn kick(&mut self) {
        self.flushes_since_kick = 0;
        // SAFETY: a send without a buffer reads no memory.
        unsafe {
            libc::sendto(self.descriptor, std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
        };
    }

    fn wake_fill(&mut self) {
        if self.rings.fill.needs_wakeup() {
            // SAFETY: a receive into no buffer writes no memory.
            unsafe {
                libc::recvfrom(
                    self.descriptor,
                    std::ptr::null_mut(),
                    0,
                    libc::MSG_DONTWAIT,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                )
            };
        }
    }
}

impl FrameIo for XskPort {
    fn receive(&mut self, batch: &mut VecDeque<Frame>, limit: usize) -> usize {
        let mut received = 0;
        // The crate looks at what came since only when it has given out all that it knew of.
        while received < limit {
            // It has no failing path here.
            match self.rings.rx.try_recv(&mut self.received, limit - received, ()).unwrap_or(0) {
                0 => break,
                more => received += more,
            }
        }
        self.in_rx -= received;
        if let Some(turnstile) = &mut self.turnstile {
            turnstile.pass(received, received < limit);
        }
        for frame in self.received.iter() {
            self.held[self.area.chunk_of(frame)] = false;
        }
        batch.extend(self.received.drain(..).map(Frame));
        received
    }

    fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        if self.is_dead || self.in_tx + self.pending.len() == RING_FRAMES {
            return Err(frame);
        }
        self.note_held(&frame.0, true);
        let displaced = self.pending.push_back(frame.0);
        debug_assert!(displaced.is_none(), "the pending queue is longer than the ring");
        Ok(())
    }

    fn flush(&mut self) {
        if self.pending.is_empty() && self.in_tx > 0 {
            self.flushes_since_kick += 1;
            if self.flushes_since_kick >= FLUSHES_BETWEEN_KICKS && self.rings.tx.needs_wakeup() {
                self.kick();
            }
        }
        while !self.pending.is_empty() && !self.is_dead {
            let sent = self.submit();
            self.in_tx += sent;
            self.flushes_since_kick = 0;
            if sent == 0 {
                self.kick();
                break;
            }
        }
    }

    fn complete(&mut self, pool: &mut FramePool) -> usize {
        // The crate has no failing path here.
        let completed = self.rings.completion.service(&mut pool.frames, RING_FRAMES).unwrap_or(0);
        self.in_tx -= completed;
        for frame in &pool.frames[pool.len() - completed..] {
            self.note_held(frame, false);
        }
        completed
    }

    fn refill(&mut self, pool: &mut FramePool) {
        let wanted = self.fill_frames.saturating_sub(self.in_rx).min(pool.len());
        if wanted == 0 {
            return;
        }
        let first = pool.len() - wanted;
        for frame in &pool.frames[first..] {
            self.note_held(frame, true);
        }
        // The crate has no failing path here.
        self.in_rx += self.rings.fill.fill(&mut pool.frames, wanted).unwrap_or(0);
        for frame in pool.frames.get(first..).unwrap_or_default() {
            self.note_held(frame, false);
        }
        self.wake_fill();
    }

    fn is_transmitting(&self) -> bool {
        !self.is_dead && (self.in_tx > 0 || !self.pending.is_empty())
    }

    fn note_backlog(&mut self) -> bool {
        self.turnstile.as_mut().is_some_and(Turnstile::note_backlog)
    }

    fn frames_owned(&self) -> usize {
        self.in_rx + self.in_tx + self.received.len() + self.pending.len()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.borrow_descriptor())
    }
}

impl Drop for XskPort {
    fn drop(&mut self) {
        // SAFETY: `rings` is not used after this.
        let Rings { rx, tx, socket, fill, completion } = unsafe { ManuallyDrop::take(&mut self.rings) };
        // The socket's destructor reads the rings inside `rx` and `tx`, which each hold a reference to the
        // socket: whichever came last would be read after it was freed. Their few bytes stay allocated.
        std::mem::forget(rx);
        std::mem::forget(tx);
        let shared = Arc::as_ptr(&socket);
        // SAFETY: `rx` held this reference and is forgotten.
        unsafe { Arc::decrement_strong_count(shared) };
        // SAFETY: `tx` held this reference and is forgotten.
        unsafe { Arc::decrement_strong_count(shared) };
        drop(socket);
        drop((fill, completion));
    }
}

impl std::fmt::Debug for XskPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XskPort")
            .field("descriptor", &self.descriptor)
            .field("in_rx", &self.in_rx)
            .field("in_tx", &self.in_tx)
            .finish_non_exhaustive()
    }
}

/// Maps memory for so many chunks of so many bytes.
///
/// # Errors
/// When there is not that much memory.
pub(super) fn map_area(chunks: usize, bytes: usize) -> io::Result<(Arc<Area>, Vec<RawFrame>)> {
    let options = MmapAreaOptions { huge_tlb: false };
    MmapArea::new(chunks, bytes, options)
        .map_err(|_| io::Error::new(io::ErrorKind::OutOfMemory, "the frame area cannot be mapped"))
}

/// Lets one system call transmit more than 32 frames, where the kernel can; returns how many it may.
fn raise_tx_budget(descriptor: RawFd) -> usize {
    let budget = TX_BUDGET;
    // SAFETY: the option value is the four bytes of `budget`.
    let result = unsafe {
        libc::setsockopt(
            descriptor,
            libc::SOL_XDP,
            XDP_MAX_TX_SKB_BUDGET,
            std::ptr::from_ref(&budget).cast(),
            option_bytes::<u32>(),
        )
    };
    if result == 0 { TX_BUDGET as usize } else { 32 }
}

fn umem_error(error: UmemNewError) -> XskError {
    match error {
        UmemNewError::Create(source) => XskError::Umem(positive(source)),
        UmemNewError::RingNotPowerOfTwo => unreachable!("RING_FRAMES is a power of two"),
    }
}

fn socket_error(error: SocketNewError) -> XskError {
    match error {
        SocketNewError::Create(source) => match positive(source) {
            source if source.kind() == io::ErrorKind::PermissionDenied => XskError::Permission(source),
            source => XskError::Socket(source),
        },
        SocketNewError::RingNotPowerOfTwo => unreachable!("RING_FRAMES is a power of two"),
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}

/// The crate passes on negative error numbers as they are.
fn positive(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) if number < 0 => io::Error::from_raw_os_error(-number),
        Some(_) | None => error,
    }
}

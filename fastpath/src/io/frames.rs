//! Frames, and the memory area that they and all sockets share.

#![allow(unsafe_code, reason = "frames are memory shared with the kernel")]

use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;

use super::memory::Stretch;
use super::xsk::{Area, Buf, RawFrame, map_area};

/// Bytes of one chunk of the area. A frame may use all but the first 256.
const CHUNK_BYTES: usize = 2048;

/// A chunk of the area with a packet in it. Whoever holds it owns the chunk.
#[derive(Debug)]
pub struct Frame(pub(super) RawFrame);

impl Frame {
    /// Returns the packet, from its Ethernet header on.
    pub fn bytes(&self) -> &[u8] {
        &self.0.get_data()[..usize::from(self.0.get_len())]
    }

    /// Returns the packet for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = usize::from(self.0.get_len());
        &mut self.0.get_data_mut()[..len]
    }

    /// Makes the packet `len` bytes long; bytes that this adds keep what was there.
    ///
    /// # Panics
    /// When a frame cannot be that long (see [`Frame::CAPACITY`]).
    pub fn set_len(&mut self, len: usize) {
        self.0.set_len(u16::try_from(len).expect("a frame is shorter than 64 KiB"));
    }

    /// Makes the packet at most `len` bytes long, and returns it for writing.
    #[inline]
    pub fn shorten(&mut self, len: usize) -> &mut [u8] {
        if len < usize::from(self.0.get_len()) {
            self.set_len(len);
        }
        self.bytes_mut()
    }

    /// Longest packet that fits, in bytes.
    pub const CAPACITY: usize = CHUNK_BYTES - 256;
}

/// Frames that are free.
#[derive(Debug)]
pub struct FramePool {
    pub(super) frames: Vec<RawFrame>,
}

impl FramePool {
    /// Makes an empty pool with room for `capacity` frames.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { frames: Vec::with_capacity(capacity) }
    }

    /// Takes a frame, of length 0.
    pub fn take(&mut self) -> Option<Frame> {
        self.frames.pop().map(|mut frame| {
            frame.set_len(0);
            Frame(frame)
        })
    }

    /// Puts a frame back.
    pub fn put(&mut self, frame: Frame) {
        debug_assert!(self.frames.len() < self.frames.capacity(), "a pool has room for every frame");
        self.frames.push(frame.0);
    }

    /// Moves up to `count` frames to the end of `frames`.
    pub fn take_many(&mut self, count: usize, frames: &mut Vec<Frame>) {
        let rest = self.frames.len().saturating_sub(count);
        frames.extend(self.frames.drain(rest..).map(Frame));
    }

    /// Puts frames back.
    pub fn put_many(&mut self, frames: impl Iterator<Item = Frame>) {
        self.frames.extend(frames.map(|frame| frame.0));
    }

    /// Returns the number of free frames.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Tells whether no frame is free.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

/// The one memory area of the data plane, which every socket's UMEM registers.
///
/// It is never unmapped, so that a [`Frame`] may live as long as it likes.
#[derive(Clone, Debug)]
pub struct FrameArea {
    pub(super) area: Arc<Area>,
    /// A second handle of each frame, asleep until the first is lost with a socket (see [`Stranded`](super::xsk::Stranded)).
    pub(super) twins: Arc<[MaybeUninit<RawFrame>]>,
}

impl FrameArea {
    /// Maps memory for `frames` frames and returns them in a pool.
    ///
    /// # Errors
    /// When there is not that much memory.
    pub fn allocate(frames: usize) -> io::Result<(Self, FramePool)> {
        let (area, frames) = map_area(frames, CHUNK_BYTES)?;
        std::mem::forget(Arc::clone(&area));
        let twin = |frame: &RawFrame| {
            // SAFETY: the copy is no frame until somebody says so, which `Stranded` does when there is no other.
            unsafe { std::ptr::from_ref(frame).cast::<MaybeUninit<RawFrame>>().read() }
        };
        Ok((Self { area, twins: frames.iter().map(twin).collect() }, FramePool { frames }))
    }

    /// Takes the memory now, in large pages: the first socket pins all of it.
    pub(crate) fn populate(&self) {
        let start = self.area.get_ptr().cast::<u8>().cast_const();
        Stretch::of(start..start.wrapping_add(self.twins.len() * CHUNK_BYTES)).take();
    }

    /// Returns the number of the chunk that a frame is.
    pub(super) fn chunk_of(&self, frame: &RawFrame) -> usize {
        (frame.get_data().as_ptr().addr() - self.area.get_ptr().addr()) / CHUNK_BYTES
    }
}

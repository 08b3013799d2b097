//! Where frames come from and go to.
//!
//! - [`xsk`]: AF_XDP sockets; the only file that names `afxdp`
//! - `frames`: frames, and the memory area of the data plane
//! - [`memory`]: large pages for large tables
//! - [`probe`]: what can be asked of such a socket beside its rings
//! - [`ethtool`]: how many queues an interface has
//! - [`turnstile`]: what a worker and the XDP program tell each other about an rx ring
//! - [`sim`]: simulated wires with seeded faults, for tests

pub mod ethtool;
mod frames;
pub mod memory;
pub mod probe;
pub mod sim;
pub mod turnstile;
pub mod xsk;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

pub use frames::{Frame, FrameArea, FramePool};

/// One queue of one interface: the four rings of AF_XDP, or a stand-in for them.
///
/// A frame is owned by exactly one of: the pool, the port (fill, rx, tx and completion rings), or the caller.
pub trait FrameIo {
    /// Moves received frames to the end of `batch`, `limit` at most; returns how many.
    fn receive(&mut self, batch: &mut VecDeque<Frame>, limit: usize) -> usize;

    /// Takes a frame for transmission, which begins with the next [`FrameIo::flush`].
    ///
    /// # Errors
    /// Gives the frame back when the tx ring is full.
    fn send(&mut self, frame: Frame) -> Result<(), Frame>;

    /// Hands the frames taken since the last call to the kernel and wakes it if it needs that.
    fn flush(&mut self);

    /// Moves frames whose transmission ended to the pool; returns how many.
    fn complete(&mut self, pool: &mut FramePool) -> usize;

    /// Gives the kernel frames of the pool to receive into.
    fn refill(&mut self, pool: &mut FramePool);

    /// Tells whether frames are still being transmitted.
    fn is_transmitting(&self) -> bool;

    /// Notes that [`FrameIo::receive`] has found all that was wanted, so that more may be there; tells whether tenants compete
    /// for what is received here on the caller's own core.
    fn note_backlog(&mut self) -> bool {
        false
    }

    /// Returns how many frames the port owns.
    fn frames_owned(&self) -> usize;

    /// Returns a descriptor that is readable when frames were received; none when the caller must poll.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}

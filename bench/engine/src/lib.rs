//! Drives the packet pipeline on wires in memory: no kernel, one thread, the same frames for whoever takes part.
//!
//! ```text
//!   arm: write 64 frames (not timed) ──▶ turn (timed): receive → pipeline → send → complete → refill
//! ```
//!
//! - [`traffic`]: which flows there are, in which order they come, and their frames
//! - [`mod@line`]: a port whose other end this crate holds
//! - [`rig`]: workers on such ports
//! - [`floor`]: the same loop with a session known by position: what no lookup can be faster than
//! - [`rival`]: the same loop with the map that one would take first
//! - [`stages`]: the pipeline without a worker, a stage after the other
//! - [`course`]: what is measured, one part after the other
#![forbid(unsafe_code)]

pub mod course;
pub mod floor;
pub mod line;
pub mod rig;
pub mod rival;
pub mod stages;
pub mod traffic;

/// Frames that come at once: what a worker takes from a ring in one turn.
pub const BATCH_FRAMES: usize = 64;

//! Frames in, translated frames out.
pub mod dataplane;
pub mod snapshot;
pub mod verdict;

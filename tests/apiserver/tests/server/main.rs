//! The server, as the client of the control side sees it.
#![expect(clippy::unwrap_used, reason = "a test fails where something is missing")]

mod custom;
mod faults;
mod lab;
mod lists;
mod process;
mod scale;
mod watches;
mod writes;

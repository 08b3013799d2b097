//! Frames in, translated frames out: the data plane of the gateway.
//!
//! ```text
//!   rx → parse → classify → track → rewrite → tx        one worker, one turn
//! ```
//!
//! The packet path, in the order in which a frame sees it:
//! - [`io`]: where frames come from and go to: AF_XDP sockets, or simulated wires
//! - [`worker`]: one worker, its ports and the turn that it repeats
//! - [`express`]: the same for the packets that are nearly all, some at a time
//! - [`pipeline`]: the order of the stages, on one screen
//! - [`mod@parse`]: bytes to offsets and addresses; every length is checked here
//! - [`mod@classify`]: which tenant, which direction, or why not
//! - [`fragments`]: virtual reassembly: finds out the ports of fragments
//! - [`track`]: the session of a packet and its prepared rewrite
//! - [`stray`]: packets that belong to no session and may not open one
//! - [`rewrite`]: writes a rewrite into a packet
//! - [`mss`]: lowers the greatest segment that the ends of a connection announce
//! - [`split`]: cuts packets that are too large for the outgoing link
//! - [`reject`]: answers to packets that are refused
//! - [`stage`]: the stages by name, and where each reason drops a frame
//! - [`verdict`]: what becomes of a frame, and every reason to drop one
//!
//! Around it:
//! - [`snapshot`]: the immutable configuration that workers read
//! - `routes`: where packets go next
//! - `addresses`: sets of addresses that are asked about for every packet
//! - `share`: how many of the places that tenants share one of them may take
//! - [`waiting`]: frames that wait for something, their next hop for one
//! - [`announce`]: gratuitous ARP
//! - [`mailbox`]: what reaches a worker from outside
//! - [`tap`]: shows frames, and what becomes of them, to whoever looks
//! - [`counters`]: what a worker counts
//! - [`pulse`]: signs of life of the workers
//! - [`timing`]: how long their turns take
//! - [`runner`]: the thread that a worker runs on: clock, sleep, panics
//! - `pause`: leaves the thread's core to whoever receives for it, where tenants compete for that
//! - [`placement`]: on which core that thread runs, before whom, and without privileges
//! - [`steer`]: the XDP program: loads, attaches, pins it and keeps its maps in step
//! - [`groundwork`]: takes over the programs of the process before, or loads them
//! - [`survey`]: lists and ends sessions and finds the ports that are taken, a piece of the table each turn
//! - [`rehearsal`]: decides about a frame and leaves nothing behind
//! - [`journal`]: what workers tell a log of translations
//! - [`succession`]: sessions outlive the process: taken down in memory that stays
//! - `layout`: which worker serves which queues on which core, and who sends for whom
//! - `launch`: binds the sockets and starts the threads
//! - `renewal`: gives up the sockets of an interface that went away, and opens those of one that came
//! - [`report`]: what the data plane tells about itself
//! - [`dataplane`]: all of it together, as the control side holds it
#![deny(unsafe_code)]

mod addresses;
pub mod announce;
pub mod classify;
pub mod counters;
pub mod dataplane;
pub mod express;
pub mod fragments;
pub mod groundwork;
pub mod io;
pub mod journal;
mod launch;
mod layout;
pub mod mailbox;
pub mod mss;
pub mod parse;
mod pause;
pub mod pipeline;
pub mod placement;
pub mod pulse;
pub mod rehearsal;
pub mod reject;
mod renewal;
pub mod report;
pub mod rewrite;
mod routes;
pub mod runner;
#[cfg(test)]
mod scenarios;
mod share;
pub mod snapshot;
pub mod split;
pub mod stage;
pub mod steer;
pub mod stray;
pub mod succession;
pub mod survey;
pub mod tap;
#[cfg(any(test, feature = "fuzzing"))]
#[expect(clippy::unwrap_used, reason = "a panic is how a test or a fuzz target fails")]
#[cfg_attr(not(test), expect(dead_code, reason = "fuzz targets need less than the scenarios"))]
pub mod testing;
pub mod timing;
pub mod track;
pub mod verdict;
pub mod waiting;
pub mod worker;

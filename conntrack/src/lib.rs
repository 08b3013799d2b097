//! Network address and port translation (NAPT, RFC 3022) as a pure state machine.
//!
//! ```text
//!            inside tuple                                    outside tuple
//!   10.132.0.5:40000 → 192.168.55.13:80     ⇄     192.168.55.113:50123 → 192.168.55.13:80
//!            └──── Key ────┐                                  ┌──── Key ────┘
//!                        Index ──▶  Session slab entry  ◀── Index
//!                                        │
//!                                   expiry list of its timeout class
//! ```
//!
//! No I/O, no clock, no threads: time ([`Tick`]), seeds and policy are arguments, so that every rule is
//! tested with a fake clock.
//!
//! - [`flow`]: five-tuples, directions and the 16-byte lookup key
//! - [`session`]: one session and the rewrite that it prepares for each direction
//! - [`table`]: all sessions of one worker: find, admit, touch, expire
//! - [`index`]: open-addressing index from keys to slab entries
//! - [`expiry`]: intrusive lists, one per timeout class, oldest first
//! - [`ports`]: which outside port a new session gets
//! - [`tcp`]: the TCP state machine of RFC 7857 section 2
//! - [`time`]: ticks and the timeouts of RFC 4787, 5382 and 5508
//! - [`checksum`]: incremental checksum arithmetic of RFC 1624
#![forbid(unsafe_code)]

pub mod flow;
pub mod time;

pub use flow::{Direction, FiveTuple, Key, Protocol, TenantId};
pub use time::{Tick, Timeouts};

/// Number of a configuration snapshot; a newer snapshot has a greater number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

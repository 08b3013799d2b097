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
//! One table for each worker:
//! - [`table`]: the sessions: find, touch
//! - [`ahead`]: looks keys up side by side
//! - [`admit`]: makes sessions: pairing, quota, mapping, port
//! - `ending`: ends them: single ones, and those whose time is over
//! - `mapping`: endpoint-independent mappings
//! - `choose`: the outside port of a new session
//! - [`lending`]: ports that workers lend to each other
//! - [`replication`]: what a session is outside its table
//! - [`mod@restore`]: takes sessions up from there
//! - [`usage`]: which outside ports are taken, and towards where
//! - [`journal`]: what it tells a log of translations
//! - `share`: how many entries one tenant may hold
//! - `slab`, `anchor`: the table's entries: sessions, and what several of them have in common
//! - [`index`]: open-addressing index from keys to entries
//! - [`expiry`]: intrusive lists, one per timeout class, oldest first
//! - [`crowd`], `destination`: which ports are taken towards the few destinations that nearly all sessions go to
//!
//! What the workers share:
//! - [`blocks`]: who owns which block of outside ports
//! - [`shared`]: these for all egress addresses, and how much of its quota each tenant uses
//! - [`tenants`]: one value for each tenant that there ever was
//!
//! Words and rules:
//! - [`flow`]: five-tuples, directions and the 16-byte lookup key
//! - [`session`]: one session and the rewrite that it prepares for each direction
//! - [`policy`]: what a tenant's sessions may do
//! - [`pairing`]: which egress address, and which worker, an inside address belongs to
//! - [`ports`]: which outside ports may stand for an inside port
//! - [`tcp`]: the TCP state machine of RFC 7857 section 2
//! - [`time`]: ticks and the timeouts of RFC 4787, 5382 and 5508
//! - [`checksum`]: incremental checksum arithmetic of RFC 1624
#![forbid(unsafe_code)]

pub mod admit;
pub mod ahead;
mod anchor;
pub mod blocks;
pub mod checksum;
mod choose;
pub mod crowd;
mod destination;
mod ending;
pub mod expiry;
pub mod flow;
pub mod index;
pub mod journal;
pub mod lending;
mod mapping;
pub mod pairing;
pub mod policy;
pub mod ports;
pub mod replication;
pub mod restore;
pub mod session;
mod share;
pub mod shared;
mod slab;
pub mod table;
pub mod tcp;
pub mod tenants;
pub mod time;
pub mod usage;

pub use admit::Admission;
pub use ahead::{Candidate, KeyHash};
pub use checksum::ChecksumDelta;
pub use flow::{Direction, FiveTuple, Key, Portless, Protocol, TenantId, Wire};
pub use journal::{Cause, Event, Journal, Translation};
pub use lending::{Loan, LoanRequest, Party, Return};
pub use pairing::{owner_of_inside, pair_egress};
pub use policy::{Filtering, Mapping, Policy, Quota};
pub use replication::{Record, Replica};
pub use restore::{NotRestored, Resumption, restore};
pub use session::{Rewrite, Session, SessionId};
pub use shared::{Shared, SharedBook};
pub use table::{Conntrack, Found, Refusal, Revision, WorkerSlot};
pub use tcp::{TcpFlags, TcpSegment, TcpState};
pub use tenants::ByTenant;
pub use time::{PortTimeout, Tick, TimeoutClass, Timeouts};
pub use usage::{PortUse, port_capacity};

/// Number of a configuration snapshot; a newer snapshot has a greater number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

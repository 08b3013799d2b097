//! The tables of one worker and of several.
//!
//! - `gateway`: several tables that share egress addresses
//! - `journal`: what a log of translations is told
//! - `loans`: ports that workers lend to each other
//! - `mappings`: endpoint-independent mappings among older sessions
//! - `model`: behave like a naive model, whatever the order of events
//! - `oracle`: the naive model
//! - `pairing`: which egress address a pod gets
//! - `ports`: to the last outside port, at any number of workers
//! - `restore`: sessions go on in the tables of another process
//! - `share`: room for whoever comes later, whatever others take
//! - `table`: one table's memory, room and bounds
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod gateway;
mod journal;
mod loans;
mod mappings;
mod model;
mod oracle;
mod pairing;
mod ports;
mod restore;
mod share;
mod table;

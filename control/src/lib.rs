//! The Spillway daemon and command line: who the tenants are, what the kernel knows, and what the fast
//! path is told.
//!
//! ```text
//!  config file ─┐                       ┌─ plan ──▶ netlink (links, addresses, routes, neighbours)
//!  state file ──┼─▶ registry ─▶ daemon ─┤                      │
//!  socket ──────┘                ▲      └─ compile ─▶ DataPlane::publish
//!                                └────────── facts ◀───────────┘
//! ```
//!
//! - [`tenant`]: a tenant, as people and the API speak of it
//! - [`policy`]: what its sessions may do
//! - [`refusal`]: why input from people was refused
//! - [`config`]: the config file
//! - [`registry`]: all tenants, from every source, without conflicts
//! - [`state`]: files that survive the process
//! - [`netlink`]: the kernel's links, addresses, routes and neighbours, read and changed
//! - [`plan`]: what differs between what the tenants need and what the kernel has
//! - [`compile`]: registry, facts and config into a snapshot for the fast path
//! - [`sysctl`]: ARP isolation, set and restored
//! - [`metrics`]: what the gateway counts, as Prometheus reads it
//! - [`vitals`]: whether the gateway lives and is ready
//! - [`daemon`]: the process that keeps all of it in step
//! - [`kubernetes`]: what the cluster asks for, and what it is told
//! - [`nat_log`]: who was behind an address, and when
//! - [`doctor`]: what is wrong with a gateway, and how to put it right
//! - [`explanation`]: what became of a frame, stage by stage
//! - [`query`]: what people ask, as flags and as queries
//! - [`recording`]: a capture file
//! - [`demo`]: two tenants, two nodes and a server in network namespaces
//! - [`api`]: HTTP and JSON over the control socket
//! - [`client`]: the command line's end of the control socket
//! - [`cli`]: commands and their flags
//! - [`output`]: tables and colours
//! - [`logging`]: log lines on stderr
//! - [`reference`](mod@reference): references for users, made from the code
#![forbid(unsafe_code)]

pub mod api;
pub mod cli;
pub mod client;
pub mod compile;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod explanation;
pub mod kubernetes;
pub mod logging;
pub mod metrics;
pub mod nat_log;
pub mod netlink;
pub mod output;
pub mod plan;
pub mod policy;
pub mod query;
pub mod recording;
pub mod reference;
pub mod refusal;
pub mod registry;
pub mod state;
pub mod sysctl;
pub mod tenant;
pub mod vitals;

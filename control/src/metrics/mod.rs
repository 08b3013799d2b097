//! Prometheus metrics: what the gateway counts, in the text format that Prometheus and all its kin read.
//!
//! ```text
//!  control loop ── Sample ──▶ exposition ──▶ GET /metrics (TCP), GET /v1/metrics (socket), `spillway metrics`
//!      workers ── survey ──▶ ports ──┘ ▲
//!  table: name, type, unit, labels, help ──▶ docs
//! ```
//!
//! The control loop only copies counters, and the text is made on a thread of its own; nobody waits for a scrape. Workers are
//! asked every ten seconds which ports are taken, and answer a little each turn.
//!
//! A gateway has about 170 series with two workers, 16 more for each tenant with one egress address, one for each reason
//! for which a tenant's packets were dropped, and 10 destinations. No label has a pod or a client in it.
//!
//! - [`table`]: every metric that there is, as data
//! - [`sample`]: what the control loop tells at one moment
//! - [`ports`]: how many outside ports are taken, and how long the rest will last
//! - `family`: samples of one metric
//! - `exposition`: all of them as text
//! - `server`: who asks over HTTP

mod exposition;
mod family;
pub mod ports;
pub mod sample;
mod server;
pub mod table;

pub use exposition::render;
pub use sample::Sample;
pub use server::{Metering, expose, listen, router};
pub use table::reference;

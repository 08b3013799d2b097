//! HTTP and JSON over the control socket.
//!
//! [`ENDPOINTS`] lists the requests, [`types`] what they take and answer; `docs/api.md` is made from both.
//!
//! Over plain HTTP, if the config file has an address for it: `/healthz` and `/readyz`, as `/v1/health` and `/v1/ready`. At
//! another address, which it has unless told otherwise: `/metrics`, as `/v1/metrics`.
//!
//! A refusal is a 4xx or 5xx with [`types::ErrorBody`]: `{"error":{"field":"gatewayIP","message":"…"}}`.

mod caller;
mod desk;
mod endpoints;
mod error;
mod handlers;
mod log;
mod server;
mod sessions;
pub mod types;
mod watch;
mod who;

pub use caller::Caller;
pub use desk::Desk;
pub use endpoints::{ENDPOINTS, Endpoint};
pub use handlers::{MAX_BODY_BYTES, health_router, router};
pub use log::log_router;
pub use server::{Bounds, Listener, serve};
pub use sessions::MAX_SESSIONS;
pub use who::WhoDesk;

use tokio::sync::oneshot;

use crate::metrics::Sample;
use crate::refusal::Refusal;
use crate::tenant::Tenant;

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// What the API asks of the daemon.
#[derive(Debug)]
pub enum Request {
    /// Everything that is counted.
    Status(Reply<types::Status>),
    /// Everything that metrics are made of.
    Metrics(Reply<Sample>),
    /// All tenants.
    Tenants(Reply<Vec<types::TenantView>>),
    /// One tenant, by name.
    Tenant(String, Reply<types::TenantView>),
    /// Add or change a tenant.
    PutTenant(Tenant, Caller, Reply<types::TenantView>),
    /// Remove a tenant, by name.
    RemoveTenant(String, Caller, Reply<()>),
    /// Routes that the fast path uses.
    Routes(Reply<Vec<types::RouteView>>),
    /// What tells of the workers without the control loop.
    Desk(Reply<Desk>),
    /// Who looks for whoever is or was behind an egress address and port.
    Who(Reply<WhoDesk>),
}

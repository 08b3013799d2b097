//! HTTP and JSON over the control socket.
//!
//! | request                                | answer                                                           |
//! |----------------------------------------|------------------------------------------------------------------|
//! | `GET /v1/status`                       | [`types::Status`]                                                |
//! | `GET /v1/health`, `GET /v1/ready`      | [`Fitness`], 503 unless it is well                               |
//! | `GET /v1/metrics`                      | every metric, as Prometheus reads it ([`crate::metrics`])        |
//! | `GET /v1/tenants`                      | list of [`types::TenantView`]                                    |
//! | `GET /v1/tenants/NAME`                 | [`types::TenantView`]                                            |
//! | `PUT /v1/tenants/NAME`                 | takes [`Tenant`], returns [`types::TenantView`]; idempotent      |
//! | `DELETE /v1/tenants/NAME`              | 204                                                              |
//! | `GET /v1/routes`                       | list of [`types::RouteView`]                                     |
//! | `GET /v1/sessions?…`                   | [`types::SessionPage`]: those that a [`Selection`] means; `limit` (100), `after` |
//! | `GET /v1/explain?…`                    | [`Explanation`] of an [`ImaginedPacket`]                         |
//! | `GET /v1/capture?…`                    | a stream of pcapng: frames that a [`Look`] means                 |
//! | `GET /v1/trace?…`                      | a stream of [`Explanation`]s, one a line; last `{"missed":N}`    |
//! | `DELETE /v1/sessions?…`                | ends them: [`types::EndedSessions`]; all only by `all=true`      |
//! | `GET /v1/who?outside=ADDRESS:PORT`     | [`Answer`]; `&protocol=`, `&remote=`, `&from=TIME`, `&until=TIME` |
//!
//! Over plain HTTP, if the config file has an address for it: `/healthz` and `/readyz`, as `/v1/health` and `/v1/ready`. At
//! another address, which it has unless told otherwise: `/metrics`, as `/v1/metrics`.
//!
//! [`Answer`]: crate::nat_log::who::Answer
//! [`Fitness`]: crate::vitals::Fitness
//! [`Selection`]: crate::selection::Selection
//! [`Explanation`]: crate::explanation::Explanation
//! [`ImaginedPacket`]: crate::imagined::ImaginedPacket
//! [`Look`]: crate::look::Look
//!
//! A refusal is a 4xx or 5xx with [`types::ErrorBody`]: `{"error":{"field":"gatewayIP","message":"…"}}`.

mod caller;
mod error;
mod handlers;
mod server;
mod sessions;
pub mod types;
mod watch;
mod who;

pub use caller::Caller;
pub use handlers::{MAX_BODY_BYTES, health_router, router};
pub use server::{Bounds, Listener, serve};
pub use sessions::{Desk, MAX_SESSIONS};
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

//! HTTP and JSON over the control socket.
//!
//! | request                                | answer                                                           |
//! |----------------------------------------|------------------------------------------------------------------|
//! | `GET /v1/status`                       | [`types::Status`]                                                |
//! | `GET /v1/tenants`                      | list of [`types::TenantView`]                                    |
//! | `GET /v1/tenants/NAME`                 | [`types::TenantView`]                                            |
//! | `PUT /v1/tenants/NAME`                 | takes [`Tenant`], returns [`types::TenantView`]; idempotent      |
//! | `DELETE /v1/tenants/NAME`              | 204                                                              |
//! | `GET /v1/routes`                       | list of [`types::RouteView`]                                     |
//! | `GET /v1/sessions?tenant=NAME&limit=N` | list of [`types::SessionView`]; at most 100 unless told          |
//!
//! A refusal is a 4xx or 5xx with [`types::ErrorBody`]: `{"error":{"field":"gatewayIP","message":"…"}}`.

mod error;
mod handlers;
mod server;
pub mod types;

pub use handlers::{MAX_BODY_BYTES, router};
pub use server::{Bounds, serve};

use tokio::sync::oneshot;

use crate::refusal::Refusal;
use crate::tenant::Tenant;

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// What the API asks of the daemon.
#[derive(Debug)]
pub enum Request {
    /// Everything that is counted.
    Status(Reply<types::Status>),
    /// All tenants.
    Tenants(Reply<Vec<types::TenantView>>),
    /// One tenant, by name.
    Tenant(String, Reply<types::TenantView>),
    /// Add or change a tenant.
    PutTenant(Tenant, Reply<types::TenantView>),
    /// Remove a tenant, by name.
    RemoveTenant(String, Reply<()>),
    /// Routes that the fast path uses.
    Routes(Reply<Vec<types::RouteView>>),
    /// Sessions of one tenant or of all, at most so many.
    Sessions(Option<String>, usize, Reply<Vec<types::SessionView>>),
}

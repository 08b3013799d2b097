//! Paths of the API, and what each asks of the daemon.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, Uri};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use super::error::ApiError;
use super::types::{RouteView, SessionView, Status, TenantView};
use super::{Reply, Request};
use crate::refusal::Refusal;
use crate::tenant::Tenant;

/// Largest body that is read.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

const DEFAULT_SESSIONS: usize = 100;
const MAX_SESSIONS: usize = 10_000;

type Daemon = State<mpsc::Sender<Request>>;
type Answer<T> = Result<Json<T>, ApiError>;

/// Returns the API, asking the daemon through `daemon`.
pub fn router(daemon: mpsc::Sender<Request>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/tenants", get(tenants))
        .route("/v1/tenants/{name}", get(tenant).put(put_tenant).delete(remove_tenant))
        .route("/v1/routes", get(routes))
        .route("/v1/sessions", get(sessions))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(daemon)
}

async fn status(daemon: Daemon) -> Answer<Status> {
    ask(&daemon, Request::Status).await.map(Json)
}

async fn tenants(daemon: Daemon) -> Answer<Vec<TenantView>> {
    ask(&daemon, Request::Tenants).await.map(Json)
}

async fn tenant(daemon: Daemon, Path(name): Path<String>) -> Answer<TenantView> {
    ask(&daemon, |reply| Request::Tenant(name, reply)).await.map(Json)
}

async fn put_tenant(
    daemon: Daemon,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<TenantView> {
    let body = body.map_err(|rejection| {
        let message = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => format!("the body is over {MAX_BODY_BYTES} bytes"),
            _ => rejection.body_text(),
        };
        ApiError::new(rejection.status(), message)
    })?;
    let tenant = read_tenant(name, &body)?;
    ask(&daemon, |reply| Request::PutTenant(tenant, reply)).await.map(Json)
}

async fn remove_tenant(daemon: Daemon, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    ask(&daemon, |reply| Request::RemoveTenant(name, reply)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn routes(daemon: Daemon) -> Answer<Vec<RouteView>> {
    ask(&daemon, Request::Routes).await.map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionQuery {
    tenant: Option<String>,
    limit: Option<usize>,
}

async fn sessions(
    daemon: Daemon,
    query: Result<Query<SessionQuery>, QueryRejection>,
) -> Answer<Vec<SessionView>> {
    let Query(query) = query.map_err(|rejection| ApiError::new(rejection.status(), rejection.body_text()))?;
    let limit = query.limit.unwrap_or(DEFAULT_SESSIONS);
    if !(1..=MAX_SESSIONS).contains(&limit) {
        let message = format!("{limit} is not between 1 and {MAX_SESSIONS}");
        return Err(Refusal::invalid("limit", message).into());
    }
    ask(&daemon, |reply| Request::Sessions(query.tenant, limit, reply)).await.map(Json)
}

async fn unknown_path(uri: Uri) -> ApiError {
    let known = "/v1/status, /v1/tenants, /v1/tenants/NAME, /v1/routes and /v1/sessions";
    ApiError::new(StatusCode::NOT_FOUND, format!("{} does not exist; there are {known}", uri.path()))
}

async fn unknown_method() -> ApiError {
    let message = "this path does not take this method; all take GET, /v1/tenants/NAME also PUT and DELETE";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

async fn ask<T>(
    daemon: &mpsc::Sender<Request>,
    request: impl FnOnce(Reply<T>) -> Request,
) -> Result<T, ApiError> {
    let stopping = || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping");
    let (reply, answer) = oneshot::channel();
    daemon.send(request(reply)).await.map_err(|_| stopping())?;
    Ok(answer.await.map_err(|_| stopping())??)
}

/// Reads a tenant from JSON; its name may be left out, since the path has it.
fn read_tenant(name: String, body: &[u8]) -> Result<Tenant, Refusal> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let mut tenant: Tenant = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let at = error.path().to_string();
        let field = if error.inner().is_data() && at != "." { at } else { "body".to_owned() };
        Refusal::Malformed { field, message: error.inner().to_string() }
    })?;
    let tail =
        |error: serde_json::Error| Refusal::Malformed { field: "body".into(), message: error.to_string() };
    reader.end().map_err(tail)?;
    if tenant.name.is_empty() {
        tenant.name = name;
    } else if tenant.name != name {
        let message = format!("{:?} differs from {name:?} in the path; leave it out", tenant.name);
        return Err(Refusal::invalid("name", message));
    }
    Ok(tenant)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

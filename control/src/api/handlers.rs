//! Paths of the API, and what each asks of the daemon.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::caller::Caller;
use super::endpoints::known_paths;
use super::error::ApiError;
use super::sessions::{end_sessions, sessions};
use super::types::{RouteView, Status, TenantView};
use super::watch::{capture, explain, trace};
use super::who::who;
use super::{Reply, Request};
use crate::metrics::{self, Metering};
use crate::refusal::Refusal;
use crate::tenant::Tenant;
use crate::vitals::{Fitness, Vitals};

/// Largest body that is read.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

pub(super) type Daemon = State<mpsc::Sender<Request>>;
type Signs = State<Arc<Vitals>>;
pub(super) type Answer<T> = Result<Json<T>, ApiError>;

/// Returns the API, asking the daemon through `daemon`, and `vitals` for what does not wait for it.
pub fn router(daemon: mpsc::Sender<Request>, vitals: Arc<Vitals>) -> Router {
    let fitness = Router::new()
        .route("/v1/health", get(health))
        .route("/v1/ready", get(readiness))
        .method_not_allowed_fallback(unknown_method)
        .with_state(Arc::clone(&vitals));
    let metering = Metering { daemon: daemon.clone(), vitals };
    let metrics = Router::new()
        .route("/v1/metrics", get(metrics::expose))
        .method_not_allowed_fallback(unknown_method)
        .with_state(metering);
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/tenants", get(tenants))
        .route("/v1/tenants/{name}", get(tenant).put(put_tenant).delete(remove_tenant))
        .route("/v1/routes", get(routes))
        .route("/v1/sessions", get(sessions).delete(end_sessions))
        .route("/v1/explain", get(explain))
        .route("/v1/capture", get(capture))
        .route("/v1/trace", get(trace))
        .route("/v1/who", get(who))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(daemon)
        .merge(fitness)
        .merge(metrics)
}

/// Returns what is told over plain HTTP: health and readiness, nothing else.
pub fn health_router(vitals: Arc<Vitals>) -> Router {
    Router::new().route("/healthz", get(health)).route("/readyz", get(readiness)).with_state(vitals)
}

async fn health(vitals: Signs) -> Response {
    by_fitness(vitals.health())
}

async fn readiness(vitals: Signs) -> Response {
    by_fitness(vitals.readiness())
}

fn by_fitness(fitness: Fitness) -> Response {
    let status = if fitness.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(fitness)).into_response()
}

async fn status(daemon: Daemon) -> Answer<Status> {
    ask(&daemon, Request::Status).await.map(Json)
}

async fn tenants(daemon: Daemon) -> Answer<Vec<TenantView>> {
    ask(&daemon, Request::Tenants).await.map(Json)
}

async fn tenant(daemon: Daemon, TenantName(name): TenantName) -> Answer<TenantView> {
    ask(&daemon, |reply| Request::Tenant(name, reply)).await.map(Json)
}

async fn put_tenant(
    daemon: Daemon,
    TenantName(name): TenantName,
    Changer(caller): Changer,
    body: Result<Bytes, BytesRejection>,
) -> Answer<TenantView> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::body_too_large(),
        status => ApiError::of_field(status, "body", rejection.body_text()),
    })?;
    let tenant = read_tenant(name, &body)?;
    ask(&daemon, |reply| Request::PutTenant(tenant, caller, reply)).await.map(Json)
}

async fn remove_tenant(
    daemon: Daemon,
    TenantName(name): TenantName,
    Changer(caller): Changer,
) -> Result<StatusCode, ApiError> {
    ask(&daemon, |reply| Request::RemoveTenant(name, caller, reply)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn routes(daemon: Daemon) -> Answer<Vec<RouteView>> {
    ask(&daemon, Request::Routes).await.map(Json)
}

/// The name of a tenant in the path.
struct TenantName(String);

impl<S: Send + Sync> FromRequestParts<S> for TenantName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(name) =
            Path::from_request_parts(parts, state).await.map_err(|rejection: PathRejection| {
                ApiError::of_field(rejection.status(), "name", rejection.body_text())
            })?;
        Ok(Self(name))
    }
}

/// Whoever asks for a change and may have it.
pub(super) struct Changer(pub(super) Caller);

impl<S: Send + Sync> FromRequestParts<S> for Changer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Caller>().copied().unwrap_or_default();
        if caller.may_change {
            return Ok(Self(caller));
        }
        let Caller { uid, pid, .. } = caller;
        warn!(uid, pid, method = %parts.method, path = parts.uri.path(), "refused a change to who may only look");
        let message = format!(
            "user {uid} may look but change nothing; ask as root, as the daemon's user, or with the socket's group as \
             primary group, or let nobody else in (chmod o-w)"
        );
        Err(ApiError::new(StatusCode::FORBIDDEN, message))
    }
}

async fn unknown_path(uri: Uri) -> ApiError {
    let message = format!("{} does not exist; there are {}", uri.path(), known_paths());
    ApiError::new(StatusCode::NOT_FOUND, message)
}

pub(super) async fn unknown_method() -> ApiError {
    let message = "this path does not take this method; all take GET, /v1/tenants/NAME and /v1/log also PUT and DELETE, \
                   /v1/sessions DELETE";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

pub(super) async fn ask<T>(
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

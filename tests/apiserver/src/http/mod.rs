//! The API over HTTP.

pub(crate) mod answer;
mod discovery;
mod list;
mod listener;
mod objects;
mod request;
mod review;
mod switches;
mod tls;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::cluster::Cluster;
use crate::cluster::resource::identity;
use crate::error::ApiError;
use crate::faults::Faults;
use answer::{Body, Broken};
use request::{Path, Query, ResourcePath};

pub(crate) use listener::{Listening, serve};
pub(crate) use tls::Identity;

/// What every connection shares.
#[derive(Debug)]
pub(crate) struct Server {
    cluster: Mutex<Cluster>,
    /// The store's version, for those who wait for the next.
    revisions: tokio::sync::watch::Sender<u64>,
    pub(crate) faults: Faults,
    bookmark_interval: Duration,
}

impl Server {
    pub(crate) fn new(cluster: Cluster, faults: Faults, bookmark_interval: Duration) -> Self {
        let revisions = tokio::sync::watch::Sender::new(cluster.store.revision());
        Self { cluster: Mutex::new(cluster), revisions, faults, bookmark_interval }
    }

    pub(crate) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the cluster, and wakes every watch when anything is new.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Cluster) -> T) -> T {
        let mut cluster = self.cluster();
        let done = change(&mut cluster);
        let revision = cluster.store.revision();
        drop(cluster);
        self.revisions.send_if_modified(|seen| std::mem::replace(seen, revision.max(*seen)) < revision);
        done
    }
}

/// Answers one request; an error breaks the connection instead.
async fn answer(server: Arc<Server>, request: Request<Incoming>) -> Result<Response<Body>, Broken> {
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query());
    let path = Path::parse(parts.uri.path());
    if let Path::Resource(path) = &path
        && let Ok(verb) = path.verb(&parts.method, &query)
    {
        server.faults.count(verb, &full_name(path));
    }
    let mut hanging = server.faults.signals().hanging;
    if hanging.wait_for(|hanging| !hanging).await.is_err() {
        return Err(Broken);
    }
    sleep(server.faults.delay()).await;
    if let Some(refusal) = server.faults.refusal(request::token(&parts)) {
        return Ok(answer::error(&refusal));
    }
    let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
    let answered = match path {
        Path::Resource(path) => resource(&server, &parts, &path, &query, &body).await?,
        Path::Health => Ok(answer::json(StatusCode::OK, "ok".into())),
        path => discovery::answer(&server.cluster().registry, &path)
            .map(|found| answer::value(StatusCode::OK, &found)),
    };
    Ok(answered.unwrap_or_else(|error| answer::error(&error)))
}

async fn resource(
    server: &Arc<Server>,
    parts: &Parts,
    path: &ResourcePath,
    query: &Query,
    body: &[u8],
) -> Result<Result<Response<Body>, ApiError>, Broken> {
    let verb = match path.verb(&parts.method, query) {
        Ok(verb) => verb,
        Err(error) => return Ok(Err(error)),
    };
    let name = full_name(path);
    if server.faults.is_denied(verb, &name) {
        let object = path.name.as_deref().unwrap_or_default();
        let message =
            format!("{name} \"{object}\" is forbidden: User \"spillway\" cannot {verb} resource \"{name}\"");
        return Ok(Err(ApiError::forbidden(message).about(&path.group, &path.plural, object)));
    }
    if path.group == review::GROUP {
        return Ok(if parts.method == Method::POST {
            review::answer(&server.faults, path, body)
        } else {
            Err(ApiError::method_not_allowed())
        });
    }
    if let Ok(Some(from)) = list::Continuation::of(query) {
        if server.faults.breaks_list(from.chunks) {
            return Err(Broken);
        }
        sleep(server.faults.chunk_delay()).await;
    }
    Ok(objects::answer(server, parts, path, verb, query, body))
}

/// Returns a resource's name as RBAC writes it: `egresstenants.spillway.dev/status`.
fn full_name(path: &ResourcePath) -> String {
    let name = identity(&path.group, &path.plural);
    path.subresource.as_ref().map_or_else(|| name.clone(), |part| format!("{name}/{part}"))
}

/// Returns a `Status` object that tells of success.
fn success(details: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "details": details})
}

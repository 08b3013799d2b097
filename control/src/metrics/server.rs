//! Who asks for metrics over HTTP.

use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::TEXT_FORMAT;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tracing::{debug, warn};

use super::render;
use super::sample::Wellbeing;
use crate::api::Request;
use crate::config::{DEFAULT_METRICS, MetricsAddress};
use crate::vitals::Vitals;

/// What the metrics come from.
#[derive(Clone, Debug)]
pub struct Metering {
    /// The control loop.
    pub daemon: mpsc::Sender<Request>,
    /// What is known without it.
    pub vitals: Arc<Vitals>,
}

/// Returns what is told over TCP: `/metrics`, nothing else.
pub fn router(metering: Metering) -> Router {
    Router::new().route("/metrics", get(expose)).with_state(metering)
}

/// Answers with the exposition.
pub async fn expose(State(metering): State<Metering>) -> Response {
    match metering.exposition().await {
        Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err((status, message)) => {
            debug!("no metrics: {message}");
            (status, format!("{message}\n")).into_response()
        }
    }
}

/// Listens where metrics are served over TCP; nowhere if the config file says so, or nothing but the default address would
/// do and somebody else has it.
///
/// # Errors
/// When the address that the config file names is not free.
pub fn listen(wanted: MetricsAddress) -> anyhow::Result<Option<TcpListener>> {
    let (address, is_default) = match wanted {
        MetricsAddress::Off => return Ok(None),
        MetricsAddress::At(address) => (address, false),
        MetricsAddress::IfFree => (DEFAULT_METRICS, true),
    };
    let listener = std::net::TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .and_then(TcpListener::from_std);
    match listener {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if is_default => {
            warn!(
                "metrics are on the control socket alone: nobody can listen on {address} ({error}); give control.metrics \
                 an address that is free, or \"\""
            );
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| {
            format!("control.metrics: cannot listen on {address}; use a free port of an address of this host")
        }),
    }
}

impl Metering {
    async fn exposition(self) -> Result<String, (StatusCode, String)> {
        let stopping = || (StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping".to_owned());
        let failed = |message: String| (StatusCode::INTERNAL_SERVER_ERROR, message);
        let (reply, answer) = oneshot::channel();
        self.daemon.send(Request::Metrics(reply)).await.map_err(|_| stopping())?;
        let sample = answer.await.map_err(|_| stopping())?.map_err(|refusal| failed(refusal.to_string()))?;
        let wellbeing = Wellbeing { health: self.vitals.health(), readiness: self.vitals.readiness() };
        // Ten thousand tenants take many milliseconds, which the API's threads do not have.
        let rendered = spawn_blocking(move || render(&sample, &wellbeing)).await;
        let rendered = rendered.map_err(|error| failed(error.to_string()))?;
        rendered.map_err(|error| failed(error.to_string()))
    }
}

//! Which lines are logged, asked and set over the control socket.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::error::ApiError;
use super::handlers::{Changer, unknown_method};
use crate::logging::Log;
use crate::logging::dial::Reading;
use crate::logging::filter::Filter;
use crate::logging::targets::{LIBRARIES, TARGETS};
use crate::refusal::Refusal;

/// Longest time after which a filter goes back by itself, in seconds.
const MAX_SECONDS: u64 = 7 * 24 * 3600;

/// Which lines are logged: `GET /v1/log`.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogView {
    /// The filter that is in force.
    pub filter: String,
    /// Seconds until it goes back by itself; null when it stays.
    pub seconds_left: Option<u64>,
    /// The filter that comes then; null when the one in force stays.
    pub then: Option<String>,
    /// The filter that the daemon started with.
    pub initial: String,
    /// Lines that were kept back since the daemon started, because they were too many of a kind.
    pub kept_back: u64,
    /// What the filter comes to for each part of the gateway.
    pub targets: Vec<LogTargetView>,
}

/// A part of the gateway that logs.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogTargetView {
    /// Its name.
    pub name: String,
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// What it tells of.
    pub meaning: String,
}

/// What `PUT /v1/log` takes.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogChange {
    /// The filter: a level, targets with levels, or both, as in `info,kubernetes=debug`.
    pub filter: String,
    /// Seconds after which the filter before comes back by itself, at most 604,800; null or absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_seconds: Option<u64>,
}

/// Returns the API of the log.
pub fn log_router(log: Log) -> Router {
    Router::new()
        .route("/v1/log", get(show).put(set).delete(reset))
        .method_not_allowed_fallback(unknown_method)
        .with_state(log)
}

async fn show(State(log): State<Log>) -> Json<LogView> {
    Json(view(&log))
}

async fn set(
    State(log): State<Log>,
    Changer(caller): Changer,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<LogView>, ApiError> {
    let body =
        body.map_err(|rejection| ApiError::of_field(rejection.status(), "body", rejection.body_text()))?;
    let change: LogChange = serde_json::from_slice(&body)
        .map_err(|error| ApiError::of_field(StatusCode::BAD_REQUEST, "body", error.to_string()))?;
    let filter: Filter =
        change.filter.parse().map_err(|error| Refusal::invalid("filter", format!("{error}")))?;
    let lasts = change.for_seconds.map(check_seconds).transpose()?;
    let shown = lasts.map(|lasts| humantime::format_duration(lasts).to_string());
    info!(uid = caller.uid, pid = caller.pid, %filter, lasts = shown, "log filter set");
    let ends = log.dial.set(filter, lasts.map(|lasts| Instant::now() + lasts));
    if let Some(lasts) = lasts {
        let dial = log.dial.clone();
        tokio::spawn(async move {
            tokio::time::sleep(lasts).await;
            if dial.end(ends) {
                info!(filter = %dial.read(Instant::now()).filter, "log filter went back");
            }
        });
    }
    Ok(Json(view(&log)))
}

async fn reset(State(log): State<Log>, Changer(caller): Changer) -> Json<LogView> {
    log.dial.reset();
    info!(uid = caller.uid, pid = caller.pid, "log filter reset");
    Json(view(&log))
}

fn check_seconds(seconds: u64) -> Result<Duration, Refusal> {
    if (1..=MAX_SECONDS).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    Err(Refusal::invalid("forSeconds", format!("{seconds} is not between 1 and {MAX_SECONDS}")))
}

fn view(log: &Log) -> LogView {
    let Reading { filter, then, initial } = log.dial.read(Instant::now());
    let level = |name: &str| filter.level_of(name).to_string();
    let target = |name: &str, meaning: &str| LogTargetView {
        name: name.to_owned(),
        level: level(name),
        meaning: meaning.to_owned(),
    };
    let own = TARGETS.iter().map(|known| target(known.name, known.meaning));
    let (then, left) = then.unzip();
    LogView {
        filter: filter.to_string(),
        seconds_left: left.map(|left| left.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)),
        then: then.map(|filter| filter.to_string()),
        initial: initial.to_string(),
        kept_back: log.limit.kept_back(),
        targets: own.chain([target(LIBRARIES, "the libraries that Spillway is made of")]).collect(),
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;

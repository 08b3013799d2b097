//! Sessions: listed page by page, and ended, without the control loop waiting for it.

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use fastpath::dataplane::SessionReport;
use fastpath::survey::{Cursor, SurveyError};
use tokio::task::spawn_blocking;
use tracing::info;

use super::error::ApiError;
use super::handlers::{Answer, Changer, Daemon, ask};
use super::types::{EndedSessions, SessionPage, SessionView};
use super::{Desk, Request};
use crate::query::selection::{Selection, cursor_to_text, parse_cursor};
use crate::refusal::Refusal;

const DEFAULT_SESSIONS: usize = 100;
/// Most sessions of one page.
pub const MAX_SESSIONS: usize = 10_000;

/// A query for sessions: which, and how many of them from where on.
#[derive(Debug, Default)]
struct SessionQuery {
    selection: Selection,
    limit: Option<String>,
    after: Option<String>,
    all: Option<String>,
}

type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

impl SessionQuery {
    fn read(pairs: Pairs) -> Result<Self, ApiError> {
        let refusal = |status, message| ApiError::of_field(status, "query", message);
        let Query(pairs) = pairs.map_err(|rejection| refusal(rejection.status(), rejection.body_text()))?;
        let (mut query, mut rest) = (Self::default(), Vec::new());
        for (key, value) in pairs {
            match &*key {
                "limit" => query.limit = Some(value),
                "after" => query.after = Some(value),
                "all" => query.all = Some(value),
                _ => rest.push((key, value)),
            }
        }
        let selection = serde_urlencoded::to_string(rest).map_err(|error| error.to_string());
        query.selection = selection
            .and_then(|text| serde_urlencoded::from_str(&text).map_err(|error| error.to_string()))
            .map_err(|message| refusal(StatusCode::BAD_REQUEST, message))?;
        Ok(query)
    }
}

pub(super) async fn sessions(daemon: Daemon, pairs: Pairs) -> Answer<SessionPage> {
    let query = SessionQuery::read(pairs)?;
    let limit = query.limit.as_deref().map_or(Ok(DEFAULT_SESSIONS), read_limit)?;
    let from = query.after.as_deref().map_or(Ok(Cursor::default()), parse_cursor)?;
    let desk = ask(&daemon, Request::Desk).await?;
    let filter = desk.filter(&query.selection)?;
    let Desk { surveyor, tenants, .. } = desk;
    let page = off_loop(move || surveyor.list(&filter, from, limit)).await?;
    let view = |session: &SessionReport| Some(session_view(session, tenants.get(&session.tenant)?));
    Ok(Json(SessionPage {
        sessions: page.rows.iter().filter_map(view).collect(),
        next: page.next.map(cursor_to_text),
    }))
}

pub(super) async fn end_sessions(
    daemon: Daemon,
    Changer(caller): Changer,
    pairs: Pairs,
) -> Answer<EndedSessions> {
    let query = SessionQuery::read(pairs)?;
    let selection = query.selection;
    if selection.is_all() && query.all.as_deref() != Some("true") {
        let message = "nothing says which sessions to end; say which, or all=true for every session";
        return Err(Refusal::invalid("all", message).into());
    }
    if query.limit.is_some() || query.after.is_some() {
        let message = "limit and after are for lists; all sessions that are meant end";
        return Err(Refusal::invalid("limit", message).into());
    }
    let desk = ask(&daemon, Request::Desk).await?;
    let filter = desk.filter(&selection)?;
    let ended = off_loop(move || desk.surveyor.end(&filter)).await?;
    info!(uid = caller.uid, pid = caller.pid, ended, ?selection, "sessions were ended on request");
    Ok(Json(EndedSessions { ended }))
}

/// Asks the workers on a thread that may wait.
async fn off_loop<T: Send + 'static>(
    survey: impl FnOnce() -> Result<T, SurveyError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = spawn_blocking(survey).await;
    let failed = |message: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message);
    done.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
}

fn read_limit(text: &str) -> Result<usize, Refusal> {
    let limit = text.parse().ok().filter(|limit| (1..=MAX_SESSIONS).contains(limit));
    limit.ok_or_else(|| {
        Refusal::invalid("limit", format!("{text:?} is not a number between 1 and {MAX_SESSIONS}"))
    })
}

fn session_view(session: &SessionReport, tenant: &str) -> SessionView {
    SessionView {
        tenant: tenant.to_owned(),
        protocol: session.inside.protocol.name().to_owned(),
        inside_address: session.inside.source,
        inside_port: session.inside.source_port,
        outside_address: session.outside.0,
        outside_port: session.outside.1,
        remote_address: session.inside.destination,
        remote_port: session.inside.destination_port,
        state: session.state.name().to_owned(),
        age_seconds: session.age_seconds,
        idle_seconds: session.idle_seconds,
        expires_seconds: session.expires_seconds,
        worker: session.worker,
    }
}

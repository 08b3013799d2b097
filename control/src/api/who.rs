//! `GET /v1/who`: sessions are asked for now, then the log is read beside the control loop.

use std::net::SocketAddrV4;
use std::path::PathBuf;

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use fastpath::dataplane::SessionReport;
use fastpath::survey::{Cursor, EndFilter, SessionFilter, SurveyError};
use ipnet::Ipv4Net;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tokio::task::spawn_blocking;

use super::error::ApiError;
use super::handlers::{Answer as Response, Daemon, ask};
use super::{Desk, Request};
use crate::nat_log::entry::protocol_number;
use crate::nat_log::names::Names;
use crate::nat_log::read::search;
use crate::nat_log::who::{Answer, Holder, Live, Question, Window, answer};
use crate::refusal::Refusal;

/// Sessions behind one port that are told, at most.
const MOST_HOLDERS: usize = 1000;

/// Who looks for whoever is or was behind an egress address and port.
#[derive(Clone, Debug)]
pub struct WhoDesk {
    /// Knows who is.
    pub desk: Desk,
    /// Names of pods.
    pub names: Names,
    /// The log's newest file, which knows who was; none if it is written to no file.
    pub log: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WhoQuery {
    outside: Option<String>,
    protocol: Option<String>,
    remote: Option<String>,
    from: Option<String>,
    until: Option<String>,
}

pub(super) async fn who(daemon: Daemon, query: Result<Query<WhoQuery>, QueryRejection>) -> Response<Answer> {
    let Query(query) =
        query.map_err(|rejection| ApiError::of_field(rejection.status(), "query", rejection.body_text()))?;
    let question = read_question(query)?;
    let WhoDesk { desk, names, log } = ask(&daemon, Request::Who).await?;
    let log = match (question.window, log) {
        (None, _) => None,
        (Some(_), None) => {
            let message = "the daemon writes no log of translations to a file, so it knows who is there now only; add \
                           [nat_log.file] to the config file, or ask whoever gets the log";
            return Err(Refusal::invalid("from", message).into());
        }
        (Some(window), Some(path)) => Some((window, path)),
    };
    let answered = spawn_blocking(move || {
        let live = live(&desk, &names, question.outside).map_err(|error| error.to_string())?;
        let unreadable = |error| format!("the log of translations cannot be read: {error}");
        let found = log.map(|(window, path)| search(&path, &question, window).map(|found| (path, found)));
        Ok(answer(&question, live, found.transpose().map_err(unreadable)?))
    });
    let failed = |message: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message);
    answered.await.map_err(|error| failed(error.to_string()))?.map(Json).map_err(failed)
}

/// Returns who is behind an address and port now.
fn live(desk: &Desk, names: &Names, outside: SocketAddrV4) -> Result<Vec<Live>, SurveyError> {
    let network = Some(Ipv4Net::from(*outside.ip()));
    let outside = EndFilter { network, port: Some(outside.port()) };
    let filter = SessionFilter { outside, ..SessionFilter::default() };
    let (mut live, mut cursor) = (Vec::new(), Some(Cursor::default()));
    while let Some(from) = cursor.filter(|_| live.len() < MOST_HOLDERS) {
        let page = desk.surveyor.list(&filter, from, MOST_HOLDERS - live.len())?;
        let now = Timestamp::now();
        live.extend(page.rows.iter().map(|session| {
            let age = SignedDuration::from_secs(i64::try_from(session.age_seconds).unwrap_or(i64::MAX));
            let tenant = desk.tenants.get(&session.tenant).cloned();
            let known_since = now.checked_sub(age).unwrap_or(now);
            Live { holder: describe(session, tenant, names), known_since }
        }));
        cursor = page.next;
    }
    Ok(live)
}

fn describe(session: &SessionReport, tenant: Option<String>, names: &Names) -> Holder {
    Holder {
        tenant,
        protocol: Some(session.inside.protocol.name().to_owned()),
        inside_address: Some(session.inside.source),
        inside_port: Some(session.inside.source_port),
        remote_address: Some(session.inside.destination),
        remote_port: Some(session.inside.destination_port),
        pod: names.pod(session.inside.source),
        is_live: true,
        ..Holder::default()
    }
}

fn read_question(query: WhoQuery) -> Result<Question, Refusal> {
    let WhoQuery { outside, protocol, remote, from, until } = query;
    let outside = outside
        .ok_or_else(|| Refusal::invalid("outside", "is missing; give some like 192.168.55.113:40123"))?;
    let window = match (from, until) {
        (None, None) => None,
        (Some(from), until) => {
            let from = read_time("from", &from)?;
            let until = until.map_or(Ok(from), |until| read_time("until", &until))?;
            Some(Window { from, until })
                .filter(|window| window.from <= window.until)
                .ok_or_else(|| Refusal::invalid("until", format!("{until} is before {from}")))
                .map(Some)?
        }
        (None, Some(_)) => return Err(Refusal::invalid("from", "is missing; until needs it")),
    };
    if let Some(name) = protocol.as_ref().filter(|name| protocol_number(name).is_none()) {
        let message = format!("{name:?} is no protocol that is translated; give tcp, udp or icmp");
        return Err(Refusal::invalid("protocol", message));
    }
    Ok(Question {
        outside: read_socket("outside", &outside)?,
        remote: remote.map(|text| read_socket("remote", &text)).transpose()?,
        protocol,
        window,
    })
}

fn read_socket(field: &str, text: &str) -> Result<SocketAddrV4, Refusal> {
    let refused = |_| {
        Refusal::invalid(
            field,
            format!("{text:?} is no IPv4 address and port; write it as 192.168.55.113:40123"),
        )
    };
    text.parse().map_err(refused)
}

fn read_time(field: &str, text: &str) -> Result<Timestamp, Refusal> {
    let refused =
        |_| Refusal::invalid(field, format!("{text:?} is no time; write it as 2026-01-31T14:03:05Z"));
    text.parse().map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(fields: [Option<&str>; 5]) -> WhoQuery {
        let [outside, protocol, remote, from, until] = fields.map(|field| field.map(str::to_owned));
        WhoQuery { outside, protocol, remote, from, until }
    }

    #[test]
    fn a_question_is_read_from_its_query() {
        let outside = Some("192.168.55.113:40123");
        let now = read_question(query([outside, None, None, None, None])).unwrap();
        assert_eq!((now.window, now.remote), (None, None));
        let then = [outside, Some("tcp"), Some("198.51.100.7:443"), Some("2026-01-31T14:03:05Z"), None];
        let then = read_question(query(then)).unwrap();
        assert_eq!(then.window.map(|window| window.from == window.until), Some(true));
        assert_eq!(
            (then.protocol.as_deref(), then.remote.map(|remote| remote.port())),
            (Some("tcp"), Some(443))
        );
    }

    #[test]
    fn what_is_wrong_is_refused_with_field_and_value() {
        let (outside, time) = (Some("192.168.55.113:40123"), Some("2026-01-31T14:03:05Z"));
        let table = [
            ([None; 5], "outside: is missing"),
            ([Some("web"), None, None, None, None], "outside: \"web\" is no IPv4 address and port"),
            ([outside, Some("sftp"), None, None, None], "protocol: \"sftp\" is no protocol"),
            ([outside, None, Some("1.2.3.4"), None, None], "remote: \"1.2.3.4\" is no IPv4"),
            ([outside, None, None, Some("14:03"), None], "from: \"14:03\" is no time"),
            ([outside, None, None, None, time], "from: is missing"),
            (
                [outside, None, None, time, Some("2025-01-01T00:00:00Z")],
                "until: 2025-01-01T00:00:00Z is before",
            ),
        ];
        for (fields, expected) in table {
            let refusal = read_question(query(fields)).unwrap_err().to_string();
            assert!(refusal.starts_with(expected), "{refusal}");
        }
    }
}

//! An event as a line of JSON.

use std::error::Error;
use std::fmt::{self, Debug};
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::targets::name_of;

/// Writes each event as an object on a line of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct JsonLines;

/// What an event says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Said {
    /// Its message.
    pub(super) message: String,
    /// Its other fields.
    pub(super) fields: Map<String, Value>,
    /// The module that says it, where it comes from a library that logs by the `log` crate.
    pub(super) module: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    level: String,
    target: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Map::is_empty")]
    fields: &'a Map<String, Value>,
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let text = line(event, SystemTime::now()).map_err(|_| fmt::Error)?;
        writeln!(writer, "{text}")
    }
}

fn line(event: &Event<'_>, now: SystemTime) -> serde_json::Result<String> {
    let said = Said::by(event);
    let module = said.module.as_deref().unwrap_or(event.metadata().target());
    serde_json::to_string(&Line {
        time: humantime::format_rfc3339_micros(now).to_string(),
        level: event.metadata().level().as_str().to_ascii_lowercase(),
        target: name_of(module),
        message: &said.message,
        fields: &said.fields,
    })
}

impl Said {
    /// Returns what an event says.
    pub(super) fn by(event: &Event<'_>) -> Self {
        let mut said = Self::default();
        event.record(&mut said);
        said
    }

    fn note(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("log.target", Value::String(module)) => self.module = Some(module),
            (name, _) if name.starts_with("log.") => {} // where the library's code is
            (name, value) => drop(self.fields.insert(name.to_owned(), value)),
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.note(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.note(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.note(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.note(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.note(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(deeper) = cause {
            text += &format!(": {deeper}");
            cause = deeper.source();
        }
        self.note(field, text.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use serde_json::json;
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::{Context, SubscriberExt};

    use super::*;

    /// Keeps the line of every event.
    struct Keeper(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Keeper {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let noon = SystemTime::UNIX_EPOCH + Duration::from_micros(1_763_726_400_000_250);
            self.0.lock().unwrap().push(line(event, noon).unwrap());
        }
    }

    #[test]
    fn a_line_has_time_level_target_message_and_fields() {
        let lines = Arc::default();
        let subscriber = tracing_subscriber::registry().with(Keeper(Arc::clone(&lines)));
        tracing::subscriber::with_default(subscriber, || {
            let error = io::Error::other(anyhow::anyhow!("cause").context("no \"route\"\nhere"));
            let error = &error as &dyn Error;
            tracing::warn!(target: "control::netlink::routes", error, worker = 3, tenant = "ns-blue", "not {}", "done");
            tracing::info!(target: "hyper::proto", "plain");
        });
        let lines: Vec<String> = std::mem::take(&mut lines.lock().unwrap());
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| !line.contains('\n')), "{lines:?}");
        let parsed: Value = serde_json::from_str(&lines[0]).unwrap();
        let expected = json!({
            "time": "2025-11-21T12:00:00.000250Z",
            "level": "warn",
            "target": "netlink",
            "message": "not done",
            "fields": { "error": "no \"route\"\nhere: cause", "tenant": "ns-blue", "worker": 3 },
        });
        assert_eq!(parsed, expected);
        let plain = r#"{"time":"2025-11-21T12:00:00.000250Z","level":"info","target":"hyper::proto","message":"plain"}"#;
        assert_eq!(lines[1], plain);
    }
}

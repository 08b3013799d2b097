//! Log lines: which, how many, and how they look.
//!
//! ```text
//!   event → filter (by target, set while the daemon runs) → limit (what repeats) → human, JSON or journal
//! ```
//!
//! - [`targets`]: names of the parts of the gateway that log
//! - [`filter`]: which lines are logged
//! - [`fields`]: names of what events tell beside their message
//! - [`dial`]: the filter in force, changed while the daemon runs
//! - [`limit`]: keeps what repeats from filling the log
//! - `line`: an event as a line of JSON
//! - [`journal`]: events as entries of the journal

pub mod dial;
pub mod fields;
pub mod filter;
pub mod journal;
pub mod limit;
mod line;
pub mod targets;

use std::io::{IsTerminal, stderr};

use anyhow::Context;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use self::dial::Dial;
use self::filter::Filter;
use self::journal::Journal;
use self::limit::Limit;
use self::line::JsonLines;
use crate::policy::Choice;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The journal's own protocol where stderr is the journal, as under systemd, else for people.
    #[default]
    Auto,
    /// For people: time, level, message and fields on a line, coloured on a terminal.
    Human,
    /// An object of JSON on each line: `time`, `level`, `target`, `message` and `fields`.
    Json,
    /// Entries of the journal, each field one of theirs.
    Journald,
}

impl Choice for Format {
    const WORDS: &'static [(Self, &'static str, &'static str)] = &[
        (Self::Auto, "auto", "journald where stderr is the journal, as under systemd, else human"),
        (Self::Human, "human", "time, level, message and fields on a line"),
        (Self::Json, "json", "an object of JSON on each line"),
        (Self::Journald, "journald", "entries of the journal, each field one of theirs"),
    ];
}

/// The running log.
#[derive(Clone, Debug)]
pub struct Log {
    /// Which lines are logged.
    pub dial: Dial,
    /// How many lines are logged.
    pub limit: Limit,
}

/// Starts logging.
///
/// # Errors
/// When there is no journal that was asked for.
pub fn start(filter: Filter, format: Format) -> anyhow::Result<Log> {
    let (targets, handle) = reload::Layer::new(filter.targets());
    let limit = Limit::new();
    let lines = lines_of(format)?;
    tracing_subscriber::registry().with(targets).with(limit.clone()).with(lines).init();
    Ok(Log { dial: Dial::new(handle, filter), limit })
}

type Inner = tracing_subscriber::layer::Layered<
    Limit,
    tracing_subscriber::layer::Layered<
        reload::Layer<tracing_subscriber::filter::Targets, Registry>,
        Registry,
    >,
>;

fn lines_of(format: Format) -> anyhow::Result<Box<dyn Layer<Inner> + Send + Sync>> {
    let human = || fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal()).with_target(false);
    Ok(match format {
        Format::Auto if journal::is_stderr() => match Journal::connect() {
            Ok(journal) => Box::new(journal),
            Err(_) => Box::new(human()),
        },
        Format::Auto | Format::Human => Box::new(human()),
        Format::Json => Box::new(fmt::layer().with_writer(stderr).event_format(JsonLines)),
        Format::Journald => Box::new(Journal::connect().context("there is no journal to log to")?),
    })
}

/// Chooses the filter: that of the command line, else that of `RUST_LOG`, else that of the config file.
///
/// # Errors
/// When it is refused, saying where it is from.
pub fn choose_filter(flag: Option<&str>, configured: Filter) -> anyhow::Result<Filter> {
    let variable = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let given = flag.map(|text| ("--log", text)).or(variable.as_deref().map(|text| ("RUST_LOG", text)));
    match given {
        Some((name, text)) => text.parse().map_err(|error| anyhow::anyhow!("{name}: {error}")),
        None => Ok(configured),
    }
}

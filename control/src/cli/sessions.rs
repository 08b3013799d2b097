//! `spillway sessions`: translated sessions, listed, exported and ended.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::api::MAX_SESSIONS;
use crate::api::types::{EndedSessions, SessionPage, SessionView};
use crate::client::Client;
use crate::output;
use crate::query::selection::Selection;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
        spillway sessions --tenant ns-blue --limit 20\n  \
        spillway sessions --pod 10.132.0.5 --remote 198.51.100.0/24 --state established\n  \
        spillway sessions --all --csv >sessions.csv\n  \
        spillway sessions end --remote 198.51.100.7:443 --idle-for 1h"
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    selection: Selection,

    /// Show at most so many
    #[arg(long, value_name = "N", default_value_t = 100, conflicts_with = "all",
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,

    /// Show the next ones: what an earlier list ended with
    #[arg(long, value_name = "PLACE")]
    after: Option<String>,

    /// Show every one, however many they are; with --json or --csv
    #[arg(long, requires = "export")]
    all: bool,

    /// Print JSON
    #[arg(long, group = "export")]
    json: bool,

    /// Print comma-separated values (RFC 4180)
    #[arg(long, group = "export")]
    csv: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// End sessions: their next packets are treated as those of any flow without a session
    #[command(after_help = "Example:\n  spillway sessions end --tenant ns-blue --pod 10.132.0.5")]
    End(EndArguments),
}

#[derive(Debug, Args)]
struct EndArguments {
    #[command(flatten)]
    selection: Selection,

    /// End every session of every tenant
    #[arg(long)]
    all: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is asked of the API beside the selection.
#[derive(Serialize)]
struct Query<'a> {
    #[serde(flatten)]
    selection: &'a Selection,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    all: Option<bool>,
}

impl Query<'_> {
    fn path(&self) -> anyhow::Result<String> {
        Ok(format!("/v1/sessions?{}", serde_urlencoded::to_string(self)?))
    }
}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        match &self.command {
            Some(Command::End(end)) => end.execute(client).await,
            None if self.csv => self.export(client, &mut Csv::new()).await,
            None if self.json => self.export(client, &mut Json::new()).await,
            None => self.show(client).await,
        }
    }

    /// Shows a table.
    async fn show(self, client: &Client) -> anyhow::Result<()> {
        let limit = self.limit as usize;
        let mut page = self.page(client, self.after.clone(), limit).await?;
        let mut rows: Vec<_> = page.sessions.iter().map(row).collect();
        while rows.len() < limit
            && let Some(next) = page.next
        {
            page = self.page(client, Some(next), limit - rows.len()).await?;
            rows.extend(page.sessions.iter().map(row));
        }
        let header = ["TENANT", "PROTOCOL", "POD", "EGRESS", "REMOTE", "STATE", "AGE", "IDLE", "EXPIRES IN"];
        output::print(&output::table(&header, &[], rows))?;
        tell_next(page.next.as_deref());
        Ok(())
    }

    /// Writes sessions page by page, so that any number of them takes no memory.
    async fn export(self, client: &Client, sheet: &mut impl Sheet) -> anyhow::Result<()> {
        let mut left = if self.all { usize::MAX } else { self.limit as usize };
        let mut after = self.after.clone();
        loop {
            let page = self.page(client, after, left.min(MAX_SESSIONS)).await?;
            for session in &page.sessions {
                sheet.write(session)?;
            }
            left -= page.sessions.len();
            after = page.next;
            if after.is_none() || left == 0 {
                sheet.end()?;
                tell_next(after.as_deref());
                return Ok(());
            }
        }
    }

    async fn page(
        &self,
        client: &Client,
        after: Option<String>,
        limit: usize,
    ) -> anyhow::Result<SessionPage> {
        let query = Query { selection: &self.selection, limit: Some(limit), after, all: None };
        Ok(client.get(&query.path()?).await?)
    }
}

impl EndArguments {
    async fn execute(&self, client: &Client) -> anyhow::Result<()> {
        let query =
            Query { selection: &self.selection, limit: None, after: None, all: self.all.then_some(true) };
        let ended: EndedSessions = client.delete_for(&query.path()?).await?;
        if self.json {
            return Ok(output::print_json(&ended)?);
        }
        let plural = if ended.ended == 1 { "" } else { "s" };
        Ok(output::print(&format!("{} session{plural} ended", ended.ended))?)
    }
}

/// Where sessions are written, one after the other.
trait Sheet {
    fn write(&mut self, session: &SessionView) -> io::Result<()>;
    fn end(&mut self) -> io::Result<()>;
}

/// Comma-separated values under a header.
struct Csv(csv::Writer<io::Stdout>);

impl Csv {
    fn new() -> Self {
        Self(csv::Writer::from_writer(io::stdout()))
    }
}

impl Sheet for Csv {
    fn write(&mut self, session: &SessionView) -> io::Result<()> {
        self.0.serialize(session).map_err(io::Error::from)
    }

    fn end(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A list in JSON, one session on each line.
struct Json {
    out: io::BufWriter<io::Stdout>,
    is_empty: bool,
}

impl Json {
    fn new() -> Self {
        Self { out: io::BufWriter::new(io::stdout()), is_empty: true }
    }
}

impl Sheet for Json {
    fn write(&mut self, session: &SessionView) -> io::Result<()> {
        let before = if std::mem::take(&mut self.is_empty) { "[\n  " } else { ",\n  " };
        self.out.write_all(before.as_bytes())?;
        Ok(serde_json::to_writer(&mut self.out, session)?)
    }

    fn end(&mut self) -> io::Result<()> {
        let end = if self.is_empty { "[]\n" } else { "\n]\n" };
        self.out.write_all(end.as_bytes())?;
        self.out.flush()
    }
}

fn tell_next(next: Option<&str>) {
    if let Some(next) = next {
        output::print_note(&format!("there may be more: --after {next}, or --all --csv for all of them"));
    }
}

fn row(session: &SessionView) -> Vec<String> {
    vec![
        session.tenant.clone(),
        session.protocol.clone(),
        format!("{}:{}", session.inside_address, session.inside_port),
        format!("{}:{}", session.outside_address, session.outside_port),
        format!("{}:{}", session.remote_address, session.remote_port),
        session.state.clone(),
        output::seconds(session.age_seconds),
        output::seconds(session.idle_seconds),
        output::seconds(session.expires_seconds),
    ]
}

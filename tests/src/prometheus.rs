//! Reads what the gateway tells Prometheus, and asks Prometheus' own tool about it.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use control::demo::command::{self, text};

use crate::fixture::{Fixture, LIMIT};

/// An exposition: values by series, as `name{label="value",…}`.
#[derive(Clone, Debug)]
pub struct Exposition {
    /// The text.
    pub text: String,
    series: BTreeMap<String, f64>,
}

impl Exposition {
    /// Reads an exposition.
    ///
    /// # Errors
    /// When a line is no sample.
    pub fn read(text: &str) -> Result<Self> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let series = samples.map(|line| {
            let (series, value) = line.rsplit_once(' ').with_context(|| format!("`{line}` is no sample"))?;
            Ok((series.to_owned(), value.parse().with_context(|| format!("`{line}`"))?))
        });
        Ok(Self { series: series.collect::<Result<_>>()?, text: text.to_owned() })
    }

    /// Asks the gateway over its control socket.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn of(fixture: &Fixture) -> Result<Self> {
        Self::read(&fixture.gateway.installation().cli(&["metrics"])?)
    }

    /// Returns a series' value.
    ///
    /// # Errors
    /// When it is not there.
    pub fn value(&self, series: &str) -> Result<f64> {
        self.series.get(series).copied().with_context(|| format!("no `{series}` in\n{}", self.text))
    }

    /// Returns the series whose names begin like this.
    pub fn beginning<'a>(&'a self, with: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        let series = self.series.iter().map(|(series, value)| (series.as_str(), *value));
        series.filter(move |(series, _)| series.starts_with(with))
    }
}

/// Fails unless `promtool` has nothing to say about an exposition.
///
/// # Errors
/// Then, with what it says.
pub fn check_metrics(exposition: &str) -> Result<()> {
    let mut promtool = Command::new("promtool");
    let output = command::run_with_input(promtool.args(["check", "metrics"]), exposition.as_bytes(), LIMIT)?;
    let said = text(&output.stdout) + &text(&output.stderr);
    ensure!(output.status.success() && said.is_empty(), "promtool says: {said}");
    Ok(())
}

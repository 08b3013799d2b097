//! What a measurement shows, whatever shows it: the terminal, or a page of charts.

use serde::Serialize;

/// What a measurement found, ready to be shown.
pub(crate) trait Findings: Serialize {
    /// How XDP was attached; `not used` where no link is.
    fn xdp_mode(&self) -> &str;

    /// Ratios first, then figures, then what was done to get them.
    fn sheets(&self) -> Vec<Sheet>;
}

/// A table, the charts that belong to it, and what the reader has to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sheet {
    pub(crate) title: String,
    /// The first column names a row; the others are figures, with their unit in the heading.
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
    pub(crate) charts: Vec<Chart>,
    /// How it was measured, and what may be wrong with it; a sentence each.
    pub(crate) notes: Vec<String>,
}

/// A chart of lines, or of bars where the first axis has names.
#[derive(Debug, Clone)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Series,
}

/// One axis of a chart.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    /// What it is, with its unit.
    pub(crate) label: String,
    pub(crate) is_logarithmic: bool,
}

/// What is drawn.
#[derive(Debug, Clone)]
pub(crate) enum Series {
    /// Lines by name, each of points from left to right.
    Lines(Vec<(String, Vec<(f64, f64)>)>),
    /// For each name on the first axis a stack of parts; `parts` names them from the bottom up.
    Bars { parts: Vec<String>, bars: Vec<(String, Vec<f64>)> },
}

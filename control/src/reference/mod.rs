//! References for users, written from the code that they describe: the command line, the config file, the control
//! socket, the custom resource, why packets are dropped, and what the log has.
//!
//! `make docs` writes them to `docs/`, and `tests/reference.rs` fails when they say something else than the code.
//!
//! - [`drops`]: where each drop is counted, and what to do about it
//! - `schema`: JSON schemas as tables
//! - `shapes`: schemas of values whose types have none
//! - `api`, `config`, `crd`, `drops_page`, `logs`, `metrics`: the pages

mod api;
mod config;
mod crd;
pub mod drops;
mod drops_page;
mod logs;
mod metrics;
mod schema;
pub(crate) mod shapes;

use crate::cli;

/// How the pages are written anew.
pub const REFRESH: &str = "make docs";

/// A page of the references.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its file, from the root of the repository.
    pub path: &'static str,
    /// What it says.
    pub text: String,
}

/// Returns every page.
pub fn pages() -> Vec<Page> {
    let page = |path, text| Page { path, text };
    vec![
        page("docs/cli.md", cli::reference::page()),
        page("docs/config.md", config::page()),
        page("docs/api.md", api::page()),
        page("docs/crd.md", crd::page()),
        page("docs/drops.md", drops_page::page()),
        page("docs/logs.md", logs::page()),
        page("docs/metrics.md", metrics::page()),
    ]
}

/// Returns the beginning of a page: its title, and what it is made from.
pub(crate) fn head(title: &str, source: &str) -> String {
    format!("# {title}\n\n<!-- Written by `{REFRESH}` from {source}. Change that, not this. -->\n")
}

/// Returns rows as a table of Markdown.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let header: Vec<_> = header.iter().map(|cell| (*cell).to_owned()).collect();
    let rule = format!("|{}\n", "---|".repeat(header.len()));
    let rows = rows.into_iter().map(|row| line(&row.iter().map(|cell| cell_of(cell)).collect::<Vec<_>>()));
    line(&header) + &rule + &rows.collect::<String>()
}

/// Returns a text as it stands in a cell: on one line, without what would end it.
fn cell_of(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

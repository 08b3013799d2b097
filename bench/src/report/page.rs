use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Chart, Report, Series, Sheet, chart};

/// The charts' ink and grid are drawn in one colour each, which the style sheet replaces by what suits the background.
const STYLE: &str = "
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1e21; --dim: #5c6370; --rule: #d5d9e0; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171b; --ink: #e6e8eb; --dim: #9aa2ad; --rule: #3a3f47; }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 1000px;
  margin: 0 auto; padding: 24px; }
header p { color: var(--dim); margin: 2px 0; }
code { font-family: ui-monospace, monospace; font-size: 13px; overflow-wrap: anywhere; }
h2 { margin-top: 44px; }
figure { margin: 24px 0; }
figcaption { font-weight: 600; }
.legend { list-style: none; padding: 0; margin: 6px 0; display: flex; flex-wrap: wrap; gap: 4px 18px; }
.legend span { display: inline-block; width: 12px; height: 12px; margin-right: 6px; border-radius: 2px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 4px 14px 4px 0; text-align: right; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
th { vertical-align: bottom; }
.notes { color: var(--dim); padding-left: 18px; }
svg { width: 100%; height: auto; }
svg text { fill: var(--ink); }
svg [stroke=\"#010203\"] { stroke: var(--dim); }
svg [stroke=\"#040506\"] { stroke: var(--rule); }
";

/// Writes a report as one page that needs nothing else.
pub(super) fn write(report: &Report) -> Result<String> {
    let sheets = report.parts.iter().flat_map(|part| &part.sheets);
    let sheets = sheets.map(write_sheet).collect::<Result<Vec<_>>>()?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Spillway: measurements" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "Spillway: measurements" }
                    @for fact in report.facts() { p { (fact) } }
                    p { code { (report.command_line()) } }
                }
                main { @for sheet in sheets { (sheet) } }
            }
        }
    };
    Ok(page.into_string())
}

fn write_sheet(sheet: &Sheet) -> Result<Markup> {
    let charts = sheet.charts.iter().map(write_chart).collect::<Result<Vec<_>>>()?;
    Ok(html! {
        section {
            h2 { (sheet.title) }
            @if !sheet.rows.is_empty() { div.wide { (write_table(sheet)) } }
            @for chart in charts { (chart) }
            @if !sheet.notes.is_empty() {
                ul.notes { @for note in &sheet.notes { li { (note) } } }
            }
        }
    })
}

fn write_table(sheet: &Sheet) -> Markup {
    html! {
        table {
            thead { tr { @for heading in &sheet.header { th { (heading) } } } }
            tbody { @for row in &sheet.rows { tr { @for cell in row { td { (cell) } } } } }
        }
    }
}

fn write_chart(chart: &Chart) -> Result<Markup> {
    let names: Vec<&String> = match &chart.series {
        Series::Lines(lines) => lines.iter().map(|(name, _)| name).collect(),
        Series::Bars { parts, .. } => parts.iter().collect(),
    };
    let svg = chart::draw(chart)?;
    Ok(html! {
        figure {
            figcaption { (chart.title) }
            ul.legend {
                @for (index, name) in names.into_iter().enumerate() {
                    li { span style=(format!("background: {}", chart::colour_name(index))) {} (name) }
                }
            }
            div role="img" aria-label=(chart.title) { (PreEscaped(svg)) }
        }
    })
}

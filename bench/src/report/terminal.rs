use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};

use super::{Report, Sheet};

/// Writes a report as text; charts are left out.
pub(super) fn show(report: &Report) -> String {
    let mut text = report.facts().join("\n");
    text += &format!("\n$ {}\n", report.command_line());
    for sheet in report.parts.iter().flat_map(|part| &part.sheets) {
        text += &format!("\n{}", show_sheet(sheet));
    }
    text
}

fn show_sheet(sheet: &Sheet) -> String {
    let mut text = format!("{}\n", sheet.title);
    if !sheet.rows.is_empty() {
        text += &format!("{}\n", table(sheet));
    }
    for note in &sheet.notes {
        text += &format!("{note}\n");
    }
    text
}

/// Lays out rows whose first cell is a name and whose others are figures.
fn table(sheet: &Sheet) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header(&sheet.header);
    table.add_rows(&sheet.rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

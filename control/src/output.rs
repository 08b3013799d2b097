//! Tables and colours: aligned and coloured on a terminal, plain in a pipe.

use std::fmt::Display;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::logging::journal;

/// Style of headings.
pub const HEADING: Style = Style::new().bold();
/// Style of what is as it should be.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Style of what needs a look.
pub const BAD: Style = AnsiColor::Red.on_default();
/// Style of what could be better.
pub const WARN: Style = AnsiColor::Yellow.on_default();
/// Style of what matters less.
pub const FAINT: Style = Style::new().dimmed();

/// Returns a value in a style.
pub fn styled(style: Style, value: impl Display) -> String {
    format!("{style}{value}{style:#}")
}

/// Prints a line on stdout, without colours where they make no sense.
///
/// # Errors
/// When stdout cannot be written to.
pub fn print(text: &str) -> io::Result<()> {
    writeln!(anstream::stdout(), "{text}")
}

/// Prints a value as JSON on stdout.
///
/// # Errors
/// When stdout cannot be written to.
pub fn print_json(value: &impl Serialize) -> io::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

/// Prints an error on stderr, without colours where they make no sense; in the journal it is one too.
pub fn print_error(text: &str) {
    let told = format!("{}{text}", styled(BAD.bold(), "error: "));
    let told = if journal::is_stderr() { with_priority(&told) } else { told };
    // A lost message about an error cannot be told to anybody.
    let _ = writeln!(anstream::stderr(), "{told}");
}

/// Says before each line that it is an error, as sd-daemon(3) has it: what comes by stderr is information else.
fn with_priority(text: &str) -> String {
    text.lines().map(|line| format!("<3>{line}")).collect::<Vec<_>>().join("\n")
}

/// Prints a remark on stderr, where it is not taken for output.
pub fn print_note(text: &str) {
    // A lost remark changes nothing.
    let _ = writeln!(anstream::stderr(), "{}", styled(FAINT, text));
}

/// Prints a warning on stderr, without colours where they make no sense.
pub fn print_warning(text: &str) {
    // A lost warning changes nothing.
    let _ =
        writeln!(anstream::stderr(), "{}{text}", styled(AnsiColor::Yellow.on_default().bold(), "warning: "));
}

/// Returns rows as aligned columns under a header; columns named in `numbers` are aligned to the right.
pub fn table(header: &[&str], numbers: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.to_vec());
    for (index, name) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if numbers.contains(name) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    for row in rows {
        table.add_row(row);
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Returns a number of bytes in a unit that reads well.
pub fn bytes(count: u64) -> String {
    let (mut whole, mut tenths) = (count, 0);
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if whole < 1024 {
            return if unit == "B" { format!("{whole} B") } else { format!("{whole}.{tenths} {unit}") };
        }
        tenths = whole % 1024 * 10 / 1024;
        whole /= 1024;
    }
    format!("{whole}.{tenths} PiB")
}

/// Returns a number of seconds in units that read well.
pub fn seconds(count: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(count)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_an_error_has_its_priority_in_the_journal() {
        assert_eq!(with_priority("error: line 2\n  |\nunknown"), "<3>error: line 2\n<3>  |\n<3>unknown");
    }

    #[test]
    fn columns_align_and_numbers_stand_to_the_right() {
        let rows = [vec!["ns-blue".to_owned(), "7".to_owned()], vec!["red".to_owned(), "1234".to_owned()]];
        let text = table(&["TENANT", "SESSIONS"], &["SESSIONS"], rows);
        assert_eq!(text, "TENANT   SESSIONS\nns-blue         7\nred          1234");
    }

    #[test]
    fn bytes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
    }
}

//! What the demo prints: coloured on a terminal, plain in a pipe.

use anstream::println;
use anstyle::{AnsiColor, Style};

const TITLE: Style = AnsiColor::Cyan.on_default().bold();
const COMMAND: Style = AnsiColor::Yellow.on_default();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const QUIET: Style = Style::new().dimmed();
const BLUE: Style = AnsiColor::Blue.on_default().bold();
const RED: Style = AnsiColor::Red.on_default();

const PICTURE: &str = "
   pods                     nodes                  gateway                upstream

   {blue}10.132.0.5 ns-blue{/} ─┐                        ┌────────────────┐
   {red}10.132.0.6 ns-red{/}  ─┴─ 192.168.99.21 ─┐      │ Spillway       │      ┌─ 192.168.55.13 server
                                         ├──────┤ in0 .12        │      │
   {blue}10.132.1.7 ns-blue{/} ─┐                 │      │   {blue}.13 ─▶ .113{/}  ├──────┤
   {red}10.132.1.8 ns-red{/}  ─┴─ 192.168.99.22 ─┘      │   {red}.14 ─▶ .114{/}  │      └─ 192.168.55.1 router ── 198.51.100.7
                                                │       .12 out0 │
                        192.168.99.0/24         └────────────────┘  192.168.55.0/24
";

/// Prints the lab as a picture.
pub(super) fn picture() {
    let text = PICTURE
        .replace("{blue}", &BLUE.render().to_string())
        .replace("{red}", &RED.render().to_string())
        .replace("{/}", &BLUE.render_reset().to_string());
    println!("{text}");
}

/// Prints the heading of a step.
pub(super) fn title(text: &str) {
    println!("\n{TITLE}── {text}{TITLE:#}");
}

/// Prints an explanation.
pub(super) fn explain(text: &str) {
    for line in text.lines() {
        println!("   {line}");
    }
}

/// Prints a command line that is about to be run, as a person would type it.
pub(super) fn command(line: &str) {
    println!("   {COMMAND}$ {line}{COMMAND:#}");
}

/// Prints what a program printed.
pub(super) fn output(text: &str) {
    for line in text.trim_end().lines() {
        println!("   {QUIET}│{QUIET:#} {line}");
    }
}

/// Prints something that is as it should be.
pub(super) fn good(text: &str) {
    println!("   {GOOD}✓{GOOD:#} {text}");
}

/// Prints something that is not.
pub(super) fn bad(text: &str) {
    println!("   {BAD}✗ {text}{BAD:#}");
}

//! `spillway doctor`: what is wrong, why it matters, and how to put it right.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::doctor::finding::{Diagnosis, Finding, Group, Severity};
use crate::doctor::{gather, judge};
use crate::output::{self, BAD, FAINT, GOOD, HEADING, WARN, styled};

/// Columns of the report.
const WIDTH: usize = 80;
/// Columns before a finding's text.
const INDENT: usize = 11;

/// Looks at the host, the config file, the daemon and the Kubernetes API, and changes none of them. Exits with 1 when
/// something is broken.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  spillway doctor\n  spillway doctor --json | jq '.findings[] | select(.severity == \"broken\")'"
)]
pub(super) struct Arguments {
    /// Config file
    #[arg(long, value_name = "FILE", default_value = "/etc/spillway/spillway.toml")]
    config: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) async fn execute(self, socket: Option<PathBuf>) -> anyhow::Result<ExitCode> {
        let diagnosis = judge(&gather::gather(&self.config, socket).await);
        if self.json {
            output::print_json(&diagnosis)?;
        } else {
            output::print(&describe(&diagnosis))?;
        }
        Ok(if diagnosis.broken > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn describe(diagnosis: &Diagnosis) -> String {
    let group = |group: Group| {
        let findings: Vec<&Finding> =
            diagnosis.findings.iter().filter(|finding| finding.group == group).collect();
        let same = |one: &&Finding, other: &&Finding| is_same_skip(one, other);
        let described: Vec<String> = findings.chunk_by(same).map(describe_findings).collect();
        (!findings.is_empty())
            .then(|| format!("{}\n{}", styled(HEADING, group.title()), described.join("\n")))
    };
    let mut parts: Vec<String> = Group::ALL.into_iter().filter_map(group).collect();
    let style = if diagnosis.broken > 0 { BAD } else { GOOD };
    let fine = diagnosis.findings.len() - diagnosis.broken - diagnosis.warnings - diagnosis.skipped;
    parts.push(format!(
        "{}, {} to look at, {} skipped, {fine} fine",
        styled(style.bold(), format!("{} broken", diagnosis.broken)),
        diagnosis.warnings,
        diagnosis.skipped
    ));
    parts.join("\n\n")
}

/// Tells whether two checks were skipped for the same reason, which is told once.
fn is_same_skip(one: &Finding, other: &Finding) -> bool {
    one.severity == Severity::Skipped && other.severity == Severity::Skipped && one.summary == other.summary
}

/// Describes findings that belong together; all but the first differ in their ids alone.
fn describe_findings(findings: &[&Finding]) -> String {
    let finding = findings[0];

    let (word, style) = match finding.severity {
        Severity::Broken => ("broken", BAD.bold()),
        Severity::Warning => ("warning", WARN.bold()),
        Severity::Skipped => ("skipped", FAINT),
        Severity::Fine => ("fine", GOOD),
    };
    let word = format!("  {}", styled(style, format!("{word:<width$}", width = INDENT - 2)));
    match finding.severity {
        Severity::Skipped | Severity::Fine => {
            let ids: Vec<&str> = findings.iter().map(|finding| finding.id.as_str()).collect();
            let text = wrapped(&format!("{}: {}", ids.join(", "), finding.summary));
            format!("{word}{}", text.trim_start())
        }
        Severity::Broken | Severity::Warning => {
            let mut lines =
                vec![format!("{word}{}", styled(HEADING, &finding.id)), wrapped(&finding.summary)];
            lines.push(wrapped(&format!("Why: {}", finding.why)));
            lines.push(wrapped(&format!("Fix: {}", finding.fix)));
            // A command stays on one line, so that it can be copied.
            lines.extend(finding.command.iter().map(|command| format!("{:INDENT$}  {command}", "")));
            lines.join("\n")
        }
    }
}

/// Returns a text as indented lines of at most [`WIDTH`] columns, as far as its words allow.
fn wrapped(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("{:INDENT$}{word}", "")),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Check;

    const CHECK: Check = Check::new(Group::Kernel, "mountain-too-high");

    #[test]
    fn lines_are_at_most_80_columns_but_for_commands() {
        let long = "word ".repeat(60);
        let command = "x".repeat(100);
        let findings = vec![
            CHECK.broken(long.clone()).because(long.clone()).fix(long.clone()).run(command.clone()),
            CHECK.fine(long.clone()),
            CHECK.skipped(long),
        ];
        let text = anstream::adapter::strip_str(&describe(&Diagnosis::of(findings))).to_string();
        let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > WIDTH).collect();
        assert_eq!(wide, [format!("{:INDENT$}  {command}", "")]);
    }

    #[test]
    fn checks_that_are_skipped_for_one_reason_share_a_line() {
        let other = Check::new(Group::Kernel, "valley-too-low");
        let findings =
            vec![CHECK.skipped("it is dark"), other.skipped("it is dark"), CHECK.skipped("it rains")];
        let text = anstream::adapter::strip_str(&describe(&Diagnosis::of(findings))).to_string();
        let lines: Vec<&str> = text.lines().skip(1).take(2).collect();
        let expected = [
            "  skipped  mountain-too-high, valley-too-low: it is dark",
            "  skipped  mountain-too-high: it rains",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_report_says_what_why_and_how_under_its_heading() {
        let finding =
            CHECK.warning("It is 5 m high.").because("None can climb it.").fix("Dig.").run("shovel");
        let text = describe(&Diagnosis::of(vec![finding, CHECK.fine("low")]));
        let expected = "Kernel settings\n  warning  mountain-too-high\n           It is 5 m high.\n           \
                        Why: None can climb it.\n           Fix: Dig.\n             shovel\n  fine     \
                        mountain-too-high: low\n\n0 broken, 1 to look at, 0 skipped, 1 fine";
        assert_eq!(anstream::adapter::strip_str(&text).to_string(), expected);
    }
}

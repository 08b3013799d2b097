//! The commands as a page of the documentation: what `--help` prints of each.

use clap::{Command, CommandFactory};

use super::Arguments;
use crate::reference::head;

/// Width of the page's lines.
const COLUMNS: usize = 100;

/// Returns the page.
pub(crate) fn page() -> String {
    let mut sections = String::new();
    describe(&mut command(), &mut sections);
    head("Command line", "`control/src/cli`") + INTRODUCTION + &sections
}

const INTRODUCTION: &str = "
What `spillway COMMAND --help` prints of each command. All but `run`, `demo`, `crd` and `detach` talk to the running daemon
over its [control socket](api.md). Every command exits with 0 when it did what it says, with 2 when it was called wrongly, and
else with 1 and a message on stderr.
";

/// Returns all commands, built, so that each knows its whole name.
pub(crate) fn command() -> Command {
    let mut command = Arguments::command().term_width(COLUMNS);
    command.build();
    command
}

fn describe(command: &mut Command, into: &mut String) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    let help = command.render_long_help().to_string();
    let help: Vec<_> = help.trim_end().lines().map(str::trim_end).collect();
    into.push_str(&format!("\n## {name}\n\n```text\n{}\n```\n", help.join("\n")));
    let visible = |command: &&mut Command| !command.is_hide_set() && command.get_name() != "help";
    for inner in command.get_subcommands_mut().filter(visible) {
        describe(inner, into);
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use clap::Parser;
    use clap::error::ErrorKind;

    use super::*;
    use crate::config::Config;

    /// Pages that people wrote, and those that were generated.
    fn documentation() -> Vec<(PathBuf, String)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
        let files = docs.chain([root.join("README.md"), root.join("deploy/kubernetes/README.md")]);
        let pages = files.filter(|file| file.extension().is_some_and(|extension| extension == "md"));
        pages.map(|file| (file.clone(), std::fs::read_to_string(file).unwrap())).collect()
    }

    /// Returns the blocks of a page that are fenced as a language.
    fn blocks(text: &str, language: &str) -> Vec<String> {
        let fence = format!("```{language}\n");
        text.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).map(str::to_owned).collect()
    }

    fn refusal(line: &str) -> Option<clap::Error> {
        let line = line.split(['|', '>', ';', '#']).next().unwrap_or_default();
        Arguments::try_parse_from(line.split_whitespace()).err()
    }

    #[test]
    fn every_command_that_the_documentation_shows_is_one() {
        let mut seen = 0;
        for (file, text) in documentation() {
            let commands = blocks(&text, "sh").concat();
            for line in commands.lines().map(str::trim).filter(|line| line.starts_with("spillway ")) {
                let kind = refusal(line).map(|error| error.kind());
                assert!(
                    matches!(kind, None | Some(ErrorKind::DisplayVersion)),
                    "{}: {line}: {kind:?}",
                    file.display()
                );
                seen += 1;
            }
            // In a sentence what a command needs may be left out.
            let outside_blocks: String = text.split("```").step_by(2).collect();
            for words in
                outside_blocks.split('`').skip(1).step_by(2).filter(|words| words.starts_with("spillway "))
            {
                let is_whole = |error: &clap::Error| {
                    let kind = error.kind();
                    !matches!(
                        kind,
                        ErrorKind::MissingRequiredArgument
                            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                    )
                };
                let placeholders =
                    words.contains(['…', '[']) || words.contains("COMMAND") || words.contains("SHELL");
                let refused = refusal(words).filter(is_whole).filter(|_| !placeholders);
                assert!(refused.is_none(), "{}: `{words}`: {refused:?}", file.display());
                seen += 1;
            }
        }
        assert!(seen > 40, "{seen} commands were found");
    }

    #[test]
    fn every_config_file_that_the_documentation_shows_is_read() {
        let mut seen = 0;
        for (file, text) in documentation() {
            for block in blocks(&text, "toml") {
                let read = Config::parse(&block, &(0..64).collect::<Vec<_>>());
                assert!(read.is_ok(), "{}: {:?} in\n{block}", file.display(), read.err());
                seen += 1;
            }
        }
        assert!(seen >= 2, "{seen} config files were found");
    }

    #[test]
    fn every_command_is_on_the_page() {
        let page = page();
        for name in ["spillway run", "spillway tenant add", "spillway status", "spillway remove-tenant"] {
            assert!(page.contains(&format!("\n## {name}\n\n```text\n")), "{name}");
        }
        assert!(page.contains("Usage: spillway tenant add"), "whole names");
    }
}

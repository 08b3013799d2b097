use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command line, split at white space, and returns what it wrote to stdout.
pub(crate) fn run(line: &str) -> Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    run_words(&words)
}

/// Runs a program whose arguments may hold white space, and returns what it wrote to stdout.
pub(crate) fn run_words(words: &[&str]) -> Result<String> {
    let output = output(words)?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", words.join(" "), output.status, reason.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program to its end, out of reach of the terminal's Ctrl-C, so that clean-up is never cut short.
pub(crate) fn output(words: &[&str]) -> Result<Output> {
    let (program, arguments) = words.split_first().context("an empty command line")?;
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .process_group(0)
        .output()
        .with_context(|| format!("`{program}` does not run; is it installed?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_tells_its_line_and_its_reason() {
        let error = run("ls /nonexistent-directory").unwrap_err().to_string();
        assert!(error.contains("ls /nonexistent-directory"), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run("spillway-bench-no-such-program").unwrap_err();
        assert!(error.to_string().contains("spillway-bench-no-such-program"), "{error}");
    }
}

//! Programs that are run to their end, within a deadline.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait;

const PAUSE: Duration = Duration::from_millis(20);

/// Time that a command of the lab's own may take.
pub const SOON: Duration = Duration::from_secs(20);

/// Runs a command to its end and returns what it printed, whatever its exit status.
///
/// It gets a process group of its own, so that a Ctrl-C meets only the program that takes the lab down.
///
/// # Errors
/// When it cannot be started, or when it has not ended after `limit`: it is killed then.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    run_with_input(command, b"", limit)
}

/// Runs a command like [`run`], with `input` on its standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: &[u8], limit: Duration) -> Result<Output> {
    let line = describe(command);
    let mut child = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let pid = pid_of(&child);
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input closes it; its exit status tells the rest.
        let _ = stdin.write_all(input);
    }
    let (sender, outputs) = mpsc::sync_channel(1);
    let reader = std::thread::spawn(move || sender.send(child.wait_with_output()));
    let output = await_output(&outputs, pid, limit).with_context(|| format!("`{line}`"));
    // The channel has room for the one message, so the reader ends whether or not it was received.
    let _ = reader.join();
    output
}

/// Runs a command like [`run`], and returns its standard output as text.
///
/// # Errors
/// As [`run`], and when it ends with a failure: what it printed is in the error.
pub fn run_ok(command: &mut Command, limit: Duration) -> Result<String> {
    let output = run(command, limit)?;
    require_success(&describe(command), &output)?;
    Ok(text(&output.stdout))
}

/// Fails with all that the program printed unless it succeeded.
///
/// # Errors
/// When it did not.
pub fn require_success(line: &str, output: &Output) -> Result<()> {
    if !output.status.success() {
        bail!("`{line}` failed ({}): {}{}", output.status, text(&output.stdout), text(&output.stderr));
    }
    Ok(())
}

/// Returns the command as a person would type it, without the way into its namespace.
pub fn describe(command: &Command) -> String {
    let mut words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quote(&word.to_string_lossy()))
        .collect();
    if words.first().is_some_and(|program| program == "nsenter")
        && let Some(end) = words.iter().position(|word| word == "--")
    {
        words.drain(..=end);
    }
    words.join(" ")
}

/// Returns what a program printed as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the process id in the type that signals want.
pub(super) fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process ids fit their own type"))
}

fn await_output(outputs: &Receiver<std::io::Result<Output>>, pid: Pid, limit: Duration) -> Result<Output> {
    let deadline = Instant::now() + limit;
    loop {
        let reason = match outputs.recv_timeout(PAUSE) {
            Ok(output) => return Ok(output?),
            Err(RecvTimeoutError::Disconnected) => bail!("its output cannot be read"),
            Err(RecvTimeoutError::Timeout) => match wait::check_interrupted() {
                Err(interrupted) => interrupted,
                Ok(()) if Instant::now() < deadline => continue,
                Ok(()) => anyhow::anyhow!("did not end within {limit:?}"),
            },
        };
        // It cannot have been reaped, and its number reused, before its output was received here.
        let _ = kill(pid, Signal::SIGKILL);
        return Err(reason);
    }
}

fn quote(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=@,+%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{word}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_does_not_end_is_killed_at_its_deadline() {
        let started = Instant::now();
        let error = run(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(format!("{error:#}").contains("did not end within"), "{error:#}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_failure_shows_the_command_and_what_it_printed() {
        let error = run_ok(Command::new("sh").args(["-c", "echo no good >&2; exit 3"]), SOON).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("sh -c 'echo no good") && message.contains("exit status: 3"), "{message}");
    }

    #[test]
    fn input_reaches_the_program() {
        let output = run_with_input(&mut Command::new("cat"), b"words", SOON).unwrap();
        assert_eq!(output.stdout, b"words");
    }

    #[test]
    fn the_way_into_a_namespace_is_not_described() {
        let mut command = Command::new("nsenter");
        command.args(["--net=/run/netns/x", "--", "curl", "-s", "http://a/b c"]);
        assert_eq!(describe(&command), "curl -s 'http://a/b c'");
    }
}

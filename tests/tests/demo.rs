//! `spillway demo`, as a newcomer runs it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use control::demo::command::{self, text};
use control::demo::process::Process;
use control::demo::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use spillway_tests::fixture::{executable, skipped};

const DEMO: Duration = Duration::from_secs(120);

#[test]
fn the_demo_passes_is_plain_in_a_pipe_and_leaves_nothing() -> Result<()> {
    if skipped()? {
        return Ok(());
    }
    let output = command::run(Command::new(executable()?).arg("demo"), DEMO)?;
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{printed}{}", text(&output.stderr));
    for words in ["192.168.55.113", "192.168.55.114", "every check passed"] {
        assert!(printed.contains(words), "`{words}` is missing:\n{printed}");
    }
    assert!(!printed.contains('\x1b'), "escape codes in a pipe");
    let config =
        printed.lines().find_map(|line| line.split_once("--config ")).expect("the daemon's command line").1;
    let directory = Path::new(config).parent().expect("the config file lies in the lab's directory");
    require_gone(directory)
}

#[test]
fn an_interrupted_demo_leaves_nothing_and_fails() -> Result<()> {
    if skipped()? {
        return Ok(());
    }
    let log = std::env::temp_dir().join(format!("spillway-demo-{}.log", std::process::id()));
    let mut demo = Process::start(Command::new(executable()?).arg("demo"), &log)?;
    demo.until_printed("--config ", DEMO)?;
    kill(Pid::from_raw(i32::try_from(demo.id())?), Signal::SIGINT)?;
    let status = demo.until_ended(Duration::from_secs(30))?;
    let printed = demo.output();
    std::fs::remove_file(&log)?;
    assert!(!status.success(), "{printed}");
    let config =
        printed.lines().find_map(|line| line.split_once("--config ")).expect("the daemon's command line").1;
    require_gone(Path::new(config).parent().expect("the config file lies in the lab's directory"))
}

/// Fails unless a lab's directory, namespaces and pins are gone.
fn require_gone(directory: &Path) -> Result<()> {
    let lab = directory.file_name().expect("a lab's directory has its name").to_string_lossy();
    let what = format!("the lab {lab} is gone");
    let left = |place: &str| {
        std::fs::read_dir(place).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains(lab.as_ref()))
        })
    };
    wait::until(&what, Duration::from_secs(10), || {
        let any = ["/run/netns", "/run/spillway-lab", "/sys/fs/bpf"].into_iter().any(left);
        Ok((!any).then_some(()))
    })
}

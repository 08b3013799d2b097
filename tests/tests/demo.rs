//! `spillway demo`, as a newcomer runs it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use control::demo::command::{self, text};
use control::demo::inventory::clean_one;
use control::demo::namespace::Namespace;
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
    require_gone(&lab_directory(&printed))
}

#[test]
fn the_demo_passes_with_tenants_of_a_cluster() -> Result<()> {
    if skipped()? {
        return Ok(());
    }
    let output = command::run(Command::new(executable()?).args(["demo", "--kubernetes"]), DEMO)?;
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{printed}{}", text(&output.stderr));
    for words in ["ns-blue: programmed", "kubectl delete egresstenant ns-red", "every check passed"] {
        assert!(printed.contains(words), "`{words}` is missing:\n{printed}");
    }
    require_gone(&lab_directory(&printed))
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
    require_gone(&lab_directory(&printed))
}

#[test]
fn a_killed_demo_takes_its_programs_along_and_the_rest_can_be_cleaned() -> Result<()> {
    if skipped()? {
        return Ok(());
    }
    let log = std::env::temp_dir().join(format!("spillway-killed-demo-{}.log", std::process::id()));
    let mut demo = Process::start(Command::new(executable()?).arg("demo"), &log)?;
    demo.until_printed("It runs", DEMO)?;
    let directory = lab_directory(&demo.output());
    let lab = directory.file_name().expect("a lab's directory has its name").to_string_lossy();
    let namespace = |host: &str| Namespace::named(format!("{lab}-{host}"));
    let mut stray = Process::start(namespace("node1").command("sleep").arg("300"), &log)?;
    demo.kill()?;
    for host in ["gw", "server", "switch-out"] {
        wait::until(&format!("nothing runs in {host}"), Duration::from_secs(10), || {
            let mut pids = Command::new("ip");
            let pids = command::run_ok(pids.args(["netns", "pids", namespace(host).name()]), DEMO)?;
            Ok(pids.trim().is_empty().then_some(()))
        })?;
    }
    // The stray stays a zombie, which lives in no namespace, until it is waited for.
    assert_eq!(clean_one(&directory)?.as_deref(), Some(lab.as_ref()));
    assert!(stray.ended()?.is_some(), "a program that someone started in the lab still runs");
    std::fs::remove_file(&log)?;
    require_gone(&directory)
}

/// Returns the lab's directory, where the daemon's config file lies.
fn lab_directory(printed: &str) -> PathBuf {
    let config =
        printed.lines().find_map(|line| line.split_once("--config ")).expect("the daemon's command line").1;
    Path::new(config).parent().expect("the config file lies in the lab's directory").to_owned()
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

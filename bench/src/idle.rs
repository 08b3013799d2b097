use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, value_parser};
use control::demo::wait;
use serde::Serialize;

use crate::report::{Findings, Sheet};
use crate::system::{Gateway, Setup, System};
use crate::topology::{Cores, Topology};

/// Lets what the start set in motion come to rest.
const SETTLE: Duration = Duration::from_secs(2);

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How long to look
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// Processor time of the daemon without traffic.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) seconds: u64,
    pub(crate) xdp_mode: &'static str,
    /// Of one core, all threads together.
    pub(crate) total_percent: f64,
    pub(crate) threads: Vec<Thread>,
}

/// One thread of the daemon.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Thread {
    pub(crate) name: String,
    /// Of one core.
    pub(crate) percent: f64,
}

/// Measures an idle daemon with one worker.
pub(crate) fn measure(options: &Options, cores: Cores, setup: &Setup) -> Result<Results> {
    let seconds = options.seconds;
    let topology = Topology::build(cores, setup.flows)?;
    let gateway = System::Spillway.start(&topology, setup)?;
    let Gateway::Spillway(daemon) = &gateway else { bail!("only the daemon has a process to look at") };
    wait::pause(SETTLE)?;
    eprintln!("spillway is idle for {seconds} s");
    let start = Instant::now();
    let before = read_threads(daemon.pid())?;
    wait::pause(Duration::from_secs(seconds))?;
    let after = read_threads(daemon.pid())?;
    let threads = compare(&before, &after, start.elapsed());
    Ok(Results {
        seconds,
        xdp_mode: topology.xdp_mode()?,
        total_percent: threads.iter().map(|thread| thread.percent).sum(),
        threads,
    })
}

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        self.xdp_mode
    }

    fn sheets(&self) -> Vec<Sheet> {
        let row = |name: &str, percent: f64| vec![name.to_owned(), format!("{percent:.3}")];
        let threads = self.threads.iter().map(|thread| row(&thread.name, thread.percent));
        vec![Sheet {
            title: "Idle daemon".to_owned(),
            header: ["thread", "% of one core"].map(str::to_owned).to_vec(),
            rows: [row("all", self.total_percent)].into_iter().chain(threads).collect(),
            charts: Vec::new(),
            notes: vec![format!("No traffic for {} s.", self.seconds)],
        }]
    }
}

/// Name and processor time of each thread, by thread id.
type Threads = BTreeMap<u32, (String, Duration)>;

fn read_threads(pid: u32) -> Result<Threads> {
    let directory = format!("/proc/{pid}/task");
    let mut threads = Threads::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("{directory}: the daemon is gone"))? {
        let entry = entry?;
        let id = entry.file_name().to_string_lossy().parse()?;
        // A thread may end between the listing and the look.
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else { continue };
        let Ok(times) = fs::read_to_string(entry.path().join("schedstat")) else { continue };
        threads.insert(id, (name.trim().to_owned(), parse_run_time(&times)?));
    }
    Ok(threads)
}

/// Reads the first field of a schedstat file: nanoseconds on a processor.
fn parse_run_time(schedstat: &str) -> Result<Duration> {
    let field = schedstat
        .split_whitespace()
        .next()
        .context("schedstat is empty; the kernel needs CONFIG_SCHED_INFO")?;
    Ok(Duration::from_nanos(
        field.parse().with_context(|| format!("schedstat says {field:?}; a number is wanted"))?,
    ))
}

fn compare(before: &Threads, after: &Threads, elapsed: Duration) -> Vec<Thread> {
    let mut threads: Vec<Thread> = after
        .iter()
        .map(|(id, (name, time))| {
            let start = before.get(id).map_or(Duration::ZERO, |(_, time)| *time);
            let used = time.saturating_sub(start);
            Thread { name: name.clone(), percent: 100.0 * used.as_secs_f64() / elapsed.as_secs_f64() }
        })
        .collect();
    threads.sort_by(|a, b| b.percent.total_cmp(&a.percent).then_with(|| a.name.cmp(&b.name)));
    threads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_counts_only_what_it_used_meanwhile() {
        let times = |worker: u64| (String::from("worker"), Duration::from_millis(worker));
        let before = Threads::from([(1, times(1000))]);
        let after = Threads::from([(1, times(1020)), (2, times(50))]);
        let percents: Vec<f64> = compare(&before, &after, Duration::from_secs(1))
            .iter()
            .map(|thread| thread.percent.round())
            .collect();
        assert_eq!(percents, [5.0, 2.0]);
    }

    #[test]
    fn own_threads_are_seen() {
        assert!(!read_threads(std::process::id()).unwrap().is_empty());
    }

    #[test]
    fn a_schedstat_without_a_number_is_refused() {
        assert_eq!(parse_run_time("678009 47071 2\n").unwrap(), Duration::from_nanos(678_009));
        assert!(parse_run_time("").is_err());
        assert!(parse_run_time("x 1 2").is_err());
    }
}

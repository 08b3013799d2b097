use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, value_parser};
use conntrack::{Conntrack, SharedBook, WorkerSlot};
use control::demo::wait;
use serde::Serialize;

use crate::flows::Flows;
use crate::report::{Axis, Chart, Findings, Series, Sheet};
use crate::sessions::{self, Slab};
use crate::system::{Daemon, Gateway, Setup, System, Wishes};
use crate::topology::{Cores, Topology};
use crate::traffic::{Kind, Plan, Rate, Receiving, Traffic};

/// Pods that the flows come from; each is an entry of the table beside its sessions.
const PODS: u32 = 4096;
/// A daemon with next to no sessions: what it takes is not the table's.
const SMALLEST: u32 = 1024;
/// Slowest making of sessions that is waited for.
const LEAST_A_SECOND: u64 = 20_000;
const UDP_TIMEOUTS: [&str; 2] = ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"];

/// Memory of the daemon by number of sessions, beside the kernel's
///
/// Example: spillway-bench memory --sessions 65536 --sessions 1032192
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Number of UDP sessions; repeat it for several
    #[arg(long, num_args = 1.., default_values_t = [1024, 65_536, 1_032_192, 4_128_768],
          value_parser = value_parser!(u32).range(1..=i64::from(Flows::MAXIMUM)))]
    sessions: Vec<u32>,
    /// Makes 1,024 and 65,536 sessions only
    #[arg(long, conflicts_with = "sessions")]
    short: bool,
}

/// Memory at each number of sessions.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) xdp_mode: &'static str,
    /// Resident size of a daemon whose table holds 1,024 entries.
    pub(crate) smallest_resident: u64,
    pub(crate) rows: Vec<Row>,
}

/// Memory at one number of sessions, in bytes.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) sessions: u32,
    /// Entries of the table: sessions, and one for each pod.
    pub(crate) capacity: u32,
    /// What the table says that it takes.
    pub(crate) table: u64,
    pub(crate) empty: Resident,
    pub(crate) full: Resident,
    /// Sessions that the daemon held in the end.
    pub(crate) held: u64,
    pub(crate) kernel: KernelMemory,
}

/// What a process has in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Resident {
    pub(crate) bytes: u64,
    /// Of these, in transparent huge pages.
    pub(crate) in_huge_pages: u64,
    /// Reserved huge pages, which do not count as resident.
    pub(crate) hugetlb: u64,
}

/// What the same sessions take in the kernel.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct KernelMemory {
    pub(crate) held: u64,
    /// Pages of the slab of sessions.
    pub(crate) slab: u64,
    /// All that the kernel cannot give back, before and after: sessions, their extensions and whatever else changed.
    pub(crate) unreclaimable: u64,
    /// The hash table.
    pub(crate) buckets: u64,
}

impl Row {
    /// Bytes that a session takes, without what a daemon takes that has none.
    fn resident_a_session(&self, smallest: u64) -> f64 {
        share(self.full.bytes.saturating_sub(smallest), u64::from(self.sessions))
    }

    fn kernel_a_session(&self) -> f64 {
        share(self.kernel.unreclaimable.max(self.kernel.slab) + self.kernel.buckets, self.kernel.held)
    }
}

/// Fills a daemon, and then the kernel, with each number of sessions.
pub(crate) fn measure(options: &Options, cores: Cores, setup: &Setup) -> Result<Results> {
    let numbers = if options.short { &[1024, 65_536] } else { options.sessions.as_slice() };
    let mut xdp_mode = "none";
    let small = Wishes { capacity: Some(SMALLEST), ..Wishes::default() };
    let topology = Topology::build(cores, Flows::new(1))?;
    let daemon = Daemon::start_with(&topology, setup, &small)?;
    let smallest_resident = Resident::read(daemon.pid())?.bytes;
    drop(daemon);
    let mut rows = Vec::new();
    for &sessions in numbers {
        let setup = Setup { flows: Flows::new(sessions), ..setup.clone() };
        eprintln!("{sessions} sessions: spillway");
        // A tenant alone gets 98.8 % of the entries.
        let entries = sessions + sessions.min(PODS);
        let capacity = entries + entries / 64 + 1;
        let topology = Topology::build(cores, setup.flows)?;
        let wishes = Wishes { capacity: Some(capacity), ..Wishes::default() };
        let daemon = Daemon::start_with(&topology, &setup, &wishes)?;
        let (pid, empty) = (daemon.pid(), Resident::read(daemon.pid())?);
        let gateway = Gateway::Spillway(daemon);
        let held = fill(&topology, &gateway, setup.flows)?;
        let full = Resident::read(pid)?;
        xdp_mode = topology.xdp_mode()?;
        drop((gateway, topology));
        eprintln!("{sessions} sessions: kernel");
        let kernel = KernelMemory::measure(cores, &setup)?;
        rows.push(Row { sessions, capacity, table: table_bytes(capacity), empty, full, held, kernel });
    }
    Ok(Results { xdp_mode, smallest_resident, rows })
}

/// Sends until the gateway holds a session for each flow, and returns how many it holds.
fn fill(topology: &Topology, gateway: &Gateway, flows: Flows) -> Result<u64> {
    let wanted = u64::from(flows.count());
    let mut traffic = Traffic::start(topology, flows, Kind::Datagrams, Receiving::Polled)?;
    traffic.follow(Plan { rate: Rate::Unbounded, ..Plan::default() })?;
    let limit = Duration::from_secs(30 + wanted / LEAST_A_SECOND);
    let held = wait::until(&format!("{wanted} sessions are made"), limit, || {
        wait::pause(Duration::from_millis(100))?;
        let held = sessions::count(gateway, topology)?;
        Ok((held >= wanted).then_some(held))
    })?;
    traffic.rest()?;
    Ok(held)
}

impl KernelMemory {
    fn measure(cores: Cores, setup: &Setup) -> Result<Self> {
        sessions::wait_until_freed()?;
        let topology = Topology::build(cores, setup.flows)?;
        let gateway = System::KernelIptables.start(&topology, setup)?;
        for timeout in UDP_TIMEOUTS {
            topology.gateway.write(&format!("/proc/sys/net/netfilter/{timeout}"), "3600")?;
        }
        let (slab, unreclaimable) = (Slab::of_conntrack()?, unreclaimable()?);
        let held = fill(&topology, &gateway, setup.flows)?;
        let (full_slab, full_unreclaimable) = (Slab::of_conntrack()?, self::unreclaimable()?);
        let buckets: u64 =
            fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_buckets")?.trim().parse()?;
        Ok(Self {
            held,
            slab: full_slab.bytes.saturating_sub(slab.bytes),
            unreclaimable: full_unreclaimable.saturating_sub(unreclaimable),
            buckets: buckets * 8,
        })
    }
}

fn unreclaimable() -> Result<u64> {
    kibibytes(&fs::read_to_string("/proc/meminfo")?, "SUnreclaim")
}

impl Resident {
    fn read(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("{path}: the daemon is gone"))
        };
        let (status, rollup) = (read("status")?, read("smaps_rollup")?);
        Ok(Self {
            bytes: kibibytes(&status, "VmRSS")?,
            in_huge_pages: kibibytes(&rollup, "AnonHugePages")?,
            hugetlb: kibibytes(&status, "HugetlbPages")?,
        })
    }
}

/// Returns a field of a file under /proc that is in kB, in bytes.
fn kibibytes(text: &str, name: &str) -> Result<u64> {
    let field = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let field = field.with_context(|| format!("the kernel does not tell {name}"))?;
    let number = field.trim().trim_end_matches("kB").trim();
    Ok(number.parse::<u64>().with_context(|| format!("{name} is {field:?}"))? * 1024)
}

/// Returns what a table with so many entries says that it takes.
fn table_bytes(capacity: u32) -> u64 {
    let slot = WorkerSlot { worker: 0, workers: 1 };
    let shared = SharedBook::default().next(
        std::iter::empty(),
        std::iter::empty(),
        conntrack::Epoch(1),
        conntrack::Epoch(0),
    );
    let table = Conntrack::new(capacity, slot, Arc::new(shared), [0; 32]);
    u64::try_from(table.memory_bytes()).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "no machine has 2^52 bytes")]
fn share(bytes: u64, parts: u64) -> f64 {
    bytes as f64 / parts.max(1) as f64
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", share(bytes, 1 << 20))
}

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        self.xdp_mode
    }

    fn sheets(&self) -> Vec<Sheet> {
        let header = [
            "sessions",
            "spillway ÷ kernel",
            "spillway, bytes a session",
            "table alone",
            "kernel, bytes a session",
            "slab alone",
            "daemon at start, MiB",
            "with sessions, MiB",
            "of it in huge pages, MiB",
        ];
        let rows = self.rows.iter().map(|row| {
            let (ours, kernels) = (row.resident_a_session(self.smallest_resident), row.kernel_a_session());
            vec![
                row.sessions.to_string(),
                format!("{:.2}", ours / kernels),
                format!("{ours:.1}"),
                format!("{:.1}", share(row.table, u64::from(row.sessions))),
                format!("{kernels:.1}"),
                format!("{:.1}", share(row.kernel.slab, row.kernel.held)),
                mebibytes(row.empty.bytes),
                mebibytes(row.full.bytes),
                mebibytes(row.full.in_huge_pages + row.full.hugetlb),
            ]
        });
        let notes = vec![
            format!(
                "Spillway: resident size with the sessions, less the {} MiB of a daemon with {SMALLEST} entries, by session; \
                 entries for {PODS} pods included.",
                mebibytes(self.smallest_resident)
            ),
            "Table alone: what the session table says that it takes, index included.".to_owned(),
            "Kernel: growth of the unreclaimable slabs (sessions and their extensions) and the hash table that was sized for \
             these flows; the first is of the whole machine, so that few sessions drown in what else changes."
                .to_owned(),
            "UDP sessions, made by traffic through the gateway.".to_owned(),
        ];
        let point = |row: &Row, bytes: f64| (f64::from(row.sessions), bytes);
        let ours =
            self.rows.iter().map(|row| point(row, share(row.full.bytes, u64::from(row.sessions)))).collect();
        let kernels = self.rows.iter().map(|row| point(row, row.kernel_a_session())).collect();
        let axis = |label: &str| Axis { label: label.to_owned(), is_logarithmic: true };
        let chart = Chart {
            title: "Memory by session".to_owned(),
            x: axis("sessions"),
            y: axis("bytes a session, all of the daemon included"),
            series: Series::Lines(vec![("spillway".to_owned(), ours), ("kernel".to_owned(), kernels)]),
        };
        vec![Sheet {
            title: "Memory".to_owned(),
            header: header.map(str::to_owned).to_vec(),
            rows: rows.collect(),
            charts: vec![chart],
            notes,
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_bytes() {
        let text = "VmHWM:\t 9 kB\nVmRSS:\t   12345 kB\nHugetlbPages:\t       0 kB\n";
        assert_eq!(kibibytes(text, "VmRSS").unwrap(), 12_345 * 1024);
        assert_eq!(kibibytes(text, "HugetlbPages").unwrap(), 0);
        assert!(kibibytes(text, "Vm").is_err() && kibibytes("VmRSS: x kB", "VmRSS").is_err());
    }

    #[test]
    fn this_process_is_in_memory() {
        assert!(Resident::read(std::process::id()).unwrap().bytes > 0);
        assert!(Resident::read(0).is_err());
    }

    #[test]
    fn a_session_counts_without_what_an_empty_daemon_takes() {
        let resident = |bytes| Resident { bytes, in_huge_pages: 0, hugetlb: 0 };
        let kernel = KernelMemory { held: 100, slab: 25_600, unreclaimable: 30_000, buckets: 800 };
        let row = Row {
            sessions: 100,
            capacity: 200,
            table: table_bytes(200),
            empty: resident(1000),
            full: resident(11_000),
            held: 100,
            kernel,
        };
        assert!((row.resident_a_session(1000) - 100.0).abs() < 1e-9);
        assert!((row.kernel_a_session() - 308.0).abs() < 1e-9);
        assert!(row.table >= 200 * 64);
    }
}

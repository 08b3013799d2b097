use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, value_parser};
use conntrack::{
    Admission, Conntrack, Direction, Epoch, FiveTuple, Policy, Protocol, Refusal, Revision, SharedBook,
    TenantId, Tick, Timeouts, WorkerSlot, owner_of_inside,
};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::report::{Axis, Chart, Findings, Series, Sheet};
use crate::statistics::Summary;

const EGRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 113);
const POD: Ipv4Addr = Ipv4Addr::new(10, 132, 0, 5);
const TENANT: TenantId = TenantId(0);
/// Outside ports that stand for inside ports from 1024 on.
const PORTS: u32 = 64_512;
/// Sessions of other pods and destinations that the table holds besides.
const OTHERS: u32 = 250_000;
const REFUSALS: u32 = 1000;

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often each number of workers has its turn
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Workers that share the ports; repeat it for several
    #[arg(long, num_args = 1.., default_values_t = [1, 2, 8], value_parser = value_parser!(u16).range(1..=64))]
    workers: Vec<u16>,
}

/// What one pod's sessions to one destination cost, by number of workers.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) rounds: u32,
    pub(crate) ports: u32,
    pub(crate) rows: Vec<Row>,
}

/// Costs in microseconds, over all rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) workers: u16,
    /// Of all sessions of a round.
    pub(crate) p50: Summary,
    pub(crate) p99: Summary,
    pub(crate) slowest: Summary,
    /// Of the session that took the last port.
    pub(crate) last: Summary,
    /// Of a session for which no port was left, the median of many.
    pub(crate) refused: Summary,
}

#[derive(Debug)]
struct Round {
    p50: f64,
    p99: f64,
    slowest: f64,
    last: f64,
    refused: f64,
}

/// Makes sessions of one pod to one destination until no port is left, at the worker that owns the pod.
pub(crate) fn measure(options: &Options) -> Result<Results> {
    let Options { rounds, workers } = options;
    let mut rows = Vec::new();
    for workers in workers {
        let rounds = (0..*rounds).map(|round| run(*workers, round)).collect::<Result<Vec<_>>>()?;
        let sum_up = |value: fn(&Round) -> f64| Summary::of(&rounds.iter().map(value).collect::<Vec<_>>());
        rows.push(Row {
            workers: *workers,
            p50: sum_up(|round| round.p50),
            p99: sum_up(|round| round.p99),
            slowest: sum_up(|round| round.slowest),
            last: sum_up(|round| round.last),
            refused: sum_up(|round| round.refused),
        });
    }
    Ok(Results { rounds: *rounds, ports: PORTS, rows })
}

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        "not used"
    }

    fn sheets(&self) -> Vec<Sheet> {
        let header = ["workers", "p50, µs", "p99, µs", "slowest, µs", "last port, µs", "refused, µs"];
        let rows = self.rows.iter().map(|row| {
            let costs = [row.p50, row.p99, row.slowest, row.last, row.refused].map(|cost| cost.show());
            [row.workers.to_string()].into_iter().chain(costs).collect()
        });
        let axis = |label: &str| Axis { label: label.to_owned(), is_logarithmic: false };
        let bars = self.rows.iter().map(|row| (format!("workers: {}", row.workers), vec![row.p50.median]));
        let chart = Chart {
            title: "A session until the last port is taken, p50".to_owned(),
            x: axis("workers"),
            y: axis("µs"),
            series: Series::Bars { parts: vec!["p50".to_owned()], bars: bars.collect() },
        };
        vec![Sheet {
            title: "The last outside port".to_owned(),
            header: header.map(str::to_owned).to_vec(),
            rows: rows.collect(),
            charts: vec![chart],
            notes: vec![format!(
                "One pod makes {} sessions to one destination through one egress address; median (minimum to maximum) of \
                 {} rounds.",
                self.ports, self.rounds
            )],
        }]
    }
}

fn run(workers: u16, round: u32) -> Result<Round> {
    let shared = Arc::new(SharedBook::default().next(
        [EGRESS].into_iter(),
        [(TENANT, POD)].into_iter(),
        Epoch(1),
        Epoch(0),
    ));
    let worker = owner_of_inside(TENANT, POD, workers);
    let slot = WorkerSlot { worker, workers };
    let mut table = Conntrack::new(2 * (PORTS + OTHERS), slot, shared, [round.to_le_bytes()[0]; 32]);
    for other in 0..OTHERS {
        let remote = Ipv4Addr::from_bits(0xc633_6400 + other / 10);
        let port = u16::try_from(2000 + other % 10)?;
        admit(&mut table, tuple(Ipv4Addr::new(10, 132, 1, 7), port, remote))?;
    }
    let mut costs = Histogram::<u64>::new(3)?;
    let mut last = Duration::ZERO;
    let server = Ipv4Addr::new(192, 168, 55, 13);
    for port in 1024..=u16::MAX {
        let tuple = tuple(POD, port, server);
        let began = Instant::now();
        admit(&mut table, tuple)?;
        last = began.elapsed();
        costs.record(nanoseconds(last))?;
    }
    let mut refusals = Histogram::<u64>::new(3)?;
    for attempt in 0..REFUSALS {
        let pod = Ipv4Addr::from_bits(0x0a85_0000 + attempt);
        let began = Instant::now();
        match admit(&mut table, tuple(pod, 4000, server)) {
            Err(Refusal::NoPort | Refusal::PortElsewhere { .. }) => {}
            other => bail!("a port was found where none is: {other:?}"),
        }
        refusals.record(nanoseconds(began.elapsed()))?;
    }
    let micros = |histogram: &Histogram<u64>, quantile| as_micros(histogram.value_at_quantile(quantile));
    Ok(Round {
        p50: micros(&costs, 0.5),
        p99: micros(&costs, 0.99),
        slowest: as_micros(costs.max()),
        last: as_micros(nanoseconds(last)),
        refused: micros(&refusals, 0.5),
    })
}

fn admit(table: &mut Conntrack, tuple: FiveTuple) -> Result<(), Refusal> {
    let admission = Admission {
        tenant: TENANT,
        opened_by: Direction::Outbound,
        tuple,
        egress_addresses: &[EGRESS],
        policy: &Policy::default(),
        timeouts: &Timeouts::default(),
        loan: None,
        revision: Revision { epoch: Epoch(1), next_hops: [0, 0] },
    };
    table.admit(&admission, Tick::default()).map(drop)
}

fn tuple(pod: Ipv4Addr, port: u16, remote: Ipv4Addr) -> FiveTuple {
    FiveTuple {
        source: pod,
        destination: remote,
        source_port: port,
        destination_port: 443,
        protocol: Protocol::Tcp,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn as_micros(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64() * 1e6
}

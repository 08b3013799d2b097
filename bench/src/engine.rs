use anyhow::Result;
use clap::{Args, value_parser};
use serde::Serialize;
use spillway_bench_engine::course::{self, FLOOR_SESSIONS, PACKETS_PER_SESSION, Plan, Row as Course};
use spillway_bench_engine::stages::StageTimes;

use crate::report::{Axis, Chart, Findings, Series, Sheet};
use crate::statistics::Summary;

/// Numbers of sessions that fill the ports of 1, 4, 16 and 64 destinations, and a few.
const SESSIONS: [u32; 5] = [1024, 64_512, 258_048, 1_032_192, 4_128_768];
const MOST_SESSIONS: i64 = 16_515_072;

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Sessions in the table; repeat it for several
    #[arg(long, num_args = 1.., default_values_t = SESSIONS,
          value_parser = value_parser!(u32).range(2..=MOST_SESSIONS))]
    sessions: Vec<u32>,
    /// How often each part has its turn
    #[arg(long, default_value_t = 9, value_parser = value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Packets of each turn
    #[arg(long, default_value_t = 262_144, value_parser = value_parser!(u32).range(1024..=16_777_216))]
    packets: u32,
    /// Measures 1,024 and 1,032,192 sessions in 5 rounds: about 20 s
    #[arg(long, conflicts_with_all = ["sessions", "rounds"])]
    short: bool,
}

/// What packets cost in the engine, by number of sessions.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) rounds: u32,
    pub(crate) packets: u32,
    pub(crate) rows: Vec<Row>,
}

/// Nanoseconds, and ratios within a round.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) sessions: u32,
    pub(crate) hit_to_floor: Summary,
    pub(crate) rival_to_hit: Summary,
    pub(crate) miss_to_hit: f64,
    /// The end of a session, shared out over its packets, as a part of a hit.
    pub(crate) expiry_share: f64,
    pub(crate) floor: Summary,
    pub(crate) hit: Summary,
    pub(crate) reply: Summary,
    pub(crate) mix: Summary,
    pub(crate) rival: Summary,
    pub(crate) miss: Summary,
    pub(crate) expiry: Summary,
    pub(crate) churn: Summary,
    pub(crate) handed_over: Summary,
    pub(crate) parse: Summary,
    pub(crate) look_ahead: Summary,
    pub(crate) pass: Summary,
    pub(crate) bytes_a_session: f64,
}

/// Drives the pipeline on wires in memory.
pub(crate) fn measure(options: &Options, seed: u64) -> Result<Results> {
    let (sessions, rounds) =
        if options.short { (vec![1024, 1_032_192], 5) } else { (options.sessions.clone(), options.rounds) };
    let plan = Plan { sessions, rounds, packets: options.packets as usize, seed };
    let rows = course::run(&plan, |next| eprintln!("{next}"))?;
    Ok(Results { rounds, packets: options.packets, rows: rows.iter().map(Row::of).collect() })
}

impl Row {
    fn of(course: &Course) -> Self {
        let ratio = |above: &[f64], below: &[f64]| {
            Summary::of(&above.iter().zip(below).map(|(above, below)| above / below).collect::<Vec<_>>())
        };
        let stage =
            |time: fn(&StageTimes) -> f64| Summary::of(&course.stages.iter().map(time).collect::<Vec<_>>());
        let [hit, miss, expiry] = [&course.hit, &course.miss, &course.expiry].map(|times| Summary::of(times));
        #[expect(clippy::cast_precision_loss, reason = "tables are smaller than 2^52 bytes")]
        let bytes_a_session = course.table_bytes as f64 / f64::from(course.sessions);
        Self {
            sessions: course.sessions,
            hit_to_floor: ratio(&course.hit, &course.floor),
            rival_to_hit: ratio(&course.rival, &course.hit),
            miss_to_hit: miss.median / hit.median,
            expiry_share: expiry.median / f64::from(PACKETS_PER_SESSION) / hit.median,
            floor: Summary::of(&course.floor),
            hit,
            reply: Summary::of(&course.reply),
            mix: Summary::of(&course.mix),
            rival: Summary::of(&course.rival),
            miss,
            expiry,
            churn: Summary::of(&course.churn),
            handed_over: Summary::of(&course.handed_over),
            parse: stage(|times| times.parse),
            look_ahead: stage(|times| times.look_ahead),
            pass: stage(|times| times.pass),
            bytes_a_session,
        }
    }

    /// What a hit takes besides its stages: rings, counters and the rest of a turn.
    fn rest(&self) -> f64 {
        (self.hit.median - self.look_ahead.median - self.pass.median).max(0.0)
    }
}

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        "not used"
    }

    fn sheets(&self) -> Vec<Sheet> {
        vec![self.ratios(), self.costs(), self.stages()]
    }
}

impl Results {
    fn ratios(&self) -> Sheet {
        let header = [
            "sessions",
            "hit ÷ floor",
            "hashbrown ÷ hit",
            "new ÷ hit",
            "expiry, % of a hit",
            "hit, Mpps",
            "reply, Mpps",
            "IMIX mix, Mpps",
            "new sessions, M/s",
        ];
        let rows = self.rows.iter().map(|row| {
            let rates =
                [row.hit, row.reply, row.mix, row.miss].map(|time| format!("{:.2}", 1e3 / time.median));
            let ratios = [
                row.hit_to_floor.show(),
                row.rival_to_hit.show(),
                format!("{:.1}", row.miss_to_hit),
                format!("{:.0}", 100.0 * row.expiry_share),
            ];
            [row.sessions.to_string()].into_iter().chain(ratios).chain(rates).collect()
        });
        let line = |name: &str, time: fn(&Row) -> f64| {
            let points = self.rows.iter().map(|row| (f64::from(row.sessions), 1e3 / time(row)));
            (name.to_owned(), points.collect())
        };
        let chart = Chart {
            title: "Throughput of one worker over sessions".to_owned(),
            x: Axis { label: "sessions".to_owned(), is_logarithmic: true },
            y: Axis { label: "Mpps".to_owned(), is_logarithmic: false },
            series: Series::Lines(vec![
                line("hit", |row| row.hit.median),
                line("reply", |row| row.reply.median),
                line("IMIX mix", |row| row.mix.median),
                line("hashbrown + ahash", |row| row.rival.median),
                line("new session", |row| row.miss.median),
            ]),
        };
        let notes = vec![
            format!(
                "Floor: the same frames, rings, parser, checksums and MACs with one of {FLOOR_SESSIONS} sessions known by \
                 position, in a bare loop without a worker's turn around it."
            ),
            format!("Expiry: the end of a session shared out over {PACKETS_PER_SESSION} packets of it."),
            format!(
                "UDP, random order, batches of 64 on wires in memory; writing the frames is not timed. {} rounds of {} packets, \
                 everything in turn; median (minimum to maximum).",
                self.rounds, self.packets
            ),
        ];
        Sheet {
            title: "Engine: one worker without the kernel".to_owned(),
            header: header.map(str::to_owned).to_vec(),
            rows: rows.collect(),
            charts: vec![chart],
            notes,
        }
    }

    fn costs(&self) -> Sheet {
        let header =
            ["sessions", "floor", "hit", "hashbrown", "new", "expiry", "churn", "handed over", "bytes"];
        let rows = self.rows.iter().map(|row| {
            let times = [row.floor, row.hit, row.rival, row.miss, row.expiry, row.churn, row.handed_over]
                .map(|time| time.show());
            let bytes = format!("{:.0}", row.bytes_a_session);
            [row.sessions.to_string()].into_iter().chain(times).chain([bytes]).collect()
        });
        Sheet {
            title: "Engine: ns a packet, or a session".to_owned(),
            header: header.map(str::to_owned).to_vec(),
            rows: rows.collect(),
            charts: Vec::new(),
            notes: vec![
                "Churn: a hit while a snapshot is adopted every 8,192 packets, so that sessions are checked anew.".to_owned(),
                "Handed over: every second packet comes to a worker that does not own its session; both workers' time."
                    .to_owned(),
                "Bytes: of the table, by session; it has room for an eighth more, and for pods.".to_owned(),
            ],
        }
    }

    fn stages(&self) -> Sheet {
        let header =
            ["sessions", "parse, ns", "look ahead, ns", "track and rewrite, ns", "rings and turn, ns"];
        let rows = self.rows.iter().map(|row| {
            let times = [row.parse, row.look_ahead, row.pass].map(|time| time.show());
            [row.sessions.to_string()]
                .into_iter()
                .chain(times)
                .chain([format!("{:.2}", row.rest())])
                .collect()
        });
        let parts = ["look ahead", "track and rewrite", "rings and turn"].map(str::to_owned).to_vec();
        let bars = self
            .rows
            .iter()
            .map(|row| (row.sessions.to_string(), vec![row.look_ahead.median, row.pass.median, row.rest()]));
        Sheet {
            title: "Engine: stages of a hit".to_owned(),
            header: header.map(str::to_owned).to_vec(),
            rows: rows.collect(),
            charts: vec![Chart {
                title: "Cost by stage".to_owned(),
                x: Axis { label: "sessions".to_owned(), is_logarithmic: false },
                y: Axis { label: "ns a packet".to_owned(), is_logarithmic: false },
                series: Series::Bars { parts, bars: bars.collect() },
            }],
            notes: vec![
                "Look ahead: parse, tenant, key, hash, index and entry, 32 packets side by side; parse alone is timed \
                 besides. Rings and turn: what is left of a hit."
                    .to_owned(),
            ],
        }
    }
}

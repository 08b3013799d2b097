use super::{Load, Results, Row};
use crate::report::{Axis, Chart, Findings, Series, Sheet};
use crate::statistics::Summary;
use crate::system::System;

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        self.xdp_mode
    }

    fn sheets(&self) -> Vec<Sheet> {
        let Some(first) = self.found.first().map(|found| found.system) else { return Vec::new() };
        let same = |row: &&Row| matches!(row.load, Load::Idle | Load::Common(_));
        let own = |row: &&Row| matches!(row.load, Load::Own(_));
        let mut notes: Vec<String> = self
            .found
            .iter()
            .map(|found| format!("{} forwards {} Mpps at overload.", found.system.name(), found.mpps.show()))
            .collect();
        notes.push(format!(
            "Round trips of UDP datagrams of 60 bytes, {} a second for {} s, among {} flows; median (minimum to maximum) of {} \
             rounds, systems in turn.",
            self.probes_a_second, self.seconds, self.flows, self.rounds
        ));
        notes.push(
            "Both ends are XDP programs and take frames as soon as they are woken; sent 16 at a time, a probe may have waited \
             some microseconds for its batch."
                .to_owned(),
        );
        notes.push(format!(
            "Core {}: sender. Core {}: gateway. Core {}: server.",
            self.cores.generator, self.cores.gateway, self.cores.sink
        ));
        vec![
            Sheet {
                title: "Round trips at the same load".to_owned(),
                header: header(first),
                rows: self.rows.iter().filter(same).map(|row| cells(row, first)).collect(),
                charts: vec![self.chart(first)],
                notes: Vec::new(),
            },
            Sheet {
                title: "Round trips at a share of each gateway's own rate".to_owned(),
                header: header(first),
                rows: self.rows.iter().filter(own).map(|row| cells(row, first)).collect(),
                charts: Vec::new(),
                notes,
            },
        ]
    }
}

impl Results {
    /// Draws percentiles over the load that was offered.
    fn chart(&self, first: System) -> Chart {
        type Value = fn(&Row) -> Summary;
        let percentiles: [(&str, Value); 2] = [("p50", |row| row.p50), ("p99", |row| row.p99)];
        let lines = self.found.iter().flat_map(|found| {
            percentiles.map(|(name, value)| {
                let rows = self.rows.iter().filter(|row| row.system == found.system);
                let same = rows.filter(|row| matches!(row.load, Load::Idle | Load::Common(_)));
                let points = same.map(|row| (row.offered_mpps.median, value(row).median));
                (format!("{}, {name}", found.system.name()), points.collect())
            })
        });
        Chart {
            title: format!("Round trips up to 90 % of what {} forwards", first.name()),
            x: Axis { label: "load, Mpps".to_owned(), is_logarithmic: false },
            y: Axis { label: "round trip, µs".to_owned(), is_logarithmic: true },
            series: Series::Lines(lines.collect()),
        }
    }
}

fn header(first: System) -> Vec<String> {
    let first = first.name();
    let header = [
        "load".to_owned(),
        format!("p50 ÷ {first}"),
        format!("p99 ÷ {first}"),
        "p50, µs".to_owned(),
        "p99, µs".to_owned(),
        "p99.9, µs".to_owned(),
        "max, µs".to_owned(),
        "offered, Mpps".to_owned(),
        "lost probes, %".to_owned(),
    ];
    header.to_vec()
}

fn cells(row: &Row, first: System) -> Vec<String> {
    let short = |summary: Summary| {
        format!("{:.0} ({:.0} to {:.0})", summary.median, summary.minimum, summary.maximum)
    };
    vec![
        format!("{}, {}", row.load.show(first), row.system.name()),
        row.p50_ratio.show(),
        row.p99_ratio.show(),
        short(row.p50),
        short(row.p99),
        short(row.p99_9),
        short(row.maximum),
        format!("{:.3}", row.offered_mpps.median),
        format!("{:.2}", row.lost_percent.median),
    ]
}

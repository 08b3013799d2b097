use super::Results;
use super::results::{Compared, REFERENCE_FLOWS, Row, SystemResult};
use crate::frames::Frames;
use crate::report::{Axis, Chart, Findings, Series, Sheet};
use crate::statistics::{Summary, group_digits};
use crate::system::System;

/// One of the two rates of a system, and what it is compared with.
type Figure = fn(&SystemResult) -> Option<(Summary, Compared)>;

const OVERLOAD: Figure = |result| Some((result.forwarded_mpps, result.overload));
const NDR: Figure = |result| Some((result.ndr_mpps?, result.ndr?));

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        self.xdp_mode
    }

    fn sheets(&self) -> Vec<Sheet> {
        let mut sheets = Vec::new();
        for frames in [Frames::Small, Frames::Imix] {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.frames == frames).collect();
            let name = frames.name();
            sheets.extend(sheet(&rows, OVERLOAD, &format!("Throughput at overload, {name}")));
            let loss = 100.0 * self.loss;
            let title = format!("Highest rate with at most {loss} % loss, {name}");
            sheets.extend(sheet(&rows, NDR, &title));
        }
        if let Some(last) = sheets.last_mut() {
            last.notes = self.explain();
        }
        sheets
    }
}

impl Results {
    fn explain(&self) -> Vec<String> {
        let mut notes = vec![
            format!(
                "UDP over veth, flows in random order; {} s a measurement or trial; median (minimum to maximum) of {} rounds, \
                 systems in turn.",
                self.seconds, self.rounds
            ),
            "Offered: how much was sent at overload. ÷ own: the same system at 1,024 flows; 1 is no \
             collapse."
                .to_owned(),
            format!(
                "Core {}: generator. Core {}: gateway. Core {}: sink.",
                self.cores.generator, self.cores.gateway, self.cores.sink
            ),
        ];
        if self.rows.iter().any(|row| row.frames == Frames::Imix) {
            let bytes = Frames::Imix.mean_bytes();
            notes.push(format!(
                "IMIX: 64, 570 and 1,518 bytes 7:4:1, {bytes:.0} on average: 1 Mpps is {:.2} Gbit/s.",
                8.0 * bytes / 1e3
            ));
        }
        let systems: Vec<System> =
            self.rows.first().into_iter().flat_map(|row| &row.systems).map(|result| result.system).collect();
        notes.extend(systems.iter().map(|system| format!("{system} {}.", system.placement())));
        notes.extend(self.notes.iter().map(|note| format!("note: {note}")));
        notes
    }
}

/// Shows one rate; nothing when it was not measured.
fn sheet(rows: &[&Row], figure: Figure, title: &str) -> Option<Sheet> {
    let has_figure = |row: &&&Row| row.systems.iter().any(|result| figure(result).is_some());
    let rows: Vec<&Row> = rows.iter().filter(has_figure).copied().collect();
    let first = rows.first()?.systems.first()?.system;
    let to_first = format!("÷ {first}");
    let to_own = format!("÷ own at {}", group_digits(REFERENCE_FLOWS.into()));
    let charts = [
        rate_chart(&rows, figure),
        ratio_chart(&rows, &to_first, |result| {
            figure(result).filter(|_| result.system != first).map(|(_, compared)| compared.to_first)
        }),
        ratio_chart(&rows, &to_own, |result| figure(result)?.1.to_own),
    ];
    Some(Sheet {
        title: title.to_owned(),
        header: ["flows, system", &to_first, &to_own, "Mpps", "offered, Mpps"].map(str::to_owned).to_vec(),
        rows: rows.iter().flat_map(|row| row.systems.iter().filter_map(|r| cells(row, r, figure))).collect(),
        charts: charts.into_iter().flatten().collect(),
        notes: Vec::new(),
    })
}

fn cells(row: &Row, result: &SystemResult, figure: Figure) -> Option<Vec<String>> {
    let (rate, compared) = figure(result)?;
    Some(vec![
        format!("{}, {}", row.name, result.system),
        show(&compared.to_first),
        compared.to_own.as_ref().map_or_else(String::new, show),
        show(&rate),
        format!("{:.2}", result.offered_mpps.median),
    ])
}

/// Writes a figure; where it is nothing, as where no trial went without loss, it is not shown as one.
fn show(figure: &Summary) -> String {
    if figure.maximum > 0.0 { figure.show() } else { "none".to_owned() }
}

/// Draws the rate over the number of flows, where there are several.
fn rate_chart(rows: &[&Row], figure: Figure) -> Option<Chart> {
    let mut rows: Vec<&Row> = rows.iter().filter(|row| !row.one_destination).copied().collect();
    rows.sort_by_key(|row| row.flows);
    let systems = &rows.first().filter(|_| rows.len() > 1)?.systems;
    let line = |(index, result): (usize, &SystemResult)| {
        let point = |row: &&Row| Some((f64::from(row.flows), figure(&row.systems[index])?.0.median));
        (result.system.name().to_owned(), rows.iter().filter_map(point).collect())
    };
    Some(Chart {
        title: "Forwarded, by number of flows".to_owned(),
        x: Axis { label: "flows".to_owned(), is_logarithmic: true },
        y: Axis { label: "Mpps".to_owned(), is_logarithmic: false },
        series: Series::Lines(systems.iter().enumerate().map(line).collect()),
    })
}

/// Draws a ratio of every system that has it in every case; nothing when none has.
fn ratio_chart(
    rows: &[&Row],
    label: &str,
    ratio: impl Fn(&SystemResult) -> Option<Summary>,
) -> Option<Chart> {
    let bars = rows.iter().flat_map(|row| {
        let bar = |result: &SystemResult| {
            Some((format!("{}, {}", row.name, result.system), vec![ratio(result)?.median]))
        };
        row.systems.iter().filter_map(bar)
    });
    let bars: Vec<_> = bars.collect();
    (!bars.is_empty()).then(|| Chart {
        title: format!("Rate {label}"),
        x: Axis { label: "flows, system".to_owned(), is_logarithmic: false },
        y: Axis { label: label.to_owned(), is_logarithmic: false },
        series: Series::Bars { parts: vec![format!("{label}, median")], bars },
    })
}

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::machine::Machine;
use crate::{first_frame, idle, nodes, ports, wire};

/// One measurement and what it was measured on.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// The words of the command line.
    pub(crate) command: Vec<String>,
    #[serde(flatten)]
    pub(crate) results: Results,
}

/// What a subcommand found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Results {
    Wire(wire::Results),
    Idle(idle::Results),
    FirstFrame(first_frame::Results),
    Ports(ports::Results),
    Nodes(nodes::Results),
}

impl Report {
    /// Prints the tables, and writes everything to `file` when there is one.
    pub(crate) fn deliver(&self, file: Option<&Path>) -> Result<()> {
        print!("\n{}", self.show());
        if let Some(file) = file {
            let json = serde_json::to_string_pretty(self)?;
            fs::write(file, json + "\n")
                .with_context(|| format!("--json {}: cannot be written", file.display()))?;
        }
        Ok(())
    }

    fn show(&self) -> String {
        let (xdp_mode, results) = match &self.results {
            Results::Wire(results) => (results.xdp_mode, show_wire(results)),
            Results::Idle(results) => (results.xdp_mode, show_idle(results)),
            Results::FirstFrame(results) => (results.xdp_mode, show_first_frame(results)),
            Results::Ports(results) => ("not used", show_ports(results)),
            Results::Nodes(results) => (results.xdp_mode, show_nodes(results)),
        };
        format!("{}\n{results}", show_machine(&self.machine, xdp_mode, &self.command))
    }
}

fn show_machine(machine: &Machine, xdp_mode: &str, command: &[String]) -> String {
    format!(
        "{} · {} cores · {} MHz · Linux {} · {} · XDP {xdp_mode}\n{} · {} · harness {} · {}\n$ {}\n",
        machine.processor,
        machine.cores,
        machine.mhz,
        machine.kernel,
        machine.driver,
        machine.spillway,
        machine.iptables,
        machine.harness,
        machine.date,
        command.join(" ")
    )
}

fn show_wire(results: &wire::Results) -> String {
    let systems: Vec<_> = results.rows.first().map(|row| &row.systems).into_iter().flatten().collect();
    let Some((first, others)) = systems.split_first() else { return String::new() };
    let ratios = others.iter().map(|other| format!("{} ÷ {}", other.system.name(), first.system.name()));
    let rates = systems.iter().map(|result| format!("{}, Mpps", result.system.name()));
    let header =
        ["flows".to_owned()].into_iter().chain(ratios).chain(rates).chain(["offered, Mpps".to_owned()]);
    let rows = results.rows.iter().map(|row| {
        let ratios = row.systems.iter().skip(1).map(|result| result.ratio.show());
        let rates = row.systems.iter().map(|result| result.forwarded_mpps.show());
        let offered =
            row.systems.iter().map(|result| result.offered_mpps.median).fold(f64::INFINITY, f64::min);
        [row.flows.to_string()]
            .into_iter()
            .chain(ratios)
            .chain(rates)
            .chain([format!("≥ {offered:.2}")])
            .collect()
    });
    let mut text = format!("{}\n\n", table(header, rows));
    text += &format!(
        "UDP, {} bytes, {} s a round, at overload; median (minimum to maximum) of the rounds, systems in turn.\n",
        results.frame_bytes, results.seconds
    );
    let cores = results.cores;
    text += &format!(
        "Core {}: generator. Core {}: gateway. Core {}: sink.\n",
        cores.generator, cores.gateway, cores.sink
    );
    for result in systems {
        text += &format!("{} {}.\n", result.system.name(), result.system.placement());
    }
    for note in &results.notes {
        text += &format!("note: {note}\n");
    }
    text
}

fn show_idle(results: &idle::Results) -> String {
    let threads =
        results.threads.iter().map(|thread| vec![thread.name.clone(), format!("{:.3}", thread.percent)]);
    let total = [vec!["all".to_owned(), format!("{:.3}", results.total_percent)]];
    let header = ["thread", "% of one core"].map(str::to_owned);
    format!("{}\n\nNo traffic for {} s.\n", table(header, total.into_iter().chain(threads)), results.seconds)
}

fn show_first_frame(results: &first_frame::Results) -> String {
    let header = ["path", "p50, µs", "p99, µs", "max, µs", "min, µs", "lost"].map(str::to_owned);
    let rows = results.paths.iter().map(|path| {
        let times = [path.p50_us, path.p99_us, path.maximum_us, path.minimum_us];
        let times = times.into_iter().map(|time| format!("{time:.1}"));
        [path.path.to_owned()].into_iter().chain(times).chain([path.lost.to_string()]).collect()
    });
    format!(
        "{}\n\nRound trip of a UDP datagram, pod to server and back: {} a path, each after {} s of idle, paths in turn.\n\
         Core {}: pod. Core {}: gateway. Core {}: server.\n",
        table(header, rows),
        results.samples,
        results.idle_seconds,
        results.cores.generator,
        results.cores.gateway,
        results.cores.sink
    )
}

fn show_ports(results: &ports::Results) -> String {
    let header =
        ["workers", "p50, µs", "p99, µs", "slowest, µs", "last port, µs", "refused, µs"].map(str::to_owned);
    let rows = results.rows.iter().map(|row| {
        let costs = [row.p50, row.p99, row.slowest, row.last, row.refused].map(|cost| cost.show());
        [row.workers.to_string()].into_iter().chain(costs).collect()
    });
    format!(
        "{}\n\nOne pod makes {} sessions to one destination through one egress address; median (minimum to maximum) of {} \
         rounds.\n",
        table(header, rows),
        results.ports,
        results.rounds
    )
}

fn show_nodes(results: &nodes::Results) -> String {
    let header = ["nodes", "first sync, s", "p50, ms", "p99, ms", "max, ms"].map(str::to_owned);
    let row = [
        results.nodes.to_string(),
        results.first_sync_seconds.show(),
        format!("{:.1}", results.p50_ms),
        format!("{:.1}", results.p99_ms),
        format!("{:.1}", results.maximum_ms),
    ];
    format!(
        "{}\n\nFirst sync: from the daemon's start until the kernel has every node's route; median (minimum to maximum) of \
         {} starts.\nThen one node at a time changes its pod network, {} in all: from the API server's write, which its \
         watches hear of at once, until\nthe kernel tells of the new route.\n",
        table(header, [row.to_vec()]),
        results.rounds,
        results.changes
    )
}

/// Lays out rows whose first cell is a name and whose others are figures.
fn table(header: impl IntoIterator<Item = String>, rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header(header.into_iter().collect::<Vec<_>>());
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

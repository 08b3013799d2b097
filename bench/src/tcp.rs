use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, value_parser};
use control::demo::process::Process;
use control::demo::wait;
use serde::Serialize;
use serde_json::Value;

use crate::namespace::{Namespace, PREFIX};
use crate::report::{Axis, Chart, Findings, Series, Sheet};
use crate::statistics::Summary;
use crate::system::{Setup, System};
use crate::topology::{Cores, POD, SERVER, Topology};

const LISTENS_WITHIN: Duration = Duration::from_secs(10);
/// Beyond the time of the transfer: connecting, and the exchange of results.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// TCP connections at the same time; repeat it for several
    #[arg(long, num_args = 1.., default_values_t = [1, 4], value_parser = value_parser!(u32).range(1..=64))]
    streams: Vec<u32>,
    /// Length of each transfer
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How often each gateway has its turn
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=50))]
    rounds: u32,
}

/// A gateway, and whether the links around it leave the cutting of segments for later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Way {
    system: System,
    offload: bool,
}

/// The kernel takes segments of 64 KiB through in one piece, which an XDP program cannot see. So it comes first.
const WAYS: [Way; 3] = [
    Way { system: System::KernelIptables, offload: true },
    Way { system: System::KernelIptables, offload: false },
    Way { system: System::Spillway, offload: false },
];

/// Bulk transfer from a pod to a server.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    seconds: u64,
    rounds: u32,
    cores: Cores,
    xdp_mode: &'static str,
    iperf3: String,
    rows: Vec<Row>,
}

/// One gateway with so many connections, over all rounds.
#[derive(Debug, Serialize)]
struct Row {
    streams: u32,
    #[serde(flatten)]
    way: Way,
    to_kernel_with_offload: Summary,
    to_kernel: Summary,
    gigabits: Summary,
    samples: Vec<Sample>,
}

/// One transfer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Sample {
    /// What the server received of it, in Gbit/s.
    gigabits: f64,
    retransmits: u64,
}

/// Transfers by every way in turn.
pub(crate) fn measure(options: &Options, cores: Cores, setup: &Setup) -> Result<Results> {
    let mut xdp_mode = "none";
    let mut rows = Vec::new();
    for &streams in &options.streams {
        let mut samples = WAYS.map(|_| Vec::new());
        for round in 1..=options.rounds {
            for (way, samples) in WAYS.iter().zip(&mut samples) {
                let topology = Topology::build(cores, setup.flows)?;
                let _gateway = way.system.start(&topology, setup)?;
                if way.offload {
                    topology.offload_segments()?;
                }
                let sample = transfer(&topology, streams, options.seconds)?;
                let Sample { gigabits, retransmits } = sample;
                eprintln!(
                    "round {round}/{}  {streams} streams  {:<28} {gigabits:.2} Gbit/s, {retransmits} sent again",
                    options.rounds,
                    way.name()
                );
                if way.system.is_spillway() {
                    xdp_mode = topology.xdp_mode()?;
                }
                samples.push(sample);
            }
        }
        rows.extend(Row::compare(streams, samples));
    }
    let iperf3 = crate::command::run("iperf3 --version")?.lines().next().unwrap_or("unknown").to_owned();
    Ok(Results { seconds: options.seconds, rounds: options.rounds, cores, xdp_mode, iperf3, rows })
}

/// Lets iperf3 send from the pod to the server, each on its core.
fn transfer(topology: &Topology, streams: u32, seconds: u64) -> Result<Sample> {
    let directory = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
    let server = ["--server", "--one-off", "--forceflush", "--bind", SERVER];
    let mut server = iperf(&topology.sink, topology.cores.sink, &server.map(str::to_owned));
    let mut server = Process::start(&mut server, &directory.path().join("server"))?;
    server.until_printed("Server listening", LISTENS_WITHIN)?;
    let words = format!("--json --client {SERVER} --bind {POD} --time {seconds} --parallel {streams}");
    let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    let mut client = iperf(&topology.generator, topology.cores.generator, &words);
    let mut client = Process::start(&mut client, &directory.path().join("client"))?;
    let status = client.until_ended(Duration::from_secs(seconds) + ENDS_WITHIN)?;
    if !status.success() {
        bail!("iperf3 failed ({status}): {}\nserver: {}", client.output(), server.output());
    }
    wait::check_interrupted()?;
    let report: Value = serde_json::from_str(&client.output()).context("iperf3 printed no JSON")?;
    read_report(&report)
}

/// Runs iperf3 in a namespace on one core.
fn iperf(namespace: &Namespace, core: usize, words: &[String]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace.name(), "taskset", "--cpu-list", &core.to_string(), "iperf3"]);
    command.args(words);
    command
}

fn read_report(report: &Value) -> Result<Sample> {
    let end = &report["end"];
    let bits = end["sum_received"]["bits_per_second"].as_f64();
    let bits = bits.with_context(|| format!("iperf3 tells no rate: {report}"))?;
    Ok(Sample { gigabits: bits / 1e9, retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0) })
}

impl Way {
    fn name(self) -> String {
        let suffix = if self.offload { " with offload" } else { "" };
        format!("{}{suffix}", self.system)
    }
}

impl Row {
    /// Compares every way with the first two, round by round.
    fn compare(streams: u32, samples: [Vec<Sample>; 3]) -> [Self; 3] {
        let rates = samples.each_ref().map(|samples| samples.iter().map(|sample| sample.gigabits).collect());
        let ratio = |mine: &Vec<f64>, other: &Vec<f64>| {
            Summary::of(&mine.iter().zip(other).map(|(mine, other)| mine / other).collect::<Vec<_>>())
        };
        let [with_offload, without, _] = &rates;
        let mut rows = WAYS.iter().zip(&rates).zip(samples).map(|((way, mine), samples)| Self {
            streams,
            way: *way,
            to_kernel_with_offload: ratio(mine, with_offload),
            to_kernel: ratio(mine, without),
            gigabits: Summary::of(mine),
            samples,
        });
        std::array::from_fn(|_| rows.next().expect("there is a row for each way"))
    }

    fn name(&self) -> String {
        let noun = if self.streams == 1 { "stream" } else { "streams" };
        format!("{} {noun}, {}", self.streams, self.way.name())
    }

    fn cells(&self) -> Vec<String> {
        let again: Vec<u64> = self.samples.iter().map(|sample| sample.retransmits).collect();
        let again = again.iter().max().copied().unwrap_or(0);
        let summaries = [self.to_kernel_with_offload, self.to_kernel, self.gigabits];
        let figures = summaries.iter().map(Summary::show);
        [self.name()].into_iter().chain(figures).chain([format!("≤ {again}")]).collect()
    }
}

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        self.xdp_mode
    }

    fn sheets(&self) -> Vec<Sheet> {
        let header = [
            "connections, system",
            "÷ kernel with offload",
            "÷ kernel without",
            "Gbit/s",
            "segments sent again",
        ];
        let axis = |label: &str| Axis { label: label.to_owned(), is_logarithmic: false };
        let bars = self.rows.iter().map(|row| (row.name(), vec![row.gigabits.median]));
        let chart = Chart {
            title: "TCP from pod to server".to_owned(),
            x: axis("connections, system"),
            y: axis("Gbit/s"),
            series: Series::Bars { parts: vec!["received, median".to_owned()], bars: bars.collect() },
        };
        vec![Sheet {
            title: "TCP bulk transfer".to_owned(),
            header: header.map(str::to_owned).to_vec(),
            rows: self.rows.iter().map(Row::cells).collect(),
            charts: vec![chart],
            notes: self.explain(),
        }]
    }
}

impl Results {
    fn explain(&self) -> Vec<String> {
        let cores = self.cores;
        vec![
            format!(
                "{}, {} s a transfer, over veth with an MTU of 1,500; median (minimum to maximum) of {} rounds, ways in turn.",
                self.iperf3, self.seconds, self.rounds
            ),
            "With offload: TCP hands over pieces of up to 64 KiB that nobody cuts on veth, as NICs would; the kernel takes each \
             through as one packet. XDP sees whole frames only, so Spillway has none of it."
                .to_owned(),
            format!(
                "Core {}: pod. Core {}: gateway. Core {}: server.",
                cores.generator, cores.gateway, cores.sink
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::Flows;
    use serde_json::json;

    #[test]
    fn what_iperf3_tells_is_read() {
        let report = json!({ "end": {
            "sum_sent": { "bits_per_second": 2.2e9, "retransmits": 3 },
            "sum_received": { "bits_per_second": 2.0e9 },
        }});
        assert_eq!(read_report(&report).unwrap(), Sample { gigabits: 2.0, retransmits: 3 });
        assert!(read_report(&json!({ "error": "no route" })).is_err());
    }

    #[test]
    fn every_way_is_compared_with_both_kernels() {
        let rounds = |gigabits: f64| vec![Sample { gigabits, retransmits: 0 }; 2];
        let rows = Row::compare(4, [rounds(8.0), rounds(2.0), rounds(4.0)]);
        let [_, _, spillway] = &rows;
        assert_eq!(spillway.to_kernel_with_offload, Summary::of(&[0.5, 0.5]));
        assert_eq!(spillway.to_kernel, Summary::of(&[2.0, 2.0]));
        assert_eq!(spillway.name(), "4 streams, spillway");
    }

    #[test]
    fn iperf3_passes_the_kernel_with_and_without_offload() {
        if !crate::namespace::allowed() {
            return;
        }
        let setup = Setup { flows: Flows::new(1), spillway: "unused".into() };
        for offload in [false, true] {
            let topology = Topology::build(Cores::plan(2).unwrap(), setup.flows).unwrap();
            let _gateway = System::KernelIptables.start(&topology, &setup).unwrap();
            if offload {
                topology.offload_segments().unwrap();
            }
            assert!(transfer(&topology, 2, 1).unwrap().gigabits > 0.0);
        }
    }
}

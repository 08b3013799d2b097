use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::machine::Machine;

/// Draws charts.
mod chart;
/// One page with all tables and charts.
mod page;
/// Where values are on an axis.
mod scale;
/// What measurements show.
mod sheet;
/// Tables for the terminal.
mod terminal;

pub(crate) use sheet::{Axis, Chart, Findings, Series, Sheet};

/// Where a report goes besides the terminal.
#[derive(Debug, Args)]
pub(crate) struct Destinations {
    /// Writes all figures to this file too
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes a page of tables and charts, index.html, to this directory too
    #[arg(long, global = true, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// What one or several measurements found, and what they were measured on.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// The words of the command line.
    pub(crate) command: Vec<String>,
    /// What everything random was drawn with.
    pub(crate) seed: u64,
    pub(crate) parts: Vec<Part>,
}

/// What one measurement found.
#[derive(Debug)]
pub(crate) struct Part {
    name: &'static str,
    xdp_mode: String,
    sheets: Vec<Sheet>,
    results: Value,
}

impl Part {
    /// Takes what the measurement of this name found.
    pub(crate) fn of<F: Findings>(name: &'static str, findings: &F) -> Result<Self> {
        Ok(Self {
            name,
            xdp_mode: findings.xdp_mode().to_owned(),
            sheets: findings.sheets(),
            results: serde_json::to_value(findings)?,
        })
    }
}

impl Report {
    /// Prints the tables, and writes everything to where else it shall go.
    pub(crate) fn deliver(&self, destinations: &Destinations) -> Result<()> {
        print!("\n{}", terminal::show(self));
        if let Some(file) = &destinations.json {
            write("--json", file, &(serde_json::to_string_pretty(&self.to_json()?)? + "\n"))?;
        }
        if let Some(directory) = &destinations.report {
            fs::create_dir_all(directory)
                .with_context(|| format!("--report {}: cannot be made", directory.display()))?;
            write("--report", &directory.join("index.html"), &page::write(self)?)?;
        }
        Ok(())
    }

    fn to_json(&self) -> Result<Value> {
        let mut all = Map::new();
        all.insert("machine".to_owned(), serde_json::to_value(&self.machine)?);
        all.insert("command".to_owned(), json!(self.command));
        all.insert("seed".to_owned(), json!(self.seed));
        for part in &self.parts {
            all.insert(part.name.to_owned(), part.results.clone());
        }
        Ok(Value::Object(all))
    }

    /// Returns what everything was measured on, a line for each kind of fact.
    fn facts(&self) -> [String; 3] {
        let machine = &self.machine;
        let mut modes: Vec<&str> = self.parts.iter().map(|part| part.xdp_mode.as_str()).collect();
        modes.sort_unstable();
        modes.dedup();
        [
            format!(
                "{} · {} cores · {} MHz · Linux {} · {} · XDP {}",
                machine.processor,
                machine.cores,
                machine.mhz,
                machine.kernel,
                machine.driver,
                modes.join(", ")
            ),
            format!("{} · {} · {}", machine.spillway, machine.iptables, machine.nftables),
            format!(
                "harness {}, {} build · {} · seed {}",
                machine.harness, machine.build, machine.date, self.seed
            ),
        ]
    }

    fn command_line(&self) -> String {
        self.command.join(" ")
    }
}

fn write(option: &str, file: &Path, content: &str) -> Result<()> {
    fs::write(file, content).with_context(|| format!("{option} {}: cannot be written", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use scraper::{Html, Selector};
    use serde::Serialize;

    #[derive(Serialize)]
    struct MadeUp {
        rates: Vec<f64>,
    }

    impl Findings for MadeUp {
        fn xdp_mode(&self) -> &str {
            "native"
        }

        fn sheets(&self) -> Vec<Sheet> {
            let axis = |label: &str, is_logarithmic: bool| Axis { label: label.to_owned(), is_logarithmic };
            let lines = vec![("<kernel> & co".to_owned(), vec![(1.0, 0.5), (1e6, self.rates[0])])];
            let bars = vec![("hit".to_owned(), vec![10.0, 20.0]), ("miss".to_owned(), vec![30.0, 5.0])];
            let parts = vec!["parse".to_owned(), "track".to_owned()];
            let charts = vec![
                Chart {
                    title: "Rate".to_owned(),
                    x: axis("flows", true),
                    y: axis("Mpps", false),
                    series: Series::Lines(lines),
                },
                Chart {
                    title: "Cost".to_owned(),
                    x: axis("kind", false),
                    y: axis("ns", false),
                    series: Series::Bars { parts, bars },
                },
            ];
            vec![Sheet {
                title: "Throughput".to_owned(),
                header: vec!["flows".to_owned(), "Mpps".to_owned()],
                rows: vec![vec!["1,024".to_owned(), "0.53 (0.50 to 0.55)".to_owned()]],
                charts,
                notes: vec!["Measured on nothing.".to_owned()],
            }]
        }
    }

    fn report() -> Report {
        let machine = Machine::describe(Path::new("/nonexistent")).unwrap();
        let command = ["spillway-bench", "made-up"].map(str::to_owned).to_vec();
        let parts = vec![Part::of("made-up", &MadeUp { rates: vec![0.75] }).unwrap()];
        Report { machine, command, seed: 7, parts }
    }

    fn texts(page: &Html, selector: &str) -> Vec<String> {
        let selector = Selector::parse(selector).unwrap();
        page.select(&selector).map(|element| element.text().collect::<String>().trim().to_owned()).collect()
    }

    #[test]
    fn the_page_shows_tables_charts_and_machine_and_needs_no_network() {
        let directory = tempfile::tempdir().unwrap();
        let destinations = Destinations { json: None, report: Some(directory.path().join("new")) };
        report().deliver(&destinations).unwrap();
        let html = fs::read_to_string(directory.path().join("new/index.html")).unwrap();
        let page = Html::parse_document(&html);
        assert!(page.errors.is_empty(), "{:?}", page.errors);
        assert_eq!(texts(&page, "h2"), ["Throughput"]);
        assert_eq!(texts(&page, "td"), ["1,024", "0.53 (0.50 to 0.55)"]);
        assert_eq!(texts(&page, ".notes li"), ["Measured on nothing."]);
        assert_eq!(texts(&page, ".legend li"), ["<kernel> & co", "parse", "track"]);
        let header = texts(&page, "header").concat();
        for fact in ["cores", "MHz", "Linux", "veth", "XDP native", "seed 7", "spillway-bench made-up"] {
            assert!(header.contains(fact), "{fact} is missing: {header}");
        }
        assert_eq!(texts(&page, "svg").len(), 2);
        let labels = texts(&page, "svg text");
        for label in ["flows", "Mpps", "1 M", "hit", "miss", "30", "ns"] {
            assert!(labels.iter().any(|text| text == label), "{label} is missing: {labels:?}");
        }
        for foreign in ["src=", "href=", "@import", "url("] {
            assert!(!html.contains(foreign), "the page loads something: {foreign}");
        }
    }

    #[test]
    fn the_file_holds_results_machine_command_and_seed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("figures.json");
        report().deliver(&Destinations { json: Some(file.clone()), report: None }).unwrap();
        let all: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        assert_eq!(all["made-up"]["rates"][0], 0.75);
        assert_eq!(all["seed"], 7);
        assert_eq!(all["command"][1], "made-up");
        assert_eq!(all["machine"]["driver"], "veth");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let file = PathBuf::from("/nonexistent-directory/figures.json");
        let error = report().deliver(&Destinations { json: Some(file), report: None }).unwrap_err();
        assert!(error.to_string().contains("--json /nonexistent-directory/figures.json"), "{error}");
    }

    #[test]
    fn the_terminal_shows_the_same_table() {
        let text = terminal::show(&report());
        for part in ["Throughput", "1,024", "0.53 (0.50 to 0.55)", "Measured on nothing.", "seed 7"] {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
    }
}

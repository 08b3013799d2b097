use super::{Noise, Results, Row};
use crate::report::{Findings, Sheet};
use crate::statistics::Summary;

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        self.xdp_mode
    }

    fn sheets(&self) -> Vec<Sheet> {
        let header = [
            "gateway, flood",
            "p50 ÷ alone",
            "p99 ÷ alone",
            "p99.9 ÷ alone",
            "lost probes, %",
            "p50, µs",
            "p99, µs",
            "p99.9, µs",
            "offered, Mpps",
            "forwarded, Mpps",
        ];
        vec![Sheet {
            title: "A tenant beside another that floods".to_owned(),
            header: header.map(str::to_owned).to_vec(),
            rows: self.rows.iter().map(cells).collect(),
            charts: Vec::new(),
            notes: self.notes(),
        }]
    }
}

impl Results {
    fn notes(&self) -> Vec<String> {
        vec![
            format!(
                "Round trips of one tenant's UDP datagrams of 60 bytes, {} a second for {} s, while another tenant sends {} \
                 frames a second; median (minimum to maximum) of {} rounds, gateways and floods in turn, each in a gateway of \
                 its own that was first measured without the flood.",
                self.probes_a_second, self.seconds, self.rate, self.rounds
            ),
            "Both tenants' frames come from one sender, 16 at a time, and by one link of 256 frames: what the flood costs sender \
             and link is in the figures too. Where nothing of the gateway is flooded, as with not-ipv4, they are the floor."
                .to_owned(),
            format!(
                "Core {}: sender. Core {}: gateway. Core {}: server.",
                self.cores.generator, self.cores.gateway, self.cores.sink
            ),
        ]
    }
}

fn cells(row: &Row) -> Vec<String> {
    let short = |summary: Summary| {
        format!("{:.0} ({:.0} to {:.0})", summary.median, summary.minimum, summary.maximum)
    };
    let ratio = |summary: Summary| if row.noise == Noise::Alone { String::new() } else { summary.show() };
    let lost = row.lost_percent;
    vec![
        format!("{}, {}", row.system.name(), row.noise.name()),
        ratio(row.p50_ratio),
        ratio(row.p99_ratio),
        ratio(row.p99_9_ratio),
        format!("{:.3} ({:.3} to {:.3})", lost.median, lost.minimum, lost.maximum),
        short(row.p50),
        short(row.p99),
        short(row.p99_9),
        format!("{:.2}", row.offered_mpps.median),
        format!("{:.2}", row.forwarded_mpps.median),
    ]
}

use super::{Results, RouteRow, StormRow, TenantRow};
use crate::report::{Axis, Chart, Findings, Series, Sheet};

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        self.xdp_mode
    }

    fn sheets(&self) -> Vec<Sheet> {
        vec![self.tenant_sheet(), self.route_sheet(), self.storm_sheet()]
    }
}

impl Results {
    fn tenant_sheet(&self) -> Sheet {
        let header = [
            "tenants",
            "new one: first packet, ms",
            "answer, ms",
            "egress changed: first packet, ms",
            "answer, ms",
            "removed: answer, ms",
            "start with all, s",
        ];
        let cells = |row: &TenantRow| {
            vec![
                row.present.to_string(),
                row.add.packet.show(),
                row.add.answer.show(),
                row.change.packet.show(),
                row.change.answer.show(),
                row.remove.show(),
                format!("{:.2}", row.start_seconds),
            ]
        };
        let bar = |row: &TenantRow| {
            (format!("{} tenants", row.present), vec![row.add.packet.median, row.change.packet.median])
        };
        let axis = |label: &str| Axis { label: label.to_owned(), is_logarithmic: false };
        let chart = Chart {
            title: "From a request to the first packet that obeys it".to_owned(),
            x: axis("tenants present"),
            y: axis("ms"),
            series: Series::Bars {
                parts: vec!["new tenant".to_owned(), "egress address changed".to_owned()],
                bars: self.tenants.iter().map(bar).collect(),
            },
        };
        Sheet {
            title: "Tenants".to_owned(),
            header: header.map(str::to_owned).to_vec(),
            rows: self.tenants.iter().map(cells).collect(),
            charts: vec![chart],
            notes: vec![format!(
                "From the request on the control socket; median (minimum to maximum) of {} tenants that are added, changed and \
                 removed, one after the other, beside so many others. A packet is sent each 50 µs.",
                self.changes
            )],
        }
    }

    fn route_sheet(&self) -> Sheet {
        let header = [
            "routes",
            "one more: first packet, ms",
            "of it `ip`, ms",
            "limit changed: answer, ms",
            "egress changed: first packet, ms",
            "answer, ms",
            "all at once: `ip`, s",
            "then first packet, ms",
        ];
        let cells = |row: &RouteRow| {
            vec![
                row.present.to_string(),
                row.add.packet.show(),
                row.add.answer.show(),
                row.snapshot.show(),
                row.tenant.packet.show(),
                row.tenant.answer.show(),
                format!("{:.2}", row.batch_seconds),
                format!("{:.1}", row.after_batch_ms),
            ]
        };
        Sheet {
            title: "Routes".to_owned(),
            header: header.map(str::to_owned).to_vec(),
            rows: self.routes.iter().map(cells).collect(),
            charts: Vec::new(),
            notes: vec![
                format!(
                    "Routes of the kernel on the outside link, added by `ip`; median (minimum to maximum) of {}.",
                    self.changes
                ),
                "One more: from the start of `ip`; the gateway collects changes for 10 ms before it reads them.".to_owned(),
                "Limit changed: the kernel knows nothing of it, so that the answer means a snapshot compiled, applied and \
                 acknowledged by the worker, and the state file synced."
                    .to_owned(),
                "All at once: `ip -batch`, then from its end until the first packet goes by the last of them.".to_owned(),
            ],
        }
    }

    fn storm_sheet(&self) -> Sheet {
        let header = [
            "changed",
            "lost packets of another tenant",
            "sent",
            "lost without changes",
            "changes a second, done",
            "wanted",
            "failed",
            "p50, ms",
            "p99, ms",
        ];
        let cells = |row: &StormRow| {
            vec![
                row.kind.name().to_owned(),
                row.lost.to_string(),
                row.sent.to_string(),
                format!("{} of {}", row.quiet_lost, row.quiet_sent),
                format!("{:.0}", row.done_a_second),
                row.wanted_a_second.to_string(),
                row.failed.to_string(),
                format!("{:.1}", row.p50_ms),
                format!("{:.1}", row.p99_ms),
            ]
        };
        let mut notes = vec![
            format!(
                "Changes on the control socket by 32 clients, 64 tenants in turn, while a tenant that is left alone has {} \
                 packets a second; those sent and those arrived are counted exactly.",
                self.load
            ),
            "The limit on sessions concerns the fast path alone; an egress address is the kernel's too."
                .to_owned(),
        ];
        for row in &self.storms {
            let drops: Vec<String> =
                row.drops.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            if row.lost > 0 {
                let drops = if drops.is_empty() { "none".to_owned() } else { drops.join(", ") };
                notes.push(format!("note: {}: dropped meanwhile: {drops}.", row.kind.name()));
            }
        }
        let failures = self.storms.iter().filter_map(|row| row.first_failure.as_ref());
        notes.extend(failures.map(|failure| format!("note: a change failed: {failure}")));
        Sheet {
            title: "Many changes".to_owned(),
            header: header.map(str::to_owned).to_vec(),
            rows: self.storms.iter().map(cells).collect(),
            charts: Vec::new(),
            notes,
        }
    }
}

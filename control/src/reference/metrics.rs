//! The page about metrics.

use super::{head, table};
use crate::config::DEFAULT_METRICS;
use crate::metrics::reference;

/// Returns the page.
pub(super) fn page() -> String {
    let rows = reference().iter().map(|metric| {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind) = (format!("`{}`", metric.name), metric.kind.name().to_owned());
        vec![name, kind, metric.unit.to_owned(), labels.join(", "), metric.help.to_owned()]
    });
    head("Metrics", "`control/src/metrics/table.rs`")
        + &introduction()
        + &table(&["metric", "type", "unit", "labels", "meaning"], rows)
}

fn introduction() -> String {
    format!(
        "
What Prometheus reads at `http://{DEFAULT_METRICS}/metrics`, or where `[control] metrics` in the [config file](config.md) says, and
what `spillway metrics` prints whether it is served or not. [deploy/prometheus](../deploy/prometheus/alerts.yaml) has alerts,
[deploy/grafana](../deploy/grafana/spillway.json) a dashboard. Counters begin at 0 when the daemon starts. The label `reason` has the
names of [dropped packets](drops.md).

"
    )
}

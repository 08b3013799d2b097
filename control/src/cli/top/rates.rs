//! Rates out of counters: what changed between two answers of the daemon.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::api::types::{Status, TenantView, WorkerStatus};

/// Rates that are kept for sparklines.
const HISTORY: usize = 60;

/// The daemon's status at a moment.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) at: Instant,
    pub(super) status: Status,
}

/// Rates of a tenant, or of all, a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) bits_out: f64,
    pub(super) bits_in: f64,
    pub(super) packets_out: f64,
    pub(super) packets_in: f64,
    pub(super) begun: f64,
    pub(super) drops: f64,
}

impl Rates {
    /// Returns the bits in both directions.
    pub(super) fn bits(&self) -> f64 {
        self.bits_out + self.bits_in
    }
}

/// Earlier rates of one thing, the newest last.
#[derive(Clone, Debug, Default)]
pub(super) struct History(VecDeque<f64>);

impl History {
    fn push(&mut self, rate: f64) {
        self.0.push_back(rate);
        if self.0.len() > HISTORY {
            self.0.pop_front();
        }
    }

    /// Returns the newest rates as bars, one a column, of which the highest is the greatest of them.
    pub(super) fn bars(&self, columns: usize) -> String {
        const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let shown = || self.0.iter().skip(self.0.len().saturating_sub(columns));
        let most = shown().copied().fold(0.0, f64::max);
        let bar = |rate: &f64| {
            let eighths = if most > 0.0 { rate / most * 7.0 } else { 0.0 };
            let lower = (0..7).take_while(|least| f64::from(*least) + 1.0 <= eighths).count();
            BARS[lower]
        };
        let bars: String = shown().map(bar).collect();
        format!("{bars:>columns$}")
    }
}

/// All that is shown, and what was before.
#[derive(Clone, Debug, Default)]
pub(super) struct Rated {
    /// All tenants together.
    pub(super) total: Rates,
    /// By tenant.
    pub(super) tenants: BTreeMap<String, Rates>,
    /// Share of time that each worker is busy.
    pub(super) loads: Vec<f64>,
    /// Dropped packets a second, by reason.
    pub(super) drops: BTreeMap<String, f64>,
    /// Bits a second of all tenants: out and in.
    pub(super) totals: [History; 2],
    /// Bits a second, by tenant.
    pub(super) histories: HashMap<String, History>,
}

impl Rated {
    /// Takes the difference of two answers of the same daemon.
    pub(super) fn observe(&mut self, before: &Reading, after: &Reading) {
        let span = after.at.saturating_duration_since(before.at);
        if span.is_zero() {
            return;
        }
        let known: HashMap<&str, &TenantView> =
            before.status.tenants.iter().map(|tenant| (tenant.tenant.name.as_str(), tenant)).collect();
        let tenants = after.status.tenants.iter().map(|tenant| {
            let name = tenant.tenant.name.as_str();
            let rates = known.get(name).map(|before| tenant_rates(before, tenant, span));
            (name.to_owned(), rates.unwrap_or_default())
        });
        self.tenants = tenants.collect();
        self.drops = reason_rates(&before.status.drops, &after.status.drops, span);
        self.total = self.tenants.values().fold(Rates::default(), add);
        self.total.drops = self.drops.values().sum();
        self.loads = loads(&before.status.workers, &after.status.workers, span);
        self.totals[0].push(self.total.bits_out);
        self.totals[1].push(self.total.bits_in);
        self.histories.retain(|name, _| self.tenants.contains_key(name));
        for (name, rates) in &self.tenants {
            self.histories.entry(name.clone()).or_default().push(rates.bits());
        }
    }
}

fn tenant_rates(before: &TenantView, after: &TenantView, span: Duration) -> Rates {
    let (before, after) = (&before.status, &after.status);
    Rates {
        bits_out: 8.0 * rate(before.outbound_bytes, after.outbound_bytes, span),
        bits_in: 8.0 * rate(before.inbound_bytes, after.inbound_bytes, span),
        packets_out: rate(before.outbound_packets, after.outbound_packets, span),
        packets_in: rate(before.inbound_packets, after.inbound_packets, span),
        begun: rate(before.sessions_begun, after.sessions_begun, span),
        drops: rate(before.dropped_packets, after.dropped_packets, span),
    }
}

fn add(sum: Rates, rates: &Rates) -> Rates {
    Rates {
        bits_out: sum.bits_out + rates.bits_out,
        bits_in: sum.bits_in + rates.bits_in,
        packets_out: sum.packets_out + rates.packets_out,
        packets_in: sum.packets_in + rates.packets_in,
        begun: sum.begun + rates.begun,
        drops: sum.drops + rates.drops,
    }
}

fn reason_rates(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
    span: Duration,
) -> BTreeMap<String, f64> {
    let before = |reason: &str| before.get(reason).copied().unwrap_or_default();
    after.iter().map(|(reason, count)| (reason.clone(), rate(before(reason), *count, span))).collect()
}

fn loads(before: &[WorkerStatus], after: &[WorkerStatus], span: Duration) -> Vec<f64> {
    let of = |number: usize| before.iter().find(|worker| worker.worker == number);
    let busy = |worker: &WorkerStatus| {
        of(worker.worker)
            .map_or(0.0, |before| rate(before.busy_milliseconds, worker.busy_milliseconds, span) / 1000.0)
    };
    after.iter().map(|worker| busy(worker).min(1.0)).collect()
}

/// Returns how much a counter grew a second; one that was set back did not.
#[expect(clippy::cast_precision_loss, reason = "what people read is rounded anyway")]
fn rate(before: u64, after: u64, span: Duration) -> f64 {
    after.saturating_sub(before) as f64 / span.as_secs_f64()
}

/// Returns a number with a prefix, in at most five columns.
pub(super) fn short(number: f64) -> String {
    let mut scaled = number;
    for prefix in ["", "k", "M", "G", "T"] {
        if scaled < 999.5 {
            let digits = if prefix.is_empty() || scaled >= 99.95 { 0 } else { 1 };
            return format!("{scaled:.digits$}{prefix}");
        }
        scaled /= 1000.0;
    }
    format!("{scaled:.0}P")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let table = [
            (0.0, "0"),
            (0.4, "0"),
            (999.0, "999"),
            (999.6, "1.0k"),
            (12_345.0, "12.3k"),
            (99_960.0, "100k"),
            (999_600.0, "1.0M"),
            (2.5e9, "2.5G"),
            (7e15, "7P"),
        ];
        for (number, expected) in table {
            assert_eq!(short(number), expected);
        }
    }

    #[test]
    fn bars_are_as_high_as_the_greatest_of_those_shown() {
        let mut history = History::default();
        assert_eq!(history.bars(3), "   ");
        [100.0, 0.0, 4.0, 8.0].into_iter().for_each(|rate| history.push(rate));
        assert_eq!(history.bars(3), "▁▄█");
        assert_eq!(history.bars(6), "  █▁▁▁");
        (0..100).for_each(|_| history.push(1.0));
        assert_eq!(history.0.len(), HISTORY);
    }
}

//! What the view shows: the newest answer, rates, and what the keys have chosen. It draws nothing.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use super::rates::{Rated, Rates, Reading};
use crate::api::types::{EgressStatus, PortStatus, Status, TenantView};

/// What is shown below the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tab {
    #[default]
    Tenants,
    Workers,
    Drops,
    Ports,
}

impl Tab {
    pub(super) const ALL: [Self; 4] = [Self::Tenants, Self::Workers, Self::Drops, Self::Ports];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tenants => "Tenants",
            Self::Workers => "Workers",
            Self::Drops => "Drops",
            Self::Ports => "Ports",
        }
    }
}

/// What tenants are sorted by, the greatest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Rate,
    Out,
    In,
    Sessions,
    New,
    Drops,
    Name,
}

/// Whether the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Contact {
    /// It was not asked yet.
    Waiting,
    /// It does.
    Answering,
    /// It does not, for this reason.
    Lost(String),
}

/// Everything that is shown.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) interval: Duration,
    pub(super) reading: Option<Reading>,
    pub(super) rated: Rated,
    pub(super) contact: Contact,
    pub(super) is_paused: bool,
    pub(super) tab: Tab,
    pub(super) sort: Sort,
    pub(super) is_reversed: bool,
    pub(super) filter: String,
    /// Whether keys are letters of the filter.
    pub(super) is_typing: bool,
    pub(super) shows_help: bool,
    /// The row that is chosen.
    pub(super) row: usize,
    /// Rows that fit, as they were last drawn.
    pub(super) page: usize,
}

/// A row of the tenants' table.
#[derive(Clone, Copy, Debug)]
pub(super) struct TenantRow<'a> {
    pub(super) view: &'a TenantView,
    pub(super) rates: Rates,
}

impl Model {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            reading: None,
            rated: Rated::default(),
            contact: Contact::Waiting,
            is_paused: false,
            tab: Tab::default(),
            sort: Sort::default(),
            is_reversed: false,
            filter: String::new(),
            is_typing: false,
            shows_help: false,
            row: 0,
            page: 10,
        }
    }

    /// Takes an answer of the daemon, or why there is none. What is shown stays while it is paused.
    pub(super) fn take(&mut self, answer: Result<Status, String>, at: Instant) {
        match answer {
            Err(why) => self.contact = Contact::Lost(why),
            Ok(_) if self.is_paused => self.contact = Contact::Answering,
            Ok(status) => {
                self.contact = Contact::Answering;
                let after = Reading { at, status };
                match &self.reading {
                    Some(before) if before.status.pid == after.status.pid => {
                        self.rated.observe(before, &after);
                    }
                    // Another process counts from zero.
                    Some(_) | None => self.rated = Rated::default(),
                }
                self.reading = Some(after);
                self.keep_row();
            }
        }
    }

    pub(super) fn status(&self) -> Option<&Status> {
        self.reading.as_ref().map(|reading| &reading.status)
    }

    /// Returns the tenants that the filter lets through, sorted.
    pub(super) fn tenants(&self) -> Vec<TenantRow<'_>> {
        let views = self.status().map(|status| status.tenants.as_slice()).unwrap_or_default();
        let rates = |name: &str| self.rated.tenants.get(name).copied().unwrap_or_default();
        let mut rows: Vec<_> = views
            .iter()
            .filter(|view| self.is_shown(&view.tenant.name))
            .map(|view| TenantRow { view, rates: rates(&view.tenant.name) })
            .collect();
        rows.sort_by(|one, other| {
            let order = self.compare(one, other);
            if self.is_reversed { order.reverse() } else { order }
        });
        rows
    }

    /// Returns drop reasons that there were and that the filter lets through, most often met now first: the reason, all of
    /// its packets, and how many a second.
    pub(super) fn drops(&self) -> Vec<(&str, u64, f64)> {
        let Some(status) = self.status() else { return Vec::new() };
        let rate = |reason: &str| self.rated.drops.get(reason).copied().unwrap_or_default();
        let met = status.drops.iter().filter(|(reason, count)| **count > 0 && self.is_shown(reason));
        let mut rows: Vec<_> = met.map(|(reason, count)| (reason.as_str(), *count, rate(reason))).collect();
        rows.sort_by(|(_, one, one_rate), (_, other, other_rate)| {
            other_rate.total_cmp(one_rate).then(other.cmp(one))
        });
        rows
    }

    /// Returns the ports of egress addresses that the filter lets through, those with the least left first.
    pub(super) fn ports(&self) -> Vec<(&EgressStatus, &PortStatus)> {
        let egress = self.status().map(|status| status.egress.as_slice()).unwrap_or_default();
        let shown = egress
            .iter()
            .filter(|egress| self.is_shown(&egress.tenant) || self.is_shown(&egress.address.to_string()));
        let mut rows: Vec<_> =
            shown.flat_map(|egress| egress.ports.iter().map(move |ports| (egress, ports))).collect();
        rows.sort_by_key(|(egress, ports)| {
            let free = ports.capacity.saturating_sub(ports.used);
            (ports.exhaustion_seconds.unwrap_or(u64::MAX), free, egress.address)
        });
        rows
    }

    /// Returns how many rows the tab has.
    pub(super) fn rows(&self) -> usize {
        match self.tab {
            Tab::Tenants => self.tenants().len(),
            Tab::Workers => self.status().map_or(0, |status| status.workers.len()),
            Tab::Drops => self.drops().len(),
            Tab::Ports => self.ports().len(),
        }
    }

    /// Moves to a row that there is.
    pub(super) fn keep_row(&mut self) {
        self.row = self.row.min(self.rows().saturating_sub(1));
    }

    fn is_shown(&self, name: &str) -> bool {
        name.to_lowercase().contains(&self.filter.to_lowercase())
    }

    fn compare(&self, one: &TenantRow<'_>, other: &TenantRow<'_>) -> Ordering {
        let greatest_first = |key: fn(&TenantRow<'_>) -> f64| key(other).total_cmp(&key(one));
        let by_name = || one.view.tenant.name.cmp(&other.view.tenant.name);
        let order = match self.sort {
            Sort::Rate => greatest_first(|row| row.rates.bits()),
            Sort::Out => greatest_first(|row| row.rates.bits_out),
            Sort::In => greatest_first(|row| row.rates.bits_in),
            Sort::Sessions => other.view.status.sessions.cmp(&one.view.status.sessions),
            Sort::New => greatest_first(|row| row.rates.begun),
            Sort::Drops => greatest_first(|row| row.rates.drops),
            Sort::Name => Ordering::Equal,
        };
        order.then_with(by_name)
    }
}

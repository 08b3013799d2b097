//! New sessions that were refused for lack of room, as operators are told (RFC 6888 REQ-11).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use conntrack::TenantId;
use fastpath::verdict::DropReason;
use tracing::{debug, warn};

use super::gateway::Gateway;

const TELL_EVERY: Duration = Duration::from_secs(60);

/// What operators were told, and when.
#[derive(Debug, Default)]
pub struct Shortages {
    told: BTreeMap<(TenantId, DropReason), Told>,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    count: u64,
    at: Instant,
}

impl Shortages {
    /// Takes a tenant's counters at a moment and returns the packets that operators should hear of now: those added
    /// since they last heard, for each reason at most once a minute.
    pub fn observe(
        &mut self,
        tenant: TenantId,
        drops: &[(DropReason, u64)],
        now: Instant,
    ) -> Vec<(DropReason, u64)> {
        let short = drops.iter().filter(|(reason, _)| DropReason::SHORTAGES.contains(reason));
        short
            .filter_map(|(reason, count)| Some((*reason, self.untold((tenant, *reason), *count, now)?)))
            .collect()
    }

    fn untold(&mut self, key: (TenantId, DropReason), count: u64, now: Instant) -> Option<u64> {
        let told = self.told.get(&key).copied();
        if told.is_some_and(|told| now.duration_since(told.at) < TELL_EVERY) {
            return None;
        }
        let packets = count.saturating_sub(told.map_or(0, |told| told.count));
        if packets == 0 {
            return None;
        }
        self.told.insert(key, Told { count, at: now });
        Some(packets)
    }
}

impl Gateway {
    /// Logs packets whose new sessions were refused since operators were last told, and tells the cluster what
    /// tenants count.
    pub fn tell_shortages(&mut self) {
        let report = match self.report() {
            Ok(report) => report,
            Err(refusal) => return debug!(error = %refusal, "shortages are not known"),
        };
        self.cluster.count(&report.tenants);
        self.tell_counts();
        let now = Instant::now();
        for entry in self.registry.entries() {
            let Some(counted) = report.tenant(entry.id) else { continue };
            for (reason, packets) in self.shortages.observe(entry.id, &counted.drops, now) {
                let (tenant, meaning) = (&entry.tenant.name, reason.help());
                warn!(tenant, reason = reason.name(), packets, "new sessions were refused: {meaning}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLUE: TenantId = TenantId(3);

    #[test]
    fn a_first_shortage_is_told_at_once() {
        let drops = [(DropReason::NoPort, 7), (DropReason::SessionsFull, 0)];
        let told = Shortages::default().observe(BLUE, &drops, Instant::now());
        assert_eq!(told, [(DropReason::NoPort, 7)]);
    }

    #[test]
    fn what_goes_on_is_told_once_a_minute_with_what_was_added() {
        let (mut shortages, start) = (Shortages::default(), Instant::now());
        let mut packets_at = |seconds, count| -> Vec<u64> {
            let now = start + Duration::from_secs(seconds);
            let told = shortages.observe(BLUE, &[(DropReason::PodPortLimit, count)], now);
            told.into_iter().map(|(_, packets)| packets).collect()
        };
        let table = [
            (0, 0, vec![]),
            (5, 2, vec![2]),
            (10, 9, vec![]),
            (64, 10, vec![]),
            (65, 12, vec![10]),
            (125, 12, vec![]),
            (300, 13, vec![1]),
        ];
        for (seconds, count, expected) in table {
            assert_eq!(packets_at(seconds, count), expected, "after {seconds} s");
        }
    }

    #[test]
    fn tenants_and_reasons_do_not_silence_each_other() {
        let (mut shortages, now) = (Shortages::default(), Instant::now());
        assert_eq!(shortages.observe(BLUE, &[(DropReason::NoPort, 1)], now).len(), 1);
        assert_eq!(shortages.observe(TenantId(4), &[(DropReason::NoPort, 1)], now).len(), 1);
        let both = [(DropReason::NoPort, 1), (DropReason::SessionsFull, 1)];
        assert_eq!(shortages.observe(BLUE, &both, now), [(DropReason::SessionsFull, 1)]);
    }

    #[test]
    fn drops_for_other_reasons_are_not_told() {
        let all: Vec<_> = DropReason::ALL.iter().map(|reason| (*reason, 1)).collect();
        let told = Shortages::default().observe(BLUE, &all, Instant::now());
        let mut reasons: Vec<_> = told.iter().map(|(reason, _)| reason.name()).collect();
        reasons.sort_unstable();
        let expected = [
            "ambiguous_protocol",
            "no_port",
            "pod_port_limit",
            "pod_rate_limit",
            "pod_session_limit",
            "sessions_full",
            "tenant_port_limit",
            "tenant_rate_limit",
            "tenant_session_limit",
            "tenant_share",
        ];
        assert_eq!(reasons, expected);
    }
}

//! How many outside ports are taken, and how long the rest will last.
//!
//! A port of an egress address serves a session towards each destination, so that ports run out towards one destination
//! while there are plenty towards all others. What is counted for an egress address and a protocol is therefore how many of
//! its ports are taken towards its *busiest* destination (address and port): new sessions are refused, with the drop reason
//! `no_port`, when that many are all that there are. Ports of endpoint-independent mappings are taken towards everybody.
//!
//! Nothing is counted when sessions begin or end: the tables are looked through every ten seconds.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use conntrack::{PortUse, Protocol, port_capacity};
use fastpath::report::EgressReport;
use fastpath::survey::{SurveyError, Surveyor};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, error};

const SURVEY_INTERVAL: Duration = Duration::from_secs(10);

/// Time over which the rate is taken at which ports are used up.
const WINDOW: Duration = Duration::from_secs(60);

/// Destinations that are counted at the same time: 2 MB. Where there are more, those that few sessions go to are given up,
/// and of the others a few sessions are missed: one in 32,768 of all at most.
const DESTINATIONS: usize = 65_536;

/// The part of a destination's ports from which on it is foretold when they run out: a 64th.
const FORETOLD_FROM: u32 = 64;

/// The part from which on its ports are remembered, so that the rate is known when it is foretold: a 512th.
const REMEMBERED_FROM: u32 = 512;

/// Ports that are taken, by egress address, protocol and destination.
#[derive(Debug)]
pub struct Tally {
    /// Sessions with a port of their own, by destination.
    sessions: HashMap<PortUse, u32>,
    /// Endpoint-independent mappings, which are towards everybody.
    mappings: HashMap<PortUse, u32>,
    most: usize,
}

impl Default for Tally {
    fn default() -> Self {
        Self { sessions: HashMap::new(), mappings: HashMap::new(), most: DESTINATIONS }
    }
}

impl Tally {
    /// Counts a port.
    pub fn count(&mut self, port: &PortUse) {
        if port.remote.is_none() {
            *self.mappings.entry(*port).or_default() += 1;
            return;
        }
        *self.sessions.entry(*port).or_default() += 1;
        if self.sessions.len() > self.most {
            self.give_up_half();
        }
    }

    /// Takes as much from every destination as half of them have, and forgets those (Misra and Gries, "Finding repeated
    /// elements", 1982).
    fn give_up_half(&mut self) {
        let mut counts: Vec<u32> = self.sessions.values().copied().collect();
        let middle = counts.len() / 2;
        let median = *counts.select_nth_unstable(middle).1;
        self.sessions.retain(|_, count| {
            *count = count.saturating_sub(median);
            *count > 0
        });
    }

    /// Returns how many ports are taken towards each destination, mappings included.
    fn used(&self) -> impl Iterator<Item = (PortUse, u32)> {
        let towards = self.sessions.iter().map(|(destination, sessions)| {
            let mapped = self.mappings.get(&anybody(destination)).copied().unwrap_or_default();
            (*destination, sessions + mapped)
        });
        towards.chain(self.mappings.iter().map(|(anybody, mapped)| (*anybody, *mapped)))
    }
}

/// Returns an egress address and protocol without a destination.
fn anybody(port: &PortUse) -> PortUse {
    PortUse { remote: None, ..*port }
}

/// The ports of an egress address in one protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Ports that are taken towards the busiest destination.
    pub used: u32,
    /// Time until all are taken towards some destination, at the present rate; none when no more are taken.
    pub exhaustion: Option<Duration>,
}

/// Ports that are taken, as the last survey found them.
#[derive(Clone, Debug, Default)]
pub struct PortUsage {
    /// When it began; none: there was none yet.
    pub taken_at: Option<Instant>,
    /// How long it took.
    pub took: Duration,
    /// Egress addresses and protocols, each as a use without destination.
    pub pools: HashMap<PortUse, PoolUse>,
    /// Destinations with the most ports, those first.
    pub top: Vec<(PortUse, u32)>,
}

impl PortUsage {
    /// Returns the ports of an egress address by protocol: TCP and UDP always, ICMP where it has some.
    pub fn of(&self, egress: &EgressReport) -> impl Iterator<Item = (Protocol, PoolUse)> {
        let pool =
            |protocol| PortUse { tenant: egress.tenant, outside: egress.address, protocol, remote: None };
        let pools = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp].map(|protocol| {
            let found = self.pools.get(&pool(protocol)).copied();
            (protocol, found.or((protocol != Protocol::Icmp).then(PoolUse::default)))
        });
        pools.into_iter().filter_map(|(protocol, pool)| Some((protocol, pool?)))
    }
}

/// What surveys found, for the time in which rates are taken.
#[derive(Debug)]
pub struct Forecast {
    /// Destinations that are told of.
    top: usize,
    past: VecDeque<(Instant, HashMap<PortUse, u32>)>,
}

impl Forecast {
    /// Begins without a past; `top` destinations will be told of.
    pub fn new(top: usize) -> Self {
        Self { top, past: VecDeque::new() }
    }

    /// Takes what a survey found that began at `at`.
    pub fn observe(&mut self, tally: &Tally, at: Instant) -> PortUsage {
        while self.past.len() > 1 && at.saturating_duration_since(self.past[0].0) > WINDOW {
            self.past.pop_front();
        }
        let mut usage = PortUsage { taken_at: Some(at), ..PortUsage::default() };
        let mut remembered = HashMap::new();
        for (port, used) in tally.used() {
            let exhaustion = self.exhaustion(&port, used, at);
            let pool = usage.pools.entry(anybody(&port)).or_default();
            pool.used = pool.used.max(used);
            pool.exhaustion = [pool.exhaustion, exhaustion].into_iter().flatten().min();
            if used >= port_capacity(port.protocol) / REMEMBERED_FROM {
                remembered.insert(port, used);
            }
            usage.top.push((port, used));
        }
        usage.top.retain(|(port, _)| port.remote.is_some());
        let by_rank = |(port, used): &(PortUse, u32)| (std::cmp::Reverse(*used), port.outside, port.remote);
        if usage.top.len() > self.top && self.top > 0 {
            usage.top.select_nth_unstable_by_key(self.top - 1, by_rank);
        }
        usage.top.truncate(self.top);
        usage.top.sort_unstable_by_key(by_rank);
        self.past.push_back((at, remembered));
        usage
    }

    fn exhaustion(&self, port: &PortUse, used: u32, at: Instant) -> Option<Duration> {
        let capacity = port_capacity(port.protocol);
        if used < capacity / FORETOLD_FROM {
            return None;
        }
        let free = capacity.saturating_sub(used);
        if free == 0 {
            return Some(Duration::ZERO);
        }
        let (then, before) = self.past.front()?;
        let before = before.get(port).copied().unwrap_or_default();
        let gained = used.checked_sub(before).filter(|gained| *gained > 0)?;
        Some(at.saturating_duration_since(*then) * free / gained)
    }
}

/// Surveys the tables from now on, until nobody has the answer any more; `top` destinations are told of.
pub fn keep_surveying(surveyor: Surveyor, top: usize) -> watch::Receiver<Arc<PortUsage>> {
    let (sender, usage) = watch::channel(Arc::default());
    tokio::spawn(async move {
        let mut forecast = Forecast::new(top);
        let mut ticks = interval(SURVEY_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !sender.is_closed() {
            ticks.tick().await;
            let surveyor = surveyor.clone();
            let surveyed = spawn_blocking(move || survey(&surveyor)).await;
            match surveyed {
                Ok(Ok((tally, at))) => {
                    let usage = PortUsage { took: at.elapsed(), ..forecast.observe(&tally, at) };
                    sender.send_replace(Arc::new(usage));
                }
                Ok(Err(error)) => debug!("ports were not counted: {error}"),
                Err(error) => error!("ports were not counted: {error}"),
            }
        }
    });
    usage
}

fn survey(surveyor: &Surveyor) -> Result<(Tally, Instant), SurveyError> {
    let (mut tally, at) = (Tally::default(), Instant::now());
    surveyor.count_ports(|port| tally.count(port))?;
    Ok((tally, at))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use conntrack::TenantId;

    use super::*;

    const POOL: PortUse = PortUse {
        tenant: TenantId(1),
        outside: Ipv4Addr::new(192, 168, 55, 113),
        protocol: Protocol::Tcp,
        remote: None,
    };

    fn towards(port: u16) -> PortUse {
        PortUse { remote: Some((Ipv4Addr::new(198, 51, 100, 7), port)), ..POOL }
    }

    fn tally(counts: &[(PortUse, u32)]) -> Tally {
        let mut tally = Tally::default();
        for (port, count) in counts {
            (0..*count).for_each(|_| tally.count(port));
        }
        tally
    }

    #[test]
    fn the_busiest_destination_counts_and_mappings_count_towards_all() {
        let udp = PortUse { protocol: Protocol::Udp, ..POOL };
        let counted = tally(&[(towards(443), 5), (towards(80), 9), (POOL, 2), (udp, 3)]);
        let usage = Forecast::new(1).observe(&counted, Instant::now());
        assert_eq!((usage.pools[&POOL].used, usage.pools[&udp].used), (11, 3));
        assert_eq!(usage.top, [(towards(80), 11)]);
    }

    #[test]
    fn without_destinations_none_are_told_of() {
        let usage = Forecast::new(0).observe(&tally(&[(towards(443), 5)]), Instant::now());
        assert!(usage.top.is_empty() && usage.pools[&POOL].used == 5);
    }

    #[test]
    fn many_destinations_do_not_hide_those_that_many_go_to() {
        let mut tally = Tally { most: 100, ..Tally::default() };
        let (mut all, busy) = (0, 2000);
        for round in 0..busy {
            tally.count(&towards(443));
            for other in 0..10 {
                tally.count(&PortUse { remote: Some((Ipv4Addr::from_bits(round), other)), ..POOL });
            }
            all += 11;
        }
        assert!(tally.sessions.len() <= 100);
        let found = tally.sessions[&towards(443)];
        assert!((busy - all / 50..=busy).contains(&found), "{found} of {busy}");
    }

    #[test]
    fn time_to_exhaustion_follows_the_rate_of_the_destination_that_ends_first() {
        let (start, capacity) = (Instant::now(), port_capacity(Protocol::Tcp));
        let mut forecast = Forecast::new(10);
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut observe =
            |seconds, counts: &[(PortUse, u32)]| forecast.observe(&tally(counts), at(seconds)).pools[&POOL];
        let first = observe(0, &[(towards(443), 20_000), (towards(80), 2000)]);
        assert_eq!(first, PoolUse { used: 20_000, exhaustion: None }, "no rate yet");
        let second = observe(10, &[(towards(443), 20_000), (towards(80), 12_000)]);
        let seconds = u64::from(capacity - 12_000) / 1000;
        assert_eq!(second.used, 20_000);
        assert_eq!(second.exhaustion.unwrap().as_secs(), seconds, "the other is busier, and does not grow");
        let third = observe(20, &[(towards(443), 19_000), (towards(80), 1900)]);
        assert_eq!(third.exhaustion, None, "fewer and fewer");
        let full = observe(30, &[(towards(443), capacity)]);
        assert_eq!(full.exhaustion, Some(Duration::ZERO));
    }

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let start = Instant::now();
        let mut forecast = Forecast::new(10);
        let mut used = 2000;
        let mut exhaustion = None;
        for seconds in (0..=300).step_by(10) {
            used += if seconds <= 200 { 1000 } else { 10 };
            let counted = tally(&[(towards(443), used)]);
            let at = start + Duration::from_secs(seconds);
            exhaustion = forecast.observe(&counted, at).pools[&POOL].exhaustion;
        }
        let free = port_capacity(Protocol::Tcp) - used;
        assert_eq!(exhaustion.map(|time| time.as_secs()), Some(u64::from(free)), "one a second");
        assert!(forecast.past.len() <= 8, "the past is bounded");
    }
}

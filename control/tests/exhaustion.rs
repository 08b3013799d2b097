//! The warning comes before the first failure: the allocator of ports hands out its last, the forecast looks at its table every
//! ten seconds, and Prometheus' own tool tells when the alert goes off.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conntrack::{
    Admission, Conntrack, Direction, Epoch, FiveTuple, Policy, Protocol, Refusal, Revision, SharedBook,
    TenantId, Tick, Timeouts, WorkerSlot, port_capacity,
};
use control::metrics::ports::{Forecast, PoolUse, Tally};

const EGRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 113);
const TENANT: TenantId = TenantId(0);
const STEP: Duration = Duration::from_secs(10);
/// Sessions that begin in a step: the last port goes after 13 minutes and a half.
const BEGIN: u32 = 800;

/// What is known after a step.
struct Known {
    pool: PoolUse,
    refused: u32,
}

#[test]
fn exhaustion_is_warned_of_ten_minutes_before_the_first_session_is_refused() {
    let known = ramp();
    let first_refused = known.iter().position(|known| known.refused > 0).expect("ports run out");
    assert_eq!(known[first_refused].pool.used, port_capacity(Protocol::Udp), "to the last");
    for (step, known) in known.iter().enumerate().take(first_refused).skip(3) {
        let steps = known.pool.exhaustion.expect("it is foretold").as_secs_f64() / STEP.as_secs_f64();
        let foretold = step as f64 + steps;
        assert!(
            (foretold - first_refused as f64).abs() <= 1.5,
            "step {step}: {foretold}, not {first_refused}"
        );
    }
    let seconds = |step: usize| step as u64 * STEP.as_secs();
    let is_firing = |alert: &str, at: u64, firing: bool| {
        let series = format!("count(ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}})");
        let samples = if firing { "[{ labels: '{}', value: 1 }]" } else { "[]" };
        format!("      - {{ expr: '{series}', eval_time: {at}s, exp_samples: {samples} }}\n")
    };
    let (soon, over) = ("SpillwayPortsExhaustedSoon", "SpillwayPortsExhausted");
    let checks = [
        is_firing(soon, 0, false),
        is_firing(soon, seconds(first_refused) - 600, true),
        is_firing(soon, seconds(first_refused - 1), true),
        is_firing(over, seconds(first_refused - 1), false),
        is_firing(over, seconds(first_refused), true),
    ];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ramp.yaml");
    std::fs::write(&path, rule_test(&known) + &checks.concat()).unwrap();
    let output = Command::new("promtool").args(["test", "rules"]).arg(&path).output().expect("promtool");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Lets sessions to one destination begin until ports have run out for a minute.
fn ramp() -> Vec<Known> {
    let gateway = Ipv4Addr::new(192, 168, 99, 13);
    let shared =
        SharedBook::default().next([EGRESS].into_iter(), [(TENANT, gateway)].into_iter(), Epoch(1), Epoch(0));
    let slot = WorkerSlot { worker: 0, workers: 1 };
    let mut table = Conntrack::new(100_000, slot, Arc::new(shared), [7; 32]);
    let (mut forecast, start) = (Forecast::new(1), Instant::now());
    let (mut known, mut refused, mut begun) = (Vec::new(), 0, 0);
    while refused < 6 * BEGIN {
        let mut tally = Tally::default();
        let mut uses = Vec::new();
        table.survey_ports(0, table.capacity(), &mut uses);
        uses.iter().for_each(|port| tally.count(port));
        let usage = forecast.observe(&tally, start + STEP * u32::try_from(known.len()).expect("few"));
        let pool = usage.pools.values().next().copied().unwrap_or_default();
        known.push(Known { pool, refused });
        for _ in 0..BEGIN {
            match admit(&mut table, begun) {
                Ok(_) => {}
                Err(Refusal::NoPort) => refused += 1,
                Err(other) => panic!("{other}"),
            }
            begun += 1;
        }
    }
    known
}

/// Begins a session from a pod's next port to the one destination.
fn admit(table: &mut Conntrack, number: u32) -> Result<(), Refusal> {
    let source = Ipv4Addr::from_bits(Ipv4Addr::new(10, 132, 0, 5).to_bits() + number / 60_000);
    let tuple = FiveTuple {
        source,
        destination: Ipv4Addr::new(198, 51, 100, 7),
        source_port: u16::try_from(2000 + number % 60_000).expect("a port"),
        destination_port: 443,
        protocol: Protocol::Udp,
    };
    let admission = Admission {
        tenant: TENANT,
        opened_by: Direction::Outbound,
        tuple,
        egress_addresses: &[EGRESS],
        policy: &Policy::default(),
        timeouts: &Timeouts::default(),
        loan: None,
        revision: Revision { epoch: Epoch(1), next_hops: [0, 0] },
    };
    table.admit(&admission, Tick::default()).map(drop)
}

/// Returns a rule test with what metrics would have told after each step, to which checks can be added.
fn rule_test(known: &[Known]) -> String {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus/alerts.yaml");
    let labels = format!("tenant=\"ns-blue\",egress_address=\"{EGRESS}\",protocol=\"udp\"");
    let values = |value: &dyn Fn(&Known) -> Option<f64>| {
        known.iter().map(value).fold(String::new(), |mut text, value| {
            let _ = match value {
                Some(value) => write!(text, "{value} "),
                None => write!(text, "_ "),
            };
            text
        })
    };
    let used = values(&|known| Some(f64::from(known.pool.used)));
    let left = values(&|known| Some(known.pool.exhaustion?.as_secs_f64()));
    let drops = values(&|known| (known.refused > 0).then(|| f64::from(known.refused)));
    format!(
        "rule_files: ['{}']\nevaluation_interval: 10s\ntests:\n  - interval: 10s\n    input_series:\n\
         \x20     - {{ series: 'spillway_egress_ports_used{{{labels}}}', values: '{used}' }}\n\
         \x20     - {{ series: 'spillway_egress_ports_exhaustion_seconds{{{labels}}}', values: '{left}' }}\n\
         \x20     - {{ series: 'spillway_tenant_dropped_packets_total{{tenant=\"ns-blue\",direction=\"outbound\",\
         reason=\"no_port\"}}', values: '{drops}' }}\n    promql_expr_test:\n",
        rules.display(),
    )
}

//! The exposition of a gateway that was made up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use conntrack::{Epoch, PortUse, Protocol, TenantId};
use fastpath::report::{AttachMode, EgressReport, FramesReport, SteerReport};
use fastpath::timing::TurnTiming;

use super::*;
use crate::metrics::ports::{Forecast, PortUsage, Tally};
use crate::metrics::reference;
use crate::metrics::table::Kind;
use crate::vitals::Fitness;

#[test]
fn every_metric_has_help_a_type_and_samples_and_none_is_unknown() {
    let text = render(&sample(1), &well()).unwrap();
    for metric in reference() {
        let is_said = |line: String| text.lines().any(|said| said == line);
        assert!(is_said(format!("# HELP {} {}", metric.name, metric.help)), "no help of {}", metric.name);
        assert!(is_said(format!("# TYPE {} {}", metric.name, metric.kind.name())), "{}", metric.name);
        let is_sample = |line: &str| line.starts_with(&format!("{}{{", metric.name));
        let is_sample = |line: &str| is_sample(line) || line.starts_with(&format!("{} ", metric.name));
        let is_histogram = metric.kind == Kind::Histogram && text.contains(&format!("{}_sum{{", metric.name));
        assert!(is_histogram || text.lines().any(is_sample), "no sample of {}", metric.name);
    }
    let said = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
    assert_eq!(said, reference().len());
}

#[test]
fn names_follow_the_conventions() {
    let mut names = BTreeSet::new();
    for metric in reference() {
        assert!(names.insert(metric.name), "{} is there twice", metric.name);
        assert!(metric.name.starts_with("spillway_"), "{}", metric.name);
        assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
        assert!(
            metric.help.ends_with('.') && !metric.help.contains('\n'),
            "{}: {}",
            metric.name,
            metric.help
        );
        if ["seconds", "bytes"].contains(&metric.unit) {
            let name = metric.name.trim_end_matches("_total");
            assert!(name.ends_with(&format!("_{}", metric.unit)), "{}: {}", metric.name, metric.unit);
        }
    }
}

#[test]
fn every_drop_reason_is_there_from_the_start_and_of_tenants_those_that_there_were() {
    let samples = samples(&render(&sample(1), &well()).unwrap());
    for reason in DropReason::ALL {
        for direction in DIRECTIONS {
            let series = format!(
                "spillway_dropped_packets_total{{direction=\"{direction}\",reason=\"{}\"}}",
                reason.name()
            );
            assert!(samples.contains_key(&series), "no {series}");
        }
    }
    let total = |direction: &str, reason: &str| {
        samples[&format!("spillway_dropped_packets_total{{direction=\"{direction}\",reason=\"{reason}\"}}")]
    };
    assert_eq!((total("outbound", "no_port"), total("inbound", "no_port")), (7.0, 0.0));
    assert_eq!((total("unknown", "worker_panic"), total("inbound", "worker_panic")), (3.0, 1.0));
    let of_tenant = |series: &String| series.starts_with("spillway_tenant_dropped_packets_total");
    let of_tenant: Vec<_> = samples.iter().filter(|(series, _)| of_tenant(series)).collect();
    let expected = |direction: &str, reason: &str| {
        format!(
            "spillway_tenant_dropped_packets_total{{tenant=\"ns-0\",direction=\"{direction}\",reason=\"{reason}\"}}"
        )
    };
    let expected = [(expected("inbound", "no_session"), 2.0), (expected("outbound", "no_port"), 7.0)]
        .map(|(s, v)| (s, v));
    assert_eq!(of_tenant, expected.iter().map(|(series, value)| (series, value)).collect::<Vec<_>>());
}

#[test]
fn values_are_in_base_units() {
    let samples = samples(&render(&sample(1), &well()).unwrap());
    for (series, value) in [
        ("spillway_start_time_seconds", 1_700_000_000.5),
        ("spillway_ready", 0.0),
        ("spillway_healthy", 1.0),
        ("spillway_tenant_bytes_total{tenant=\"ns-0\",direction=\"inbound\"}", 900.0),
        ("spillway_worker_busy_seconds_total{worker=\"0\"}", 0.00301),
        ("spillway_pipeline_latency_seconds_bucket{worker=\"0\",le=\"0.000016384\"}", 1.0),
        ("spillway_pipeline_latency_seconds_bucket{worker=\"0\",le=\"+Inf\"}", 2.0),
        ("spillway_kubernetes_api_age_seconds", 1.5),
        ("spillway_succession_away_seconds", 0.25),
        (
            "spillway_egress_ports_free{tenant=\"ns-0\",egress_address=\"192.168.55.113\",protocol=\"tcp\"}",
            60_000.0,
        ),
        (
            "spillway_egress_ports_exhaustion_seconds{tenant=\"ns-0\",egress_address=\"192.168.55.113\",protocol=\"tcp\"}",
            240.0,
        ),
        ("spillway_xdp_frames_total{side=\"inside\",interface=\"enp1s0\",verdict=\"arp_passed\"}", 5.0),
    ] {
        let found = samples.get(series).copied();
        assert!(
            found.is_some_and(|found| (found - value).abs() < 1e-9),
            "{series} is {found:?}, not {value}"
        );
    }
}

#[test]
fn a_cluster_that_never_answered_is_infinitely_old() {
    let mut sample = sample(1);
    sample.cluster.as_mut().unwrap().age = None;
    let samples = samples(&render(&sample, &well()).unwrap());
    assert_eq!(samples["spillway_kubernetes_api_age_seconds"], f64::INFINITY);
}

#[test]
fn a_gateway_without_kubernetes_has_none_of_its_metrics() {
    let sample = Sample { cluster: None, inheritance: None, ..sample(0) };
    let text = render(&sample, &well()).unwrap();
    assert!(!text.contains("kubernetes") && !text.contains("succession") && !text.contains("tenant=\""));
}

#[test]
fn each_tenant_has_so_many_series_as_is_documented() {
    let series = |tenants| samples(&render(&sample(tenants), &well()).unwrap()).len();
    let lost = 2; // reasons and directions in which each lost packets
    assert_eq!(series(10_000) - series(1), 9999 * (16 + lost));
}

/// Reads an exposition: series and value.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

fn well() -> Wellbeing {
    let ready = Fitness { ok: false, reasons: vec!["starting".to_owned()] };
    Wellbeing { health: Fitness { ok: true, reasons: Vec::new() }, readiness: ready }
}

/// Returns what a gateway with so many tenants tells, each metric of which has a sample if there is one.
fn sample(tenants: u16) -> Sample {
    let interface = |side, name: &str| InterfaceSample {
        side,
        name: name.to_owned(),
        is_up: true,
        reattachments: 0,
        disturbances: 1,
        unresolved: 2,
    };
    let inheritance = Inheritance { age: Duration::from_millis(250), restored: 4, ..Inheritance::default() };
    Sample {
        started: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_500),
        epoch_wanted: 3,
        epoch_applied: 2,
        inheritance: Some(inheritance),
        report: report(tenants),
        tenants: (0..tenants)
            .map(|id| TenantSample {
                id: TenantId(id),
                name: format!("ns-{id}"),
                ports: 3,
                is_troubled: false,
            })
            .collect(),
        egress: (0..tenants).map(egress).collect(),
        ports: Arc::new(port_usage()),
        interfaces: [interface(Side::Inside, "enp1s0"), interface(Side::Outside, "enp7s0")],
        cluster: Some(ClusterSample {
            age: Some(Duration::from_millis(1500)),
            is_answering: true,
            kinds: vec![("nodes", 2, true)],
            refused_tenants: 0,
            notices: 0,
        }),
    }
}

const EGRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 55, 113);

fn egress(tenant: u16) -> EgressReport {
    let address = Ipv4Addr::from_bits(EGRESS.to_bits() + u32::from(tenant));
    EgressReport { tenant: TenantId(tenant), address, blocks: 2, pods: 1 }
}

/// Returns the usage of one egress address that was asked of twice.
fn port_usage() -> PortUsage {
    let (remote, start) = (Some((Ipv4Addr::new(198, 51, 100, 7), 443)), Instant::now());
    let port = PortUse { tenant: TenantId(0), outside: EGRESS, protocol: Protocol::Tcp, remote };
    let (mut forecast, mut tally) = (Forecast::new(10), Tally::default());
    (0..2012).for_each(|_| tally.count(&port));
    forecast.observe(&tally, start);
    (0..2500).for_each(|_| tally.count(&port));
    forecast.observe(&tally, start + Duration::from_secs(10))
}

fn report(tenants: u16) -> Report {
    let mut counted = TenantReport { inbound_bytes: 900, sessions_begun: 2, ..TenantReport::default() };
    counted.add_drops(Side::Inside, DropReason::NoPort, 7);
    counted.add_drops(Side::Outside, DropReason::NoSession, 2);
    let drops = |of: &dyn Fn(DropReason) -> u64| {
        DropReason::ALL.iter().map(|reason| (*reason, of(*reason))).collect::<Vec<_>>()
    };
    let from_pods = drops(&|reason| if reason == DropReason::NoPort { 7 } else { 0 });
    let to_pods = drops(&|reason| u64::from(reason == DropReason::WorkerPanic));
    let all = drops(&|reason| match reason {
        DropReason::NoPort => 7,
        DropReason::WorkerPanic => 4,
        _ => 0,
    });
    Report {
        workers: vec![worker()],
        steering: vec![SteerReport {
            side: Side::Inside,
            mode: AttachMode::Native,
            verdicts: vec![("arp_passed", 5)],
        }],
        drops: all,
        drops_from: [from_pods, to_pods],
        tenants: (0..tenants).map(|id| (TenantId(id), counted.clone())).collect(),
        frames: FramesReport { total: 10, at_workers: 8, in_commons: 1, handed_over: 1 },
    }
}

fn worker() -> WorkerReport {
    let timing = TurnTiming::default();
    timing.add(Duration::from_micros(10));
    timing.add(Duration::from_millis(3));
    WorkerReport {
        worker: 0,
        core: None,
        epoch: Epoch(2),
        sessions: 1,
        session_capacity: 8,
        panics: 0,
        handed_over: 0,
        sent_by_others: 0,
        senders: [None, None],
        turns: 9,
        times: timing.read(),
        hairpinned: 0,
        fragments_made: 0,
        queues: vec![QueueReport {
            side: Side::Inside,
            queue: 0,
            received: 1,
            transmitted: 1,
            rx_dropped: 0,
            rx_ring_full: 0,
            fill_ring_empty: 0,
            invalid_descriptors: 0,
            zero_copy: false,
        }],
    }
}

//! All metrics as text.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::SystemTime;

use conntrack::port_capacity;
use fastpath::report::{DropCounts, QueueReport, Report, TenantReport, WorkerReport};
use fastpath::snapshot::Side;
use fastpath::succession::Inheritance;
use fastpath::verdict::DropReason;
use prometheus::TextEncoder;

use super::family::Family;
use super::sample::{ClusterSample, InterfaceSample, Sample, TenantSample, Wellbeing};
use super::table as metrics;

/// Labels of packets from pods, and of packets to pods.
const DIRECTIONS: [&str; 2] = ["outbound", "inbound"];

/// Returns the exposition, in the text format 0.0.4.
///
/// # Errors
/// When the encoder refuses a metric, which none gives reason to.
pub fn render(sample: &Sample, wellbeing: &Wellbeing) -> Result<String, prometheus::Error> {
    let mut families = gateway(sample, wellbeing);
    families.extend(tenants(&sample.report, &sample.tenants));
    families.extend(ports(sample));
    families.push(drops(&sample.report));
    families.extend(workers(&sample.report));
    families.extend(queues(&sample.report));
    families.extend(interfaces(&sample.report, &sample.interfaces));
    families.extend(sample.cluster.iter().flat_map(cluster));
    let families: Vec<_> = families.into_iter().filter_map(Family::into_proto).collect();
    TextEncoder::new().encode_to_string(&families)
}

fn gateway(sample: &Sample, wellbeing: &Wellbeing) -> Vec<Family> {
    let mut build = Family::of(metrics::BUILD_INFO);
    build.add(&[&env!("CARGO_PKG_VERSION")], 1u32);
    let started = sample.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut families = vec![
        build,
        Family::single(metrics::START_TIME, started.as_secs_f64()),
        Family::single(metrics::READY, wellbeing.readiness.ok),
        Family::single(metrics::HEALTHY, wellbeing.health.ok),
        Family::single(metrics::EPOCH_WANTED, sample.epoch_wanted),
        Family::single(metrics::EPOCH_APPLIED, sample.epoch_applied),
    ];
    families.extend(sample.inheritance.iter().flat_map(succession));
    families
}

fn succession(inheritance: &Inheritance) -> [Family; 2] {
    let Inheritance { age, restored, over, disowned, unfit, torn, .. } = *inheritance;
    let mut sessions = Family::of(metrics::SUCCESSION);
    let results =
        [("restored", restored), ("over", over), ("disowned", disowned), ("unfit", unfit), ("torn", torn)];
    for (result, count) in results {
        sessions.add(&[&result], count);
    }
    [sessions, Family::single(metrics::SUCCESSION_AWAY, age.as_secs_f64())]
}

fn tenants(report: &Report, tenants: &[TenantSample]) -> [Family; 7] {
    let [mut packets, mut bytes, mut sessions, mut begun, mut dropped, mut troubled, mut ports] = [
        metrics::TENANT_PACKETS,
        metrics::TENANT_BYTES,
        metrics::TENANT_SESSIONS,
        metrics::TENANT_BEGUN,
        metrics::TENANT_DROPPED,
        metrics::TENANT_TROUBLED,
        metrics::TENANT_PORTS,
    ]
    .map(Family::of);
    let nothing = TenantReport::default();
    for TenantSample { id, name, ports: ports_used, is_troubled } in tenants {
        let counted = report.tenant(*id).unwrap_or(&nothing);
        let [outbound, inbound] = DIRECTIONS;
        packets.add(&[name, &outbound], counted.outbound_packets);
        packets.add(&[name, &inbound], counted.inbound_packets);
        bytes.add(&[name, &outbound], counted.outbound_bytes);
        bytes.add(&[name, &inbound], counted.inbound_bytes);
        sessions.add(&[name], counted.sessions);
        begun.add(&[name], counted.sessions_begun);
        troubled.add(&[name], *is_troubled);
        ports.add(&[name], *ports_used);
        for (reason, all) in &counted.drops {
            let of_pods = count_of(&counted.outbound_drops, *reason);
            for (direction, count) in [(outbound, of_pods), (inbound, all - of_pods)] {
                if count > 0 {
                    dropped.add(&[name, &direction, &reason.name()], count);
                }
            }
        }
    }
    [packets, bytes, sessions, begun, dropped, troubled, ports]
}

fn count_of(drops: &DropCounts, reason: DropReason) -> u64 {
    drops.iter().find(|(met, _)| *met == reason).map_or(0, |(_, count)| *count)
}

fn ports(sample: &Sample) -> Vec<Family> {
    let names: HashMap<_, _> = sample.tenants.iter().map(|tenant| (tenant.id, &tenant.name)).collect();
    let [mut used, mut free, mut capacity, mut exhaustion, mut blocks, mut pods, mut destinations] = [
        metrics::PORTS_USED,
        metrics::PORTS_FREE,
        metrics::PORTS_CAPACITY,
        metrics::EXHAUSTION,
        metrics::PORT_BLOCKS,
        metrics::PODS,
        metrics::DESTINATION_PORTS,
    ]
    .map(Family::of);
    for egress in &sample.egress {
        let Some(name) = names.get(&egress.tenant) else { continue };
        blocks.add(&[name, &egress.address], egress.blocks);
        pods.add(&[name, &egress.address], egress.pods);
        for (protocol, pool) in sample.ports.of(egress) {
            let labels: [&dyn Display; 3] = [name, &egress.address, &protocol.name()];
            let most = port_capacity(protocol);
            used.add(&labels, pool.used);
            free.add(&labels, most.saturating_sub(pool.used));
            capacity.add(&labels, most);
            if let Some(time) = pool.exhaustion {
                exhaustion.add(&labels, time.as_secs_f64());
            }
        }
    }
    for (port, used) in &sample.ports.top {
        let (Some(name), Some((address, number))) = (names.get(&port.tenant), port.remote) else { continue };
        destinations.add(&[name, &port.outside, &port.protocol.name(), &address, &number], *used);
    }
    let age = sample.ports.taken_at.map_or(f64::INFINITY, |at| at.elapsed().as_secs_f64());
    vec![
        used,
        free,
        capacity,
        exhaustion,
        blocks,
        pods,
        destinations,
        Family::single(metrics::SURVEY_AGE, age),
        Family::single(metrics::SURVEY_DURATION, sample.ports.took.as_secs_f64()),
    ]
}

/// Returns the drops of everybody; where packets came from that were lost in a panic nobody knows.
fn drops(report: &Report) -> Family {
    let mut dropped = Family::of(metrics::DROPPED);
    for (reason, all) in &report.drops {
        let by_side = Side::BOTH.map(|side| count_of(&report.drops_from[side.index()], *reason));
        for (direction, count) in DIRECTIONS.into_iter().zip(by_side) {
            dropped.add(&[&direction, &reason.name()], count);
        }
        if *reason == DropReason::WorkerPanic {
            dropped.add(&[&"unknown", &reason.name()], all.saturating_sub(by_side.iter().sum()));
        }
    }
    dropped
}

fn workers(report: &Report) -> Vec<Family> {
    let of = |metric, value: fn(&WorkerReport) -> u64| {
        let mut family = Family::of(metric);
        report.workers.iter().for_each(|worker| family.add(&[&worker.worker], value(worker)));
        family
    };
    let (mut busy, mut latency) = (Family::of(metrics::WORKER_BUSY), Family::of(metrics::LATENCY));
    for worker in &report.workers {
        busy.add(&[&worker.worker], worker.times.sum().as_secs_f64());
        latency.add_times(&[&worker.worker], &worker.times);
    }
    let mut frames = Family::of(metrics::FRAMES);
    let places = report.frames;
    frames.add(&[&"at_workers"], places.at_workers);
    frames.add(&[&"in_commons"], places.in_commons);
    frames.add(&[&"handed_over"], places.handed_over);
    vec![
        of(metrics::WORKER_SESSIONS, |worker| worker.sessions),
        of(metrics::WORKER_CAPACITY, |worker| worker.session_capacity),
        busy,
        of(metrics::WORKER_TURNS, |worker| worker.turns),
        latency,
        of(metrics::WORKER_PANICS, |worker| worker.panics),
        of(metrics::WORKER_HANDED, |worker| worker.handed_over),
        of(metrics::WORKER_SENT, |worker| worker.sent_by_others),
        of(metrics::WORKER_HAIRPINNED, |worker| worker.hairpinned),
        of(metrics::WORKER_FRAGMENTS, |worker| worker.fragments_made),
        of(metrics::WORKER_EPOCH, |worker| u64::from(worker.epoch.0)),
        frames,
        Family::single(metrics::FRAMES_CAPACITY, places.total),
    ]
}

fn queues(report: &Report) -> [Family; 3] {
    let [mut received, mut transmitted, mut dropped] =
        [metrics::QUEUE_RECEIVED, metrics::QUEUE_TRANSMITTED, metrics::QUEUE_DROPPED].map(Family::of);
    for queue in report.workers.iter().flat_map(|worker| &worker.queues) {
        let QueueReport { side, queue: number, rx_dropped, rx_ring_full, fill_ring_empty, .. } = *queue;
        received.add(&[&side.name(), &number], queue.received);
        transmitted.add(&[&side.name(), &number], queue.transmitted);
        let reasons = [
            ("rx_ring_full", rx_ring_full),
            ("fill_ring_empty", fill_ring_empty),
            ("rx_dropped", rx_dropped),
            ("invalid_descriptors", queue.invalid_descriptors),
        ];
        for (reason, count) in reasons {
            dropped.add(&[&side.name(), &number, &reason], count);
        }
    }
    [received, transmitted, dropped]
}

fn interfaces(report: &Report, interfaces: &[InterfaceSample; 2]) -> [Family; 5] {
    let [mut up, mut reattachments, mut disturbances, mut frames, mut unresolved] = [
        metrics::INTERFACE_UP,
        metrics::REATTACHMENTS,
        metrics::DISTURBANCES,
        metrics::XDP_FRAMES,
        metrics::UNRESOLVED,
    ]
    .map(Family::of);
    for interface in interfaces {
        let (side, name) = (interface.side.name(), &interface.name);
        up.add(&[&side, name], interface.is_up);
        reattachments.add(&[&side, name], interface.reattachments);
        disturbances.add(&[&side, name], interface.disturbances);
        unresolved.add(&[&side], interface.unresolved);
        let steering = report.steering.iter().filter(|steering| steering.side == interface.side);
        for (verdict, count) in steering.flat_map(|steering| &steering.verdicts) {
            frames.add(&[&side, name, verdict], *count);
        }
    }
    [up, reattachments, disturbances, frames, unresolved]
}

fn cluster(cluster: &ClusterSample) -> [Family; 6] {
    let [mut objects, mut followed] = [metrics::OBJECTS, metrics::FOLLOWED].map(Family::of);
    for (kind, count, is_followed) in &cluster.kinds {
        objects.add(&[kind], *count);
        followed.add(&[kind], *is_followed);
    }
    let age = cluster.age.map_or(f64::INFINITY, |age| age.as_secs_f64());
    [
        Family::single(metrics::API_AGE, age),
        Family::single(metrics::API_UP, cluster.is_answering),
        objects,
        followed,
        Family::single(metrics::REFUSED_TENANTS, cluster.refused_tenants),
        Family::single(metrics::NOTICES, cluster.notices),
    ]
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

//! `spillway status`: the gateway's state and counters.

use clap::Args;

use super::tenant;
use crate::api::types::{
    InterfaceStatus, KubernetesStatus, NatLogSink, NatLogStatus, QueueStatus, Status, SuccessionStatus,
    WorkerStatus,
};
use crate::client::Client;
use crate::output::{self, BAD, FAINT, GOOD, HEADING, WARN, styled};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  spillway status --json | jq .drops")]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) async fn execute(self, client: &Client) -> anyhow::Result<()> {
        let status: Status = client.get("/v1/status").await?;
        if self.json {
            return Ok(output::print_json(&status)?);
        }
        Ok(output::print(&describe(&status))?)
    }
}

fn describe(status: &Status) -> String {
    let mut parts = vec![
        headline(status),
        section("Interfaces", &interfaces(&status.interfaces)),
        section("Workers", &workers(&status.workers)),
        section("Queues", &queues(&status.workers)),
    ];
    if status.tenants.is_empty() {
        parts.push(section("Tenants", "none; `spillway tenant add --help` shows how to add one"));
    } else {
        parts.push(section("Tenants", &tenant::table(&status.tenants)));
    }
    parts.extend(status.kubernetes.as_ref().map(|kubernetes| section("Kubernetes", &cluster(kubernetes))));
    parts.push(section("Dropped by workers", &counters(status.drops.iter())));
    for interface in &status.interfaces {
        let title = format!("Frames seen by XDP on {}", interface.name);
        parts.push(section(&title, &counters(interface.verdicts.iter())));
    }
    parts.join("\n\n")
}

fn headline(status: &Status) -> String {
    let obstacle = |reason: &String| format!("\n{}", styled(BAD, format!("not ready: {reason}")));
    let obstacles: String = status.ready.reasons.iter().map(obstacle).collect();
    let epoch = status.epoch;
    let applied = if epoch.applied == epoch.wanted {
        styled(GOOD, format!("snapshot {} applied by all workers", epoch.wanted))
    } else {
        styled(BAD, format!("snapshot {} wanted, {} applied by all workers", epoch.wanted, epoch.applied))
    };
    let inherited = status.succession.as_ref().and_then(inheritance);
    let inherited = inherited.map(|line| format!("\n{line}")).unwrap_or_default();
    let logged = status.nat_log.as_ref().map(|log| format!("\n{}", translations(log))).unwrap_or_default();
    format!(
        "{}, process {}, up {}, {} sessions\n{applied}{inherited}{logged}",
        styled(HEADING, format!("spillway {}", status.version)),
        status.pid,
        output::seconds(status.uptime_seconds),
        status.sessions,
    ) + &obstacles
}

/// Tells how the log of translations does.
fn translations(log: &NatLogStatus) -> String {
    let NatLogStatus { records, over_rate, lost, sinks } = log;
    let sink = |sink: &NatLogSink| match (&sink.trouble, sink.lost) {
        (None, 0) => sink.name.clone(),
        (None, lost) => styled(WARN, format!("{}, {lost} lost", sink.name)),
        (Some(trouble), lost) => styled(BAD, format!("{} fails, {lost} lost: {trouble}", sink.name)),
    };
    let sinks: Vec<_> = sinks.iter().map(sink).collect();
    let told = format!("translations: {records} records to {}", sinks.join("; "));
    match over_rate + lost {
        0 => told,
        _ => told + &styled(WARN, format!("; not written: {over_rate} over the rate, {lost} too fast")),
    }
}

/// Tells what became of the sessions of the process before, if there were any.
fn inheritance(succession: &SuccessionStatus) -> Option<String> {
    let SuccessionStatus { away_milliseconds, restored, over, disowned, unfit, torn, set_aside } = succession;
    if let Some(why) = set_aside {
        return Some(styled(BAD, format!("the sessions of the process before are lost: {why}")));
    }
    let ended = over + disowned + unfit + torn;
    let told = format!(
        "{restored} sessions of the process before went on after {away_milliseconds} ms, {ended} did not"
    );
    (restored + ended > 0).then_some(told)
}

fn section(title: &str, body: &str) -> String {
    format!("{}\n{body}", styled(HEADING, title))
}

fn interfaces(interfaces: &[InterfaceStatus]) -> String {
    let rows = interfaces.iter().map(|interface| {
        vec![
            interface.side.clone(),
            interface.name.clone(),
            interface.address.to_string(),
            interface.mac.clone(),
            interface.mtu.to_string(),
            interface.xdp_mode.clone(),
            interface.queues.to_string(),
            interface.reattachments.to_string(),
        ]
    });
    let header = ["SIDE", "INTERFACE", "ADDRESS", "MAC", "MTU", "XDP", "QUEUES", "REATTACHED"];
    let mut lines = vec![output::table(&header, &["MTU", "QUEUES", "REATTACHED"], rows)];
    let away = interfaces.iter().filter_map(|interface| {
        let (seconds, trouble) = (interface.away_seconds?, interface.trouble.as_deref().unwrap_or_default());
        let since = output::seconds(seconds);
        let InterfaceStatus { side, name, .. } = interface;
        Some(styled(BAD, format!("{side}: {name} is away since {since}: {trouble}")))
    });
    lines.extend(away);
    let disturbed = interfaces.iter().filter(|interface| interface.disturbances > 0).map(|interface| {
        let InterfaceStatus { side, name, disturbances, .. } = interface;
        styled(BAD, format!("{side}: somebody else took the XDP program of {name}, or what belongs to it, {disturbances} times; the log has when"))
    });
    lines.extend(disturbed);
    lines.join("\n")
}

fn workers(workers: &[WorkerStatus]) -> String {
    let sum = |worker: &WorkerStatus, side: &str, count: fn(&QueueStatus) -> u64| -> String {
        worker.queues.iter().filter(|queue| queue.side == side).map(count).sum::<u64>().to_string()
    };
    let lost: fn(&QueueStatus) -> u64 =
        |queue| queue.rx_dropped + queue.rx_ring_full + queue.fill_ring_empty + queue.invalid_descriptors;
    let rows = workers.iter().map(|worker| {
        vec![
            worker.worker.to_string(),
            worker.core.map_or("any".to_owned(), |core| core.to_string()),
            format!("{}/{}", worker.sessions, worker.session_capacity),
            sum(worker, "inside", |queue| queue.received),
            sum(worker, "inside", |queue| queue.transmitted),
            sum(worker, "outside", |queue| queue.received),
            sum(worker, "outside", |queue| queue.transmitted),
            worker.queues.iter().map(lost).sum::<u64>().to_string(),
            worker.panics.to_string(),
        ]
    });
    let header = ["WORKER", "CORE", "SESSIONS", "IN RX", "IN TX", "OUT RX", "OUT TX", "RING DROPS", "PANICS"];
    output::table(&header, &header, rows)
}

/// Tells which worker serves which queues, and who sends for those that have none.
fn queues(workers: &[WorkerStatus]) -> String {
    let of_side = |worker: &WorkerStatus, side: &str, sender: Option<usize>| {
        let queues = worker.queues.iter().filter(|queue| queue.side == side);
        let numbers: Vec<_> = queues.map(|queue| queue.queue.to_string()).collect();
        match (numbers.is_empty(), sender) {
            (false, _) => numbers.join(", "),
            (true, Some(sender)) => format!("none, sends by worker {sender}"),
            (true, None) => "none".to_owned(),
        }
    };
    let rows = workers.iter().map(|worker| {
        vec![
            worker.worker.to_string(),
            worker.core.map_or("any".to_owned(), |core| core.to_string()),
            of_side(worker, "inside", worker.inside_sender),
            of_side(worker, "outside", worker.outside_sender),
            worker.handed_over.to_string(),
            worker.sent_by_others.to_string(),
        ]
    });
    let header = ["WORKER", "CORE", "INSIDE QUEUES", "OUTSIDE QUEUES", "HANDED OVER", "SENT BY OTHERS"];
    output::table(&header, &["WORKER", "CORE", "HANDED OVER", "SENT BY OTHERS"], rows)
}

fn cluster(status: &KubernetesStatus) -> String {
    let age = status.age_seconds.map(output::seconds);
    let contact = match (&status.error, age) {
        (None, age) => {
            styled(GOOD, format!("{} answered {} ago", status.server, age.unwrap_or_else(|| "0s".to_owned())))
        }
        (Some(error), Some(age)) => {
            styled(BAD, format!("{} answered {age} ago, the last good state stays: {error}", status.server))
        }
        (Some(error), None) => styled(
            BAD,
            format!("{} has not answered yet, the state file's state is used: {error}", status.server),
        ),
    };
    let kinds = status.kinds.iter().map(|kind| {
        let state = kind.error.as_deref().unwrap_or(if kind.listed { "followed" } else { "not listed yet" });
        vec![kind.kind.clone(), kind.objects.to_string(), state.to_owned()]
    });
    let mut lines = vec![contact, output::table(&["KIND", "OBJECTS", "STATE"], &["OBJECTS"], kinds)];
    let refused = status.refused_tenants.iter();
    lines.extend(refused.map(|refused| styled(BAD, format!("tenant {}: {}", refused.name, refused.message))));
    let notices = status.notices.iter();
    lines.extend(notices.map(|it| styled(BAD, format!("{} {}: {}", it.kind, it.name, it.message))));
    lines.join("\n")
}

/// Returns counters that are not zero, aligned.
fn counters<'a>(counters: impl Iterator<Item = (&'a String, &'a u64)>) -> String {
    let counted: Vec<_> = counters.filter(|(_, count)| **count != 0).collect();
    if counted.is_empty() {
        return styled(FAINT, "none");
    }
    let rows = counted.iter().map(|(name, count)| format!("{count:>12}  {name}"));
    rows.collect::<Vec<_>>().join("\n")
}

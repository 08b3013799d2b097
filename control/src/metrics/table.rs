//! Every metric: its name, type, unit, labels and help, as the exposition and the documentation have them.

/// What a metric counts, as Prometheus has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 when the daemon starts.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How many values were not above each of some bounds, their number and their sum.
    Histogram,
}

/// One metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, by the conventions of Prometheus.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// What it is counted in.
    pub unit: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it means, in a sentence.
    pub help: &'static str,
}

impl Kind {
    /// Returns its name in the exposition.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ $constant:ident: $kind:ident of $unit:literal, $labels:expr, $name:literal;)+) => {
        $(
            $(#[doc = $doc])+
            pub(super) const $constant: &Metric = &Metric {
                name: $name,
                kind: Kind::$kind,
                unit: $unit,
                labels: &$labels,
                help: concat!($($doc),+).trim_ascii(),
            };
        )+

        /// Returns every metric that there is, in the order of the exposition.
        pub fn reference() -> &'static [&'static Metric] {
            &[$($constant,)+]
        }
    };
}

metrics! {
    /// Version of the daemon, as a label; the value is 1.
    BUILD_INFO: Gauge of "", ["version"], "spillway_build_info";
    /// When the daemon started, since 1970.
    START_TIME: Gauge of "seconds", [], "spillway_start_time_seconds";
    /// Whether the gateway serves as it should, as `spillway health` tells: 1 or 0.
    READY: Gauge of "", [], "spillway_ready";
    /// Whether every worker and the control loop turn, as `spillway health` tells: 1 or 0.
    HEALTHY: Gauge of "", [], "spillway_healthy";
    /// Number of the newest configuration snapshot.
    EPOCH_WANTED: Gauge of "", [], "spillway_snapshot_epoch_wanted";
    /// Number of the newest configuration snapshot that every worker uses.
    EPOCH_APPLIED: Gauge of "", [], "spillway_snapshot_epoch_applied";
    /// Sessions of the process before, by what became of them: restored, over, disowned, unfit or torn.
    SUCCESSION: Gauge of "sessions", ["result"], "spillway_succession_sessions";
    /// How long nobody served the sessions of the process before.
    SUCCESSION_AWAY: Gauge of "seconds", [], "spillway_succession_away_seconds";

    /// Packets forwarded, outbound (from pods) or inbound (to pods).
    TENANT_PACKETS: Counter of "packets", ["tenant", "direction"], "spillway_tenant_packets_total";
    /// Bytes of the frames of forwarded packets, outbound (from pods) or inbound (to pods).
    TENANT_BYTES: Counter of "bytes", ["tenant", "direction"], "spillway_tenant_bytes_total";
    /// Sessions now.
    TENANT_SESSIONS: Gauge of "sessions", ["tenant"], "spillway_tenant_sessions";
    /// Sessions that began; those taken over from the process before did so there.
    TENANT_BEGUN: Counter of "sessions", ["tenant"], "spillway_tenant_sessions_begun_total";
    /// Packets of a tenant that were dropped, by direction and reason; only reasons that there were.
    TENANT_DROPPED: Counter of "packets", ["tenant", "direction", "reason"], "spillway_tenant_dropped_packets_total";
    /// Whether the kernel or the fast path refused something that the tenant needs: 1 or 0.
    TENANT_TROUBLED: Gauge of "", ["tenant"], "spillway_tenant_troubled";

    /// Outside ports that a tenant has, each as often as it is taken towards another destination.
    TENANT_PORTS: Gauge of "ports", ["tenant"], "spillway_tenant_ports_used";

    /// Ports of an egress address that are taken towards its busiest destination; found by a survey every ten seconds.
    PORTS_USED: Gauge of "ports", ["tenant", "egress_address", "protocol"], "spillway_egress_ports_used";
    /// Ports of an egress address that are free towards its busiest destination; without any, new sessions to it are dropped
    /// for the reason no_port.
    PORTS_FREE: Gauge of "ports", ["tenant", "egress_address", "protocol"], "spillway_egress_ports_free";
    /// Ports of an egress address that there are towards each destination, those for ports below 1024 not counted.
    PORTS_CAPACITY: Gauge of "ports", ["tenant", "egress_address", "protocol"], "spillway_egress_ports_capacity";
    /// Time until every port of an egress address is taken towards some destination, at the rate of the last minute; absent
    /// while no more are taken than before.
    EXHAUSTION: Gauge of "seconds", ["tenant", "egress_address", "protocol"], "spillway_egress_ports_exhaustion_seconds";
    /// Blocks of 64 ports of an egress address that workers have leased, of 1024.
    PORT_BLOCKS: Gauge of "blocks", ["tenant", "egress_address"], "spillway_egress_port_blocks_leased";
    /// Pods that are paired with an egress address.
    PODS: Gauge of "pods", ["tenant", "egress_address"], "spillway_egress_pods";
    /// Ports of an egress address that are taken towards a destination, of those destinations that have the most; how many
    /// are told of is control.metrics_destinations in the config file.
    DESTINATION_PORTS: Gauge of "ports", ["tenant", "egress_address", "protocol", "destination", "destination_port"], "spillway_destination_ports_used";
    /// Seconds since the last survey of the ports began; +Inf when there was none yet.
    SURVEY_AGE: Gauge of "seconds", [], "spillway_port_survey_age_seconds";
    /// How long the last survey of the ports took.
    SURVEY_DURATION: Gauge of "seconds", [], "spillway_port_survey_duration_seconds";

    /// Packets that were dropped, whoever's they were, by direction and reason; the drop reasons are explained one by one.
    DROPPED: Counter of "packets", ["direction", "reason"], "spillway_dropped_packets_total";

    /// Sessions that a worker holds.
    WORKER_SESSIONS: Gauge of "sessions", ["worker"], "spillway_worker_sessions";
    /// Sessions that a worker can hold.
    WORKER_CAPACITY: Gauge of "sessions", ["worker"], "spillway_worker_sessions_capacity";
    /// Time that a worker spent in turns that found frames; its rate is the worker's load, at most 1.
    WORKER_BUSY: Counter of "seconds", ["worker"], "spillway_worker_busy_seconds_total";
    /// Turns that a worker finished; an idle one takes ten a second, one that is stuck none.
    WORKER_TURNS: Counter of "turns", ["worker"], "spillway_worker_turns_total";
    /// Time of a turn that found frames, from receiving them to handing all of them on: the most that a frame of the turn
    /// spent in the worker.
    LATENCY: Histogram of "seconds", ["worker"], "spillway_pipeline_latency_seconds";
    /// Times that a worker was restarted after a panic.
    WORKER_PANICS: Counter of "panics", ["worker"], "spillway_worker_panics_total";
    /// Frames that came to a worker and were handed over to the one that they belong to.
    WORKER_HANDED: Counter of "frames", ["worker"], "spillway_worker_handed_over_frames_total";
    /// Frames that another worker sent for this one, which has no queue on that side.
    WORKER_SENT: Counter of "frames", ["worker"], "spillway_worker_sent_by_others_frames_total";
    /// Packets between pods by way of an egress address, which came back in by the outside.
    WORKER_HAIRPINNED: Counter of "packets", ["worker"], "spillway_worker_hairpinned_packets_total";
    /// Fragments made of packets that were too large for their link, the first of each not counted.
    WORKER_FRAGMENTS: Counter of "fragments", ["worker"], "spillway_worker_fragments_made_total";
    /// Number of the configuration snapshot that a worker uses.
    WORKER_EPOCH: Gauge of "", ["worker"], "spillway_worker_snapshot_epoch";
    /// Buffers for frames, by where they are: at_workers, in_commons or handed_over.
    FRAMES: Gauge of "frames", ["place"], "spillway_frames";
    /// Buffers for frames that there are.
    FRAMES_CAPACITY: Gauge of "frames", [], "spillway_frames_capacity";

    /// Packets received by a queue.
    QUEUE_RECEIVED: Counter of "packets", ["side", "queue"], "spillway_queue_received_packets_total";
    /// Packets handed to the kernel for transmission by a queue.
    QUEUE_TRANSMITTED: Counter of "packets", ["side", "queue"], "spillway_queue_transmitted_packets_total";
    /// Packets that the kernel dropped at a queue's rings, by reason: rx_ring_full, fill_ring_empty, rx_dropped (too large
    /// for a frame) or invalid_descriptors.
    QUEUE_DROPPED: Counter of "packets", ["side", "queue", "reason"], "spillway_queue_dropped_packets_total";

    /// Whether an interface is there and usable: 1 or 0.
    INTERFACE_UP: Gauge of "", ["side", "interface"], "spillway_interface_up";
    /// Times that an interface's sockets were opened anew, since it was replaced or its queues changed.
    REATTACHMENTS: Counter of "", ["side", "interface"], "spillway_interface_reattachments_total";
    /// Times that somebody else took an interface's XDP program, the second line behind it, or their pins.
    DISTURBANCES: Counter of "", ["side", "interface"], "spillway_interface_disturbances_total";
    /// Frames by what the XDP program decided.
    XDP_FRAMES: Counter of "frames", ["side", "interface", "verdict"], "spillway_xdp_frames_total";
    /// Next hops of routes in use whose hardware address is not known.
    UNRESOLVED: Gauge of "neighbours", ["side"], "spillway_neighbours_unresolved";

    /// Seconds since the Kubernetes API last answered; +Inf when it has not since the daemon started.
    API_AGE: Gauge of "seconds", [], "spillway_kubernetes_api_age_seconds";
    /// Whether the Kubernetes API answers: 1 or 0.
    API_UP: Gauge of "", [], "spillway_kubernetes_api_up";
    /// Objects that the cluster has, by kind.
    OBJECTS: Gauge of "objects", ["kind"], "spillway_kubernetes_objects";
    /// Whether the objects of a kind are followed now: 1 or 0.
    FOLLOWED: Gauge of "", ["kind"], "spillway_kubernetes_followed";
    /// Tenants of the cluster that are refused.
    REFUSED_TENANTS: Gauge of "tenants", [], "spillway_kubernetes_refused_tenants";
    /// Objects of the cluster that are not as they should be; `spillway status` tells why.
    NOTICES: Gauge of "objects", [], "spillway_kubernetes_notices";
}

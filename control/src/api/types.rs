//! The API's JSON: field names are camelCase and stable; fields may be added.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::log::{LogChange, LogTargetView, LogView};
use crate::reference::shapes::Network;
use crate::registry::Source;
use crate::tenant::Tenant;
use crate::vitals::Fitness;

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime_seconds: u64,
    /// Whether the gateway serves as it should, as far as the control loop knows.
    #[serde(default)]
    pub ready: Fitness,
    /// Configuration snapshots.
    pub epoch: EpochStatus,
    /// The two interfaces, inside first.
    pub interfaces: Vec<InterfaceStatus>,
    /// Workers.
    pub workers: Vec<WorkerStatus>,
    /// Buffers for frames.
    pub frames: FramesStatus,
    /// Sessions of all workers.
    pub sessions: u64,
    /// What became of the sessions of the process before; null when sessions end with the process.
    pub succession: Option<SuccessionStatus>,
    /// Egress addresses and their ports.
    #[serde(default)]
    pub egress: Vec<EgressStatus>,
    /// Packets dropped by workers, by reason; every reason is there.
    pub drops: BTreeMap<String, u64>,
    /// Tenants.
    pub tenants: Vec<TenantView>,
    /// What the cluster says; null when the Kubernetes API is not asked.
    pub kubernetes: Option<KubernetesStatus>,
    /// The log of translations; null when there is none.
    #[serde(default)]
    pub nat_log: Option<NatLogStatus>,
}

/// The log of translations.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NatLogStatus {
    /// Records that were handed to the sinks.
    pub records: u64,
    /// Records that were not, because there were more in a second than may be.
    pub over_rate: u64,
    /// Records that were not, because a worker's queue was full.
    pub lost: u64,
    /// What it is written to.
    pub sinks: Vec<NatLogSink>,
}

/// Something that the log of translations is written to.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NatLogSink {
    /// Kind and place.
    pub name: String,
    /// Records that it took.
    pub written: u64,
    /// Records that it did not take.
    pub lost: u64,
    /// Tries that failed.
    pub errors: u64,
    /// Why it does not take any now; null when it does.
    pub trouble: Option<String>,
}

/// What is known of the cluster, and how fresh it is.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubernetesStatus {
    /// Address of the API server; empty while no kubeconfig could be read.
    pub server: String,
    /// Seconds since the API last answered; null when it has not since the daemon started.
    pub age_seconds: Option<u64>,
    /// Why the API does not answer; null when it does.
    pub error: Option<String>,
    /// What is read, by kind.
    pub kinds: Vec<KindStatus>,
    /// Tenants of the cluster that are refused.
    pub refused_tenants: Vec<RefusedTenantView>,
    /// What else is not as it should be, by object.
    pub notices: Vec<NoticeView>,
}

/// Objects of one kind.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KindStatus {
    /// `nodes`, `egresstenants`, …
    pub kind: String,
    /// Whether all were listed since the daemon started; else the state file's are used.
    pub listed: bool,
    /// How many there are.
    pub objects: u64,
    /// Why they are not followed now; null when they are.
    pub error: Option<String>,
}

/// A tenant of the cluster that is refused.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedTenantView {
    /// Its name.
    pub name: String,
    /// Field, value, and what would be accepted.
    pub message: String,
}

/// Something about one object that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NoticeView {
    /// Kind of the object.
    pub kind: String,
    /// Name of the object.
    pub name: String,
    /// One word in CamelCase.
    pub reason: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// What became of the sessions of the process before.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SuccessionStatus {
    /// Milliseconds for which nobody served them.
    pub away_milliseconds: u64,
    /// Sessions that go on.
    pub restored: u64,
    /// Sessions whose time would have been over.
    pub over: u64,
    /// Sessions of tenants or egress addresses that are there no more.
    pub disowned: u64,
    /// Sessions that did not fit: a table is full, or two have the same port.
    pub unfit: u64,
    /// Records that were not written to the end when the process was killed.
    pub torn: u64,
    /// Why the file that was found could not be used, and where it was moved; null when it could.
    pub set_aside: Option<String>,
}

/// Numbers of configuration snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EpochStatus {
    /// The newest.
    pub wanted: u32,
    /// The newest that every worker uses.
    pub applied: u32,
}

/// One of the two interfaces.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// `inside` or `outside`.
    pub side: String,
    /// Name.
    pub name: String,
    /// Hardware address.
    pub mac: String,
    /// The gateway's own address.
    pub address: Ipv4Addr,
    /// Largest IPv4 packet, in bytes.
    pub mtu: u16,
    /// `native`, `generic`, or `none`.
    pub xdp_mode: String,
    /// Frames by what the XDP program decided.
    pub verdicts: BTreeMap<String, u64>,
    /// Receive queues.
    pub queues: u32,
    /// Seconds since the interface went away, or is not usable; null while it is.
    pub away_seconds: Option<u64>,
    /// Why it is not usable; null while it is.
    pub trouble: Option<String>,
    /// Times that its sockets were opened anew, since it was replaced or its queues changed.
    pub reattachments: u64,
    /// Times that somebody else took its XDP program, the second line behind it, or their pins.
    #[serde(default)]
    pub disturbances: u64,
}

/// Buffers for frames. The numbers are taken one after the other, so they add up only while no frame moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FramesStatus {
    /// All that there are.
    pub total: u64,
    /// At the workers and in the rings of their queues.
    pub at_workers: u64,
    /// Lent to nobody.
    pub in_commons: u64,
    /// On the way from one worker to another.
    pub handed_over: u64,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerStatus {
    /// Number.
    pub worker: usize,
    /// Core that it is pinned to.
    pub core: Option<usize>,
    /// Snapshot that it uses.
    pub epoch: u32,
    /// Sessions that it holds.
    pub sessions: u64,
    /// Sessions that it can hold.
    pub session_capacity: u64,
    /// Times that it was restarted after a panic.
    pub panics: u64,
    /// Frames that came to it and belong to another worker.
    pub handed_over: u64,
    /// Frames that another worker sent for it, because it has no queue on that side.
    pub sent_by_others: u64,
    /// Worker that sends its frames by the inside interface: itself where it has a queue; null while the interface is
    /// away.
    pub inside_sender: Option<usize>,
    /// The same for the outside interface.
    pub outside_sender: Option<usize>,
    /// Milliseconds that it spent in turns that found frames, since the daemon started.
    #[serde(default)]
    pub busy_milliseconds: u64,
    /// Queues that it serves.
    pub queues: Vec<QueueStatus>,
}

/// An egress address.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressStatus {
    /// Tenant that has it.
    pub tenant: String,
    /// The address.
    pub address: Ipv4Addr,
    /// Pods that are paired with it.
    pub pods: u32,
    /// Blocks of 64 ports that workers have leased, of 1,024.
    pub port_blocks: u32,
    /// Its ports, by protocol, as a survey every ten seconds finds them.
    pub ports: Vec<PortStatus>,
}

/// The ports of an egress address in one protocol.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortStatus {
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// Ports that are taken towards the busiest destination.
    pub used: u32,
    /// Ports that there are towards each destination.
    pub capacity: u32,
    /// Seconds until all are taken at the rate of the last minute; null while no more are taken than before.
    pub exhaustion_seconds: Option<u64>,
}

/// One queue of one interface.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatus {
    /// `inside` or `outside`.
    pub side: String,
    /// Queue number.
    pub queue: u32,
    /// Packets received.
    pub received: u64,
    /// Packets transmitted.
    pub transmitted: u64,
    /// Packets dropped because they do not fit a frame.
    pub rx_dropped: u64,
    /// Packets dropped because the rx ring was full.
    pub rx_ring_full: u64,
    /// Packets dropped because the fill ring was empty.
    pub fill_ring_empty: u64,
    /// Descriptors that the kernel refused.
    pub invalid_descriptors: u64,
    /// Whether the kernel reads and writes frames in place.
    pub zero_copy: bool,
}

/// A tenant as the daemon sees it: one element of `GET /v1/tenants`.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantView {
    /// The tenant as it was given; this is what `PUT` takes.
    pub tenant: Tenant,
    /// `configFile`, `controlSocket` or `kubernetes`.
    pub source: Source,
    /// What became of it.
    pub status: TenantStatus,
}

/// What became of a tenant, and what it did since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantStatus {
    /// Hardware address of the gateway address, set or derived.
    #[serde(rename = "gatewayMAC")]
    pub gateway_mac: String,
    /// Name of the tenant's link.
    pub link: String,
    /// Source networks that it may use: its own, the cluster's, its live pods or the nodes.
    #[schemars(with = "Vec<Network>")]
    pub sources: Vec<Ipv4Net>,
    /// Policies that route to its gateway address.
    #[serde(default)]
    pub policies: Vec<String>,
    /// Namespaces that they select, and the live pods of each.
    #[serde(default)]
    pub namespaces: BTreeMap<String, u64>,
    /// What the kernel or the fast path refused; null when it has all that it needs.
    pub trouble: Option<String>,
    /// Seconds for which its sessions go on, of a tenant that is removed; else null.
    pub drains_seconds: Option<u64>,
    /// Sessions now.
    pub sessions: u64,
    /// Sessions that began since the daemon started.
    #[serde(default)]
    pub sessions_begun: u64,
    /// Packets forwarded from pods.
    pub outbound_packets: u64,
    /// Bytes forwarded from pods.
    pub outbound_bytes: u64,
    /// Packets forwarded to pods.
    pub inbound_packets: u64,
    /// Bytes forwarded to pods.
    pub inbound_bytes: u64,
    /// Packets dropped.
    pub dropped_packets: u64,
    /// Packets dropped by reason; only reasons that were met.
    pub drops: BTreeMap<String, u64>,
}

/// A route that the fast path uses: one element of `GET /v1/routes`.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteView {
    /// `inside` or `outside`.
    pub side: String,
    /// Interface that it leaves by.
    pub interface: String,
    /// Destinations that it covers.
    #[schemars(with = "Network")]
    pub prefix: Ipv4Net,
    /// Next hop; null when the destination is on the link.
    pub gateway: Option<Ipv4Addr>,
    /// Hardware address of the next hop; null while it is not resolved, and for destinations on the link.
    #[serde(rename = "gatewayMAC")]
    pub gateway_mac: Option<String>,
    /// Whether Spillway made the route (`proto 83`).
    pub own: bool,
}

/// `GET /v1/sessions`.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionPage {
    /// Sessions, in no particular order.
    pub sessions: Vec<SessionView>,
    /// What to give as `after` for the next page; null when this was the last. A page may be short, or empty, and have a
    /// next one.
    pub next: Option<String>,
}

/// `DELETE /v1/sessions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndedSessions {
    /// How many sessions ended.
    pub ended: u64,
}

/// A session: one element of [`SessionPage`].
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionView {
    /// Name of the tenant.
    pub tenant: String,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// The pod's address.
    pub inside_address: Ipv4Addr,
    /// The pod's port, or ICMP identifier.
    pub inside_port: u16,
    /// Egress address that stands for the pod.
    pub outside_address: Ipv4Addr,
    /// Port, or ICMP identifier, that stands for the pod's.
    pub outside_port: u16,
    /// Address that the pod talks to.
    pub remote_address: Ipv4Addr,
    /// Port that the pod talks to; 0 for ICMP.
    pub remote_port: u16,
    /// `established`, `opening` or `closing` for TCP, else `active`.
    pub state: String,
    /// Seconds since it began, or was taken up from the process before.
    #[serde(default)]
    pub age_seconds: u64,
    /// Seconds since the last packet.
    pub idle_seconds: u64,
    /// Seconds until it expires if no packet comes.
    pub expires_seconds: u64,
    /// Worker that owns it.
    pub worker: usize,
}

/// Body of every refusal.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What was refused.
    pub error: ErrorDetail,
}

/// What was refused, and why.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// Field that was refused; null when the refusal concerns none.
    pub field: Option<String>,
    /// The value, and what would be accepted.
    pub message: String,
}

//! The config file as it is written: sections, keys and types. What is said of them here is in `docs/config.md`.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::{DEFAULT_METRICS, DEFAULT_PIN_DIR, DEFAULT_SOCKET, check};
use crate::logging::Format;
use crate::policy::{Choice, Filtering, Mapping};
use crate::reference::shapes::{self, Network};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// The interface towards the cluster's nodes.
    pub(super) inside: Interface,
    /// The interface towards the upstream router. May not be the same one.
    pub(super) outside: Interface,
    #[serde(default)]
    pub(super) xdp: Xdp,
    #[serde(default)]
    pub(super) workers: Workers,
    #[serde(default)]
    pub(super) sessions: Sessions,
    #[serde(default)]
    pub(super) timeouts: Timeouts,
    #[serde(default)]
    pub(super) tcp: Tcp,
    #[serde(default)]
    pub(super) cluster: Cluster,
    #[serde(default)]
    pub(super) kubernetes: Kubernetes,
    #[serde(default)]
    pub(super) control: Control,
    pub(super) nat_log: Option<super::nat_log::Section>,
    #[serde(default)]
    pub(super) log: Log,
    #[serde(default)]
    pub(super) tenant: Vec<Tenant>,
}

/// One of the two interfaces.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Interface {
    /// Its name. It has an IPv4 address of the gateway's own.
    pub(super) interface: String,
}

/// How the XDP programs are attached.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Xdp {
    /// Where the programs run; `spillway status` tells.
    #[serde(default)]
    pub(super) mode: Mode,
    /// A directory on a bpffs. The XDP programs pinned here outlive the daemon and drop tenant traffic while there is none.
    #[schemars(with = "Option<shapes::File>", extend("default" = DEFAULT_PIN_DIR))]
    pub(super) pin_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// Native where the driver can, else generic.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the kernel's stack; works with any driver, slower.
    Generic,
}

/// The threads that forward.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Workers {
    /// How many there are, up to 64. Default: one for each rx queue of the interface that has fewer. More make sense where the
    /// NIC has fewer queues than the machine has cores to spare: a worker without a queue takes over its share of the pods
    /// from those that receive, and one that has a queue sends for it.
    pub(super) count: Option<usize>,
    /// The cores that the workers are pinned to, in order. Default: the first ones that the process may use.
    #[serde(default)]
    pub(super) cores: Vec<usize>,
    /// How they are scheduled (sched(7)). Where there are more workers than cores it is always `other`.
    #[serde(default)]
    pub(super) scheduler_policy: Scheduling,
}

#[derive(Clone, Copy, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Scheduling {
    /// While a worker has frames it goes before all ordinary threads of its core.
    #[default]
    Fifo,
    /// Like any other thread.
    Other,
}

/// The session table.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Sessions {
    /// Entries of the table of each worker, 128 bytes each: sessions, one more for each pod that has some, for each
    /// endpoint-independent mapping, and for each address that such a mapping has sent to where filtering is by address. The
    /// memory is taken at start, never after.
    #[schemars(extend("default" = check::DEFAULT_CAPACITY))]
    pub(super) capacity: Option<u32>,
    /// Sessions are taken down in this file as they begin and end, so that the next process goes on with them: 40 bytes an
    /// entry. It belongs on a file system in memory. Default: beside the control socket. `""`: sessions end with the process.
    #[schemars(with = "Option<shapes::File>")]
    pub(super) file: Option<PathBuf>,
}

/// How long an idle session is kept; at most 7 days, and never less than the RFCs allow.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    /// TCP connections that are open; 2h4m at least (RFC 5382 REQ-5).
    #[serde(default, with = "humantime_serde")]
    #[schemars(with = "Option<shapes::Span>", extend("default" = "2h4m"))]
    pub(super) tcp_established: Option<Duration>,
    /// TCP connections that are being opened; 4m at least (RFC 5382 REQ-5).
    #[serde(default, with = "humantime_serde")]
    #[schemars(with = "Option<shapes::Span>", extend("default" = "4m"))]
    pub(super) tcp_opening: Option<Duration>,
    /// TCP connections that are being closed; 4m at least (RFC 5382 REQ-5).
    #[serde(default, with = "humantime_serde")]
    #[schemars(with = "Option<shapes::Span>", extend("default" = "4m"))]
    pub(super) tcp_closing: Option<Duration>,
    /// UDP; 2m at least (RFC 4787 REQ-5).
    #[serde(default, with = "humantime_serde")]
    #[schemars(with = "Option<shapes::Span>", extend("default" = "5m"))]
    pub(super) udp: Option<Duration>,
    /// ICMP queries, such as ping; 60s at least (RFC 5508 REQ-2).
    #[serde(default, with = "humantime_serde")]
    #[schemars(with = "Option<shapes::Span>", extend("default" = "60s"))]
    pub(super) icmp_query: Option<Duration>,
    /// Whether packets to a pod keep its UDP session alive too, not only those from the pod (RFC 4787 REQ-6).
    #[schemars(extend("default" = true))]
    pub(super) inbound_refresh: Option<bool>,
    /// Sessions towards a port that have a timeout of their own; at most 8.
    #[serde(default)]
    pub(super) ports: Vec<PortTimeout>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PortTimeout {
    /// The protocol.
    pub(super) protocol: PortProtocol,
    /// The port that the pod talks to, 1 to 65535.
    pub(super) port: u16,
    /// UDP: 1s at least towards ports below 1024 (RFC 4787 REQ-5a), else 2m; TCP, established: 2h4m at least.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "shapes::Span")]
    pub(super) timeout: Duration,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum PortProtocol {
    Tcp,
    Udp,
}

/// TCP segments that belong to no session.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tcp {
    /// From a pod, in the middle of a connection.
    #[serde(default)]
    pub(super) mid_stream: MidStream,
    /// A SYN from outside that no pod asked for.
    #[serde(default)]
    pub(super) unsolicited_syn: UnsolicitedSyn,
}

#[derive(Clone, Copy, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum MidStream {
    /// It is answered with a RST, so that the pod connects again at once.
    #[default]
    Reset,
    /// It is dropped.
    Drop,
}

#[derive(Clone, Copy, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum UnsolicitedSyn {
    /// It is dropped.
    #[default]
    Drop,
    /// It is answered with an ICMP error after 6 s, unless the pod has opened the connection until then (RFC 5382 REQ-4).
    Unreachable,
}

/// What the gateway has to know of the cluster, where it does not ask the Kubernetes API.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Cluster {
    /// All pods of the cluster. A tenant without sources of its own may use any source address in here, and a packet from here
    /// that reaches the gateway on the wrong way is refused.
    #[serde(default)]
    #[schemars(with = "Vec<Network>", extend("default" = []))]
    pub(super) pod_cidrs: Vec<Ipv4Net>,
    /// The way back to each node's pods. Spillway keeps these as routes of the kernel (`ip route show proto 83`).
    #[serde(default)]
    pub(super) routes: Vec<Route>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    /// The pods of one node; may not overlap with another's.
    #[schemars(with = "Network")]
    pub(super) pod_cidr: Ipv4Net,
    /// The node's address on the inside network.
    pub(super) via: Ipv4Addr,
}

/// Whether tenants, pods and the way back to them come from the Kubernetes API, beside what this file says, which goes
/// first. [deploy/kubernetes](../deploy/kubernetes/README.md) has the manifests.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Kubernetes {
    /// Whether they do.
    #[serde(default)]
    pub(super) enabled: bool,
    /// How the API is reached. Read again when it changes, as are the files that it names. Default: `KUBECONFIG`,
    /// `~/.kube/config`, or a pod's account.
    #[schemars(with = "Option<shapes::File>")]
    pub(super) kubeconfig: Option<PathBuf>,
}

/// What the daemon tells and takes, and where it keeps its state.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Control {
    /// The command line talks to the daemon here; `--socket` goes first. Whom the file lets in (mode 0660: root and its
    /// group) may change tenants.
    #[schemars(with = "Option<shapes::File>", extend("default" = DEFAULT_SOCKET))]
    pub(super) socket: Option<PathBuf>,
    /// Address and port where `/metrics` is told over plain HTTP, for Prometheus, and nothing else. Whoever reaches the address
    /// may read all of it. `""`: on the control socket alone, where `spillway metrics` asks.
    #[schemars(extend("default" = DEFAULT_METRICS.to_string()))]
    pub(super) metrics: Option<String>,
    /// How many destinations have their ports told of, those with the most first; they are seen by whoever reads metrics. At
    /// most 1000.
    #[schemars(extend("default" = check::DEFAULT_DESTINATIONS))]
    pub(super) metrics_destinations: Option<usize>,
    /// Address and port where `/healthz` and `/readyz` are told over plain HTTP, and nothing else. Default: nowhere.
    pub(super) health: Option<String>,
    /// Tenants that were added over the socket, the cluster's last state and the kernel's settings are kept in this directory.
    #[schemars(with = "Option<shapes::File>", extend("default" = check::DEFAULT_STATE_DIR))]
    pub(super) state_dir: Option<PathBuf>,
}

/// What the daemon logs, on stderr or to the journal; [the log](logs.md).
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    /// Which lines are logged: a level (`off`, `error`, `warn`, `info`, `debug`, `trace`), levels by target, or both, as in
    /// `"info,kubernetes=debug"`. `--log` and `RUST_LOG` go first, and `spillway log set` changes it while the daemon runs.
    #[schemars(extend("default" = "info"))]
    pub(super) level: Option<String>,
    /// How they look; `--log-format` goes first.
    #[serde(default)]
    pub(super) format: Format,
}

/// A tenant that is always there. Others come and go with `spillway tenant add` and `spillway tenant remove`, or with
/// EgressTenant objects.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tenant {
    /// Its name, unique on the gateway.
    pub(super) name: String,
    /// The next hop in the tenant's AdminPolicyBasedExternalRoute; an unused address of the inside network.
    pub(super) gateway_ip: Ipv4Addr,
    /// Hardware address of the next hop, the same on every gateway that may serve the tenant. Default: 02:53 and the four bytes
    /// of `gateway_ip`.
    #[serde(default)]
    pub(super) gateway_mac: Option<String>,
    /// What the outside sees the tenant's pods as; a pod keeps one of them for all its sessions.
    pub(super) egress_ips: Vec<Ipv4Addr>,
    /// Sources that the tenant may use. None: the cluster's `pod_cidrs`.
    #[serde(default)]
    #[schemars(with = "Vec<Network>", extend("default" = []))]
    pub(super) pod_cidrs: Vec<Ipv4Net>,
    /// Instead of `pod_cidrs`, where the cluster is followed: exactly the live pods of the namespaces whose policies have
    /// `gateway_ip` as next hop.
    #[serde(default)]
    pub(super) from_policy: bool,
    /// Instead of `pod_cidrs`, where the cluster is followed: its nodes, where they translate pods to their own address.
    #[serde(default)]
    pub(super) nodes: bool,
    /// How outside ports are chosen.
    #[serde(default, deserialize_with = "word")]
    #[schemars(with = "shapes::Word<Mapping>", extend("default" = Mapping::default().word()))]
    pub(super) mapping: Mapping,
    /// Who may send to an outside port that a pod has opened.
    #[serde(default, deserialize_with = "word")]
    #[schemars(with = "shapes::Word<Filtering>", extend("default" = Filtering::default().word()))]
    pub(super) filtering: Filtering,
    /// The most that the tenant, and each of its pods, may have at the same time; 0: no limit. What is over it is refused,
    /// counted and logged; what is there stays.
    #[serde(default)]
    pub(super) limits: Limits,
    /// Greatest TCP segment, in bytes, that connections may agree on, 536 to 9000; 0: as the ends like.
    #[serde(default)]
    pub(super) mss_clamp: u16,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    /// Sessions of the tenant.
    pub(super) sessions: u32,
    /// Sessions of each pod.
    pub(super) sessions_per_pod: u32,
    /// Outside ports of the tenant.
    pub(super) ports: u32,
    /// Outside ports of each pod.
    pub(super) ports_per_pod: u32,
    /// New sessions of the tenant in a second.
    pub(super) new_sessions_per_second: u32,
    /// New sessions of each pod in a second.
    pub(super) new_sessions_per_second_per_pod: u32,
}

/// Reads a value by the word that the command line has for it.
fn word<'de, D: Deserializer<'de>, T: Choice>(from: D) -> Result<T, D::Error> {
    let text = String::deserialize(from)?;
    T::from_word(&text).ok_or_else(|| {
        let words: Vec<_> = T::WORDS.iter().map(|(_, word, _)| *word).collect();
        D::Error::custom(format!("{text:?} is none of {}", words.join(", ")))
    })
}

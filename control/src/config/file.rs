//! The config file as it is written: sections, keys and types.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::policy::{Choice, Filtering, Mapping};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) inside: Interface,
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
    pub(super) tenant: Vec<Tenant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Interface {
    pub(super) interface: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Xdp {
    #[serde(default)]
    pub(super) mode: Mode,
    pub(super) pin_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    #[default]
    Auto,
    Native,
    Generic,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Workers {
    pub(super) count: Option<usize>,
    #[serde(default)]
    pub(super) cores: Vec<usize>,
    #[serde(default)]
    pub(super) scheduler_policy: Scheduling,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Scheduling {
    #[default]
    Fifo,
    Other,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sessions {
    pub(super) capacity: Option<u32>,
    pub(super) file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    #[serde(default, with = "humantime_serde")]
    pub(super) tcp_established: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    pub(super) tcp_opening: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    pub(super) tcp_closing: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    pub(super) udp: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    pub(super) icmp_query: Option<Duration>,
    pub(super) inbound_refresh: Option<bool>,
    #[serde(default)]
    pub(super) ports: Vec<PortTimeout>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PortTimeout {
    pub(super) protocol: PortProtocol,
    pub(super) port: u16,
    #[serde(with = "humantime_serde")]
    pub(super) timeout: Duration,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PortProtocol {
    Tcp,
    Udp,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tcp {
    #[serde(default)]
    pub(super) mid_stream: MidStream,
    #[serde(default)]
    pub(super) unsolicited_syn: UnsolicitedSyn,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum MidStream {
    #[default]
    Reset,
    Drop,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum UnsolicitedSyn {
    #[default]
    Drop,
    Unreachable,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cluster {
    #[serde(default)]
    pub(super) pod_cidrs: Vec<Ipv4Net>,
    #[serde(default)]
    pub(super) routes: Vec<Route>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    pub(super) pod_cidr: Ipv4Net,
    pub(super) via: Ipv4Addr,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kubernetes {
    #[serde(default)]
    pub(super) enabled: bool,
    pub(super) kubeconfig: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Control {
    pub(super) socket: Option<PathBuf>,
    pub(super) metrics: Option<String>,
    pub(super) metrics_destinations: Option<usize>,
    pub(super) health: Option<String>,
    pub(super) state_dir: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tenant {
    pub(super) name: String,
    pub(super) gateway_ip: Ipv4Addr,
    #[serde(default)]
    pub(super) gateway_mac: Option<String>,
    pub(super) egress_ips: Vec<Ipv4Addr>,
    #[serde(default)]
    pub(super) pod_cidrs: Vec<Ipv4Net>,
    #[serde(default)]
    pub(super) from_policy: bool,
    #[serde(default)]
    pub(super) nodes: bool,
    #[serde(default, deserialize_with = "word")]
    pub(super) mapping: Mapping,
    #[serde(default, deserialize_with = "word")]
    pub(super) filtering: Filtering,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) mss_clamp: u16,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) sessions: u32,
    pub(super) sessions_per_pod: u32,
    pub(super) ports: u32,
    pub(super) ports_per_pod: u32,
    pub(super) new_sessions_per_second: u32,
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

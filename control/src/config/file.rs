//! The config file as it is written: sections, keys and types.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::Deserialize;

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
    pub(super) cluster: Cluster,
    #[serde(default)]
    pub(super) kubernetes: Kubernetes,
    #[serde(default)]
    pub(super) control: Control,
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
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sessions {
    pub(super) capacity: Option<u32>,
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
}

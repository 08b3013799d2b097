//! What a config file may say: bounds, and keys that must agree with each other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use conntrack::time::PORT_TIMEOUTS;
use conntrack::{PortTimeout, Protocol, Timeouts};
use fastpath::dataplane::AttachPreference;
use fastpath::placement::SchedulerPolicy;
use fastpath::snapshot::{MidStream, TcpPolicy, UnsolicitedSyn};
use ipnet::Ipv4Net;

use super::file;
use super::{
    Config, ConfigError, DEFAULT_METRICS, DEFAULT_PIN_DIR, Kubernetes, MetricsAddress, ReturnRoute,
    SessionFile,
};
use crate::logging::filter::Filter;
use crate::policy::Limits;
use crate::refusal::Refusal;
use crate::tenant::{Sources, Tenant, check_network};

pub(super) const DEFAULT_STATE_DIR: &str = "/var/lib/spillway";
pub(super) const DEFAULT_CAPACITY: u32 = 1 << 20;
const MAX_CAPACITY: u32 = 1 << 26;
/// As the example of a config file has it; there is no default.
const HEALTH_EXAMPLE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9478);
pub(super) const DEFAULT_DESTINATIONS: usize = 10;
const MAX_DESTINATIONS: usize = 1000;
const MAX_WORKERS: usize = 64;
const MAX_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);

pub(super) fn check(file: file::File, usable_cores: &[usize]) -> Result<Config, ConfigError> {
    check_interfaces(&file.inside.interface, &file.outside.interface)?;
    check_workers(&file.workers, usable_cores)?;
    let routes = check_routes(&file.cluster.routes)?;
    for (index, cidr) in file.cluster.pod_cidrs.iter().enumerate() {
        check_cidr(&format!("cluster.pod_cidrs[{index}]"), *cidr)?;
    }
    Ok(Config {
        inside: file.inside.interface,
        outside: file.outside.interface,
        attach: match file.xdp.mode {
            file::Mode::Auto => AttachPreference::Auto,
            file::Mode::Native => AttachPreference::Native,
            file::Mode::Generic => AttachPreference::Generic,
        },
        pin_dir: absolute("xdp.pin_dir", file.xdp.pin_dir.unwrap_or_else(|| DEFAULT_PIN_DIR.into()))?,
        workers: file.workers.count,
        cores: file.workers.cores,
        scheduler_policy: match file.workers.scheduler_policy {
            file::Scheduling::Fifo => SchedulerPolicy::Fifo,
            file::Scheduling::Other => SchedulerPolicy::Other,
        },
        session_capacity: check_capacity(file.sessions.capacity)?,
        session_file: check_session_file(file.sessions.file)?,
        timeouts: check_timeouts(&file.timeouts)?,
        tcp: tcp_policy(&file.tcp),
        pod_cidrs: file.cluster.pod_cidrs,
        routes,
        socket: file.control.socket.map(|path| absolute("control.socket", path)).transpose()?,
        health: file.control.health.as_deref().map(check_health).transpose()?,
        metrics: check_metrics(file.control.metrics.as_deref())?,
        metrics_destinations: check_destinations(file.control.metrics_destinations)?,
        state_dir: absolute(
            "control.state_dir",
            file.control.state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
        )?,
        log_filter: file.log.level.as_deref().map(check_filter).transpose()?.unwrap_or_default(),
        log_format: file.log.format,
        kubernetes: check_kubernetes(file.kubernetes)?,
        nat_log: file.nat_log.map(super::nat_log::check).transpose()?,
        tenants: file.tenant.into_iter().enumerate().map(check_tenant).collect::<Result<_, _>>()?,
    })
}

fn check_interfaces(inside: &str, outside: &str) -> Result<(), ConfigError> {
    for (key, name) in [("inside.interface", inside), ("outside.interface", outside)] {
        let sound = (1..=15).contains(&name.len())
            && !matches!(name, "." | "..")
            && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
        if !sound {
            let message = format!("{name:?} is no interface name; give one that `ip link` lists");
            return Err(ConfigError::value(key, message));
        }
    }
    if inside == outside {
        let message = format!("{outside:?} is also inside.interface; give two different interfaces");
        return Err(ConfigError::value("outside.interface", message));
    }
    Ok(())
}

fn check_workers(workers: &file::Workers, usable_cores: &[usize]) -> Result<(), ConfigError> {
    if let Some(count) = workers.count.filter(|count| !(1..=MAX_WORKERS).contains(count)) {
        return Err(ConfigError::value(
            "workers.count",
            format!("{count} is not between 1 and {MAX_WORKERS}"),
        ));
    }
    for (index, core) in workers.cores.iter().enumerate() {
        let key = format!("workers.cores[{index}]");
        if !usable_cores.contains(core) {
            let message = format!("core {core} does not exist here; use some of {usable_cores:?}");
            return Err(ConfigError::value(key, message));
        }
        if workers.cores[..index].contains(core) {
            let message = format!("core {core} is listed twice; give each worker a core of its own");
            return Err(ConfigError::value(key, message));
        }
    }
    match workers.count {
        Some(count) if !workers.cores.is_empty() && workers.cores.len() != count => {
            let message = format!("lists {} cores for {count} workers; list {count}", workers.cores.len());
            Err(ConfigError::value("workers.cores", message))
        }
        _ => Ok(()),
    }
}

fn check_address(key: &str, text: &str, example: SocketAddr) -> Result<SocketAddr, ConfigError> {
    let address = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    address.ok_or_else(|| {
        let message = format!("{text:?} is no address and port; give some like \"{example}\"");
        ConfigError::value(key, message)
    })
}

fn check_health(text: &str) -> Result<SocketAddr, ConfigError> {
    check_address("control.health", text, HEALTH_EXAMPLE)
}

fn check_metrics(text: Option<&str>) -> Result<MetricsAddress, ConfigError> {
    Ok(match text {
        None => MetricsAddress::IfFree,
        Some("") => MetricsAddress::Off,
        Some(text) => MetricsAddress::At(check_address("control.metrics", text, DEFAULT_METRICS)?),
    })
}

fn check_destinations(wanted: Option<usize>) -> Result<usize, ConfigError> {
    let wanted = wanted.unwrap_or(DEFAULT_DESTINATIONS);
    if wanted <= MAX_DESTINATIONS {
        return Ok(wanted);
    }
    let message = format!("{wanted} is more than {MAX_DESTINATIONS}; each is a series of metrics");
    Err(ConfigError::value("control.metrics_destinations", message))
}

fn check_filter(text: &str) -> Result<Filter, ConfigError> {
    text.parse().map_err(|error| ConfigError::value("log.level", format!("{error}")))
}

fn check_kubernetes(file: file::Kubernetes) -> Result<Option<Kubernetes>, ConfigError> {
    let kubeconfig = file.kubeconfig.map(|path| absolute("kubernetes.kubeconfig", path)).transpose()?;
    match (file.enabled, kubeconfig) {
        (true, kubeconfig) => Ok(Some(Kubernetes { kubeconfig })),
        (false, None) => Ok(None),
        (false, Some(path)) => {
            let message = format!(
                "{path:?} is given but kubernetes.enabled is false; set it to true, or leave both out"
            );
            Err(ConfigError::value("kubernetes.kubeconfig", message))
        }
    }
}

fn check_capacity(capacity: Option<u32>) -> Result<u32, ConfigError> {
    let capacity = capacity.unwrap_or(DEFAULT_CAPACITY);
    if (1..=MAX_CAPACITY).contains(&capacity) {
        return Ok(capacity);
    }
    Err(ConfigError::value("sessions.capacity", format!("{capacity} is not between 1 and {MAX_CAPACITY}")))
}

fn check_session_file(path: Option<PathBuf>) -> Result<SessionFile, ConfigError> {
    Ok(match path {
        None => SessionFile::BesideSocket,
        Some(path) if path.as_os_str().is_empty() => SessionFile::Off,
        Some(path) => SessionFile::At(absolute("sessions.file", path)?),
    })
}

fn check_timeouts(file: &file::Timeouts) -> Result<Timeouts, ConfigError> {
    let default = Timeouts::default();
    let bounded = |key: &str, value: Option<Duration>, default, least, rule| {
        check_timeout(format!("timeouts.{key}"), value.unwrap_or(default), least, rule)
    };
    let rfc5382 = "RFC 5382 REQ-5";
    Ok(Timeouts {
        tcp_established: bounded(
            "tcp_established",
            file.tcp_established,
            default.tcp_established,
            minutes(124),
            rfc5382,
        )?,
        tcp_opening: bounded("tcp_opening", file.tcp_opening, default.tcp_opening, minutes(4), rfc5382)?,
        tcp_closing: bounded("tcp_closing", file.tcp_closing, default.tcp_closing, minutes(4), rfc5382)?,
        udp: bounded("udp", file.udp, default.udp, minutes(2), "RFC 4787 REQ-5")?,
        icmp_query: bounded("icmp_query", file.icmp_query, default.icmp_query, minutes(1), "RFC 5508 REQ-2")?,
        ports: check_port_timeouts(&file.ports)?,
        inbound_refreshes: file.inbound_refresh.unwrap_or(default.inbound_refreshes),
        ..default
    })
}

fn check_port_timeouts(
    entries: &[file::PortTimeout],
) -> Result<[Option<PortTimeout>; PORT_TIMEOUTS], ConfigError> {
    let mut ports = [None; PORT_TIMEOUTS];
    if entries.len() > ports.len() {
        let message = format!("lists {} ports; list at most {PORT_TIMEOUTS}", entries.len());
        return Err(ConfigError::value("timeouts.ports", message));
    }
    for (index, entry) in entries.iter().enumerate() {
        let port = check_port_timeout(&format!("timeouts.ports[{index}]"), entry)?;
        let same = |earlier: &PortTimeout| (earlier.protocol, earlier.port) == (port.protocol, port.port);
        if ports[..index].iter().flatten().any(same) {
            let message = format!("{} {} is listed twice; list it once", port.protocol.name(), port.port);
            return Err(ConfigError::value(format!("timeouts.ports[{index}].port"), message));
        }
        ports[index] = Some(port);
    }
    Ok(ports)
}

fn check_port_timeout(key: &str, entry: &file::PortTimeout) -> Result<PortTimeout, ConfigError> {
    let file::PortTimeout { protocol, port, timeout } = *entry;
    if port == 0 {
        return Err(ConfigError::value(format!("{key}.port"), "0 is no port; give one between 1 and 65535"));
    }
    let (protocol, least, rule) = match protocol {
        file::PortProtocol::Tcp => (Protocol::Tcp, minutes(124), "RFC 5382 REQ-5"),
        file::PortProtocol::Udp if port < 1024 => (Protocol::Udp, Duration::from_secs(1), "RFC 4787 REQ-5a"),
        file::PortProtocol::Udp => (Protocol::Udp, minutes(2), "RFC 4787 REQ-5"),
    };
    let timeout = check_timeout(format!("{key}.timeout"), timeout, least, rule)?;
    Ok(PortTimeout { protocol, port, timeout })
}

fn check_timeout(key: String, value: Duration, least: Duration, rule: &str) -> Result<Duration, ConfigError> {
    if (least..=MAX_TIMEOUT).contains(&value) {
        return Ok(value);
    }
    let [value, least, most] = [value, least, MAX_TIMEOUT].map(humantime::format_duration);
    Err(ConfigError::value(key, format!("{value} is not between {least} ({rule}) and {most}")))
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

fn tcp_policy(file: &file::Tcp) -> TcpPolicy {
    TcpPolicy {
        mid_stream: match file.mid_stream {
            file::MidStream::Reset => MidStream::Reset,
            file::MidStream::Drop => MidStream::Drop,
        },
        unsolicited_syn: match file.unsolicited_syn {
            file::UnsolicitedSyn::Drop => UnsolicitedSyn::Drop,
            file::UnsolicitedSyn::Unreachable => UnsolicitedSyn::Unreachable,
        },
    }
}

fn check_routes(routes: &[file::Route]) -> Result<Vec<ReturnRoute>, ConfigError> {
    for (index, route) in routes.iter().enumerate() {
        let key = format!("cluster.routes[{index}].pod_cidr");
        check_cidr(&key, route.pod_cidr)?;
        let overlaps = |earlier: &&file::Route| {
            earlier.pod_cidr.contains(&route.pod_cidr) || route.pod_cidr.contains(&earlier.pod_cidr)
        };
        if let Some(earlier) = routes[..index].iter().find(overlaps) {
            let message = format!(
                "{} overlaps with {} via {}; each pod network has one node",
                route.pod_cidr, earlier.pod_cidr, earlier.via
            );
            return Err(ConfigError::value(key, message));
        }
    }
    Ok(routes.iter().map(|route| ReturnRoute { pod_cidr: route.pod_cidr, via: route.via }).collect())
}

fn check_cidr(key: &str, cidr: Ipv4Net) -> Result<(), ConfigError> {
    check_network(cidr).map_err(|message| ConfigError::value(key, message))
}

pub(super) fn absolute(key: &str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(ConfigError::value(key, format!("{:?} is not an absolute path; start it with /", path)))
}

fn check_tenant((index, entry): (usize, file::Tenant)) -> Result<Tenant, ConfigError> {
    let section = format!("tenant[{index}]");
    let gateway_mac = match entry.gateway_mac.as_deref().unwrap_or_default() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            let message = format!("{text:?} is no MAC; write it as 02:53:c0:a8:63:0d, or leave it out");
            ConfigError::value(format!("{section}.gateway_mac"), message)
        })?),
    };
    let tenant = Tenant {
        name: entry.name,
        gateway_ip: entry.gateway_ip,
        gateway_mac,
        egress_ips: entry.egress_ips,
        sources: Sources { pod_cidrs: entry.pod_cidrs, from_policy: entry.from_policy, nodes: entry.nodes },
        mapping: entry.mapping,
        filtering: entry.filtering,
        limits: limits(&entry.limits),
        mss_clamp: entry.mss_clamp,
        drain_seconds: 0, // no tenant of the file is ever removed while the daemon runs
    };
    tenant.check().map_err(|refusal| refused_tenant(&section, &refusal))?;
    Ok(tenant)
}

fn limits(file: &file::Limits) -> Limits {
    Limits {
        sessions: file.sessions,
        sessions_per_pod: file.sessions_per_pod,
        ports: file.ports,
        ports_per_pod: file.ports_per_pod,
        new_sessions_per_second: file.new_sessions_per_second,
        new_sessions_per_second_per_pod: file.new_sessions_per_second_per_pod,
    }
}

/// Returns a tenant's refusal in the words of the config file.
fn refused_tenant(section: &str, refusal: &Refusal) -> ConfigError {
    let field = refusal.field().unwrap_or_default();
    let key = field
        .replace("gatewayIP", "gateway_ip")
        .replace("gatewayMAC", "gateway_mac")
        .replace("egressIPs", "egress_ips")
        .replace("sources.podCIDRs", "pod_cidrs")
        .replace("sources", "pod_cidrs, from_policy, nodes")
        .replace("mssClamp", "mss_clamp");
    let message = refusal.to_string();
    let message = message.strip_prefix(&format!("{field}: ")).unwrap_or(&message);
    ConfigError::value(format!("{section}.{key}"), message)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

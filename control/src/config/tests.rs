//! What a config file may say, and how refusals read.

use std::path::Path;
use std::time::Duration;

use conntrack::{Filtering, Mapping, Policy, PortTimeout, Protocol, Quota, Timeouts};
use fastpath::placement::SchedulerPolicy;
use fastpath::snapshot::{MidStream, TcpPolicy, UnsolicitedSyn};

use super::super::{Config, DEFAULT_METRICS, DEFAULT_SOCKET, MetricsAddress};

const FULL: &str = r#"
    [inside]
    interface = "enp1s0"
    [outside]
    interface = "enp7s0"
    [xdp]
    mode = "native"
    pin_dir = "/sys/fs/bpf/spillway"
    [workers]
    count = 2
    cores = [0, 1]
    scheduler_policy = "other"
    [sessions]
    capacity = 65536
    [timeouts]
    tcp_established = "3h"
    udp = "5m"
    [cluster]
    pod_cidrs = ["10.132.0.0/14"]
    routes = [{ pod_cidr = "10.132.0.0/24", via = "192.168.99.21" }]
    [kubernetes]
    enabled = false
    [control]
    socket = "/run/spillway/spillway.sock"
    state_dir = "/var/lib/spillway"
    [[tenant]]
    name = "ns-blue"
    gateway_ip = "192.168.99.13"
    egress_ips = ["192.168.55.113"]
    pod_cidrs = ["10.132.0.0/14"]
"#;

#[test]
fn a_full_file_is_read() {
    let config = Config::parse(FULL, &[0, 1]).unwrap();
    assert_eq!(config.inside, "enp1s0");
    assert_eq!((config.workers, config.scheduler_policy), (Some(2), SchedulerPolicy::Other));
    assert_eq!(config.timeouts.tcp_established, Duration::from_secs(3 * 3600));
    assert_eq!(config.timeouts.icmp_query, Duration::from_secs(60));
    assert_eq!(config.routes.len(), 1);
    assert_eq!(config.tenants[0].name, "ns-blue");
}

#[test]
fn an_address_for_health_is_read() {
    let control = |line: &str| FULL.replacen("[control]", &format!("[control]\n{line}"), 1);
    assert_eq!(Config::parse(FULL, &[0, 1]).unwrap().health, None);
    let health = Config::parse(&control("health = '[::1]:9478'"), &[0, 1]).unwrap().health;
    assert_eq!(health, Some("[::1]:9478".parse().unwrap()));
    for wrong in ["9478", "localhost:9478", "127.0.0.1:0", ""] {
        let error = Config::parse(&control(&format!("health = '{wrong}'")), &[0, 1]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("control.health: {wrong:?} is no address and port")), "{error}");
    }
}

#[test]
fn metrics_are_served_at_the_default_address_unless_told_otherwise() {
    let control = |line: &str| FULL.replacen("[control]", &format!("[control]\n{line}"), 1);
    let read = |text: &str| Config::parse(text, &[0, 1]).unwrap().metrics;
    assert_eq!(read(FULL), MetricsAddress::IfFree);
    assert_eq!(read(&control("metrics = ''")), MetricsAddress::Off);
    assert_eq!(read(&control("metrics = '[::]:80'")), MetricsAddress::At("[::]:80".parse().unwrap()));
}

#[test]
fn a_tenants_policy_is_read_by_the_command_lines_words() {
    let policy = r#"mapping = "endpoint-independent"
        filtering = "address"
        limits = { sessions = 1, sessions_per_pod = 2, ports = 3, ports_per_pod = 4,
                   new_sessions_per_second = 5, new_sessions_per_second_per_pod = 6 }
        mss_clamp = 1360
    "#;
    let tenant = Config::parse(&format!("{FULL}{policy}"), &[0, 1]).unwrap().tenants.remove(0);
    let expected = Policy {
        mapping: Mapping::EndpointIndependent,
        filtering: Filtering::AddressDependent,
        tenant_quota: Quota { sessions: 1, ports: 3, new_per_second: 5 },
        pod_quota: Quota { sessions: 2, ports: 4, new_per_second: 6 },
    };
    assert_eq!((tenant.policy(), tenant.mss_clamp), (expected, 1360));
    let tenant = Config::parse(FULL, &[0, 1]).unwrap().tenants.remove(0);
    assert_eq!((tenant.policy(), tenant.mss_clamp), (Policy::default(), 0));
}

#[test]
fn timeouts_by_port_and_refreshing_are_read() {
    let ports = r#"ports = [
            { protocol = "udp", port = 53, timeout = "1s" },
            { protocol = "udp", port = 1024, timeout = "2m" },
            { protocol = "tcp", port = 53, timeout = "2h4m" },
        ]
        inbound_refresh = false
        udp ="#;
    let timeouts = Config::parse(&FULL.replacen("udp =", ports, 1), &[0, 1]).unwrap().timeouts;
    let port =
        |protocol, port, seconds| Some(PortTimeout { protocol, port, timeout: Duration::from_secs(seconds) });
    let expected =
        [port(Protocol::Udp, 53, 1), port(Protocol::Udp, 1024, 120), port(Protocol::Tcp, 53, 7440), None];
    assert_eq!(timeouts.ports[..4], expected);
    assert!(!timeouts.inbound_refreshes);
    let timeouts = Config::parse(FULL, &[0, 1]).unwrap().timeouts;
    assert!(timeouts.ports == Timeouts::default().ports && timeouts.inbound_refreshes);
}

#[test]
fn what_becomes_of_segments_without_a_session_is_read() {
    let tcp = |text: &str| Config::parse(&format!("{text}{FULL}"), &[0, 1]).unwrap().tcp;
    let quiet = TcpPolicy { mid_stream: MidStream::Drop, unsolicited_syn: UnsolicitedSyn::Unreachable };
    assert_eq!(tcp("[tcp]\nmid_stream = 'drop'\nunsolicited_syn = 'unreachable'"), quiet);
    let spelt = TcpPolicy { mid_stream: MidStream::Reset, unsolicited_syn: UnsolicitedSyn::Drop };
    assert_eq!(tcp("[tcp]\nmid_stream = 'reset'\nunsolicited_syn = 'drop'"), spelt);
    assert_eq!((tcp(""), spelt), (TcpPolicy::default(), TcpPolicy::default()));
}

#[test]
fn timeouts_by_port_are_bounded_and_none_is_listed_twice() {
    let udp = |port: u32, timeout: &str| format!("{{protocol='udp', port={port}, timeout='{timeout}'}}");
    let tcp = |port: u32, timeout: &str| udp(port, timeout).replace("udp", "tcp");
    let nine: Vec<String> = (1..=9).map(|port| udp(port, "20s")).collect();
    let table = [
        (udp(1023, "999ms"), "[0].timeout: 999ms is not between 1s (RFC 4787 REQ-5a) and 7days"),
        (udp(1024, "119s"), "[0].timeout: 1m 59s is not between 2m (RFC 4787 REQ-5) and"),
        (tcp(443, "2h"), "[0].timeout: 2h is not between 2h 4m (RFC 5382 REQ-5) and"),
        (udp(53, "8days"), "[0].timeout: 8days is not between"),
        (udp(0, "20s"), "[0].port: 0 is no port; give one between 1 and 65535"),
        (udp(53, "20s") + "," + &udp(53, "30s"), "[1].port: udp 53 is listed twice"),
        (nine.join(","), ": lists 9 ports; list at most 8"),
    ];
    for (entries, expected) in table {
        let text = FULL.replacen("udp =", &format!("ports = [{entries}]\nudp ="), 1);
        let error = Config::parse(&text, &[0, 1]).unwrap_err().to_string();
        let expected = format!("timeouts.ports{expected}");
        assert!(error.starts_with(&expected), "{error:?} should start with {expected:?}");
    }
}

#[test]
fn two_interfaces_are_all_that_is_needed() {
    let config = Config::parse("inside.interface = 'a'\noutside.interface = 'b'", &[0]).unwrap();
    assert_eq!(config.pin_dir.to_str(), Some("/sys/fs/bpf/spillway"));
    assert_eq!(config.session_capacity, 1_048_576);
    assert!(config.tenants.is_empty());
    let socket = Path::new(DEFAULT_SOCKET);
    assert_eq!(config.session_file.path(socket).unwrap().to_str(), Some("/run/spillway/spillway.sessions"));
}

#[test]
fn the_examples_commented_keys_are_the_defaults() {
    let example = include_str!("../../../deploy/spillway.toml");
    let not_available = |line: &&str| !line.starts_with("#kubeconfig");
    let key = |line: &str| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => format!("{key}\n"),
        _ => format!("{line}\n"),
    };
    let spelt: String = example.lines().filter(not_available).map(key).collect();
    let spelt = Config::parse(&spelt, &[2, 3]).unwrap();
    let left_out = Config::parse(example, &[2, 3]).unwrap();
    assert_eq!(Timeouts { ports: left_out.timeouts.ports, ..spelt.timeouts }, left_out.timeouts);
    assert_eq!(spelt.metrics, MetricsAddress::At(DEFAULT_METRICS));
    assert_eq!(left_out.metrics, MetricsAddress::IfFree);
    assert_eq!(spelt.metrics_destinations, left_out.metrics_destinations);
    assert_eq!((spelt.tcp, spelt.session_capacity), (left_out.tcp, left_out.session_capacity));
    let file_of = |config: &Config| config.session_file.clone().path(Path::new(DEFAULT_SOCKET));
    assert_eq!(file_of(&spelt), file_of(&left_out));
    assert_eq!((spelt.attach, spelt.pin_dir), (left_out.attach, left_out.pin_dir));
    assert_eq!((spelt.tenants[0].policy(), spelt.tenants[0].mss_clamp), (Policy::default(), 0));
    assert!(left_out.tenants.is_empty());
}

#[test]
fn refusals_name_the_key_the_value_and_what_is_accepted() {
    let table = [
        ("enp7s0", "enp1s0", "outside.interface: \"enp1s0\" is also inside.interface"),
        ("enp7s0", "a/b", "outside.interface: \"a/b\" is no interface name"),
        (
            "cores = [0, 1]",
            "cores = [0, 7]",
            "workers.cores[1]: core 7 does not exist here; use some of [0, 1]",
        ),
        ("cores = [0, 1]", "cores = [0, 0]", "workers.cores[1]: core 0 is listed twice"),
        ("cores = [0, 1]", "cores = [0]", "workers.cores: lists 1 cores for 2 workers; list 2"),
        ("count = 2", "count = 0", "workers.count: 0 is not between 1 and 64"),
        ("capacity = 65536", "capacity = 0", "sessions.capacity: 0 is not between 1 and"),
        ("\"3h\"", "\"2h\"", "timeouts.tcp_established: 2h is not between 2h 4m (RFC 5382 REQ-5) and 7days"),
        ("udp = \"5m\"", "udp = \"90s\"", "timeouts.udp: 1m 30s is not between 2m (RFC 4787 REQ-5)"),
        (
            "udp = \"5m\"",
            "tcp_closing = \"1m\"",
            "timeouts.tcp_closing: 1m is not between 4m (RFC 5382 REQ-5)",
        ),
        ("udp = \"5m\"", "icmp_query = \"1s\"", "timeouts.icmp_query: 1s is not between 1m (RFC 5508 REQ-2)"),
        ("10.132.0.0/24", "10.132.0.1/24", "cluster.routes[0].pod_cidr: 10.132.0.1/24 has host bits set"),
        (
            "routes = [",
            "routes = [{ pod_cidr = \"10.132.0.0/16\", via = \"192.168.99.22\" }, ",
            "cluster.routes[1].pod_cidr: 10.132.0.0/24 overlaps with 10.132.0.0/16 via 192.168.99.22",
        ),
        (
            "enabled = false",
            "enabled = false\nkubeconfig = \"/etc/spillway/kubeconfig\"",
            "kubernetes.kubeconfig: \"/etc/spillway/kubeconfig\" is given but kubernetes.enabled is false",
        ),
        (
            "enabled = false",
            "enabled = true\nkubeconfig = \"kubeconfig\"",
            "kubernetes.kubeconfig: \"kubeconfig\" is not",
        ),
        (
            "gateway_ip =",
            "nodes = true\ngateway_ip =",
            "tenant[0].pod_cidrs, from_policy, nodes: has more than one",
        ),
        (
            "[control]",
            "[control]\nmetrics = \"9477\"",
            "control.metrics: \"9477\" is no address and port; give some like \"127.0.0.1:9477\"",
        ),
        (
            "[control]",
            "[control]\nmetrics_destinations = 1001",
            "control.metrics_destinations: 1001 is more than 1000",
        ),
        ("\"/var/lib/spillway\"", "\"state\"", "control.state_dir: \"state\" is not an absolute path"),
        ("\"ns-blue\"", "\"Blue\"", "tenant[0].name: \"Blue\" is not a tenant name; use"),
        ("\"192.168.55.113\"", "", "tenant[0].egress_ips: is empty"),
        (
            "gateway_ip =",
            "filtering = \"address\"\ngateway_ip =",
            "tenant[0].filtering: address needs endpoint-independent mapping",
        ),
        ("gateway_ip =", "mss_clamp = 100\ngateway_ip =", "tenant[0].mss_clamp: 100 is not between 536"),
        ("gateway_ip =", "gateway_mac = \"zz\"\ngateway_ip =", "tenant[0].gateway_mac: \"zz\" is no MAC"),
    ];
    for (from, to, expected) in table {
        let error = Config::parse(&FULL.replacen(from, to, 1), &[0, 1]).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error:?} should start with {expected:?}");
    }
}

#[test]
fn unknown_keys_and_wrong_types_are_refused_where_they_stand() {
    let table = [
        ("mode = \"native\"", "speed = 9", "unknown field `speed`"),
        ("\"native\"", "\"turbo\"", "expected one of `auto`, `native`, `generic`"),
        ("\"192.168.99.13\"", "\"192.168.99\"", "invalid IPv4 address syntax"),
        (
            "gateway_ip =",
            "mapping = \"EndpointIndependent\"\ngateway_ip =",
            "\"EndpointIndependent\" is none of address-and-port, endpoint-independent",
        ),
        ("gateway_ip =", "limits = { bytes = 1 }\ngateway_ip =", "unknown field `bytes`"),
        ("gateway_ip =", "limits.ports = 4294967296\ngateway_ip =", "integer `4294967296`, expected u32"),
        (
            "udp =",
            "ports = [{ protocol = 'icmp', port = 1, timeout = '1s' }]\nudp =",
            "expected `tcp` or `udp`",
        ),
        ("[cluster]", "[tcp]\nmid_stream = 'ignore'\n[cluster]", "expected `reset` or `drop`"),
        ("[[tenant]]", "[[tenants]]", "unknown field `tenants`"),
        ("\"5m\"", "\"5 parsecs\"", "parsecs"),
    ];
    for (from, to, expected) in table {
        let error = Config::parse(&FULL.replacen(from, to, 1), &[0, 1]).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("line"), "{error}");
    }
}

//! A gateway that is as it should be, for tests to spoil.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use macaddr::MacAddr6;
use serde_json::json;

use super::cluster::NEEDS;
use super::evidence::{Answers, Cluster, ClusterAnswers, Evidence, Host, Process};
use super::finding::{Finding, Severity};
use crate::config::Config;
use crate::netlink::addresses::Address;
use crate::netlink::facts::Facts;
use crate::netlink::links::Link;
use crate::netlink::routes::Route;
use crate::tenant::Tenant;

const CONFIG: &str = r#"
    inside.interface = "in0"
    outside.interface = "out0"
    cluster.pod_cidrs = ["10.132.0.0/14"]
    cluster.routes = [
        { pod_cidr = "10.132.0.0/24", via = "192.168.99.21" },
        { pod_cidr = "10.132.1.0/24", via = "192.168.99.22" },
    ]
"#;

/// Returns the evidence of a gateway that runs well.
pub(super) fn healthy() -> Evidence {
    let tenant: Tenant = serde_json::from_value(
        json!({ "name": "ns-blue", "gatewayIP": "192.168.99.13", "egressIPs": ["192.168.55.113"] }),
    )
    .unwrap();
    let status = serde_json::from_value(status(&tenant)).unwrap();
    Evidence {
        config_path: "/etc/spillway/spillway.toml".into(),
        config: Ok(Config::parse(CONFIG, &[0, 1]).unwrap()),
        later: Ok(serde_json::from_value(self::status(&tenant)).unwrap()),
        status: Ok(status),
        tenants: Ok(vec![tenant]),
        process: Ok(Process {
            pid: 7,
            is_daemon: true,
            capabilities: u64::MAX,
            lockable: None,
            shares_network: true,
        }),
        host: Host {
            held: vec!["in0".into(), "out0".into()],
            pins: Ok(vec!["inside-2-native".into(), "outside-3-native".into()]),
            is_bpffs: Ok(true),
            state: Ok(None),
        },
        kernel: Ok(facts()),
        settings: settings(),
        isolated: Ok(Vec::new()),
        queues: Ok([1, 1]),
        answers: Answers { inside: Ok(Vec::new()), outside: Ok(Vec::new()) },
        clock: Ok(true),
        cluster: Cluster::Answers(ClusterAnswers {
            server: "https://192.168.99.2:6443".into(),
            seconds_ahead: Ok(0),
            has_tenants: Ok(true),
            has_policies: Ok(true),
            allowed: vec![Ok(true); NEEDS.len()],
        }),
    }
}

/// Returns the ids of what is broken or could be better, in order.
pub(super) fn ids(findings: &[Finding]) -> Vec<&str> {
    let bad =
        findings.iter().filter(|finding| matches!(finding.severity, Severity::Broken | Severity::Warning));
    bad.inspect(|finding| {
        assert!(
            !finding.why.is_empty() && !finding.fix.is_empty(),
            "{finding:?} does not say why, or what to do"
        );
    })
    .map(|finding| finding.id.as_str())
    .collect()
}

/// Returns a route by a link.
pub(super) fn route(prefix: &str, gateway: Option<&str>, link: u32) -> Route {
    let prefix: Ipv4Net = prefix.parse().unwrap();
    Route { prefix, gateway: gateway.map(|gateway| gateway.parse().unwrap()), link, metric: 0, ours: false }
}

fn facts() -> Facts {
    let link = |index: u32, name: &str, macvlan_parent| Link {
        index,
        name: name.to_owned(),
        mac: Some(MacAddr6::new(2, 0, 0, 0, 0, u8::try_from(index).unwrap())),
        mtu: 1500,
        up: true,
        carrier: true,
        macvlan_parent,
    };
    let address = |link, address: [u8; 4]| Address {
        link,
        address: Ipv4Addr::from(address),
        prefix_len: 24,
        secondary: false,
        ours: false,
    };
    Facts {
        links: vec![
            link(1, "lo", None),
            link(2, "in0", None),
            link(3, "out0", None),
            link(4, "spw-c0a8630d", Some(2)),
        ],
        addresses: vec![address(2, [192, 168, 99, 12]), address(3, [192, 168, 55, 12])],
        routes: vec![
            route("0.0.0.0/0", Some("192.168.55.1"), 3),
            route("192.168.55.0/24", None, 3),
            route("192.168.99.0/24", None, 2),
            Route { ours: true, ..route("10.132.0.0/24", Some("192.168.99.21"), 2) },
            Route { ours: true, ..route("10.132.1.0/24", Some("192.168.99.22"), 2) },
        ],
        neighbours: Vec::new(),
    }
}

fn settings() -> BTreeMap<String, String> {
    let mut settings = BTreeMap::from([
        ("net/ipv4/ip_forward".to_owned(), "0".to_owned()),
        ("net/ipv4/neigh/default/gc_thresh3".to_owned(), "1024".to_owned()),
        ("net/ipv4/conf/all/rp_filter".to_owned(), "0".to_owned()),
    ]);
    for link in ["in0", "out0", "spw-c0a8630d"] {
        for (name, value) in [("arp_ignore", "1"), ("arp_announce", "2"), ("rp_filter", "0")] {
            settings.insert(format!("net/ipv4/conf/{link}/{name}"), value.to_owned());
        }
    }
    settings
}

fn status(tenant: &Tenant) -> serde_json::Value {
    let interface = |side: &str, name: &str, address: &str| {
        json!({ "side": side, "name": name, "mac": "02:00:00:00:00:02", "address": address, "mtu": 1500,
                "xdpMode": "native", "verdicts": {}, "queues": 1, "awaySeconds": null, "trouble": null, "reattachments": 0 })
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"), "pid": 7, "uptimeSeconds": 60, "epoch": { "wanted": 3, "applied": 3 },
        "interfaces": [
            interface("inside", "in0", "192.168.99.12"),
            interface("outside", "out0", "192.168.55.12"),
        ],
        "workers": [], "frames": { "total": 0, "atWorkers": 0, "inCommons": 0, "handedOver": 0 },
        "sessions": 0, "drops": {},
        "tenants": [{
            "tenant": tenant, "source": "configFile",
            "status": {
                "gatewayMAC": "02:53:c0:a8:63:0d", "link": "spw-c0a8630d", "sources": ["10.132.0.0/14"],
                "sessions": 0, "outboundPackets": 9, "outboundBytes": 900, "inboundPackets": 9, "inboundBytes": 900,
                "droppedPackets": 0, "drops": {},
            },
        }],
    })
}

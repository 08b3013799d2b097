//! Links, addresses, routes and neighbours against the real kernel, in network namespaces of their own.
//!
//! ```text
//!   this thread's namespace            another namespace
//!   in0  192.168.99.12/24 ──── veth ── node0  192.168.99.21/24
//!   out0 192.168.55.12/24 ──── veth ── up0    192.168.55.1/24
//! ```

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod namespace;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Mutex;

use conntrack::{Epoch, Timeouts};
use control::compile::{Constants, compile, host};
use control::config::ReturnRoute;
use control::daemon::program;
use control::kubernetes::state::ClusterState;
use control::netlink::Netlink;
use control::netlink::facts::{Facts, Interfaces};
use control::netlink::links::TenantLink;
use control::netlink::monitor::{Changes, Monitor};
use control::plan::{Needs, Plan};
use control::registry::{Registry, Source};
use fastpath::snapshot::{Side, SnapshotSpec, TcpPolicy};

use namespace::{World, eventually, in_namespace, ip};

#[test]
fn a_tenant_gets_what_it_needs_and_leaves_nothing() {
    in_namespace(async |world| {
        ip("address add 192.168.55.77/32 dev out0");
        ip("route add 10.99.0.0/16 via 192.168.99.30");
        let gateway = Gateway::open(world).await;
        let before = gateway.facts().await;
        let needs = gateway.needs(&before);

        gateway.converge(&needs).await;

        let link = ip("-details link show spw-c0a8630d");
        assert!(link.contains("02:53:c0:a8:63:0d") && link.contains("macvlan mode bridge"), "{link}");
        assert!(link.contains("alias ns-blue"), "{link}");
        assert!(ip("address show dev out0").contains("192.168.55.113/32"));
        assert!(ip("route show proto 83").contains("10.132.0.0/24 via 192.168.99.21 dev in0"));
        assert!(gateway.plan(&needs).await.is_empty(), "a later process takes over what is right");

        gateway.converge(&Needs::default()).await;

        let mut after = gateway.facts().await;
        after.neighbours.clone_from(&before.neighbours);
        assert_eq!(after, before, "what others made is untouched");
    });
}

#[test]
fn a_tenants_link_answers_arp_with_its_own_mac_and_answers_ping() {
    in_namespace(async |world| {
        let gateway = Gateway::open(world).await;
        let needs = gateway.needs(&gateway.facts().await);
        control::sysctl::isolate_new_link("in0").unwrap();
        gateway.converge(&needs).await;
        world.peer("ping -c 1 -W 2 192.168.99.13");
        let neighbour = world.peer("ip neigh show 192.168.99.13");
        assert!(neighbour.contains("02:53:c0:a8:63:0d"), "{neighbour}");
    });
}

#[test]
fn a_tenants_link_that_somebody_broke_is_made_again() {
    in_namespace(async |world| {
        let gateway = Gateway::open(world).await;
        let needs = gateway.needs(&gateway.facts().await);
        gateway.converge(&needs).await;
        for damage in
            ["address flush dev spw-c0a8630d", "link set spw-c0a8630d down", "link delete spw-c0a8630d"]
        {
            ip(damage);
            assert!(!gateway.plan(&needs).await.is_empty(), "{damage} is noticed");
            gateway.converge(&needs).await;
            assert!(gateway.plan(&needs).await.is_empty(), "{damage} is made good");
        }
    });
}

#[test]
fn what_is_gone_already_counts_as_removed() {
    in_namespace(async |world| {
        ip("route add default via 192.168.55.1");
        let gateway = Gateway::open(world).await;
        let needs = gateway.needs(&gateway.facts().await);
        gateway.converge(&needs).await;
        let plan = Plan::compare(&Needs::default(), &gateway.facts().await, &gateway.constants.interfaces);
        assert!(plan.removals.len() >= 4, "link, address, route and neighbour: {plan:?}");
        for _ in 0..2 {
            for removal in &plan.removals {
                program::remove(&gateway.netlink, removal).await.unwrap();
            }
        }
        ip("link delete in0");
        ip("link delete out0");
        for removal in &plan.removals {
            program::remove(&gateway.netlink, removal).await.unwrap();
        }
    });
}

#[test]
fn an_egress_address_of_somebody_else_is_used_and_stays() {
    in_namespace(async |world| {
        ip("address add 192.168.55.113/32 dev out0");
        let gateway = Gateway::open(world).await;
        let needs = gateway.needs(&gateway.facts().await);
        gateway.converge(&needs).await;
        gateway.converge(&Needs::default()).await;
        assert!(ip("address show dev out0").contains("192.168.55.113/32"));
    });
}

#[test]
fn next_hops_are_resolved_and_kept_so() {
    in_namespace(async |world| {
        ip("route add default via 192.168.55.1");
        let gateway = Gateway::open(world).await;
        let needs = gateway.needs(&gateway.facts().await);
        assert_eq!(
            needs.next_hops,
            BTreeSet::from([(Side::Outside, Ipv4Addr::new(192, 168, 55, 1))]),
            "the return route does not exist yet"
        );
        gateway.converge(&needs).await;
        let resolved = async || {
            let spec = gateway.spec(&gateway.facts().await);
            spec.neighbours.iter().any(|found| found.address == Ipv4Addr::new(192, 168, 55, 1))
        };
        eventually("the upstream router is resolved", resolved).await;
        assert!(ip("neigh show 192.168.55.1").contains("managed"));
        let needs = gateway.needs(&gateway.facts().await);
        gateway.converge(&needs).await;
        let node = async || ip("neigh show 192.168.99.21").contains("lladdr");
        eventually("the node is resolved as soon as the return route is there", node).await;
        assert!(gateway.plan(&needs).await.is_empty());
    });
}

#[test]
fn a_neighbour_set_by_hand_is_left_alone() {
    in_namespace(async |world| {
        ip("route add default via 192.168.55.1");
        ip("neigh add 192.168.55.1 lladdr 02:00:00:00:00:77 dev out0 nud permanent");
        let gateway = Gateway::open(world).await;
        let needs = gateway.needs(&gateway.facts().await);
        gateway.converge(&needs).await;
        gateway.converge(&Needs::default()).await;
        let neighbour = ip("neigh show 192.168.55.1");
        assert!(neighbour.contains("02:00:00:00:00:77") && neighbour.contains("PERMANENT"), "{neighbour}");
    });
}

#[test]
fn a_neighbour_is_resolved_on_request() {
    in_namespace(async |world| {
        let gateway = Gateway::open(world).await;
        let facts = gateway.facts().await;
        let node = Ipv4Addr::new(192, 168, 99, 21);
        let interfaces = &gateway.constants.interfaces;
        program::resolve(&gateway.netlink, &facts, interfaces, Side::Inside, node).await.unwrap();
        let resolved = async || {
            let spec = gateway.spec(&gateway.facts().await);
            spec.neighbours.iter().any(|found| found.side == Side::Inside && found.address == node)
        };
        eventually("the node is resolved", resolved).await;
    });
}

#[test]
fn the_kernels_choice_of_routes_is_mirrored() {
    in_namespace(async |world| {
        ip("route add default via 192.168.55.2 metric 200");
        ip("route add default via 192.168.55.1 metric 100");
        ip("route add blackhole 203.0.113.0/24");
        ip("route add 198.51.100.0/24 via 192.168.55.9 table 99");
        ip("route add 10.140.0.0/16 nexthop via 192.168.99.21 nexthop via 192.168.99.22");
        let gateway = Gateway::open(world).await;
        let spec = gateway.spec(&gateway.facts().await);
        let routes: Vec<String> = spec
            .routes
            .iter()
            .map(|route| {
                let gateway = route.gateway.map_or("link".to_owned(), |gateway| gateway.to_string());
                format!("{} {} {gateway}", route.side.name(), route.prefix)
            })
            .collect();
        let expected = [
            "inside 10.140.0.0/16 192.168.99.21",
            "inside 192.168.99.0/24 link",
            "outside 0.0.0.0/0 192.168.55.1",
            "outside 192.168.55.0/24 link",
        ];
        assert_eq!(routes, expected);
        assert_eq!(spec.inside.address, Ipv4Addr::new(192, 168, 99, 12));
        assert!(spec.own_addresses.contains(&Ipv4Addr::new(192, 168, 99, 13)), "before its link is there");
    });
}

#[test]
fn changes_are_noticed_and_a_neighbours_mere_state_changes_no_snapshot() {
    in_namespace(async |world| {
        ip("neigh add 192.168.99.40 lladdr 02:00:00:00:00:40 dev in0 nud reachable");
        let gateway = Gateway::open(world).await;
        let mut monitor = Monitor::subscribe().unwrap();
        let before = gateway.spec(&gateway.facts().await);

        ip("neigh change 192.168.99.40 lladdr 02:00:00:00:00:40 dev in0 nud stale");
        monitor.changed().await.unwrap();
        let mut facts = gateway.facts().await;
        let changes = facts.catch_up(&gateway.netlink, &mut monitor, Changes::default()).await.unwrap();
        assert!(changes.neighbours && !changes.routes, "{changes:?}");
        assert_eq!(gateway.spec(&facts), before);

        ip("route add 10.140.0.0/16 via 192.168.99.21");
        monitor.changed().await.unwrap();
        let changes = facts.catch_up(&gateway.netlink, &mut monitor, Changes::default()).await.unwrap();
        assert!(changes.routes && !changes.links, "{changes:?}");
        assert_ne!(gateway.spec(&facts), before);

        ip("link set out0 mtu 1400");
        monitor.changed().await.unwrap();
        let changes = facts.catch_up(&gateway.netlink, &mut monitor, Changes::default()).await.unwrap();
        assert_eq!(changes, Changes::ALL);
        assert_eq!(gateway.spec(&facts).outside.mtu, 1400);
    });
}

#[test]
fn what_the_kernel_tells_makes_the_same_facts_as_reading_does() {
    in_namespace(async |world| {
        let gateway = Gateway::open(world).await;
        let mut monitor = Monitor::subscribe().unwrap();
        let mut facts = gateway.facts().await;
        let steps = [
            "link add spw-c0a8630e link in0 address 02:53:c0:a8:63:0e type macvlan mode bridge",
            "address add 192.168.99.14/32 dev spw-c0a8630e",
            "link set spw-c0a8630e alias ns-red up",
            "address add 192.168.55.114/32 dev out0",
            "address add 192.168.55.115/24 dev out0",
            "address delete 192.168.55.12/24 dev out0",
            "link set out0 mtu 1400",
            "link set spw-c0a8630e address 02:53:c0:a8:63:0f",
            "link add br0 type bridge",
            "link set out0 master br0",
            "link set out0 nomaster",
            "address delete 192.168.55.114/32 dev out0",
            "link set in0 down",
            "link delete spw-c0a8630e",
            "link set in0 up",
            "link delete out0",
        ];
        for step in steps {
            ip(step);
            facts.catch_up(&gateway.netlink, &mut monitor, Changes::default()).await.unwrap();
            let read = gateway.facts().await;
            assert_eq!(sorted(&facts), sorted(&read), "after `ip {step}`");
        }
    });
}

#[test]
fn links_and_addresses_are_not_read_for_each_tenant_that_comes_or_goes() {
    in_namespace(async |world| {
        let log = tempfile::NamedTempFile::new().unwrap();
        let writer = Mutex::new(log.reopen().unwrap());
        let subscriber =
            tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(writer).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let readings = || {
            let text = std::fs::read_to_string(log.path()).unwrap();
            text.matches("reading all links and addresses").count()
        };
        let gateway = Gateway::open(world).await;
        let mut monitor = Monitor::subscribe().unwrap();
        // A place that another test was just then the first to pass may have missed that somebody listens here.
        gateway.facts().await;
        tracing::callsite::rebuild_interest_cache();
        let mut facts = gateway.facts().await;
        let before = readings();
        assert!(before > 0);
        // One after the other, then many at once, then none any more.
        for tenants in [1, 2, 3, 4, 5, 6, 7, 8, 60, 0] {
            let needs = tenants_needs(tenants);
            let plan = Plan::compare(&needs, &facts, &gateway.constants.interfaces);
            program::remove_all(&gateway.netlink, &plan.removals).await.unwrap();
            let interfaces = &gateway.constants.interfaces;
            let additions = &plan.additions;
            let outcomes =
                program::add_all(&gateway.netlink, &mut monitor, &mut facts, interfaces, additions).await;
            assert!(outcomes.iter().all(|(_, outcome)| outcome.is_ok()), "{outcomes:?}");
            facts.catch_up(&gateway.netlink, &mut monitor, Changes::default()).await.unwrap();
            assert!(Plan::compare(&needs, &facts, interfaces).is_empty(), "{tenants} tenants");
        }
        assert_eq!(readings(), before);
    });
}

#[test]
fn interfaces_that_cannot_be_used_are_refused_by_name() {
    in_namespace(async |world| {
        let gateway = Gateway::open(world).await;
        let error = |facts: &Facts| host(facts, &[], &gateway.constants).unwrap_err().to_string();
        ip("address flush dev out0");
        let text = error(&gateway.facts().await);
        assert!(text.starts_with("outside.interface: \"out0\" has no IPv4 address"), "{text}");
        ip("link set in0 down");
        let text = error(&gateway.facts().await);
        assert!(text.starts_with("inside.interface: \"in0\" is down"), "{text}");
        ip("link delete in0");
        let text = error(&gateway.facts().await);
        assert!(text.starts_with("inside.interface: \"in0\" does not exist; there are "), "{text}");
    });
}

/// A gateway with one tenant and one return route, without a fast path.
struct Gateway {
    netlink: Netlink,
    constants: Constants,
    registry: Registry,
}

impl Gateway {
    async fn open(_world: &World) -> Self {
        let netlink = Netlink::connect().unwrap();
        let constants = Constants {
            interfaces: Interfaces { inside: "in0".into(), outside: "out0".into() },
            pod_cidrs: vec!["10.132.0.0/14".parse().unwrap()],
            timeouts: Timeouts::default(),
            tcp: TcpPolicy::default(),
            has_kubernetes: false,
        };
        let mut registry = Registry::default();
        let blue = serde_json::json!({
            "name": "ns-blue", "gatewayIP": "192.168.99.13", "egressIPs": ["192.168.55.113"],
        });
        let host = host(&Facts::read(&netlink).await.unwrap(), &[], &constants).unwrap();
        registry.put(serde_json::from_value(blue).unwrap(), Source::ConfigFile, &host).unwrap();
        Self { netlink, constants, registry }
    }

    async fn facts(&self) -> Facts {
        Facts::read(&self.netlink).await.unwrap()
    }

    fn needs(&self, facts: &Facts) -> Needs {
        let route =
            ReturnRoute { pod_cidr: "10.132.0.0/24".parse().unwrap(), via: Ipv4Addr::new(192, 168, 99, 21) };
        Needs::of(&self.registry, &[route], facts, &self.constants.interfaces)
    }

    fn spec(&self, facts: &Facts) -> SnapshotSpec {
        compile(Epoch(1), &self.registry, facts, &[], &ClusterState::default(), &self.constants).unwrap()
    }

    async fn plan(&self, needs: &Needs) -> Plan {
        Plan::compare(needs, &self.facts().await, &self.constants.interfaces)
    }

    async fn converge(&self, needs: &Needs) {
        let plan = self.plan(needs).await;
        for removal in &plan.removals {
            program::remove(&self.netlink, removal).await.unwrap();
        }
        let mut monitor = Monitor::subscribe().unwrap();
        let mut facts = self.facts().await;
        let interfaces = &self.constants.interfaces;
        let (netlink, additions) = (&self.netlink, &plan.additions);
        for (_, added) in program::add_all(netlink, &mut monitor, &mut facts, interfaces, additions).await {
            added.unwrap();
        }
    }
}

/// Returns links, addresses and routes in an order of their own. Carriers follow a little later.
fn sorted(facts: &Facts) -> (Vec<String>, Vec<String>, Vec<String>) {
    fn lines<T: std::fmt::Debug>(all: impl Iterator<Item = T>) -> Vec<String> {
        let mut lines: Vec<String> = all.map(|one| format!("{one:?}")).collect();
        lines.sort();
        lines
    }
    let links = facts.links.iter().cloned().map(|mut link| {
        link.carrier = false;
        link
    });
    (lines(links), lines(facts.addresses.iter()), lines(facts.routes.iter()))
}

/// Returns what so many tenants need.
fn tenants_needs(count: u8) -> Needs {
    let link = |number: u8| TenantLink {
        name: format!("spw-c0a863{:02x}", 100 + number),
        mac: [2, 0x53, 192, 168, 99, 100 + number].into(),
        address: [192, 168, 99, 100 + number].into(),
        tenant: format!("ns-{number}"),
    };
    Needs {
        links: (0..count).map(link).collect(),
        egress_addresses: (0..count).map(|number| [192, 168, 55, 100 + number].into()).collect(),
        ..Needs::default()
    }
}

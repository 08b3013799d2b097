//! Return routes from nodes: cases, and properties against an oracle.

use proptest::prelude::*;

use super::*;
use crate::kubernetes::objects::Identity;
use crate::refusal::Refusal;

#[test]
fn each_node_is_the_way_to_its_pods() {
    let compiled =
        compile_fresh([node("w1", 1, &["10.132.0.0/24"], 21), node("w2", 2, &["10.132.1.0/24"], 22)]);
    assert_eq!(compiled.routes["w1"], [route("10.132.0.0/24", 21)]);
    assert_eq!(compiled.routes["w2"], [route("10.132.1.0/24", 22)]);
    assert_eq!(compiled.node_addresses, addresses(&[("w1", 21), ("w2", 22)]));
    assert_eq!(compiled.notices, []);
}

#[test]
fn the_next_hop_is_the_first_host_of_the_inside_network() {
    let mut w1 = node("w1", 1, &["10.132.0.0/24"], 21);
    w1.addresses =
        Ok(["10.0.0.1", "192.168.99.255", "192.168.99.0", "192.168.99.12", "192.168.99.25", "192.168.99.26"]
            .map(|text| text.parse().unwrap())
            .to_vec());
    assert_eq!(compile_fresh([w1]).routes["w1"], [route("10.132.0.0/24", 25)]);
}

#[test]
fn a_node_does_not_take_a_tenants_next_hop() {
    let nodes = list([node("w1", 1, &["10.132.0.0/24"], 13), node("w2", 2, &["10.132.1.0/24"], 22)]);
    let surroundings = Surroundings { gateways: [[192, 168, 99, 13].into()].into(), ..surroundings() };
    let compiled = compile(&nodes, &ClusterState::default(), &surroundings);
    assert_eq!(compiled.routes.keys().collect::<Vec<_>>(), ["w2"]);
    assert_eq!(compiled.notices[0].reason, "NoInsideAddress");
}

#[test]
fn of_two_nodes_that_overlap_the_newer_is_refused() {
    let table = [
        (node("a", 1, &["10.132.0.0/23"], 21), node("b", 2, &["10.132.1.0/24"], 22)),
        (node("b", 1, &["10.132.0.0/24"], 21), node("a", 2, &["10.132.0.0/24"], 22)),
        (node("a", 1, &["10.132.1.0/24"], 21), node("b", 1, &["10.132.0.0/22"], 22)),
    ];
    for (older, newer) in table {
        let (older_name, newer_name) = (older.identity.name.clone(), newer.identity.name.clone());
        let compiled = compile_fresh([newer, older, node("c", 0, &["10.132.9.0/24"], 23)]);
        assert!(compiled.routes.contains_key(&older_name) && compiled.routes.contains_key("c"));
        assert!(!compiled.routes.contains_key(&newer_name));
        let [notice] = compiled.notices.as_slice() else { panic!("{:?}", compiled.notices) };
        assert_eq!((notice.name.as_str(), notice.reason), (newer_name.as_str(), "OverlappingPodCIDR"));
        assert!(notice.message.contains(&format!("of the older node {older_name};")), "{}", notice.message);
    }
}

#[test]
fn a_node_whose_age_is_unknown_counts_as_newest() {
    let mut a = node("a", 0, &["10.132.0.0/24"], 21);
    a.identity.created = None;
    let compiled = compile_fresh([a, node("b", 9, &["10.132.0.0/24"], 22)]);
    assert_eq!(compiled.routes.keys().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn what_cannot_be_routed_is_refused_with_its_reason() {
    let duplicate = [node("w0", 0, &["10.132.7.0/24"], 21)];
    let mut malformed = node("w1", 1, &[], 21);
    malformed.pod_cidrs = Err(Refusal::invalid("spec.podCIDR", "\"x\" is no network"));
    let mut unknown = node("w1", 1, &["10.132.0.0/24"], 21);
    unknown.addresses = Err(Refusal::invalid("status.addresses[0].address", "\"x\" is no address"));
    let mut elsewhere = node("w1", 1, &["10.132.0.0/24"], 21);
    elsewhere.addresses = Ok(vec![[10, 0, 0, 21].into()]);
    let table = [
        (&[][..], malformed, "MalformedPodCIDR", "spec.podCIDR: \"x\" is no network"),
        (&[], unknown, "MalformedAddress", "status.addresses[0].address: \"x\" is no address"),
        (&[], elsewhere, "NoInsideAddress", "[10.0.0.21] is a host of the inside network 192.168.99.0/24"),
        (
            &duplicate,
            node("w1", 1, &["10.132.0.0/24"], 21),
            "DuplicateAddress",
            "192.168.99.21 is that of the older node w0",
        ),
        (
            &[],
            node("w1", 1, &["192.168.0.0/16"], 21),
            "InvalidPodCIDR",
            "overlaps with the gateway's inside network 192.168.99.0/24",
        ),
        (
            &[],
            node("w1", 1, &["192.168.55.0/26"], 21),
            "InvalidPodCIDR",
            "overlaps with the gateway's outside network 192.168.55.0/24",
        ),
        (
            &[],
            node("w1", 1, &["10.140.0.0/25"], 21),
            "InvalidPodCIDR",
            "overlaps with 10.140.0.0/24 via 192.168.99.40, a route of the config file",
        ),
        (&[], node("w1", 1, &["10.0.0.0/7"], 21), "InvalidPodCIDR", "10.0.0.0/7 is shorter than /8"),
    ];
    for (others, refused, reason, message) in table {
        let compiled = compile_fresh(others.iter().cloned().chain([refused]));
        assert!(!compiled.routes.contains_key("w1"), "{reason}");
        let [notice] = compiled.notices.as_slice() else { panic!("{reason}: {:?}", compiled.notices) };
        assert_eq!((notice.name.as_str(), notice.reason), ("w1", reason), "{}", notice.message);
        assert!(
            notice.message.starts_with("node w1: ") && notice.message.contains(message),
            "{}",
            notice.message
        );
    }
}

#[test]
fn a_refused_network_leaves_the_nodes_others_alone() {
    let compiled = compile_fresh([
        node("w1", 1, &["10.132.0.0/24"], 21),
        node("w2", 2, &["10.132.0.0/25", "10.132.1.0/24"], 22),
    ]);
    assert_eq!(compiled.routes["w2"], [route("10.132.1.0/24", 22)]);
    assert_eq!(compiled.notices.len(), 1);
}

#[test]
fn networks_of_one_node_that_overlap_are_one_route() {
    let w1 = node("w1", 1, &["10.132.0.128/25", "10.132.0.0/24", "10.132.0.0/24"], 21);
    let compiled = compile_fresh([w1]);
    assert_eq!(compiled.routes["w1"], [route("10.132.0.0/24", 21)]);
    assert_eq!(compiled.notices, []);
}

#[test]
fn a_route_that_the_config_file_has_too_is_left_to_it() {
    let compiled = compile_fresh([node("w1", 1, &["10.140.0.0/24"], 40)]);
    assert_eq!((compiled.routes.len(), compiled.notices), (0, Vec::new()));
}

#[test]
fn a_node_without_pod_networks_keeps_its_routes_quietly() {
    let previous = previous(&[("w1", &[route("10.132.0.0/24", 21)])]);
    let compiled = compile(&list([node("w1", 1, &[], 21)]), &previous, &surroundings());
    assert_eq!(compiled.routes, previous.routes);
    assert_eq!(compiled.notices, []);
    let mut joining = node("w1", 1, &[], 21);
    joining.addresses = Ok(Vec::new());
    let compiled = compile(&list([joining]), &previous, &surroundings());
    assert_eq!((&compiled.routes, compiled.notices), (&previous.routes, Vec::new()));
}

#[test]
fn a_refused_node_keeps_its_routes_and_the_notice_says_so() {
    let previous = previous(&[("w1", &[route("10.132.0.0/24", 21)])]);
    let mut w1 = node("w1", 1, &[], 21);
    w1.pod_cidrs = Err(Refusal::invalid("spec.podCIDR", "is broken"));
    let compiled = compile(&list([w1.clone()]), &previous, &surroundings());
    assert_eq!(compiled.routes, previous.routes);
    assert!(compiled.notices[0].message.ends_with("; until then it keeps 10.132.0.0/24 via 192.168.99.21"));

    let taken = list([w1, node("w2", 2, &["10.132.0.0/25"], 22)]);
    let compiled = compile(&taken, &previous, &surroundings());
    assert_eq!(compiled.routes.keys().collect::<Vec<_>>(), ["w2"]);
    assert!(!compiled.notices[0].message.contains("keeps"), "{}", compiled.notices[0].message);
}

#[test]
fn what_the_gateways_own_networks_take_is_not_kept() {
    let previous = previous(&[("w1", &[route("192.168.55.0/26", 21), route("10.140.0.0/26", 21)])]);
    let compiled = compile(&list([node("w1", 1, &[], 21)]), &previous, &surroundings());
    assert!(compiled.routes.is_empty());
}

#[test]
fn a_node_that_is_gone_loses_routes_and_address() {
    let mut previous = previous(&[("w1", &[route("10.132.0.0/24", 21)])]);
    previous.node_addresses = addresses(&[("w1", 21)]);
    let compiled = compile(&list([]), &previous, &surroundings());
    assert!(compiled.routes.is_empty() && compiled.node_addresses.is_empty());
}

#[test]
fn a_node_that_has_no_address_now_keeps_the_one_that_it_had() {
    let previous = ClusterState { node_addresses: addresses(&[("w1", 21)]), ..ClusterState::default() };
    let mut w1 = node("w1", 1, &["10.132.0.0/24"], 21);
    w1.addresses = Err(Refusal::invalid("status", "is broken"));
    let compiled = compile(&list([w1]), &previous, &surroundings());
    assert_eq!(compiled.node_addresses, previous.node_addresses);
}

#[test]
fn five_thousand_nodes_are_all_routed() {
    let networks = |index: u16| format!("10.{}.{}.0/24", index >> 8, index & 255);
    let nodes =
        (0..5000).map(|index| node(&format!("w{index}"), i64::from(index % 977), &[&networks(index)], 0));
    let nodes = list(nodes.enumerate().map(|(index, node)| NodeObject {
        addresses: Ok(vec![Ipv4Addr::from_bits(0xac10_0000 + u32::try_from(index).unwrap() + 2)]),
        ..node
    }));
    let surroundings = Surroundings { inside: "172.16.0.1/16".parse().unwrap(), ..surroundings() };
    let compiled = compile(&nodes, &ClusterState::default(), &surroundings);
    assert_eq!(compiled.routes.len(), 5000);
}

proptest! {
    #[test]
    fn routes_are_those_of_the_oracle_after_any_history(
        history in proptest::collection::vec(proptest::collection::vec(any_node(), 0..12), 1..4),
    ) {
        let mut state = ClusterState::default();
        for nodes in history {
            let nodes = list(nodes);
            let compiled = compile(&nodes, &state, &surroundings());
            prop_assert_eq!(&compiled.routes, &oracle(&nodes, &state));
            let routes: Vec<_> = compiled.routes.values().flatten().collect();
            for (index, route) in routes.iter().enumerate() {
                prop_assert!(routes[..index].iter().all(|other| !overlap(route.pod_cidr, other.pod_cidr)));
            }
            state.routes = compiled.routes;
            state.node_addresses = compiled.node_addresses;
        }
    }
}

/// Every pair is compared: first what nodes say, oldest first, then what those who miss something had.
fn oracle(
    nodes: &BTreeMap<String, Arc<NodeObject>>,
    previous: &ClusterState,
) -> BTreeMap<String, Vec<ReturnRoute>> {
    let mut nodes: Vec<_> = nodes.values().collect();
    nodes.sort_by_key(|node| (node.identity.created, node.identity.name.clone()));
    let mut accepted: Vec<(String, ReturnRoute)> = Vec::new();
    let mut incomplete = Vec::new();
    let is_sound = |route: &ReturnRoute| check(*route, &surroundings()).is_ok();
    for (index, node) in nodes.iter().enumerate() {
        let name = &node.identity.name;
        let hop = |node: &NodeObject| node.addresses.as_ref().ok().and_then(|all| all.first().copied());
        let via = hop(node).filter(|via| nodes[..index].iter().all(|older| hop(older) != Some(*via)));
        let mut networks = node.pod_cidrs.clone().unwrap_or_default();
        networks.sort_by_key(Ipv4Net::prefix_len);
        let mut is_complete = via.is_some() && !networks.is_empty();
        for route in
            via.iter().flat_map(|via| networks.iter().map(|&pod_cidr| ReturnRoute { pod_cidr, via: *via }))
        {
            let rivals: Vec<_> =
                accepted.iter().filter(|(_, other)| overlap(other.pod_cidr, route.pod_cidr)).collect();
            if is_sound(&route) && rivals.is_empty() {
                accepted.push((name.clone(), route));
            } else if !is_sound(&route) || rivals.iter().any(|(owner, _)| owner != name) {
                is_complete = false;
            }
        }
        if !is_complete {
            incomplete.push(name);
        }
    }
    for name in incomplete {
        for route in previous.routes.get(name).into_iter().flatten() {
            if is_sound(route) && accepted.iter().all(|(_, other)| !overlap(other.pod_cidr, route.pod_cidr)) {
                accepted.push((name.clone(), *route));
            }
        }
    }
    accepted.sort_by_key(|(_, route)| route.pod_cidr.network());
    let mut routes = BTreeMap::<_, Vec<_>>::new();
    for (name, route) in accepted {
        routes.entry(name).or_default().push(route);
    }
    routes
}

/// Few names, ages, networks and addresses, so that they collide.
fn any_node() -> impl Strategy<Value = NodeObject> {
    let network = (0..8u8, 0..4u8, 21..=26u8).prop_map(|(third, fourth, prefix)| {
        Ipv4Net::new([10, 132, third, fourth * 64].into(), prefix).unwrap().trunc()
    });
    let refused = || Refusal::invalid("field", "is broken");
    let networks = prop_oneof![
        8 => proptest::collection::vec(network, 0..3).prop_map(Ok),
        1 => Just(Err(refused())),
        1 => Just(Ok(vec!["192.168.55.0/24".parse().unwrap()])),
    ];
    let address = prop_oneof![
        8 => (20..32u8).prop_map(|last| Ok(vec![Ipv4Addr::new(192, 168, 99, last)])),
        1 => Just(Err(refused())),
        1 => Just(Ok(Vec::new())),
    ];
    (0..12u8, 0..6i64, networks, address).prop_map(|(name, created, pod_cidrs, addresses)| NodeObject {
        pod_cidrs,
        addresses,
        ..node(&format!("w{name}"), created, &[], 0)
    })
}

fn compile_fresh(nodes: impl IntoIterator<Item = NodeObject>) -> Compiled {
    compile(&list(nodes), &ClusterState::default(), &surroundings())
}

fn list(nodes: impl IntoIterator<Item = NodeObject>) -> BTreeMap<String, Arc<NodeObject>> {
    nodes.into_iter().map(|node| (node.identity.name.clone(), Arc::new(node))).collect()
}

fn node(name: &str, created: i64, networks: &[&str], last: u8) -> NodeObject {
    let created = Some(jiff::Timestamp::from_second(created).unwrap());
    NodeObject {
        identity: Identity { name: name.into(), uid: name.into(), created, ..Identity::default() },
        pod_cidrs: Ok(networks.iter().map(|text| text.parse().unwrap()).collect()),
        addresses: Ok(vec![[192, 168, 99, last].into()]),
    }
}

fn route(network: &str, last: u8) -> ReturnRoute {
    ReturnRoute { pod_cidr: network.parse().unwrap(), via: [192, 168, 99, last].into() }
}

fn addresses(pairs: &[(&str, u8)]) -> BTreeMap<String, Ipv4Addr> {
    pairs.iter().map(|(name, last)| ((*name).into(), [192, 168, 99, *last].into())).collect()
}

fn previous(routes: &[(&str, &[ReturnRoute])]) -> ClusterState {
    let routes = routes.iter().map(|(name, routes)| ((*name).into(), routes.to_vec())).collect();
    ClusterState { routes, ..ClusterState::default() }
}

fn surroundings() -> Surroundings {
    Surroundings {
        inside: "192.168.99.12/24".parse().unwrap(),
        outside: "192.168.55.12/24".parse().unwrap(),
        routes: vec![route("10.140.0.0/24", 40)],
        ..Surroundings::default()
    }
}

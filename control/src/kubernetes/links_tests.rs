//! Links from policies, namespaces and pods.

use super::*;
use crate::kubernetes::fixtures::{map, namespace, pod, policy, surroundings, tenant};
use crate::kubernetes::state::TenantOutcome;
use crate::kubernetes::view::{self, Listed};
use crate::refusal::Refusal;

#[test]
fn a_link_has_the_policies_namespaces_and_pods_of_a_next_hop() {
    let compiled = compile_fresh(&whole());
    let expected = Link {
        policies: ["blue".to_owned()].into(),
        namespaces: BTreeMap::from([("ns-blue".into(), pods(&[5, 6])), ("ns-blue-2".into(), pods(&[]))]),
    };
    assert_eq!(compiled.state.links, BTreeMap::from([(gateway(13), expected)]));
    assert_eq!(compiled.pod_namespaces, ["ns-blue", "ns-blue-2"].map(String::from).into());
    assert_eq!(compiled.notices, []);
}

#[test]
fn gateway_addresses_of_tenants_from_elsewhere_are_linked_too() {
    let mut view = whole();
    view.tenants = Some(BTreeMap::new());
    let compiled = view::compile(&view, &ClusterState::default(), &surroundings(), &outcome(&[13]));
    assert_eq!(compiled.state.links.keys().collect::<Vec<_>>(), [&gateway(13)]);
    let nobody = view::compile(&view, &ClusterState::default(), &surroundings(), &outcome(&[77]));
    assert!(nobody.state.links.is_empty() && nobody.pod_namespaces.is_empty());
}

#[test]
fn a_tenant_that_drains_keeps_its_pods_although_policies_no_longer_find_it() {
    let previous = compile_fresh(&whole()).state;
    let view = View { tenants: Some(BTreeMap::new()), ..whole() };
    let draining = Outcome { draining: [gateway(13)].into(), ..outcome(&[77]) };
    let without_policies = View { policies: None, ..view.clone() };
    for view in [&view, &without_policies] {
        let compiled = view::compile(view, &previous, &surroundings(), &draining);
        assert_eq!(compiled.state.links, previous.links);
    }
    let reasons = view::compile(&view, &previous, &surroundings(), &draining).notices;
    assert_eq!(reasons.iter().map(|notice| notice.reason).collect::<Vec<_>>(), ["UnknownNextHop"]);
}

#[test]
fn a_link_stays_until_the_gateway_has_said_its_tenants() {
    let previous = compile_fresh(&whole()).state;
    let view = View { tenants: Some(BTreeMap::new()), ..whole() };
    let before = view::compile(&view, &previous, &surroundings(), &Outcome::default());
    assert_eq!(before.state.links, previous.links);
    let after = view::compile(&view, &previous, &surroundings(), &outcome(&[77]));
    assert!(after.state.links.is_empty());
}

#[test]
fn lists_that_are_not_there_yet_come_from_the_last_good_state() {
    let previous = compile_fresh(&whole()).state;
    let without_policies = View { policies: None, ..whole() };
    let without_namespaces = View { namespaces: None, ..whole() };
    let without_pods = View { pods: BTreeMap::from([("ns-blue".into(), None)]), ..whole() };
    for view in [without_policies, without_namespaces, without_pods] {
        let compiled = view::compile(&view, &previous, &surroundings(), &outcome(&[13]));
        assert_eq!(compiled.state.links, previous.links);
        assert_eq!(compiled.notices, []);
    }
}

#[test]
fn pods_are_known_before_policies_are_listed() {
    let previous = compile_fresh(&whole()).state;
    let pods_now = BTreeMap::from([("ns-blue".into(), Some(map([pod("r", 3, 9)])))]);
    let view = View { policies: None, pods: pods_now, ..whole() };
    let compiled = view::compile(&view, &previous, &surroundings(), &outcome(&[13]));
    assert_eq!(compiled.state.links[&gateway(13)].namespaces["ns-blue"], pods(&[9]));
}

#[test]
fn a_namespace_that_moves_to_another_tenant_keeps_its_pods() {
    let previous = compile_fresh(&whole()).state;
    let mut view = View { pods: BTreeMap::new(), ..whole() };
    view.namespaces = Some(map([namespace("ns-blue", "red")]));
    view.policies = Some(map([policy("blue", "blue", &[13]), policy("red", "red", &[14])]));
    let compiled = view::compile(&view, &previous, &surroundings(), &outcome(&[13, 14]));
    assert_eq!(compiled.state.links[&gateway(14)].namespaces["ns-blue"], pods(&[5, 6]));
    assert!(compiled.state.links[&gateway(13)].namespaces.is_empty());
}

#[test]
fn a_broken_edit_of_a_policy_leaves_what_it_linked() {
    let previous = compile_fresh(&whole()).state;
    let broken = |name: &str| PolicyObject {
        policy: Err(Refusal::invalid("spec.from", "is wrong")),
        ..policy(name, "blue", &[13])
    };
    let linked = |policies: Vec<PolicyObject>, namespaces: Vec<NamespaceObject>| {
        let view = View { policies: Some(map(policies)), namespaces: Some(map(namespaces)), ..whole() };
        view::compile(&view, &previous, &surroundings(), &outcome(&[13])).state.links
    };
    let both = || vec![namespace("ns-blue", "blue"), namespace("ns-blue-2", "blue")];
    assert_eq!(linked(vec![broken("blue")], both()), previous.links);
    assert!(linked(vec![broken("other")], both()).is_empty());
    let one = linked(vec![broken("blue")], vec![namespace("ns-blue", "blue")]);
    assert_eq!(one[&gateway(13)].namespaces.keys().collect::<Vec<_>>(), ["ns-blue"]);
}

#[test]
fn pods_of_a_namespace_that_has_gone_go() {
    let previous = compile_fresh(&whole()).state;
    let view = View { namespaces: Some(BTreeMap::new()), ..whole() };
    let compiled = view::compile(&view, &previous, &surroundings(), &outcome(&[13]));
    assert_eq!(compiled.state.links[&gateway(13)].pods().count(), 0);
}

#[test]
fn a_namespace_has_to_match_all_that_a_selector_asks() {
    let mut both = namespace("b", "blue");
    both.labels.insert("env".into(), "test".into());
    let namespaces = map([namespace("a", "blue"), both, namespace("c", "red")]);
    let equal = |key: &str, value: &str| Expression::Equal(key.into(), value.into());
    let table = [
        (vec![equal("tenant", "blue")], vec!["a", "b"]),
        (vec![equal("tenant", "blue"), equal("env", "test")], vec!["b"]),
        (vec![Expression::DoesNotExist("env".into()), equal("tenant", "blue")], vec!["a"]),
        (vec![Expression::DoesNotExist("env".into())], vec!["a", "c"]),
        (vec![equal("tenant", "green")], vec![]),
        (vec![], vec!["a", "b", "c"]),
    ];
    for (expressions, expected) in table {
        let mut selector = Selector::default();
        selector.extend(expressions);
        assert_eq!(Labelled::new(&namespaces).selected(&selector), expected, "{selector}");
    }
}

#[test]
fn an_address_is_in_the_namespace_of_its_newest_pod() {
    let announced = |created| PodObject { is_announced: true, ..pod("claim", created, 5) };
    let table = [
        (pod("old", 1, 5), pod("new", 2, 5), "ns-blue-2"),
        (pod("new", 2, 5), pod("old", 1, 5), "ns-blue"),
        (pod("old", 1, 5), announced(9), "ns-blue"),
        (announced(1), announced(2), "ns-blue-2"),
    ];
    for (first, second, expected) in table {
        let mut view = whole();
        let listed = |pod: PodObject| Some(map([pod]));
        view.pods = [("ns-blue".into(), listed(first)), ("ns-blue-2".into(), listed(second))].into();
        let link = &compile_fresh(&view).state.links[&gateway(13)];
        let owners: Vec<_> =
            link.namespaces.iter().filter(|(_, pods)| !pods.is_empty()).map(|(name, _)| name).collect();
        assert_eq!(owners, [expected]);
    }
}

#[test]
fn a_listed_pod_has_its_address_before_what_was_known() {
    let previous = compile_fresh(&whole()).state;
    let pods_now = BTreeMap::from([("ns-blue-2".into(), Some(map([pod("q", 0, 5)])))]);
    let compiled =
        view::compile(&View { pods: pods_now, ..whole() }, &previous, &surroundings(), &outcome(&[13]));
    let link = &compiled.state.links[&gateway(13)];
    assert_eq!((&link.namespaces["ns-blue"], &link.namespaces["ns-blue-2"]), (&pods(&[6]), &pods(&[5])));
}

#[test]
fn a_next_hop_that_no_tenant_has_is_told_once_all_tenants_are_known() {
    let mut view = whole();
    view.policies =
        Some(map([policy("blue", "blue", &[13]), policy("red", "red", &[15, 16]), elsewhere("far")]));
    let [notice] = told(&view, &outcome(&[13])).try_into().unwrap();
    assert_eq!((notice.name.as_str(), notice.reason), ("red", "UnknownNextHop"));
    assert!(
        notice
            .message
            .starts_with("policy red: no tenant has the next hop 192.168.99.15, 192.168.99.16, which")
    );
    assert_eq!(told(&view, &Outcome::default()), []);
    assert_eq!(told(&View { tenants: None, ..view }, &outcome(&[13])), []);
}

#[test]
fn a_namespace_under_two_policies_is_told_on_each() {
    let dynamic = |name: &str| {
        let mut object = policy(name, "blue", &[]);
        object.policy.as_mut().unwrap().has_dynamic_hops = true;
        object
    };
    let table = [
        (policy("other", "blue", &[14]), true),
        (PolicyObject { identity: identity("other"), ..elsewhere_for("blue") }, true),
        (dynamic("other"), true),
        (policy("other", "blue", &[13]), false),
        (policy("other", "blue", &[]), false),
        (policy("other", "red", &[14]), false),
    ];
    for (other, is_told) in table {
        let mut view = whole();
        view.tenants = Some(map([tenant("ns-blue", 1, 13), tenant("ns-red", 2, 14)]));
        view.policies = Some(map([policy("blue", "blue", &[13]), policy("red", "red", &[14]), other]));
        let notices = told(&view, &outcome(&[13, 14]));
        let names: Vec<_> = notices.iter().map(|notice| (notice.name.as_str(), notice.reason)).collect();
        let expected = ["blue", "other"].map(|name| (name, "NamespaceUnderTwoPolicies"));
        assert_eq!(names, if is_told { &expected[..] } else { &[] }, "{notices:?}");
        let said = "policy blue: selects ns-blue, ns-blue-2, as other does with other next hops";
        assert!(!is_told || notices[0].message.starts_with(said), "{}", notices[0].message);
    }
}

#[test]
fn a_tenant_that_nobody_routes_to_is_told_once_policies_are_listed() {
    let mut view = View { policies: Some(BTreeMap::new()), ..whole() };
    let [notice] = told(&view, &outcome(&[13, 20])).try_into().unwrap();
    assert_eq!(
        (notice.kind, notice.name.as_str(), notice.reason),
        (Kind::EgressTenant, "ns-blue", "NotRouted")
    );
    view.policies = None;
    assert_eq!(told(&view, &outcome(&[13, 20])), []);
}

#[test]
fn a_policy_that_cannot_be_read_is_told_and_stops_no_other() {
    let mut view = whole();
    let broken =
        PolicyObject { identity: identity("a"), policy: Err(Refusal::invalid("spec.from", "is missing")) };
    view.policies = Some(map([broken, policy("blue", "blue", &[13])]));
    let [notice] = told(&view, &outcome(&[13])).try_into().unwrap();
    assert_eq!(
        (notice.reason, notice.message.as_str()),
        ("MalformedPolicy", "policy a: spec.from: is missing")
    );
    assert!(compile_fresh(&view).state.links.contains_key(&gateway(13)));
}

#[test]
fn a_message_lists_a_few_names_and_counts_the_rest() {
    assert_eq!(some_of(&["a", "b", "c"].into()), "a, b, c");
    assert_eq!(some_of(&["a", "b", "c", "d", "e"].into()), "a, b, c and 2 more");
}

fn whole() -> View {
    let listed: Listed<PodObject> = Some(map([pod("p", 1, 5), pod("q", 2, 6)]));
    View {
        tenants: Some(map([tenant("ns-blue", 1, 13)])),
        policies: Some(map([policy("blue", "blue", &[13])])),
        namespaces: Some(map([
            namespace("ns-blue", "blue"),
            namespace("ns-blue-2", "blue"),
            namespace("ns-red", "red"),
        ])),
        pods: BTreeMap::from([("ns-blue".into(), listed)]),
        ..View::default()
    }
}

fn compile_fresh(view: &View) -> view::Compiled {
    view::compile(view, &ClusterState::default(), &surroundings(), &outcome(&[13]))
}

fn told(view: &View, outcome: &Outcome) -> Vec<Notice> {
    view::compile(view, &ClusterState::default(), &surroundings(), outcome).notices
}

fn outcome(gateways: &[u8]) -> Outcome {
    let tenant = |last: &u8| TenantOutcome {
        gateway_ip: gateway(*last),
        gateway_mac: String::new(),
        from_policy: false,
        object: None,
        epoch: conntrack::Epoch(1),
        trouble: None,
        sessions: 0,
        mismatched: crate::kubernetes::state::Mismatched::default(),
    };
    let tenants = gateways.iter().map(|last| (format!("t{last}"), tenant(last))).collect();
    Outcome { tenants, ..Outcome::default() }
}

/// Returns a policy whose next hop is no address of the inside network.
fn elsewhere(name: &str) -> PolicyObject {
    PolicyObject { identity: identity(name), ..elsewhere_for("green") }
}

fn elsewhere_for(label: &str) -> PolicyObject {
    let mut object = policy("elsewhere", label, &[]);
    object.policy.as_mut().unwrap().next_hops = [[172, 16, 0, 1].into()].into();
    object
}

fn identity(name: &str) -> crate::kubernetes::objects::Identity {
    crate::kubernetes::fixtures::identity(name, 0)
}

fn gateway(last: u8) -> Ipv4Addr {
    [192, 168, 99, last].into()
}

fn pods(last: &[u8]) -> BTreeSet<Ipv4Addr> {
    last.iter().map(|last| Ipv4Addr::new(10, 132, 0, *last)).collect()
}

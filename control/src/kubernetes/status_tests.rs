//! Statuses of EgressTenants, and when they are written.

use std::collections::BTreeMap;

use conntrack::Epoch;
use kube::core::DynamicObject;
use serde_json::json;

use super::*;
use crate::kubernetes::fixtures::{broken_tenant, map, namespace, pod, policy, surroundings, tenant};
use crate::kubernetes::state::{ClusterState, Mismatched, RefusedTenant};
use crate::kubernetes::view;

#[test]
fn conditions_say_what_became_of_the_tenant() {
    type Change = fn(&mut World);
    let table: [(&str, Change, &str, &str, &str); 15] = [
        ("Accepted", |_| {}, "True", "Accepted", "in force"),
        ("Accepted", |world| world.outcome.tenants.clear(), "Unknown", "Pending", "not looked at"),
        (
            "Accepted",
            |world| world.refuse(true),
            "False",
            "Conflict",
            "egressIPs[0]: 192.168.55.113 is taken",
        ),
        (
            "Accepted",
            |world| world.refuse(false),
            "False",
            "Invalid",
            "egressIPs[0]: 192.168.55.113 is taken",
        ),
        (
            "Accepted",
            World::break_edit,
            "False",
            "Invalid",
            "is empty; give one or more IPv4 addresses; until then generation 1 stays in force",
        ),
        ("Accepted", |world| world.object.is_deleted = true, "False", "Deleting", "finalizers"),
        ("Programmed", |_| {}, "True", "Programmed", "snapshot 7"),
        (
            "Programmed",
            |world| world.outcome.applied = Epoch(6),
            "False",
            "Pending",
            "not every worker uses snapshot 7",
        ),
        (
            "Programmed",
            |world| world.running().trouble = Some("no link".into()),
            "False",
            "Trouble",
            "no link",
        ),
        ("Programmed", |world| world.object.generation = 2, "False", "Pending", "not looked at"),
        ("Programmed", |world| world.object.identity.uid = "new".into(), "False", "Pending", "not looked at"),
        ("Programmed", World::break_edit, "False", "NotAccepted", "an earlier generation"),
        ("Routed", |_| {}, "True", "PolicyFound", "192.168.99.13"),
        (
            "Routed",
            |world| world.view.policies = Some(BTreeMap::new()),
            "False",
            "NoPolicy",
            "192.168.99.13; add one",
        ),
        ("Routed", |world| world.view.policies = None, "Unknown", "PoliciesUnknown", "get, list and watch"),
    ];
    for (kind, change, status, reason, message) in table {
        let mut world = World::sound();
        change(&mut world);
        world.assert_says(kind, status, reason, message);
    }
}

#[test]
fn sources_that_do_not_match_say_what_to_set() {
    let table = [
        (Mismatched::default(), "True", "Matching", ""),
        (Mismatched { from_nodes: 3, from_pods: 0 }, "False", "NodeSources", "set sources.nodes to true"),
        (Mismatched { from_nodes: 0, from_pods: 3 }, "False", "PodSources", "as sources.nodes is true"),
    ];
    for (mismatched, status, reason, message) in table {
        let mut world = World::sound();
        world.running().mismatched = mismatched;
        world.assert_says("SourcesMatch", status, reason, message);
    }
    let mut world = World::sound();
    world.outcome.tenants.clear();
    world.assert_says("SourcesMatch", "Unknown", "NotAccepted", "");
}

#[test]
fn a_tenant_of_another_source_is_not_this_object() {
    let mut world = World::sound();
    world.running().object = None;
    world.refuse(true);
    let status = world.status(100);
    assert_eq!((status.gateway_mac.as_str(), status.sessions, status.applied_epoch), ("", 0, 0));
}

#[test]
fn numbers_and_names_come_from_gateway_and_link() {
    let status = World::sound().status(100);
    let (blue, pods) = (NamespaceStatus { name: "ns-blue".into(), pods: 2 }, 2);
    assert_eq!((status.policies, status.namespaces), (vec!["blue".to_owned()], vec![blue]));
    assert_eq!((status.namespace_count, status.pod_count), (1, pods));
    assert_eq!((status.gateway_mac.as_str(), status.sessions), ("02:53:c0:a8:63:0d", 40));
    assert_eq!((status.observed_generation, status.applied_epoch), (1, 7));
}

#[test]
fn a_hundred_namespaces_are_named_and_all_are_counted() {
    let mut world = World::sound();
    world.view.namespaces = Some(map((0..150).map(|index| namespace(&format!("ns-{index}"), "blue"))));
    let status = world.status(100);
    assert_eq!((status.namespaces.len(), status.namespace_count), (100, 150));
}

#[test]
fn the_time_of_a_condition_changes_with_its_status_only() {
    let mut world = World::sound();
    world.object.status = Some(world.status(100));
    world.running().trouble = Some("no link".into());
    let troubled = world.status(200);
    assert_eq!(times(&troubled), [100, 200, 100, 100]);
    world.object.status = Some(troubled);
    world.running().trouble = Some("no route".into());
    assert_eq!(times(&world.status(300)), [100, 200, 100, 100]);
    world.object.generation = 2;
    assert_eq!(times(&world.status(400)), [400, 200, 100, 100]);
}

#[test]
fn a_status_that_was_written_and_read_back_is_not_due_again() {
    let worlds =
        [World::sound(), World::changed(World::break_edit), World::changed(|world| world.refuse(true))];
    for world in worlds {
        let written = status(&world.object, &world.view, &world.compiled(), &world.outcome, odd_time());
        assert!(is_due(&world.object.status, &written, Duration::ZERO));
        let object = json!({
            "apiVersion": "spillway.dev/v1alpha1", "kind": "EgressTenant",
            "metadata": { "name": "ns-blue" },
            "status": serde_json::to_value(&written).unwrap(),
        });
        let object: DynamicObject = serde_json::from_str(&object.to_string()).unwrap();
        let echoed = TenantObject { status: TenantObject::read(&object).status, ..world.object.clone() };
        let world = World { object: echoed, ..world };
        let wanted = world.status(999);
        assert_eq!(world.object.status.as_ref(), Some(&wanted));
        assert!(!is_due(&world.object.status, &wanted, Duration::MAX));
    }
}

#[test]
fn numbers_alone_wait_for_half_a_minute() {
    let wanted = World::sound().status(100);
    let mut with_fewer_pods = World::sound();
    with_fewer_pods.view.pods.insert("ns-blue".into(), Some(map([pod("p", 1, 5)])));
    let fewer_sessions = EgressTenantStatus { sessions: 1, ..wanted.clone() };
    for fewer in [with_fewer_pods.status(100), fewer_sessions] {
        assert!(!is_due(&Some(fewer.clone()), &wanted, Duration::from_secs(29)));
        assert!(is_due(&Some(fewer), &wanted, Duration::from_secs(30)));
    }
    let without_pods = EgressTenantStatus { pod_count: 0, ..wanted.clone() };
    assert!(is_due(&Some(without_pods), &wanted, Duration::ZERO));
    let other = EgressTenantStatus { namespace_count: 9, ..wanted.clone() };
    assert!(is_due(&Some(other), &wanted, Duration::ZERO));
    assert!(is_due(&None, &wanted, Duration::ZERO));
}

/// One tenant, and what view and gateway have of it.
struct World {
    object: TenantObject,
    view: View,
    outcome: Outcome,
}

impl World {
    fn sound() -> Self {
        let running = TenantOutcome {
            gateway_ip: [192, 168, 99, 13].into(),
            gateway_mac: "02:53:c0:a8:63:0d".into(),
            from_policy: false,
            object: Some(ObjectVersion { uid: "ns-blue".into(), generation: 1 }),
            epoch: Epoch(7),
            trouble: None,
            sessions: 40,
            mismatched: Mismatched::default(),
        };
        let tenants = BTreeMap::from([("ns-blue".into(), running)]);
        let view = View {
            policies: Some(map([policy("blue", "blue", &[13])])),
            namespaces: Some(map([namespace("ns-blue", "blue")])),
            pods: BTreeMap::from([("ns-blue".into(), Some(map([pod("p", 1, 5), pod("q", 2, 6)])))]),
            ..View::default()
        };
        let outcome = Outcome { tenants, applied: Epoch(8), ..Outcome::default() };
        Self { object: tenant("ns-blue", 1, 13), view, outcome }
    }

    fn changed(change: fn(&mut Self)) -> Self {
        let mut world = Self::sound();
        change(&mut world);
        world
    }

    fn running(&mut self) -> &mut TenantOutcome {
        self.outcome.tenants.get_mut("ns-blue").unwrap()
    }

    fn break_edit(&mut self) {
        self.object = TenantObject { generation: 2, ..broken_tenant("ns-blue", 1) };
    }

    fn refuse(&mut self, is_conflict: bool) {
        let refused = RefusedTenant {
            object: ObjectVersion { uid: "ns-blue".into(), generation: 1 },
            is_conflict,
            message: "egressIPs[0]: 192.168.55.113 is taken".into(),
        };
        self.outcome.refused.insert("ns-blue".into(), refused);
    }

    fn compiled(&self) -> Compiled {
        let view = View { tenants: Some(map([self.object.clone()])), ..self.view.clone() };
        view::compile(&view, &ClusterState::default(), &surroundings(), &self.outcome)
    }

    fn status(&self, second: i64) -> EgressTenantStatus {
        let now = Timestamp::from_second(second).unwrap();
        status(&self.object, &self.view, &self.compiled(), &self.outcome, now)
    }

    fn assert_says(&self, kind: &str, status: &str, reason: &str, message: &str) {
        let all = self.status(100).conditions;
        let kinds: Vec<_> = all.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(kinds, ["Accepted", "Programmed", "Routed", "SourcesMatch"]);
        let condition = all.iter().find(|condition| condition.type_ == kind).unwrap();
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), (status, reason), "{condition:?}");
        assert!(condition.message.contains(message), "{condition:?}");
        assert_eq!(condition.observed_generation, Some(self.object.generation));
    }
}

fn times(status: &EgressTenantStatus) -> [i64; 4] {
    let times = status.conditions.iter().map(|condition| condition.last_transition_time.0.as_second());
    times.collect::<Vec<_>>().try_into().unwrap()
}

/// A time with parts of a second, which the API does not keep.
fn odd_time() -> Timestamp {
    Timestamp::new(100, 123_456_789).unwrap()
}

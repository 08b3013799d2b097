//! The whole of following, against a small scripted cluster in paused time.

use std::path::Path;
use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::egress_tenant::EgressTenantStatus;
use super::super::fixtures::{self, surroundings};
use super::super::scripted::{Answer, Call, connection, event, list, refusal};
use super::super::state::{ObjectVersion, TenantOutcome};
use super::super::trouble::Cause;
use super::*;

const NODES: &str = "/api/v1/nodes";
const NAMESPACES: &str = "/api/v1/namespaces";
const PODS: &str = "/api/v1/namespaces/ns-blue/pods";
const POLICIES: &str = "/apis/k8s.ovn.org/v1/adminpolicybasedexternalroutes";
const TENANTS: &str = "/apis/spillway.dev/v1alpha1/egresstenants";

/// A cluster: objects by the path of their list, the watches that are open, and what was written.
#[derive(Clone, Default)]
struct Cluster(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    objects: BTreeMap<&'static str, Vec<Value>>,
    watches: BTreeMap<String, mpsc::UnboundedSender<Value>>,
    writes: Vec<Call>,
    version: u32,
    is_away: bool,
}

impl Cluster {
    /// Returns the reference cluster: one node, one tenant, its policy, its namespace and a pod.
    fn reference() -> Self {
        let cluster = Self::default();
        cluster.put(NODES, node("w1", "10.132.0.0/24", 21));
        cluster.put(TENANTS, tenant());
        let policy = json!({"from": {"namespaceSelector": {"matchLabels": {"tenant": "blue"}}},
            "nextHops": {"static": [{"ip": "192.168.99.13"}]}});
        cluster.put(POLICIES, json!({"metadata": {"name": "blue", "uid": "p"}, "spec": policy}));
        let labels = json!({"tenant": "blue"});
        cluster.put(NAMESPACES, json!({"metadata": {"name": "ns-blue", "uid": "n", "labels": labels}}));
        cluster.put(PODS, pod("a", 5));
        cluster
    }

    fn put(&self, path: &'static str, mut object: Value) {
        let mut contents = self.0.lock().unwrap();
        contents.version += 1;
        object["metadata"]["resourceVersion"] = json!(contents.version.to_string());
        let name = object["metadata"]["name"].clone();
        let objects = contents.objects.entry(path).or_default();
        objects.retain(|known| known["metadata"]["name"] != name);
        objects.push(object.clone());
        if let Some(watch) = contents.watches.get(path) {
            let _ = watch.send(event("MODIFIED", &object));
        }
    }

    fn delete(&self, path: &'static str, name: &str) {
        let mut contents = self.0.lock().unwrap();
        contents.version += 1;
        let version = json!(contents.version.to_string());
        let objects = contents.objects.entry(path).or_default();
        let place = objects.iter().position(|known| known["metadata"]["name"] == name).unwrap();
        let mut object = objects.remove(place);
        object["metadata"]["resourceVersion"] = version;
        if let Some(watch) = contents.watches.get(path) {
            let _ = watch.send(event("DELETED", &object));
        }
    }

    fn answer(&self, call: &Call) -> Answer {
        let mut contents = self.0.lock().unwrap();
        if contents.is_away {
            return Answer::Refused;
        }
        if call.is_watch() {
            let (sender, events) = mpsc::unbounded_channel();
            contents.watches.insert(call.path.clone(), sender);
            return Answer::Events(events);
        }
        if !call.body.is_null() {
            contents.writes.push(call.clone());
            return Answer::Json(200, json!({"metadata": {"name": "x"}, "status": call.body[1]["value"]}));
        }
        match contents.objects.get(call.path.as_str()) {
            Some(objects) => list(contents.version, "", objects),
            None => refusal(404, "page not found"),
        }
    }

    fn set_away(&self, is_away: bool) {
        let mut contents = self.0.lock().unwrap();
        contents.is_away = is_away;
        contents.watches.clear(); // whose streams end
    }

    fn is_watched(&self, path: &str) -> bool {
        self.0.lock().unwrap().watches.get(path).is_some_and(|watch| !watch.is_closed())
    }

    fn writes(&self, path: &str) -> Vec<Value> {
        let contents = self.0.lock().unwrap();
        let writes = contents.writes.iter().filter(|call| call.path == path);
        writes.map(|call| call.body.clone()).collect()
    }

    fn follow(&self, directory: &Path) -> Follower {
        let cluster = self.clone();
        let connection = connection(move |call| cluster.answer(call));
        let directory = StateDir::open(directory).unwrap();
        let (prepared, task) = prepare(connection, directory, surroundings(), "gateway-1".to_owned());
        prepared.run(task, JoinSet::new())
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_cluster_asks_for_reaches_the_gateway_whole() {
    let (directory, cluster) = (tempfile::tempdir().unwrap(), Cluster::reference());
    let follower = cluster.follow(directory.path());
    let state = until(&follower, |state| pods_of(state) == ["10.132.0.5"]).await;
    assert!(state.are_nodes_listed && state.are_tenants_listed);
    assert_eq!(state.routes["w1"][0].via.to_string(), "192.168.99.21");
    assert_eq!(state.tenants[0].tenant.name, "ns-blue");
    let mut health = follower.health();
    let all_listed = |health: &Health| health.kinds.values().filter(|kind| kind.is_listed).count() == 5;
    let health = health.wait_for(all_listed).await.unwrap().clone();
    assert!(health.kinds.values().all(|kind| kind.objects == 1 && kind.trouble.is_none()), "{health:?}");
}

#[tokio::test(start_paused = true)]
async fn a_change_is_out_within_a_tenth_of_a_second_and_an_echo_is_none() {
    let (directory, cluster) = (tempfile::tempdir().unwrap(), Cluster::reference());
    let follower = cluster.follow(directory.path());
    until(&follower, |state| pods_of(state) == ["10.132.0.5"]).await;
    poll(|| cluster.is_watched(NODES) && cluster.is_watched(PODS)).await;
    let begun = Instant::now();
    cluster.put(NODES, node("w2", "10.132.1.0/24", 22));
    until(&follower, |state| state.routes.contains_key("w2")).await;
    assert!(begun.elapsed() <= Duration::from_millis(100), "{:?}", begun.elapsed());
    let mut state = follower.state();
    state.mark_unchanged();
    cluster.put(NODES, node("w2", "10.132.1.0/24", 22));
    sleep(Duration::from_secs(1)).await;
    assert!(!state.has_changed().unwrap(), "a heartbeat of a node is no change");
    cluster.put(PODS, pod("b", 6));
    until(&follower, |state| pods_of(state) == ["10.132.0.5", "10.132.0.6"]).await;
}

#[tokio::test(start_paused = true)]
async fn pods_are_watched_only_while_their_namespace_is_routed_here() {
    let (directory, cluster) = (tempfile::tempdir().unwrap(), Cluster::reference());
    let follower = cluster.follow(directory.path());
    poll(|| cluster.is_watched(PODS) && cluster.is_watched(NAMESPACES)).await;
    cluster.put(NAMESPACES, json!({"metadata": {"name": "ns-blue", "uid": "n"}}));
    until(&follower, |state| pods_of(state).is_empty()).await;
    poll(|| !cluster.is_watched(PODS)).await;
    let labels = json!({"tenant": "blue"});
    cluster.put(NAMESPACES, json!({"metadata": {"name": "ns-blue", "uid": "n", "labels": labels}}));
    until(&follower, |state| pods_of(state) == ["10.132.0.5"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_starts_while_the_api_is_away_goes_on_by_the_last_state() {
    let (directory, cluster) = (tempfile::tempdir().unwrap(), Cluster::reference());
    let follower = cluster.follow(directory.path());
    let last = until(&follower, |state| pods_of(state) == ["10.132.0.5"]).await;
    follower.stop().await;
    cluster.set_away(true);
    let follower = cluster.follow(directory.path());
    let mut health = follower.health();
    let is_told = |health: &Health| health.kinds[&Kind::Node].trouble.is_some();
    let told =
        health.wait_for(|health| health.kinds.contains_key(&Kind::Node) && is_told(health)).await.unwrap();
    assert_eq!(told.kinds[&Kind::Node].trouble.as_ref().unwrap().cause, Cause::Unreachable);
    drop(told);
    let state = follower.state().borrow().clone();
    assert!(!state.are_nodes_listed && !state.are_tenants_listed);
    let pods = BTreeMap::new(); // names of pods are not kept
    let unlisted =
        ClusterState { are_nodes_listed: false, are_tenants_listed: false, pods, ..(*last).clone() };
    assert_eq!(*state, unlisted);
    cluster.delete(NODES, "w1");
    cluster.set_away(false);
    let state = until(&follower, |state| state.are_nodes_listed).await;
    assert!(state.routes.is_empty(), "the first list of a daemon is believed");
}

#[tokio::test(start_paused = true)]
async fn a_saved_state_that_cannot_be_read_is_set_aside() {
    let (directory, cluster) = (tempfile::tempdir().unwrap(), Cluster::reference());
    std::fs::write(directory.path().join("kubernetes.json"), "{").unwrap();
    let follower = cluster.follow(directory.path());
    assert_eq!(**follower.state().borrow(), ClusterState::default());
    assert!(directory.path().join("kubernetes.json.refused").exists());
    until(&follower, |state| state.are_nodes_listed).await;
    follower.stop().await;
    assert!(directory.path().join("kubernetes.json").exists());
}

#[tokio::test(start_paused = true)]
async fn an_outage_changes_nothing_and_is_over_when_the_api_is_back() {
    let (directory, cluster) = (tempfile::tempdir().unwrap(), Cluster::reference());
    let follower = cluster.follow(directory.path());
    until(&follower, |state| pods_of(state) == ["10.132.0.5"]).await;
    let mut state = follower.state();
    state.mark_unchanged();
    cluster.set_away(true);
    sleep(Duration::from_secs(600)).await;
    assert!(!state.has_changed().unwrap());
    assert!(follower.health().borrow().kinds.values().all(|kind| kind.trouble.is_some()));
    cluster.put(NODES, node("w2", "10.132.1.0/24", 22));
    cluster.set_away(false);
    let mut health = follower.health();
    health.wait_for(|health| health.kinds.values().all(|kind| kind.trouble.is_none())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cluster_without_the_definition_is_told_and_leaves_the_rest_alone() {
    let (directory, cluster) = (tempfile::tempdir().unwrap(), Cluster::default());
    cluster.put(NODES, node("w1", "10.132.0.0/24", 21));
    let follower = cluster.follow(directory.path());
    until(&follower, |state| state.are_nodes_listed).await;
    let mut health = follower.health();
    let told = |health: &Health| {
        let of = |kind| health.kinds.get(&kind);
        of(Kind::EgressTenant).is_some_and(|kind| kind.trouble.is_some())
            && of(Kind::ExternalRoute).is_some_and(|kind| kind.is_missing)
    };
    let health = health.wait_for(told).await.unwrap().clone();
    let trouble = health.kinds[&Kind::EgressTenant].trouble.clone().unwrap();
    assert!(trouble.message.contains("spillway crd"), "{}", trouble.message);
    assert!(!follower.state().borrow().are_tenants_listed);
}

#[tokio::test(start_paused = true)]
async fn a_status_is_written_once_the_gateway_has_spoken_and_then_no_more() {
    let (directory, cluster) = (tempfile::tempdir().unwrap(), Cluster::reference());
    let follower = cluster.follow(directory.path());
    until(&follower, |state| pods_of(state) == ["10.132.0.5"]).await;
    sleep(Duration::from_secs(5)).await;
    let path = format!("{TENANTS}/ns-blue/status");
    assert!(cluster.writes(&path).is_empty(), "nothing is known of the gateway yet");
    follower.tell(outcome());
    poll(|| !cluster.writes(&path).is_empty()).await;
    sleep(Duration::from_secs(600)).await;
    let writes = cluster.writes(&path);
    assert_eq!(writes.len(), 1);
    let conditions = writes[0][1]["value"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().all(|condition| condition["status"] == "True"), "{conditions:?}");
}

#[tokio::test(start_paused = true)]
async fn a_notice_is_an_event_and_is_over_when_its_cause_is() {
    let (directory, cluster) = (tempfile::tempdir().unwrap(), Cluster::reference());
    cluster.put(NODES, node("w2", "10.132.0.0/23", 22));
    let follower = cluster.follow(directory.path());
    let mut health = follower.health();
    health.wait_for(|health| !health.notices.is_empty()).await.unwrap();
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    poll(|| !cluster.writes(path).is_empty()).await;
    assert_eq!(cluster.writes(path)[0]["regarding"]["name"], "w2");
    cluster.delete(NODES, "w2");
    health.wait_for(|health| health.notices.is_empty()).await.unwrap();
    assert_eq!(cluster.writes(path).len(), 1);
}

#[test]
fn statuses_and_counts_alone_ask_for_nothing() {
    let blue = fixtures::tenant("ns-blue", 1, 13);
    let written = TenantObject { status: Some(EgressTenantStatus::default()), ..blue.clone() };
    let edited = TenantObject { generation: 2, ..blue.clone() };
    let listed = |object: &TenantObject| Some(fixtures::map([object.clone()]));
    for (now, expected) in [(listed(&written), true), (listed(&edited), false), (None, false)] {
        assert_eq!(are_alike(&listed(&blue), &now), expected);
    }
    let mut counted = outcome();
    counted.tenants.values_mut().for_each(|tenant| tenant.sessions += 1);
    assert!(counted.has_tenants_of(&outcome()));
    counted.tenants.values_mut().for_each(|tenant| tenant.object = None);
    assert!(!counted.has_tenants_of(&outcome()));
}

fn outcome() -> Outcome {
    let tenant = TenantOutcome {
        gateway_ip: [192, 168, 99, 13].into(),
        gateway_mac: "02:53:c0:a8:63:0d".to_owned(),
        from_policy: false,
        object: Some(ObjectVersion { uid: "t".to_owned(), generation: 1 }),
        epoch: conntrack::Epoch(2),
        trouble: None,
        sessions: 0,
        mismatched: super::super::state::Mismatched::default(),
    };
    let tenants = BTreeMap::from([("ns-blue".to_owned(), tenant)]);
    Outcome { tenants, applied: conntrack::Epoch(2), ..Outcome::default() }
}

fn node(name: &str, network: &str, last: u8) -> Value {
    let created = format!("2026-01-01T00:00:{last}Z");
    json!({
        "metadata": {"name": name, "uid": name, "creationTimestamp": created},
        "spec": {"podCIDRs": [network]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.99.{last}")}]},
    })
}

fn tenant() -> Value {
    let spec = json!({"gatewayIP": "192.168.99.13", "egressIPs": ["192.168.55.113"]});
    json!({"metadata": {"name": "ns-blue", "uid": "t", "generation": 1}, "spec": spec})
}

fn pod(name: &str, last: u8) -> Value {
    let address = format!("10.132.0.{last}");
    let metadata = json!({"name": name, "namespace": "ns-blue", "uid": name});
    json!({"metadata": metadata, "status": {"phase": "Running", "podIPs": [{"ip": address}]}})
}

fn pods_of(state: &ClusterState) -> Vec<String> {
    state.links.values().flat_map(|link| link.pods()).map(|pod| pod.to_string()).collect()
}

async fn until(follower: &Follower, reached: impl Fn(&ClusterState) -> bool) -> Arc<ClusterState> {
    let mut states = follower.state();
    let found = timeout(Duration::from_secs(120), states.wait_for(|state| reached(state))).await.is_ok();
    assert!(found, "{:?}", states.borrow());
    states.borrow().clone()
}

async fn poll(reached: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !reached() {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(1)).await;
    }
}

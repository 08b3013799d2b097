//! Whose packets a tenant takes: live pods, or nodes.

use anyhow::Result;
use control::demo::server::url;
use control::demo::topology::{BLUE, Host, NODES, PODS, Pod, RED, SERVER};
use control::demo::wait;
use serde_json::{Value, json};
use spillway_apiserver::Verb;
use spillway_tests::cluster::{
    ClusterFixture, Prepared, SOON, namespace_object, pod_object, policy_object, route_to, tenant_object,
};
use spillway_tests::peers::{Peer, exchange};

/// How curl ends when nobody answers, rather than refuses.
const TIMED_OUT: Option<i32> = Some(28);
/// The second pod of ns-blue.
static POD: &Pod = &PODS[2];

#[test]
fn exactly_live_pods_are_taken_and_others_are_refused_without_a_word() -> Result<()> {
    let Some(cluster) = from_policy()? else { return Ok(()) };
    assert_eq!(cluster.fixture.seen_as(&PODS[0])?.ip(), &BLUE.egress);
    assert_eq!(cluster.fixture.seen_as(POD)?.ip(), &BLUE.egress);
    assert_eq!(cluster.api.requests().count(Verb::List, "pods"), 1, "one namespace is linked");
    let mut host = pod_object("host", BLUE.name, "node1", "10.132.0.9");
    host["spec"]["hostNetwork"] = true.into();
    cluster.api.create(host)?;
    cluster.until_status("the pod on its node's network is seen", |status| pods(status) == 3)?;
    cluster.api.delete("v1", "Pod", BLUE.name, POD.host.name())?;
    cluster.until_pods(BLUE.name, 1)?;
    let before = cluster.fixture.drops("unknown_pod")?;
    let refused = cluster.fixture.in_pod(POD, "curl", &["-sS", "--max-time", "2", &url("whoami")])?;
    assert_eq!(refused.status.code(), TIMED_OUT, "{refused:?}");
    assert!(cluster.fixture.drops("unknown_pod")? > before);
    assert_eq!(cluster.fixture.seen_as(&PODS[0])?.ip(), &BLUE.egress);
    Ok(())
}

#[test]
fn a_pod_that_is_heard_of_after_its_first_packet_connects_with_the_next() -> Result<()> {
    let Some(cluster) = from_policy()? else { return Ok(()) };
    cluster.api.delete("v1", "Pod", BLUE.name, POD.host.name())?;
    cluster.until_pods(BLUE.name, 1)?;
    let fixture = &cluster.fixture;
    let before = fixture.drops("unknown_pod")?;
    std::thread::scope(|scope| {
        let connection = scope.spawn(|| fixture.seen_as(POD));
        wait::until("the first packet is refused", SOON, || {
            Ok((fixture.drops("unknown_pod")? > before).then_some(()))
        })?;
        let object = pod_object(POD.host.name(), BLUE.name, "node2", &POD.address.to_string());
        cluster.api.create(object)?;
        let refused = fixture.drops("unknown_pod")?;
        let seen = connection.join().expect("the pod's thread does not panic")?;
        assert_eq!(seen.ip(), &BLUE.egress);
        let since = fixture.drops("unknown_pod")? - refused;
        assert!(since <= 1, "{since} packets were refused after the pod was announced");
        Ok(())
    })
}

#[test]
fn a_tenant_of_nodes_takes_nodes_and_a_tenant_of_pods_takes_pods() -> Result<()> {
    let Some(cluster) = ClusterFixture::with_tenants()? else { return Ok(()) };
    cluster.until_routes(&[&route_to(&NODES[0]), &route_to(&NODES[1])])?;
    cluster.change_tenant(BLUE.name, json!({"sources": {"nodes": true}}))?;
    cluster.until_condition(BLUE.name, "Programmed", "True")?;
    let lab = &cluster.fixture.lab;
    let echo = Peer::udp_echo(lab, 7)?;
    lab.namespace(Host::Node1).ip(&format!("route add {SERVER} via {}", BLUE.gateway))?;
    lab.namespace(Host::Node2).ip(&format!("route add {SERVER} via {}", RED.gateway))?;
    assert_eq!(exchange(lab, Host::Node1, &echo, b"node")?.0, BLUE.egress);
    cluster.require_no_service(&BLUE)?;
    let found = cluster.until_condition(BLUE.name, "SourcesMatch", "False")?;
    assert_eq!(found["reason"], "PodSources", "{found}");
    assert!(exchange(lab, Host::Node2, &echo, b"node").is_err(), "a tenant of pods takes a node");
    let found = cluster.until_condition(RED.name, "SourcesMatch", "False")?;
    assert_eq!(found["reason"], "NodeSources", "{found}");
    cluster.change_tenant(BLUE.name, json!({"sources": {"nodes": false}}))?;
    cluster.until_condition(BLUE.name, "SourcesMatch", "True")?;
    cluster.until_condition(BLUE.name, "Programmed", "True")?;
    cluster.fixture.require_service()
}

/// Returns a cluster whose only tenant takes live pods, all of which are known.
fn from_policy() -> Result<Option<ClusterFixture>> {
    let Some(prepared) = Prepared::build()? else { return Ok(None) };
    prepared.api.create(namespace_object("ns-other"))?;
    prepared.api.create(pod_object("other", "ns-other", "node1", "10.132.0.99"))?;
    let mut tenant = tenant_object(&BLUE);
    tenant["spec"]["sources"] = json!({"fromPolicy": true});
    prepared.api.create(tenant)?;
    prepared.api.create(policy_object(&BLUE))?;
    let cluster = prepared.start()?;
    cluster.until_condition(BLUE.name, "Programmed", "True")?;
    cluster.until_pods(BLUE.name, 2)?;
    cluster.until_routes(&[&route_to(&NODES[0]), &route_to(&NODES[1])])?;
    Ok(Some(cluster))
}

fn pods(status: &Value) -> u64 {
    let kinds = status["kinds"].as_array().into_iter().flatten();
    kinds.filter(|kind| kind["kind"] == "pods").filter_map(|kind| kind["objects"].as_u64()).sum()
}

//! What the cluster is told: statuses that rest, policies that lead nowhere, events that are not repeated.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use control::demo::topology::{BLUE, PODS, RED};
use control::demo::wait;
use serde_json::{Value, json};
use spillway_apiserver::Verb;
use spillway_tests::cluster::{
    ClusterFixture, EVENTUALLY, Prepared, SOON, namespace_object, node_object, policy_object, tenant_object,
};
use spillway_tests::peers::{Peer, exchange};

const STATUS: &str = "egresstenants.spillway.dev/status";
const EVENTS: &str = "events.events.k8s.io";
/// How long nothing must happen.
const QUIET: Duration = Duration::from_secs(5);

#[test]
fn a_status_rests_follows_its_sessions_slowly_and_is_restored() -> Result<()> {
    let Some(cluster) = ClusterFixture::with_tenants()? else { return Ok(()) };
    for tenant in [&BLUE, &RED] {
        cluster.until_condition(tenant.name, "Routed", "True")?;
        cluster.until_pods(tenant.name, 2)?;
    }
    cluster.api.forget_requests();
    let begun = Instant::now();
    wait::pause(QUIET)?;
    assert_eq!(patches(&cluster), 0, "nothing has changed");

    let echo = Peer::udp_echo(&cluster.fixture.lab, 7)?;
    wait::until("sessions are told", EVENTUALLY, || {
        exchange(&cluster.fixture.lab, PODS[0].host, &echo, b"session")?;
        wait::pause(Duration::from_millis(200))?;
        Ok((cluster.tenant(BLUE.name)?["status"]["sessions"].as_u64() > Some(0)).then_some(()))
    })?;
    let most = 1 + begun.elapsed().as_secs() / 30;
    assert!(patches(&cluster) <= most, "{} patches in {:?}", patches(&cluster), begun.elapsed());

    let (right, wrong) = ("02:53:c0:a8:63:0e", "02:00:00:00:00:01");
    cluster.api.apply(json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "EgressTenant", "metadata": {"name": RED.name},
        "status": {"gatewayMAC": wrong},
    }))?;
    assert_eq!(cluster.tenant(RED.name)?["status"]["gatewayMAC"], wrong);
    wait::until("the status is restored", EVENTUALLY, || {
        Ok((cluster.tenant(RED.name)?["status"]["gatewayMAC"] == right).then_some(()))
    })
}

#[test]
fn a_tenant_is_told_which_policies_route_to_it() -> Result<()> {
    let Some(prepared) = Prepared::build()? else { return Ok(()) };
    let cluster = prepared.start()?;
    cluster.api.create(tenant_object(&BLUE))?;
    let found = cluster.until_condition(BLUE.name, "Routed", "False")?;
    assert_eq!(found["reason"], "NoPolicy", "{found}");
    until_notice(&cluster, BLUE.name, "NotRouted")?;
    let mut policy = policy_object(&BLUE);
    policy["spec"]["from"]["namespaceSelector"] = json!({"matchLabels": {"tenant": "blue"}});
    cluster.api.create(policy)?;
    cluster.until_condition(BLUE.name, "Routed", "True")?;
    until_namespaces(&cluster, &[])?;
    let label = |namespace: &str, value: Value| {
        let mut object = namespace_object(namespace);
        object["metadata"]["labels"]["tenant"] = value;
        cluster.api.apply(object).map(drop)
    };
    label(BLUE.name, "blue".into())?;
    until_namespaces(&cluster, &[(BLUE.name, 2)])?;
    label(RED.name, "blue".into())?;
    until_namespaces(&cluster, &[(BLUE.name, 2), (RED.name, 2)])?;
    label(RED.name, Value::Null)?;
    until_namespaces(&cluster, &[(BLUE.name, 2)])?;
    cluster.delete_policy(BLUE.name)?;
    cluster.until_condition(BLUE.name, "Routed", "False").map(drop)
}

#[test]
fn policies_that_lead_nowhere_or_two_ways_are_told() -> Result<()> {
    let Some(cluster) = ClusterFixture::with_tenants()? else { return Ok(()) };
    let mut stray = policy_object(&BLUE);
    stray["metadata"]["name"] = "stray".into();
    stray["spec"]["nextHops"] = json!({"static": [{"ip": "192.168.99.77"}]});
    cluster.api.create(stray)?;
    until_notice(&cluster, "stray", "UnknownNextHop")?;
    until_event(&cluster, "stray", "UnknownNextHop")?;
    until_notice(&cluster, BLUE.name, "NamespaceUnderTwoPolicies")?;
    cluster.delete_policy("stray")?;
    cluster.until_status("nothing is left to tell", |status| status["notices"] == json!([]))?;
    cluster.fixture.require_service()
}

#[test]
fn a_refused_node_is_told_by_one_event() -> Result<()> {
    let Some(prepared) = Prepared::build()? else { return Ok(()) };
    let cluster = prepared.start()?;
    cluster.api.create(node_object("node4", "10.132.1.128/25", "192.168.99.24"))?;
    let event = until_event(&cluster, "node4", "OverlappingPodCIDR")?;
    assert_eq!(event["regarding"]["kind"], "Node", "{event}");
    assert_eq!(event["type"], "Warning", "{event}");
    cluster.api.forget_requests();
    for round in 0..5 {
        let mut node = node_object("node4", "10.132.1.128/25", "192.168.99.24");
        node["metadata"]["labels"] = json!({"round": round.to_string()});
        cluster.api.apply(node)?;
    }
    wait::pause(QUIET)?;
    let requests = cluster.api.requests();
    assert_eq!(requests.count(Verb::Create, EVENTS) + requests.count(Verb::Patch, EVENTS), 0);
    assert_eq!(cluster.events_of("node4")?.len(), 1);
    Ok(())
}

fn patches(cluster: &ClusterFixture) -> u64 {
    cluster.api.requests().count(Verb::Patch, STATUS)
}

fn until_notice(cluster: &ClusterFixture, name: &str, reason: &str) -> Result<()> {
    let is_there = |status: &Value| {
        let mut notices = status["notices"].as_array().into_iter().flatten();
        notices.any(|notice| notice["name"] == name && notice["reason"] == reason)
    };
    cluster.until_status(&format!("{name}: {reason}"), is_there).map(drop)
}

fn until_event(cluster: &ClusterFixture, name: &str, reason: &str) -> Result<Value> {
    wait::until(&format!("an event tells of {name}: {reason}"), SOON, || {
        Ok(cluster.events_of(name)?.into_iter().find(|event| event["reason"] == reason))
    })
    .with_context(|| cluster.fixture.gateway.log())
}

/// Waits until the status of ns-blue has these namespaces, each with so many pods.
fn until_namespaces(cluster: &ClusterFixture, expected: &[(&str, u64)]) -> Result<()> {
    let named = expected.iter().map(|(name, pods)| json!({"name": name, "pods": pods}));
    let named = Value::from(named.collect::<Vec<_>>());
    // Numbers alone are written every 30 s at most.
    wait::until(&format!("ns-blue serves {named}"), 2 * SOON, || {
        let status = &cluster.tenant(BLUE.name)?["status"];
        let has_all = status["namespaces"] == named && status["namespaceCount"] == expected.len();
        Ok(has_all.then_some(()))
    })
    .with_context(|| cluster.fixture.gateway.log())
}

//! The gateway follows the cluster: nodes, tenants, policies and pods, through the Kubernetes API.

use anyhow::Result;
use control::demo::topology::{BLUE, NODES, PODS, RED};
use serde_json::json;
use spillway_tests::cluster::{ClusterFixture, Prepared, node_object, route_to};
use spillway_tests::peers::Peer;
use spillway_tests::stream::Stream;

#[test]
fn objects_are_applied_and_traffic_flows_and_they_go_and_it_is_refused() -> Result<()> {
    let Some(cluster) = ClusterFixture::with_tenants()? else { return Ok(()) };
    cluster.until_routes(&[&route_to(&NODES[0]), &route_to(&NODES[1])])?;
    cluster.fixture.require_service()?;
    let blue = cluster.tenant(BLUE.name)?;
    let status = &blue["status"];
    assert_eq!(status["gatewayMAC"], "02:53:c0:a8:63:0d");
    assert_eq!(status["observedGeneration"], 1);
    assert!(status["appliedEpoch"].as_i64() > Some(0), "{status}");
    cluster.until_condition(BLUE.name, "Routed", "True")?;
    let echo = Peer::udp_echo(&cluster.fixture.lab, 7)?;
    let blue = Stream::start(&cluster.fixture.lab, &PODS[0], echo.address())?;
    cluster.delete_tenant(RED.name)?;
    cluster.until_logged("removing egress address")?;
    cluster.require_no_service(&RED)?;
    blue.until_answered(50)?;
    cluster.fixture.finish_without_loss(&PODS[0], blue)?;
    cluster.delete_tenant(BLUE.name)?;
    cluster.until_status("no tenant is left", |status| status["kinds"][1]["objects"] == 0)?;
    cluster.require_no_service(&BLUE)
}

#[test]
fn a_node_joins_changes_its_network_and_leaves() -> Result<()> {
    let Some(prepared) = Prepared::build()? else { return Ok(()) };
    let cluster = prepared.start()?;
    let known = [route_to(&NODES[0]), route_to(&NODES[1])];
    cluster.until_routes(&[&known[0], &known[1]])?;
    cluster.api.create(node_object("node3", "10.132.2.0/24", "192.168.99.23"))?;
    cluster.until_routes(&[&known[0], &known[1], "10.132.2.0/24 via 192.168.99.23"])?;
    cluster.api.apply(node_object("node3", "10.132.3.0/24", "192.168.99.23"))?;
    cluster.until_routes(&[&known[0], &known[1], "10.132.3.0/24 via 192.168.99.23"])?;
    cluster.api.delete("v1", "Node", "", "node3")?;
    cluster.until_routes(&[&known[0], &known[1]])?;
    // One that cannot be is refused by name, and the rest stays.
    cluster.api.create(node_object("node4", "10.132.1.128/25", "192.168.99.24"))?;
    cluster.until_logged("node4")?;
    let status = cluster.until_status("node4 is refused", |status| {
        status["notices"].as_array().is_some_and(|all| all.iter().any(|notice| notice["name"] == "node4"))
    })?;
    assert!(status["notices"].to_string().contains("10.132.1.0/24"), "{status}");
    cluster.until_routes(&[&known[0], &known[1]])?;
    cluster.api.apply(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "node2", "annotations": {"k8s.ovn.org/node-subnets": "{"}},
    }))?;
    cluster.until_logged("node2")?;
    cluster.until_routes(&[&known[0], &known[1]])
}

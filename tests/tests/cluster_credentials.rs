//! Who the gateway is to the API: tokens that are rotated, and permissions that are missing.

use anyhow::Result;
use control::demo::topology::{BLUE, NODES, PODS, RED};
use serde_json::{Value, json};
use spillway_apiserver::{Credentials, Verb};
use spillway_tests::cluster::{ClusterFixture, Prepared, RouteLog, node_object, route_to};

const POLICIES: &str = "adminpolicybasedexternalroutes";
const STATUS: &str = "egresstenants.spillway.dev/status";

#[test]
fn a_token_that_was_rotated_is_read_from_the_kubeconfig() -> Result<()> {
    rotate(
        |prepared| prepared.api.kubeconfig(&prepared.kubeconfig, &Credentials::Inline),
        |cluster| cluster.api.kubeconfig(&cluster.kubeconfig, &Credentials::Inline),
    )
}

#[test]
fn a_token_that_was_rotated_is_read_from_its_file() -> Result<()> {
    rotate(
        |prepared| {
            let file = Credentials::TokenFile(prepared.lab.directory().join("token"));
            prepared.api.kubeconfig(&prepared.kubeconfig, &file)
        },
        |cluster| Ok(std::fs::write(cluster.fixture.lab.directory().join("token"), "eyJ.second\n")?),
    )
}

#[test]
fn a_resource_that_is_denied_is_named_and_stops_no_other() -> Result<()> {
    let Some(cluster) = ClusterFixture::with_tenants()? else { return Ok(()) };
    let sound = [route_to(&NODES[0]), route_to(&NODES[1])];
    cluster.until_routes(&[&sound[0], &sound[1]])?;
    let routes = RouteLog::start(&cluster.fixture.lab)?;
    for (round, (kind, group)) in
        [("pods", ""), (POLICIES, "k8s.ovn.org"), ("nodes", "")].into_iter().enumerate()
    {
        let resource = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        for verb in [Verb::List, Verb::Watch] {
            cluster.api.deny(verb, &resource);
        }
        cluster.api.compact();
        cluster.api.drop_watches();
        let grant = format!("grant get, list and watch on {kind} of API group {group:?}");
        cluster.until_status(&format!("{kind} are denied, and nothing else"), |status| {
            error_of(status, kind).contains(&grant) && troubled(status) == [kind]
        })?;
        cluster.change_tenant(BLUE.name, json!({"limits": {"sessions": 1000 + round}}))?;
        cluster.until_condition(BLUE.name, "Programmed", "True")?;
        cluster.fixture.require_service()?;
        for verb in [Verb::List, Verb::Watch] {
            cluster.api.allow(verb, &resource);
        }
        cluster.until_status(&format!("{kind} are followed again"), |status| troubled(status).is_empty())?;
    }
    cluster.api.create(node_object("node3", "10.132.2.0/24", "192.168.99.23"))?;
    cluster.until_routes(&[&sound[0], &sound[1], "10.132.2.0/24 via 192.168.99.23"])?;
    assert_eq!(routes.removed()?, [""; 0]);
    Ok(())
}

#[test]
fn statuses_that_may_not_be_written_are_told_and_stop_nothing() -> Result<()> {
    let Some(cluster) = ClusterFixture::with_tenants()? else { return Ok(()) };
    cluster.api.deny(Verb::Patch, STATUS);
    cluster.delete_tenant(RED.name)?;
    cluster.change_tenant(BLUE.name, json!({"egressIPs": ["192.168.55.115"]}))?;
    cluster.until_status("the missing permission is told", |status| {
        status["error"].as_str().is_some_and(|error| error.contains("grant patch on egresstenants/status"))
    })?;
    let seen = cluster.fixture.seen_as(&PODS[0])?;
    assert_eq!(seen.ip().to_string(), "192.168.55.115");
    cluster.require_no_service(&RED)?;
    let denied = cluster.api.requests().count(Verb::Patch, STATUS);
    cluster.api.allow(Verb::Patch, STATUS);
    cluster.delete_policy(RED.name)?;
    cluster.add_tenant(&RED)?;
    cluster.until_status("statuses are written again", |status| status["error"].is_null())?;
    assert!(denied < 12, "{denied} patches: what is denied must not be tried all the time");
    Ok(())
}

fn rotate(
    write_first: impl FnOnce(&Prepared) -> Result<()>,
    write_second: impl FnOnce(&ClusterFixture) -> Result<()>,
) -> Result<()> {
    let Some(prepared) = Prepared::build()? else { return Ok(()) };
    prepared.api.rotate_token("eyJ.first");
    write_first(&prepared)?;
    let cluster = prepared.start()?;
    cluster.add_tenant(&BLUE)?;
    cluster.add_tenant(&RED)?;
    let sound = [route_to(&NODES[0]), route_to(&NODES[1])];
    cluster.until_routes(&[&sound[0], &sound[1]])?;
    let (routes, tenants) = (RouteLog::start(&cluster.fixture.lab)?, cluster.tenant_sources()?);
    cluster.api.rotate_token("eyJ.second");
    cluster.api.drop_watches();
    cluster.until_status("the token is refused", |status| {
        error_of(status, "nodes").contains("renew the token or certificate")
    })?;
    cluster.api.create(node_object("node3", "10.132.2.0/24", "192.168.99.23"))?;
    write_second(&cluster)?;
    cluster.until_routes(&[&sound[0], &sound[1], "10.132.2.0/24 via 192.168.99.23"])?;
    cluster.until_status("all kinds are followed again", |status| troubled(status).is_empty())?;
    assert_eq!(cluster.tenant_sources()?, tenants);
    cluster.fixture.require_service()?;
    assert_eq!(routes.removed()?, [""; 0]);
    let log = cluster.fixture.gateway.log();
    assert!(!log.contains("eyJ"), "a token is in the log:\n{log}");
    Ok(())
}

fn error_of<'a>(status: &'a Value, kind: &str) -> &'a str {
    let kinds = status["kinds"].as_array().into_iter().flatten();
    let error = kinds.filter(|it| it["kind"] == kind).find_map(|it| it["error"].as_str());
    error.unwrap_or_default()
}

/// Returns the kinds that are not followed.
fn troubled(status: &Value) -> Vec<&str> {
    let kinds = status["kinds"].as_array().into_iter().flatten();
    kinds.filter(|it| !it["error"].is_null()).filter_map(|it| it["kind"].as_str()).collect()
}

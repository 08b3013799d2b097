//! The gateway starts while the API is down: with what it knew, with nothing, or with a file that is damaged.

use anyhow::Result;
use control::demo::topology::{BLUE, NODES, RED};
use control::demo::wait;
use serde_json::Value;
use spillway_tests::cluster::{ClusterFixture, Prepared, SOON, policy_object, route_to, tenant_object};

#[test]
fn with_a_state_file_it_forwards_before_the_api_answers_and_says_so() -> Result<()> {
    let Some(mut cluster) = known()? else { return Ok(()) };
    cluster.fixture.gateway.stop()?;
    cluster.api.refuse_connections();
    cluster.fixture.start_again()?;
    cluster.fixture.require_service()?;
    cluster.until_logged("starting from the state of")?;
    let status = cluster.until_status("the silence is told", |status| !status["error"].is_null())?;
    assert_eq!(listed(&status), 0, "{status}");
    assert!(status["ageSeconds"].is_null(), "{status}");
    cluster.until_routes(&[&route_to(&NODES[0]), &route_to(&NODES[1])])?;
    cluster.api.accept_connections();
    cluster.until_status("all is listed", |status| listed(status) == 4 && status["error"].is_null())?;
    cluster.fixture.require_service()
}

#[test]
fn without_a_state_file_it_starts_with_nothing_and_catches_up() -> Result<()> {
    let Some(prepared) = Prepared::build()? else { return Ok(()) };
    for tenant in [&BLUE, &RED] {
        prepared.api.create(policy_object(tenant))?;
        prepared.api.create(tenant_object(tenant))?;
    }
    prepared.api.refuse_connections();
    let cluster = prepared.start()?;
    assert!(cluster.tenant_sources()?.is_empty());
    assert!(cluster.routes()?.is_empty());
    cluster.require_no_service(&BLUE)?;
    cluster.api.accept_connections();
    cluster.until_condition(BLUE.name, "Programmed", "True")?;
    cluster.until_condition(RED.name, "Programmed", "True")?;
    cluster.until_routes(&[&route_to(&NODES[0]), &route_to(&NODES[1])])?;
    cluster.fixture.require_service()
}

#[test]
fn a_damaged_state_file_is_set_aside() -> Result<()> {
    let Some(mut cluster) = known()? else { return Ok(()) };
    cluster.fixture.gateway.stop()?;
    let file = cluster.fixture.lab.directory().join("state/kubernetes.json");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, &text[..text.len() / 2])?;
    cluster.api.refuse_connections();
    cluster.fixture.start_again()?;
    cluster.until_logged("kubernetes.json is damaged, or no state file of this version")?;
    let aside = file.with_extension("json.refused");
    assert_eq!(std::fs::read_to_string(aside)?, text[..text.len() / 2]);
    assert!(cluster.tenant_sources()?.is_empty());
    cluster.api.accept_connections();
    cluster.until_routes(&[&route_to(&NODES[0]), &route_to(&NODES[1])])?;
    wait::until("both tenants are back", SOON, || Ok((cluster.tenant_sources()?.len() == 2).then_some(())))?;
    cluster.fixture.require_service()
}

/// Returns a cluster that is known as a whole.
fn known() -> Result<Option<ClusterFixture>> {
    let Some(cluster) = ClusterFixture::with_tenants()? else { return Ok(None) };
    cluster.until_routes(&[&route_to(&NODES[0]), &route_to(&NODES[1])])?;
    cluster.fixture.require_service()?;
    Ok(Some(cluster))
}

/// Returns how many of the kinds that are watched in the whole cluster were listed.
fn listed(status: &Value) -> usize {
    let kinds = status["kinds"].as_array().into_iter().flatten();
    kinds.filter(|kind| kind["kind"] != "pods" && kind["listed"] == true).count()
}

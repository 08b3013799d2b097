//! The API goes away, hangs, forgets and throttles: what the gateway knows stays in force, and then it catches up.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use control::demo::topology::{BLUE, NODES, PODS};
use control::demo::wait;
use serde_json::{Value, json};
use spillway_apiserver::Handle;
use spillway_tests::cluster::{ClusterFixture, EVENTUALLY, Prepared, RouteLog, node_object, route_to};
use spillway_tests::peers::Peer;
use spillway_tests::stream::Stream;

/// How long the API is away.
const AWAY: Duration = Duration::from_secs(60);
const LATE: &str = "10.132.2.0/24 via 192.168.99.23";

#[test]
fn an_api_that_is_away_for_a_minute_changes_nothing_and_is_caught_up_with() -> Result<()> {
    let Some(cluster) = ClusterFixture::with_tenants()? else { return Ok(()) };
    let (lab, sound) = (&cluster.fixture.lab, sound());
    cluster.until_routes(&[&sound[0], &sound[1]])?;
    let (routes, echo) = (RouteLog::start(lab)?, Peer::udp_echo(lab, 7)?);
    let pods = [&PODS[0], &PODS[3]];
    let streams: Vec<_> =
        pods.iter().map(|pod| Stream::start(lab, pod, echo.address())).collect::<Result<_>>()?;
    cluster.api.refuse_connections();
    // What happens before its connections have ended is still told.
    cluster.until_status("the silence is told", |status| status["error"] == "the API does not answer")?;
    cluster.api.create(node_object("node3", "10.132.2.0/24", "192.168.99.23"))?;
    cluster.change_tenant(BLUE.name, json!({"limits": {"sessions": 1000}}))?;
    let ages = watch_an_outage(&cluster, &sound)?;
    assert!(ages.is_sorted(), "{ages:?}");
    assert!(ages.last() >= Some(&(AWAY.as_secs() - 5)), "{ages:?}");
    let status = cluster.status()?;
    assert_eq!(status["error"], "the API does not answer", "{status}");
    assert!(errors(&status).len() >= 4, "{status}");
    cluster.api.accept_connections();
    cluster.until_routes(&[&sound[0], &sound[1], LATE])?;
    cluster.until_condition(BLUE.name, "Programmed", "True")?;
    cluster.until_status("the API answers", is_well)?;
    for (pod, stream) in pods.into_iter().zip(streams) {
        stream.until_answered(50)?;
        cluster.fixture.finish_without_loss(pod, stream)?;
    }
    assert_eq!(routes.removed()?, [""; 0]);
    Ok(())
}

#[test]
fn an_api_that_hangs_changes_nothing_until_it_answers() -> Result<()> {
    let Some(cluster) = ClusterFixture::with_tenants()? else { return Ok(()) };
    let sound = sound();
    cluster.until_routes(&[&sound[0], &sound[1]])?;
    let (routes, tenants) = (RouteLog::start(&cluster.fixture.lab)?, cluster.tenant_sources()?);
    cluster.api.hang(true);
    cluster.api.create(node_object("node3", "10.132.2.0/24", "192.168.99.23"))?;
    cluster.api.drop_watches();
    cluster.until_status("the silence is told", |status| status["error"] == "the API does not answer")?;
    assert_eq!(cluster.routes()?, sound);
    assert_eq!(cluster.tenant_sources()?, tenants);
    cluster.fixture.require_service()?;
    cluster.api.hang(false);
    cluster.until_routes(&[&sound[0], &sound[1], LATE])?;
    cluster.until_status("the API answers", is_well)?;
    assert_eq!(routes.removed()?, [""; 0]);
    Ok(())
}

#[test]
fn watches_that_break_and_expire_during_churn_end_with_the_routes_of_the_nodes() -> Result<()> {
    let Some(prepared) = Prepared::build()? else { return Ok(()) };
    let (cluster, sound) = (prepared.start()?, sound());
    cluster.until_routes(&[&sound[0], &sound[1]])?;
    let routes = RouteLog::start(&cluster.fixture.lab)?;
    let faults: [fn(&Handle); 4] = [
        |api| api.drop_watches(),
        |api| api.expire_watches(),
        |api| {
            api.compact();
            api.drop_watches();
        },
        |api| {
            api.refuse_expired_watches(true);
            api.compact();
            api.drop_watches();
        },
    ];
    let mut present = BTreeSet::new();
    for round in 0..60_usize {
        let number = round * 7 % 10;
        let name = format!("churn-{number}");
        if present.remove(&number) {
            cluster.delete_node(&name)?;
        } else {
            let (network, address) = churn(number);
            cluster.api.create(node_object(&name, &network, &address))?;
            present.insert(number);
        }
        if round % 4 == 3 {
            faults[round / 4 % faults.len()](&cluster.api);
        }
        wait::pause(Duration::from_millis(50))?; // the pace of the churn
    }
    let (network, address) = churn(10);
    cluster.api.create(node_object("churn-10", &network, &address))?;
    let expected = present.into_iter().chain([10]).map(churn);
    let expected = expected.map(|(network, address)| format!("{network} via {address}"));
    let expected: Vec<_> = expected.chain(sound.clone()).collect();
    let expected: Vec<_> = expected.iter().map(String::as_str).collect();
    cluster.until_routes_within(EVENTUALLY, &expected)?;
    routes.require_kept(&sound)
}

#[test]
fn an_api_that_throttles_and_fails_is_followed_in_the_end() -> Result<()> {
    let Some(cluster) = ClusterFixture::with_tenants()? else { return Ok(()) };
    let sound = sound();
    cluster.until_routes(&[&sound[0], &sound[1]])?;
    let (routes, tenants) = (RouteLog::start(&cluster.fixture.lab)?, cluster.tenant_sources()?);
    cluster.api.throttle(25, 1);
    cluster.api.fail(15);
    cluster.api.create(node_object("node3", "10.132.2.0/24", "192.168.99.23"))?;
    cluster.api.compact();
    cluster.api.drop_watches();
    cluster.until_routes_within(EVENTUALLY, &[&sound[0], &sound[1], LATE])?;
    cluster.until_status("the API answers", is_well)?;
    assert_eq!(cluster.tenant_sources()?, tenants);
    cluster.fixture.require_service()?;
    assert_eq!(routes.removed()?, [""; 0]);
    Ok(())
}

/// Fails if routes or tenants change while the API is away; returns the ages that the status shows.
fn watch_an_outage(cluster: &ClusterFixture, sound: &[String]) -> Result<Vec<u64>> {
    let (tenants, begun, mut ages) = (cluster.tenant_sources()?, Instant::now(), Vec::new());
    while begun.elapsed() < AWAY {
        assert_eq!(cluster.routes()?, sound);
        assert_eq!(cluster.tenant_sources()?, tenants);
        wait::pause(Duration::from_secs(2))?;
        ages.push(cluster.status()?["ageSeconds"].as_u64().context("the API has answered")?);
    }
    Ok(ages)
}

fn sound() -> [String; 2] {
    [route_to(&NODES[0]), route_to(&NODES[1])]
}

fn churn(number: usize) -> (String, String) {
    (format!("10.132.{}.0/24", 10 + number), format!("192.168.99.{}", 30 + number))
}

fn is_well(status: &Value) -> bool {
    status["error"].is_null() && errors(status).is_empty()
}

fn errors(status: &Value) -> Vec<&Value> {
    let kinds = status["kinds"].as_array().into_iter().flatten();
    kinds.map(|kind| &kind["error"]).filter(|error| !error.is_null()).collect()
}

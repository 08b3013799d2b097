//! A cluster of 5,000 nodes. The kernel's neighbour table is shared by all namespaces: this test is alone in its program.

use std::time::{Duration, Instant};

use anyhow::Result;
use control::demo::topology::{Host, INSIDE, NODES, ROUTE_PROTOCOL};
use control::demo::wait;
use spillway_apiserver::Verb;
use spillway_tests::cluster::{ClusterFixture, EVENTUALLY, Prepared, crowd_name, crowd_object, crowd_route};

const CROWD: u32 = 5_000;
const ROUTES: usize = CROWD as usize + 2;
const STALE: &str = "10.140.0.0/24";
const STRANGE: &str = "10.141.0.0/24";

#[test]
fn the_routes_of_five_thousand_nodes_replace_those_of_an_earlier_run_and_no_others() -> Result<()> {
    let Some(prepared) = Prepared::build()? else { return Ok(()) };
    prepared.add_crowd(CROWD)?;
    let gateway = prepared.lab.namespace(Host::Gateway);
    for (network, protocol) in [(STALE, ROUTE_PROTOCOL), (STRANGE, "static")] {
        let via = NODES[0].address;
        gateway.ip(&format!("route add {network} via {via} dev {INSIDE} proto {protocol}"))?;
    }
    prepared.api.hang(true);
    prepared.api.delay_chunks(Duration::from_millis(200));
    let cluster = prepared.start()?;
    assert_eq!(cluster.routes()?.len(), 1, "the route of an earlier run stays while nothing is known");
    cluster.api.hang(false);
    let begun = Instant::now();
    require_stale_until_listed(&cluster)?;
    cluster.until_route_count(ROUTES)?;
    println!("{ROUTES} routes after {:?}", begun.elapsed());
    assert!(!cluster.routes()?.iter().any(|route| route.starts_with(STALE)));

    let begun = Instant::now();
    cluster.api.create(crowd_object(CROWD))?;
    cluster.until_route_count(ROUTES + 1)?;
    println!("one more after {:?}", begun.elapsed());
    assert!(cluster.routes()?.contains(&crowd_route(CROWD)));
    cluster.delete_node(&crowd_name(0))?;
    cluster.until_route_count(ROUTES)?;
    assert!(!cluster.routes()?.contains(&crowd_route(0)));
    assert!(gateway.ip("route show proto static")?.contains(STRANGE));
    Ok(())
}

/// Fails if the stale route goes before the last chunk of the first list was asked for.
fn require_stale_until_listed(cluster: &ClusterFixture) -> Result<()> {
    let chunks = ROUTES.div_ceil(500) as u64;
    wait::until("all nodes are listed", EVENTUALLY, || {
        let routes = cluster.routes()?;
        let is_listed = cluster.api.requests().count(Verb::List, "nodes") >= chunks;
        let has_stale = routes.iter().any(|route| route.starts_with(STALE));
        assert!(is_listed || has_stale, "{} routes", routes.len());
        Ok(is_listed.then_some(()))
    })
}

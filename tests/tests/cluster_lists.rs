//! Lists that arrive in pieces, break off, or lack what there is: no route goes before a second list says so.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use control::demo::wait;
use spillway_apiserver::Verb;
use spillway_tests::cluster::{ClusterFixture, EVENTUALLY, Prepared, RouteLog, crowd_name, crowd_route};

/// More than one chunk of a list.
const CROWD: u32 = 520;
/// With the nodes of the lab.
const ROUTES: usize = CROWD as usize + 2;
/// The kernel's neighbour table has room for one crowd: all namespaces share it.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn a_relist_that_arrives_in_pieces_takes_no_route_away() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(cluster) = crowded()? else { return Ok(()) };
    let routes = RouteLog::start(&cluster.fixture.lab)?;
    cluster.api.delay_chunks(Duration::from_secs(1));
    cluster.api.break_lists(1, 3);
    cluster.api.compact();
    cluster.api.forget_requests();
    cluster.api.expire_watches();
    until_lists(&cluster, 2)?;
    cluster.delete_node(&crowd_name(0))?;
    cluster.until_route_count(ROUTES - 1)?;
    assert_eq!(routes.removed()?, [crowd_route(0)]);
    let lists = cluster.api.requests().count(Verb::List, "nodes");
    assert!(lists >= 8, "three lists break and two are whole, each of two chunks: {lists}");
    Ok(())
}

#[test]
fn a_relist_that_lacks_half_of_the_nodes_takes_none_away() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(cluster) = crowded()? else { return Ok(()) };
    let routes = RouteLog::start(&cluster.fixture.lab)?;
    let names: Vec<_> = (0..CROWD / 2).map(crowd_name).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    cluster.api.refuse_connections();
    cluster.delete_node(&crowd_name(CROWD - 1))?;
    cluster.api.compact();
    cluster.api.omit_from_lists("nodes", &names, 1);
    cluster.api.forget_requests();
    cluster.api.accept_connections();
    cluster.until_logged(&format!("a list of nodes lacks {} that nobody saw deleted", names.len() + 1))?;
    cluster.until_route_count(ROUTES - 1)?;
    let lists = cluster.api.requests().count(Verb::List, "nodes");
    assert!(lists >= 3, "a second list was not asked for, only {lists} chunks");
    assert_eq!(routes.removed()?, [crowd_route(CROWD - 1)]);
    Ok(())
}

fn crowded() -> Result<Option<ClusterFixture>> {
    let Some(prepared) = Prepared::build()? else { return Ok(None) };
    prepared.add_crowd(CROWD)?;
    let cluster = prepared.start()?;
    cluster.until_route_count(ROUTES)?;
    Ok(Some(cluster))
}

fn until_lists(cluster: &ClusterFixture, chunks: u64) -> Result<()> {
    wait::until("lists of nodes are asked for", EVENTUALLY, || {
        Ok((cluster.api.requests().count(Verb::List, "nodes") >= chunks).then_some(()))
    })
}

//! A large cluster.

use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::runtime::watcher;
use serde_json::json;

use crate::lab::{Lab, PATIENCE, eventually, node, pod};
use crate::watches::follow;

const NODES: usize = 5_000;
const PODS: usize = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_cluster_is_listed_and_watched_in_seconds() {
    let lab = Lab::start().await;
    let start = Instant::now();
    for index in 0..NODES {
        lab.server.create(node(&format!("w{index}"))).unwrap();
    }
    for index in 0..PODS {
        lab.server
            .create(pod("default", &format!("p{index}"), &format!("w{}", index % NODES), "web"))
            .unwrap();
    }
    println!("created {NODES} nodes and {PODS} pods in {:?}", start.elapsed());

    let start = Instant::now();
    assert_eq!(lab.nodes().list(&ListParams::default()).await.unwrap().items.len(), NODES);
    println!("listed {NODES} nodes in {:?}", start.elapsed());
    let start = Instant::now();
    let pods: Api<Pod> = Api::all(lab.client.clone());
    assert_eq!(pods.list(&ListParams::default()).await.unwrap().items.len(), PODS);
    println!("listed {PODS} pods in {:?}", start.elapsed());

    let start = Instant::now();
    let (names, follower) = follow(watcher(lab.nodes(), watcher::Config::default()));
    eventually(NODES, || async { names.borrow().len() }).await;
    println!("a watcher saw {NODES} nodes in {:?}", start.elapsed());
    let start = Instant::now();
    for index in 0..NODES {
        lab.server.create(node(&format!("x{index}"))).unwrap();
    }
    eventually(2 * NODES, || async { names.borrow().len() }).await;
    println!("a watcher saw {NODES} more nodes, as they were created, in {:?}", start.elapsed());
    assert!(start.elapsed() < PATIENCE);
    lab.server.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "last"}})).unwrap();
    eventually(2 * NODES + 1, || async { names.borrow().len() }).await;
    follower.abort();
}

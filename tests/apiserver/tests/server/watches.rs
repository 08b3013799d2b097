//! Watches, and the client's watcher upon them.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use spillway_apiserver::{Options, Verb};

use crate::lab::{Lab, Steady, code, eventually, next};

#[tokio::test]
async fn a_watch_goes_on_where_its_list_ended() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);
    let version = version(&lab).await;

    let mut events = lab.nodes().watch(&WatchParams::default(), &version).await.unwrap().boxed();
    lab.add_nodes(&["w2"]);
    label(&lab, "w2", json!({"a": "b"})).await;
    label(&lab, "w2", json!({"a": "b"})).await;
    lab.nodes().delete("w1", &DeleteParams::default()).await.unwrap();

    let mut seen = Vec::new();
    let mut last = 0;
    for _ in 0..3 {
        let (kind, node) = object(next(&mut events).await.unwrap());
        let version: u64 = node.resource_version().unwrap().parse().unwrap();
        assert!(version > last, "versions rise");
        last = version;
        seen.push(format!("{kind} {}", node.name_any()));
    }
    assert_eq!(seen, ["added w2", "modified w2", "deleted w1"], "the change of nothing is no event");
}

#[tokio::test]
async fn an_object_that_stops_matching_is_deleted_for_its_watch() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);
    let version = version(&lab).await;
    let selected = WatchParams::default().labels("role=egress");

    let mut events = lab.nodes().watch(&selected, &version).await.unwrap().boxed();
    for labels in
        [json!({"other": "1"}), json!({"role": "egress"}), json!({"other": "2"}), json!({"role": null})]
    {
        label(&lab, "w1", labels).await;
    }

    for expected in ["added", "modified", "deleted"] {
        assert_eq!(object(next(&mut events).await.unwrap()).0, expected);
    }
}

#[tokio::test]
async fn a_watch_without_a_version_begins_with_what_is_there() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1", "w2"]);

    let mut events = lab.nodes().watch_metadata(&WatchParams::default(), "0").await.unwrap().boxed();

    for expected in ["w1", "w2"] {
        let WatchEvent::Added(node) = next(&mut events).await.unwrap() else { panic!("{expected} is added") };
        assert_eq!(node.name_any(), expected);
    }
}

#[tokio::test]
async fn bookmarks_tell_how_far_a_quiet_watch_has_come() {
    let lab = Lab::with(Options { bookmark_interval: Duration::from_millis(50), ..Options::default() }).await;
    lab.add_nodes(&["w1"]);
    let version = version(&lab).await;

    let mut events = lab.nodes().watch(&WatchParams::default(), &version).await.unwrap().boxed();
    lab.server.load("{apiVersion: v1, kind: Namespace, metadata: {name: blue}}").unwrap();
    let now = self::version(&lab).await;

    loop {
        let WatchEvent::Bookmark(bookmark) = next(&mut events).await.unwrap() else {
            panic!("nodes did not change")
        };
        if bookmark.metadata.resource_version == now {
            break;
        }
    }
}

#[tokio::test]
async fn a_watch_ends_in_time_with_a_bookmark() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);
    let version = version(&lab).await;

    let events = lab.nodes().watch(&WatchParams::default().timeout(1), &version).await.unwrap().boxed();
    let events: Vec<_> = tokio::time::timeout(Duration::from_secs(10), events.collect()).await.unwrap();

    assert!(matches!(&events[..], [Ok(WatchEvent::Bookmark(_))]), "{events:?}");
}

#[tokio::test]
async fn a_watch_from_a_forgotten_version_is_told_so_or_refused() {
    let lab = Lab::start().await;
    let version = version(&lab).await;
    lab.add_nodes(&["w1"]);

    lab.server.compact();
    let mut events = lab.nodes().watch(&WatchParams::default(), &version).await.unwrap().boxed();
    let told = next(&mut events).await.unwrap();
    lab.server.refuse_expired_watches(true);
    let refused = lab.nodes().watch(&WatchParams::default(), &version).await;

    assert!(matches!(&told, WatchEvent::Error(status) if status.code == 410), "{told:?}");
    assert_eq!(code(refused.map(drop)), 410);
}

#[tokio::test]
async fn a_list_can_be_streamed_by_a_watch() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1", "w2"]);

    let config = watcher::Config::default().streaming_lists();
    let mut events = watcher(lab.nodes(), config).boxed();
    let mut names = Vec::new();
    loop {
        match next(&mut events).await.unwrap() {
            watcher::Event::InitApply(node) => names.push(node.name_any()),
            watcher::Event::InitDone => break,
            watcher::Event::Init | watcher::Event::Apply(_) | watcher::Event::Delete(_) => {}
        }
    }

    assert_eq!(names, ["w1", "w2"]);
    assert_eq!(lab.server.requests().count(Verb::List, "nodes"), 0);
    lab.add_nodes(&["w3"]);
    assert!(
        matches!(next(&mut events).await.unwrap(), watcher::Event::Apply(node) if node.name_any() == "w3")
    );
}

#[tokio::test]
async fn a_watcher_survives_expired_and_broken_watches_and_a_restart() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);
    let (names, follower) = follow(watcher(lab.nodes(), watcher::Config::default()).backoff(Steady));
    eventually(vec!["w1".to_owned()], || async { names.borrow().iter().cloned().collect() }).await;

    lab.server.expire_watches();
    lab.add_nodes(&["w2"]);
    expect(&names, &["w1", "w2"]).await;

    lab.server.drop_watches();
    lab.add_nodes(&["w3"]);
    expect(&names, &["w1", "w2", "w3"]).await;

    lab.server.refuse_connections();
    eventually(true, || async { lab.nodes().get("w1").await.is_err() }).await;
    lab.server.delete("v1", "Node", "", "w2").unwrap();
    lab.server.compact();
    lab.server.accept_connections();
    expect(&names, &["w1", "w3"]).await;
    follower.abort();
}

async fn expect(names: &tokio::sync::watch::Receiver<BTreeSet<String>>, expected: &[&str]) {
    let expected: Vec<_> = expected.iter().map(|name| (*name).to_owned()).collect();
    eventually(expected, || async { names.borrow().iter().cloned().collect() }).await;
}

/// Keeps the names that a watcher tells of.
pub(crate) fn follow(
    events: impl Stream<Item = watcher::Result<watcher::Event<Node>>> + Send + 'static,
) -> (tokio::sync::watch::Receiver<BTreeSet<String>>, tokio::task::JoinHandle<()>) {
    let (sender, names) = tokio::sync::watch::channel(BTreeSet::new());
    let follower = tokio::spawn(async move {
        let mut events = Box::pin(events);
        let mut fresh = BTreeSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(node)) => {
                    sender.send_modify(|names| names.extend([node.name_any()]));
                }
                Ok(watcher::Event::Delete(node)) => {
                    sender.send_modify(|names| names.retain(|name| *name != node.name_any()));
                }
                Ok(watcher::Event::Init) => fresh.clear(),
                Ok(watcher::Event::InitApply(node)) => fresh.extend([node.name_any()]),
                Ok(watcher::Event::InitDone) => drop(sender.send_replace(std::mem::take(&mut fresh))),
                // The watcher tells of what it survives.
                Err(_) => {}
            }
        }
    });
    (names, follower)
}

fn object(event: WatchEvent<Node>) -> (&'static str, Node) {
    match event {
        WatchEvent::Added(node) => ("added", node),
        WatchEvent::Modified(node) => ("modified", node),
        WatchEvent::Deleted(node) => ("deleted", node),
        WatchEvent::Bookmark(_) | WatchEvent::Error(_) => panic!("an object was expected: {event:?}"),
    }
}

async fn label(lab: &Lab, name: &str, labels: serde_json::Value) {
    let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
    lab.nodes().patch(name, &PatchParams::default(), &patch).await.unwrap();
}

async fn version(lab: &Lab) -> String {
    let list = lab.nodes().list(&ListParams::default()).await.unwrap();
    list.metadata.resource_version.unwrap()
}

//! Lists, whole and in chunks.

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, VersionMatch};

use crate::lab::{Lab, code, node, pod};

#[tokio::test]
async fn the_chunks_of_a_list_show_one_snapshot() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1", "w2", "w3", "w4", "w5"]);
    let page = ListParams::default().limit(2);

    let first = lab.nodes().list(&page).await.unwrap();
    lab.nodes().delete("w4", &DeleteParams::default()).await.unwrap();
    lab.add_nodes(&["w3a", "w9"]);
    let mut names: Vec<_> = first.items.iter().map(ResourceExt::name_any).collect();
    let mut token = first.metadata.continue_.clone();
    let mut versions = vec![first.metadata.resource_version];
    while let Some(following) = token.filter(|token| !token.is_empty()) {
        let chunk = lab.nodes().list(&page.clone().continue_token(&following)).await.unwrap();
        names.extend(chunk.items.iter().map(ResourceExt::name_any));
        versions.push(chunk.metadata.resource_version);
        token = chunk.metadata.continue_;
    }

    assert_eq!(names, ["w1", "w2", "w3", "w4", "w5"]);
    versions.dedup();
    assert_eq!(versions.len(), 1, "every chunk names the snapshot's version");
}

#[tokio::test]
async fn a_chunk_of_a_forgotten_snapshot_is_gone() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1", "w2", "w3"]);
    let page = ListParams::default().limit(1);
    let token = lab.nodes().list(&page).await.unwrap().metadata.continue_.unwrap();

    lab.add_nodes(&["w4"]);
    lab.server.compact();

    assert_eq!(code(lab.nodes().list(&page.continue_token(&token)).await), 410);
}

#[tokio::test]
async fn a_list_shows_the_version_that_was_asked_for() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);
    let then = lab.nodes().list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    lab.add_nodes(&["w2"]);

    let asked = ListParams::default().at(&then);
    let exact = lab.nodes().list(&asked.clone().matching(VersionMatch::Exact)).await.unwrap();
    let fresh = lab.nodes().list(&asked.clone().matching(VersionMatch::NotOlderThan)).await.unwrap();
    let future = lab.nodes().list(&ListParams::default().at("100000")).await;

    assert_eq!((exact.items.len(), fresh.items.len()), (1, 2));
    assert_eq!(code(future), 504);
    lab.server.compact();
    assert_eq!(code(lab.nodes().list(&asked.matching(VersionMatch::Exact)).await), 410);
}

#[tokio::test]
async fn selectors_and_namespaces_narrow_a_list() {
    let lab = Lab::start().await;
    for namespace in ["blue", "red"] {
        let manifest = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}");
        lab.server.load(&manifest).unwrap();
    }
    for (namespace, name, node, app) in
        [("blue", "a", "w1", "web"), ("blue", "b", "w2", "gw"), ("red", "a", "w1", "gw")]
    {
        lab.server.create(pod(namespace, name, node, app)).unwrap();
    }
    let cases = [
        (None, "", "", vec!["blue/a", "blue/b", "red/a"]),
        (Some("blue"), "", "", vec!["blue/a", "blue/b"]),
        (None, "app in (gw)", "", vec!["blue/b", "red/a"]),
        (None, "app notin (gw)", "", vec!["blue/a"]),
        (None, "", "spec.nodeName=w1", vec!["blue/a", "red/a"]),
        (None, "app=gw", "metadata.namespace!=red", vec!["blue/b"]),
        (Some("red"), "", "metadata.name=b", vec![]),
    ];

    for (namespace, labels, fields, expected) in cases {
        let api: Api<Pod> = match namespace {
            Some(namespace) => Api::namespaced(lab.client.clone(), namespace),
            None => Api::all(lab.client.clone()),
        };
        let found = api.list(&ListParams::default().labels(labels).fields(fields)).await.unwrap();
        let found: Vec<_> = found
            .items
            .iter()
            .map(|pod| format!("{}/{}", pod.namespace().unwrap(), pod.name_any()))
            .collect();
        assert_eq!(found, expected, "{namespace:?} {labels} {fields}");
    }
    let wrong =
        Api::<Pod>::all(lab.client.clone()).list(&ListParams::default().fields("spec.colour=red")).await;
    assert_eq!(code(wrong), 400);
}

#[tokio::test]
async fn metadata_alone_can_be_listed_and_read() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);

    let list = lab.nodes().list_metadata(&ListParams::default()).await.unwrap();
    let one = lab.nodes().get_metadata("w1").await.unwrap();

    assert_eq!(list.items[0].labels()["kubernetes.io/hostname"], "w1");
    assert_eq!(list.items[0].types.clone().unwrap().kind, "PartialObjectMetadata");
    assert_eq!(one.uid(), list.items[0].uid());
    assert!(!serde_json::to_string(&one).unwrap().contains("podCIDR"));
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let lab = Lab::start().await;

    assert_eq!(code(lab.nodes().get("w1").await), 404);
    assert_eq!(code(lab.tenants().list(&ListParams::default()).await), 404);
    assert!(lab.server.create(node("w1")).is_ok());
    assert_eq!(lab.nodes().get("w1").await.unwrap().name_any(), "w1");
    let namespaces = Api::<Namespace>::all(lab.client.clone()).list(&ListParams::default()).await.unwrap();
    assert!(namespaces.items.iter().any(|namespace| namespace.name_any() == "kube-system"));
    let selected =
        Api::<Node>::all(lab.client.clone()).list(&ListParams::default().fields("metadata.name=w2")).await;
    assert!(selected.unwrap().items.is_empty());
}

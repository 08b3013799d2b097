//! Creating, replacing, patching and deleting.

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::{Value, json};

use crate::lab::{Lab, code, definition, node, pod, tenant};

#[tokio::test]
async fn a_new_object_gets_its_metadata_from_the_server() {
    let lab = Lab::start().await;
    let mut asked: Node = serde_json::from_value(node("w1")).unwrap();
    asked.metadata.uid = Some("mine".into());

    let created = lab.nodes().create(&PostParams::default(), &asked).await.unwrap();
    let again = lab.nodes().create(&PostParams::default(), &asked).await;

    assert_eq!(created.uid().unwrap().len(), 36);
    assert!(created.creation_timestamp().is_some() && created.resource_version().is_some());
    assert_eq!(code(again), 409);
}

#[tokio::test]
async fn a_name_is_made_for_an_object_that_asks_for_one() {
    let lab = Lab::start().await;
    let mut asked: Node = serde_json::from_value(node("")).unwrap();
    asked.metadata.name = None;
    asked.metadata.generate_name = Some("node-".into());

    let created = lab.nodes().create(&PostParams::default(), &asked).await.unwrap();
    asked.metadata.generate_name = Some("Not_a_name".into());
    let wrong = lab.nodes().create(&PostParams::default(), &asked).await;

    assert!(created.name_any().starts_with("node-") && created.name_any().len() == 10);
    assert_eq!(code(wrong), 422);
}

#[tokio::test]
async fn a_stale_version_is_a_conflict() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);
    let mut stale = lab.nodes().get("w1").await.unwrap();
    label(&lab, "w1", "a").await;
    stale.labels_mut().insert("b".into(), "1".into());

    let replaced = lab.nodes().replace("w1", &PostParams::default(), &stale).await;
    let patch = json!({"metadata": {"resourceVersion": stale.resource_version(), "labels": {"b": "1"}}});
    let patched = lab.nodes().patch("w1", &PatchParams::default(), &Patch::Merge(patch)).await;

    assert_eq!(code(replaced), 409);
    assert_eq!(code(patched), 409);
    assert!(!lab.nodes().get("w1").await.unwrap().labels().contains_key("b"));
}

#[tokio::test]
async fn a_write_that_changes_nothing_raises_no_version() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);
    let before = lab.nodes().get("w1").await.unwrap();

    let replaced = lab.nodes().replace("w1", &PostParams::default(), &before).await.unwrap();
    let patch = Patch::Merge(json!({"metadata": {"labels": before.labels()}}));
    let patched = lab.nodes().patch("w1", &PatchParams::default(), &patch).await.unwrap();

    assert_eq!(replaced.resource_version(), before.resource_version());
    assert_eq!(patched.resource_version(), before.resource_version());
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let lab = Lab::start().await;
    lab.server.create(definition()).unwrap();
    let mut asked = tenant("blue", "192.168.99.13");
    asked.data["status"] = json!({"sessions": 9});

    let created = lab.tenants().create(&PostParams::default(), &asked).await.unwrap();
    let both = json!({"spec": {"sessions": 5}, "status": {"sessions": 7}});
    let status = lab
        .tenants()
        .patch_status("blue", &PatchParams::default(), &Patch::Merge(both.clone()))
        .await
        .unwrap();
    let spec = lab.tenants().patch("blue", &PatchParams::default(), &Patch::Merge(both)).await.unwrap();

    assert_eq!((&created.data["status"], created.metadata.generation), (&Value::Null, Some(1)));
    assert_eq!(
        (&status.data["spec"]["sessions"], &status.data["status"]["sessions"]),
        (&Value::Null, &json!(7))
    );
    assert_eq!(status.metadata.generation, Some(1));
    assert_eq!((&spec.data["spec"]["sessions"], spec.metadata.generation), (&json!(5), Some(2)));
}

#[tokio::test]
async fn labels_raise_no_generation() {
    let lab = Lab::start().await;
    lab.server.create(definition()).unwrap();
    lab.tenants().create(&PostParams::default(), &tenant("blue", "192.168.99.13")).await.unwrap();

    let patch = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}, "generation": 7}}));
    let patched = lab.tenants().patch("blue", &PatchParams::default(), &patch).await.unwrap();

    assert_eq!(patched.metadata.generation, Some(1));
}

#[tokio::test]
async fn finalizers_keep_an_object_until_they_are_gone() {
    let lab = Lab::start().await;
    let mut held = node("w1");
    held["metadata"]["finalizers"] = json!(["spillway.dev/route"]);
    lab.server.create(held).unwrap();

    let deleted = lab.nodes().delete("w1", &DeleteParams::default()).await.unwrap();
    let marked = lab.nodes().get("w1").await.unwrap();
    let more = json!({"metadata": {"finalizers": ["spillway.dev/route", "spillway.dev/more"]}});
    let more = lab.nodes().patch("w1", &PatchParams::default(), &Patch::Merge(more)).await;
    let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    lab.nodes().patch("w1", &PatchParams::default(), &none).await.unwrap();

    assert!(deleted.is_left(), "an object that stays is the answer");
    assert!(marked.metadata.deletion_timestamp.is_some());
    assert_eq!(code(more), 422);
    assert_eq!(code(lab.nodes().get("w1").await), 404);
}

#[tokio::test]
async fn a_deletion_has_preconditions() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);
    let conditions = [
        Preconditions { uid: Some("another".into()), resource_version: None },
        Preconditions { uid: None, resource_version: Some("1".into()) },
    ];

    for preconditions in conditions {
        let terms = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        assert_eq!(code(lab.nodes().delete("w1", &terms).await), 409);
    }
    assert!(lab.nodes().delete("w1", &DeleteParams::default()).await.unwrap().is_right());
}

#[tokio::test]
async fn a_json_patch_can_test_before_it_changes() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);
    let patch = |cidr: &str| {
        let steps = json!([
            {"op": "test", "path": "/spec/podCIDR", "value": cidr},
            {"op": "add", "path": "/metadata/annotations", "value": {"a": "b"}},
        ]);
        Patch::<()>::Json(serde_json::from_value(steps).unwrap())
    };

    let wrong = lab.nodes().patch("w1", &PatchParams::default(), &patch("10.0.0.0/8")).await;
    let right = lab.nodes().patch("w1", &PatchParams::default(), &patch("10.132.0.0/24")).await.unwrap();

    assert_eq!(code(wrong), 422);
    assert_eq!(right.annotations()["a"], "b");
}

#[tokio::test]
async fn an_applied_field_goes_when_its_manager_applies_it_no_more() {
    let lab = Lab::start().await;
    lab.server.create(definition()).unwrap();
    let apply = |manager: &'static str, spec: Value| {
        let object = json!({
            "apiVersion": "spillway.dev/v1alpha1", "kind": "EgressTenant", "metadata": {"name": "blue"}, "spec": spec,
        });
        let tenants = lab.tenants();
        async move { tenants.patch("blue", &PatchParams::apply(manager), &Patch::Apply(object)).await.unwrap() }
    };

    apply("one", json!({"gatewayIP": "192.168.99.13", "sessions": 5, "mapping": "Independent"})).await;
    apply("two", json!({"mapping": "Independent"})).await;
    let last = apply("one", json!({"gatewayIP": "192.168.99.13"})).await;
    let same = apply("one", json!({"gatewayIP": "192.168.99.13"})).await;

    assert_eq!(last.data["spec"], json!({"gatewayIP": "192.168.99.13", "mapping": "Independent"}));
    let managers =
        last.managed_fields().iter().map(|entry| entry.manager.clone().unwrap()).collect::<Vec<_>>();
    assert_eq!(managers, ["two", "one"]);
    assert_eq!(same.managed_fields().len(), 2);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let lab = Lab::start().await;
    let dry = PostParams { dry_run: true, ..PostParams::default() };

    lab.nodes().create(&dry, &serde_json::from_value(node("w1")).unwrap()).await.unwrap();

    assert_eq!(code(lab.nodes().get("w1").await), 404);
}

#[tokio::test]
async fn a_namespace_takes_its_objects_along() {
    let lab = Lab::start().await;
    let namespaces: Api<Namespace> = Api::all(lab.client.clone());
    let pods: Api<Pod> = Api::namespaced(lab.client.clone(), "blue");
    let asked: Pod = serde_json::from_value(pod("blue", "p", "w1", "web")).unwrap();

    let early = pods.create(&PostParams::default(), &asked).await;
    lab.server.load("{apiVersion: v1, kind: Namespace, metadata: {name: blue}}").unwrap();
    pods.create(&PostParams::default(), &asked).await.unwrap();
    namespaces.delete("blue", &DeleteParams::default()).await.unwrap();

    assert_eq!(code(early), 404);
    assert!(pods.list(&ListParams::default()).await.unwrap().items.is_empty());
    assert_eq!(code(namespaces.get("blue").await), 404);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selection() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1", "w2"]);
    let selected = ListParams::default().labels("kubernetes.io/hostname=w1");

    lab.nodes().delete_collection(&DeleteParams::default(), &selected).await.unwrap();

    let left = lab.nodes().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(left.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["w2"]);
}

#[tokio::test]
async fn a_pod_with_a_grace_period_stays_until_it_is_deleted_without_one() {
    let lab = Lab::start().await;
    lab.server.create(pod("default", "p", "w1", "web")).unwrap();
    let pods: Api<Pod> = Api::namespaced(lab.client.clone(), "default");

    pods.delete("p", &DeleteParams::default().grace_period(30)).await.unwrap();
    let ending = pods.get("p").await.unwrap();
    pods.delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();

    assert!(ending.metadata.deletion_timestamp.is_some());
    assert_eq!(code(pods.get("p").await), 404);
}

#[tokio::test]
async fn an_event_stands_where_its_object_does() {
    let lab = Lab::start().await;
    lab.add_nodes(&["w1"]);
    let recorder = Recorder::new(
        lab.client.clone(),
        Reporter { controller: "spillway".into(), instance: Some("gw1".into()) },
    );
    let mut about = lab.server.get("v1", "Node", "", "w1").unwrap();
    about.as_object_mut().unwrap().remove("status");
    let about: Node = serde_json::from_value(about).unwrap();
    let event = Event {
        type_: EventType::Warning,
        reason: "RouteRefused".into(),
        note: Some("overlaps with w2".into()),
        action: "AddRoute".into(),
        secondary: None,
    };

    recorder.publish(&event, &kube::Resource::object_ref(&about, &())).await.unwrap();
    recorder.publish(&event, &kube::Resource::object_ref(&about, &())).await.unwrap();

    let events: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(lab.client.clone(), "default");
    let found = events.list(&ListParams::default()).await.unwrap().items;
    assert_eq!(found.len(), 1, "a repeated event is a series");
    assert_eq!(found[0].series.as_ref().unwrap().count, 2);
}

async fn label(lab: &Lab, name: &str, key: &str) {
    let patch = Patch::Merge(json!({"metadata": {"labels": {key: "1"}}}));
    lab.nodes().patch(name, &PatchParams::default(), &patch).await.unwrap();
}

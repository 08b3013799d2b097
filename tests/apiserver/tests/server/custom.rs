//! Definitions and the custom resources that they bring.

use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams, ValidationDirective};
use serde_json::{Value, json};

use crate::lab::{Lab, code, definition, tenant};

#[tokio::test]
async fn a_definition_brings_its_resource_and_takes_it_away() {
    let lab = Lab::start().await;
    let list = || async { lab.tenants().list(&ListParams::default()).await };

    let before = list().await;
    lab.server.create(definition()).unwrap();
    lab.tenants().create(&PostParams::default(), &tenant("blue", "192.168.99.13")).await.unwrap();
    let during = list().await.unwrap();
    let name = "egresstenants.spillway.dev";
    lab.server.delete("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", name).unwrap();

    assert_eq!(code(before), 404);
    assert_eq!(during.items.len(), 1);
    assert_eq!(code(list().await), 404);
}

#[tokio::test]
async fn a_definition_is_established_at_once() {
    let lab = Lab::start().await;

    let created = lab.server.create(definition()).unwrap();

    let names: Vec<_> = created["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|condition| &condition["type"])
        .collect();
    assert_eq!(names, ["NamesAccepted", "Established"]);
    assert_eq!(created["spec"]["names"]["listKind"], "EgressTenantList");
}

#[tokio::test]
async fn a_definition_that_a_server_would_refuse_is_refused() {
    let lab = Lab::start().await;
    let schema = "/spec/versions/0/schema/openAPIV3Schema";
    let cases: [(&str, Value, &str); 6] = [
        ("/metadata/name", json!("tenants.spillway.dev"), "metadata.name"),
        ("/spec/scope", json!("Everywhere"), "spec.scope"),
        (&format!("{schema}/properties/spec/properties/mapping/default"), json!("Other"), "default"),
        (
            &format!("{schema}/properties/spec/properties/sessions"),
            json!({"minimum": 0}),
            "properties[sessions].type",
        ),
        (&format!("{schema}/properties/spec/properties/egressIPs/uniqueItems"), json!(true), "uniqueItems"),
        (
            &format!("{schema}/properties/spec/x-kubernetes-validations/0/rule"),
            json!("self."),
            "x-kubernetes-validations",
        ),
    ];

    for (path, value, field) in cases {
        let mut wrong = definition();
        let patch = json!([{"op": "add", "path": path, "value": value}]);
        json_patch::patch(&mut wrong, &serde_json::from_value::<json_patch::Patch>(patch).unwrap()).unwrap();
        let error = lab.server.create(wrong).unwrap_err();
        assert_eq!(error.code(), 422, "{path}");
        assert!(error.to_string().contains(field), "{path}: {error}");
    }
}

#[tokio::test]
async fn unknown_fields_are_dropped_and_missing_ones_filled_in() {
    let lab = Lab::start().await;
    lab.server.create(definition()).unwrap();
    let mut asked = tenant("blue", "192.168.99.13");
    asked.data["spec"]["colour"] = json!("blue");
    asked.data["extra"] = json!(1);

    let strict =
        PatchParams { field_validation: Some(ValidationDirective::Strict), ..PatchParams::apply("test") };
    let refused = lab.tenants().patch("blue", &strict, &Patch::Apply(&asked)).await;
    let created = lab.tenants().create(&PostParams::default(), &asked).await.unwrap();

    assert_eq!(code(refused), 400);
    assert_eq!(created.data, json!({"spec": {"gatewayIP": "192.168.99.13", "mapping": "Dependent"}}));
}

#[tokio::test]
async fn an_object_that_breaks_its_schema_is_refused_by_field() {
    let lab = Lab::start().await;
    lab.server.create(definition()).unwrap();
    let cases = [
        (json!({}), "spec.gatewayIP", "FieldValueRequired"),
        (json!({"gatewayIP": "here"}), "spec.gatewayIP", "FieldValueInvalid"),
        (json!({"gatewayIP": 5}), "spec.gatewayIP", "FieldValueTypeInvalid"),
        (json!({"gatewayIP": "192.168.99.13", "mapping": "None"}), "spec.mapping", "FieldValueNotSupported"),
        (
            json!({"gatewayIP": "192.168.99.13", "egressIPs": ["a", "a"]}),
            "spec.egressIPs[1]",
            "FieldValueDuplicate",
        ),
        (json!({"gatewayIP": "10.0.0.1"}), "spec", "FieldValueInvalid"),
    ];

    for (spec, field, reason) in cases {
        let mut asked = tenant("blue", "");
        asked.data["spec"] = spec.clone();
        let status = refused(lab.tenants().create(&PostParams::default(), &asked).await);
        assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"), "{spec}");
        let cause = &status.details.unwrap().causes[0];
        assert_eq!((cause.field.as_str(), cause.reason.as_str()), (field, reason), "{spec}: {cause:?}");
    }
}

#[tokio::test]
async fn a_rule_compares_with_the_object_before() {
    let lab = Lab::start().await;
    lab.server.create(definition()).unwrap();
    lab.tenants().create(&PostParams::default(), &tenant("blue", "192.168.99.13")).await.unwrap();

    let patch = Patch::Merge(json!({"spec": {"gatewayIP": "192.168.99.14"}}));
    let status = refused(lab.tenants().patch("blue", &PatchParams::default(), &patch).await);

    assert_eq!(status.code, 422);
    assert!(status.message.contains("gatewayIP must not change"), "{}", status.message);
}

#[tokio::test]
async fn status_is_checked_too() {
    let lab = Lab::start().await;
    lab.server.create(definition()).unwrap();
    lab.tenants().create(&PostParams::default(), &tenant("blue", "192.168.99.13")).await.unwrap();

    let patch = Patch::Merge(json!({"status": {"sessions": "many"}}));
    let status = refused(lab.tenants().patch_status("blue", &PatchParams::default(), &patch).await);

    assert_eq!(status.details.unwrap().causes[0].field, "status.sessions");
}

#[tokio::test]
async fn a_replacement_of_a_custom_resource_names_its_version() {
    let lab = Lab::start().await;
    lab.server.create(definition()).unwrap();
    lab.tenants().create(&PostParams::default(), &tenant("blue", "192.168.99.13")).await.unwrap();

    let replaced =
        lab.tenants().replace("blue", &PostParams::default(), &tenant("blue", "192.168.99.13")).await;

    assert_eq!(code(replaced), 422);
}

fn refused(answer: Result<DynamicObject, kube::Error>) -> kube::core::Status {
    match answer {
        Err(kube::Error::Api(status)) => *status,
        other => panic!("a refusal was expected: {other:?}"),
    }
}

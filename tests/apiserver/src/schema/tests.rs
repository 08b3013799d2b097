use serde_json::{Value, json};

use super::CustomSchema;

#[test]
fn a_schema_that_is_not_structural_is_refused_at_its_path() {
    let cases = [
        (json!({"description": "no type"}), "spec.type", "must not be empty"),
        (json!({"type": "string", "$ref": "#/x"}), "spec.$ref", "not supported"),
        (
            json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}),
            "uniqueItems",
            "quadratic",
        ),
        (json!({"type": "string", "readOnly": true}), "readOnly", "not supported"),
        (
            json!({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}),
            "additionalProperties",
            "mutually exclusive",
        ),
        (
            json!({"type": "object", "additionalProperties": false}),
            "additionalProperties",
            "must not be false",
        ),
        (json!({"type": "array"}), "items", "must be specified"),
        (json!({"type": "integer", "default": "x"}), "default", "not of type"),
        (json!({"type": "string", "pattern": "("}), "schema", "regex"),
        (json!({"type": "string", "anyOf": [{"type": "string"}]}), "anyOf[0].type", "structural"),
        (
            json!({"type": "array", "items": {"type": "object", "properties": {}}, "x-kubernetes-list-type": "map"}),
            "x-kubernetes-list-type",
            "must not be empty",
        ),
        (
            json!({"type": "string", "x-kubernetes-validations": [{"rule": "self ==="}]}),
            "x-kubernetes-validations",
            "",
        ),
    ];

    for (spec, field, message) in cases {
        let causes = CustomSchema::read(&root(&spec), "schema").unwrap_err();
        let found = causes.iter().any(|cause| {
            cause.field.replace("properties[spec]", "spec").contains(field) && cause.message.contains(message)
        });
        assert!(found, "{spec}: {causes:?}");
    }
}

#[test]
fn unknown_fields_are_dropped_and_defaults_filled_in() {
    let schema = read(&json!({"type": "object", "properties": {
        "mapping": {"type": "string", "default": "dependent"},
        "limits": {"type": "object", "default": {}, "properties": {"sessions": {"type": "integer", "default": 0}}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }}));
    let mut object =
        json!({"metadata": {"name": "a"}, "spec": {"mapping": null, "extra": 1, "free": {"kept": 1}}});

    let dropped = schema.fill(&mut object);

    assert_eq!(dropped, ["spec.extra"]);
    let spec = json!({"mapping": "dependent", "limits": {"sessions": 0}, "free": {"kept": 1}});
    assert_eq!(object["spec"], spec);
}

#[test]
fn an_object_is_refused_by_field() {
    let schema = read(&json!({"type": "object", "required": ["ip"], "properties": {
        "ip": {"type": "string", "format": "ipv4"},
        "cidrs": {"type": "array", "items": {"type": "string", "format": "cidr"}, "x-kubernetes-list-type": "set"},
        "mode": {"type": "string", "enum": ["a", "b"]},
        "port": {"x-kubernetes-int-or-string": true},
        "maybe": {"type": "string", "nullable": true},
    }, "x-kubernetes-validations": [
        {"rule": "self.ip != '10.0.0.1'", "message": "is taken"},
        {"rule": "self.ip == oldSelf.ip", "message": "must not change"},
    ]}));
    let old = json!({"spec": {"ip": "10.0.0.2"}});
    let cases: [(Value, &[(&str, &str)]); 8] = [
        (json!({"ip": "10.0.0.2", "port": 80, "maybe": null}), &[]),
        (json!({"port": "http"}), &[("spec.ip", "must be set")]),
        (json!({"ip": "10.0.0.256"}), &[("spec.ip", "ipv4")]),
        (json!({"ip": "10.0.0.2", "cidrs": ["10.0.0.0/33"]}), &[("spec.cidrs[0]", "cidr")]),
        (
            json!({"ip": "10.0.0.2", "cidrs": ["10.0.0.0/8", "10.0.0.0/8"]}),
            &[("spec.cidrs[1]", "10.0.0.0/8")],
        ),
        (json!({"ip": "10.0.0.2", "mode": "c"}), &[("spec.mode", "one of")]),
        (json!({"ip": "10.0.0.1"}), &[("spec", "is taken"), ("spec", "must not change")]),
        (json!({"ip": "10.0.0.2", "port": []}), &[("spec.port", "type")]),
    ];

    for (spec, expected) in cases {
        let causes = schema.refuse(&json!({"spec": spec}), Some(&old));
        assert_eq!(causes.len(), expected.len(), "{spec}: {causes:?}");
        for (cause, (field, message)) in causes.iter().zip(expected) {
            assert!(cause.field == *field && cause.message.contains(message), "{spec}: {cause:?}");
        }
    }
}

fn read(spec: &Value) -> CustomSchema {
    CustomSchema::read(&root(spec), "schema").unwrap()
}

fn root(spec: &Value) -> Value {
    json!({"type": "object", "properties": {"spec": spec}})
}

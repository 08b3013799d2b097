//! The schema: what an API server demands of it, and that it agrees with what the gateway takes.

use kube::CustomResourceExt;
use kube_cel::{ScopeContext, analyze_rule, apply_defaults, compile_schema};

use super::*;
use crate::kubernetes::egress_tenant::{EgressTenant, crd_yaml};
use crate::kubernetes::objects::TenantObject;

#[test]
fn what_the_schema_refuses_the_gateway_refuses_too() {
    let many = |count: usize| (0..count).map(|index| format!("192.0.{}.{}", index / 250, index % 250 + 1));
    let table = [
        json!({ "gatewayIP": "192.168.99.300" }),
        json!({ "gatewayIP": "::ffff:192.168.99.13" }),
        json!({ "gatewayIP": 7 }),
        json!({ "gatewayIP": null }),
        json!({ "gatewayMAC": "02:53:c0:a8:63" }),
        json!({ "gatewayMAC": "03:53:c0:a8:63:0d" }),
        json!({ "egressIPs": [] }),
        json!({ "egressIPs": ["x"] }),
        json!({ "egressIPs": ["192.168.55.113", "192.168.55.113"] }),
        json!({ "egressIPs": ["192.168.55.113", "192.168.99.13"] }),
        json!({ "egressIPs": many(MAX_EGRESS_IPS + 1).collect::<Vec<_>>() }),
        json!({ "sources": { "podCIDRs": ["10.132.0.0"] } }),
        json!({ "sources": { "podCIDRs": ["10.132.0.0/33"] } }),
        json!({ "sources": { "podCIDRs": ["fd01::/64"] } }),
        json!({ "sources": { "podCIDRs": many(MAX_POD_CIDRS + 1).map(|address| format!("{address}/32")).collect::<Vec<_>>() } }),
        json!({ "sources": { "podCIDRs": ["10.132.0.0/14"], "nodes": true } }),
        json!({ "sources": { "fromPolicy": true, "nodes": true } }),
        json!({ "sources": { "nodes": "yes" } }),
        json!({ "mapping": "Any" }),
        json!({ "filtering": "AddressDependent" }),
        json!({ "filtering": "EndpointIndependent", "mapping": "AddressAndPortDependent" }),
        json!({ "limits": { "sessions": -1 } }),
        json!({ "limits": { "sessions": 4_294_967_296_u64 } }),
        json!({ "limits": { "ports": 1.5 } }),
        json!({ "mssClamp": 535 }),
        json!({ "mssClamp": 9001 }),
        json!({ "drainSeconds": 604_801 }),
    ];
    for change in table {
        let spec = with(&change);
        assert!(check_by_schema(&spec).is_err(), "the schema takes {change}");
        assert!(read(&spec).is_err(), "the gateway takes {change}");
    }
}

#[test]
fn what_the_gateway_takes_the_schema_takes_too() {
    let table = [
        json!({}),
        json!({ "gatewayMAC": "02:53:C0:a8:63:0d" }),
        json!({ "egressIPs": ["192.168.55.113", "192.168.55.115"] }),
        json!({ "sources": {} }),
        json!({ "sources": { "podCIDRs": ["10.132.0.0/14", "10.140.0.0/16"], "nodes": false } }),
        json!({ "sources": { "fromPolicy": true } }),
        json!({ "sources": { "nodes": true } }),
        json!({ "filtering": "AddressDependent", "mapping": "EndpointIndependent" }),
        json!({ "filtering": "AddressAndPortDependent" }),
        json!({ "limits": { "sessions": 4_294_967_295_u32, "portsPerPod": 5 } }),
        json!({ "mssClamp": 0 }),
        json!({ "mssClamp": 536 }),
        json!({ "mssClamp": 9000 }),
        json!({ "drainSeconds": 604_800 }),
    ];
    for change in table {
        let spec = with(&change);
        assert_eq!(check_by_schema(&spec), Ok(()), "{change}");
        assert_eq!(read(&apply_defaults(&spec_schema(), &spec)), read(&spec), "defaults differ for {change}");
        assert!(read(&spec).is_ok(), "{change}");
    }
}

#[test]
fn the_schema_is_structural() {
    let root = schema();
    let mut nodes = 0;
    walk(&root, "", &mut |path, node| {
        nodes += 1;
        let allowed = [
            "default",
            "description",
            "enum",
            "format",
            "items",
            "maxItems",
            "maxLength",
            "maximum",
            "minItems",
            "minimum",
            "nullable",
            "pattern",
            "properties",
            "required",
            "title",
            "type",
            "x-kubernetes-list-map-keys",
            "x-kubernetes-list-type",
            "x-kubernetes-validations",
        ];
        for key in node.as_object().unwrap().keys() {
            assert!(allowed.contains(&key.as_str()), "{path}: {key}");
        }
        assert!(node["type"].is_string(), "{path}: no type");
        assert!(
            path.is_empty() || node["description"].is_string() || path.ends_with("[]"),
            "{path}: no description"
        );
    });
    assert!(nodes > 40);
}

#[test]
fn integers_have_formats_that_the_api_knows() {
    walk(&schema(), "", &mut |path, node| {
        if node["type"] == "integer" {
            assert!(node["format"] == "int32" || node["format"] == "int64", "{path}: {}", node["format"]);
        }
    });
}

#[test]
fn everything_in_a_specification_is_bounded() {
    walk(&spec_schema(), "spec", &mut |path, node| {
        let bound = match node["type"].as_str().unwrap() {
            "string" => "maxLength",
            "array" => "maxItems",
            "integer" => "maximum",
            _ => "type",
        };
        assert!(!node[bound].is_null(), "{path}: no {bound}");
    });
}

#[test]
fn defaults_are_valid() {
    walk(&schema(), "", &mut |path, node| {
        if let Some(default) = node.get("default") {
            assert!(validator(node).is_valid(default), "{path}: {default}");
        }
    });
    walk(&schema()["properties"]["status"], "status", &mut |path, node| {
        assert_eq!(node.get("default"), None, "{path}");
    });
}

#[test]
fn conditions_are_a_map_by_type() {
    let conditions = &schema()["properties"]["status"]["properties"]["conditions"];
    assert_eq!(conditions["x-kubernetes-list-type"], "map");
    assert_eq!(conditions["x-kubernetes-list-map-keys"], json!(["type"]));
}

#[test]
fn rules_compile_and_are_cheap() {
    let mut rules = 0;
    walk(&schema(), "", &mut |path, node| {
        let compiled = compile_schema(node);
        assert!(!compiled.has_errors(), "{path}");
        for rule in node["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let warnings =
                analyze_rule(rule["rule"].as_str().unwrap(), &compiled, ScopeContext::CrdValidation);
            assert_eq!(warnings, [], "{path}");
            rules += 1;
        }
    });
    assert_eq!(rules, 4);
}

#[test]
fn the_manifest_is_what_the_command_prints() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crd.yaml");
    let committed = std::fs::read_to_string(path).unwrap();
    let renew = "renew it: cargo run -q -p control -- crd > deploy/crd.yaml";
    assert!(committed == crd_yaml().unwrap(), "deploy/crd.yaml is not what `spillway crd` prints; {renew}");
}

fn check_by_schema(spec: &Value) -> Result<(), String> {
    let schema = spec_schema();
    let spec = apply_defaults(&schema, spec);
    validator(&schema).validate(&spec).map_err(|error| error.to_string())?;
    let egress = spec["egressIPs"].as_array().unwrap(); // uniqueness of a list-type set is outside of JSON Schema
    if egress.iter().enumerate().any(|(index, address)| egress[..index].contains(address)) {
        return Err("egressIPs: duplicate".into());
    }
    kube_cel::validate(&schema, &spec, None).map_err(|errors| errors.to_string())
}

fn validator(schema: &Value) -> jsonschema::Validator {
    let is_cidr = |text: &str| text.parse::<ipnet::IpNet>().is_ok();
    let options = jsonschema::draft4::options().should_validate_formats(true).with_format("cidr", is_cidr);
    options.build(schema).unwrap()
}

fn read(spec: &Value) -> Result<crate::tenant::Tenant, crate::refusal::Refusal> {
    let object = json!({ "metadata": { "name": "ns-blue" }, "spec": spec });
    TenantObject::read(&serde_json::from_value(object).unwrap()).tenant
}

fn with(change: &Value) -> Value {
    let mut spec = json!({ "gatewayIP": "192.168.99.13", "egressIPs": ["192.168.55.113"] });
    spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    spec
}

fn schema() -> Value {
    let crd = serde_json::to_value(EgressTenant::crd()).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

fn spec_schema() -> Value {
    schema()["properties"]["spec"].clone()
}

/// Visits a schema and all schemas in it.
fn walk(node: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, node);
    for (name, property) in node["properties"].as_object().into_iter().flatten() {
        walk(property, &format!("{path}.{name}"), visit);
    }
    if let Some(items) = node.get("items") {
        walk(items, &format!("{path}[]"), visit);
    }
}

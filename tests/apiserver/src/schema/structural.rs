//! What a definition's schema may say (Kubernetes, "Specifying a structural schema").

use serde_json::Value;

use super::{below, flag};
use crate::error::Cause;

const FORBIDDEN: [&str; 12] = [
    "$ref",
    "definitions",
    "dependencies",
    "deprecated",
    "discriminator",
    "id",
    "patternProperties",
    "readOnly",
    "writeOnly",
    "xml",
    "$schema",
    "additionalItems",
];
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Returns what a server refuses about a schema, but for its defaults.
pub(super) fn check(schema: &Value, path: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    if schema["type"] != "object" {
        causes.push(Cause::invalid(below(path, "type"), "must be object at the root"));
    }
    let metadata = schema["properties"]["metadata"].as_object().into_iter().flatten();
    for (key, _) in metadata.filter(|(key, _)| !["type", "description", "properties"].contains(&key.as_str()))
    {
        let path = format!("{path}.properties[metadata].{key}");
        causes.push(Cause::forbidden(
            path,
            "must not be specified: only name and generateName may be restricted",
        ));
    }
    check_node(schema, path, &mut causes);
    causes
}

/// Returns the defaults that their own part of the schema refuses, as `refuses` says.
pub(super) fn check_defaults(
    schema: &Value,
    path: &str,
    refuses: &dyn Fn(&Value, &Value) -> Option<String>,
) -> Vec<Cause> {
    let mut causes: Vec<_> = children(schema, path)
        .into_iter()
        .flat_map(|(path, part)| check_defaults(part, &path, refuses))
        .collect();
    if let Some(value) = schema.get("default")
        && let Some(message) = refuses(schema, value)
    {
        causes.push(Cause::invalid(below(path, "default"), message));
    }
    causes
}

fn check_node(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let Some(fields) = schema.as_object() else {
        causes.push(Cause::invalid(path, "must be a schema"));
        return;
    };
    for key in FORBIDDEN.iter().filter(|key| fields.contains_key(**key)) {
        causes.push(Cause::forbidden(below(path, key), "is not supported"));
    }
    if flag(schema, "uniqueItems") {
        causes.push(Cause::forbidden(
            below(path, "uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    check_type(schema, path, causes);
    check_object(schema, path, causes);
    check_list(schema, path, causes);
    check_rules(schema, path, causes);
    for key in ["allOf", "anyOf", "oneOf"] {
        for (index, part) in schema[key].as_array().into_iter().flatten().enumerate() {
            check_branch(part, schema, &format!("{}[{index}]", below(path, key)), causes);
        }
    }
    if let Some(part) = fields.get("not") {
        check_branch(part, schema, &below(path, "not"), causes);
    }
    for (path, part) in children(schema, path) {
        check_node(part, &path, causes);
    }
}

/// Returns the parts of a schema that describe parts of the object.
fn children<'a>(schema: &'a Value, path: &str) -> Vec<(String, &'a Value)> {
    let mut found: Vec<_> = schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(field, part)| (format!("{}[{field}]", below(path, "properties")), part))
        .collect();
    found.extend(schema.get("items").map(|part| (below(path, "items"), part)));
    let rest = schema.get("additionalProperties").filter(|rest| !rest.is_boolean());
    found.extend(rest.map(|part| (below(path, "additionalProperties"), part)));
    found
}

fn check_type(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let path = below(path, "type");
    let open = flag(schema, "x-kubernetes-preserve-unknown-fields");
    match schema.get("type").and_then(Value::as_str) {
        Some(_) if flag(schema, "x-kubernetes-int-or-string") => {
            causes.push(Cause::invalid(path, "must be empty if x-kubernetes-int-or-string is true"));
        }
        Some(name) if !TYPES.contains(&name) => {
            causes.push(Cause::invalid(path, format!("must be one of {}: {name}", TYPES.join(", "))));
        }
        Some(_) => {}
        None if open || flag(schema, "x-kubernetes-int-or-string") => {}
        None => causes.push(Cause::required(path, "must not be empty for specified fields")),
    }
}

fn check_object(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let rest = schema.get("additionalProperties");
    if rest == Some(&Value::Bool(false)) {
        causes.push(Cause::forbidden(below(path, "additionalProperties"), "must not be false"));
    }
    if rest.is_some() && schema.get("properties").is_some() {
        causes.push(Cause::forbidden(
            below(path, "additionalProperties"),
            "mutually exclusive with properties",
        ));
    }
    if (rest.is_some() || schema.get("properties").is_some()) && schema["type"] != "object" {
        causes.push(Cause::invalid(below(path, "type"), "must be object where properties are specified"));
    }
    if schema["type"] == "array" && schema.get("items").is_none() {
        causes.push(Cause::required(below(path, "items"), "must be specified"));
    }
    if schema.get("items").is_some_and(Value::is_array) {
        causes.push(Cause::forbidden(below(path, "items"), "items must be a schema object and not an array"));
    }
}

fn check_list(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let Some(kind) = schema.get("x-kubernetes-list-type") else { return };
    let path = below(path, "x-kubernetes-list-type");
    if schema["type"] != "array" {
        causes.push(Cause::invalid(path.clone(), "must be array if x-kubernetes-list-type is specified"));
    }
    let items = &schema["items"];
    match kind.as_str() {
        Some("atomic") => {}
        Some("set") => {
            let scalar = !["object", "array"].iter().any(|name| items["type"] == *name);
            let atomic =
                items["x-kubernetes-map-type"] == "atomic" || items["x-kubernetes-list-type"] == "atomic";
            if !scalar && !atomic {
                causes.push(Cause::invalid(path, "items of a set must be scalar or atomic"));
            }
        }
        Some("map") => {
            let keys: Vec<_> =
                schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().collect();
            if keys.is_empty() {
                causes.push(Cause::required(path, "x-kubernetes-list-map-keys must not be empty for a map"));
            }
            for key in keys.into_iter().filter_map(Value::as_str) {
                check_map_key(items, key, causes);
            }
        }
        Some(_) | None => causes.push(Cause::invalid(path, "must be one of atomic, set, map")),
    }
}

fn check_map_key(items: &Value, key: &str, causes: &mut Vec<Cause>) {
    let field = format!("items.properties[{key}]");
    let required = items["required"].as_array().is_some_and(|names| names.iter().any(|name| name == key));
    match items["properties"].get(key) {
        None => causes.push(Cause::invalid(field, "a key of a map must be a property of its items")),
        Some(part) if !required && part.get("default").is_none() => {
            causes.push(Cause::required(field, "a key of a map must be required or have a default"));
        }
        Some(_) => {}
    }
}

fn check_rules(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let alone = serde_json::json!({"x-kubernetes-validations": schema.get("x-kubernetes-validations")});
    for error in kube_cel::compile_schema(&alone).compilation_errors() {
        causes.push(Cause::invalid(below(path, "x-kubernetes-validations"), error.to_string()));
    }
}

/// Checks a branch of `allOf`, `anyOf`, `oneOf` or `not`: it restricts fields that are specified outside of it.
fn check_branch(branch: &Value, outside: &Value, path: &str, causes: &mut Vec<Cause>) {
    let either = flag(outside, "x-kubernetes-int-or-string");
    for key in ["type", "default", "description", "additionalProperties", "nullable"] {
        if branch.get(key).is_some() && !(either && key == "type") {
            causes.push(Cause::forbidden(below(path, key), "must be empty to be structural"));
        }
    }
    for (field, part) in branch["properties"].as_object().into_iter().flatten() {
        let path = format!("{}[{field}]", below(path, "properties"));
        match outside["properties"].get(field) {
            Some(outside) => check_branch(part, outside, &path, causes),
            None => causes.push(Cause::required(path, "must be specified outside of the branch as well")),
        }
    }
    if let Some(part) = branch.get("items") {
        check_branch(part, &outside["items"], &below(path, "items"), causes);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (index, part) in branch[key].as_array().into_iter().flatten().enumerate() {
            check_branch(part, outside, &format!("{}[{index}]", below(path, key)), causes);
        }
    }
}

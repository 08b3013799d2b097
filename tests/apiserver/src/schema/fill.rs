//! Pruning and defaulting (Kubernetes, "Field pruning" and "Defaulting").

use serde_json::Value;

use super::{below, flag};

/// Drops fields that the schema does not name; the root keeps `apiVersion`, `kind` and `metadata`.
pub(super) fn prune(schema: &Value, value: &mut Value, path: &str, root: bool, dropped: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                prune(&schema["items"], item, &format!("{path}[{index}]"), false, dropped);
            }
        }
        Value::Object(fields) => {
            let keep_all =
                flag(schema, "x-kubernetes-preserve-unknown-fields") || flag(schema, "additionalProperties");
            let own = |field: &str| root && ["apiVersion", "kind", "metadata"].contains(&field);
            fields.retain(|field, value| {
                if own(field) {
                    return true;
                }
                let rest = Some(&schema["additionalProperties"]).filter(|rest| rest.is_object());
                match schema["properties"].get(field).or(rest) {
                    Some(part) => prune(part, value, &below(path, field), false, dropped),
                    None if keep_all => {}
                    None => {
                        dropped.push(below(path, field));
                        return false;
                    }
                }
                true
            });
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Fills in defaults; a null that the schema does not allow counts as a missing field.
pub(super) fn default(schema: &Value, value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| default(&schema["items"], item)),
        Value::Object(fields) => {
            for (field, part) in schema["properties"].as_object().into_iter().flatten() {
                if fields.get(field).is_some_and(Value::is_null) && !flag(part, "nullable") {
                    fields.remove(field);
                }
                if let Some(value) = part.get("default") {
                    fields.entry(field.clone()).or_insert_with(|| value.clone());
                }
                if let Some(value) = fields.get_mut(field) {
                    default(part, value);
                }
            }
            let rest = &schema["additionalProperties"];
            if rest.is_object() {
                fields.values_mut().for_each(|value| default(rest, value));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

//! Lists whose items must differ: `x-kubernetes-list-type` `set` and `map`.

use serde_json::Value;

use super::below;
use crate::error::Cause;

/// Adds a cause for every item that repeats an earlier one.
pub(super) fn check(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    match value {
        Value::Array(items) => {
            let identities: Vec<_> = items.iter().map(|item| identity(schema, item)).collect();
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                if let Some(own) = &identities[index]
                    && identities[..index].contains(&Some(own.clone()))
                {
                    causes.push(Cause::duplicate(path.clone(), own.to_string()));
                }
                check(&schema["items"], item, &path, causes);
            }
        }
        Value::Object(fields) => {
            for (field, value) in fields {
                let part = schema["properties"].get(field).unwrap_or(&schema["additionalProperties"]);
                check(part, value, &below(path, field), causes);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn identity(schema: &Value, item: &Value) -> Option<Value> {
    match schema["x-kubernetes-list-type"].as_str()? {
        "set" => Some(item.clone()),
        "map" => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
            let keys = keys.filter_map(Value::as_str).map(|key| (key.to_owned(), item[key].clone()));
            Some(Value::Object(keys.collect()))
        }
        _ => None,
    }
}

//! Server-side apply in a simple form: who applied which fields (Kubernetes, "Server-Side Apply").
//!
//! A manager that no longer applies a field takes it away, unless another manager applies it too. What a real server
//! does besides is missing: no conflict is ever told, plain updates own nothing, and a list is one field.

use serde_json::{Map, Value, json};

use super::metadata::now;

/// Lays an applied object over the one that is there, and takes away what its manager applied before.
pub(crate) fn apply(object: &mut Value, applied: &Value, manager: &str, status: bool) {
    let fields = fields_of(applied, status);
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let same = |entry: &Value| entry["manager"] == manager && (entry["subresource"] == "status") == status;
    let (own, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(same);
    if let Some(before) = own.first() {
        let others: Vec<_> = others.iter().map(|entry| &entry["fieldsV1"]).collect();
        withdraw(object, &before["fieldsV1"], &fields, &others);
    }
    json_patch::merge(object, applied);
    let mut entry = json!({
        "manager": manager, "operation": "Apply", "apiVersion": applied["apiVersion"], "time": now(),
        "fieldsType": "FieldsV1", "fieldsV1": fields,
    });
    if status {
        entry["subresource"] = "status".into();
    }
    if let Some(before) = own.into_iter().next().filter(|before| before["fieldsV1"] == entry["fieldsV1"]) {
        entry["time"] = before["time"].clone();
    }
    object["metadata"]["managedFields"] = others.into_iter().chain([entry]).collect();
}

fn fields_of(applied: &Value, status: bool) -> Value {
    let mut own = applied.as_object().cloned().unwrap_or_default();
    own.retain(|key, _| {
        if status { key == "status" } else { !["apiVersion", "kind", "status"].contains(&key.as_str()) }
    });
    if let Some(metadata) = own.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| ["labels", "annotations", "finalizers"].contains(&key.as_str()));
    }
    fields(&Value::Object(own))
}

fn fields(value: &Value) -> Value {
    let nested = value.as_object().into_iter().flatten();
    Value::Object(nested.map(|(key, value)| (format!("f:{key}"), fields(value))).collect::<Map<_, _>>())
}

fn withdraw(object: &mut Value, before: &Value, now: &Value, others: &[&Value]) {
    for (field, nested) in before.as_object().into_iter().flatten() {
        let Some(own) = object.as_object_mut() else { return };
        let key = field.trim_start_matches("f:");
        let theirs: Vec<_> = others.iter().filter_map(|other| other.get(field)).collect();
        let still = now.get(field);
        if still.is_none() && theirs.is_empty() {
            own.remove(key);
        } else if let Some(value) = own.get_mut(key) {
            withdraw(value, nested, still.unwrap_or(&Value::Null), &theirs);
        }
    }
}

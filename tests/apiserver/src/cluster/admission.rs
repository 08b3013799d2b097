//! What the server asks of an object of a kind before it keeps it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Cluster;
use super::definition;
use super::resource::{DEFINITIONS, Form, Resource};
use super::store::{Key, Object};
use super::write::Terms;
use crate::error::{ApiError, Cause};

impl Cluster {
    /// Refuses objects in namespaces that are missing or being deleted.
    pub(crate) fn check_namespace(&self, resource: &Resource, key: &Key) -> Result<(), ApiError> {
        if !resource.namespaced {
            return Ok(());
        }
        let home = Key { namespace: String::new(), name: key.namespace.clone() };
        match self.store.get("namespaces", &home) {
            None => Err(ApiError::not_found("", "namespaces", &key.namespace)),
            Some(namespace) if namespace.metadata().contains_key("deletionTimestamp") => {
                Err(ApiError::forbidden(format!(
                    "{} \"{}\" is forbidden: unable to create new content in namespace {} because it is being \
                     terminated",
                    resource.id, key.name, key.namespace,
                )))
            }
            Some(_) => Ok(()),
        }
    }

    /// Brings a kept definition, or one that was changed, into service.
    pub(crate) fn serve_definition(&mut self, resource: &Resource, object: &Arc<Object>) {
        if resource.id != DEFINITIONS {
            return;
        }
        let defined = definition::read(&mut object.value.clone()).expect("a kept definition was read before");
        self.registry.add(defined);
    }
}

/// Brings an object into the form that is kept, or refuses it.
///
/// # Errors
/// 400 when a value has a wrong type, or is unknown where that is refused; 422 with its causes.
pub(crate) fn admit(
    resource: &Resource,
    object: &mut Value,
    old: Option<&Value>,
    terms: &Terms,
) -> Result<(), ApiError> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let invalid = |causes: &[Cause]| ApiError::invalid(&resource.group, &resource.kind, &name, causes);
    let causes = match &resource.form {
        Form::Typed(through) => {
            let kind = &resource.kind;
            *object = through(object.take()).map_err(|error| {
                ApiError::bad_request(format!(
                    "{kind} in version \"v1\" cannot be handled as a {kind}: {error}"
                ))
            })?;
            typed(resource, object)
        }
        Form::Free if resource.id == DEFINITIONS => match definition::read(object) {
            Ok(_) => {
                definition::establish(object);
                Vec::new()
            }
            Err(causes) => causes,
        },
        Form::Free => Vec::new(),
        Form::Custom(schema) => {
            let dropped = schema.fill(object);
            if terms.strict && !dropped.is_empty() {
                let unknown: Vec<_> =
                    dropped.iter().map(|field| format!("unknown field \"{field}\"")).collect();
                let message = format!("strict decoding error: {}", unknown.join(", "));
                return Err(ApiError::bad_request(message));
            }
            schema.refuse(object, old)
        }
    };
    if causes.is_empty() { Ok(()) } else { Err(invalid(&causes)) }
}

/// Sets what a new object starts with, whatever its client says.
pub(crate) fn start(resource: &Resource, object: &mut Value, terms: &Terms) {
    if resource.id == "namespaces" {
        let name = object["metadata"]["name"].clone();
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        object["spec"]["finalizers"] = json!(["kubernetes"]);
        object["status"] = json!({"phase": "Active"});
        return;
    }
    // Nodes may be created with their status: the kubelet registers itself so.
    if terms.seed || !resource.status || resource.id == "nodes" {
        return;
    }
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if resource.id == "pods" {
        object["status"] = json!({"phase": "Pending"});
    }
}

fn typed(resource: &Resource, object: &Value) -> Vec<Cause> {
    match resource.id.as_str() {
        "events" => event_place(object, "involvedObject"),
        "events.events.k8s.io" => {
            let mut causes = event_place(object, "regarding");
            let missing = |key: &str| object[key].as_str().unwrap_or_default().is_empty();
            for key in ["reportingController", "reportingInstance", "action", "reason", "eventTime"] {
                if missing(key) {
                    causes.push(Cause::required(key, "must be set"));
                }
            }
            for (key, limit) in [("reason", 128), ("action", 128), ("note", 1024)] {
                if object[key].as_str().unwrap_or_default().len() > limit {
                    causes.push(Cause::invalid(key, format!("can have at most {limit} characters")));
                }
            }
            if !["Normal", "Warning"].iter().any(|kind| object["type"] == *kind) {
                causes.push(Cause::invalid("type", "has invalid value: must be Normal or Warning"));
            }
            causes
        }
        _ => Vec::new(),
    }
}

/// An event stands in its object's namespace, or in `default` where the object has none.
fn event_place(object: &Value, about: &str) -> Vec<Cause> {
    let own = object["metadata"]["namespace"].as_str().unwrap_or_default();
    match object[about]["namespace"].as_str().unwrap_or_default() {
        "" if ["default", "kube-system"].contains(&own) => Vec::new(),
        theirs if theirs == own => Vec::new(),
        _ => vec![Cause::invalid(format!("{about}.namespace"), "does not match event.namespace")],
    }
}

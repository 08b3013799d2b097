//! Custom resource definitions: what a server asks of them, and the resource that one adds.

use serde_json::{Value, json};

use super::metadata::now;
use super::resource::{Form, Resource, identity};
use crate::error::Cause;
use crate::schema::CustomSchema;

/// Fills in what a definition leaves out, and returns the resource that it defines.
///
/// One served version is all that this server knows: it converts nothing.
///
/// # Errors
/// What a server refuses about the definition.
pub(crate) fn read(object: &mut Value) -> Result<Resource, Vec<Cause>> {
    fill_names(object);
    let spec = &object["spec"];
    let mut causes = refuse_names(object);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    let served: Vec<_> = spec["versions"].as_array().into_iter().flatten().enumerate().collect();
    let [(index, version)] = served.as_slice() else {
        causes.push(Cause::invalid("spec.versions", "exactly one version is served by this server"));
        return Err(causes);
    };
    let path = format!("spec.versions[{index}]");
    for key in ["served", "storage"] {
        if version[key] != true {
            causes.push(Cause::invalid(format!("{path}.{key}"), "must be true of the only version"));
        }
    }
    let path = format!("{path}.schema.openAPIV3Schema");
    let schema = match version["schema"].get("openAPIV3Schema") {
        Some(schema) => CustomSchema::read(schema, &path),
        None => Err(vec![Cause::required(path, "schemas are required")]),
    };
    match schema {
        Ok(schema) if causes.is_empty() => Ok(Resource {
            id: identity(&group, &plural),
            version: text(&version["name"]),
            singular: text(&spec["names"]["singular"]),
            kind: text(&spec["names"]["kind"]),
            short_names: spec["names"]["shortNames"].as_array().into_iter().flatten().map(text).collect(),
            namespaced: spec["scope"] == "Namespaced",
            status: version["subresources"].get("status").is_some(),
            form: Form::Custom(Box::new(schema)),
            group,
            plural,
        }),
        Ok(_) => Err(causes),
        Err(wrong) => Err(causes.into_iter().chain(wrong).collect()),
    }
}

/// Writes the status that a server's controllers give to a definition that they accept.
pub(crate) fn establish(object: &mut Value) {
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()});
    if object["status"]["conditions"].is_array() {
        object["status"]["acceptedNames"] = object["spec"]["names"].clone();
        return;
    }
    object["status"] = json!({
        "acceptedNames": object["spec"]["names"],
        "storedVersions": [object["spec"]["versions"][0]["name"]],
        "conditions": [
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
    });
}

fn fill_names(object: &mut Value) {
    let kind = object["spec"]["names"]["kind"].as_str().unwrap_or_default().to_owned();
    let Some(names) = object["spec"]["names"].as_object_mut() else { return };
    names.entry("singular").or_insert_with(|| kind.to_lowercase().into());
    names.entry("listKind").or_insert_with(|| format!("{kind}List").into());
    let spec = &mut object["spec"];
    if spec.get("conversion").is_none() {
        spec["conversion"] = json!({"strategy": "None"});
    }
}

fn refuse_names(object: &Value) -> Vec<Cause> {
    let spec = &object["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural, kind) =
        (text(&spec["group"]), text(&spec["names"]["plural"]), text(&spec["names"]["kind"]));
    let mut causes = Vec::new();
    if group.is_empty() || !group.contains('.') {
        causes.push(Cause::invalid("spec.group", "should be a domain with at least one dot"));
    }
    if ["k8s.io", "kubernetes.io"].iter().any(|end| group == *end || group.ends_with(&format!(".{end}")))
        && object["metadata"]["annotations"].get("api-approved.kubernetes.io").is_none()
    {
        let field = "metadata.annotations[api-approved.kubernetes.io]";
        causes.push(Cause::required(field, "protected groups must have approval"));
    }
    if plural.is_empty() || plural != plural.to_lowercase() {
        causes.push(Cause::invalid("spec.names.plural", "must be set, in lower case"));
    }
    if kind.is_empty() {
        causes.push(Cause::required("spec.names.kind", "must be set"));
    }
    if !["Cluster", "Namespaced"].iter().any(|scope| spec["scope"] == *scope) {
        causes.push(Cause::invalid("spec.scope", "must be Cluster or Namespaced"));
    }
    if object["metadata"]["name"] != identity(&group, &plural) {
        causes.push(Cause::invalid("metadata.name", "must be spec.names.plural+\".\"+spec.group"));
    }
    causes
}

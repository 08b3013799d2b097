//! Object metadata: what clients may say, and what the server says (API conventions, "Metadata").

use std::time::UNIX_EPOCH;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::resource::Resource;
use super::store::Key;
use crate::error::{ApiError, Cause};

/// Fields of metadata that the server alone writes.
const OWN: [&str; 6] = [
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "managedFields",
];

/// Checks that an object is of the resource that the request is about, and that its metadata can be read.
///
/// # Errors
/// 400, as the API says it.
pub(crate) fn check_kind(resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    let (version, kind) = (resource.api_version(), &resource.kind);
    let own = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    if own("apiVersion") != version || own("kind") != kind {
        return Err(ApiError::bad_request(format!(
            "the object provided is a {} of {}, and the request is about a {kind} of {version}",
            own("kind"),
            own("apiVersion"),
        )));
    }
    let metadata = object.get("metadata").cloned().unwrap_or_else(|| json!({}));
    let metadata: ObjectMeta = serde_json::from_value(metadata)
        .map_err(|error| ApiError::bad_request(format!("{kind} cannot be handled: metadata: {error}")))?;
    object["metadata"] = serde_json::to_value(metadata).expect("metadata that was read can be written");
    Ok(())
}

/// Returns where a new object belongs, once a name was made for one that asks for that.
///
/// # Errors
/// 400 when the namespace is not the request's; 422 when the name is missing or malformed.
pub(crate) fn place(resource: &Resource, namespace: &str, object: &mut Value) -> Result<Key, ApiError> {
    let metadata = &mut object["metadata"];
    let said = metadata["namespace"].as_str().unwrap_or_default();
    if resource.namespaced && !said.is_empty() && said != namespace
        || !resource.namespaced && !said.is_empty()
    {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if metadata["name"].as_str().unwrap_or_default().is_empty()
        && let Some(prefix) = metadata["generateName"].as_str().filter(|prefix| !prefix.is_empty())
    {
        metadata["name"] = format!("{prefix}{}", suffix()).into();
    }
    let name = metadata["name"].as_str().unwrap_or_default().to_owned();
    let causes = refuse_name(resource, &name);
    if !causes.is_empty() {
        return Err(ApiError::invalid(&resource.group, &resource.kind, &name, &causes));
    }
    if resource.namespaced {
        metadata["namespace"] = namespace.into();
    }
    Ok(Key { namespace: if resource.namespaced { namespace.to_owned() } else { String::new() }, name })
}

/// Writes the metadata of a new object.
pub(crate) fn begin(resource: &Resource, object: &mut Value) {
    let metadata = object["metadata"].as_object_mut().expect("metadata was read before");
    metadata.retain(|key, _| !OWN.contains(&key.as_str()) && key != "selfLink" && key != "resourceVersion");
    metadata.insert("uid".into(), uid().into());
    metadata.insert("creationTimestamp".into(), now().into());
    if has_generation(resource) {
        metadata.insert("generation".into(), 1.into());
    }
}

/// Keeps the metadata that no client may change, and drops what it tried.
pub(crate) fn keep(old: &Value, object: &mut Value) {
    let metadata = object["metadata"].as_object_mut().expect("metadata was read before");
    for key in OWN.into_iter().chain(["name", "namespace", "generateName", "resourceVersion"]) {
        match old["metadata"].get(key) {
            Some(value) => metadata.insert(key.into(), value.clone()),
            None => metadata.remove(key),
        };
    }
}

/// Raises the generation when something else than metadata and status differs.
pub(crate) fn raise_generation(resource: &Resource, old: &Value, object: &mut Value) {
    if !has_generation(resource) {
        return;
    }
    let desired = |object: &Value| {
        let mut fields = object.as_object().cloned().unwrap_or_default();
        fields.remove("metadata");
        if resource.status {
            fields.remove("status");
        }
        fields
    };
    if desired(old) != desired(object) {
        advance(object);
    }
}

/// Marks an object as being deleted.
pub(crate) fn mark_deleted(resource: &Resource, object: &mut Value, grace_seconds: u64) {
    object["metadata"]["deletionTimestamp"] = now().into();
    object["metadata"]["deletionGracePeriodSeconds"] = grace_seconds.into();
    if has_generation(resource) {
        advance(object);
    }
}

/// Returns whether finalizers keep an object from being removed.
pub(crate) fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
}

/// Returns the time as the API writes it: RFC 3339, whole seconds.
pub(crate) fn now() -> String {
    let since_1970 = UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs());
    let time =
        Timestamp::from_second(since_1970.cast_signed()).expect("the clock is within the years of the API");
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn advance(object: &mut Value) {
    let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
    object["metadata"]["generation"] = (generation + 1).into();
}

fn has_generation(resource: &Resource) -> bool {
    resource.is_custom() || ["apiextensions.k8s.io", "apps"].contains(&resource.group.as_str())
}

fn refuse_name(resource: &Resource, name: &str) -> Vec<Cause> {
    if name.is_empty() {
        return vec![Cause::required("metadata.name", "name or generateName is required")];
    }
    let label = |part: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    // RBAC names are path segments: system:node is one.
    let fine = match resource.group.as_str() {
        "rbac.authorization.k8s.io" => !name.contains(['/', '%']) && name != "." && name != "..",
        _ if resource.id == "namespaces" => label(name) && name.len() <= 63,
        _ => name.split('.').all(label) && name.len() <= 253,
    };
    if fine {
        return Vec::new();
    }
    let rule = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
                must start and end with an alphanumeric character";
    vec![Cause::invalid("metadata.name", format!("{name:?}: {rule}"))]
}

fn uid() -> String {
    let bits: u128 = rand::random();
    // RFC 9562: version 4 and the variant in their places.
    let bits = bits & !(0xf000_u128 << 64) & !(0xc000_u128 << 48) | 0x4000_u128 << 64 | 0x8000_u128 << 48;
    let text = format!("{bits:032x}");
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

/// Returns the five letters that end a generated name; those that could form words are left out.
fn suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let letter = |_| char::from(LETTERS[usize::from(rand::random::<u8>()) % LETTERS.len()]);
    (0..5).map(letter).collect()
}

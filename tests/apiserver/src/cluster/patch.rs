//! Patches: JSON merge patch (RFC 7396), JSON patch (RFC 6902), strategic merge and server-side apply.

use serde_json::Value;

use super::ownership;
use super::resource::Resource;
use crate::error::{ApiError, Cause};

/// How a patch is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchKind {
    Merge,
    Json,
    /// Treated as a merge patch without directives: lists are replaced, not merged by key.
    Strategic,
    Apply,
}

impl PatchKind {
    /// Returns the kind that a content type names.
    pub(crate) fn of(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/merge-patch+json" => Some(Self::Merge),
            "application/json-patch+json" => Some(Self::Json),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            "application/apply-patch+yaml" => Some(Self::Apply),
            _ => None,
        }
    }
}

/// Returns an object as a patch makes it.
///
/// # Errors
/// 400 when the patch cannot be read; 422 when it does not fit the object.
pub(crate) fn patched(
    resource: &Resource,
    object: &Value,
    kind: PatchKind,
    patch: &Value,
    manager: &str,
    status: bool,
) -> Result<Value, ApiError> {
    let mut object = object.clone();
    match kind {
        PatchKind::Merge => json_patch::merge(&mut object, patch),
        PatchKind::Strategic => {
            let mut patch = patch.clone();
            drop_directives(&mut patch);
            json_patch::merge(&mut object, &patch);
        }
        PatchKind::Json => {
            let steps: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            json_patch::patch(&mut object, &steps).map_err(|error| {
                let causes = [Cause::invalid("patch", error.to_string())];
                ApiError::invalid(&resource.group, &resource.kind, &name, &causes)
            })?;
        }
        PatchKind::Apply => ownership::apply(&mut object, patch, manager, status),
    }
    if object.is_object() { Ok(object) } else { Err(ApiError::bad_request("the patch leaves no object")) }
}

fn drop_directives(patch: &mut Value) {
    match patch {
        Value::Object(fields) => {
            fields.retain(|key, _| !key.starts_with('$'));
            fields.values_mut().for_each(drop_directives);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_directives),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

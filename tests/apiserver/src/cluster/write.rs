//! Creating, replacing and patching objects.

use std::sync::Arc;

use serde_json::Value;

use super::patch::{PatchKind, patched};
use super::resource::Resource;
use super::store::{Key, Object};
use super::{Cluster, admission, metadata};
use crate::error::{ApiError, Cause};

/// How a request wants its change to be made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Terms {
    pub(crate) manager: String,
    pub(crate) dry_run: bool,
    /// Whether unknown fields refuse the object, instead of being dropped.
    pub(crate) strict: bool,
    /// Whether status may come with a new object, as if its controllers had written it already.
    pub(crate) seed: bool,
}

/// The object that a request is about.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) resource: Arc<Resource>,
    pub(crate) key: Key,
    /// Whether the request is about the status subresource.
    pub(crate) status: bool,
}

impl Target {
    pub(crate) fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.resource.group, &self.resource.plural, &self.key.name)
    }

    pub(crate) fn conflict(&self, why: &str) -> ApiError {
        ApiError::conflict(&self.resource.group, &self.resource.plural, &self.key.name, why)
    }
}

impl Cluster {
    /// Creates an object, with its status.
    pub(crate) fn seed(&mut self, object: Value) -> Result<Arc<Object>, ApiError> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let Some(resource) = self.registry.of_kind(&version, &kind).cloned() else {
            return Err(ApiError::bad_request(format!(
                "no matches for kind \"{kind}\" in version \"{version}\""
            )));
        };
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        self.create(&resource, &namespace, object, &Terms { seed: true, ..Terms::default() })
    }

    pub(crate) fn get(&self, target: &Target) -> Result<&Arc<Object>, ApiError> {
        self.store.get(&target.resource.id, &target.key).ok_or_else(|| target.not_found())
    }

    /// Creates an object.
    ///
    /// # Errors
    /// 400, 403, 404, 409 and 422, as the API conventions say.
    pub(crate) fn create(
        &mut self,
        resource: &Arc<Resource>,
        namespace: &str,
        mut object: Value,
        terms: &Terms,
    ) -> Result<Arc<Object>, ApiError> {
        metadata::check_kind(resource, &mut object)?;
        if !object["metadata"]["resourceVersion"].as_str().unwrap_or_default().is_empty() {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let applied = object["metadata"]["managedFields"].clone();
        let key = metadata::place(resource, namespace, &mut object)?;
        self.check_namespace(resource, &key)?;
        metadata::begin(resource, &mut object);
        admission::start(resource, &mut object, terms);
        admission::admit(resource, &mut object, None, terms)?;
        if self.store.get(&resource.id, &key).is_some() {
            return Err(ApiError::already_exists(&resource.group, &resource.plural, &key.name));
        }
        if applied.is_array() {
            object["metadata"]["managedFields"] = applied;
        }
        if terms.dry_run {
            return Ok(Arc::new(Object::new(object, self.store.revision())));
        }
        let created = self.store.put(&resource.id, key, object);
        self.serve_definition(resource, &created);
        Ok(created)
    }

    /// Replaces an object, or its status.
    ///
    /// # Errors
    /// 400, 404, 409 and 422, as the API conventions say.
    pub(crate) fn replace(
        &mut self,
        target: &Target,
        mut object: Value,
        terms: &Terms,
    ) -> Result<Arc<Object>, ApiError> {
        metadata::check_kind(&target.resource, &mut object)?;
        let named = object["metadata"]["resourceVersion"].as_str().is_some_and(|version| !version.is_empty());
        if target.resource.is_custom() && !named {
            let causes = [Cause::invalid("metadata.resourceVersion", "must be specified for an update")];
            let resource = &target.resource;
            return Err(ApiError::invalid(&resource.group, &resource.kind, &target.key.name, &causes));
        }
        let managed = self.get(target)?.value["metadata"]["managedFields"].clone();
        self.change(target, object, managed, terms)
    }

    /// Patches an object, or its status; an applied one that is not there yet is created.
    ///
    /// # Errors
    /// 400, 404, 409 and 422, as the API conventions say.
    pub(crate) fn patch(
        &mut self,
        target: &Target,
        kind: PatchKind,
        patch: &Value,
        terms: &Terms,
    ) -> Result<Arc<Object>, ApiError> {
        let resource = &target.resource;
        if kind == PatchKind::Apply {
            if terms.manager.is_empty() {
                return Err(ApiError::bad_request("fieldManager is required for apply patch"));
            }
            metadata::check_kind(resource, &mut patch.clone())?;
        }
        let Ok(old) = self.get(target).cloned() else {
            if kind != PatchKind::Apply || target.status {
                return Err(target.not_found());
            }
            let empty = Value::Object(serde_json::Map::new());
            let mut object = patched(resource, &empty, kind, patch, &terms.manager, false)?;
            object["metadata"]["name"] = target.key.name.clone().into();
            return self.create(resource, &target.key.namespace, object, terms);
        };
        let mut object = patched(resource, &old.value, kind, patch, &terms.manager, target.status)?;
        let managed = object["metadata"]["managedFields"].clone();
        metadata::check_kind(resource, &mut object)?;
        self.change(target, object, managed, terms)
    }

    fn change(
        &mut self,
        target: &Target,
        mut object: Value,
        managed: Value,
        terms: &Terms,
    ) -> Result<Arc<Object>, ApiError> {
        let resource = target.resource.clone();
        let old = self.get(target)?.clone();
        check_identity(target, &old, &object)?;
        if target.status {
            object = with_status_of(&old.value, &object);
        } else if resource.status {
            object = with_status_of(&object, &old.value);
        }
        metadata::keep(&old.value, &mut object);
        if managed.is_array() {
            object["metadata"]["managedFields"] = managed;
        }
        admission::admit(&resource, &mut object, Some(&old.value), terms)?;
        metadata::raise_generation(&resource, &old.value, &mut object);
        check_finalizers(target, &old.value, &object)?;
        if object == old.value {
            return Ok(old);
        }
        if terms.dry_run {
            return Ok(Arc::new(Object::new(object, old.revision)));
        }
        if object["metadata"].get("deletionTimestamp").is_some()
            && resource.id != "pods"
            && resource.id != "namespaces"
            && !metadata::has_finalizers(&object)
        {
            return Ok(self.drop_object(&resource, &target.key, Some(object)).unwrap_or(old));
        }
        let changed = self.store.put(&resource.id, target.key.clone(), object);
        self.serve_definition(&resource, &changed);
        Ok(changed)
    }
}

fn check_identity(target: &Target, old: &Object, object: &Value) -> Result<(), ApiError> {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    if text("name") != target.key.name {
        let message = "the name of the object does not match the name on the URL";
        return Err(ApiError::bad_request(format!("{message} ({})", target.key.name)));
    }
    if !text("namespace").is_empty() && text("namespace") != target.key.namespace {
        return Err(ApiError::bad_request(
            "the namespace of the object does not match the namespace on the request",
        ));
    }
    let uid = old.value["metadata"]["uid"].as_str().unwrap_or_default();
    if !text("uid").is_empty() && text("uid") != uid {
        let why =
            format!("Precondition failed: UID in precondition: {}, UID in object meta: {uid}", text("uid"));
        return Err(target.conflict(&why));
    }
    let version = text("resourceVersion");
    if !version.is_empty() && version != old.revision.to_string() {
        return Err(target.conflict(
            "the object has been modified; please apply your changes to the latest version and try again",
        ));
    }
    Ok(())
}

fn check_finalizers(target: &Target, old: &Value, object: &Value) -> Result<(), ApiError> {
    if old["metadata"].get("deletionTimestamp").is_none() {
        return Ok(());
    }
    let before = old["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let added =
        object["metadata"]["finalizers"].as_array().into_iter().flatten().any(|one| !before.contains(one));
    if !added {
        return Ok(());
    }
    let causes = [Cause::forbidden(
        "metadata.finalizers",
        "no new finalizers can be added if the object is being deleted",
    )];
    Err(ApiError::invalid(&target.resource.group, &target.resource.kind, &target.key.name, &causes))
}

/// Returns everything of one object but its status, and the status of the other.
fn with_status_of(body: &Value, status: &Value) -> Value {
    let mut object = body.clone();
    let fields = object.as_object_mut().expect("an object was read as one");
    match status.get("status") {
        Some(status) => fields.insert("status".into(), status.clone()),
        None => fields.remove("status"),
    };
    object
}

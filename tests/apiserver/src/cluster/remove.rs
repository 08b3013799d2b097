//! Deleting objects, and what goes with them.

use std::sync::Arc;

use serde_json::Value;

use super::resource::{DEFINITIONS, Resource};
use super::store::{Key, Object};
use super::write::Target;
use super::{Cluster, metadata};
use crate::error::ApiError;

/// What a deletion asks for (`DeleteOptions`).
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteTerms {
    pub(crate) uid: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) grace_seconds: Option<u64>,
    pub(crate) dry_run: bool,
}

/// What became of an object that was to be deleted.
#[derive(Debug)]
pub(crate) enum Deletion {
    /// It stays until its finalizers, its contents or its grace are gone.
    Pending(Arc<Object>),
    /// It is gone; this is its last state.
    Done(Arc<Object>),
}

impl Cluster {
    /// Deletes an object, or marks it where something keeps it.
    ///
    /// A pod is removed at once, as no kubelet is there to end it, unless the request names a grace period.
    ///
    /// # Errors
    /// 404, and 409 when a precondition fails.
    pub(crate) fn delete(&mut self, target: &Target, terms: &DeleteTerms) -> Result<Deletion, ApiError> {
        let object = self.get(target)?.clone();
        let uid = object.value["metadata"]["uid"].as_str().unwrap_or_default();
        if let Some(asked) = terms.uid.as_deref().filter(|asked| *asked != uid) {
            let why = format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {uid}");
            return Err(target.conflict(&why));
        }
        if let Some(asked) = terms.version.as_deref().filter(|asked| **asked != object.revision.to_string()) {
            let why = format!(
                "Precondition failed: ResourceVersion in precondition: {asked}, in object meta: {}",
                object.revision
            );
            return Err(target.conflict(&why));
        }
        if terms.dry_run {
            return Ok(Deletion::Done(object));
        }
        Ok(self.remove_or_mark(&target.resource, &target.key, &object, terms.grace_seconds.unwrap_or(0)))
    }

    fn remove_or_mark(
        &mut self,
        resource: &Arc<Resource>,
        key: &Key,
        object: &Arc<Object>,
        grace: u64,
    ) -> Deletion {
        let waits = resource.id == "pods" && grace > 0;
        let full = resource.id == "namespaces" && !self.empty_namespace(&key.name);
        if !waits && !full && !metadata::has_finalizers(&object.value) {
            let last = self.drop_object(resource, key, None);
            return Deletion::Done(last.unwrap_or_else(|| object.clone()));
        }
        if object.metadata().contains_key("deletionTimestamp") {
            return Deletion::Pending(object.clone());
        }
        let mut marked = object.value.clone();
        metadata::mark_deleted(resource, &mut marked, if waits { grace } else { 0 });
        if resource.id == "namespaces" {
            marked["status"]["phase"] = "Terminating".into();
        }
        Deletion::Pending(self.store.put(&resource.id, key.clone(), marked))
    }

    /// Removes an object for good, and returns its last state.
    pub(crate) fn drop_object(
        &mut self,
        resource: &Resource,
        key: &Key,
        last: Option<Value>,
    ) -> Option<Arc<Object>> {
        let removed = self.store.remove(&resource.id, key, last)?;
        if resource.id == DEFINITIONS {
            self.drop_resource(&key.name);
        }
        if resource.namespaced {
            self.end_namespace(&key.namespace);
        }
        Some(removed)
    }

    fn drop_resource(&mut self, id: &str) {
        let Some(resource) = self.registry.by_id(id).cloned() else { return };
        for key in self.keys(&resource, None) {
            self.store.remove(id, &key, None);
        }
        self.registry.remove(id);
    }

    /// Deletes what a namespace holds; returns whether nothing is left.
    fn empty_namespace(&mut self, namespace: &str) -> bool {
        let resources: Vec<_> =
            self.registry.iter().filter(|resource| resource.namespaced).cloned().collect();
        for resource in &resources {
            for key in self.keys(resource, Some(namespace)) {
                let object = self.store.get(&resource.id, &key).expect("its key was read just now").clone();
                self.remove_or_mark(resource, &key, &object, 0);
            }
        }
        resources.iter().all(|resource| self.keys(resource, Some(namespace)).is_empty())
    }

    /// Removes a namespace that is being deleted once its last object is gone.
    fn end_namespace(&mut self, namespace: &str) {
        let key = Key { namespace: String::new(), name: namespace.to_owned() };
        let ending = self
            .store
            .get("namespaces", &key)
            .is_some_and(|found| found.metadata().contains_key("deletionTimestamp"));
        let left = |resource: &Arc<Resource>| {
            resource.namespaced && !self.keys(resource, Some(namespace)).is_empty()
        };
        if ending && !self.registry.iter().any(left) {
            self.store.remove("namespaces", &key, None);
        }
    }

    fn keys(&self, resource: &Resource, namespace: Option<&str>) -> Vec<Key> {
        let start = Key { namespace: namespace.unwrap_or_default().to_owned(), name: String::new() };
        let found = self.store.range(&resource.id, &start).map(|(key, _)| key);
        found
            .take_while(|key| namespace.is_none_or(|namespace| key.namespace == namespace))
            .cloned()
            .collect()
    }
}

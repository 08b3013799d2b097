//! Objects and their history, under one counter of versions, as etcd keeps them.
//!
//! Nothing is copied: lists, watches and history share an object and the bytes that it was written as.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use hyper::body::Bytes;
use serde_json::{Map, Value, json};

/// Where an object is within its resource; a cluster's own objects have an empty namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// One version of an object; it never changes.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) value: Value,
    pub(crate) revision: u64,
    full: OnceLock<Bytes>,
    bare: OnceLock<Bytes>,
    partial: OnceLock<Bytes>,
}

impl Object {
    /// Makes a version of an object and writes the version into its metadata.
    pub(crate) fn new(mut value: Value, revision: u64) -> Self {
        value["metadata"]["resourceVersion"] = revision.to_string().into();
        Self { value, revision, full: OnceLock::new(), bare: OnceLock::new(), partial: OnceLock::new() }
    }

    /// Returns the object as JSON.
    pub(crate) fn full(&self) -> &Bytes {
        self.full.get_or_init(|| serialize(&self.value))
    }

    /// Returns the object as the item of a list of built-in kinds, which leaves `apiVersion` and `kind` out.
    pub(crate) fn bare(&self) -> &Bytes {
        self.bare.get_or_init(|| {
            let mut object = self.value.as_object().cloned().unwrap_or_default();
            object.remove("apiVersion");
            object.remove("kind");
            serialize(&Value::Object(object))
        })
    }

    /// Returns the object's metadata alone, as a `PartialObjectMetadata`.
    pub(crate) fn partial(&self) -> &Bytes {
        self.partial.get_or_init(|| {
            let metadata = &self.value["metadata"];
            serialize(&json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata
            }))
        })
    }

    /// Returns the object's metadata; empty where it has none.
    pub(crate) fn metadata(&self) -> &Map<String, Value> {
        static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
        self.value["metadata"].as_object().unwrap_or(&NONE)
    }
}

/// One step of an object's life.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) key: Key,
    pub(crate) before: Option<Arc<Object>>,
    /// The object after the change; of a removal, its last state with the version of the removal.
    pub(crate) object: Arc<Object>,
    pub(crate) removed: bool,
}

#[derive(Debug)]
struct Collection {
    objects: BTreeMap<Key, Arc<Object>>,
    history: VecDeque<Arc<Change>>,
    /// Changes up to this version are forgotten.
    compacted: u64,
}

/// All objects of all resources.
#[derive(Debug)]
pub(crate) struct Store {
    revision: u64,
    compacted: u64,
    history: usize,
    collections: HashMap<String, Collection>,
}

impl Store {
    /// Makes an empty store that remembers at least `history` changes of each resource.
    pub(crate) fn new(history: usize) -> Self {
        Self { revision: 1, compacted: 0, history, collections: HashMap::new() }
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn get(&self, resource: &str, key: &Key) -> Option<&Arc<Object>> {
        self.collections.get(resource)?.objects.get(key)
    }

    /// Returns the objects of a resource from `start` on, in order.
    pub(crate) fn range(&self, resource: &str, start: &Key) -> impl Iterator<Item = (&Key, &Arc<Object>)> {
        self.collections.get(resource).into_iter().flat_map(move |found| found.objects.range(start.clone()..))
    }

    /// Returns the objects as they were at a version, from `start` on, or nothing when it is forgotten.
    pub(crate) fn range_at(&self, resource: &str, start: &Key, at: u64) -> Option<Vec<Arc<Object>>> {
        let Some(collection) = self.collections.get(resource) else {
            return (at >= self.compacted).then(Vec::new);
        };
        let mut then: BTreeMap<&Key, Option<&Arc<Object>>> = BTreeMap::new();
        for change in collection.since(at)? {
            then.entry(&change.key).or_insert(change.before.as_ref());
        }
        let mut found: BTreeMap<&Key, &Arc<Object>> = collection.objects.range(start.clone()..).collect();
        for (key, object) in then.into_iter().filter(|(key, _)| *key >= start) {
            match object {
                Some(object) => found.insert(key, object),
                None => found.remove(key),
            };
        }
        Some(found.into_values().cloned().collect())
    }

    /// Returns the changes after a version, or nothing when they are forgotten.
    pub(crate) fn changes_since(&self, resource: &str, after: u64) -> Option<Vec<Arc<Change>>> {
        match self.collections.get(resource) {
            Some(collection) => Some(collection.since(after)?.cloned().collect()),
            None => (after >= self.compacted).then(Vec::new),
        }
    }

    /// Keeps a new version of an object and returns it.
    pub(crate) fn put(&mut self, resource: &str, key: Key, value: Value) -> Arc<Object> {
        self.revision += 1;
        let object = Arc::new(Object::new(value, self.revision));
        let collection = self.collection(resource);
        let before = collection.objects.insert(key.clone(), object.clone());
        self.remember(
            resource,
            Change { revision: object.revision, key, before, object: object.clone(), removed: false },
        );
        object
    }

    /// Removes an object and returns its last state: `last`, or else the one that was kept.
    pub(crate) fn remove(&mut self, resource: &str, key: &Key, last: Option<Value>) -> Option<Arc<Object>> {
        let before = self.collection(resource).objects.remove(key)?;
        self.revision += 1;
        let object = Arc::new(Object::new(last.unwrap_or_else(|| before.value.clone()), self.revision));
        let change = Change {
            revision: self.revision,
            key: key.clone(),
            before: Some(before),
            object: object.clone(),
            removed: true,
        };
        self.remember(resource, change);
        Some(object)
    }

    /// Forgets every change so far: whoever asks for an older version is refused.
    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
        for collection in self.collections.values_mut() {
            collection.history.clear();
            collection.compacted = self.revision;
        }
    }

    fn collection(&mut self, resource: &str) -> &mut Collection {
        let compacted = self.compacted;
        let empty = || Collection { objects: BTreeMap::new(), history: VecDeque::new(), compacted };
        self.collections.entry(resource.to_owned()).or_insert_with(empty)
    }

    fn remember(&mut self, resource: &str, change: Change) {
        let limit = self.history;
        let collection = self.collection(resource);
        collection.history.push_back(Arc::new(change));
        while collection.history.len() > limit.max(1) {
            let oldest =
                collection.history.pop_front().expect("the history is not empty: its length was asked");
            collection.compacted = oldest.revision;
        }
    }
}

impl Collection {
    fn since(&self, after: u64) -> Option<impl Iterator<Item = &Arc<Change>>> {
        let first = self.history.partition_point(|change| change.revision <= after);
        (after >= self.compacted).then(|| self.history.range(first..))
    }
}

fn serialize(value: &Value) -> Bytes {
    serde_json::to_vec(value).expect("a JSON value has text keys only").into()
}

//! Labels of namespaces.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;

use super::Identity;

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceObject {
    /// Which one.
    pub identity: Identity,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl NamespaceObject {
    /// Reads a namespace.
    pub fn read(namespace: &PartialObjectMeta<Namespace>) -> Self {
        Self {
            identity: Identity::read(&namespace.metadata),
            labels: namespace.metadata.labels.clone().unwrap_or_default(),
        }
    }
}

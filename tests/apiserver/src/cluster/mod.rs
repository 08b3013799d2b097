//! The cluster's objects, and every rule about changing them.

pub(crate) mod admission;
pub(crate) mod definition;
pub(crate) mod metadata;
pub(crate) mod ownership;
pub(crate) mod patch;
pub(crate) mod remove;
pub(crate) mod resource;
pub(crate) mod selector;
pub(crate) mod store;
pub(crate) mod write;

use resource::Registry;
use store::Store;

/// Everything that a server holds.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) registry: Registry,
    pub(crate) store: Store,
}

impl Cluster {
    /// Makes a cluster with the namespaces that every cluster has, remembering `history` changes per resource.
    pub(crate) fn new(history: usize) -> Self {
        let mut cluster = Self { registry: Registry::built_in(), store: Store::new(history) };
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            let namespace = serde_json::json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}
            });
            cluster.seed(namespace).expect("a namespace without anything special is accepted");
        }
        cluster
    }
}

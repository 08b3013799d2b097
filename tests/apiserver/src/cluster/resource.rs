//! The kinds of objects that the server knows: those built in, and those that definitions add.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::{core::v1, events};
use serde_json::Value;

use crate::schema::CustomSchema;

/// The group of custom resource definitions.
pub(crate) const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// One kind of object, and how the server treats it.
#[derive(Debug)]
pub(crate) struct Resource {
    /// Plural, with its group where it has one: `nodes`, `egresstenants.spillway.dev`.
    pub(crate) id: String,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) kind: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) namespaced: bool,
    /// Whether status is written through `/status` alone.
    pub(crate) status: bool,
    pub(crate) form: Form,
}

/// What is known about an object's fields.
#[derive(Debug)]
pub(crate) enum Form {
    /// A kind of Kubernetes itself, whose type drops unknown fields and refuses values of a wrong type.
    Typed(fn(Value) -> serde_json::Result<Value>),
    /// A kind that the server keeps as it comes.
    Free,
    /// A custom resource, by the schema of its definition.
    Custom(Box<CustomSchema>),
}

impl Resource {
    /// Returns `v1` or `GROUP/VERSION`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Returns whether it comes from a definition: then it has a generation, and updates name a version.
    pub(crate) fn is_custom(&self) -> bool {
        matches!(self.form, Form::Custom(_)) || self.group == "k8s.ovn.org"
    }
}

/// Every resource that is served now.
#[derive(Debug)]
pub(crate) struct Registry {
    by_id: BTreeMap<String, Arc<Resource>>,
}

impl Registry {
    /// Returns the resources that are there before any definition.
    pub(crate) fn built_in() -> Self {
        let resources = BUILT_IN.iter().map(built_in);
        Self { by_id: resources.map(|resource| (resource.id.clone(), Arc::new(resource))).collect() }
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.by_id.get(&identity(group, plural)).filter(|resource| resource.version == version)
    }

    pub(crate) fn by_id(&self, id: &str) -> Option<&Arc<Resource>> {
        self.by_id.get(id)
    }

    /// Returns the resource of an object, by its `apiVersion` and `kind`.
    pub(crate) fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.iter().find(|resource| resource.kind == kind && resource.api_version() == api_version)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_id.values()
    }

    pub(crate) fn add(&mut self, resource: Resource) {
        self.by_id.insert(resource.id.clone(), Arc::new(resource));
    }

    pub(crate) fn remove(&mut self, id: &str) {
        self.by_id.remove(id);
    }
}

/// Returns a resource's name with its group: `nodes`, `egresstenants.spillway.dev`.
pub(crate) fn identity(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

struct BuiltIn {
    group: &'static str,
    plural: &'static str,
    kind: &'static str,
    short_name: &'static str,
    namespaced: bool,
    status: bool,
    typed: Option<fn(Value) -> serde_json::Result<Value>>,
}

const fn core(
    plural: &'static str,
    kind: &'static str,
    short_name: &'static str,
    namespaced: bool,
    status: bool,
    typed: fn(Value) -> serde_json::Result<Value>,
) -> BuiltIn {
    BuiltIn { group: "", plural, kind, short_name, namespaced, status, typed: Some(typed) }
}

const fn free(
    group: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
    status: bool,
) -> BuiltIn {
    BuiltIn { group, plural, kind, short_name: "", namespaced, status, typed: None }
}

const BUILT_IN: [BuiltIn; 18] = [
    core("nodes", "Node", "no", false, true, through::<v1::Node>),
    core("namespaces", "Namespace", "ns", false, true, through::<v1::Namespace>),
    core("pods", "Pod", "po", true, true, through::<v1::Pod>),
    core("events", "Event", "ev", true, false, through::<v1::Event>),
    core("services", "Service", "svc", true, true, through::<v1::Service>),
    core("configmaps", "ConfigMap", "cm", true, false, through::<v1::ConfigMap>),
    core("secrets", "Secret", "", true, false, through::<v1::Secret>),
    core("serviceaccounts", "ServiceAccount", "sa", true, false, through::<v1::ServiceAccount>),
    BuiltIn {
        group: "events.k8s.io",
        plural: "events",
        kind: "Event",
        short_name: "",
        namespaced: true,
        status: false,
        typed: Some(through::<events::v1::Event>),
    },
    free("apiextensions.k8s.io", "customresourcedefinitions", "CustomResourceDefinition", false, true),
    free("coordination.k8s.io", "leases", "Lease", true, false),
    free("discovery.k8s.io", "endpointslices", "EndpointSlice", true, false),
    free("rbac.authorization.k8s.io", "clusterroles", "ClusterRole", false, false),
    free("rbac.authorization.k8s.io", "clusterrolebindings", "ClusterRoleBinding", false, false),
    free("rbac.authorization.k8s.io", "roles", "Role", true, false),
    free("k8s.ovn.org", "adminpolicybasedexternalroutes", "AdminPolicyBasedExternalRoute", false, true),
    free("k8s.ovn.org", "egressips", "EgressIP", false, true),
    free("apps", "deployments", "Deployment", true, true),
];

fn built_in(row: &BuiltIn) -> Resource {
    Resource {
        id: identity(row.group, row.plural),
        group: row.group.into(),
        version: "v1".into(),
        plural: row.plural.into(),
        singular: row.kind.to_lowercase(),
        kind: row.kind.into(),
        short_names: Some(row.short_name.to_owned()).filter(|name| !name.is_empty()).into_iter().collect(),
        namespaced: row.namespaced,
        status: row.status,
        form: row.typed.map_or(Form::Free, Form::Typed),
    }
}

fn through<T: serde::de::DeserializeOwned + serde::Serialize>(value: Value) -> serde_json::Result<Value> {
    serde_json::to_value(serde_json::from_value::<T>(value)?)
}

//! What the server serves, told to clients (Kubernetes, "API Discovery", the unaggregated form).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::request::Path;
use super::review;
use crate::cluster::resource::{Registry, Resource};
use crate::error::ApiError;

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Answers a discovery path.
///
/// # Errors
/// 404 for groups and versions that are not served, and for every other path.
pub(super) fn answer(registry: &Registry, path: &Path) -> Result<Value, ApiError> {
    match path {
        Path::Version => Ok(json!({
            "major": "1", "minor": "32", "gitVersion": "v1.32.0+spillway", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "2025-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux/amd64",
        })),
        Path::CoreVersions => {
            Ok(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}))
        }
        Path::Groups => {
            let names: BTreeSet<_> = registry.iter().map(|resource| resource.group.as_str()).collect();
            let names = names.into_iter().chain([review::GROUP]).filter(|name| !name.is_empty());
            let groups: Vec<_> = names.filter_map(|name| group(registry, name)).collect();
            Ok(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        Path::Group(name) => {
            let mut found = group(registry, name).ok_or_else(ApiError::no_such_path)?;
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            Ok(found)
        }
        Path::Resources { group, version } => resources(registry, group, version),
        Path::Resource(_) | Path::Health | Path::Unknown => Err(ApiError::no_such_path()),
    }
}

fn group(registry: &Registry, name: &str) -> Option<Value> {
    let own =
        registry.iter().find(|resource| resource.group == name).map(|resource| resource.version.as_str());
    let version = own.or_else(|| (name == review::GROUP).then_some("v1"))?;
    let version = json!({"groupVersion": format!("{name}/{version}"), "version": version});
    Some(json!({"name": name, "versions": [version], "preferredVersion": version}))
}

fn resources(registry: &Registry, group: &str, version: &str) -> Result<Value, ApiError> {
    let of_version =
        |resource: &&std::sync::Arc<Resource>| resource.group == group && resource.version == version;
    let mut found: Vec<_> =
        registry.iter().filter(of_version).flat_map(|resource| described(resource)).collect();
    if group == review::GROUP && version == "v1" {
        found.push(json!({
            "name": review::PLURAL, "singularName": "selfsubjectaccessreview", "namespaced": false,
            "kind": review::KIND, "verbs": ["create"],
        }));
    }
    if found.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Ok(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": found}))
}

fn described(resource: &Resource) -> Vec<Value> {
    let own = json!({
        "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
        "kind": resource.kind, "verbs": VERBS, "shortNames": resource.short_names,
    });
    let status = json!({
        "name": format!("{}/status", resource.plural), "singularName": "", "namespaced": resource.namespaced,
        "kind": resource.kind, "verbs": ["get", "patch", "update"],
    });
    if resource.status { vec![own, status] } else { vec![own] }
}

//! A request as the API reads it: path, query and what the client accepts.

use std::collections::BTreeMap;

use hyper::Method;
use hyper::http::request::Parts;

use crate::error::ApiError;
use crate::requests::Verb;

/// The part of the API that a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Path {
    Resource(ResourcePath),
    /// Discovery of `/api`, `/apis`, a group, or a group's version.
    CoreVersions,
    Groups,
    Group(String),
    Resources {
        group: String,
        version: String,
    },
    Version,
    Health,
    Unknown,
}

/// `/apis/GROUP/VERSION/namespaces/NAMESPACE/PLURAL/NAME/SUBRESOURCE`, as far as it goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResourcePath {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) namespace: Option<String>,
    pub(crate) plural: String,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

/// A request's query parameters; of several with one name, the last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(BTreeMap<String, String>);

impl Path {
    pub(crate) fn parse(path: &str) -> Self {
        let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
        match parts.as_slice() {
            ["api"] => Self::CoreVersions,
            ["apis"] => Self::Groups,
            ["version"] => Self::Version,
            ["livez" | "readyz" | "healthz", ..] => Self::Health,
            ["apis", group] => Self::Group((*group).to_owned()),
            ["api", version] => Self::Resources { group: String::new(), version: (*version).to_owned() },
            ["apis", group, version] => {
                Self::Resources { group: (*group).to_owned(), version: (*version).to_owned() }
            }
            ["api", version, rest @ ..] => resource_path("", version, rest),
            ["apis", group, version, rest @ ..] => resource_path(group, version, rest),
            _ => Self::Unknown,
        }
    }
}

impl ResourcePath {
    /// Returns the verb of a method on this path.
    ///
    /// # Errors
    /// 405 when the path has no such method.
    pub(crate) fn verb(&self, method: &Method, query: &Query) -> Result<Verb, ApiError> {
        let named = self.name.is_some();
        match *method {
            Method::GET if named => Ok(Verb::Get),
            Method::GET if query.flag("watch") => Ok(Verb::Watch),
            Method::GET => Ok(Verb::List),
            Method::POST if !named => Ok(Verb::Create),
            Method::PUT if named => Ok(Verb::Update),
            Method::PATCH if named => Ok(Verb::Patch),
            Method::DELETE if named && self.subresource.is_none() => Ok(Verb::Delete),
            Method::DELETE if !named => Ok(Verb::DeleteCollection),
            _ => Err(ApiError::method_not_allowed()),
        }
    }
}

impl Query {
    pub(crate) fn parse(text: Option<&str>) -> Self {
        Self(form_urlencoded::parse(text.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// Returns a parameter; empty where it is missing.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.0.get(key).map(String::as_str).unwrap_or_default()
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        ["true", "1"].contains(&self.text(key))
    }

    /// Returns a number, where one is given.
    ///
    /// # Errors
    /// 400 when it is none.
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        match self.text(key) {
            "" => Ok(None),
            text => match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => {
                    Err(ApiError::bad_request(format!("{key}: Invalid value: {text:?}: must be a number")))
                }
            },
        }
    }
}

/// Returns whether the client wants metadata alone (API concepts, "Metadata-only fetches").
pub(crate) fn wants_metadata(parts: &Parts) -> bool {
    let accept = header(parts, "accept");
    accept.split(',').next().unwrap_or_default().contains("as=PartialObjectMetadata")
}

/// Returns the token of a bearer's `Authorization`.
pub(crate) fn token(parts: &Parts) -> Option<&str> {
    header(parts, "authorization").strip_prefix("Bearer ")
}

/// Returns a header's text; empty where it is missing.
pub(crate) fn header<'a>(parts: &'a Parts, name: &str) -> &'a str {
    parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn resource_path(group: &str, version: &str, rest: &[&str]) -> Path {
    let mut path =
        ResourcePath { group: group.to_owned(), version: version.to_owned(), ..ResourcePath::default() };
    let rest = match rest {
        // A namespace is an object itself; its own subresources are the only words that follow its name.
        ["namespaces"] | ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => rest,
        ["namespaces", namespace, rest @ ..] => {
            path.namespace = Some((*namespace).to_owned());
            rest
        }
        rest => rest,
    };
    let owned = |part: &str| Some(part.to_owned());
    match rest {
        [plural] => (path.plural, path.name) = ((*plural).to_owned(), None),
        [plural, name] => (path.plural, path.name) = ((*plural).to_owned(), owned(name)),
        [plural, name, part] => {
            (path.plural, path.name, path.subresource) = ((*plural).to_owned(), owned(name), owned(part));
        }
        _ => return Path::Unknown,
    }
    Path::Resource(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_group_version_namespace_resource_and_object() {
        let cases = [
            ("/api/v1/nodes", ["", "v1", "-", "nodes", "-", "-"]),
            ("/api/v1/nodes/w1/status", ["", "v1", "-", "nodes", "w1", "status"]),
            ("/api/v1/namespaces/blue", ["", "v1", "-", "namespaces", "blue", "-"]),
            ("/api/v1/namespaces/blue/status", ["", "v1", "-", "namespaces", "blue", "status"]),
            ("/api/v1/namespaces/blue/pods/p/status", ["", "v1", "blue", "pods", "p", "status"]),
            (
                "/apis/spillway.dev/v1alpha1/egresstenants",
                ["spillway.dev", "v1alpha1", "-", "egresstenants", "-", "-"],
            ),
        ];

        for (path, expected) in cases {
            let Path::Resource(found) = Path::parse(path) else { panic!("{path} names a resource") };
            let or_dash = |part: &Option<String>| part.clone().unwrap_or_else(|| "-".into());
            let parts = [
                found.group.clone(),
                found.version.clone(),
                or_dash(&found.namespace),
                found.plural.clone(),
                or_dash(&found.name),
                or_dash(&found.subresource),
            ];
            assert_eq!(parts, expected, "{path}");
        }
    }
}

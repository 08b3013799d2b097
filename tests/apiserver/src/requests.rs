//! What was asked of the server, counted.

use std::collections::BTreeMap;
use std::str::FromStr;

/// What a request wants, in RBAC's words (Kubernetes, "Determine the Request Verb").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// One object.
    Get,
    /// Several objects, or one chunk of them.
    List,
    /// Changes as they come.
    Watch,
    /// A new object.
    Create,
    /// Another content of an object.
    Update,
    /// A change of parts of an object, or an applied one.
    Patch,
    /// The end of an object.
    Delete,
    /// The end of several objects.
    DeleteCollection,
}

const NAMES: [(Verb, &str); 8] = [
    (Verb::Get, "get"),
    (Verb::List, "list"),
    (Verb::Watch, "watch"),
    (Verb::Create, "create"),
    (Verb::Update, "update"),
    (Verb::Patch, "patch"),
    (Verb::Delete, "delete"),
    (Verb::DeleteCollection, "deletecollection"),
];

impl std::fmt::Display for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = NAMES.iter().find(|(verb, _)| verb == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Verb {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = NAMES.iter().find(|(_, name)| *name == text).map(|(verb, _)| *verb);
        found.ok_or_else(|| format!("verb: {text:?} is none of {}", NAMES.map(|(_, name)| name).join(", ")))
    }
}

/// Requests by verb and resource, such as `nodes` or `egresstenants.spillway.dev/status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests {
    counts: BTreeMap<(Verb, String), u64>,
}

impl Requests {
    /// Returns how often a verb was asked of a resource.
    #[must_use]
    pub fn count(&self, verb: Verb, resource: &str) -> u64 {
        self.counts.get(&(verb, resource.to_owned())).copied().unwrap_or(0)
    }

    /// Returns how many requests there were.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Returns each verb and resource with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Verb, &str, u64)> {
        self.counts.iter().map(|((verb, resource), count)| (*verb, resource.as_str(), *count))
    }

    pub(crate) fn add(&mut self, verb: Verb, resource: &str) {
        *self.counts.entry((verb, resource.to_owned())).or_insert(0) += 1;
    }
}

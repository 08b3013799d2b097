//! Lists, whole or in chunks of one snapshot (API concepts, "Retrieving large results sets in chunks").

use std::str::FromStr;
use std::sync::Arc;

use hyper::body::Bytes;
use serde_json::json;

use super::request::Query;
use crate::cluster::Cluster;
use crate::cluster::resource::{Form, Resource};
use crate::cluster::selector::Selector;
use crate::cluster::store::{Key, Object};
use crate::error::ApiError;
use crate::faults::Faults;

/// Where a list goes on: the text of `continue`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Continuation {
    pub(crate) revision: u64,
    pub(crate) chunks: u32,
    lacking: bool,
    start: Key,
}

/// One chunk of a list.
#[derive(Debug)]
pub(crate) struct Chunk {
    revision: u64,
    items: Vec<Arc<Object>>,
    next: Option<Continuation>,
    remaining: usize,
}

impl Continuation {
    /// Reads a query's `continue`, where it has one.
    ///
    /// # Errors
    /// 400 when it is not one of ours.
    pub(crate) fn of(query: &Query) -> Result<Option<Self>, ApiError> {
        match query.text("continue") {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|()| ApiError::bad_request("continue key is not valid")),
        }
    }
}

impl std::fmt::Display for Continuation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lacking = u8::from(self.lacking);
        write!(f, "{}:{}:{lacking}:{}/{}", self.revision, self.chunks, self.start.namespace, self.start.name)
    }
}

impl FromStr for Continuation {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let [revision, chunks, lacking, start] = text.splitn(4, ':').collect::<Vec<_>>()[..] else {
            return Err(());
        };
        let (namespace, name) = start.split_once('/').ok_or(())?;
        Ok(Self {
            revision: revision.parse().map_err(|_| ())?,
            chunks: chunks.parse().map_err(|_| ())?,
            lacking: lacking == "1",
            start: Key { namespace: namespace.to_owned(), name: name.to_owned() },
        })
    }
}

/// Reads the chunk that a query asks for.
///
/// # Errors
/// 400, 410 when the version is forgotten, 504 when it has not been reached.
pub(crate) fn read(
    cluster: &Cluster,
    faults: &Faults,
    resource: &Resource,
    selector: &Selector,
    query: &Query,
) -> Result<Chunk, ApiError> {
    let limit = query.number("limit")?.filter(|limit| *limit > 0);
    let from = match Continuation::of(query)? {
        Some(_)
            if ![("", ""), ("0", "")]
                .contains(&(query.text("resourceVersion"), query.text("resourceVersionMatch"))) =>
        {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        Some(from) => from,
        None => Continuation {
            revision: revision(cluster, query, limit.is_some())?,
            chunks: 0,
            lacking: faults.begins_lacking(&resource.id),
            start: Key { namespace: selector.namespace.clone().unwrap_or_default(), name: String::new() },
        },
    };
    let objects = if from.revision == cluster.store.revision() {
        cluster.store.range(&resource.id, &from.start).map(|(_, object)| object.clone()).collect()
    } else {
        cluster.store.range_at(&resource.id, &from.start, from.revision).ok_or_else(|| {
            ApiError::expired("The provided continue parameter or resourceVersion is too old to display a consistent list result.")
        })?
    };
    let lacking = if from.lacking { faults.lacking(&resource.id) } else { Default::default() };
    let name =
        |object: &Object| object.metadata().get("name").and_then(|name| name.as_str().map(str::to_owned));
    let mut items: Vec<_> = objects
        .into_iter()
        .filter(|object| selector.matches(object))
        .filter(|object| name(object).is_none_or(|name| !lacking.contains(&name)))
        .collect();
    let rest = limit.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit < items.len());
    let rest = rest.map(|limit| items.split_off(limit)).unwrap_or_default();
    let next =
        rest.first().map(|first| Continuation { chunks: from.chunks + 1, start: key(first), ..from.clone() });
    Ok(Chunk { revision: from.revision, items, next, remaining: rest.len() })
}

impl Chunk {
    /// Returns the chunk as JSON.
    pub(crate) fn json(&self, resource: &Resource, partial: bool) -> Bytes {
        let (version, kind) = if partial {
            ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList".to_owned())
        } else {
            (resource.api_version(), format!("{}List", resource.kind))
        };
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Some(next) = &self.next {
            metadata["continue"] = next.to_string().into();
            metadata["remainingItemCount"] = self.remaining.into();
        }
        let mut text =
            format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"items\":[")
                .into_bytes();
        for (index, item) in self.items.iter().enumerate() {
            if index > 0 {
                text.push(b',');
            }
            text.extend_from_slice(match resource.form {
                _ if partial => item.partial(),
                Form::Typed(_) => item.bare(),
                Form::Free | Form::Custom(_) => item.full(),
            });
        }
        text.extend_from_slice(b"]}");
        text.into()
    }
}

/// Returns the version that a new list shows (API concepts, "Semantics for get and list").
fn revision(cluster: &Cluster, query: &Query, chunked: bool) -> Result<u64, ApiError> {
    let current = cluster.store.revision();
    let Some(asked) = query.number("resourceVersion")?.filter(|asked| *asked > 0) else { return Ok(current) };
    if asked > current {
        return Err(ApiError::version_in_the_future(asked, current));
    }
    let exact = match query.text("resourceVersionMatch") {
        "Exact" => true,
        "NotOlderThan" => false,
        "" => chunked,
        other => {
            return Err(ApiError::bad_request(format!("resourceVersionMatch: Unsupported value: {other:?}")));
        }
    };
    Ok(if exact { asked } else { current })
}

fn key(object: &Object) -> Key {
    let text = |key: &str| {
        object.metadata().get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
    };
    Key { namespace: text("namespace"), name: text("name") }
}

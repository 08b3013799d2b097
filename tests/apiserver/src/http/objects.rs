//! Requests about objects.

use std::sync::Arc;

use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::answer::{self, Body};
use super::request::{Query, ResourcePath, header, wants_metadata};
use super::watch::Watch;
use super::{Server, list, success};
use crate::cluster::patch::PatchKind;
use crate::cluster::remove::{DeleteTerms, Deletion};
use crate::cluster::resource::Resource;
use crate::cluster::selector::Selector;
use crate::cluster::store::{Key, Object};
use crate::cluster::write::{Target, Terms};
use crate::error::ApiError;
use crate::requests::Verb;

/// Answers a request about objects of a resource.
///
/// # Errors
/// What the API conventions say.
pub(super) fn answer(
    server: &Arc<Server>,
    parts: &Parts,
    path: &ResourcePath,
    verb: Verb,
    query: &Query,
    body: &[u8],
) -> Result<Response<Body>, ApiError> {
    let resource = find(server, path)?;
    let namespace = path.namespace.as_deref();
    let partial = wants_metadata(parts);
    let selector =
        || Selector::parse(&resource.id, namespace, query.text("labelSelector"), query.text("fieldSelector"));
    let content_type = header(parts, "content-type");
    if content_type.contains("protobuf") || content_type.contains("cbor") {
        return Err(ApiError::unsupported_media_type(content_type));
    }
    match verb {
        Verb::List => {
            let chunk = list::read(&server.cluster(), &server.faults, &resource, &selector()?, query)?;
            Ok(answer::json(StatusCode::OK, chunk.json(&resource, partial)))
        }
        Verb::Watch => {
            let channel = Watch::begin(server, resource.clone(), selector()?, partial, query)?;
            Ok(answer::stream(channel))
        }
        Verb::Get => {
            let object = server.cluster().get(&target(&resource, path)?)?.clone();
            Ok(respond(StatusCode::OK, &object, partial))
        }
        Verb::Create => {
            let object = parse(body)?;
            let namespace = namespace.unwrap_or_default();
            let terms = terms(parts, query);
            let object = server.change(|cluster| cluster.create(&resource, namespace, object, &terms))?;
            Ok(respond(StatusCode::CREATED, &object, partial))
        }
        Verb::Update => {
            let (target, object, terms) = (target(&resource, path)?, parse(body)?, terms(parts, query));
            let object = server.change(|cluster| cluster.replace(&target, object, &terms))?;
            Ok(respond(StatusCode::OK, &object, partial))
        }
        Verb::Patch => patch(server, &target(&resource, path)?, parts, query, body, partial),
        Verb::Delete => {
            let (target, terms) = (target(&resource, path)?, delete_terms(query, body)?);
            let deletion = server.change(|cluster| cluster.delete(&target, &terms))?;
            Ok(deleted(&resource, &deletion))
        }
        Verb::DeleteCollection => {
            let terms = delete_terms(query, body)?;
            delete_selected(server, &resource, &selector()?, &terms)
        }
    }
}

fn find(server: &Server, path: &ResourcePath) -> Result<Arc<Resource>, ApiError> {
    let cluster = server.cluster();
    let resource = cluster.registry.find(&path.group, &path.version, &path.plural);
    let resource = resource.ok_or_else(ApiError::no_such_path)?;
    let status = match path.subresource.as_deref() {
        None => true,
        Some("status") => resource.status,
        Some(_) => false,
    };
    let placed = resource.namespaced || path.namespace.is_none();
    if status && placed { Ok(resource.clone()) } else { Err(ApiError::no_such_path()) }
}

fn target(resource: &Arc<Resource>, path: &ResourcePath) -> Result<Target, ApiError> {
    if resource.namespaced && path.namespace.is_none() {
        return Err(ApiError::no_such_path());
    }
    let key = Key {
        namespace: path.namespace.clone().unwrap_or_default(),
        name: path.name.clone().unwrap_or_default(),
    };
    Ok(Target { resource: resource.clone(), key, status: path.subresource.is_some() })
}

fn patch(
    server: &Server,
    target: &Target,
    parts: &Parts,
    query: &Query,
    body: &[u8],
    partial: bool,
) -> Result<Response<Body>, ApiError> {
    let content_type = header(parts, "content-type");
    let kind = PatchKind::of(content_type).ok_or_else(|| ApiError::unsupported_media_type(content_type))?;
    if kind == PatchKind::Strategic && target.resource.is_custom() {
        return Err(ApiError::unsupported_media_type(content_type));
    }
    let (patch, terms) = (parse(body)?, terms(parts, query));
    let (known, object) = server.change(|cluster| {
        let known = cluster.get(target).is_ok();
        cluster.patch(target, kind, &patch, &terms).map(|object| (known, object))
    })?;
    Ok(respond(if known { StatusCode::OK } else { StatusCode::CREATED }, &object, partial))
}

fn delete_selected(
    server: &Server,
    resource: &Arc<Resource>,
    selector: &Selector,
    terms: &DeleteTerms,
) -> Result<Response<Body>, ApiError> {
    let gone: Result<Vec<Value>, ApiError> = server.change(|cluster| {
        let start = Key { namespace: String::new(), name: String::new() };
        let found = cluster.store.range(&resource.id, &start).filter(|(_, object)| selector.matches(object));
        let keys: Vec<_> = found.map(|(key, _)| key.clone()).collect();
        let delete = |key| {
            let target = Target { resource: resource.clone(), key, status: false };
            let object = match cluster.delete(&target, terms)? {
                Deletion::Pending(object) | Deletion::Done(object) => object,
            };
            Ok(object.value.clone())
        };
        keys.into_iter().map(delete).collect()
    });
    let list = json!({
        "apiVersion": resource.api_version(), "kind": format!("{}List", resource.kind),
        "metadata": {"resourceVersion": server.cluster().store.revision().to_string()}, "items": gone?,
    });
    Ok(answer::value(StatusCode::OK, &list))
}

fn deleted(resource: &Resource, deletion: &Deletion) -> Response<Body> {
    match deletion {
        Deletion::Pending(object) => respond(StatusCode::OK, object, false),
        Deletion::Done(object) if resource.id == "pods" => respond(StatusCode::OK, object, false),
        Deletion::Done(object) => {
            let metadata = object.metadata();
            let details = json!({
                "name": metadata.get("name"), "group": resource.group, "kind": resource.plural,
                "uid": metadata.get("uid"),
            });
            answer::value(StatusCode::OK, &success(&details))
        }
    }
}

fn respond(code: StatusCode, object: &Object, partial: bool) -> Response<Body> {
    answer::json(code, if partial { object.partial() } else { object.full() }.clone())
}

fn terms(parts: &Parts, query: &Query) -> Terms {
    let agent = header(parts, "user-agent").split('/').next().unwrap_or_default();
    let manager = Some(query.text("fieldManager")).filter(|manager| !manager.is_empty()).unwrap_or(agent);
    Terms {
        manager: manager.to_owned(),
        dry_run: query.text("dryRun") == "All",
        strict: query.text("fieldValidation") == "Strict",
        seed: false,
    }
}

fn delete_terms(query: &Query, body: &[u8]) -> Result<DeleteTerms, ApiError> {
    let body = if body.is_empty() { Value::Null } else { parse(body)? };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let grace = query.number("gracePeriodSeconds")?;
    Ok(DeleteTerms {
        uid: text(&body["preconditions"]["uid"]),
        version: text(&body["preconditions"]["resourceVersion"]),
        grace_seconds: body["gracePeriodSeconds"].as_u64().or(grace),
        dry_run: query.text("dryRun") == "All" || body["dryRun"] == json!(["All"]),
    })
}

/// Reads a body as JSON, or else as YAML.
fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let json = serde_json::from_slice(body);
    json.or_else(|error: serde_json::Error| {
        let text = std::str::from_utf8(body).unwrap_or_default();
        serde_saphyr::from_str::<Value>(text)
            .ok()
            .filter(|value| value.is_object() || value.is_array())
            .ok_or_else(|| ApiError::bad_request(format!("the object provided is unrecognized: {error}")))
    })
}

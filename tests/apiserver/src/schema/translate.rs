//! An `openAPIV3Schema` in the words of JSON Schema, draft 4.

use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, ValidationError, Validator};
use serde_json::{Map, Value, json};

use super::{below, flag};
use crate::error::Cause;

const COPIED: [&str; 17] = [
    "type",
    "required",
    "enum",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "uniqueItems",
];

/// Makes the validator of a schema's fields.
///
/// # Errors
/// When a keyword has a value that it cannot have, such as a pattern that is no regular expression.
pub(super) fn validator(schema: &Value) -> Result<Validator, Box<ValidationError<'static>>> {
    let options = jsonschema::options().with_draft(Draft::Draft4).should_validate_formats(true);
    let options = options.with_format("cidr", is_cidr).with_format("mac", is_mac);
    // Kubernetes' durations are Go's, such as 5m, which JSON Schema's ISO 8601 would refuse.
    options.with_format("duration", |_: &str| true).build(&translated(schema)).map_err(Box::new)
}

/// Returns an error of the validator in the API's words.
pub(super) fn cause(error: &ValidationError<'_>) -> Cause {
    let field = field_path(error.instance_path().as_str());
    let message = error.to_string();
    match error.kind() {
        ValidationErrorKind::Required { property } => {
            Cause::required(below(&field, property.as_str().unwrap_or_default()), "must be set")
        }
        ValidationErrorKind::Enum { .. } => Cause { field, reason: "FieldValueNotSupported", message },
        ValidationErrorKind::Type { .. } => Cause { field, reason: "FieldValueTypeInvalid", message },
        _ => Cause::invalid(field, message),
    }
}

fn translated(schema: &Value) -> Value {
    let Some(fields) = schema.as_object() else { return schema.clone() };
    let mut own: Map<String, Value> =
        COPIED.iter().filter_map(|key| Some(((*key).to_owned(), fields.get(*key)?.clone()))).collect();
    for key in ["items", "additionalProperties", "not"] {
        if let Some(part) = fields.get(key) {
            own.insert(key.to_owned(), translated(part));
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        if let Some(parts) = fields.get(key).and_then(Value::as_array) {
            own.insert(key.to_owned(), parts.iter().map(translated).collect());
        }
    }
    if let Some(parts) = fields.get("properties").and_then(Value::as_object) {
        let parts = parts.iter().map(|(field, part)| (field.clone(), translated(part)));
        own.insert("properties".to_owned(), Value::Object(parts.collect()));
    }
    if flag(schema, "x-kubernetes-int-or-string") {
        own.insert("type".to_owned(), json!(["integer", "string"]));
    }
    if flag(schema, "nullable") { json!({"anyOf": [{"type": "null"}, own]}) } else { Value::Object(own) }
}

/// Returns a JSON pointer as Kubernetes writes paths: `spec.egressIPs[0]`.
fn field_path(pointer: &str) -> String {
    pointer.split('/').skip(1).fold(String::new(), |path, part| {
        let part = part.replace("~1", "/").replace("~0", "~");
        if part.parse::<usize>().is_ok() { format!("{path}[{part}]") } else { below(&path, &part) }
    })
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let Ok(length) = length.parse::<u8>() else { return false };
    address
        .parse::<std::net::IpAddr>()
        .is_ok_and(|address| length <= if address.is_ipv4() { 32 } else { 128 })
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<_> = text.split([':', '-']).collect();
    parts.len() == 6 && parts.iter().all(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok())
}

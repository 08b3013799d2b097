//! Schemas of values whose types have none: how they are written in a config file and in JSON.

use std::borrow::Cow;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::json;

use crate::policy::Choice;

/// A duration as people write it.
pub(crate) struct Span;

/// A path.
pub(crate) struct File;

/// An IPv4 network.
pub(crate) struct Network;

/// A hardware address.
pub(crate) struct Mac;

/// A choice, by its word on the command line.
pub(crate) struct Word<T>(PhantomData<T>);

/// Implements the schema of a string of some format.
macro_rules! shape {
    ($($name:ident = $format:literal,)+) => {
        $(impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $format.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": $format })
            }
        })+
    };
}

shape! {
    Span = "duration",
    File = "path",
    Network = "ipv4-network",
    Mac = "mac",
}

impl<T: Choice> JsonSchema for Word<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "word".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let choice = |(_, word, meaning): &(T, &str, &str)| json!({ "type": "string", "const": word, "description": format!("{meaning}.") });
        json_schema!({ "oneOf": T::WORDS.iter().map(choice).collect::<Vec<_>>() })
    }
}

//! JSON schemas as tables: what an object may hold, of which type, and what it means.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::table;

/// Definitions that schemas refer to, by name.
pub(super) struct Definitions<'a> {
    /// The definitions.
    pub(super) by_name: &'a Map<String, Value>,
    /// Whether each object among them has a section of its own on the page.
    pub(super) has_sections: bool,
}

/// One field of an object.
pub(super) struct Field<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Its type, in words.
    pub(super) kind: String,
    /// What holds when it is left out.
    pub(super) default: String,
    /// What it means.
    pub(super) meaning: String,
    /// The object that it is, or has a list of.
    pub(super) object: Option<&'a Value>,
    /// Whether it is a list.
    pub(super) is_list: bool,
}

impl<'a> Definitions<'a> {
    /// Returns the fields of an object, by name.
    pub(super) fn fields(&self, object: &'a Value) -> Vec<Field<'a>> {
        let Some(properties) = object["properties"].as_object() else { return Vec::new() };
        let required: Vec<_> =
            object["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let sorted: BTreeMap<_, _> = properties.iter().collect();
        let field = |(name, schema): (&'a String, &'a Value)| self.field(name, schema, &required);
        sorted.into_iter().map(field).collect()
    }

    fn field(&self, name: &'a str, schema: &'a Value, required: &[&str]) -> Field<'a> {
        let target = self.target(schema);
        let is_list = target["type"] == "array";
        let element = if is_list { self.target(&target["items"]) } else { target };
        let default = match &schema["default"] {
            _ if required.contains(&name) => "required".to_owned(),
            Value::Null => String::new(),
            Value::Array(list) if list.is_empty() => "none".to_owned(),
            Value::Object(_) => String::new(),
            default => format!("`{default}`"),
        };
        let described = schema["description"].as_str().or(target["description"].as_str()).unwrap_or_default();
        let choices = choices(element, described);
        Field {
            name,
            kind: self.kind(schema),
            default,
            meaning: [described, &choices].join(" ").trim_end().to_owned(),
            object: element["properties"].is_object().then_some(element),
            is_list,
        }
    }

    /// Returns what a schema refers to, past what only says that it may be null.
    fn target(&self, schema: &'a Value) -> &'a Value {
        if let Some(name) = reference(schema) {
            return self.by_name.get(name).map_or(schema, |found| self.target(found));
        }
        let alternatives = ["anyOf", "oneOf", "allOf"].iter().find_map(|word| schema[*word].as_array());
        let not_null: Vec<_> =
            alternatives.into_iter().flatten().filter(|other| other["type"] != "null").collect();
        match not_null[..] {
            [only] => self.target(only),
            _ => schema,
        }
    }

    /// Returns the type of a schema in words.
    fn kind(&self, schema: &'a Value) -> String {
        let target = self.target(schema);
        if let Some(link) = self.link(schema) {
            return link;
        }
        let or_null = if may_be_null(schema) { " or null" } else { "" };
        format!("{}{or_null}", self.plain_kind(target))
    }

    /// Returns a link to the section about what a schema refers to, if there is one.
    fn link(&self, schema: &'a Value) -> Option<String> {
        let choices = schema["anyOf"].as_array().into_iter().flatten();
        let name = reference(schema).or_else(|| choices.filter_map(reference).next())?;
        let is_object = self.by_name.get(name).is_some_and(|found| found["properties"].is_object());
        let or_null = if may_be_null(schema) { " or null" } else { "" };
        (self.has_sections && is_object).then(|| format!("[{name}](#{}){or_null}", name.to_lowercase()))
    }

    fn plain_kind(&self, target: &'a Value) -> String {
        let types: Vec<_> = match &target["type"] {
            Value::String(one) => vec![one.as_str()],
            Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let kind = types.into_iter().find(|kind| *kind != "null").unwrap_or("value");
        match (kind, target["format"].as_str()) {
            (_, Some("ipv4")) => "IPv4 address".to_owned(),
            (_, Some("cidr" | "ipv4-network")) => "IPv4 network".to_owned(),
            (_, Some("duration")) => "duration".to_owned(),
            (_, Some("path")) => "path".to_owned(),
            (_, Some("mac")) => "MAC".to_owned(),
            ("array", _) => format!("list of {}", self.kind(&target["items"])),
            ("object", _) if target["additionalProperties"].is_object() => {
                format!("{} by name", self.kind(&target["additionalProperties"]))
            }
            ("object", _) => "object".to_owned(),
            ("string" | "value", _) if !words(target).is_empty() => "word".to_owned(),
            ("integer" | "number", _) => "number".to_owned(),
            (kind, _) => kind.to_owned(),
        }
    }

    /// Returns the fields of an object as a table.
    pub(super) fn table(&self, object: &'a Value, has_defaults: bool) -> String {
        let fields = self.fields(object);
        let name = |field: &Field| format!("`{}`", field.name);
        if has_defaults {
            let kind = |field: &Field| field.kind.trim_end_matches(" or null").to_owned();
            let row = |field: Field| vec![name(&field), kind(&field), field.default, field.meaning];
            table(&["key", "type", "default", "meaning"], fields.into_iter().map(row))
        } else {
            let row = |field: Field| vec![name(&field), field.kind, field.meaning];
            table(&["field", "type", "meaning"], fields.into_iter().map(row))
        }
    }
}

/// Returns the name of the definition that a schema refers to.
fn reference(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.rsplit('/').next()
}

fn may_be_null(schema: &Value) -> bool {
    let is_null = |kind: &Value| kind == "null";
    let by_type = schema["type"].as_array().is_some_and(|types| types.iter().any(is_null));
    let by_choice = schema["anyOf"].as_array().is_some_and(|all| all.iter().any(|one| one["type"] == "null"));
    by_type || by_choice
}

/// Returns the words that a schema takes, and what each means where it says so.
fn words(schema: &Value) -> Vec<(&str, Option<&str>)> {
    let plain =
        schema["enum"].as_array().into_iter().flatten().filter_map(|word| Some((word.as_str()?, None)));
    let described = schema["oneOf"].as_array().into_iter().flatten().flat_map(|choice| {
        let meaning = choice["description"].as_str();
        let several = choice["enum"].as_array().into_iter().flatten();
        several.chain(choice.get("const")).filter_map(move |word| Some((word.as_str()?, meaning)))
    });
    plain.chain(described).collect()
}

/// Returns the words that a schema takes as sentences, but for those that are explained already.
fn choices(schema: &Value, described: &str) -> String {
    let choice = |(word, meaning): (&str, Option<&str>)| match meaning {
        Some(meaning) => format!("`{word}`: {}", decapitalised(meaning)),
        None => format!("`{word}`."),
    };
    let untold = |(word, meaning): &(&str, Option<&str>)| meaning.is_some() || !described.contains(word);
    words(schema).into_iter().filter(untold).map(choice).collect::<Vec<_>>().join(" ")
}

/// Returns a sentence as it stands after a colon; names that are all capitals stay.
fn decapitalised(sentence: &str) -> String {
    let mut letters = sentence.chars();
    match (letters.next(), letters.clone().next()) {
        (Some(first), Some(second)) if !second.is_uppercase() => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => sentence.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn types_defaults_words_and_lists_are_read_from_a_schema() {
        let definitions = json!({
            "Mode": { "oneOf": [
                { "const": "native", "type": "string", "description": "In the driver." },
                { "const": "auto", "type": "string", "description": "XDP as it can." },
            ]},
            "Port": { "type": "object", "properties": { "port": { "type": "integer" } } },
        });
        let object = json!({ "required": ["name"], "properties": {
            "name": { "type": "string", "description": "Its name." },
            "mode": { "$ref": "#/$defs/Mode", "default": "auto", "description": "How." },
            "ports": { "type": "array", "items": { "$ref": "#/$defs/Port" }, "default": [] },
            "timeout": { "type": ["string", "null"], "format": "duration", "description": "a | b" },
        }});
        let definitions = Definitions { by_name: definitions.as_object().unwrap(), has_sections: false };
        let expected = "| key | type | default | meaning |\n|---|---|---|---|\n\
            | `mode` | value | `\"auto\"` | How. `native`: in the driver. `auto`: XDP as it can. |\n\
            | `name` | string | required | Its name. |\n\
            | `ports` | list of object | none |  |\n\
            | `timeout` | duration |  | a \\| b |\n";
        assert_eq!(definitions.table(&object, true), expected.replace("value", "word"));
        let ports = &definitions.fields(&object)[2];
        assert!(ports.is_list && ports.object.is_some_and(|port| port["properties"]["port"].is_object()));
    }
}

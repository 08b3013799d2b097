//! The page about the config file.

use super::head;
use super::schema::{Definitions, Field};
use crate::config::schema;

/// Sections in the order in which a file has them; others follow.
const ORDER: [&str; 11] = [
    "inside",
    "outside",
    "xdp",
    "workers",
    "sessions",
    "timeouts",
    "tcp",
    "cluster",
    "kubernetes",
    "control",
    "log",
];

/// Returns the page.
pub(super) fn page() -> String {
    let schema = schema();
    let none = serde_json::Map::new();
    let definitions =
        Definitions { by_name: schema["$defs"].as_object().unwrap_or(&none), has_sections: false };
    let mut sections = definitions.fields(&schema);
    sections.sort_by_key(|section| {
        let place = ORDER.iter().position(|name| *name == section.name).unwrap_or(ORDER.len());
        (place, section.is_list)
    });
    let body: String = sections.iter().map(|section| write_section(&definitions, "", section)).collect();
    head("Config file", "`control/src/config/file.rs`") + INTRODUCTION + &body
}

const INTRODUCTION: &str = "
`spillway run --config FILE` reads a [TOML](https://toml.io) file; [deploy/spillway.toml](../deploy/spillway.toml) is one
to start from, with a comment on each key. A key that is unknown, or a value that cannot work, is refused at start with the
key, the value and what would be accepted. The file is read at start only: `systemctl restart spillway` takes up a
change, and costs no connection.

A duration is text such as `\"90s\"`, `\"5m\"` or `\"2h4m\"`.
";

/// Writes a section, and the objects in it as sections of their own.
fn write_section<'a>(definitions: &Definitions<'a>, parent: &str, section: &Field<'a>) -> String {
    let Some(object) = section.object else { return String::new() };
    let (name, depth) = match parent {
        "" => (section.name.to_owned(), "##"),
        parent => (format!("{parent}.{}", section.name), "###"),
    };
    let title = if section.is_list { format!("[[{name}]]") } else { format!("[{name}]") };
    let fields = definitions.fields(object);
    let nested = fields.iter().map(|field| write_section(definitions, &name, field));
    format!(
        "\n{depth} `{title}`\n\n{}\n\n{}{}",
        section.meaning,
        definitions.table(object, true),
        nested.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;
    use crate::config::{Config, DEFAULT_METRICS, DEFAULT_SOCKET};

    const LEAST: &str = "inside.interface = 'in0'\noutside.interface = 'out0'\n";

    #[test]
    fn every_key_says_what_it_means() {
        let silent: Vec<_> = keys().into_iter().filter(|(_, _, says)| !says).map(|(key, ..)| key).collect();
        assert!(silent.is_empty(), "doc comments are missing in config/file.rs: {silent:?}");
    }

    /// A file that spells every default out is the same as one that has none of these keys.
    #[test]
    fn defaults_are_those_of_the_code() {
        let mut spelt = LEAST.to_owned();
        for (key, default, _) in keys() {
            let Some(default) = default.filter(|default| !default.is_null()) else { continue };
            if !key.starts_with("tenant.") && !key.starts_with("nat_log.") {
                spelt.push_str(&format!("{key} = {default}\n"));
            }
        }
        assert!(spelt.lines().count() > 15, "{spelt}");
        let read = |text: &str| format!("{:?}", Config::parse(text, &[0]).unwrap());
        // Where these two are named the daemon knows that they are.
        let named = format!("control.socket = {DEFAULT_SOCKET:?}\ncontrol.metrics = \"{DEFAULT_METRICS}\"\n");
        let expected = read(&format!("{LEAST}{named}"));
        assert_eq!(read(&spelt), expected, "{spelt}");
    }

    /// The example has every key, set or commented out, none else, and shows defaults as they are.
    #[test]
    fn the_example_has_every_key_with_its_default() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let example = std::fs::read_to_string(root.join("deploy/spillway.toml")).unwrap();
        let uncommented: String = example
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let file: toml::Value = toml::from_str(&uncommented).unwrap();
        let mut shown = Vec::new();
        flatten("", &serde_json::to_value(file).unwrap(), &mut shown);
        let keys = keys();
        let unknown: Vec<_> =
            shown.iter().filter(|(path, _)| !keys.iter().any(|(key, ..)| key == path)).collect();
        assert!(unknown.is_empty(), "not keys: {unknown:?}");
        for (key, default, _) in keys {
            let values: Vec<_> =
                shown.iter().filter(|(path, _)| *path == key).map(|(_, value)| value).collect();
            assert!(!values.is_empty(), "deploy/spillway.toml does not show {key}");
            let is_example = EXAMPLES.contains(&key.as_str());
            if let Some(default) = default.filter(|default| !default.is_null() && !is_example) {
                assert!(
                    values.contains(&&default),
                    "{key}: the example shows {values:?}, default is {default}"
                );
            }
        }
    }

    /// Keys whose value in the example is not the default.
    const EXAMPLES: [&str; 4] =
        ["cluster.pod_cidrs", "workers.cores", "kubernetes.kubeconfig", "tenant.pod_cidrs"];

    fn flatten(parent: &str, value: &Value, into: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                let path = if parent.is_empty() { name.clone() } else { format!("{parent}.{name}") };
                flatten(&path, value, into);
            }),
            Value::Array(list) if list.iter().all(Value::is_object) && !list.is_empty() => {
                list.iter().for_each(|element| flatten(parent, element, into));
            }
            value => into.push((parent.to_owned(), value.clone())),
        }
    }

    /// Returns every key of a config file as a path with dots, its default, and whether something is said of it.
    fn keys() -> Vec<(String, Option<Value>, bool)> {
        let schema = schema();
        let none = serde_json::Map::new();
        let definitions =
            Definitions { by_name: schema["$defs"].as_object().unwrap_or(&none), has_sections: false };
        let mut keys = Vec::new();
        collect("", &definitions, &schema, &mut keys);
        keys
    }

    fn collect<'a>(
        parent: &str,
        definitions: &Definitions<'a>,
        object: &'a Value,
        keys: &mut Vec<(String, Option<Value>, bool)>,
    ) {
        for field in definitions.fields(object) {
            let path = format!("{parent}{}", field.name);
            match field.object {
                Some(object) => collect(&format!("{path}."), definitions, object, keys),
                None => {
                    let default = object["properties"][field.name].get("default").cloned();
                    keys.push((path, default, !field.meaning.is_empty()));
                }
            }
        }
    }
}

//! Names of what events tell beside their message. A name means the same wherever it is.

/// Every name, and what it means.
pub const FIELDS: &[(&str, &str)] = &[
    ("address", "IPv4 address"),
    ("age", "time since the sessions' process ended"),
    ("aside", "file that a damaged one was moved to"),
    ("core", "core that the worker is pinned to"),
    ("count", "lines that were kept back"),
    ("descriptor", "file descriptor"),
    ("disowned", "sessions of tenants or egress addresses that are there no more"),
    ("doing", "what the kernel says that a thread does"),
    ("ended", "sessions that were ended"),
    ("epoch", "number of a configuration snapshot"),
    ("error", "what went wrong, with its causes"),
    ("filter", "log filter"),
    ("interface", "name of a network interface"),
    ("lasts", "time after which a log filter goes back by itself"),
    ("link", "name of a tenant's link"),
    ("look", "which frames are looked at"),
    ("method", "HTTP method"),
    ("of", "target of lines that were kept back"),
    ("over", "sessions whose time was over"),
    ("packets", "number of packets"),
    ("panic", "message of a panic"),
    ("path", "file, or path of a request"),
    ("pid", "process that asked"),
    ("pod_cidr", "network of pods"),
    ("prefix", "destination of a route"),
    ("queues", "number of queues"),
    ("reason", "reason of a drop, as in the table of dropped packets"),
    ("restored", "sessions that go on"),
    ("routes", "number of routes"),
    ("selection", "which sessions are meant"),
    ("side", "inside or outside"),
    ("sink", "what the log of translations is written to"),
    ("tenant", "name of a tenant"),
    ("tenants", "number of tenants"),
    ("thread", "id of a thread"),
    ("torn", "sessions whose record was not written to its end"),
    ("uid", "user who asked"),
    ("unfit", "sessions that did not fit"),
    ("via", "next hop"),
    ("worker", "number of a worker"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use super::*;

    /// Looks at every call of a logging macro in the product's sources.
    #[test]
    fn every_field_of_the_code_is_in_the_table_and_every_row_is_used() {
        let mut used = BTreeSet::new();
        for source in sources() {
            let text = std::fs::read_to_string(&source).unwrap();
            let product = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            for call in calls(product) {
                used.extend(names(call).into_iter().map(|name| (name.to_owned(), source.clone())));
            }
        }
        let known: BTreeSet<_> = FIELDS.iter().map(|(name, _)| *name).collect();
        assert_eq!(known.len(), FIELDS.len(), "a name is there twice");
        assert!(FIELDS.is_sorted());
        let unknown: Vec<_> = used.iter().filter(|(name, _)| !known.contains(name.as_str())).collect();
        assert!(unknown.is_empty(), "FIELDS of control/src/logging/fields.rs lacks {unknown:?}");
        let used: BTreeSet<_> = used.iter().map(|(name, _)| name.as_str()).collect();
        let unused: Vec<_> = known.difference(&used).collect();
        assert!(unused.is_empty(), "no event has {unused:?}");
    }

    #[test]
    fn names_are_read_from_a_call() {
        let call = r#"error = &error as &dyn Error, %address, a = f(b, c), ?age, "said {age}""#;
        assert_eq!(names(call), ["error", "address", "a", "age"]);
        assert_eq!(names(r#""only, a {message}""#), [""; 0]);
        assert_eq!(names(r#"target: "x", worker, "said""#), ["worker"]);
    }

    fn sources() -> Vec<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut directories: Vec<_> =
            ["conntrack", "fastpath", "control"].iter().map(|name| root.join(name).join("src")).collect();
        let mut files = Vec::new();
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else if !path.ends_with("tests.rs") && path.extension().is_some_and(|ending| ending == "rs")
                {
                    files.push(path);
                }
            }
        }
        files
    }

    /// Returns what stands between the parentheses of each call.
    fn calls(text: &str) -> Vec<&str> {
        let starts = ["error!(", "warn!(", "info!(", "debug!(", "trace!("];
        let mut found = Vec::new();
        for start in starts {
            for (at, _) in text.match_indices(start) {
                let body = &text[at + start.len()..];
                let mut depth = 1;
                let end = body.char_indices().find(|(_, letter)| {
                    depth += i32::from(*letter == '(') - i32::from(*letter == ')');
                    depth == 0
                });
                found.push(&body[..end.unwrap().0]);
            }
        }
        found
    }

    /// Returns the names of the fields of a call: what comes before its message.
    fn names(call: &str) -> Vec<&str> {
        let (mut names, mut rest) = (Vec::new(), call.trim_start());
        while !rest.starts_with('"') && !rest.is_empty() {
            let mut depth = 0;
            let end = rest.char_indices().find(|(_, letter)| {
                depth += i32::from(matches!(letter, '(' | '[' | '{'))
                    - i32::from(matches!(letter, ')' | ']' | '}'));
                depth == 0 && *letter == ','
            });
            let end = end.map_or(rest.len(), |(at, _)| at);
            let name =
                rest[..end].split('=').next().unwrap_or_default().trim().trim_start_matches(['%', '?']);
            if !name.starts_with("target:") {
                names.push(name.rsplit('.').next().unwrap_or(name));
            }
            rest = rest[end..].trim_start_matches(',').trim_start();
        }
        names
    }
}

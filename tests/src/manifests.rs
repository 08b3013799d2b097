//! The workspace's manifests, as far as its rules about dependencies need them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Every crate of the workspace, by directory; the fuzz targets belong to the fast path.
pub const CRATES: [&str; 6] = ["conntrack", "fastpath", "control", "bench", "tests", "tests/apiserver"];

/// Returns the workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns what a crate depends on, for its build, its tests and itself, by the crates' own names.
///
/// # Errors
/// When its manifest cannot be read.
pub fn dependencies(name: &str) -> Result<BTreeSet<String>> {
    let path = root().join(name).join("Cargo.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let manifest: toml::Table = toml::from_str(&text).with_context(|| format!("{}", path.display()))?;
    let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
    let mut found: BTreeSet<String> = tables.iter().flat_map(|key| names(manifest.get(*key))).collect();
    for target in
        manifest.get("target").and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::values)
    {
        found.extend(tables.iter().flat_map(|key| names(target.get(key))));
    }
    Ok(found)
}

/// Returns the Rust files below a directory of the workspace that hold `words`, relative to the directory.
///
/// # Errors
/// When one cannot be read.
pub fn sources_with(directory: &str, words: &str) -> Result<Vec<PathBuf>> {
    let source = root().join(directory);
    let mut found = Vec::new();
    let mut open = vec![source.clone()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).with_context(|| format!("{}", directory.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|end| end == "rs")
                && std::fs::read_to_string(&path)?.contains(words)
            {
                found.push(path.strip_prefix(&source)?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn names(table: Option<&toml::Value>) -> Vec<String> {
    let own = |(key, value): (&String, &toml::Value)| {
        value.get("package").and_then(toml::Value::as_str).unwrap_or(key).to_owned()
    };
    table.and_then(toml::Value::as_table).into_iter().flatten().map(own).collect()
}

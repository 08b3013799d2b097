//! The references in `docs/` say what the code says.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};

use control::reference::{REFRESH, pages};

#[test]
fn the_references_are_as_the_code() {
    let is_update = std::env::var_os("UPDATE").is_some_and(|value| value == "1");
    let mut stale = Vec::new();
    for page in pages() {
        let path = root().join(page.path);
        if is_update {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, page.text).unwrap();
        } else if std::fs::read_to_string(&path).unwrap_or_default() != page.text {
            stale.push(page.path);
        }
    }
    assert!(stale.is_empty(), "{stale:?} differ from the code; run `{REFRESH}` and commit what it changes");
}

/// Every link between the pages, and from them into the repository, leads to a file.
#[test]
fn no_link_of_the_documentation_is_broken() {
    let docs = root().join("docs");
    let mut files: Vec<_> = std::fs::read_dir(&docs).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.push(root().join("README.md"));
    let mut links = 0;
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "md")) {
        let text = std::fs::read_to_string(file).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            assert!(target.exists(), "{}: {link} leads nowhere", file.display());
            assert!(anchor.is_empty() || has_heading(&target, anchor), "{}: {link}", file.display());
            links += 1;
        }
    }
    assert!(links > 10, "{links} links were found");
}

/// Tells whether a page has a heading that this anchor names.
fn has_heading(page: &Path, anchor: &str) -> bool {
    let anchor_of = |heading: &str| {
        let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
        heading.trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    let text = std::fs::read_to_string(page).unwrap();
    text.lines()
        .filter(|line| line.starts_with('#'))
        .any(|line| anchor_of(line.trim_start_matches('#')) == anchor)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

//! The workspace's shape: who may depend on whom, and who alone may name what.

use std::collections::BTreeSet;

use anyhow::Result;
use spillway_tests::manifests::{CRATES, dependencies, root, sources_with};

#[test]
fn dependencies_run_one_way() -> Result<()> {
    let allowed: [(&str, &[&str]); 6] = [
        ("conntrack", &[]),
        ("fastpath", &["conntrack"]),
        ("control", &["conntrack", "fastpath"]),
        ("bench", &["conntrack", "fastpath", "control", "spillway-apiserver"]),
        ("tests", &["conntrack", "fastpath", "control", "spillway-apiserver"]),
        ("tests/apiserver", &[]),
    ];
    let members =
        ["conntrack", "fastpath", "control", "spillway-bench", "spillway-tests", "spillway-apiserver"];
    for (name, allowed) in allowed {
        let named = dependencies(name)?;
        let wrong: Vec<_> =
            members.iter().filter(|member| named.contains(**member) && !allowed.contains(member)).collect();
        assert!(wrong.is_empty(), "{name} must not depend on {wrong:?}");
    }
    Ok(())
}

#[test]
fn a_library_with_one_home_is_named_in_no_other_manifest() -> Result<()> {
    let homes: [(&str, &[&str]); 8] = [
        ("afxdp", &["fastpath"]),
        ("aya", &["fastpath", "bench"]),
        ("tokio", &["control", "tests/apiserver"]),
        ("kube", &["control", "tests/apiserver"]),
        ("rtnetlink", &["control"]),
        ("prometheus", &["control"]),
        ("ratatui", &["control"]),
        ("clap", &["control", "bench", "tests/apiserver"]),
    ];
    for name in CRATES {
        let named = dependencies(name)?;
        for (library, homes) in homes {
            assert!(!named.contains(library) || homes.contains(&name), "{name} must not name {library}");
        }
    }
    Ok(())
}

#[test]
fn one_file_alone_names_afxdp() -> Result<()> {
    let files = sources_with("fastpath/src", "afxdp::")?;
    assert!(files.len() <= 1, "{files:?} name afxdp; only the implementation of FrameIo may");
    Ok(())
}

#[test]
fn clap_is_named_in_the_command_line_only() -> Result<()> {
    for sources in ["control/src", "tests/apiserver/src"] {
        let outside: BTreeSet<_> = sources_with(sources, "clap::")?
            .into_iter()
            .filter(|file| ["cli", "query", "main.rs"].iter().all(|home| !file.starts_with(home)))
            .collect();
        assert!(outside.is_empty(), "{sources}: {outside:?} name clap; only cli, query and main.rs may");
    }
    Ok(())
}

#[test]
fn unsafe_code_is_forbidden_outside_of_the_fast_path() -> Result<()> {
    for name in CRATES.iter().filter(|name| **name != "fastpath") {
        let files = sources_with(&format!("{name}/src"), "#![forbid(unsafe_code)]")?;
        assert!(!files.is_empty(), "{name} does not say #![forbid(unsafe_code)] at its root");
    }
    Ok(())
}

#[test]
fn every_test_that_the_compliance_table_names_exists() -> Result<()> {
    let table = std::fs::read_to_string(root().join("conntrack/RFC.md"))?;
    let named: BTreeSet<_> = table
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.contains('_') && !word.contains('.'))
        .collect();
    assert!(named.len() > 15, "the table names tests: {named:?}");
    for test in named {
        let function = format!("fn {test}(");
        let mut found = Vec::new();
        for directory in CRATES {
            for sources in ["src", "tests"].map(|part| format!("{directory}/{part}")) {
                if root().join(&sources).is_dir() {
                    found.extend(sources_with(&sources, &function)?);
                }
            }
        }
        assert!(!found.is_empty(), "no test is called {test}");
    }
    Ok(())
}

//! The program as people run it: what needs its own binary, and what it leaves behind.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use nix::unistd::Uid;
use serde_json::Value;

/// Tells whether namespaces may be made; says so when the test is skipped, and fails when it must not be.
fn may_make_namespaces() -> bool {
    let allowed = Uid::effective().is_root();
    if !allowed {
        let required = std::env::var_os("REQUIRE_NETNS").is_some_and(|value| value == "1");
        assert!(!required, "REQUIRE_NETNS=1, but network namespaces need root");
        // Not println: what a passing test prints is not shown.
        let _ = writeln!(std::io::stderr(), "SKIPPED: network namespaces need root");
    }
    allowed
}

#[test]
fn raw_af_xdp_forwards_every_size_and_leaves_nothing_behind() {
    if !may_make_namespaces() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (json, report) = (directory.path().join("wire.json"), directory.path().join("report"));
    let words = "--seed 7 wire --system kernel-forward raw-afxdp raw-afxdp-split --flows 64 --frames imix --seconds 1 \
                 --rounds 1 --rate ndr --trials 1";
    let child = Command::new(env!("CARGO_BIN_EXE_spillway-bench"))
        .args(words.split_whitespace())
        .args(["--json".as_ref(), json.as_os_str(), "--report".as_ref(), report.as_os_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let name = format!("spillway-bench-{}", child.id());
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("raw-afxdp-split") && printed.contains("seed 7"), "{printed}");

    let figures: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(figures["seed"], 7);
    assert_eq!(figures["wire"]["xdp_mode"], "native");
    let systems = figures["wire"]["rows"][0]["systems"].as_array().unwrap();
    assert_eq!(systems.len(), 3);
    for system in systems {
        assert!(system["forwarded_mpps"]["median"].as_f64().unwrap() > 0.0, "{system}");
        assert_eq!(system["rounds"][0]["search"]["trials"].as_array().unwrap().len(), 1, "{system}");
    }
    assert!(fs::read_to_string(report.join("index.html")).unwrap().contains("raw-afxdp"));
    for place in ["/run/netns", "/sys/fs/bpf"] {
        let entries = fs::read_dir(place).into_iter().flatten().flatten();
        let left: Vec<_> =
            entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&name)).collect();
        assert!(left.is_empty(), "{place}: {left:?}");
    }
}

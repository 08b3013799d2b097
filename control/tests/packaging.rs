//! What packages bring beside the program: manual pages and shell completions, judged by the real readers.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::{Command, Output};

#[test]
fn manual_pages_are_there_for_every_command_and_groff_has_nothing_to_say() {
    let directory = tempfile::tempdir().unwrap();
    let output = spillway(&["man", directory.path().to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let pages: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|page| page.unwrap().path()).collect();
    for name in ["spillway.1", "spillway-run.1", "spillway-tenant-add.1", "spillway-log-set.1"] {
        assert!(pages.iter().any(|page| page.ends_with(name)), "{name} is not among {pages:?}");
    }
    for page in &pages {
        let mut groff = Command::new("groff");
        let output = groff.args(["-man", "-ww", "-Tutf8", "-P-cbou"]).arg(page).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.is_empty(), "{}: {said}", page.display());
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(shown.contains("NAME") && shown.contains("SYNOPSIS"), "{}: {shown}", page.display());
    }
}

#[test]
fn bash_completes_commands_their_flags_and_words() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("spillway");
    let output = spillway(&["completions", "bash"]);
    assert!(output.status.success(), "{output:?}");
    std::fs::write(&script, output.stdout).unwrap();
    let table: [(&[&str], &[&str]); 5] = [
        (&["spillway", "te"], &["tenant"]),
        (&["spillway", "tenant", "sh"], &["show"]),
        (&["spillway", "tenant", "add", "--gw"], &["--gw-ip"]),
        (&["spillway", "log", ""], &["set", "reset"]),
        (&["spillway", "run", "--log-format", "j"], &["json", "journald"]),
    ];
    for (words, expected) in table {
        let completed = complete(&script, words);
        for word in expected {
            assert!(completed.iter().any(|found| found == word), "{words:?}: {completed:?} lacks {word}");
        }
    }
    assert_eq!(complete(&script, &["spillway", "te"]), ["tenant"]);
}

#[test]
fn zsh_and_fish_get_scripts_of_theirs() {
    for (shell, sign) in [("zsh", "#compdef spillway"), ("fish", "complete -c spillway")] {
        let output = spillway(&["completions", shell]);
        assert!(String::from_utf8(output.stdout).unwrap().contains(sign), "{shell}");
    }
}

/// Returns what bash offers when the tab key is pressed behind these words.
fn complete(script: &Path, words: &[&str]) -> Vec<String> {
    let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    let (last, before) = (words.len() - 1, quoted.iter().rev().nth(1).unwrap());
    let line = format!(
        "source '{}'\nCOMP_WORDS=({})\nCOMP_CWORD={last}\ncomplete -p spillway >/dev/null\n_spillway spillway {} {before}\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        quoted.join(" "),
        quoted[last],
    );
    let output = Command::new("bash").args(["--norc", "-c", &line]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn spillway(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spillway")).args(arguments).output().unwrap()
}

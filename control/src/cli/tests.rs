//! Flags, and what they say of themselves.

use clap::{CommandFactory, Parser};

use super::Arguments;

#[test]
fn flags_are_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn the_version_is_the_products() {
    assert_eq!(Arguments::command().render_version(), "spillway 0.1.0\n");
}

#[test]
fn every_command_has_an_example() {
    let mut missing = Vec::new();
    let root = Arguments::command();
    collect_without_example(&root, &mut missing);
    assert!(missing.is_empty(), "no example in the help of {missing:?}");
}

#[test]
fn the_old_tools_flags_are_understood() {
    let line = "spillway add-tenant --name n --gw-ip 192.168.99.13 --egress-ip 192.168.55.113 --mark 0x10 \
                --dev enp1s0 --out-dev enp7s0 --pod-cidr 10.132.0.0/14";
    Arguments::try_parse_from(line.split_whitespace()).unwrap();
    Arguments::try_parse_from("spillway remove-tenant --name n --mark 0x10".split_whitespace()).unwrap();
}

#[test]
fn wrong_usage_ends_with_2() {
    for line in ["spillway", "spillway tenant add n", "spillway fly", "spillway status --limit 3"] {
        let error = Arguments::try_parse_from(line.split_whitespace()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

fn collect_without_example(command: &clap::Command, missing: &mut Vec<String>) {
    let mut leaves = command.get_subcommands().filter(|sub| sub.get_name() != "help").peekable();
    if leaves.peek().is_none() {
        let help = command.clone().render_help().to_string();
        if !help.contains("Example") {
            missing.push(command.get_name().to_owned());
        }
        return;
    }
    leaves.for_each(|leaf| collect_without_example(leaf, missing));
}

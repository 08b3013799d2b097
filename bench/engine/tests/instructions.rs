//! How many instructions a packet takes, as callgrind counts them in an optimised build: the same on every machine of
//! one kind, so a regression shows.

use std::process::Command;

const PACKETS: u64 = 64_000;

/// What a packet may take in the express lane, from the received frame to the translated one.
const LANE: u64 = 252;
/// What a packet may take in a worker's turn, with its share of rings, counters and the rest.
const TURN: u64 = 365;
/// What a packet may take more in a turn while somebody looks, and not at it.
const LOOKED_AT: u64 = 20;
/// What the first packet of a session may take in a worker's turn.
const NEW_SESSION: u64 = 2520;
/// What the end of a session may take in a worker's turn, when 64 end in each.
const END: u64 = 705;

/// Runs a command and returns what it wrote.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?}:\n{text}");
    text
}

/// Counts the instructions in some functions while sessions begin, packets pass and, if they do, sessions end.
fn count(functions: &[&str], sessions: u64, packets: u64, looks: u64, ends: u64) -> u64 {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "../../target".to_owned());
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.args(functions.iter().map(|function| format!("--toggle-collect=*{function}*")));
    command
        .arg(format!("{target}/release/examples/hit"))
        .args([sessions, packets, 0, looks, ends].map(|number| number.to_string()));
    let text = run(&mut command);
    let collected = text.lines().find_map(|line| line.split_once("Collected :")).expect("callgrind sums up");
    collected.1.trim().parse().expect("it is a number")
}

#[test]
fn a_packet_takes_few_instructions() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    run(Command::new(cargo).args(["build", "--release", "-p", "spillway-bench-engine", "--example", "hit"]));
    let per_packet = |functions: &[&str], looks| {
        let begun = count(functions, 8192, 0, looks, 0);
        (count(functions, 8192, PACKETS, looks, 0) - begun) / PACKETS
    };
    let lane = per_packet(&["Lanes::look_ahead", "Lanes::pass"], 0);
    let turn = per_packet(&["Rig::turn"], 0);
    let looked_at = [1, 2].map(|looks| per_packet(&["Rig::turn"], looks).saturating_sub(turn));
    let begun = count(&["Rig::turn"], 16_384, 0, 0, 0);
    let new_session = (begun - count(&["Rig::turn"], 8192, 0, 0, 0)) / 8192;
    let end = (count(&["Rig::turn"], 16_384, 0, 0, 1) - begun) / 16_384;
    println!("lane {lane}, turn {turn}, looked at {looked_at:?} more, new session {new_session}, end {end}");
    assert!(looked_at.iter().all(|more| *more <= LOOKED_AT), "{looked_at:?} more, {LOOKED_AT} at most");
    assert!(lane <= LANE, "{lane} instructions in the lane, {LANE} at most");
    assert!(turn <= TURN, "{turn} instructions in a turn, {TURN} at most");
    assert!(
        new_session <= NEW_SESSION,
        "{new_session} instructions for a new session, {NEW_SESSION} at most"
    );
    assert!(end <= END, "{end} instructions for the end of a session, {END} at most");
}

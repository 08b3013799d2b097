//! Anything may come in, in any order, while time passes and snapshots change.
#![no_main]

use fastpath::testing::fuzzing::Plan;

libfuzzer_sys::fuzz_target!(|plan: Plan| {
    plan.play();
});

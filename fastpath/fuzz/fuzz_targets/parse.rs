//! Any bytes are parsed or refused.
#![no_main]

use fastpath::testing::fuzzing::Input;

libfuzzer_sys::fuzz_target!(|input: Input| {
    input.parse();
});

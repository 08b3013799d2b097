//! The Spillway daemon and command line.
#![forbid(unsafe_code)]

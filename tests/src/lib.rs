//! Helpers that the end-to-end tests share. The lab itself is [`control::demo`]'s.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod doctor;
pub mod fixture;
pub mod flood;
pub mod machine;
pub mod manager;
pub mod manifests;
pub mod peers;
pub mod prometheus;

pub mod soak;
pub mod storm;
pub mod stream;
pub mod talk;
pub mod terminal;

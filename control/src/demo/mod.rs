//! A gateway with everything around it, in network namespaces of this machine.
//!
//! `spillway demo` runs its story on it, and the end-to-end tests build theirs on the same [`Lab`].

pub mod capture;
pub mod cluster;
pub mod command;
pub mod gateway;
pub mod inventory;
pub mod lab;
pub mod namespace;
pub mod process;
mod screen;
pub mod server;
mod story;
pub mod topology;
pub mod wait;

pub use inventory::{clean, missing_privilege};
pub use lab::{Lab, LabOptions};
pub use story::{Options, run};

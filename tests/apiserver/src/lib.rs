//! A stand-in for the Kubernetes API server, for tests: small, honest about the API's conventions, and able to fail
//! in every way that a real one does.
//!
//! ```text
//!  kube, kubectl ──▶ http ──▶ cluster ──▶ store (one counter of versions, shared objects, history)
//!                     │          └─ schema (custom resources)
//!  tests, scripts ──▶ faults
//! ```
//!
//! - [`ApiServer`] and [`Handle`]: a server on threads of its own
//! - [`Faults`]: the switches that make it fail
//! - [`Requests`]: what was asked of it
//! - `cluster`: objects, and the rules about changing them
//! - `schema`: what definitions and custom resources must be
//! - `http`: paths, lists, watches, discovery
//!
//! What it does not do: several versions of a definition and conversion between them; conflicts of server-side apply,
//! and fields that plain updates own; merging of lists by a strategic patch; the two faces of an event (`v1` and
//! `events.k8s.io/v1` are kept apart); users, roles and admission webhooks; cost limits of validation rules; tables,
//! protobuf and `/openapi`; controllers of any kind, so a pod that is deleted without a grace period is gone at once.
#![forbid(unsafe_code)]

mod cluster;
mod error;
mod faults;
mod http;
mod kubeconfig;
mod requests;
mod schema;
mod server;

pub use error::ApiError;
pub use faults::Faults;
pub use kubeconfig::Credentials;
pub use requests::{Requests, Verb};
pub use server::{ApiServer, Handle, Options};

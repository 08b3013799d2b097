//! The Kubernetes API: what the cluster asks of the gateway, and what the gateway tells it.
//!
//! ```text
//!  API server ─▶ watch ─▶ collection ─▶ objects ─▶ view ─▶ ClusterState ─▶ Gateway ─▶ kernel, fast path
//!      ▲                                                        │              │
//!      └───────────── report (status, events) ◀── status ◀──────┴── Outcome ◀──┘
//! ```
//!
//! - [`credentials`]: the kubeconfig and the files that it names
//! - [`connection`]: one client for everybody, exchanged when credentials change
//! - [`trouble`]: what may be wrong between the gateway and the API
//! - [`watch`]: objects of one kind, listed and watched
//! - [`collection`]: objects of one kind, as lists and watches tell of them
//! - [`egress_tenant`]: the custom resource that names a tenant
//! - `schema`: what the API server checks of it
//! - [`objects`]: what is kept of each object
//! - [`view`]: all objects, compiled into what the cluster asks of the gateway
//! - `routes`: nodes into return routes
//! - `tenants`: EgressTenants into tenants, oldest first
//! - `links`: policies, namespaces and pods into what is routed to each tenant
//! - `pods`: names of the pods behind addresses
//! - [`status`]: what each EgressTenant is told of itself
//! - [`writes`]: which statuses have to be written
//! - [`bulletin`]: which notices have to be published
//! - [`report`]: statuses and events, written
//! - [`follow`]: the task that does all of it
//! - `keeper`: the last state, kept for the next start
//! - [`health`]: how well the cluster is known
//! - [`state`]: what crosses between the cluster's side and the gateway's

pub mod bulletin;
pub mod collection;
pub mod connection;
pub mod credentials;
pub mod egress_tenant;
#[cfg(test)]
mod fixtures;
pub mod follow;
pub mod health;
mod keeper;
mod links;
pub mod objects;
mod pods;
pub mod report;
mod routes;
mod schema;
#[cfg(test)]
mod scripted;
pub mod state;
pub mod status;
mod tenants;
pub mod trouble;
pub mod view;
pub mod watch;
pub mod writes;

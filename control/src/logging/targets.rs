//! Names of the parts of the gateway that log, which do not change when modules do.

use tracing::Metadata;

/// A part of the gateway whose level can be set.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name in filters, and in the log's JSON and journal.
    pub name: &'static str,
    /// The modules that it is made of; of several that match the longest counts.
    pub modules: &'static [&'static str],
    /// What it tells of.
    pub meaning: &'static str,
}

/// Every part of the gateway.
pub const TARGETS: &[Target] = &[
    target("api", &["control::api"], "requests over the control socket, and who may not make them"),
    target("daemon", &["control"], "start, stop, and whatever is not listed here"),
    target(
        "interfaces",
        &["control::daemon::attachment", "fastpath::steer", "fastpath::io"],
        "the two interfaces, their XDP programs and sockets, and who takes them away",
    ),
    target(
        "kubernetes",
        &["control::kubernetes", "control::daemon::cluster"],
        "the Kubernetes API, and what the cluster asks for",
    ),
    target(
        "log",
        &["control::logging", "control::api::log"],
        "the log itself: changes of levels, and lines that were too many",
    ),
    target("metrics", &["control::metrics", "control::daemon::metering"], "metrics, and who reads them"),
    target("nat_log", &["control::nat_log"], "the log of translations, and what it is written to"),
    target(
        "netlink",
        &["control::netlink", "control::daemon::program", "control::sysctl"],
        "links, addresses, routes, neighbours and settings of the kernel, as they are changed",
    ),
    target(
        "tenants",
        &["control::daemon::changes", "control::daemon::shortage", "control::registry"],
        "tenants that people add and remove, and sessions that were refused to them",
    ),
    target(
        "workers",
        &["fastpath", "conntrack", "control::daemon::supervisor"],
        "the threads that forward, and who watches over them",
    ),
];

/// All other crates; levels finer than `info` hold for them only when they are named.
pub const LIBRARIES: &str = "libraries";

/// Crates that tell of every refused try; the gateway tells of it once. They are silent unless they are named.
pub const QUIET: [&str; 2] = ["kube_client", "kube_runtime"];

/// Crates that may be named in a filter beside [`LIBRARIES`].
pub const CRATES: [&str; 11] = [
    "aya",
    "axum",
    "hyper",
    "hyper_util",
    "kube_client",
    "kube_runtime",
    "mio",
    "netlink_proto",
    "rtnetlink",
    "rustls",
    "tower",
];

const fn target(name: &'static str, modules: &'static [&'static str], meaning: &'static str) -> Target {
    Target { name, modules, meaning }
}

/// Returns the name of the part that a module belongs to; of another crate's module, its path.
pub fn name_of(module: &str) -> &str {
    let modules =
        TARGETS.iter().flat_map(|target| target.modules.iter().map(|module| (*module, target.name)));
    let own = modules.filter(|(prefix, _)| is_within(module, prefix)).max_by_key(|(prefix, _)| prefix.len());
    own.map_or(module, |(_, name)| name)
}

/// Returns the name of the part that an event is of.
pub fn target_of(metadata: &Metadata<'static>) -> &'static str {
    name_of(metadata.target())
}

/// Tells whether a module is another one or in it.
pub(super) fn is_within(module: &str, outer: &str) -> bool {
    module.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn modules_have_the_name_of_the_nearest_part() {
        let table = [
            ("control::kubernetes::follow", "kubernetes"),
            ("control::daemon", "daemon"),
            ("control::daemon::cluster", "kubernetes"),
            ("control::daemon::clusters", "daemon"),
            ("fastpath::runner", "workers"),
            ("fastpath::steer::guard", "interfaces"),
            ("kube_client::client", "kube_client::client"),
            ("controller", "controller"),
        ];
        for (module, name) in table {
            assert_eq!(name_of(module), name, "{module}");
        }
    }

    #[test]
    fn every_module_of_the_table_exists() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for module in TARGETS.iter().flat_map(|target| target.modules) {
            let (own, rest) = module.split_once("::").unwrap_or((module, "lib"));
            let path = root.join(own).join("src").join(rest.replace("::", "/"));
            let is_there = path.with_extension("rs").exists() || path.join("mod.rs").exists();
            assert!(is_there, "{module}: {}", path.display());
        }
    }
}

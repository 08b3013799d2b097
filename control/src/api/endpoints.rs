//! What can be asked of the daemon, in one table: the reference and refusals of unknown paths are made from it.

/// A request that the API answers.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// Method.
    pub method: &'static str,
    /// Path, with what stands for something in capitals.
    pub path: &'static str,
    /// What it takes: keys of the query, or the type of the body.
    pub takes: &'static str,
    /// What it answers when all is well.
    pub answers: &'static str,
}

/// Every request.
pub const ENDPOINTS: &[Endpoint] = &[
    endpoint("GET", "/v1/status", "", "`Status`"),
    endpoint("GET", "/v1/health", "", "`Fitness`: whether the gateway lives; 503 unless it does"),
    endpoint("GET", "/v1/ready", "", "`Fitness`: whether it serves as it should; 503 unless it does"),
    endpoint("GET", "/v1/metrics", "", "every [metric](metrics.md), as Prometheus reads it"),
    endpoint("GET", "/v1/tenants", "", "list of `TenantView`"),
    endpoint("GET", "/v1/tenants/NAME", "", "`TenantView`"),
    endpoint("PUT", "/v1/tenants/NAME", "`Tenant`", "`TenantView`; the tenant is there now, as it was given"),
    endpoint("DELETE", "/v1/tenants/NAME", "", "204; the tenant is gone"),
    endpoint("GET", "/v1/routes", "", "list of `RouteView`"),
    endpoint("GET", "/v1/explain", "`ImaginedPacket` as query", "`Explanation`"),
    endpoint(
        "GET",
        "/v1/capture",
        "`Look` as query",
        "a stream of pcapng: the frames that are meant, as they come",
    ),
    endpoint(
        "GET",
        "/v1/trace",
        "`Look` as query",
        "a stream with an `Explanation` on each line; the last line is `{\"missed\":N}`",
    ),
    endpoint(
        "GET",
        "/v1/who",
        "`outside` (ADDRESS:PORT), `protocol`, `remote` (ADDRESS:PORT), and for the past `from` and `until` as query",
        "`WhoAnswer`",
    ),
    endpoint("GET", "/v1/log", "", "`LogView`"),
    endpoint("PUT", "/v1/log", "`LogChange`", "`LogView`"),
    endpoint("DELETE", "/v1/log", "", "`LogView`; the filter is the one that the daemon started with"),
    endpoint(
        "GET",
        "/v1/sessions",
        "`Selection`, `limit` (1 to 10,000, else 100) and `after` (the `next` of the page before) as query",
        "`SessionPage`",
    ),
    endpoint(
        "DELETE",
        "/v1/sessions",
        "`Selection` as query; `all=true` for every session",
        "`EndedSessions`; those that are meant have ended",
    ),
];

const fn endpoint(
    method: &'static str,
    path: &'static str,
    takes: &'static str,
    answers: &'static str,
) -> Endpoint {
    Endpoint { method, path, takes, answers }
}

/// Returns every path once, as a sentence lists them.
pub(super) fn known_paths() -> String {
    let mut paths: Vec<_> = ENDPOINTS.iter().map(|endpoint| endpoint.path).collect();
    paths.dedup();
    match paths.split_last() {
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

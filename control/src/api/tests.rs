//! Requests and refusals of the API, against a registry alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request as HttpRequest, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower::ServiceExt;

use super::{health_router, router};
use crate::api::types::{TenantStatus, TenantView};
use crate::api::{Caller, Request};
use crate::registry::{Entry, Host, Registry, Source};
use crate::tenant::mac_to_text;
use crate::vitals::Vitals;

#[tokio::test]
async fn a_tenant_is_put_shown_and_removed() {
    let api = start();
    let blue = json!({ "gatewayIP": "192.168.99.13", "egressIPs": ["192.168.55.113"] });
    for _ in 0..2 {
        let (status, view) = api.ask(Method::PUT, "/v1/tenants/ns-blue", blue.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{view}");
        assert_eq!(view["tenant"]["name"], "ns-blue");
        assert_eq!(view["source"], "controlSocket");
        assert_eq!(view["status"]["gatewayMAC"], "02:53:c0:a8:63:0d");
        assert_eq!(view["status"]["drops"], json!({ "no_port": 3 }));
    }
    let (status, tenants) = api.ask(Method::GET, "/v1/tenants", "").await;
    assert_eq!((status, tenants.as_array().unwrap().len()), (StatusCode::OK, 2));
    assert_eq!(api.ask(Method::DELETE, "/v1/tenants/ns-blue", "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(api.ask(Method::GET, "/v1/tenants/ns-blue", "").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn refusals_have_a_status_a_field_and_a_message() {
    let put = Method::PUT;
    let ours = "/v1/tenants/ns-blue";
    let wrong_type = json!({ "gatewayIP": "192.168.99.13", "egressIPs": [7] });
    let wrong_cidr = json!({
        "gatewayIP": "192.168.99.13", "egressIPs": ["192.168.55.113"], "sources": { "podCIDRs": ["ten"] },
    });
    let unknown_key = json!({ "gatewayIP": "192.168.99.13", "egressIPs": ["192.168.55.113"], "mark": 16 });
    let body = |gateway: &str, egress: &str| json!({ "gatewayIP": gateway, "egressIPs": [egress] });
    let open = json!({
        "gatewayIP": "192.168.99.13", "egressIPs": ["192.168.55.113"], "filtering": "EndpointIndependent",
    });
    let unknown_mapping = json!({
        "gatewayIP": "192.168.99.13", "egressIPs": ["192.168.55.113"], "mapping": "Symmetric",
    });
    let limit = |name: &str, value: i64| {
        let (gateway, egress) = ("192.168.99.13", ["192.168.55.113"]);
        json!({ "gatewayIP": gateway, "egressIPs": egress, "limits": { name: value } }).to_string()
    };
    let other_name = json!({ "name": "x", "gatewayIP": "192.168.99.13", "egressIPs": ["192.168.55.113"] });
    let table = [
        (&put, ours, "{".to_owned(), 400, "body"),
        (&put, ours, format!("{} x", body("192.168.99.13", "192.168.55.113")), 400, "body"),
        (&put, ours, wrong_type.to_string(), 400, "egressIPs[0]"),
        (&put, ours, wrong_cidr.to_string(), 400, "sources.podCIDRs[0]"),
        (&put, ours, unknown_key.to_string(), 400, "mark"),
        (&put, ours, " ".repeat(super::MAX_BODY_BYTES + 1), 413, "body"),
        (&put, ours, other_name.to_string(), 422, "name"),
        (&put, ours, open.to_string(), 422, "filtering"),
        (&put, ours, unknown_mapping.to_string(), 400, "mapping"),
        (&put, ours, limit("ports", 1 << 32), 400, "limits.ports"),
        (&put, ours, limit("sessionsPerPod", -1), 400, "limits.sessionsPerPod"),
        (&put, ours, limit("bytes", 1), 400, "limits.bytes"),
        (&put, ours, body("10.0.0.1", "192.168.55.113").to_string(), 422, "gatewayIP"),
        (&put, ours, body("192.168.99.14", "192.168.55.113").to_string(), 409, "gatewayIP"),
        (&put, ours, body("192.168.99.13", "192.168.55.114").to_string(), 409, "egressIPs[0]"),
        (&put, "/v1/tenants/ns-red", body("192.168.99.14", "192.168.55.115").to_string(), 409, "name"),
        (&Method::DELETE, "/v1/tenants/ns-red", String::new(), 409, "name"),
        (&Method::DELETE, ours, String::new(), 404, "name"),
        (&Method::GET, "/v1/sessions?limit=0", String::new(), 422, "limit"),
        (&Method::GET, "/v1/sessions?limit=many", String::new(), 422, "limit"),
        (&Method::GET, "/v1/sessions?most=1", String::new(), 400, "query"),
        (&Method::GET, "/v1/sessions?after=2", String::new(), 422, "after"),
        (&Method::DELETE, "/v1/sessions", String::new(), 422, "all"),
        (&Method::DELETE, "/v1/sessions?all=false", String::new(), 422, "all"),
        (&Method::DELETE, "/v1/sessions?pod=10.132.0.5&limit=1", String::new(), 422, "limit"),
        (&Method::GET, "/v1/tenants/%FF", String::new(), 400, "name"),
        (&put, "/v1/tenants/%FF", body("192.168.99.13", "192.168.55.113").to_string(), 400, "name"),
        (&Method::DELETE, "/v1/tenants/%FF", String::new(), 400, "name"),
        (&Method::GET, "/v2", String::new(), 404, ""),
        (&Method::POST, ours, String::new(), 405, ""),
    ];
    let api = start();
    for (method, path, body, status, field) in table {
        let (got, answer) = api.ask(method.clone(), path, body).await;
        assert_eq!(got.as_u16(), status, "{method} {path}: {answer}");
        assert_eq!(answer["error"]["field"].as_str().unwrap_or_default(), field, "{answer}");
        assert!(!answer["error"]["message"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn who_may_only_look_changes_nothing() {
    let api = Api { caller: Caller { uid: 1000, pid: 7, may_change: false }, ..start() };
    let blue = json!({ "gatewayIP": "192.168.99.13", "egressIPs": ["192.168.55.113"] }).to_string();
    let changes = [
        (Method::PUT, "/v1/tenants/ns-blue"),
        (Method::DELETE, "/v1/tenants/ns-red"),
        (Method::DELETE, "/v1/sessions?all=true"),
    ];
    for (method, path) in changes {
        let (status, answer) = api.ask(method, path, blue.clone()).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(answer["error"]["message"].as_str().unwrap().contains("user 1000 may look"), "{answer}");
    }
    let (status, tenants) = api.ask(Method::GET, "/v1/tenants", "").await;
    assert_eq!((status, tenants.as_array().unwrap().len()), (StatusCode::OK, 1));
}

#[tokio::test]
async fn health_and_readiness_are_told_with_reasons_on_both_ways_in() {
    let vitals = Arc::new(Vitals::default());
    let (sender, _requests) = mpsc::channel(1); // nobody answers, and nobody is asked
    let socket = Api { router: router(sender, Arc::clone(&vitals)), caller: Caller::default() };
    let http = Api { router: health_router(Arc::clone(&vitals)), caller: Caller::default() };
    vitals.set_obstacles(vec!["the inside interface is away".to_owned()]);
    let away = json!({ "ok": false, "reasons": ["the inside interface is away"] });
    let well = json!({ "ok": true, "reasons": [] });
    for (api, health, ready) in [(&socket, "/v1/health", "/v1/ready"), (&http, "/healthz", "/readyz")] {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(api.ask(Method::GET, health, "").await, (StatusCode::OK, well.clone()));
        assert_eq!(api.ask(Method::GET, ready, "").await, (unavailable, away.clone()));
        assert_eq!(api.ask(Method::PUT, ready, "").await.0, StatusCode::METHOD_NOT_ALLOWED);
    }
    assert_eq!(http.ask(Method::GET, "/v1/status", "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(http.ask(Method::DELETE, "/v1/tenants/ns-red", "").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_daemon_that_stops_is_told_apart() {
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    let api = Api { router: router(sender, Arc::default()), caller: ROOT };
    assert_eq!(api.ask(Method::GET, "/v1/status", "").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

/// Who asks, unless a test says otherwise.
const ROOT: Caller = Caller { uid: 0, pid: 1, may_change: true };

struct Api {
    router: axum::Router,
    caller: Caller,
}

impl Api {
    async fn ask(&self, method: Method, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
        let request = HttpRequest::builder().method(method).uri(path).extension(self.caller);
        let request = request.body(body.into()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }
}

/// Starts an API whose registry holds ns-red from the config file.
fn start() -> Api {
    let (sender, mut requests) = mpsc::channel(1);
    let mut registry = Registry::default();
    let red = json!({ "name": "ns-red", "gatewayIP": "192.168.99.14", "egressIPs": ["192.168.55.114"] });
    registry.put(serde_json::from_value(red).unwrap(), Source::ConfigFile, &host()).unwrap();
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            answer(&mut registry, request);
        }
    });
    Api { router: router(sender, Arc::default()), caller: ROOT }
}

fn answer(registry: &mut Registry, request: Request) {
    match request {
        Request::Tenants(reply) => drop(reply.send(Ok(registry.entries().map(view).collect()))),
        Request::Tenant(name, reply) => drop(reply.send(registry.get(&name).map(view))),
        Request::PutTenant(tenant, _, reply) => {
            let name = tenant.name.clone();
            let put = registry.put(tenant, Source::ControlSocket, &host());
            drop(reply.send(put.and_then(|_| registry.get(&name).map(view))));
        }
        Request::RemoveTenant(name, _, reply) => {
            drop(reply.send(registry.remove(&name, Source::ControlSocket, std::time::Instant::now())));
        }
        Request::Status(_)
        | Request::Metrics(_)
        | Request::Routes(_)
        | Request::Desk(_)
        | Request::Who(_) => {}
    }
}

fn view(entry: &Entry) -> TenantView {
    TenantView {
        tenant: entry.tenant.clone(),
        source: entry.source,
        status: TenantStatus {
            gateway_mac: mac_to_text(entry.tenant.effective_mac()),
            link: entry.tenant.link_name(),
            drops: BTreeMap::from([("no_port".to_owned(), 3)]),
            ..TenantStatus::default()
        },
    }
}

fn host() -> Host {
    Host {
        inside_network: "192.168.99.12/24".parse().unwrap(),
        addresses: BTreeMap::new(),
        macs: Vec::new(),
        pod_cidrs: vec!["10.132.0.0/14".parse().unwrap()],
        has_kubernetes: false,
    }
}

//! What may be asked of the log, and by whom.

use axum::body::Body;
use axum::http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use tracing_subscriber::reload;

use super::*;
use crate::api::Caller;
use crate::logging::dial::Dial;
use crate::logging::limit::Limit;

/// A log that nothing is written to.
struct Desk {
    router: Router,
    may_change: bool,
    _layer: reload::Layer<tracing_subscriber::filter::Targets, tracing_subscriber::Registry>,
}

impl Desk {
    fn new() -> Self {
        let (_layer, handle) = reload::Layer::new(Filter::default().targets());
        let log = Log { dial: Dial::new(handle, Filter::default()), limit: Limit::new() };
        Self { router: log_router(log), may_change: true, _layer }
    }

    async fn ask(&self, method: Method, body: Value) -> (StatusCode, Value) {
        let caller = Caller { uid: 7, pid: 1, may_change: self.may_change };
        let request = Request::builder().method(method).uri("/v1/log").extension(caller);
        let request = request.body(Body::from(body.to_string())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    async fn level(&self, name: &str) -> Value {
        let (status, view) = self.ask(Method::GET, Value::Null).await;
        assert_eq!(status, StatusCode::OK);
        let targets = view["targets"].as_array().unwrap().clone();
        targets.into_iter().find(|target| target["name"] == name).unwrap()["level"].clone()
    }
}

#[tokio::test]
async fn a_filter_is_set_shown_by_target_and_reset() {
    let desk = Desk::new();
    assert_eq!(desk.level("kubernetes").await, "info");
    let (status, view) = desk.ask(Method::PUT, json!({ "filter": "warn,kubernetes=debug" })).await;
    assert_eq!((status, &view["filter"]), (StatusCode::OK, &json!("warn,kubernetes=debug")));
    assert_eq!(
        (&view["secondsLeft"], &view["then"], &view["initial"]),
        (&Value::Null, &Value::Null, &json!("info"))
    );
    assert_eq!(desk.level("kubernetes").await, "debug");
    assert_eq!(desk.level("api").await, "warn");
    let (status, view) = desk.ask(Method::DELETE, Value::Null).await;
    assert_eq!((status, &view["filter"]), (StatusCode::OK, &json!("info")));
    assert_eq!(desk.level("kubernetes").await, "info");
}

#[tokio::test(start_paused = true)]
async fn a_filter_for_a_while_goes_back_by_itself() {
    let desk = Desk::new();
    let (status, view) = desk.ask(Method::PUT, json!({ "filter": "debug", "forSeconds": 600 })).await;
    assert_eq!((status, &view["secondsLeft"], &view["then"]), (StatusCode::OK, &json!(600), &json!("info")));
    tokio::time::sleep(Duration::from_secs(599)).await;
    assert_eq!(desk.level("api").await, "debug");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(desk.level("api").await, "info");
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_field() {
    let desk = Desk::new();
    let table = [
        (json!({ "filter": "kubernets=debug" }), 422, "filter", "\"kubernets\" is no target"),
        (json!({ "filter": "" }), 422, "filter", "is empty"),
        (json!({ "filter": "info", "forSeconds": 0 }), 422, "forSeconds", "0 is not between 1 and 604800"),
        (json!({ "filter": "info", "forSeconds": 604_801 }), 422, "forSeconds", "604801 is not"),
        (json!({ "level": "info" }), 400, "body", "unknown field `level`"),
    ];
    for (body, status, field, message) in table {
        let (got, answer) = desk.ask(Method::PUT, body.clone()).await;
        assert_eq!((got.as_u16(), &answer["error"]["field"]), (status, &json!(field)), "{body}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().starts_with(message), "{body}: {answer}");
    }
    assert_eq!(desk.level("api").await, "info");
}

#[tokio::test]
async fn who_may_only_look_sets_no_filter() {
    let desk = Desk { may_change: false, ..Desk::new() };
    for (method, body) in [(Method::PUT, json!({ "filter": "trace" })), (Method::DELETE, Value::Null)] {
        assert_eq!(desk.ask(method, body).await.0, StatusCode::FORBIDDEN);
    }
    assert_eq!(desk.level("api").await, "info");
}

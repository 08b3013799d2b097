//! Asks the Kubernetes API what Spillway may do, and changes nothing.

use std::time::Duration;

use futures_util::future::join_all;
use http_body_util::BodyExt;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::fmt::rfc2822::DateTimeParser;
use kube::api::PostParams;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use tokio::time::timeout;

use super::described;
use crate::config::{Config, Kubernetes};
use crate::doctor::cluster::{NEEDS, Need};
use crate::doctor::evidence::{Cluster, ClusterAnswers, Known};

/// Time for each answer of the API server.
const WITHIN: Duration = Duration::from_secs(10);

/// Asks the API that the config file names.
pub async fn ask(config: &Known<Config>) -> Cluster {
    let kubernetes = match config {
        Err(_) => return Cluster::NotAsked("the config file is not usable".to_owned()),
        Ok(config) => config.kubernetes.as_ref(),
    };
    let Some(kubernetes) = kubernetes else {
        return Cluster::NotAsked("kubernetes.enabled is false".to_owned());
    };
    match connect(kubernetes).await {
        Ok((client, server)) => ask_client(client, server).await,
        Err(reason) => Cluster::NoCredentials(reason),
    }
}

async fn connect(kubernetes: &Kubernetes) -> Known<(Client, String)> {
    let config = match &kubernetes.kubeconfig {
        Some(path) => {
            let named = |error: String| format!("kubernetes.kubeconfig: {}: {error}", path.display());
            let file = Kubeconfig::read_from(path).map_err(|error| named(described(error)))?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(|error| named(described(error)))?
        }
        None => kube::Config::infer().await.map_err(described)?,
    };
    let server = config.cluster_url.to_string();
    Ok((Client::try_from(config).map_err(described)?, server))
}

/// Asks an API server. `server` is its name in the report.
pub async fn ask_client(client: Client, server: String) -> Cluster {
    let seconds_ahead = match reach(&client).await {
        Ok(seconds_ahead) => seconds_ahead,
        Err(Trouble::Refused(reason)) => return Cluster::Refused(format!("{server}: {reason}")),
        Err(Trouble::Unreachable(reason)) => return Cluster::Unreachable(format!("{server}: {reason}")),
    };
    Cluster::Answers(ClusterAnswers {
        server,
        seconds_ahead,
        has_tenants: has_kind(&client, "spillway.dev/v1alpha1", "egresstenants").await,
        has_policies: has_kind(&client, "k8s.ovn.org/v1", "adminpolicybasedexternalroutes").await,
        allowed: join_all(NEEDS.iter().map(|need| may(&client, need))).await,
    })
}

enum Trouble {
    Unreachable(String),
    Refused(String),
}

/// Asks for the version, which every account may read, and returns how far ahead the server's clock is.
async fn reach(client: &Client) -> Result<Known<i64>, Trouble> {
    let request = http::Request::get("/version").body(Body::empty()).expect("the path is a sound one");
    let response = match timeout(WITHIN, client.send(request)).await {
        Err(_) => return Err(Trouble::Unreachable(format!("no answer within {} s", WITHIN.as_secs()))),
        Ok(Err(error)) => return Err(Trouble::Unreachable(described(error))),
        Ok(Ok(response)) => response,
    };
    let (status, date) = (response.status(), response.headers().get(http::header::DATE).cloned());
    if status == http::StatusCode::UNAUTHORIZED || status == http::StatusCode::FORBIDDEN {
        return Err(Trouble::Refused(format!("{status}{}", message(response.into_body()).await)));
    }
    if status.is_server_error() {
        return Err(Trouble::Unreachable(format!("{status}{}", message(response.into_body()).await)));
    }
    let date = date.as_ref().map_or(&b""[..], |date| date.as_bytes());
    Ok(seconds_ahead(date, Timestamp::now()))
}

async fn message(body: Body) -> String {
    let Ok(bytes) = body.collect().await else { return String::new() };
    let status: Option<serde_json::Value> = serde_json::from_slice(&bytes.to_bytes()).ok();
    let message = status.as_ref().and_then(|status| status["message"].as_str());
    message.map(|message| format!(": {message}")).unwrap_or_default()
}

fn seconds_ahead(date: &[u8], now: Timestamp) -> Known<i64> {
    if date.is_empty() {
        return Err("the API server does not tell its time".to_owned());
    }
    let date = DateTimeParser::new().parse_timestamp(date).map_err(described)?;
    Ok(date.as_second() - now.as_second())
}

async fn has_kind(client: &Client, version: &str, plural: &str) -> Known<bool> {
    let list = timeout(WITHIN, client.list_api_group_resources(version)).await;
    match list.map_err(|_| format!("no answer within {} s", WITHIN.as_secs()))? {
        Ok(list) => Ok(list.resources.iter().any(|resource| resource.name == plural)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(described(error)),
    }
}

async fn may(client: &Client, need: &Need) -> Known<bool> {
    let named = |value: &str| Some(value.to_owned()).filter(|value| !value.is_empty());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: named(need.verb),
                group: named(need.group),
                resource: named(need.resource),
                subresource: named(need.subresource),
                namespace: named(need.namespace),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let options = PostParams::default();
    let answer = timeout(WITHIN, reviews.create(&options, &review)).await;
    let answer =
        answer.map_err(|_| format!("no answer within {} s", WITHIN.as_secs()))?.map_err(described)?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response, StatusCode};
    use serde_json::{Value, json};
    use tower::service_fn;

    use super::*;

    #[tokio::test]
    async fn rights_that_are_missing_are_told_by_their_verb_and_resource() {
        let cluster = asked(|path, body| {
            let attributes = &body["spec"]["resourceAttributes"];
            let denied = attributes["resource"] == "pods" && attributes["verb"] == "watch"
                || attributes["subresource"] == "status";
            (path == ACCESS).then(|| (201, json!({ "spec": {}, "status": { "allowed": !denied } })))
        });
        let Cluster::Answers(answers) = cluster.await else { panic!("the API answers") };
        let denied = NEEDS.iter().zip(&answers.allowed).filter(|(_, allowed)| **allowed == Ok(false));
        let denied: Vec<_> = denied.map(|(need, _)| (need.verb, need.resource, need.subresource)).collect();
        assert_eq!(denied, [("watch", "pods", ""), ("patch", "egresstenants", "status")]);
        assert!(answers.allowed.iter().all(Result::is_ok), "{answers:?}");
        assert_eq!((answers.has_tenants, answers.has_policies), (Ok(true), Ok(true)));
    }

    #[tokio::test]
    async fn the_right_to_create_events_is_asked_for_where_the_role_grants_it() {
        let cluster = asked(|path, body| {
            let attributes = &body["spec"]["resourceAttributes"];
            let allowed = attributes["resource"] != "events" || attributes["namespace"] == "default";
            (path == ACCESS).then(|| (201, json!({ "spec": {}, "status": { "allowed": allowed } })))
        });
        let Cluster::Answers(answers) = cluster.await else { panic!("the API answers") };
        assert!(answers.allowed.iter().all(|allowed| *allowed == Ok(true)), "{answers:?}");
    }

    #[tokio::test]
    async fn a_kind_that_is_not_installed_is_told() {
        let cluster =
            asked(|path, _| (path == TENANTS).then(|| (404, json!({ "code": 404, "message": "not found" }))));
        let Cluster::Answers(answers) = cluster.await else { panic!("the API answers") };
        assert_eq!((answers.has_tenants, answers.has_policies), (Ok(false), Ok(true)));
    }

    #[tokio::test]
    async fn credentials_that_are_refused_and_a_server_that_fails_are_told_apart() {
        let refused =
            asked(|path, _| (path == "/version").then(|| (401, json!({ "message": "Unauthorized" }))));
        assert_eq!(refused.await, Cluster::Refused("test: 401 Unauthorized: Unauthorized".into()));
        let failed = asked(|path, _| (path == "/version").then(|| (503, json!({}))));
        assert_eq!(failed.await, Cluster::Unreachable("test: 503 Service Unavailable".into()));
    }

    #[test]
    fn the_servers_clock_is_compared_with_this_one() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        assert_eq!(seconds_ahead(b"Sat, 21 Nov 2026 10:01:30 GMT", now), Ok(90));
        assert_eq!(seconds_ahead(b"Sat, 21 Nov 2026 09:59:00 GMT", now), Ok(-60));
        assert!(seconds_ahead(b"", now).is_err() && seconds_ahead(b"soon", now).is_err());
    }

    #[tokio::test]
    async fn a_kubeconfig_that_cannot_be_read_is_named() {
        let kubernetes = Kubernetes { kubeconfig: Some("/nonexistent/kubeconfig".into()) };
        let Err(reason) = connect(&kubernetes).await else { panic!("there is no such file") };
        assert!(reason.starts_with("kubernetes.kubeconfig: /nonexistent/kubeconfig: "), "{reason}");
    }

    const ACCESS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    const TENANTS: &str = "/apis/spillway.dev/v1alpha1";

    /// Asks an API server that allows everything, but for the answers that are given here.
    async fn asked(
        answer: impl Fn(&str, &Value) -> Option<(u16, Value)> + Clone + Send + 'static,
    ) -> Cluster {
        let service = service_fn(move |request: Request<Body>| {
            let answer = answer.clone();
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let (status, body) = answer(&path, &body).unwrap_or_else(|| (200, usual(&path)));
                let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
                Ok::<_, Infallible>(response.body(Body::from(serde_json::to_vec(&body).unwrap())).unwrap())
            }
        });
        ask_client(Client::new(service, "default"), "test".to_owned()).await
    }

    fn usual(path: &str) -> Value {
        let kind = |version: &str, plural: &str| {
            let resource =
                json!({ "name": plural, "singularName": "", "kind": "", "namespaced": false, "verbs": [] });
            json!({ "groupVersion": version, "resources": [resource] })
        };
        match path {
            TENANTS => kind("spillway.dev/v1alpha1", "egresstenants"),
            "/apis/k8s.ovn.org/v1" => kind("k8s.ovn.org/v1", "adminpolicybasedexternalroutes"),
            ACCESS => json!({ "spec": {}, "status": { "allowed": true } }),
            _ => json!({ "major": "1", "minor": "34" }),
        }
    }
}

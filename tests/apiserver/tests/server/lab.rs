//! A server and its client, and what most tests begin with.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::utils::Backoff;
use kube::{Client, Config};
use serde_json::{Value, json};
use spillway_apiserver::{ApiServer, Credentials, Handle, Options};

/// Until when a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Lab {
    pub(crate) server: Handle,
    pub(crate) client: Client,
}

impl Lab {
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let server = ApiServer::start(options).unwrap();
        let client = client(&server, &Credentials::Inline).await;
        Self { server, client }
    }

    pub(crate) fn add_nodes(&self, names: &[&str]) {
        for name in names {
            self.server.create(node(name)).unwrap();
        }
    }

    pub(crate) fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    pub(crate) fn tenants(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("spillway.dev", "v1alpha1", "EgressTenant");
        Api::all_with(self.client.clone(), &ApiResource::from_gvk(&kind))
    }
}

/// Tries again after the same short time, so that a test with many faults stays short.
pub(crate) struct Steady;

impl Iterator for Steady {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(50))
    }
}

impl Backoff for Steady {
    fn reset(&mut self) {}
}

/// Makes a client that asks once, without trying again.
pub(crate) async fn client(server: &Handle, credentials: &Credentials) -> Client {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    server.kubeconfig(&path, credentials).unwrap();
    let kubeconfig = Kubeconfig::read_from(&path).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

pub(crate) fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"podCIDR": "10.132.0.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.99.21"}]},
    })
}

pub(crate) fn pod(namespace: &str, name: &str, node: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "app"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.132.0.5"}]},
    })
}

pub(crate) fn tenant(name: &str, gateway: &str) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "spillway.dev/v1alpha1", "kind": "EgressTenant",
        "metadata": {"name": name}, "spec": {"gatewayIP": gateway},
    }))
    .unwrap()
}

/// A definition like the one of the gateway's tenants.
pub(crate) fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "egresstenants.spillway.dev"},
        "spec": {
            "group": "spillway.dev", "scope": "Cluster",
            "names": {"plural": "egresstenants", "kind": "EgressTenant"},
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {
                        "type": "object", "required": ["gatewayIP"],
                        "properties": {
                            "gatewayIP": {"type": "string", "format": "ipv4"},
                            "mapping": {"type": "string", "enum": ["Dependent", "Independent"], "default": "Dependent"},
                            "egressIPs": {
                                "type": "array", "maxItems": 4, "items": {"type": "string"},
                                "x-kubernetes-list-type": "set",
                            },
                            "sessions": {"type": "integer", "minimum": 0},
                        },
                        "x-kubernetes-validations": [
                            {"rule": "self.gatewayIP == oldSelf.gatewayIP", "message": "gatewayIP must not change"},
                            {"rule": "self.gatewayIP != '10.0.0.1'", "message": "10.0.0.1 is reserved"},
                        ],
                    },
                    "status": {"type": "object", "properties": {
                        "sessions": {"type": "integer"}, "observedGeneration": {"type": "integer"},
                    }},
                }}},
            }],
        },
    })
}

/// Returns the code of an answer that had to be a refusal.
pub(crate) fn code<T: Debug>(answer: Result<T, kube::Error>) -> u16 {
    match answer {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("a refusal was expected: {other:?}"),
    }
}

/// Returns a stream's next item, which must come in time.
pub(crate) async fn next<S: Stream + Unpin>(stream: &mut S) -> S::Item {
    let item = tokio::time::timeout(PATIENCE, stream.next()).await.expect("an item comes in time");
    item.expect("the stream goes on")
}

/// Asks again until the answer is the expected one.
pub(crate) async fn eventually<T, F>(expected: T, mut ask: impl FnMut() -> F)
where
    T: PartialEq + Debug,
    F: Future<Output = T>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = ask().await;
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{expected:?} was expected in time: {found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

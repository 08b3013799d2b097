//! Whatever the config file, the state files, the cluster's objects and the control socket's clients say: it is taken
//! or refused with a reason, and nothing panics.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Uri};
use control::api::{Caller, Request as Asked, router};
use control::config::Config;
use control::kubernetes::objects::{NamespaceObject, NodeObject, PodObject, PolicyObject, TenantObject};
use control::kubernetes::state::{ClusterState, Outcome};
use control::kubernetes::view::{self, Surroundings, View};
use control::state::{StateDir, StateError};
use control::tenant::Tenant;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{DynamicObject, PartialObjectMeta};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tower::ServiceExt;

const CONFIG: &str = include_str!("../../deploy/spillway.toml");

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_config_file_is_taken_or_refused_with_a_reason(text in config_text()) {
        match Config::parse(&text, &[0, 1, 2, 3]) {
            Ok(config) => {
                prop_assert!(config.inside != config.outside);
                prop_assert!(config.pin_dir.is_absolute() && config.state_dir.is_absolute());
                prop_assert!(config.workers.is_none_or(|count| (1..=64).contains(&count)));
                prop_assert!(config.timeouts.udp >= Duration::from_secs(120));
                for tenant in &config.tenants {
                    prop_assert_eq!(tenant.check(), Ok(()));
                }
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn any_state_file_is_read_back_as_it_was_read_or_refused_by_name(
        files in [state_text(tenants_file()), state_text(cluster_file()), state_text(sysctls_file())],
    ) {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        for (name, text) in ["tenants.json", "kubernetes.json", "sysctls.json"].iter().zip(&files) {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let refusals = [
            again(&state, StateDir::load_tenants, |state, tenants| state.save_tenants(tenants.clone())),
            again(&state, load_cluster, StateDir::save_cluster),
            again(&state, StateDir::load_sysctls, StateDir::save_sysctls),
        ];
        for (name, refusal) in ["tenants.json", "kubernetes.json", "sysctls.json"].iter().zip(refusals) {
            prop_assert!(refusal.as_ref().is_none_or(|error| error.contains(name)), "{refusal:?}");
        }
    }

    #[test]
    fn any_objects_of_the_cluster_are_compiled_or_named(
        objects in vec((0..OBJECTS.len(), any::<Index>(), mutation()), 0..8),
    ) {
        let mut documents: Vec<Value> = OBJECTS.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        for (object, place, mutation) in objects {
            mutate(&mut documents[object], place, mutation);
        }
        let pods = read(&documents[1], |pod: &Pod| PodObject::read(pod));
        let view = View {
            nodes: Some(read(&documents[0], |node: &Node| NodeObject::read(node))),
            pods: BTreeMap::from([("ns-blue".to_owned(), Some(pods))]),
            namespaces: Some(read(&documents[2], |it: &PartialObjectMeta<Namespace>| NamespaceObject::read(it))),
            tenants: Some(read(&documents[3], |object: &DynamicObject| TenantObject::read(object))),
            policies: Some(read(&documents[4], |object: &DynamicObject| PolicyObject::read(object))),
        };
        let inside = "192.168.99.12/24".parse().unwrap();
        let surroundings = Surroundings { inside, ..Surroundings::default() };
        let compiled = view::compile(&view, &ClusterState::default(), &surroundings, &Outcome::default());
        let text = serde_json::to_string(&compiled.state).unwrap();
        let back: ClusterState = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(back.tenants, compiled.state.tenants);
        prop_assert_eq!(back.routes, compiled.state.routes);
        prop_assert_eq!(back.links, compiled.state.links);
        prop_assert!(compiled.notices.iter().all(|notice| !notice.message.is_empty()));
    }

    #[test]
    fn any_body_is_a_tenant_that_can_be_written_again_or_refused_with_a_message(
        name in "[ -~]{0,20}|ns-blue", body in state_text(tenant()),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (status, answer, asked) = runtime.block_on(put(&name, body));
        prop_assert!(asked.is_some() || (400..500).contains(&status), "{}", status);
        if let Some(tenant) = asked {
            let text = serde_json::to_string(&tenant).unwrap();
            prop_assert_eq!(serde_json::from_str::<Tenant>(&text).unwrap(), tenant);
        } else if status != 404 {
            let message = answer["error"]["message"].as_str().unwrap_or_default();
            prop_assert!(!message.is_empty(), "{}", answer);
        }
    }
}

fn load_cluster(state: &StateDir) -> Result<ClusterState, StateError> {
    Ok(state.load_cluster()?.map(|(cluster, _)| cluster).unwrap_or_default())
}

/// Loads what a file holds, saves it and loads it again; returns why it was refused, if it was.
fn again<T: PartialEq + std::fmt::Debug, E: std::error::Error>(
    state: &StateDir,
    load: impl Fn(&StateDir) -> Result<T, E>,
    save: impl Fn(&StateDir, &T) -> Result<(), E>,
) -> Option<String> {
    let loaded = match load(state) {
        Ok(loaded) => loaded,
        Err(error) => return Some(error.to_string()),
    };
    save(state, &loaded).unwrap();
    assert_eq!(load(state).unwrap(), loaded);
    None
}

/// Puts a tenant as a client would; returns what was answered and what the daemon was asked for.
async fn put(name: &str, body: Vec<u8>) -> (u16, Value, Option<Tenant>) {
    let (sender, mut requests) = mpsc::channel(1);
    let uri = Uri::builder().path_and_query(format!("/v1/tenants/{name}")).build();
    let Ok(uri) = uri else { return (404, Value::Null, None) };
    let caller = Caller { may_change: true, ..Caller::default() };
    let request = Request::builder().method(Method::PUT).uri(uri).extension(caller).body(Body::from(body));
    let answering = tokio::spawn(router(sender, Arc::default()).oneshot(request.unwrap()));
    let asked = match requests.recv().await {
        Some(Asked::PutTenant(tenant, _, _)) => Some(tenant),
        _ => None,
    };
    let response = answering.await.unwrap().unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default(), asked)
}

fn read<T: DeserializeOwned, O>(document: &Value, read: impl Fn(&T) -> O) -> BTreeMap<String, Arc<O>> {
    // What is no object of its kind is refused by the client, as it is here.
    let object = serde_json::from_value(document.clone()).ok();
    object.map(|object| ("one".to_owned(), Arc::new(read(&object)))).into_iter().collect()
}

/// A change of one place of a document.
#[derive(Clone, Debug)]
enum Mutation {
    Remove,
    Replace(Value),
    Rename(String),
    Repeat,
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        Just(Mutation::Remove),
        any_json().prop_map(Mutation::Replace),
        "[a-zA-Z]{0,8}|limits|sources|spec|status".prop_map(Mutation::Rename),
        Just(Mutation::Repeat),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        "[0-9./:a-f]{0,20}".prop_map(Value::from),
        "(25[0-9]|[0-9]{1,3})(\\.[0-9]{1,3}){3}(/[0-9]{1,3})?".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec(("[a-zA-Z]{0,8}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Changes one of the places of a document.
fn mutate(document: &mut Value, place: Index, mutation: Mutation) {
    let mut places = Vec::new();
    list_places(document, "", &mut places);
    let Some(pointer) = places.get(place.index(places.len().max(1))) else { return };
    let (parent, key) = pointer.rsplit_once('/').expect("a place is below the document");
    match (document.pointer_mut(parent), mutation) {
        (Some(Value::Object(map)), mutation) => {
            let key = key.replace("~1", "/").replace("~0", "~");
            let value = map.remove(&key).unwrap_or_default();
            match mutation {
                Mutation::Remove => None,
                Mutation::Replace(value) => map.insert(key, value),
                Mutation::Rename(name) => map.insert(name, value),
                Mutation::Repeat => map.insert(key, Value::from(vec![value; 3])),
            };
        }
        (Some(Value::Array(list)), mutation) => {
            let index = key.parse::<usize>().unwrap();
            match mutation {
                Mutation::Remove => drop(list.remove(index)),
                Mutation::Replace(value) => list[index] = value,
                Mutation::Rename(name) => list[index] = Value::from(name),
                Mutation::Repeat => list.push(list[index].clone()),
            }
        }
        _ => {}
    }
}

fn list_places(value: &Value, pointer: &str, places: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(list) => {
            list.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    for (key, child) in children {
        let pointer = format!("{pointer}/{key}");
        list_places(child, &pointer, places);
        places.push(pointer);
    }
}

/// Text that is nearly a config file: the example with its commented keys, changed here and there.
fn config_text() -> impl Strategy<Value = String> {
    let spelt = |line: &str| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') && !key.starts_with("metrics") => key.to_owned(),
        _ => line.to_owned(),
    };
    let full: String = CONFIG.lines().map(spelt).map(|line| line + "\n").collect();
    let value: toml::Table = toml::from_str(&full).unwrap();
    let document = serde_json::to_value(value).unwrap();
    let mutated = vec((any::<Index>(), mutation()), 0..4).prop_map(move |mutations| {
        let mut document = document.clone();
        mutations.into_iter().for_each(|(place, mutation)| mutate(&mut document, place, mutation));
        toml::to_string(&document).unwrap_or_default()
    });
    let bytes = vec((any::<Index>(), any::<char>()), 1..6).prop_map(move |edits| {
        let mut text: Vec<char> = full.chars().collect();
        for (place, character) in edits {
            let place = place.index(text.len());
            text[place] = character;
        }
        text.into_iter().collect()
    });
    prop_oneof![4 => mutated, 2 => bytes, 1 => "\\PC{0,200}"]
}

/// Bytes that are nearly a document: with other values, cut off, with other bytes, or none of it.
fn state_text(document: Value) -> impl Strategy<Value = Vec<u8>> {
    let text = document.to_string().into_bytes();
    let (whole, cut) = (text.clone(), text);
    let mutated = vec((any::<Index>(), mutation()), 0..4).prop_map(move |mutations| {
        let mut document = document.clone();
        mutations.into_iter().for_each(|(place, mutation)| mutate(&mut document, place, mutation));
        document.to_string().into_bytes()
    });
    let flipped = vec((any::<Index>(), any::<u8>()), 1..6).prop_map(move |edits| {
        let mut bytes = whole.clone();
        edits.into_iter().for_each(|(place, byte)| bytes[place.index(whole.len())] = byte);
        bytes
    });
    let cut = any::<Index>().prop_map(move |length| cut[..length.index(cut.len())].to_vec());
    prop_oneof![4 => mutated, 2 => flipped, 1 => cut, 1 => vec(any::<u8>(), 0..100)]
}

fn tenant() -> Value {
    json!({
        "name": "ns-blue",
        "gatewayIP": "192.168.99.13",
        "gatewayMAC": "02:53:c0:a8:63:0d",
        "egressIPs": ["192.168.55.113", "192.168.55.114"],
        "sources": { "podCIDRs": ["10.132.0.0/24"], "fromPolicy": false, "nodes": false },
        "mapping": "EndpointIndependent",
        "filtering": "AddressDependent",
        "limits": { "sessions": 7, "portsPerPod": 3 },
        "mssClamp": 1360,
        "drainSeconds": 60,
    })
}

fn tenants_file() -> Value {
    json!({ "tenants": [tenant()] })
}

fn sysctls_file() -> Value {
    json!({ "bootId": "b", "settings": [{ "path": "net/ipv4/conf/in0/arp_ignore", "value": "0" }] })
}

fn cluster_file() -> Value {
    json!({ "version": 1, "state": {
        "routes": { "w1": [{ "podCidr": "10.132.0.0/24", "via": "192.168.99.21" }] },
        "nodeAddresses": { "w1": "192.168.99.21" },
        "tenants": [{ "uid": "u", "generation": 3, "tenant": tenant() }],
        "links": { "192.168.99.13": { "policies": ["blue"], "namespaces": { "ns-blue": ["10.132.0.5"] } } },
    }})
}

const OBJECTS: [&str; 5] = [
    r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"w1","uid":"1","annotations":{
        "k8s.ovn.org/node-subnets":"{\"default\":[\"10.132.0.0/24\"]}",
        "k8s.ovn.org/node-primary-ifaddr":"{\"ipv4\":\"192.168.99.21/24\"}"}},
        "spec":{"podCIDR":"10.132.0.0/24","podCIDRs":["10.132.0.0/24","fd00::/64"]},
        "status":{"addresses":[{"type":"InternalIP","address":"192.168.99.21"}]}}"#,
    r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"ns-blue","uid":"2","annotations":{
        "k8s.ovn.org/pod-networks":"{\"default\":{\"ip_addresses\":[\"10.132.0.5/24\"]}}"}},
        "spec":{"nodeName":"w1","containers":[]},
        "status":{"phase":"Running","podIP":"10.132.0.5","podIPs":[{"ip":"10.132.0.5"}]}}"#,
    r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"ns-blue","uid":"3",
        "labels":{"kubernetes.io/metadata.name":"ns-blue"}}}"#,
    r#"{"apiVersion":"spillway.dev/v1alpha1","kind":"EgressTenant","metadata":{"name":"ns-blue","uid":"4","generation":2},
        "spec":{"gatewayIP":"192.168.99.13","egressIPs":["192.168.55.113"],"sources":{"fromPolicy":true},
        "mapping":"AddressAndPortDependent","limits":{"sessions":10},"drainSeconds":5}}"#,
    r#"{"apiVersion":"k8s.ovn.org/v1","kind":"AdminPolicyBasedExternalRoute","metadata":{"name":"blue","uid":"5"},
        "spec":{"from":{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"ns-blue"},
        "matchExpressions":[{"key":"a","operator":"In","values":["b"]}]}},
        "nextHops":{"static":[{"ip":"192.168.99.13","bfdEnabled":true}],"dynamic":[{"podSelector":{}}]}}}"#,
];

#[test]
fn the_documents_that_are_changed_are_sound() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    let put =
        |name: &str, value: Value| std::fs::write(Path::join(directory.path(), name), value.to_string());
    put("tenants.json", tenants_file()).unwrap();
    put("kubernetes.json", cluster_file()).unwrap();
    put("sysctls.json", sysctls_file()).unwrap();
    assert_eq!(state.load_tenants().unwrap().len(), 1);
    assert_eq!(state.load_cluster().unwrap().unwrap().0.tenants.len(), 1);
    assert_eq!(state.load_sysctls().unwrap().settings.len(), 1);
    let documents = OBJECTS.map(|text| serde_json::from_str::<Value>(text).unwrap());
    assert!(!read(&documents[0], |node: &Node| NodeObject::read(node).pod_cidrs.unwrap()).is_empty());
    assert!(!read(&documents[1], |pod: &Pod| assert!(!PodObject::read(pod).addresses.is_empty())).is_empty());
    assert!(!read(&documents[3], |it: &DynamicObject| TenantObject::read(it).tenant.unwrap()).is_empty());
    assert!(!read(&documents[4], |it: &DynamicObject| PolicyObject::read(it).policy.unwrap()).is_empty());
}

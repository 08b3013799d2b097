//! The manifests in deploy/: that they can be read, and that the gateway takes the examples.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use control::kubernetes::objects::{NamespaceObject, PolicyObject, TenantObject};
use control::kubernetes::state::{ClusterState, Outcome};
use control::kubernetes::view::{self, Surroundings, View};
use control::registry::{Host, Registry, Source};
use kube::config::Kubeconfig;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

#[test]
fn every_manifest_says_what_it_is() {
    let is_of_cluster = |path: &PathBuf| !path.starts_with(deploy().join("prometheus"));
    let manifests: Vec<_> = manifests(&deploy()).into_iter().filter(is_of_cluster).collect();
    assert!(manifests.len() >= 10, "{manifests:?}");
    for path in manifests {
        let documents: Vec<Value> = read(&path);
        assert!(!documents.is_empty(), "{}", path.display());
        for document in documents {
            for field in ["apiVersion", "kind"] {
                assert!(document[field].is_string(), "{}: no {field} in {document}", path.display());
            }
        }
    }
}

#[test]
fn kustomizations_list_what_is_beside_them() {
    for directory in ["", "kubernetes", "kubernetes/example"].map(|name| deploy().join(name)) {
        let kustomization: Vec<Value> = read(&directory.join("kustomization.yaml"));
        let listed =
            kustomization[0]["resources"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        let mut listed: Vec<_> =
            listed.filter(|name| !name.ends_with('/')).map(|name| directory.join(name)).collect();
        let is_resource = |path: &PathBuf| {
            path.parent() == Some(&directory)
                && !path.ends_with("kustomization.yaml")
                && !path.ends_with("kubeconfig.yaml")
        };
        let mut beside: Vec<_> = manifests(&directory).into_iter().filter(is_resource).collect();
        listed.sort();
        beside.sort();
        assert_eq!(listed, beside);
    }
}

#[test]
fn the_gateway_takes_the_example_tenants() {
    let host = Host {
        inside_network: "192.168.99.12/24".parse().unwrap(),
        pod_cidrs: vec!["10.132.0.0/14".parse().unwrap()],
        has_kubernetes: true,
        ..Host::default()
    };
    let mut registry = Registry::default();
    for object in example("tenants.yaml") {
        let tenant = TenantObject::read(&object).tenant.unwrap();
        assert_eq!(tenant.check(), Ok(()));
        assert_eq!(registry.put(tenant, Source::Kubernetes, &host), Ok(true));
    }
    assert_eq!(registry.entries().count(), 2);
}

#[test]
fn the_example_policies_route_each_namespace_to_its_tenant() {
    let namespaces: Vec<Value> = example("namespaces.yaml");
    let namespaces = namespaces.into_iter().map(|mut namespace| {
        let name = namespace["metadata"]["name"].clone();
        namespace["metadata"]["labels"] = json!({ "kubernetes.io/metadata.name": name }); // as the API server does
        NamespaceObject::read(&serde_json::from_value(namespace).unwrap())
    });
    let view = View {
        tenants: Some(by_name(example("tenants.yaml").iter().map(TenantObject::read), |object| {
            &object.identity.name
        })),
        policies: Some(by_name(example("policies.yaml").iter().map(PolicyObject::read), |object| {
            &object.identity.name
        })),
        namespaces: Some(by_name(namespaces, |object| &object.identity.name)),
        ..View::default()
    };
    let surroundings =
        Surroundings { inside: "192.168.99.12/24".parse().unwrap(), ..Surroundings::default() };
    let compiled = view::compile(&view, &ClusterState::default(), &surroundings, &Outcome::default());
    assert_eq!(compiled.notices, []);
    let linked: Vec<_> = compiled
        .state
        .links
        .iter()
        .flat_map(|(gateway, link)| link.namespaces.keys().map(|name| (*gateway, name.as_str())))
        .collect();
    let expected = [("192.168.99.13", "ns-blue"), ("192.168.99.14", "ns-red")];
    assert_eq!(linked, expected.map(|(gateway, name)| (gateway.parse::<Ipv4Addr>().unwrap(), name)));
}

#[test]
fn permissions_are_those_that_the_document_explains() {
    let manifests =
        ["rbac.yaml", "token.yaml"].map(|name| read::<Value>(&deploy().join("kubernetes").join(name)));
    let text = std::fs::read_to_string(deploy().join("kubernetes/README.md")).unwrap();
    let mut granted = Vec::new();
    for role in manifests.iter().flatten().filter(|document| document["rules"].is_array()) {
        for rule in role["rules"].as_array().unwrap() {
            let words = |field: &str| -> Vec<String> { serde_json::from_value(rule[field].clone()).unwrap() };
            let verbs = words("verbs").join("`, `");
            for resource in words("resources") {
                let row = text.lines().find(|line| line.contains(&format!("| `{resource}`")));
                assert!(
                    row.is_some_and(|row| row.contains(&format!("| `{verbs}` |"))),
                    "{resource}: {verbs}"
                );
                granted.push(format!("{resource} {}", words("verbs").join(" ")));
            }
        }
    }
    let expected = [
        "nodes get list watch",
        "namespaces get list watch",
        "pods get list watch",
        "adminpolicybasedexternalroutes get list watch",
        "egresstenants get list watch",
        "egresstenants/status patch",
        "events create patch",
        "serviceaccounts/token create",
    ];
    assert_eq!(granted, expected);
}

#[test]
fn the_example_kubeconfig_reads_its_token_from_a_file() {
    let text = std::fs::read_to_string(deploy().join("kubernetes/kubeconfig.yaml")).unwrap();
    let config = Kubeconfig::from_yaml(&text).unwrap();
    let context =
        config.contexts.iter().find(|context| Some(&context.name) == config.current_context.as_ref());
    let context = context.and_then(|context| context.context.as_ref()).unwrap();
    let user = config.auth_infos.iter().find(|user| Some(&user.name) == context.user.as_ref()).unwrap();
    assert_eq!(user.auth_info.as_ref().unwrap().token_file.as_deref(), Some("/etc/spillway/token"));
    assert!(config.clusters.iter().any(|cluster| cluster.name == context.cluster));
}

fn by_name<T>(objects: impl Iterator<Item = T>, name: impl Fn(&T) -> &String) -> BTreeMap<String, Arc<T>> {
    objects.map(|object| (name(&object).clone(), Arc::new(object))).collect()
}

fn example<T: DeserializeOwned>(name: &str) -> Vec<T> {
    read(&deploy().join("kubernetes/example").join(name))
}

fn read<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    let text = std::fs::read_to_string(path).expect("a file that can be read");
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns all YAML files below a directory.
fn manifests(directory: &Path) -> Vec<PathBuf> {
    let paths =
        std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    paths
        .flat_map(|path| if path.is_dir() { manifests(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect()
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

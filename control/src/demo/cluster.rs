//! The cluster's API in the lab: a stand-in server beside the gateway, and a client as `kubectl` would be.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::TypeMeta;
use kube::{Client, Config};
use serde_json::Value;

use super::lab::Lab;
use super::namespace::Namespace;
use super::process::Process;
use super::topology::{Host, PODS, Pod};
use crate::kubernetes::egress_tenant;

/// Program of the stand-in server, expected beside the daemon's.
pub const PROGRAM: &str = "spillway-apiserver";

const START: Duration = Duration::from_secs(20);
const NODES: &str = include_str!("cluster.yaml");

/// A running stand-in server; ended when dropped.
#[derive(Debug)]
pub struct Cluster {
    process: Process,
    namespace: Namespace,
    kubeconfig: PathBuf,
}

impl Cluster {
    /// Starts the server in the gateway's namespace, with the lab's nodes and pods and the tenants' definition.
    ///
    /// # Errors
    /// When the program is missing, or does not serve in time.
    pub fn start(lab: &Lab, spillway: &Path) -> Result<Self> {
        let program = spillway.with_file_name(PROGRAM);
        ensure!(
            program.exists(),
            "{} is missing; build it with `cargo build -p {PROGRAM}`, or run `make demo`",
            program.display()
        );
        let directory = lab.directory();
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = directory.join(name);
            std::fs::write(&path, text).with_context(|| format!("{}", path.display()))?;
            Ok(path)
        };
        let loads = [
            write("crd.yaml", &egress_tenant::crd_yaml()?)?,
            write("cluster.yaml", NODES)?,
            write("pods.yaml", &pods())?,
        ];
        let (namespace, kubeconfig) = (lab.namespace(Host::Gateway), directory.join("kubeconfig"));
        let mut command = namespace.command(&program);
        command.arg("--kubeconfig-out").arg(&kubeconfig).arg("--load").args(loads);
        let mut process = lab.start(&mut command, &directory.join("apiserver.log"))?;
        process.until("the API server serves", START, || Ok(kubeconfig.exists().then_some(())))?;
        Ok(Self { process, namespace, kubeconfig })
    }

    /// Returns the kubeconfig of its clients.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Applies objects in YAML, as `kubectl apply --server-side` does.
    ///
    /// # Errors
    /// When one is refused.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let objects: Vec<DynamicObject> = serde_saphyr::from_multiple(yaml)?;
        self.ask(async |client| {
            for object in &objects {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                let types = object.types.as_ref().context("an object has no kind")?;
                let parameters = PatchParams::apply("demo").force();
                let applied = api(&client, types).patch(name, &parameters, &Patch::Apply(object)).await;
                applied.with_context(|| format!("{} {name} is refused", types.kind))?;
            }
            Ok(())
        })
    }

    /// Deletes an object of the cluster.
    ///
    /// # Errors
    /// When it is not there.
    pub fn delete(&self, api_version: &str, kind: &str, name: &str) -> Result<()> {
        let types = types(api_version, kind);
        self.ask(async |client| {
            api(&client, &types).delete(name, &DeleteParams::default()).await?;
            Ok(())
        })
    }

    /// Returns an object of the cluster.
    ///
    /// # Errors
    /// When it is not there.
    pub fn get(&self, api_version: &str, kind: &str, name: &str) -> Result<Value> {
        let types = types(api_version, kind);
        self.ask(async |client| Ok(serde_json::to_value(api(&client, &types).get(name).await?)?))
    }

    /// Lets the server run on when this is dropped.
    pub fn leave(&mut self) {
        self.process.leave();
    }

    fn ask<T: Send>(&self, work: impl AsyncFnOnce(Client) -> Result<T> + Send) -> Result<T> {
        self.namespace.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)?;
                let config =
                    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
                work(Client::try_from(config)?).await
            })
        })?
    }
}

fn types(api_version: &str, kind: &str) -> TypeMeta {
    TypeMeta { api_version: api_version.to_owned(), kind: kind.to_owned() }
}

fn api(client: &Client, types: &TypeMeta) -> Api<DynamicObject> {
    let (group, version) = types.api_version.rsplit_once('/').unwrap_or(("", &types.api_version));
    let kind = kube::core::GroupVersionKind::gvk(group, version, &types.kind);
    Api::all_with(client.clone(), &ApiResource::from_gvk(&kind))
}

/// Returns the lab's pods and their namespaces.
fn pods() -> String {
    let pod = |pod: &Pod| {
        let Pod { host, tenant, node, address } = pod;
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{ name: {}, namespace: {} }}\nspec: {{ nodeName: {} }}\n\
             status: {{ phase: Running, podIP: {address}, podIPs: [{{ ip: {address} }}] }}\n",
            host.name(),
            tenant.name,
            node.host.name(),
        )
    };
    PODS.iter().map(pod).collect()
}

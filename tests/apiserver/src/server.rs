//! A server that runs on threads of its own, and the handle that holds it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::cluster::Cluster;
use crate::cluster::patch::PatchKind;
use crate::cluster::remove::DeleteTerms;
use crate::cluster::store::Key;
use crate::cluster::write::{Target, Terms};
use crate::error::ApiError;
use crate::faults::Faults;
use crate::http::{Identity, Listening, Server, serve};
use crate::kubeconfig::{self, Credentials};

/// How a server is to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where to offer the fault switches over plain HTTP, for scripts; nowhere by default.
    pub switches: Option<SocketAddr>,
    /// Whether to speak TLS, as real servers do; plain HTTP otherwise.
    pub tls: bool,
    /// The token that clients must show; without one, anybody is served.
    pub token: Option<String>,
    /// How often a watch that asked for bookmarks gets one.
    pub bookmark_interval: Duration,
    /// How many changes of each resource are remembered at least.
    pub history: usize,
}

impl Default for Options {
    /// A free port of the loopback address, TLS, a token, and a real server's minute between bookmarks.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            switches: None,
            tls: true,
            token: Some("spillway".to_owned()),
            bookmark_interval: Duration::from_secs(60),
            history: 100_000,
        }
    }
}

/// The stand-in API server.
#[derive(Debug)]
pub struct ApiServer;

impl ApiServer {
    /// Starts a server in the caller's network namespace.
    ///
    /// # Errors
    /// When it cannot listen, make a certificate or start a thread.
    pub fn start(options: Options) -> Result<Handle> {
        let api = TcpListener::bind(options.listen).with_context(|| format!("listen: {}", options.listen))?;
        let switches =
            options.switches.map(TcpListener::bind).transpose().context("listen for the switches")?;
        let address = api.local_addr()?;
        let switch_address = switches.as_ref().map(TcpListener::local_addr).transpose()?;
        let identity = options.tls.then(|| Identity::new(address.ip())).transpose()?;
        let tls = identity.as_ref().map(|identity| identity.acceptor.clone());
        let server = Arc::new(Server::new(
            Cluster::new(options.history),
            Faults::new(options.token),
            options.bookmark_interval,
        ));
        let (stop, stopped) = watch::channel(false);
        // Threads inherit the namespace of the one that starts them: the runtime is made on the new thread, so that it
        // also listens again in the caller's.
        let thread = std::thread::Builder::new().name("apiserver".into()).spawn({
            let server = server.clone();
            move || run(server, Listening { api, switches, tls }, stopped)
        })?;
        Ok(Handle {
            server,
            address,
            switch_address,
            certificate: identity.map(|identity| identity.pem),
            stop,
            thread: Some(thread),
        })
    }
}

/// A running server; it stops when this is dropped. Its fault switches are methods of [`Faults`], at hand here.
#[derive(Debug)]
pub struct Handle {
    server: Arc<Server>,
    address: SocketAddr,
    switch_address: Option<SocketAddr>,
    certificate: Option<String>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Deref for Handle {
    type Target = Faults;

    fn deref(&self) -> &Faults {
        &self.server.faults
    }
}

impl Handle {
    /// Returns where the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns where the fault switches are offered over HTTP.
    #[must_use]
    pub fn switch_address(&self) -> Option<SocketAddr> {
        self.switch_address
    }

    /// Returns the server's address as clients name it.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        let host = match self.address.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) | IpAddr::V6(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        format!("{scheme}://{}", SocketAddr::new(host, self.address.port()))
    }

    /// Writes a kubeconfig for the server's clients, and the token's file where it names one.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn kubeconfig(&self, path: &Path, credentials: &Credentials) -> Result<()> {
        let token = self.server.faults.token().unwrap_or_default();
        let user = match credentials {
            Credentials::Inline => json!({"token": token}),
            Credentials::TokenFile(file) => {
                kubeconfig::write_private(file, &token)
                    .with_context(|| format!("write {}", file.display()))?;
                json!({"tokenFile": file})
            }
        };
        let text = kubeconfig::text(&self.url(), self.certificate.as_deref(), &user);
        kubeconfig::write_private(path, &text).with_context(|| format!("write {}", path.display()))
    }

    /// Creates an object, with its status, past every fault and count.
    ///
    /// # Errors
    /// What the API refuses.
    #[expect(clippy::needless_pass_by_value, reason = "callers hand over what json! made")]
    pub fn create(&self, object: Value) -> Result<Value, ApiError> {
        self.server.change(|cluster| cluster.seed(object.clone())).map(|object| object.value.clone())
    }

    /// Creates an object, or merges it into the one that is there, status included.
    ///
    /// # Errors
    /// What the API refuses.
    #[expect(clippy::needless_pass_by_value, reason = "callers hand over what json! made")]
    pub fn apply(&self, object: Value) -> Result<Value, ApiError> {
        self.server.change(|cluster| {
            let target = locate(cluster, &object)?;
            if cluster.get(&target).is_err() {
                return cluster.seed(object.clone()).map(|object| object.value.clone());
            }
            let terms = Terms::default();
            let mut done = cluster.patch(&target, PatchKind::Merge, &object, &terms)?;
            if target.resource.status && object.get("status").is_some() {
                let status = Target { status: true, ..target };
                done =
                    cluster.patch(&status, PatchKind::Merge, &json!({"status": object["status"]}), &terms)?;
            }
            Ok(done.value.clone())
        })
    }

    /// Returns an object; a cluster's own have an empty namespace.
    ///
    /// # Errors
    /// 404, and what the API refuses.
    pub fn get(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<Value, ApiError> {
        let cluster = self.server.cluster();
        let target = locate(&cluster, &named(api_version, kind, namespace, name))?;
        cluster.get(&target).map(|object| object.value.clone())
    }

    /// Deletes an object; finalizers are honoured.
    ///
    /// # Errors
    /// 404, and what the API refuses.
    pub fn delete(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> Result<(), ApiError> {
        self.server.change(|cluster| {
            let target = locate(cluster, &named(api_version, kind, namespace, name))?;
            cluster.delete(&target, &DeleteTerms::default()).map(drop)
        })
    }

    /// Applies every object of a YAML text, one after the other.
    ///
    /// # Errors
    /// When the text cannot be read, or the API refuses an object; those before it stay.
    pub fn load(&self, yaml: &str) -> Result<()> {
        let objects: Vec<Value> = serde_saphyr::from_multiple(yaml).context("read the objects")?;
        for object in objects.into_iter().filter(|object| !object.is_null()) {
            let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
            self.apply(object).with_context(|| format!("load {name}"))?;
        }
        Ok(())
    }

    /// Forgets all history: whoever lists or watches from an older version is answered 410.
    pub fn compact(&self) {
        self.server.cluster().store.compact();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic of the server has been printed by its own thread.
            let _ended = thread.join();
        }
    }
}

fn run(server: Arc<Server>, listening: Listening, stopped: watch::Receiver<bool>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime of two threads starts");
    runtime.block_on(serve(server, listening, stopped)).expect("sockets that listen are handed over");
    runtime.shutdown_background();
}

fn locate(cluster: &Cluster, object: &Value) -> Result<Target, ApiError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let Some(resource) = cluster.registry.of_kind(&version, &kind).cloned() else {
        return Err(ApiError::bad_request(format!(
            "no matches for kind \"{kind}\" in version \"{version}\""
        )));
    };
    let namespace = match text(&object["metadata"]["namespace"]) {
        _ if !resource.namespaced => String::new(),
        namespace if namespace.is_empty() => "default".to_owned(),
        namespace => namespace,
    };
    let key = Key { namespace, name: text(&object["metadata"]["name"]) };
    Ok(Target { resource, key, status: false })
}

fn named(api_version: &str, kind: &str, namespace: &str, name: &str) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"namespace": namespace, "name": name}})
}

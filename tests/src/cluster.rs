//! A lab whose gateway asks a stand-in of the Kubernetes API for nodes and tenants.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::demo::gateway::{Gateway, Installation};
use control::demo::server::Server;
use control::demo::topology::{BLUE, Host, NODES, Node, PODS, RED, ROUTE_PROTOCOL, Tenant};
use control::demo::wait;
use control::demo::{Lab, LabOptions};
use control::kubernetes::egress_tenant;
use serde_json::{Value, json};
use spillway_apiserver::{ApiServer, Credentials, Handle, Options};

use crate::fixture::{Fixture, executable, skipped};

/// Time that a change of the cluster may take to be seen.
pub const SOON: Duration = Duration::from_secs(20);

const TENANTS: &str = "spillway.dev/v1alpha1";
const POLICIES: &str = "k8s.ovn.org/v1";

/// A lab, the cluster's API, and the gateway that follows it.
#[derive(Debug)]
pub struct ClusterFixture {
    /// The gateway and the lab.
    pub fixture: Fixture,
    /// The API server, in the gateway's namespace.
    pub api: Handle,
    /// The kubeconfig that the gateway reads.
    pub kubeconfig: PathBuf,
}

/// A lab and the cluster's API, before the gateway starts.
#[derive(Debug)]
pub struct Prepared {
    /// The namespaces.
    pub lab: Lab,
    /// The API server, in the gateway's namespace.
    pub api: Handle,
    /// The kubeconfig that the gateway will read.
    pub kubeconfig: PathBuf,
}

impl Prepared {
    /// Builds a lab and an API server that knows the lab's nodes, namespaces, pods and the definition of tenants, and
    /// no tenant.
    ///
    /// Without the privilege it prints `SKIPPED` and returns nothing, so that the test ends.
    ///
    /// # Errors
    /// When something does not start, or without the privilege if the environment says `REQUIRE_NETNS=1`.
    pub fn build() -> Result<Option<Self>> {
        if skipped()? {
            return Ok(None);
        }
        let lab = Lab::build(&LabOptions::default())?;
        let api = lab.namespace(Host::Gateway).enter(|| ApiServer::start(Options::default()))??;
        api.load(&egress_tenant::crd_yaml()?)?;
        for node in &NODES {
            api.create(node_object(node.host.name(), node.pod_cidr, &node.address.to_string()))?;
        }
        for tenant in [&BLUE, &RED] {
            api.create(namespace_object(tenant.name))?;
        }
        for pod in &PODS {
            let (name, node) = (pod.host.name(), pod.node.host.name());
            api.create(pod_object(name, pod.tenant.name, node, &pod.address.to_string()))?;
        }
        let kubeconfig = lab.directory().join("kubeconfig");
        api.kubeconfig(&kubeconfig, &Credentials::Inline)?;
        Ok(Some(Self { lab, api, kubeconfig }))
    }

    /// Starts the server's programs and the gateway.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start(self) -> Result<ClusterFixture> {
        let server = Server::start(&self.lab)?;
        let installation = Installation::write_for_cluster(&self.lab, &executable()?, &self.kubeconfig)?;
        let gateway = Gateway::start(&self.lab, installation)?;
        let fixture = Fixture { gateway, server, lab: self.lab };
        Ok(ClusterFixture { fixture, api: self.api, kubeconfig: self.kubeconfig })
    }
}

impl ClusterFixture {
    /// Builds everything, with the tenants ns-blue and ns-red routed to the gateway and programmed.
    ///
    /// # Errors
    /// As [`Prepared::build`].
    pub fn with_tenants() -> Result<Option<Self>> {
        let Some(prepared) = Prepared::build()? else { return Ok(None) };
        let cluster = prepared.start()?;
        for tenant in [&BLUE, &RED] {
            cluster.add_tenant(tenant)?;
        }
        Ok(Some(cluster))
    }

    /// Creates a tenant and its policy, and waits until the gateway forwards for it.
    ///
    /// # Errors
    /// When an object is refused, or the gateway does not say so in time.
    pub fn add_tenant(&self, tenant: &Tenant) -> Result<()> {
        self.api.create(policy_object(tenant))?;
        self.api.create(tenant_object(tenant))?;
        self.until_condition(tenant.name, "Programmed", "True").map(drop)
    }

    /// Deletes a tenant.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete_tenant(&self, name: &str) -> Result<()> {
        Ok(self.api.delete(TENANTS, "EgressTenant", "", name)?)
    }

    /// Deletes a tenant's policy.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete_policy(&self, name: &str) -> Result<()> {
        Ok(self.api.delete(POLICIES, "AdminPolicyBasedExternalRoute", "", name)?)
    }

    /// Changes a tenant's specification.
    ///
    /// # Errors
    /// When the change is refused.
    pub fn change_tenant(&self, name: &str, spec: Value) -> Result<()> {
        let object =
            json!({"apiVersion": TENANTS, "kind": "EgressTenant", "metadata": {"name": name}, "spec": spec});
        self.api.apply(object)?;
        Ok(())
    }

    /// Returns a tenant as the API has it.
    ///
    /// # Errors
    /// When there is none.
    pub fn tenant(&self, name: &str) -> Result<Value> {
        Ok(self.api.get(TENANTS, "EgressTenant", "", name)?)
    }

    /// Waits until a condition of a tenant's present generation has a status, and returns the condition.
    ///
    /// # Errors
    /// When that takes too long, with the tenant and the daemon's log.
    pub fn until_condition(&self, tenant: &str, kind: &str, status: &str) -> Result<Value> {
        let probe = || {
            let object = self.tenant(tenant)?;
            let condition = condition(&object, kind);
            let is_current = condition["observedGeneration"] == object["metadata"]["generation"];
            Ok((is_current && condition["status"] == status).then_some(condition))
        };
        wait::until(&format!("{tenant} is {kind}: {status}"), SOON, probe).with_context(|| {
            format!(
                "{:?}\ndaemon:\n{}",
                self.tenant(tenant).map(|it| it["status"].clone()),
                self.fixture.gateway.log()
            )
        })
    }

    /// Waits until the kernel's return routes are these, each as `POD_CIDR via NODE_IP`, in any order.
    ///
    /// # Errors
    /// When that takes too long, with the routes that there are.
    pub fn until_routes(&self, expected: &[&str]) -> Result<()> {
        let mut expected: Vec<String> = expected.iter().map(|route| (*route).to_owned()).collect();
        expected.sort();
        let probe = || Ok((self.routes()? == expected).then_some(()));
        wait::until(&format!("the return routes are {expected:?}"), SOON, probe)
            .with_context(|| format!("{:?}\ndaemon:\n{}", self.routes(), self.fixture.gateway.log()))
    }

    /// Returns the kernel's return routes, each as `POD_CIDR via NODE_IP`, sorted.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn routes(&self) -> Result<Vec<String>> {
        let shown = self.fixture.lab.namespace(Host::Gateway);
        let shown = shown.ip(&format!("route show proto {ROUTE_PROTOCOL}"))?;
        let mut routes: Vec<String> =
            shown.lines().map(|line| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ")).collect();
        routes.sort();
        Ok(routes)
    }

    /// Waits until the daemon's status says of the Kubernetes API what is wanted.
    ///
    /// # Errors
    /// When that takes too long, with the status.
    pub fn until_status(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let probe = || {
            let status = self.fixture.gateway.status()?["kubernetes"].clone();
            Ok(is_so(&status).then_some(status))
        };
        wait::until(what, SOON, probe).with_context(|| {
            format!("{:?}", self.fixture.gateway.status().map(|status| status["kubernetes"].clone()))
        })
    }

    /// Waits until the daemon has logged a text.
    ///
    /// # Errors
    /// When that takes too long, with the log.
    pub fn until_logged(&self, text: &str) -> Result<()> {
        let probe = || Ok(self.fixture.gateway.log().contains(text).then_some(()));
        wait::until(&format!("the daemon logs {text:?}"), SOON, probe)
            .with_context(|| self.fixture.gateway.log())
    }

    /// Fails unless a pod's requests are refused or go unanswered.
    ///
    /// # Errors
    /// When one is answered.
    pub fn require_no_service(&self, tenant: &Tenant) -> Result<()> {
        for pod in PODS.iter().filter(|pod| pod.tenant == tenant) {
            let url = control::demo::server::url("whoami");
            let output = self.fixture.in_pod(pod, "curl", &["-sS", "--max-time", "2", &url])?;
            ensure!(!output.status.success(), "pod {} is still served", pod.address);
        }
        Ok(())
    }
}

/// Returns a condition of a tenant, or null.
pub fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
    found.cloned().unwrap_or_default()
}

/// Returns the route to a node's pods, as [`ClusterFixture::until_routes`] wants it.
pub fn route_to(node: &Node) -> String {
    format!("{} via {}", node.pod_cidr, node.address)
}

/// Returns a node as OVN-Kubernetes annotates it.
pub fn node_object(name: &str, pod_cidr: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {
                "k8s.ovn.org/node-subnets": json!({"default": [pod_cidr]}).to_string(),
                "k8s.ovn.org/node-primary-ifaddr": json!({"ipv4": format!("{address}/24")}).to_string(),
            },
        },
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

/// Returns a namespace.
pub fn namespace_object(name: &str) -> Value {
    let labels = json!({"kubernetes.io/metadata.name": name});
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// Returns a running pod.
pub fn pod_object(name: &str, namespace: &str, node: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

/// Returns the policy that routes a tenant's namespace to its gateway address.
pub fn policy_object(tenant: &Tenant) -> Value {
    json!({
        "apiVersion": POLICIES,
        "kind": "AdminPolicyBasedExternalRoute",
        "metadata": {"name": tenant.name},
        "spec": {
            "from": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": tenant.name}}},
            "nextHops": {"static": [{"ip": tenant.gateway}]},
        },
    })
}

/// Returns a tenant.
pub fn tenant_object(tenant: &Tenant) -> Value {
    json!({
        "apiVersion": TENANTS,
        "kind": "EgressTenant",
        "metadata": {"name": tenant.name},
        "spec": {"gatewayIP": tenant.gateway, "egressIPs": [tenant.egress]},
    })
}

//! A lab whose gateway asks a stand-in of the Kubernetes API for nodes and tenants.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::demo::gateway::{Gateway, Installation};
use control::demo::process::Process;
use control::demo::server::Server;
use control::demo::topology::{
    BLUE, GATEWAY_INSIDE, Host, INSIDE, NODES, Node, PODS, RED, ROUTE_PROTOCOL, Tenant,
};
use control::demo::wait;
use control::demo::{Lab, LabOptions};
use control::kubernetes::egress_tenant;
use serde_json::{Value, json};
use spillway_apiserver::{ApiServer, Credentials, Handle, Options};

use crate::fixture::{Fixture, executable, skipped};

/// Time that a change of the cluster may take to be seen.
pub const SOON: Duration = Duration::from_secs(30);
/// Time that the gateway may take to recover from faults that came one after the other: it waits longer after each.
pub const EVENTUALLY: Duration = Duration::from_secs(90);

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
        self.start_with("")
    }

    /// Does the same with more lines at the end of the gateway's config file.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start_with(self, more: &str) -> Result<ClusterFixture> {
        let server = Server::start(&self.lab)?;
        let installation = Installation::write_for_cluster(&self.lab, &executable()?, &self.kubeconfig)?;
        let mut config = std::fs::OpenOptions::new().append(true).open(&installation.config)?;
        config.write_all(more.as_bytes())?;
        let gateway = Gateway::start(&self.lab, installation)?;
        let fixture = Fixture { gateway, server, lab: self.lab };
        Ok(ClusterFixture { fixture, api: self.api, kubeconfig: self.kubeconfig })
    }

    /// Gives the inside network room for thousands of nodes, beside the outside network, and adds `count` nodes.
    ///
    /// # Errors
    /// When the kernel or the API refuses.
    pub fn add_crowd(&self, count: u32) -> Result<()> {
        self.lab.namespace(Host::Gateway).ip_batch(&[
            format!("addr del {GATEWAY_INSIDE}/24 dev {INSIDE}"),
            format!("addr add {GATEWAY_INSIDE}/18 dev {INSIDE}"),
        ])?;
        for number in 0..count {
            self.api.create(crowd_object(number))?;
        }
        Ok(())
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

    /// Deletes a node.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete_node(&self, name: &str) -> Result<()> {
        Ok(self.api.delete("v1", "Node", "", name)?)
    }

    /// Changes a tenant's specification.
    ///
    /// # Errors
    /// When the change is refused.
    pub fn change_tenant(&self, name: &str, spec: Value) -> Result<()> {
        let mut object = json!({"apiVersion": TENANTS, "kind": "EgressTenant", "metadata": {"name": name}});
        object["spec"] = spec;
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
        self.until_routes_within(SOON, expected)
    }

    /// Does the same with another limit.
    ///
    /// # Errors
    /// As [`Self::until_routes`].
    pub fn until_routes_within(&self, limit: Duration, expected: &[&str]) -> Result<()> {
        let mut expected: Vec<String> = expected.iter().map(|route| (*route).to_owned()).collect();
        expected.sort();
        let probe = || Ok((self.routes()? == expected).then_some(()));
        wait::until(&format!("the return routes are {expected:?}"), limit, probe)
            .with_context(|| format!("{:?}\ndaemon:\n{}", self.routes(), self.fixture.gateway.log()))
    }

    /// Waits until there are so many return routes.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn until_route_count(&self, count: usize) -> Result<()> {
        let probe = || Ok((self.routes()?.len() == count).then_some(()));
        wait::until(&format!("there are {count} return routes"), EVENTUALLY, probe).with_context(|| {
            format!("{:?}\ndaemon:\n{}", self.routes().map(|all| all.len()), self.fixture.gateway.log())
        })
    }

    /// Returns where each tenant of the gateway comes from, by name.
    ///
    /// # Errors
    /// When the command line fails.
    pub fn tenant_sources(&self) -> Result<BTreeMap<String, String>> {
        let listed = self.fixture.gateway.installation().json(&["tenant", "list"])?;
        let tenants = listed.as_array().context("the list of tenants is no list")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(tenants.iter().map(|view| (text(&view["tenant"]["name"]), text(&view["source"]))).collect())
    }

    /// Returns what the daemon's status says of the Kubernetes API.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn status(&self) -> Result<Value> {
        Ok(self.fixture.gateway.status()?["kubernetes"].clone())
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

    /// Waits until a tenant's status counts so many live pods.
    ///
    /// # Errors
    /// When that takes too long, with the status.
    pub fn until_pods(&self, tenant: &str, count: u64) -> Result<()> {
        let probe = || Ok((self.tenant(tenant)?["status"]["podCount"] == count).then_some(()));
        // Numbers alone are written every 30 s at most.
        wait::until(&format!("{tenant} has {count} pods"), 2 * SOON, probe).with_context(|| {
            format!(
                "{:?}\ndaemon:\n{}",
                self.tenant(tenant).map(|it| it["status"].clone()),
                self.fixture.gateway.log()
            )
        })
    }

    /// Returns the events that the gateway published about an object.
    ///
    /// # Errors
    /// When the API does not list them.
    pub fn events_of(&self, name: &str) -> Result<Vec<Value>> {
        let gateway = self.fixture.lab.namespace(Host::Gateway);
        let url = format!("{}/apis/events.k8s.io/v1/events", self.api.url());
        let token = format!("Authorization: Bearer {}", Options::default().token.unwrap_or_default());
        let listed: Value = serde_json::from_str(&gateway.run("curl", &["-sSk", "-H", &token, &url])?)?;
        let events = listed["items"].as_array().with_context(|| format!("no events: {listed}"))?;
        Ok(events.iter().filter(|event| event["regarding"]["name"] == name).cloned().collect())
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

/// What the kernel told of the gateway's routes since this was started.
#[derive(Debug)]
pub struct RouteLog<'a> {
    lab: &'a Lab,
    monitor: Process,
    marks: Cell<u8>,
}

impl<'a> RouteLog<'a> {
    /// Starts to listen, and returns once the kernel is heard.
    ///
    /// # Errors
    /// When `ip monitor` does not start.
    pub fn start(lab: &'a Lab) -> Result<Self> {
        let mut monitor = lab.namespace(Host::Gateway).command("ip");
        let monitor = lab.start(monitor.args(["monitor", "route"]), &lab.directory().join("routes.log"))?;
        let log = Self { lab, monitor, marks: Cell::new(0) };
        log.catch_up()?;
        Ok(log)
    }

    /// Returns each return route that was removed, or replaced by removal, as [`ClusterFixture::routes`] has it.
    ///
    /// # Errors
    /// When `ip monitor` falls silent.
    pub fn removed(&self) -> Result<Vec<String>> {
        self.catch_up()?;
        let printed = self.monitor.output();
        let own = format!("proto {ROUTE_PROTOCOL}");
        let removed = printed.lines().filter_map(|line| line.strip_prefix("Deleted "));
        let removed = removed.filter(|line| line.contains(&own));
        Ok(removed.map(|line| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ")).collect())
    }

    /// Fails if one of these routes was ever removed.
    ///
    /// # Errors
    /// Then, naming all that were removed.
    pub fn require_kept(&self, routes: &[String]) -> Result<()> {
        let removed = self.removed()?;
        ensure!(!routes.iter().any(|route| removed.contains(route)), "routes were removed: {removed:?}");
        Ok(())
    }

    /// Waits until all that has happened was heard of: until a route is that nobody uses.
    fn catch_up(&self) -> Result<()> {
        let mark = self.marks.get();
        self.marks.set(mark + 1);
        let (gateway, mark) = (self.lab.namespace(Host::Gateway), format!("203.0.113.{mark}"));
        let heard = || Ok(self.monitor.output().contains(&format!("unreachable {mark} ")).then_some(()));
        wait::until("the kernel is heard", SOON, || {
            gateway.ip(&format!("route add unreachable {mark} table 99"))?;
            gateway.ip(&format!("route del unreachable {mark} table 99"))?; // the kernel tells of no second addition
            heard()
        })
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

/// Returns a node of a crowd, by its number.
pub fn crowd_object(number: u32) -> Value {
    let (pod_cidr, address) = crowd_addresses(number);
    node_object(&crowd_name(number), &pod_cidr, &address)
}

/// Returns the name of a node of a crowd.
pub fn crowd_name(number: u32) -> String {
    format!("crowd-{number}")
}

/// Returns the route to a crowd's node, as [`ClusterFixture::until_routes`] wants it.
pub fn crowd_route(number: u32) -> String {
    let (pod_cidr, address) = crowd_addresses(number);
    format!("{pod_cidr} via {address}")
}

fn crowd_addresses(number: u32) -> (String, String) {
    let first_pod = Ipv4Addr::from_bits(Ipv4Addr::new(10, 133, 0, 0).to_bits() + number * 32);
    let address = Ipv4Addr::new(192, 168, 64, 1).to_bits() + number;
    (format!("{first_pod}/27"), Ipv4Addr::from_bits(address).to_string())
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

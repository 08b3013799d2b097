//! `spillway demo`: two tenants, two nodes and a server, real traffic, and what each of them sees of it.

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::capture::Capture;
use super::cluster::Cluster;
use super::command::{self, SOON};
use super::gateway::{Gateway, Installation, add_tenant_arguments};
use super::inventory::clean;
use super::lab::{Lab, LabOptions};
use super::screen;
use super::server::{self, NAME, Server};
use super::topology::{BLUE, Host, PODS, Pod, RED, ROUTE_PROTOCOL, SERVER};
use super::wait;

/// What a cluster's administrator applies.
const POLICIES: &str = include_str!("../../../deploy/kubernetes/example/policies.yaml");
const TENANTS: &str = include_str!("../../../deploy/kubernetes/example/tenants.yaml");

/// What the demo is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Daemon and command line to show; none: this program itself.
    pub executable: Option<PathBuf>,
    /// Leaves everything up at the end.
    pub keep: bool,
    /// Lets the tenants and the nodes come from a stand-in of the Kubernetes API.
    pub kubernetes: bool,
    /// Removes what earlier demos left, and does nothing else.
    pub clean: bool,
}

/// Tells the story from the first cable to the last check, and takes everything down, also when it fails or is
/// interrupted.
///
/// # Errors
/// When the lab cannot be built, when a program fails, or when anything was not as it should be.
pub fn run(options: &Options) -> Result<()> {
    if options.clean {
        let removed = clean()?;
        removed.iter().for_each(|name| screen::good(&format!("removed the lab {name}")));
        return Ok(());
    }
    wait::notice_signals()?;
    let executable = match &options.executable {
        Some(path) => path.clone(),
        None => std::env::current_exe().context("this program's own path is unknown")?,
    };
    screen::title("Spillway, an egress gateway: two tenants on two nodes share it");
    screen::picture();
    let mut stage = Stage::set(&executable, options)?;
    let outcome = stage.play();
    if outcome.is_err() {
        screen::title("What the daemon logged");
        screen::output(&stage.gateway.log());
    }
    if options.keep && wait::check_interrupted().is_ok() {
        stage.keep()?;
    } else {
        screen::title("Taking everything down");
    }
    drop(stage);
    outcome?;
    screen::good("Done: every check passed.");
    Ok(())
}

/// Everything that runs; dropped from the top, so that the namespaces go last.
struct Stage {
    gateway: Gateway,
    cluster: Option<Cluster>,
    capture: Option<Capture>,
    server: Server,
    lab: Lab,
    failures: u32,
}

/// What one pod found out about itself.
struct Visit {
    pod: &'static Pod,
    seen_as: Option<SocketAddrV4>,
}

impl Stage {
    fn set(executable: &Path, options: &Options) -> Result<Self> {
        screen::title("The network");
        let lab = Lab::build(&LabOptions { outlives: options.keep, ..LabOptions::default() })?;
        screen::good("12 network namespaces are wired as in the picture, with veth links and two bridges.");
        screen::explain(
            "Each node sends a pod's packets to the pod's tenant gateway (.13 or .14) and leaves their source\n\
             address untouched, as OVN-Kubernetes does with an AdminPolicyBasedExternalRoute. Nobody upstream\n\
             has a route to pods: only what Spillway translates can be answered.",
        );
        let server = Server::start(&lab)?;
        screen::good(&format!("The server {SERVER} runs nginx and dnsmasq."));
        let capture = Capture::of_outside_link(&lab)?;
        screen::good("tcpdump records the gateway's outside link.");

        let cluster = options.kubernetes.then(|| Self::start_cluster(&lab, executable)).transpose()?;

        screen::title("The gateway");
        let installation = match &cluster {
            None => Installation::write(&lab, executable)?,
            Some(cluster) => Installation::write_for_cluster(&lab, executable, cluster.kubeconfig())?,
        };
        screen::explain("The daemon's config file:");
        screen::output(&std::fs::read_to_string(&installation.config)?);
        screen::command(&command::describe(&installation.daemon(&lab)));
        let gateway = Gateway::start(&lab, installation)?;
        screen::good("It runs, and answers on its control socket.");
        Ok(Self { gateway, cluster, capture: Some(capture), server, lab, failures: 0 })
    }

    fn start_cluster(lab: &Lab, executable: &Path) -> Result<Cluster> {
        screen::title("The cluster's API");
        let cluster = Cluster::start(lab, executable)?;
        screen::good("A stand-in of the Kubernetes API serves two nodes and four pods in two namespaces.");
        screen::explain(
            "It speaks the API's HTTP, watches included, and stands in the gateway's namespace; the gateway reads\n\
             it with the same client as a real cluster's.",
        );
        Ok(cluster)
    }

    fn play(&mut self) -> Result<()> {
        match &self.cluster {
            None => self.add_tenants()?,
            Some(cluster) => self.apply_tenants(cluster)?,
        }
        let visits = self.send_traffic()?;
        self.ask_server(&visits)?;
        self.look_inside()?;
        self.delete_tenant()?;
        self.check_leaks()?;
        if self.failures > 0 {
            bail!("{} of the demo's checks failed", self.failures);
        }
        Ok(())
    }

    fn add_tenants(&self) -> Result<()> {
        screen::title("The tenants");
        screen::explain(
            "A tenant is a gateway address inside and an egress address outside. Spillway knows a tenant's packets\n\
             by the MAC address that they are sent to.",
        );
        for tenant in [&BLUE, &RED] {
            let arguments = add_tenant_arguments(tenant);
            self.show(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn apply_tenants(&self, cluster: &Cluster) -> Result<()> {
        screen::title("The tenants");
        screen::explain(
            "A tenant is an EgressTenant, a gateway address inside and an egress address outside, and a policy that\n\
             routes a namespace to the gateway address. This is deploy/kubernetes/example, applied:",
        );
        for objects in [POLICIES, TENANTS] {
            screen::output(objects);
            cluster.apply(objects)?;
        }
        for tenant in [&BLUE, &RED] {
            let status = wait::until("the gateway reports the tenant as programmed", SOON, || {
                let object = cluster.get("spillway.dev/v1alpha1", "EgressTenant", tenant.name)?;
                let status = object["status"].clone();
                let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
                let is_true = |name: &str| {
                    let mut found = conditions.iter().filter(|condition| condition["type"] == name);
                    found.any(|condition| condition["status"] == "True")
                };
                Ok((is_true("Programmed") && is_true("Routed")).then_some(status))
            })?;
            screen::good(&format!(
                "{}: programmed with snapshot {}, routed to by {}, {} pods",
                tenant.name, status["appliedEpoch"], status["policies"], status["podCount"]
            ));
        }
        self.show(&["tenant", "list"])
    }

    /// Deletes a tenant of the cluster: its pods are refused, the other's go on.
    fn delete_tenant(&mut self) -> Result<()> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        screen::title("A tenant goes");
        screen::command(&format!("kubectl delete egresstenant {}", RED.name));
        cluster.delete("spillway.dev/v1alpha1", "EgressTenant", RED.name)?;
        wait::until("the gateway forgets the tenant", SOON, || {
            let tenants = self.gateway.installation().json(&["tenant", "list"])?;
            Ok((tenants.as_array().map(Vec::len) == Some(1)).then_some(()))
        })?;
        for pod in &PODS {
            let page = self.in_pod(pod, "curl", &["-sS", "--max-time", "2", &server::url("whoami")])?;
            let seen_as: Option<SocketAddrV4> = page.trim().parse().ok();
            let line = format!("pod {} of {}: {}", pod.address, pod.tenant.name, page.trim());
            self.check(seen_as.is_some() == (pod.tenant == &BLUE), &line);
        }
        Ok(())
    }

    fn send_traffic(&mut self) -> Result<Vec<Visit>> {
        screen::title("Traffic: every pod fetches a page, pings the server and looks up a name");
        let mut visits = Vec::new();
        for pod in &PODS {
            screen::explain(&format!(
                "pod {} of {} on {}",
                pod.address,
                pod.tenant.name,
                pod.node.host.name()
            ));
            let page = self.in_pod(pod, "curl", &["-sS", "--max-time", "10", &server::url("whoami")])?;
            let seen_as: Option<SocketAddrV4> = page.trim().parse().ok();
            let right = seen_as.is_some_and(|client| *client.ip() == pod.tenant.egress);
            self.check(
                right,
                &format!("the page says: you are {} (expected: {})", page.trim(), pod.tenant.egress),
            );

            let ping =
                self.in_pod(pod, "ping", &["-n", "-c", "3", "-i", "0.2", "-W", "2", &SERVER.to_string()])?;
            let summary =
                ping.lines().find(|line| line.contains("packets transmitted")).unwrap_or("no answer");
            self.check(ping.contains(" 3 received"), &format!("ping: {summary}"));

            let answer =
                self.in_pod(pod, "dig", &["+short", "+tries=1", "+timeout=5", &format!("@{SERVER}"), NAME])?;
            self.check(answer.trim() == SERVER.to_string(), &format!("dig {NAME}: {}", answer.trim()));
            visits.push(Visit { pod, seen_as });
        }
        Ok(visits)
    }

    /// Shows the requests as nginx and dnsmasq noted them, beside the pods that made them.
    fn ask_server(&mut self, visits: &[Visit]) -> Result<()> {
        screen::title("What the server saw");
        let answered = visits.iter().filter(|visit| visit.seen_as.is_some()).count();
        let pages = wait::until("nginx notes all requests", SOON, || {
            Ok(Some(self.server.pages_seen()?).filter(|pages| pages.len() >= answered))
        })?;
        for Visit { pod, seen_as } in visits {
            let page = pages.iter().find(|page| Some(page.client) == *seen_as);
            let line = page.map_or_else(
                || format!("no request came from pod {}", pod.address),
                |page| {
                    format!(
                        "{} asked for {} (pod {}, {})",
                        page.client, page.request, pod.address, pod.tenant.name
                    )
                },
            );
            self.check(
                page.is_some_and(|page| *page.client.ip() == pod.tenant.egress),
                &format!("nginx: {line}"),
            );
        }
        let queries = self.server.queries_seen();
        for tenant in [&BLUE, &RED] {
            let count = queries.iter().filter(|query| *query.client.ip() == tenant.egress).count();
            let pods = PODS.iter().filter(|pod| pod.tenant == tenant).count();
            let line = format!("dnsmasq: {count} queries came from {} ({})", tenant.egress, tenant.name);
            self.check(count == pods, &line);
        }
        Ok(())
    }

    fn look_inside(&self) -> Result<()> {
        screen::title("What the gateway tells");
        self.show(&["status"])?;
        self.show(&["routes"])?;
        self.show(&["sessions"])?;
        screen::explain(
            "The routes to the pods are the kernel's, marked as Spillway's by their protocol number:",
        );
        let arguments = ["route", "show", "proto", ROUTE_PROTOCOL];
        screen::command(&format!("ip {}", arguments.join(" ")));
        screen::output(&self.lab.namespace(Host::Gateway).ip(&arguments.join(" "))?);
        Ok(())
    }

    fn check_leaks(&mut self) -> Result<()> {
        screen::title("What crossed the outside link");
        let Some(capture) = self.capture.take() else { return Ok(()) };
        let recording = capture.finish()?;
        for tenant in [&BLUE, &RED] {
            let count = recording.count(&format!("ip and src host {}", tenant.egress))?;
            self.check(count > 0, &format!("{count} packets from {} ({})", tenant.egress, tenant.name));
        }
        let leaks = recording.pod_sources()?;
        self.check(leaks == 0, &format!("{leaks} packets from a pod's own address"));
        Ok(())
    }

    /// Leaves everything up and says how to look around.
    fn keep(&mut self) -> Result<()> {
        self.capture = None;
        self.cluster.as_mut().map(Cluster::leave);
        self.gateway.leave();
        self.server.leave();
        self.lab.keep()?;
        screen::title("Everything stays up");
        let installation = self.gateway.installation();
        let enter = |host| format!("nsenter --net={}", self.lab.namespace(host).path().display());
        let program = installation.executable.display();
        screen::explain("Look into the gateway:");
        screen::command(&format!("export SPILLWAY_SOCKET={}", installation.socket.display()));
        screen::command(&format!("{program} status"));
        screen::command(&format!("{} ip address", enter(Host::Gateway)));
        screen::explain("Be a pod of ns-blue:");
        screen::command(&format!("{} curl {}", enter(Host::Blue1), server::url("whoami")));
        screen::explain("Watch the outside link:");
        screen::command(&format!("{} tcpdump -ni {}", enter(Host::SwitchOutside), Host::Gateway.name()));
        screen::explain(&format!("Logs and files are in {}. Take it down:", self.lab.directory().display()));
        screen::command(&format!("{program} demo --clean"));
        Ok(())
    }

    fn in_pod(&self, pod: &Pod, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.lab.namespace(pod.host).command(program);
        let output = command::run(command.args(arguments), Duration::from_secs(30))?;
        Ok(command::text(&output.stdout) + command::text(&output.stderr).trim_end())
    }

    /// Runs a command of the command line and prints it with its output.
    fn show(&self, arguments: &[&str]) -> Result<()> {
        screen::command(&format!("spillway {}", arguments.join(" ")));
        screen::output(&self.gateway.installation().cli(arguments)?);
        Ok(())
    }

    fn check(&mut self, right: bool, line: &str) {
        if right {
            screen::good(line);
        } else {
            screen::bad(line);
            self.failures += 1;
        }
    }
}

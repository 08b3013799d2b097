use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, value_parser};
use control::demo::wait;
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};
use spillway_apiserver::{ApiServer, Credentials, Handle};

use crate::namespace::{Namespace, PREFIX};
use crate::report::{Findings, Sheet};
use crate::statistics::Summary;
use crate::system::{Daemon, Setup};
use crate::topology::{Cores, Topology};

/// The gateway's address on a network that has room for the nodes.
const GATEWAY: &str = "172.20.0.1/16";
const FIRST_NODE: u32 = 0xac14_0100;
const FIRST_POD_NETWORK: u32 = 0x0a00_0000;
/// How many neighbours the kernel may keep, all namespaces together: a daemon outside of them would set it.
const NEIGHBOUR_LIMITS: [&str; 2] =
    ["/proc/sys/net/ipv4/neigh/default/gc_thresh3", "/proc/sys/net/ipv4/neigh/default/gc_thresh2"];
const SYNC_WITHIN: Duration = Duration::from_secs(60);
const CHANGE_WITHIN: Duration = Duration::from_secs(10);

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Nodes of the cluster
    #[arg(long, default_value_t = 5000, value_parser = value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// Changes of one node's pod network, one after the other
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(1..=10_000))]
    changes: u32,
    /// How often the daemon starts anew
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=50))]
    rounds: u32,
}

/// How fast the gateway followed the nodes.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) nodes: u32,
    pub(crate) changes: u32,
    pub(crate) rounds: u32,
    pub(crate) xdp_mode: &'static str,
    pub(crate) first_sync_seconds: Summary,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) maximum_ms: f64,
}

/// Starts the daemon beside an API server with so many nodes, then changes one node after the other.
pub(crate) fn measure(plan: &Options, cores: Cores, setup: &Setup) -> Result<Results> {
    let _limits = NEIGHBOUR_LIMITS.map(|path| Limit::raise(path, 4 * plan.count.max(1024)));
    let topology = Topology::build(cores, setup.flows)?;
    widen_inside(&topology)?;
    let api = topology.gateway.enter(|| ApiServer::start(spillway_apiserver::Options::default()))?;
    for number in 0..plan.count {
        api.create(node(number, number)?)?;
    }
    let directory = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
    let kubeconfig = directory.path().join("kubeconfig");
    api.kubeconfig(&kubeconfig, &Credentials::Inline)?;
    let (mut syncs, mut delays) = (Vec::new(), Histogram::<u64>::new(3)?);
    let mut xdp_mode = "none";
    for round in 0..plan.rounds {
        eprintln!("round {} of {}: {} nodes", round + 1, plan.rounds, plan.count);
        let mut routes = RouteMonitor::start(&topology.gateway)?;
        let began = Instant::now();
        let daemon = Daemon::launch_for_cluster(&topology, setup, &kubeconfig)?;
        routes.until_added(plan.count).with_context(|| daemon.log())?;
        syncs.push(began.elapsed().as_secs_f64());
        xdp_mode = topology.xdp_mode()?;
        wait::pause(Duration::from_secs(3))?; // lets what the start set in motion come to rest
        for change in 0..plan.changes / plan.rounds {
            let delay = change_node(&api, &mut routes, round, change, plan).with_context(|| daemon.log())?;
            delays.record(u64::try_from(delay.as_micros())?)?;
        }
    }
    let ms = |micros: u64| Duration::from_micros(micros).as_secs_f64() * 1e3;
    Ok(Results {
        nodes: plan.count,
        changes: plan.changes / plan.rounds * plan.rounds,
        rounds: plan.rounds,
        xdp_mode,
        first_sync_seconds: Summary::of(&syncs),
        p50_ms: ms(delays.value_at_quantile(0.5)),
        p99_ms: ms(delays.value_at_quantile(0.99)),
        maximum_ms: ms(delays.max()),
    })
}

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        self.xdp_mode
    }

    fn sheets(&self) -> Vec<Sheet> {
        let header = ["nodes", "first sync, s", "p50, ms", "p99, ms", "max, ms"];
        let delays = [self.p50_ms, self.p99_ms, self.maximum_ms].map(|delay| format!("{delay:.1}"));
        let row = [self.nodes.to_string(), self.first_sync_seconds.show()].into_iter().chain(delays);
        vec![Sheet {
            title: "Nodes of a cluster".to_owned(),
            header: header.map(str::to_owned).to_vec(),
            rows: vec![row.collect()],
            charts: Vec::new(),
            notes: vec![
                format!(
                    "First sync: from the daemon's start until the kernel has every node's route; median (minimum to maximum) \
                     of {} starts.",
                    self.rounds
                ),
                format!(
                    "Then one node at a time changes its pod network, {} in all: from the API server's write, which its \
                     watches hear of at once, until the kernel tells of the new route.",
                    self.changes
                ),
            ],
        }]
    }
}

/// Gives a node another pod network and returns how long the kernel took to hear of it.
fn change_node(
    api: &Handle,
    routes: &mut RouteMonitor,
    round: u32,
    change: u32,
    plan: &Options,
) -> Result<Duration> {
    let number = change % plan.count;
    // A network that no node had before.
    let network = plan.count + round * plan.changes + change;
    let object = node(number, network)?;
    let began = Instant::now();
    api.apply(object)?;
    routes.until_added_to(&pod_network(network))?;
    Ok(began.elapsed())
}

/// Puts the inside link on a network that has room for the nodes; the far end answers for every one of them.
fn widen_inside(topology: &Topology) -> Result<()> {
    let (inside, far) = (topology.inside_device(), topology.generator_device());
    topology.gateway.ip(&format!("addr flush dev {inside}"))?;
    topology.gateway.ip(&format!("addr add {GATEWAY} dev {inside}"))?;
    topology.generator.ip("route add local 172.20.0.0/16 dev lo")?;
    topology.generator.ip(&format!("route add 172.20.0.1/32 dev {far}"))?;
    Ok(())
}

fn node(number: u32, network: u32) -> Result<Value> {
    let address = Ipv4Addr::from_bits(FIRST_NODE + number);
    let subnets = json!({ "default": [pod_network(network)] }).to_string();
    let primary = json!({ "ipv4": format!("{address}/16") }).to_string();
    if number > 0xffff - 0x0100 {
        bail!("{number} nodes do not fit the inside network");
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": format!("node-{number}"),
            "annotations": {
                "k8s.ovn.org/node-subnets": subnets,
                "k8s.ovn.org/node-primary-ifaddr": primary,
            },
        },
        "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
    }))
}

fn pod_network(number: u32) -> String {
    format!("{}/24", Ipv4Addr::from_bits(FIRST_POD_NETWORK + (number << 8)))
}

/// The kernel's own word on routes: `ip monitor` in the gateway's namespace; dropped, it ends.
struct RouteMonitor {
    program: Child,
    added: Receiver<String>,
}

impl RouteMonitor {
    fn start(gateway: &Namespace) -> Result<Self> {
        let mut program = Command::new("ip")
            .args(["-n", gateway.name(), "-o", "monitor", "route"])
            .stdout(Stdio::piped())
            .spawn()
            .context("`ip monitor` does not run")?;
        let lines = BufReader::new(program.stdout.take().context("`ip monitor` has no output")?).lines();
        let (sender, added) = mpsc::channel();
        thread::spawn(move || {
            let own = lines.map_while(Result::ok).filter(|line| line.contains("proto 83"));
            for line in own.filter(|line| !line.starts_with("Deleted")) {
                let network = line.split_whitespace().next().unwrap_or_default().to_owned();
                if sender.send(network).is_err() {
                    return;
                }
            }
        });
        Ok(Self { program, added })
    }

    fn until_added(&mut self, count: u32) -> Result<()> {
        let deadline = Instant::now() + SYNC_WITHIN;
        for number in 0..count {
            let left = deadline.saturating_duration_since(Instant::now());
            self.added.recv_timeout(left).with_context(|| format!("{number} of {count} routes came"))?;
        }
        Ok(())
    }

    fn until_added_to(&mut self, network: &str) -> Result<()> {
        let deadline = Instant::now() + CHANGE_WITHIN;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let added =
                self.added.recv_timeout(left).with_context(|| format!("no route to {network} came"))?;
            if added == network {
                return Ok(());
            }
        }
    }
}

impl Drop for RouteMonitor {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// A kernel setting that is raised; dropped, it is put back.
struct Limit {
    path: &'static str,
    before: Option<String>,
}

impl Limit {
    fn raise(path: &'static str, least: u32) -> Self {
        let before = fs::read_to_string(path).ok();
        let is_short =
            before.as_deref().is_some_and(|text| text.trim().parse().is_ok_and(|limit: u32| limit < least));
        let raised = is_short && fs::write(path, least.to_string()).is_ok();
        Self { path, before: before.filter(|_| raised) }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(self.path, before)
        {
            eprintln!("warning: {} is not put back: {error}", self.path);
        }
    }
}

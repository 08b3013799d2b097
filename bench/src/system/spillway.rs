use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use control::demo::process::Process;
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Setup;
use crate::command::{output, run_words};
use crate::namespace::{PREFIX, abandoned};
use crate::topology::{EGRESS, NODE, POD_CIDR, RED_EGRESS, RED_GATEWAY, TENANT_GATEWAY, Topology};

const BPFFS: &str = "/sys/fs/bpf";
/// Thousands of tenants take their time.
const READY_WITHIN: Duration = Duration::from_secs(300);

/// What is asked of a daemon beside the usual.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    /// Entries of the session table.
    pub(crate) capacity: Option<u32>,
    /// Tenants of the control socket that an earlier daemon would have saved, as the API has them.
    pub(crate) saved_tenants: Vec<Value>,
}

/// How the daemon is ended before it is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    /// By SIGTERM, as `systemctl restart` does.
    Restart,
    /// By SIGKILL.
    Kill,
}

impl End {
    pub(crate) const ALL: [Self; 2] = [Self::Restart, Self::Kill];
}

/// The daemon, with one worker on the gateway's core; dropped, it is stopped and leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Process,
    directory: TempDir,
    pins: PathBuf,
}

impl Daemon {
    /// Starts the daemon in the topology's gateway and waits until it answers on its control socket.
    pub(super) fn start(topology: &Topology, setup: &Setup) -> Result<Self> {
        Self::start_with(topology, setup, &Wishes::default())
    }

    /// Starts the daemon as somebody wishes, and waits until it answers on its control socket.
    pub(crate) fn start_with(topology: &Topology, setup: &Setup, wishes: &Wishes) -> Result<Self> {
        let mut daemon = Self::launch(topology, setup, None, wishes)?;
        daemon.wait_until_ready(&setup.spillway)?;
        Ok(daemon)
    }

    /// Returns the control socket's path.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    /// Starts the daemon in the topology's gateway, to follow the cluster of a kubeconfig, and does not wait.
    pub(crate) fn launch_for_cluster(topology: &Topology, setup: &Setup, kubeconfig: &Path) -> Result<Self> {
        Self::launch(topology, setup, Some(kubeconfig), &Wishes::default())
    }

    fn launch(
        topology: &Topology,
        setup: &Setup,
        kubeconfig: Option<&Path>,
        wishes: &Wishes,
    ) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        let pins = Path::new(BPFFS).join(format!("{PREFIX}{}", topology.tag));
        let config = directory.path().join("spillway.toml");
        let mut content = Config::of(topology, setup, directory.path(), &pins);
        if let Some(kubeconfig) = kubeconfig {
            content.follow_cluster(kubeconfig);
        }
        content.sessions.capacity = wishes.capacity.unwrap_or(content.sessions.capacity);
        if !wishes.saved_tenants.is_empty() {
            let saved = json!({ "tenants": wishes.saved_tenants });
            fs::create_dir_all(&content.control.state_dir)?;
            fs::write(content.control.state_dir.join("tenants.json"), saved.to_string())?;
        }
        fs::write(&config, toml::to_string(&content)?)?;
        let process = spawn(topology, setup, directory.path(), false)?;
        Ok(Self { process, directory, pins })
    }

    /// Ends the daemon and starts it again at once with the same files, as a service manager would.
    pub(crate) fn restart(&mut self, topology: &Topology, setup: &Setup, end: End) -> Result<()> {
        match end {
            End::Restart => self.process.stop()?,
            End::Kill => self.process.kill()?,
        };
        self.process = spawn(topology, setup, self.directory.path(), true)?;
        self.wait_until_ready(&setup.spillway)
    }

    /// Returns the daemon's status.
    pub(crate) fn status(&self, setup: &Setup) -> Result<Value> {
        let (spillway, socket) = (setup.spillway.display().to_string(), self.socket().display().to_string());
        let printed = output(&[&spillway, "status", "--socket", &socket, "--json"])?;
        Ok(serde_json::from_slice(&printed.stdout)?)
    }

    /// Returns all that the daemon has logged.
    pub(crate) fn log(&self) -> String {
        self.process.output()
    }

    /// Returns the daemon's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Adds a second tenant.
    pub(super) fn add_red(&self, spillway: &Path) -> Result<()> {
        let (program, socket) = (spillway.display().to_string(), self.socket().display().to_string());
        let words = ["tenant", "add", "ns-red", "--gw-ip", RED_GATEWAY, "--egress-ip", RED_EGRESS];
        let words: Vec<_> =
            [program.as_str()].into_iter().chain(words).chain(["--socket", &socket]).collect();
        run_words(&words).map(drop)
    }

    fn wait_until_ready(&mut self, spillway: &Path) -> Result<()> {
        let socket = self.socket().display().to_string();
        let spillway = spillway.display().to_string();
        self.process.until("spillway answers on its control socket", READY_WITHIN, || {
            let status = output(&[&spillway, "status", "--socket", &socket, "--json"])?.status;
            Ok(status.success().then_some(()))
        })
    }

    fn stop(&mut self) -> Result<()> {
        self.process.stop()?;
        if self.pins.exists() {
            fs::remove_dir_all(&self.pins).with_context(|| self.pins.display().to_string())?;
        }
        Ok(())
    }
}

/// Starts the daemon of a directory, as its service does.
fn spawn(topology: &Topology, setup: &Setup, directory: &Path, is_again: bool) -> Result<Process> {
    // `ip netns exec` would hide bpffs, and the pins with it.
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", topology.gateway.path())).arg("--").arg(&setup.spillway);
    command.arg("run").arg("--keep").arg("--config").arg(directory.join("spillway.toml"));
    Process::start(&mut command, &directory.join(if is_again { "log-again" } else { "log" }))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("warning: spillway could not be taken down: {error:#}");
        }
    }
}

/// Removes the pins, and the XDP programs with them, that killed runs left behind.
pub(crate) fn remove_stale() -> Result<()> {
    for name in abandoned(BPFFS)? {
        fs::remove_dir_all(Path::new(BPFFS).join(&name)).with_context(|| format!("{BPFFS}/{name}"))?;
    }
    Ok(())
}

/// The daemon's config file.
#[derive(Serialize)]
struct Config {
    inside: Interface,
    outside: Interface,
    xdp: Xdp,
    workers: Workers,
    sessions: Sessions,
    cluster: Cluster,
    kubernetes: Option<Kubernetes>,
    control: Control,
    tenant: Vec<Tenant>,
}

#[derive(Serialize)]
struct Kubernetes {
    enabled: bool,
    kubeconfig: PathBuf,
}

#[derive(Serialize)]
struct Interface {
    interface: String,
}

#[derive(Serialize)]
struct Xdp {
    mode: &'static str,
    pin_dir: PathBuf,
}

#[derive(Serialize)]
struct Workers {
    count: usize,
    cores: Vec<usize>,
}

#[derive(Serialize)]
struct Sessions {
    capacity: u32,
}

#[derive(Serialize)]
struct Cluster {
    pod_cidrs: Vec<&'static str>,
    routes: Vec<Route>,
}

#[derive(Serialize)]
struct Route {
    pod_cidr: &'static str,
    via: &'static str,
}

#[derive(Serialize)]
struct Control {
    socket: PathBuf,
    state_dir: PathBuf,
}

#[derive(Serialize)]
struct Tenant {
    name: &'static str,
    gateway_ip: &'static str,
    egress_ips: Vec<&'static str>,
    pod_cidrs: Vec<&'static str>,
}

impl Config {
    fn of(topology: &Topology, setup: &Setup, directory: &Path, pins: &Path) -> Self {
        Self {
            inside: Interface { interface: topology.inside_device() },
            outside: Interface { interface: topology.outside_device() },
            xdp: Xdp { mode: "auto", pin_dir: pins.to_owned() },
            workers: Workers { count: 1, cores: vec![topology.cores.gateway] },
            sessions: Sessions {
                capacity: (setup.flows.count() + setup.flows.count() / 4).next_power_of_two().max(65_536),
            },
            cluster: Cluster {
                pod_cidrs: vec![POD_CIDR],
                routes: vec![Route { pod_cidr: POD_CIDR, via: NODE }],
            },
            kubernetes: None,
            control: Control { socket: directory.join("control.sock"), state_dir: directory.join("state") },
            tenant: vec![Tenant {
                name: "ns-blue",
                gateway_ip: TENANT_GATEWAY,
                egress_ips: vec![EGRESS],
                pod_cidrs: vec![POD_CIDR],
            }],
        }
    }

    /// Takes nodes and tenants from the cluster alone.
    fn follow_cluster(&mut self, kubeconfig: &Path) {
        self.kubernetes = Some(Kubernetes { enabled: true, kubeconfig: kubeconfig.to_owned() });
        self.cluster.routes.clear();
        self.tenant.clear();
    }
}

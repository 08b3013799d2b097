//! The gateway's daemon in the lab, and its command line as a user would type it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use anyhow::{Context, Result};

use super::command::{self, SOON};
use super::lab::Lab;
use super::process::Process;
use super::topology::{CLUSTER_CIDR, Host, INSIDE, NODES, OUTSIDE, Tenant};

/// Time that the daemon may take to start.
const START: Duration = Duration::from_secs(30);

/// The daemon of a lab; ended when dropped.
#[derive(Debug)]
pub struct Gateway {
    process: Process,
    installation: Installation,
}

/// The daemon's executable and files, whether it runs or not.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The program `spillway`.
    pub executable: PathBuf,
    /// The config file.
    pub config: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// All that the daemon logs.
    pub log: PathBuf,
}

impl Installation {
    /// Writes the config file for a lab's gateway, which knows the nodes from there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(lab: &Lab, executable: &Path) -> Result<Self> {
        let route = |pod_cidr, via| format!("  {{ pod_cidr = \"{pod_cidr}\", via = \"{via}\" }},\n");
        let routes: String = NODES.iter().map(|node| route(node.pod_cidr, node.address)).collect();
        Self::write_with(lab, executable, &format!("routes = [\n{routes}]\n"))
    }

    /// Writes the config file for a lab's gateway, which asks the Kubernetes API for nodes and tenants.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_for_cluster(lab: &Lab, executable: &Path, kubeconfig: &Path) -> Result<Self> {
        let section = format!("\n[kubernetes]\nenabled = true\nkubeconfig = \"{}\"\n", kubeconfig.display());
        Self::write_with(lab, executable, &section)
    }

    fn write_with(lab: &Lab, executable: &Path, cluster: &str) -> Result<Self> {
        let directory = lab.directory();
        let files = Self {
            executable: executable.to_owned(),
            config: directory.join("spillway.toml"),
            socket: directory.join("spillway.sock"),
            log: directory.join("spillway.log"),
        };
        let text = config(&files.socket, lab.pin_dir(), &directory.join("state"), cluster);
        std::fs::write(&files.config, text).with_context(|| format!("{}", files.config.display()))?;
        Ok(files)
    }

    /// Returns the command that runs the daemon in the gateway's namespace.
    pub fn daemon(&self, lab: &Lab) -> Command {
        let mut command = lab.namespace(Host::Gateway).command(&self.executable);
        command.arg("run").arg("--config").arg(&self.config);
        command
    }

    /// Returns a command of the command line, told where the daemon's socket is.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.executable);
        command.arg("--socket").arg(&self.socket).args(arguments);
        command
    }

    /// Runs a command of the command line; returns what it printed and how it ended.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        command::run(&mut self.command(arguments), SOON)
    }

    /// Runs a command of the command line that has to succeed.
    ///
    /// # Errors
    /// When it fails.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        command::run_ok(&mut self.command(arguments), SOON)
    }

    /// Returns what a command prints with `--json`.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        let text = self.cli(&arguments)?;
        serde_json::from_str(&text).with_context(|| format!("{arguments:?} printed `{text}`"))
    }

    /// Detaches the XDP programs.
    ///
    /// # Errors
    /// When the command does not end in time.
    pub fn detach(&self, lab: &Lab) -> Result<Output> {
        let mut detach = lab.namespace(Host::Gateway).command(&self.executable);
        detach.arg("--socket").arg(&self.socket).arg("detach").arg("--config").arg(&self.config);
        command::run(&mut detach, SOON)
    }
}

impl Gateway {
    /// Starts the daemon and waits until it answers on its socket.
    ///
    /// # Errors
    /// When it ends or does not answer in time; its log is in the error.
    pub fn start(lab: &Lab, installation: Installation) -> Result<Self> {
        let mut process = lab.start(&mut installation.daemon(lab), &installation.log)?;
        process.until("the daemon answers on its socket", START, || {
            let answers = installation.socket.exists() && installation.output(&["status"])?.status.success();
            Ok(answers.then_some(()))
        })?;
        Ok(Self { process, installation })
    }

    /// Returns the daemon's process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Returns where its files are, and a way to its command line.
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// Adds a tenant over the control socket.
    ///
    /// # Errors
    /// When it is refused.
    pub fn add_tenant(&self, tenant: &Tenant) -> Result<()> {
        let arguments = add_tenant_arguments(tenant);
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.installation.cli(&words).map(drop)
    }

    /// Removes a tenant over the control socket.
    ///
    /// # Errors
    /// When it is refused.
    pub fn remove_tenant(&self, tenant: &Tenant) -> Result<()> {
        self.installation.cli(&["tenant", "remove", tenant.name]).map(drop)
    }

    /// Returns the daemon's status.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<serde_json::Value> {
        self.installation.json(&["status"])
    }

    /// Returns all that the daemon has logged.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Stops the daemon as the init system would.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.stop()
    }

    /// Tells the daemon to stop, and does not wait.
    ///
    /// # Errors
    /// When the kernel does not tell whether it runs.
    pub fn ask_to_stop(&mut self) -> Result<()> {
        self.process.ask_to_end()
    }

    /// Waits until the daemon ends, and tells how.
    ///
    /// # Errors
    /// When it does not.
    pub fn until_ended(&mut self) -> Result<ExitStatus> {
        self.process.until_ended(START)
    }

    /// Kills the daemon.
    ///
    /// # Errors
    /// When the kernel does not tell how it ended.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.process.kill()
    }

    /// Lets the daemon run on when this is dropped.
    pub fn leave(&mut self) {
        self.process.leave();
    }
}

/// Returns the arguments that add a tenant.
pub fn add_tenant_arguments(tenant: &Tenant) -> Vec<String> {
    let (gateway, egress) = (tenant.gateway.to_string(), tenant.egress.to_string());
    ["tenant", "add", tenant.name, "--gw-ip", &gateway, "--egress-ip", &egress].map(str::to_owned).to_vec()
}

fn config(socket: &Path, pin_dir: &Path, state: &Path, cluster: &str) -> String {
    format!(
        "[inside]\ninterface = \"{INSIDE}\"\n\n\
         [outside]\ninterface = \"{OUTSIDE}\"\n\n\
         [xdp]\npin_dir = \"{}\"\n\n\
         [sessions]\ncapacity = 65536\n\n\
         [cluster]\npod_cidrs = [\"{CLUSTER_CIDR}\"]\n{cluster}\n\
         [control]\nsocket = \"{}\"\nstate_dir = \"{}\"\n",
        pin_dir.display(),
        socket.display(),
        state.display(),
    )
}

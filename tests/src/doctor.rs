//! `spillway doctor`, run as a program where the gateway is.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use control::demo::command::{self, text};
use control::demo::gateway::Installation;
use control::demo::topology::Host;
use control::demo::{Lab, LabOptions};
use serde_json::Value;

use crate::fixture::{LIMIT, executable, skipped};

/// What depends on the machine that the tests run on, not on the lab.
const OF_THE_MACHINE: [&str; 2] = ["clock-not-synchronised", "memory-lock-limited"];

/// What `spillway doctor --json` printed, and how it ended.
#[derive(Debug)]
pub struct Report {
    /// The exit code.
    pub code: Option<i32>,
    findings: Vec<Value>,
}

impl Report {
    /// Runs the command in the gateway's namespace.
    ///
    /// # Errors
    /// When it does not end in time, or prints something else.
    pub fn of(lab: &Lab, installation: &Installation) -> Result<Self> {
        Self::of_config(lab, &installation.executable, &installation.config)
    }

    /// Runs the command with another config file.
    ///
    /// # Errors
    /// As [`Report::of`].
    pub fn of_config(lab: &Lab, executable: &Path, config: &Path) -> Result<Self> {
        let mut doctor = lab.namespace(Host::Gateway).command(executable);
        doctor.arg("doctor").arg("--json").arg("--config").arg(config);
        Self::read(&mut doctor)
    }

    /// Runs a command that ends in `spillway doctor --json`.
    ///
    /// # Errors
    /// As [`Report::of`].
    pub fn read(doctor: &mut Command) -> Result<Self> {
        let output = command::run(doctor, LIMIT)?;
        let printed = text(&output.stdout);
        let report: Value = serde_json::from_str(&printed)
            .with_context(|| format!("doctor printed `{printed}` and {}", text(&output.stderr)))?;
        let findings = report["findings"].as_array().context("no findings")?.clone();
        Ok(Self { code: output.status.code(), findings })
    }

    /// Returns the ids of what is broken or could be better, but for what the machine is to blame for.
    pub fn bad(&self) -> BTreeSet<&str> {
        let bad =
            self.findings.iter().filter(|found| ["broken", "warning"].contains(&word(found, "severity")));
        bad.map(|found| word(found, "id")).filter(|id| !OF_THE_MACHINE.contains(id)).collect()
    }

    /// Returns the first finding with this id.
    ///
    /// # Errors
    /// When there is none.
    pub fn finding(&self, id: &str) -> Result<&Value> {
        let found = self.findings.iter().find(|found| word(found, "id") == id);
        found.with_context(|| format!("no finding {id}: {:?}", self.findings))
    }

    /// Fails unless a check found something broken whose summary holds these words.
    ///
    /// # Errors
    /// When it did not, with what it said.
    pub fn require_broken(&self, id: &str, words: &str) -> Result<()> {
        let found = self.finding(id)?;
        ensure!(word(found, "severity") == "broken" && word(found, "summary").contains(words), "{found}");
        ensure!(!word(found, "why").is_empty() && !word(found, "fix").is_empty(), "{found}");
        ensure!(self.code == Some(1), "it ended with {:?}", self.code);
        Ok(())
    }
}

/// Returns a text of a finding; empty when it has none.
pub fn word<'a>(finding: &'a Value, key: &str) -> &'a str {
    finding[key].as_str().unwrap_or_default()
}

/// Builds a lab whose gateway has no daemon yet, and does not forward, as the README asks for; nothing where tests that
/// need namespaces are skipped.
///
/// # Errors
/// When it cannot be built.
pub fn lab_without_daemon(options: &LabOptions) -> Result<Option<(Lab, Installation)>> {
    if skipped()? {
        return Ok(None);
    }
    let lab = Lab::build(options)?;
    stop_forwarding(&lab)?;
    let installation = Installation::write(&lab, &executable()?)?;
    Ok(Some((lab, installation)))
}

/// Switches IP forwarding off in the gateway's kernel.
///
/// # Errors
/// When the kernel refuses.
pub fn stop_forwarding(lab: &Lab) -> Result<()> {
    lab.namespace(Host::Gateway).run("sysctl", &["-q", "-w", "net.ipv4.ip_forward=0"]).map(drop)
}

/// Replaces words of the gateway's config file.
///
/// # Errors
/// When they are not in it, or it cannot be written.
pub fn edit_config(installation: &Installation, from: &str, to: &str) -> Result<()> {
    let config = std::fs::read_to_string(&installation.config)?;
    ensure!(config.contains(from), "`{from}` is not in {config}");
    std::fs::write(&installation.config, config.replace(from, to))?;
    Ok(())
}

/// Answers HTTP requests on loopback of the gateway's namespace, each with the same status and a JSON body.
#[derive(Debug)]
pub struct StandIn {
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    /// Starts it; `head` is the status line and further headers.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(lab: &Lab, head: &'static str, body: &'static str) -> Result<Self> {
        let listener = lab.namespace(Host::Gateway).enter(|| TcpListener::bind("127.0.0.1:0"))??;
        let address = listener.local_addr()?;
        let thread = std::thread::spawn(move || answer(&listener, head, body));
        Ok(Self { address, thread: Some(thread) })
    }

    /// Writes a kubeconfig for it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_kubeconfig(&self, path: &Path) -> Result<()> {
        write_kubeconfig(path, self.address)
    }

    /// Ends it and waits until it has ended.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn stop(mut self, lab: &Lab) -> Result<()> {
        let stream = lab.namespace(Host::Gateway).enter(|| std::net::TcpStream::connect(self.address))??;
        (&stream).write_all(b"STOP\r\n\r\n")?;
        drop(stream);
        let ended = self.thread.take().map(JoinHandle::join);
        ensure!(matches!(ended, Some(Ok(()))), "the stand-in failed");
        Ok(())
    }
}

/// Writes a kubeconfig for a server without TLS.
///
/// # Errors
/// When it cannot be written.
pub fn write_kubeconfig(path: &Path, server: SocketAddr) -> Result<()> {
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{ "name": "lab", "cluster": { "server": format!("http://{server}") } }],
        "users": [{ "name": "lab", "user": { "token": "expired" } }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
    });
    std::fs::write(path, config.to_string()).with_context(|| format!("{}", path.display()))
}

/// Answers as the daemon on a control socket: each request with the next of these bodies, then no more.
///
/// # Errors
/// When it cannot listen there.
pub fn play_daemon(socket: &Path, bodies: Vec<String>) -> Result<JoinHandle<()>> {
    let listener = UnixListener::bind(socket).with_context(|| format!("{}", socket.display()))?;
    Ok(std::thread::spawn(move || {
        for body in bodies {
            let Ok((mut stream, _)) = listener.accept() else { return };
            read_head(&mut stream);
            write_answer(&mut stream, "200 OK", &body);
        }
    }))
}

fn answer(listener: &TcpListener, head: &str, body: &str) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        if read_head(&mut stream).starts_with(b"STOP") {
            return;
        }
        write_answer(&mut stream, head, body);
    }
}

fn read_head(stream: &mut impl Read) -> Vec<u8> {
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(count) => request.extend_from_slice(&piece[..count]),
        }
    }
    request
}

fn write_answer(stream: &mut impl Write, head: &str, body: &str) {
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {head}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    // A client that went away is the test's business.
    let _ = stream.write_all(answer.as_bytes());
}

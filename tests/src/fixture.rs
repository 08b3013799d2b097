//! A lab in which the gateway runs and serves two tenants.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Output;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::demo::command::{self, text};
use control::demo::gateway::{Gateway, Installation};
use control::demo::server::{self, Server};
use control::demo::topology::{BLUE, Host, INSIDE, OUTSIDE, PODS, Pod, RED, SERVER};
use control::demo::{Lab, LabOptions, missing_privilege};

use crate::doctor::edit_config;
use crate::stream::{Stream, Summary};

/// Time that a program in a pod may take.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The running gateway, the server's programs and the lab around them; removed when dropped, in this order.
#[derive(Debug)]
pub struct Fixture {
    /// The daemon.
    pub gateway: Gateway,
    /// The server's programs.
    pub server: Server,
    /// The namespaces.
    pub lab: Lab,
}

impl Fixture {
    /// Builds a lab and starts the gateway in it, without tenants.
    ///
    /// Without the privilege it prints `SKIPPED` and returns nothing, so that the test ends.
    ///
    /// # Errors
    /// When something does not start, or without the privilege if the environment says `REQUIRE_NETNS=1`.
    pub fn without_tenants() -> Result<Option<Self>> {
        Self::in_lab(&LabOptions::default())
    }

    fn in_lab(options: &LabOptions) -> Result<Option<Self>> {
        if skipped()? {
            return Ok(None);
        }
        Self::start(Lab::build(options)?).map(Some)
    }

    /// Starts the server's programs and the gateway in a lab, without tenants.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start(lab: Lab) -> Result<Self> {
        let server = Server::start(&lab)?;
        let gateway = Gateway::start(&lab, Installation::write(&lab, &executable()?)?)?;
        Ok(Self { gateway, server, lab })
    }

    /// Builds a lab and starts the gateway in it, with the tenants ns-blue and ns-red.
    ///
    /// # Errors
    /// As [`Fixture::without_tenants`].
    pub fn with_tenants() -> Result<Option<Self>> {
        Self::with_layout(&LabOptions::default(), None)
    }

    /// Builds a lab as the options say, and starts a gateway with so many workers in it, with both tenants. None: as
    /// many as the daemon thinks best.
    ///
    /// # Errors
    /// As [`Fixture::without_tenants`].
    pub fn with_layout(options: &LabOptions, workers: Option<u32>) -> Result<Option<Self>> {
        if skipped()? {
            return Ok(None);
        }
        let lab = Lab::build(options)?;
        let server = Server::start(&lab)?;
        let installation = Installation::write(&lab, &executable()?)?;
        if let Some(workers) = workers {
            edit_config(&installation, "[cluster]", &format!("[workers]\ncount = {workers}\n\n[cluster]"))?;
        }
        let fixture = Self { gateway: Gateway::start(&lab, installation)?, server, lab };
        fixture.gateway.add_tenant(&BLUE)?;
        fixture.gateway.add_tenant(&RED)?;
        Ok(Some(fixture))
    }

    /// Starts the daemon anew with the same files, after it ended.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<()> {
        self.gateway = Gateway::start(&self.lab, self.gateway.installation().clone())?;
        Ok(())
    }

    /// Runs a program in a pod; returns what it printed and how it ended.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn in_pod(&self, pod: &Pod, program: &str, arguments: &[&str]) -> Result<Output> {
        command::run(self.lab.namespace(pod.host).command(program).args(arguments), LIMIT)
    }

    /// Fetches a page with curl and returns its bytes.
    ///
    /// # Errors
    /// When curl fails, with its message.
    pub fn fetch(&self, pod: &Pod, url: &str) -> Result<Vec<u8>> {
        let output = self.in_pod(pod, "curl", &["-sS", "--max-time", "15", url])?;
        ensure!(
            output.status.success(),
            "curl in pod {} failed: {}\ndaemon:\n{}",
            pod.address,
            text(&output.stderr),
            self.gateway.log()
        );
        Ok(output.stdout)
    }

    /// Asks the server which address and port a pod's request came from.
    ///
    /// # Errors
    /// When curl fails.
    pub fn seen_as(&self, pod: &Pod) -> Result<SocketAddrV4> {
        let page = text(&self.fetch(pod, &server::url("whoami"))?);
        page.trim().parse().with_context(|| format!("the page says `{page}`"))
    }

    /// Pings the server from a pod with so many bytes; returns how many of `count` echoes were answered.
    ///
    /// # Errors
    /// When ping prints no summary.
    pub fn ping(&self, pod: &Pod, count: u32, bytes: u32) -> Result<u32> {
        let (count, bytes, target) = (count.to_string(), bytes.to_string(), SERVER.to_string());
        let options = ["-n", "-c", &count, "-s", &bytes, "-i", "0.2", "-W", "2", &target];
        received(&self.in_pod(pod, "ping", &options)?)
    }

    /// Fails unless every pod reaches the server under its tenant's egress address.
    ///
    /// # Errors
    /// When one does not.
    pub fn require_service(&self) -> Result<()> {
        for pod in &PODS {
            let seen = self.seen_as(pod)?;
            ensure!(*seen.ip() == pod.tenant.egress, "pod {} is seen as {seen}", pod.address);
        }
        Ok(())
    }

    /// Ends a pod's stream; fails if a datagram did not come back.
    ///
    /// # Errors
    /// Then, with the gateway's status.
    pub fn finish_without_loss(&self, pod: &Pod, stream: Stream) -> Result<Summary> {
        let summary = stream.finish();
        ensure!(summary.missing.is_empty(), "pod {}: {summary:?}, {}", pod.address, self.gateway.status()?);
        Ok(summary)
    }

    /// Returns how many packets the gateway dropped for a reason, by its name in the status.
    ///
    /// # Errors
    /// When the status does not have it.
    pub fn drops(&self, reason: &str) -> Result<u64> {
        let status = self.gateway.status()?;
        status["drops"][reason].as_u64().with_context(|| format!("no drops for `{reason}` in {status}"))
    }

    /// Tells for the gateway's inside and outside interface whether an XDP program is attached.
    ///
    /// # Errors
    /// When an interface is missing.
    pub fn attached(&self) -> Result<[bool; 2]> {
        let gateway = self.lab.namespace(Host::Gateway);
        let shown = |device| gateway.ip(&format!("link show dev {device}")).map(|link| link.contains("xdp"));
        Ok([shown(INSIDE)?, shown(OUTSIDE)?])
    }
}

/// Tells whether tests that need namespaces have to be skipped, and says so.
///
/// # Errors
/// When they may not be skipped: `REQUIRE_NETNS=1`.
pub fn skipped() -> Result<bool> {
    let Some(missing) = missing_privilege() else { return Ok(false) };
    ensure!(std::env::var_os("REQUIRE_NETNS").is_none_or(|value| value != "1"), "{missing}");
    // Not println: what a passing test prints is not shown.
    writeln!(std::io::stderr(), "SKIPPED: {missing}")?;
    Ok(true)
}

/// Reads a variable of the environment; one that is empty is not set.
///
/// # Errors
/// When its value is not of the kind.
pub fn variable<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(name: &str) -> Result<Option<T>> {
    let Some(text) = std::env::var(name).ok().filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("{name}={text}"))
}

/// Returns the program `spillway` that was built beside the tests.
///
/// # Errors
/// When it is not there.
pub fn executable() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile =
        test.parent().and_then(std::path::Path::parent).context("a test lives in target/PROFILE/deps")?;
    let program = profile.join("spillway");
    ensure!(
        program.exists(),
        "{} is missing: run `cargo build -p control` first, or `make test`",
        program.display()
    );
    Ok(program)
}

/// Reads how many echoes a ping received.
///
/// # Errors
/// When it printed no summary.
pub fn received(ping: &Output) -> Result<u32> {
    let printed = text(&ping.stdout) + &text(&ping.stderr);
    let count = printed.split(',').find_map(|part| part.trim().strip_suffix(" received"));
    count.and_then(|count| count.parse().ok()).with_context(|| format!("ping printed `{printed}`"))
}

/// Returns the hops of a traceroute, in order; a hop that did not answer is missing.
pub fn hops(traceroute: &Output) -> Vec<Ipv4Addr> {
    let hop = |line: &str| line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    text(&traceroute.stdout).lines().skip(1).filter_map(hop).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn hops_and_echoes_are_read_from_what_the_programs_print() {
        let printed = |text: &str| Output {
            status: ExitStatus::from_raw(0),
            stdout: text.as_bytes().to_vec(),
            stderr: Vec::new(),
        };
        let ping = "3 packets transmitted, 2 received, 33% packet loss, time 407ms\n";
        assert_eq!(received(&printed(ping)).unwrap(), 2);
        let trace = "traceroute to 198.51.100.7\n 1  10.132.0.1  0.1 ms\n 2  *\n 3  192.168.55.1  0.2 ms\n";
        assert_eq!(hops(&printed(trace)), [Ipv4Addr::new(10, 132, 0, 1), Ipv4Addr::new(192, 168, 55, 1)]);
    }
}

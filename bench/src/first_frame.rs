use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, value_parser};
use control::demo::wait;
use hdrhistogram::Histogram;
use nix::unistd::Pid;
use serde::Serialize;

use crate::napi;
use crate::report::{Axis, Chart, Findings, Series, Sheet};
use crate::system::{Gateway, Setup, System};
use crate::topology::{Cores, DIRECT, POD, SERVER, Topology};

const PORT: u16 = 7;
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
const READY_WITHIN: Duration = Duration::from_secs(10);

/// What is measured.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Round trips over each path
    #[arg(long, default_value_t = 30, value_parser = value_parser!(u32).range(1..=1000))]
    samples: u32,
    /// Idle time before each
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(1..=60))]
    idle_seconds: u64,
}

/// Round trips of the first datagram after idle.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) samples: u32,
    pub(crate) idle_seconds: u64,
    pub(crate) xdp_mode: &'static str,
    pub(crate) cores: Cores,
    pub(crate) paths: Vec<PathResult>,
}

/// Round trips over one path, in microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct PathResult {
    pub(crate) path: &'static str,
    pub(crate) minimum_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) maximum_us: f64,
    /// Asked and not answered within half a second.
    pub(crate) lost: u32,
}

impl Findings for Results {
    fn xdp_mode(&self) -> &str {
        self.xdp_mode
    }

    fn sheets(&self) -> Vec<Sheet> {
        let header = ["path", "p50, µs", "p99, µs", "max, µs", "min, µs", "lost"];
        let rows = self.paths.iter().map(PathResult::row);
        let bars = self.paths.iter().map(|path| (path.path.to_owned(), vec![path.p50_us]));
        let axis = |label: &str| Axis { label: label.to_owned(), is_logarithmic: false };
        let chart = Chart {
            title: "Round trip of the first datagram, median".to_owned(),
            x: axis("path"),
            y: axis("µs"),
            series: Series::Bars { parts: vec!["p50".to_owned()], bars: bars.collect() },
        };
        vec![Sheet {
            title: "First frame after idle".to_owned(),
            header: header.map(str::to_owned).to_vec(),
            rows: rows.collect(),
            charts: vec![chart],
            notes: vec![
                format!(
                    "Round trip of a UDP datagram, pod to server and back: {} a path, each after {} s of idle, paths in \
                     turn.",
                    self.samples, self.idle_seconds
                ),
                format!(
                    "Core {}: pod. Core {}: gateway. Core {}: server.",
                    self.cores.generator, self.cores.gateway, self.cores.sink
                ),
            ],
        }]
    }
}

impl PathResult {
    fn row(&self) -> Vec<String> {
        let times = [self.p50_us, self.p99_us, self.maximum_us, self.minimum_us];
        let times = times.into_iter().map(|time| format!("{time:.1}"));
        [self.path.to_owned()].into_iter().chain(times).chain([self.lost.to_string()]).collect()
    }
}

/// A way from the pod to the server and back that is asked now and then.
struct Probe {
    path: &'static str,
    socket: UdpSocket,
    times: Histogram<u64>,
    lost: u32,
    // Dropped in this order: the gateway goes before the namespace that it is in.
    _server: EchoServer,
    gateway: Option<Gateway>,
    topology: Topology,
}

/// Asks every path in turn, each time after the machine was idle.
pub(crate) fn measure(options: &Options, cores: Cores, setup: &Setup) -> Result<Results> {
    let Options { samples, idle_seconds } = *options;
    let mut probes = vec![
        Probe::direct(cores, setup)?,
        Probe::through(System::KernelIptables, cores, setup)?,
        Probe::through(System::Spillway, cores, setup)?,
    ];
    napi::pin(Pid::from_raw(0), cores.generator)?;
    for sample in 1..=samples {
        for probe in &mut probes {
            wait::pause(Duration::from_secs(idle_seconds))?;
            let time = probe.ask()?;
            let shown = time.map_or("lost".to_owned(), |time| format!("{time:?}"));
            eprintln!("sample {sample}/{samples}  {:<16} {shown}", probe.path);
            match time {
                Some(time) => probe.times.record(u64::try_from(time.as_nanos())?.max(1))?,
                None => probe.lost += 1,
            }
        }
    }
    let mut xdp_mode = "none";
    for probe in &probes {
        if matches!(probe.gateway, Some(Gateway::Spillway(_))) {
            xdp_mode = probe.topology.xdp_mode()?;
        }
    }
    let paths = probes.iter().map(Probe::result).collect();
    Ok(Results { samples, idle_seconds, xdp_mode, cores, paths })
}

impl Probe {
    fn direct(cores: Cores, setup: &Setup) -> Result<Self> {
        let topology = Topology::build(cores, setup.flows)?;
        Self::open("direct", topology, None, DIRECT)
    }

    fn through(system: System, cores: Cores, setup: &Setup) -> Result<Self> {
        let topology = Topology::build(cores, setup.flows)?;
        let gateway = system.start(&topology, setup)?;
        Self::open(system.name(), topology, Some(gateway), [POD, SERVER])
    }

    fn open(
        path: &'static str,
        topology: Topology,
        gateway: Option<Gateway>,
        ends: [&str; 2],
    ) -> Result<Self> {
        let server = EchoServer::start(&topology, ends[1])?;
        let socket = topology.generator.enter(|| {
            let socket = UdpSocket::bind((ends[0], 0))?;
            socket.connect((ends[1], PORT))?;
            socket.set_read_timeout(Some(ANSWER_WITHIN))?;
            Ok(socket)
        })?;
        let times = Histogram::new(3)?;
        let probe = Self { path, socket, times, lost: 0, _server: server, gateway, topology };
        probe.wait_until_answered()?;
        Ok(probe)
    }

    /// Makes the session, so that what is measured is a frame and not a set-up.
    fn wait_until_answered(&self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        while self.ask()?.is_none() {
            wait::check_interrupted()?;
            if Instant::now() > deadline {
                bail!("no datagram came back by {} within {READY_WITHIN:?}", self.path);
            }
        }
        Ok(())
    }

    /// Sends one datagram and returns how long its echo took; nothing when it did not come.
    fn ask(&self) -> Result<Option<Duration>> {
        let mut answer = [0; 64];
        let question = Instant::now();
        self.socket.send(b"first frame after idle")?;
        match self.socket.recv(&mut answer) {
            Ok(_) => Ok(Some(question.elapsed())),
            Err(error) if is_silence(error.kind()) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("no echo by {}", self.path)),
        }
    }

    fn result(&self) -> PathResult {
        let times = &self.times;
        PathResult {
            path: self.path,
            minimum_us: microseconds(times.min()),
            p50_us: microseconds(times.value_at_quantile(0.5)),
            p99_us: microseconds(times.value_at_quantile(0.99)),
            maximum_us: microseconds(times.max()),
            lost: self.lost,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "half a second of nanoseconds is far below 2^52")]
fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

/// Tells errors that mean "nothing yet" from those that mean something is wrong.
fn is_silence(kind: ErrorKind) -> bool {
    // A gateway that is not ready yet may refuse.
    matches!(
        kind,
        ErrorKind::WouldBlock
            | ErrorKind::TimedOut
            | ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
    )
}

/// Sends every datagram back to where it came from; dropped, it ends.
struct EchoServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    fn start(topology: &Topology, address: &str) -> Result<Self> {
        let socket = topology.sink.enter(|| Ok(UdpSocket::bind((address, PORT))?))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (stop, core) = (stop.clone(), topology.cores.sink);
            move || echo(&socket, core, &stop)
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn echo(socket: &UdpSocket, core: usize, stop: &AtomicBool) {
    if let Err(error) = napi::pin(Pid::from_raw(0), core) {
        eprintln!("warning: {error:#}");
    }
    let mut datagram = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        // A lost echo shows at the other end; a time-out is a look at `stop`.
        if let Ok((length, from)) = socket.recv_from(&mut datagram) {
            socket.send_to(&datagram[..length], from).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::Flows;

    #[test]
    fn an_echo_comes_back_with_and_without_the_kernel_between() {
        if !crate::namespace::allowed() {
            return;
        }
        let cores = Cores::plan(2).unwrap();
        let setup = Setup { flows: Flows::new(1), spillway: "unused".into() };
        let direct = Probe::direct(cores, &setup).unwrap();
        let kernel = Probe::through(System::KernelIptables, cores, &setup).unwrap();
        for probe in [direct, kernel] {
            assert!(probe.ask().unwrap().is_some(), "{}", probe.path);
        }
    }
}

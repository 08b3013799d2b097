use std::io;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::{Array, MapData};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, Pod, include_bytes_aligned};
use control::demo::wait;
use macaddr::MacAddr6;
use nix::net::if_::if_nametoindex;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::flows::{DESTINATION_PORT, FIRST_DESTINATION, FIRST_POD, FIRST_SOURCE_PORT, Flows};
use crate::namespace::{self, Namespace};
use crate::napi::{self, Priority};
use crate::topology::{EGRESS, NODE_MAC, POD, SERVER, TENANT_MAC, Topology};

/// Bytes of a frame without its checksum: 64 on the wire.
const FRAME_BYTES: usize = 60;
/// Frames and turns without one in one system call: its set-up and tear-down leave a gap of some milliseconds.
const TURNS_PER_RUN: u32 = 1 << 23;
/// Frames that leave together: the first of them waits for the last one.
const FRAMES_PER_BATCH: u32 = 16;
/// Probes whose round trips are kept.
pub(crate) const SAMPLES: u32 = 131_072;

/// How long a sender without work sleeps when nobody wakes it.
const REST: Duration = Duration::from_millis(100);
const RESTS_WITHIN: Duration = Duration::from_secs(10);

const PROBE_PORT: u16 = 40_007;
const NEVER: u64 = u64::MAX;
/// Intervals of the plan are in 256ths of a nanosecond.
const INTERVAL_UNITS: u64 = 256 * 1_000_000_000;

static PROGRAM: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/traffic.bpf.o"));

/// Traffic from pods through a gateway to a server, with an XDP program at each end; dropped, it stops.
pub(crate) struct Traffic {
    plan: Plan,
    plan_map: Array<MapData, [u64; 11]>,
    progress: Array<MapData, [u64; 6]>,
    counts: Array<MapData, u64>,
    round_trips: Array<MapData, u64>,
    seen: Array<MapData, u64>,
    sender: Arc<Sender>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What the sender's thread is told, and tells.
#[derive(Debug, Default)]
struct Sender {
    is_wanted: AtomicBool,
    is_at_rest: AtomicBool,
    stop: AtomicBool,
}

/// What the frames of the flows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// UDP, one way.
    Datagrams,
    /// TCP SYNs; the ends answer each other until the connection is open.
    Handshakes,
}

/// When the far end takes frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receiving {
    /// By a timer, which costs the gateway no wake-ups.
    Polled,
    /// At once.
    Woken,
}

/// How many frames are sent in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rate {
    Nothing,
    PerSecond(u64),
    /// As fast as the core allows.
    Unbounded,
}

/// What is sent, as long as nothing else is said.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) rate: Rate,
    /// Datagrams whose round trip is measured, among the others.
    pub(crate) probes: Rate,
    /// Frames to send in all.
    pub(crate) last: u64,
    /// Handshakes that may be open at the same time; 0: any number.
    pub(crate) window: u64,
    /// Handshakes that are not waited for any more.
    pub(crate) forgiven: u64,
    pub(crate) gateway_mac: MacAddr6,
    /// The first datagram like this is noted when it arrives.
    pub(crate) wanted_source: Option<Ipv4Addr>,
    pub(crate) wanted_destination: Option<Ipv4Addr>,
    /// Where all flows go, instead of being spread.
    pub(crate) destination: Option<Ipv4Addr>,
    /// Whose gateway probes go by, if it is another.
    pub(crate) probe_mac: Option<MacAddr6>,
    pub(crate) flood: Flood,
}

/// What frames are in place of those of the flows' kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flood {
    None,
    /// SYNs that nobody answers.
    Syns,
    /// Fragments of datagrams that never become whole, every other one the first.
    Fragments,
    /// Frames that are not IPv4.
    NotIpv4,
}

/// How far the sender is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) sent: u64,
    pub(crate) probes: u64,
    /// Turns in which the sender had nothing to do but wait for handshakes to end.
    pub(crate) waits: u64,
}

/// What the ends counted so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Datagrams that arrived with the egress address of the topology.
    pub(crate) translated: u64,
    /// Frames that arrived with a pod's address.
    pub(crate) untranslated: u64,
    /// Datagrams that arrived with any other source.
    pub(crate) other: u64,
    /// SYNs that reached the server.
    pub(crate) asked: u64,
    /// Handshakes whose last segment reached the server.
    pub(crate) completed: u64,
    /// RSTs and ICMP errors that came back.
    pub(crate) refused: u64,
    /// Segments with a wrong checksum or an unexpected number.
    pub(crate) damaged: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            rate: Rate::Nothing,
            probes: Rate::Nothing,
            last: u64::MAX,
            window: 0,
            forgiven: 0,
            gateway_mac: TENANT_MAC,
            wanted_source: None,
            wanted_destination: None,
            destination: None,
            probe_mac: None,
            flood: Flood::None,
        }
    }
}

impl Plan {
    fn words(&self) -> [u64; 11] {
        let address = |address: Option<Ipv4Addr>| address.map_or(0, |address| u64::from(address.to_bits()));
        [
            self.rate.interval(),
            self.probes.interval(),
            self.last,
            self.window,
            self.forgiven,
            mac_number(self.gateway_mac),
            address(self.wanted_source),
            address(self.wanted_destination),
            address(self.destination),
            self.probe_mac.map_or(0, mac_number),
            self.flood as u64,
        ]
    }
}

impl Rate {
    fn interval(self) -> u64 {
        match self {
            Self::Nothing | Self::PerSecond(0) => NEVER,
            Self::PerSecond(frames) => (INTERVAL_UNITS / frames).max(1),
            Self::Unbounded => 0,
        }
    }
}

impl Traffic {
    /// Attaches to both ends of a topology in which the gateway works; sends nothing yet.
    pub(crate) fn start(topology: &Topology, flows: Flows, kind: Kind, receiving: Receiving) -> Result<Self> {
        let near = topology.generator_device();
        let out = topology.generator.enter(|| Ok(if_nametoindex(near.as_str())?))?;
        let mut object = load(out, flows, kind).context("the XDP programs of the traffic do not load")?;
        attach(&mut object, "near", &topology.generator, &near)?;
        attach(&mut object, "far", &topology.sink, &topology.sink_device())?;
        napi::receive_on(&topology.generator, &near, topology.cores.generator, Priority::First)?;
        match receiving {
            Receiving::Polled => topology.poll_sink()?,
            Receiving::Woken => napi::receive_on(
                &topology.sink,
                &topology.sink_device(),
                topology.cores.sink,
                Priority::First,
            )?,
        }
        let mut traffic = Self {
            plan: Plan::default(),
            plan_map: map(&mut object, "plan")?,
            progress: map(&mut object, "progress")?,
            counts: map(&mut object, "counts")?,
            round_trips: map(&mut object, "round_trips")?,
            seen: map(&mut object, "seen")?,
            sender: Arc::default(),
            thread: None,
        };
        traffic.follow(Plan::default())?;
        traffic.thread = Some(thread::spawn({
            let (sender, core) = (traffic.sender.clone(), topology.cores.generator);
            let namespace = topology.generator.path();
            move || send(&mut object, &namespace, core, &sender)
        }));
        Ok(traffic)
    }

    /// Returns what is being sent.
    pub(crate) fn plan(&self) -> Plan {
        self.plan
    }

    /// Sends by another plan from now on.
    pub(crate) fn follow(&mut self, plan: Plan) -> Result<()> {
        self.plan = plan;
        self.plan_map.set(0, plan.words(), 0)?;
        let sends = |rate| rate != Rate::Nothing;
        self.sender.is_wanted.store(sends(plan.rate) || sends(plan.probes), Ordering::Relaxed);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
        Ok(())
    }

    /// Sends nothing any more and leaves the core to others.
    pub(crate) fn rest(&mut self) -> Result<()> {
        self.follow(Plan { rate: Rate::Nothing, probes: Rate::Nothing, ..self.plan })?;
        let rested = || {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            Ok((ended || self.sender.is_at_rest.load(Ordering::Relaxed)).then_some(()))
        };
        wait::until("the sender rests", RESTS_WITHIN, rested)
    }

    /// Counts probes from zero again; only while the sender is at rest.
    pub(crate) fn forget_probes(&mut self) -> Result<()> {
        let probes = self.progress()?.probes.min(u64::from(SAMPLES));
        for number in 0..u32::try_from(probes)? {
            self.round_trips.set(number, 0, 0)?;
        }
        let [sent, flow, due, _, probe_due, waits] = self.progress.get(&0, 0)?;
        Ok(self.progress.set(0, [sent, flow, due, 0, probe_due, waits], 0)?)
    }

    /// Returns how far the sender is.
    ///
    /// # Errors
    /// When it has ended; why it did is told when this is dropped.
    pub(crate) fn progress(&self) -> Result<Progress> {
        self.check_sender()?;
        let [sent, _, _, probes, _, waits] = self.progress.get(&0, 0)?;
        Ok(Progress { sent, probes, waits })
    }

    pub(crate) fn counts(&self) -> Result<Counts> {
        let count = |counter: u32| self.counts.get(&counter, 0);
        Ok(Counts {
            translated: count(0)?,
            untranslated: count(1)?,
            other: count(2)?,
            asked: count(3)?,
            completed: count(4)?,
            refused: count(5)?,
            damaged: count(6)?,
        })
    }

    /// Returns the round trips of these probes, numbers below [`SAMPLES`], in nanoseconds; nothing for those that
    /// did not come back.
    pub(crate) fn round_trips(&self, probes: Range<u64>) -> Result<Vec<Option<u64>>> {
        let times = probes.map(|number| {
            let time = self.round_trips.get(&u32::try_from(number)?, 0)?;
            Ok((time > 0).then_some(time))
        });
        times.collect()
    }

    /// Begins to look for a datagram with this source, or to this destination.
    pub(crate) fn want(&mut self, source: Option<Ipv4Addr>, destination: Option<Ipv4Addr>) -> Result<()> {
        self.follow(Plan { wanted_source: None, wanted_destination: None, ..self.plan })?;
        self.seen.set(0, 0, 0)?;
        self.follow(Plan { wanted_source: source, wanted_destination: destination, ..self.plan })
    }

    /// Returns when the first wanted datagram arrived, by the clock of [`now`].
    pub(crate) fn first_seen(&self) -> Result<Option<Duration>> {
        self.check_sender()?;
        let time = self.seen.get(&0, 0)?;
        Ok((time > 0).then_some(Duration::from_nanos(time)))
    }

    fn check_sender(&self) -> Result<()> {
        wait::check_interrupted()?;
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            bail!("the sender has ended by itself");
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.sender.stop.store(true, Ordering::Relaxed);
        self.follow(Plan { rate: Rate::Nothing, probes: Rate::Nothing, ..self.plan })?;
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(anyhow!("the sender's thread panicked")))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("warning: {error:#}");
        }
    }
}

/// Returns the time by the clock that XDP programs read.
pub(crate) fn now() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

fn load(out: u32, flows: Flows, kind: Kind) -> Result<Ebpf> {
    let bits = |address: &str| -> Result<u32> { Ok(address.parse::<Ipv4Addr>()?.to_bits()) };
    let (pod, mask) = (FIRST_POD.to_bits(), 0xffff_0000_u32);
    let object = EbpfLoader::new()
        .override_global("out_ifindex", &out, true)
        .override_global("flow_count", &flows.count(), true)
        .override_global("flow_stride", &flows.stride(), true)
        .override_global("first_pod", &pod, true)
        .override_global("first_destination", &FIRST_DESTINATION.to_bits(), true)
        .override_global("first_source_port", &FIRST_SOURCE_PORT, true)
        .override_global("destination_port", &DESTINATION_PORT, true)
        .override_global("node_mac", &mac_number(NODE_MAC), true)
        .override_global("egress_address", &bits(EGRESS)?, true)
        .override_global("pod_network", &(pod & mask), true)
        .override_global("pod_mask", &mask, true)
        .override_global("is_tcp", &u8::from(kind == Kind::Handshakes), true)
        .override_global("probe_source", &bits(POD)?, true)
        .override_global("probe_destination", &bits(SERVER)?, true)
        .override_global("probe_port", &PROBE_PORT, true)
        .load(PROGRAM)?;
    Ok(object)
}

fn map<V: Pod>(object: &mut Ebpf, name: &str) -> Result<Array<MapData, V>> {
    let map = object.take_map(name).with_context(|| format!("the traffic's object has no map `{name}`"))?;
    Ok(Array::try_from(map)?)
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = object.program_mut(name);
    Ok(program.with_context(|| format!("the traffic's object has no program `{name}`"))?.try_into()?)
}

fn attach(object: &mut Ebpf, name: &str, namespace: &Namespace, device: &str) -> Result<()> {
    namespace.enter(|| {
        let program = program(object, name)?;
        program.load()?;
        program.attach(device, XdpMode::Driver)?;
        Ok(())
    })
}

/// Sends until told to stop. A redirect finds its link in the namespace of the thread that runs the test.
fn send(object: &mut Ebpf, path: &str, core: usize, sender: &Sender) -> Result<()> {
    namespace::join(path)?;
    napi::pin(Pid::from_raw(0), core)?;
    let program = program(object, "send")?;
    program.load()?;
    while !sender.stop.load(Ordering::Relaxed) {
        let rests = !sender.is_wanted.load(Ordering::Relaxed);
        sender.is_at_rest.store(rests, Ordering::Relaxed);
        if rests {
            thread::park_timeout(REST);
            continue;
        }
        let run = program.test_run(TestRunOptions {
            data_in: Some(&[0; FRAME_BYTES]),
            repeat: TURNS_PER_RUN,
            attrs: TestRunAttrs::new().xdp_live_frames(FRAMES_PER_BATCH),
            ..Default::default()
        });
        match run.context("sending live frames failed (Linux 5.18 or newer is needed)") {
            // The kernel cuts a run short now and then, also without a signal that anybody sent.
            Err(error) if !was_cut_short(&error) => return Err(error),
            Ok(_) | Err(_) => {}
        }
        if wait::check_interrupted().is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn was_cut_short(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.kind() == io::ErrorKind::Interrupted)
}

fn mac_number(mac: MacAddr6) -> u64 {
    mac.into_array().iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests;

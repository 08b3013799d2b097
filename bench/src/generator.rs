use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use aya::maps::{MapData, PerCpuArray};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use control::demo::wait;
use nix::net::if_::if_nametoindex;
use nix::unistd::Pid;

use crate::flows::{DESTINATION_PORT, FIRST_DESTINATION, FIRST_POD, FIRST_SOURCE_PORT, Flows};
use crate::napi;
use crate::topology::{NODE_MAC, TENANT_MAC, Topology};

/// Bytes of a frame in memory: 64 on a wire, with the check sequence that the link adds.
pub(crate) const FRAME_BYTES: usize = 60;

/// Frames sent by one system call: its set-up and tear-down are slow.
const FRAMES_PER_RUN: u32 = 262_144;
/// Frames sent between two looks of the kernel at who else wants the core.
const FRAMES_PER_BATCH: u32 = 64;

static PROGRAM: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/generate.bpf.o"));

/// A thread that sends flows without end; dropped, it stops.
pub(crate) struct Generator {
    progress: PerCpuArray<MapData, [u64; 2]>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Generator {
    /// Sends from the topology's generator end as fast as its core allows.
    pub(crate) fn start(topology: &Topology, flows: Flows) -> Result<Self> {
        let device = topology.generator_device();
        let out = topology.generator.enter(|| Ok(if_nametoindex(device.as_str())?))?;
        let mut object = load(out, flows).context("the generator's XDP program does not load")?;
        let progress = object.take_map("progress").context("the generator's object has no map `progress`")?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (stop, core, namespace) = (stop.clone(), topology.cores.generator, topology.generator.path());
            move || send(&mut object, &namespace, core, &stop)
        });
        Ok(Self { progress: PerCpuArray::try_from(progress)?, stop, thread: Some(thread) })
    }

    /// Returns how many frames were offered to the gateway so far.
    pub(crate) fn sent(&self) -> Result<u64> {
        Ok(self.progress.get(&0, 0)?.iter().map(|[sent, _]| sent).sum())
    }

    /// Ends the sending and returns what went wrong with it, if anything did.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(anyhow!("the generator's thread panicked")))
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("warning: {error:#}");
        }
    }
}

fn load(out: u32, flows: Flows) -> Result<Ebpf> {
    let (stride, count) = (flows.stride(), flows.count());
    let (pod, destination) = (u32::from(FIRST_POD), u32::from(FIRST_DESTINATION));
    let mut object = EbpfLoader::new()
        .override_global("out_ifindex", &out, true)
        .override_global("flow_count", &count, true)
        .override_global("flow_stride", &stride, true)
        .override_global("first_pod", &pod, true)
        .override_global("first_destination", &destination, true)
        .override_global("first_source_port", &FIRST_SOURCE_PORT, true)
        .override_global("destination_port", &DESTINATION_PORT, true)
        .override_global("source_mac", &NODE_MAC.into_array(), true)
        .override_global("gateway_mac", &TENANT_MAC.into_array(), true)
        .load(PROGRAM)?;
    program(&mut object)?.load()?;
    Ok(object)
}

fn program(object: &mut Ebpf) -> Result<&mut Xdp> {
    Ok(object
        .program_mut("generate")
        .context("the generator's object has no program `generate`")?
        .try_into()?)
}

/// Sends until told to stop. A redirect finds its link in the namespace of the thread that runs the test.
fn send(object: &mut Ebpf, namespace: &str, core: usize, stop: &AtomicBool) -> Result<()> {
    crate::namespace::join(namespace)?;
    napi::pin(Pid::from_raw(0), core)?;
    let program = program(object)?;
    while !stop.load(Ordering::Relaxed) {
        let run = program.test_run(TestRunOptions {
            data_in: Some(&[0; FRAME_BYTES]),
            repeat: FRAMES_PER_RUN,
            attrs: TestRunAttrs::new().xdp_live_frames(FRAMES_PER_BATCH),
            ..Default::default()
        });
        // A signal cuts the run short, which is no failure.
        if wait::check_interrupted().is_err() {
            return Ok(());
        }
        run.context("sending live frames failed (Linux 5.18 or newer is needed)")?;
    }
    Ok(())
}

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use nix::net::if_::if_nametoindex;
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, gettid};
use signal_hook::consts::SIGUSR1;

use crate::command::run;
use crate::flows::{DESTINATION_PORT, FIRST_DESTINATION, FIRST_POD, FIRST_SOURCE_PORT, Flows};
use crate::frames::Frames;
use crate::napi;
use crate::pacer::{Evenness, Pacer};
use crate::topology::{NODE_MAC, TENANT_MAC, Topology};

/// Frames of one system call, which is to last until a signal ends it: its set-up takes 20 ms.
const FRAMES_PER_RUN: u32 = u32::MAX;
/// Frames between two looks of the kernel at who else wants the core.
const FRAMES_PER_BATCH: u32 = 256;
/// The same where a rate is kept: frames leave together at a batch's end.
const FRAMES_PER_PACED_BATCH: u32 = 16;
/// Rounds in which the flows come in turn, so that each has its session soon.
const ROUNDS_IN_TURN: u64 = 2;

/// How long the generator may take to hear of an order before it is told again.
const HEARS_WITHIN: Duration = Duration::from_millis(5);

static PROGRAM: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/generate.bpf.o"));

/// A thread that sends flows; dropped, it stops.
pub(crate) struct Generator {
    progress: PerCpuArray<MapData, [u64; 3]>,
    /// Closed to end the thread.
    orders: Option<Sender<Order>>,
    answers: Receiver<Evenness>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What the generator's thread does until the next order; the end of the line ends it.
#[derive(Debug, Clone, Copy)]
enum Order {
    /// Send as fast as the core allows.
    Flood,
    /// Send so many frames a second.
    Pace(f64),
    /// Send nothing.
    Rest,
}

impl Generator {
    /// Makes a generator at the topology's generator end that sends nothing yet.
    pub(crate) fn prepare(topology: &Topology, flows: Flows, frames: Frames) -> Result<Self> {
        let device = topology.generator_device();
        let out = topology.generator.enter(|| Ok(if_nametoindex(device.as_str())?))?;
        let mut object = load(out, flows, frames).context("the generator's XDP program does not load")?;
        let progress = object.take_map("progress").context("the generator's object has no map `progress`")?;
        let pacing = object.take_map("pacing").context("the generator's object has no map `pacing`")?;
        let pacer = Pacer::new(Array::try_from(pacing)?);
        // Without a handler the signal would end the process; what it does is cut a system call short.
        signal_hook::flag::register(SIGUSR1, Arc::default()).context("SIGUSR1 cannot be handled")?;
        let (orders, taken) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let (core, namespace) = (topology.cores.generator, topology.generator.path());
        let thread = thread::spawn(move || {
            crate::namespace::join(&namespace)?;
            napi::pin(Pid::from_raw(0), core)?;
            obey(&mut object, pacer, frames, &taken, &answer)
        });
        Ok(Self {
            progress: PerCpuArray::try_from(progress)?,
            orders: Some(orders),
            answers,
            thread: Some(thread),
        })
    }

    /// Returns how many frames were offered to the gateway so far.
    pub(crate) fn sent(&self) -> Result<u64> {
        Ok(self.progress.get(&0, 0)?.iter().map(|[sent, ..]| sent).sum())
    }

    /// Sends as fast as the core allows from now on.
    pub(crate) fn flood(&self) -> Result<()> {
        self.order(Order::Flood).map(drop)
    }

    /// Sends so many frames a second from now on. Whoever else wants the generator's core goes before it.
    pub(crate) fn pace(&self, rate: f64) -> Result<()> {
        self.order(Order::Pace(rate)).map(drop)
    }

    /// Sends nothing from now on, and returns how evenly frames were sent when there was a pace. Nothing is left in
    /// the generator once this returns.
    pub(crate) fn rest(&self) -> Result<Evenness> {
        self.order(Order::Rest)
    }

    /// Ends the sending and returns what went wrong with it, if anything did.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn order(&self, order: Order) -> Result<Evenness> {
        let gone = "the generator has stopped";
        self.orders.as_ref().context(gone)?.send(order).context(gone)?;
        loop {
            // It may have looked for orders just before this one, and not be in the system call yet.
            self.interrupt();
            match self.answers.recv_timeout(HEARS_WITHIN) {
                Ok(evenness) => return Ok(evenness),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!(gone),
            }
        }
    }

    /// Cuts short what the thread does.
    fn interrupt(&self) {
        if let Some(thread) = &self.thread {
            // It may have ended.
            pthread_kill(thread.as_pthread_t(), Signal::SIGUSR1).ok();
        }
    }

    fn end(&mut self) -> Result<()> {
        self.orders = None;
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            self.interrupt();
            thread::sleep(HEARS_WITHIN);
        }
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

fn load(out: u32, flows: Flows, frames: Frames) -> Result<Ebpf> {
    let (stride, count, seed) = (flows.stride(), flows.count(), flows.seed());
    let (pod, destination) = (u32::from(FIRST_POD), u32::from(FIRST_DESTINATION));
    let in_turn = ROUNDS_IN_TURN * u64::from(count);
    let one_destination = u8::from(flows.has_one_destination());
    let mut object = EbpfLoader::new()
        .override_global("out_ifindex", &out, true)
        .override_global("flow_count", &count, true)
        .override_global("flow_stride", &stride, true)
        .override_global("frames_in_turn", &in_turn, true)
        .override_global("seed", &seed, true)
        .override_global("one_destination", &one_destination, true)
        .override_global("frame_bytes", &frames.sizes(), true)
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

/// Does what it is told until nobody is left to tell. A redirect finds its link in the namespace of the thread that
/// runs the test.
fn obey(
    object: &mut Ebpf,
    mut pacer: Pacer,
    frames: Frames,
    orders: &Receiver<Order>,
    answers: &Sender<Evenness>,
) -> Result<()> {
    let program = program(object)?;
    let blank = vec![0; frames.longest()];
    let mut order = Order::Rest;
    loop {
        let next = match order {
            Order::Rest => orders.recv().map_err(|_| TryRecvError::Disconnected),
            Order::Flood | Order::Pace(_) => orders.try_recv(),
        };
        match next {
            Ok(next) => {
                let before = pacer.evenness()?;
                prepare(&mut pacer, next)?;
                order = next;
                // Who asked may have given up.
                answers.send(before).ok();
            }
            Err(TryRecvError::Empty) => send(program, &blank, order)?,
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
    }
}

/// Sets the pace, and the place behind everything else on the core that goes with one: receivers that share it would
/// otherwise wait while the generator waits.
fn prepare(pacer: &mut Pacer, order: Order) -> Result<()> {
    let (rate, policy) = match order {
        Order::Flood | Order::Rest => (None, "--other"),
        Order::Pace(rate) => (Some(rate), "--idle"),
    };
    run(&format!("chrt {policy} --pid 0 {}", gettid()))?;
    pacer.set(rate)
}

/// Sends until a signal comes.
fn send(program: &Xdp, frame: &[u8], order: Order) -> Result<()> {
    let batch = match order {
        Order::Flood | Order::Rest => FRAMES_PER_BATCH,
        Order::Pace(_) => FRAMES_PER_PACED_BATCH,
    };
    let run = program.test_run(TestRunOptions {
        data_in: Some(frame),
        repeat: FRAMES_PER_RUN,
        attrs: TestRunAttrs::new().xdp_live_frames(batch),
        ..Default::default()
    });
    match run.map_err(anyhow::Error::from) {
        Ok(_) => Ok(()),
        Err(error) if is_interruption(&error) => Ok(()),
        Err(error) => Err(error.context("sending live frames failed (Linux 5.18 or newer is needed)")),
    }
}

fn is_interruption(error: &anyhow::Error) -> bool {
    let causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.into_iter().any(|cause| cause.kind() == io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Cores;
    use control::demo::wait;

    #[test]
    fn a_generator_sends_what_it_is_told_and_nothing_while_it_rests() {
        if !crate::namespace::allowed() {
            return;
        }
        let topology = Topology::build(Cores::plan(2).unwrap(), Flows::new(64)).unwrap();
        for frames in [Frames::Small, Frames::Imix] {
            let generator = Generator::prepare(&topology, Flows::new(64), frames).unwrap();
            assert_eq!(generator.sent().unwrap(), 0);
            for orders in [Generator::flood, |generator: &Generator| generator.pace(10_000.0)] {
                let before = generator.sent().unwrap();
                orders(&generator).unwrap();
                wait::until("frames are sent", Duration::from_secs(10), || {
                    Ok((generator.sent()? >= before + 100).then_some(()))
                })
                .unwrap();
                let evenness = generator.rest().unwrap();
                let sent = generator.sent().unwrap();
                assert!(evenness.frames == 0 || evenness.frames == sent - before, "{evenness:?}");
                thread::sleep(Duration::from_millis(20));
                assert_eq!(generator.sent().unwrap(), sent, "frames are sent while it rests");
            }
            generator.stop().unwrap();
        }
    }
}

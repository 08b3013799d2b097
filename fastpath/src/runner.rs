//! The thread that a worker runs on: it reads the clock once a turn, sleeps while nothing comes, and survives
//! panics.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use conntrack::Tick;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::io::FrameIo;
use crate::pause::Pause;
use crate::worker::Worker;

/// Most turns without a frame before a sleep: a few microseconds, less than a sleep and a wake-up cost.
const IDLE_TURNS: u32 = 32;

/// Longest sleep: sessions expire, and waiting frames are given up, to a tenth of a second.
const SLEEP: Duration = Duration::from_millis(100);

/// Longest sleep while the kernel has frames to transmit and may need to be woken again.
const SLEEP_WHILE_TRANSMITTING: Duration = Duration::from_millis(1);

/// Turns in which a worker answers questions, without a frame, before it pauses: some tens of microseconds, in which no rx
/// ring overflows.
const ANSWERING_TURNS: u32 = 8;

/// How long it pauses then: whoever receives for it on its core has it meanwhile, and would have to wait for the survey's
/// end otherwise, as the worker goes first.
const NAP: Duration = Duration::from_micros(50);

/// A worker that panics again and again is logged once in this time; the count of its panics is exact.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

/// Longest time in which a worker that is told to stop sends on what it has: frames may come without end.
const FINISH: Duration = Duration::from_millis(100);

/// Time without a frame after which it has none left, and other workers hand it none over.
const QUIET: Duration = Duration::from_millis(5);

/// How many turns to go on without a frame before a sleep: more where frames came meanwhile, fewer where none did, as
/// none does while whoever receives waits for this core.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    most: u32,
    left: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { most: IDLE_TURNS, left: IDLE_TURNS }
    }
}

impl Patience {
    /// Notes a turn that found frames.
    pub fn reward(&mut self) {
        if self.left < self.most {
            self.most = (self.most * 2).min(IDLE_TURNS);
        }
        self.left = self.most;
    }

    /// Notes a turn without a frame, and tells whether it is time to sleep.
    pub fn is_over(&mut self) -> bool {
        if self.left > 0 {
            self.left -= 1;
            return false;
        }
        self.most = (self.most / 2).max(1);
        self.left = self.most;
        true
    }
}

/// Sleeps until a frame or a message comes.
#[derive(Debug)]
pub struct Sleeper {
    epoll: Epoll,
}

impl Sleeper {
    /// Makes a sleeper that wakes for the descriptors of a worker and of its mailbox.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new<I: FrameIo>(worker: &Worker<I>) -> io::Result<Self> {
        let sleeper = Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? };
        sleeper.watch(worker)?;
        Ok(sleeper)
    }

    /// Wakes for the descriptors that the worker has now too. Those that are closed it forgets by itself.
    fn watch<I: FrameIo>(&self, worker: &Worker<I>) -> io::Result<()> {
        // Nobody reads the mailbox's descriptor.
        let ports = worker.descriptors().map(|port| (port, EpollFlags::EPOLLIN));
        let mailbox = (worker.mailbox().as_fd(), EpollFlags::EPOLLIN | EpollFlags::EPOLLET);
        for (descriptor, events) in ports.chain([mailbox]) {
            let number = u64::try_from(descriptor.as_raw_fd()).expect("a descriptor is not negative");
            match self.epoll.add(descriptor, EpollEvent::new(events, number)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn sleep<I: FrameIo>(&self, worker: &Worker<I>) {
        let limit = if worker.is_transmitting() { SLEEP_WHILE_TRANSMITTING } else { SLEEP };
        if worker.mailbox().fall_asleep() {
            let timeout = EpollTimeout::try_from(limit).expect("the limit is far below 2^31 ms");
            worker.counters().life.fell_asleep();
            // An interrupted or failed wait is a short one.
            let _ = self.epoll.wait(&mut [EpollEvent::empty(); 1], timeout);
            worker.counters().life.woke();
        }
        worker.mailbox().wake();
    }
}

/// Runs a worker until its mailbox says stop.
pub fn run<I: FrameIo>(worker: &mut Worker<I>, sleeper: &Sleeper, started: Instant) {
    worker.counters().life.begin();
    let pause = Pause::new()
        .inspect_err(|error| tracing::warn!(%error, "a worker does not pause for who receives for it"))
        .ok();
    let mut last_logged: Option<Instant> = None;
    loop {
        match catch_unwind(AssertUnwindSafe(|| {
            turn_until_stopped(worker, sleeper, pause.as_ref(), started);
        })) {
            Ok(()) => break,
            Err(panic) => {
                if last_logged.is_none_or(|last| last.elapsed() > LOGGED_EVERY) {
                    last_logged = Some(Instant::now());
                    let (worker, panic) = (worker.number(), describe(&*panic));
                    tracing::error!(worker, panic, "worker panicked; its batch is dropped and it goes on");
                }
                worker.recover();
            }
        }
    }
    // After a panic here nothing is left to save.
    let _ = catch_unwind(AssertUnwindSafe(|| finish(worker, started)));
}

fn turn_until_stopped<I: FrameIo>(
    worker: &mut Worker<I>,
    sleeper: &Sleeper,
    pause: Option<&Pause>,
    started: Instant,
) {
    let mut patience = Patience::default();
    let (mut busy_since, mut answering_turns) = (None, 0);
    while !worker.mailbox().is_stopping() {
        let now = started.elapsed();
        // A turn that found frames is followed by another at once, whose clock tells how long it took.
        if let Some(since) = busy_since {
            worker.counters().life.timing.add(now - since);
        }
        let found = worker.turn(Tick::since_start(now));
        busy_since = (found > 0).then_some(now);
        worker.counters().life.turned();
        if found > 0 || worker.is_busy() {
            patience.reward();
            if worker.is_contended()
                && let Some(pause) = pause
            {
                let turn = started.elapsed() - now;
                worker.counters().life.timing.add(turn);
                busy_since = None;
                pause.take(turn);
            }
        } else if worker.is_asked() {
            answering_turns += 1;
            if answering_turns == ANSWERING_TURNS {
                answering_turns = 0;
                thread::sleep(NAP);
            }
        } else if patience.is_over() {
            if worker.take_port_exchange()
                && let Err(error) = sleeper.watch(worker)
            {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "a worker does not wake for its new ports, and polls them");
            }
            sleeper.sleep(worker);
        }
    }
}

/// Sends on what was received or handed over before the stop.
fn finish<I: FrameIo>(worker: &mut Worker<I>, started: Instant) {
    let begun = Instant::now();
    let mut last_active = begun;
    while begun.elapsed() < FINISH && last_active.elapsed() < QUIET {
        let found = worker.turn(Tick::since_start(started.elapsed()));
        worker.counters().life.turned();
        if found > 0 || worker.is_busy() || worker.is_transmitting() {
            last_active = Instant::now();
        }
    }
}

fn describe(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Side;
    use crate::survey::{Act, Question, SessionFilter};
    use crate::testing::rig::Rig;
    use crate::testing::{gateway, udp_frame};

    #[test]
    fn a_worker_that_stops_sends_on_what_it_has_received() {
        const FRAMES: u16 = 250;
        let mut rig = Rig::new(gateway().spec());
        for port in 0..FRAMES {
            let source = format!("10.132.0.5:{}", 40_000 + port);
            rig.inject(0, Side::Inside, &udp_frame(&source, "192.168.55.13:53", b"query"));
        }
        rig.mailboxes[0].stop();
        let worker = &mut rig.workers[0];
        let sleeper = Sleeper::new(worker).unwrap();
        let counters = std::sync::Arc::clone(worker.counters());
        run(worker, &sleeper, Instant::now());
        assert_eq!(rig.take(Side::Outside).len(), usize::from(FRAMES));
        let pulse = crate::pulse::Pulse { worker: 0, core: None, counters };
        assert!(pulse.turns() > 1 && !pulse.is_asleep());
        assert_eq!(i32::try_from(pulse.thread()), Ok(nix::unistd::gettid().as_raw()));
    }

    #[test]
    fn turns_count_that_are_followed_by_a_pause() {
        const FRAMES: u16 = 250;
        let mut rig = Rig::new(gateway().spec());
        rig.contend(0, Side::Inside);
        for port in 0..FRAMES {
            let source = format!("10.132.0.5:{}", 40_000 + port);
            rig.inject(0, Side::Inside, &udp_frame(&source, "192.168.55.13:53", b"query"));
        }
        let (mailbox, counters) =
            (std::sync::Arc::clone(&rig.mailboxes[0]), std::sync::Arc::clone(rig.workers[0].counters()));
        let stops = thread::spawn(move || {
            let deadline = Instant::now() + Duration::from_secs(10);
            let timed = || counters.life.timing.read().buckets().map(|(_, turns)| turns).sum::<u64>();
            while timed() < 7 && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            mailbox.stop();
            timed()
        });
        let sleeper = Sleeper::new(&rig.workers[0]).unwrap();
        run(&mut rig.workers[0], &sleeper, Instant::now());
        assert_eq!(stops.join().unwrap(), 7, "turns of 64 and 32 frames, and one of the rest");
        assert_eq!(rig.take(Side::Outside).len(), usize::from(FRAMES));
    }

    #[test]
    fn a_worker_that_answers_leaves_its_core_to_others_again_and_again() {
        const ENTRIES: u32 = 16 * 1024;
        let (reply, answer) = crossbeam::channel::bounded(1);
        let (tell, mailbox) = crossbeam::channel::bounded(1);
        let pauses = thread::spawn(move || {
            let mut rig = Rig::with_room_for(ENTRIES, gateway().spec());
            let question = Question { filter: SessionFilter::default(), act: Act::End(0), from: 0, reply };
            assert!(rig.mailboxes[0].ask(question));
            tell.send(std::sync::Arc::clone(&rig.mailboxes[0])).unwrap();
            let sleeper = Sleeper::new(&rig.workers[0]).unwrap();
            run(&mut rig.workers[0], &sleeper, Instant::now());
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            // On a busy machine a thread that is about to sleep may be made to wait before it does.
            let switches = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
            switches.map(|(_, count)| count.trim().parse::<u32>().unwrap()).sum::<u32>()
        });
        let mailbox = mailbox.recv().unwrap();
        answer.recv_timeout(Duration::from_secs(10)).unwrap();
        mailbox.stop();
        assert!(pauses.join().unwrap() >= ENTRIES / 128 / ANSWERING_TURNS);
    }

    fn turns_before_sleep(patience: &mut Patience) -> u32 {
        let mut turns = 0;
        while !patience.is_over() {
            turns += 1;
        }
        turns
    }

    #[test]
    fn patience_shrinks_where_nothing_comes_and_grows_where_something_does() {
        let mut patience = Patience::default();
        let shrinking: Vec<u32> = (0..7).map(|_| turns_before_sleep(&mut patience)).collect();
        assert_eq!(shrinking, [32, 16, 8, 4, 2, 1, 1]);
        patience.reward();
        assert_eq!(turns_before_sleep(&mut patience), 1, "frames came at once: waiting was of no use");
        for most in [2, 4, 8, 16, 32, 32] {
            assert!(!patience.is_over());
            patience.reward();
            assert_eq!(patience.left, most, "frames came in the meantime");
        }
    }
}

//! The XDP program of one side: loads, attaches and pins it, and keeps its maps in step with the snapshot.
//!
//! Link, program and maps are pinned in `PIN_DIR/SIDE-IFINDEX-MODE/` and outlive the process. A later process loads
//! a program of its own with maps already filled, and replaces the old one in the same link: there is no moment
//! without a program.
//!
//! Behind it stands a second line, a classifier with the same maps: whatever becomes of the XDP program, the kernel does
//! not get what the program would keep from it.

mod error;
mod guard;
mod hook;
mod loss;
mod maps;
mod pins;
/// What the programs decide.
mod rows;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use aya::maps::{Map, PerCpuArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{Program, ProgramError, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use conntrack::TenantId;

use crate::dataplane::{AttachMode, AttachPreference, SteerReport};
use crate::io::turnstile::{SHARES, SharedArray, Turnstile};
use crate::io::xsk::RING_FRAMES;
use crate::snapshot::{Side, Snapshot};
pub use error::SteerError;
use guard::Guard;
use hook::{Hook, interface_of, remove_if_there};
pub use loss::Loss;
use maps::Entries;
use pins::{mode_of, pin_path, pinned_directories, remove_pins};
pub use rows::ROWS;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));

const _: () = assert!(RING_FRAMES == 2048, "as `RING_FRAMES` of `bpf/steer.bpf.c`");

/// Verdict of a classifier that drops (`linux/pkt_cls.h`).
const TC_ACT_SHOT: u32 = 2;

/// Pins of the two programs' links.
const LINK_PIN: &str = "link";
const GUARD_PIN: &str = "guard";

/// An attached XDP program, and the second line behind it.
#[derive(Debug)]
pub struct Steering {
    side: Side,
    ebpf: Ebpf,
    mode: Option<AttachMode>,
    /// Index of the interface.
    interface: u32,
    program: Option<Hook>,
    guard: Option<Guard>,
    /// Whether the second line may be attached by a link, which kernels older than 6.6 do not know.
    may_link: bool,
    entries: Entries,
    queues: u32,
    rings: Arc<SharedArray>,
    shares: SharedArray,
    /// What programs counted that this one took the place of, by row.
    earlier: [u64; ROWS.len()],
    /// Frames of each tenant that they refused.
    earlier_refused: Vec<u64>,
}

/// What loads programs.
pub type Loader = EbpfLoader<'static>;

impl Steering {
    /// Loads the program of one side with its maps filled, for an interface with `queues` queues, without
    /// attaching it.
    ///
    /// # Errors
    /// When the kernel refuses the program or a map.
    pub fn load(side: Side, queues: u32, first: &Snapshot) -> Result<Self, SteerError> {
        Self::load_with(&mut Loader::default(), side, queues, first)
    }

    /// Does the same with a loader that may load several: to make one takes tens of milliseconds, as it reads the kernel's
    /// types.
    ///
    /// # Errors
    /// As [`Steering::load`].
    pub fn load_with(
        loader: &mut Loader,
        side: Side,
        queues: u32,
        first: &Snapshot,
    ) -> Result<Self, SteerError> {
        let mut ebpf = loader
            .map_max_entries("xsks_map", queues)
            .map_max_entries("rings", queues)
            .map_max_entries("shares", queues * SHARES)
            .load(OBJECT)
            .map_err(|error| SteerError::Load(Box::new(error)))?;
        program_of(&mut ebpf, side).load().map_err(|source| SteerError::Attach {
            interface: 0,
            mode: "no",
            source: Box::new(source),
        })?;
        guard_of(&mut ebpf, side)
            .load()
            .map_err(|source| SteerError::Guard { interface: 0, source: Box::new(source) })?;
        let rings = maps::share(&ebpf, "rings", |map| SharedArray::of_rings(map, queues))?;
        let shares = maps::share(&ebpf, "shares", |map| SharedArray::of_shares(map, queues))?;
        let mut steering = Self {
            side,
            ebpf,
            mode: None,
            interface: 0,
            program: None,
            guard: None,
            may_link: true,
            entries: Entries::default(),
            queues,
            rings: Arc::new(rings),
            shares,
            earlier: [0; ROWS.len()],
            earlier_refused: Vec::new(),
        };
        steering.open(first)?;
        steering.close(first)?;
        Ok(steering)
    }

    /// Attaches the program to an interface, with the second line behind it, and pins both; the program of an earlier process
    /// is replaced in its link.
    ///
    /// # Errors
    /// When the interface takes no XDP program of the preferred mode, or `pin_dir` is not on a bpffs.
    pub fn attach(
        &mut self,
        interface: u32,
        preference: AttachPreference,
        pin_dir: &Path,
    ) -> Result<AttachMode, SteerError> {
        let mode = self.attach_program(interface, preference, pin_dir)?;
        self.stand_guard(pin_dir)?;
        Ok(mode)
    }

    /// Does the same without the second line: that of an earlier process stands until [`Steering::stand_guard`].
    pub(crate) fn attach_program(
        &mut self,
        interface: u32,
        preference: AttachPreference,
        pin_dir: &Path,
    ) -> Result<AttachMode, SteerError> {
        let candidates: &[AttachMode] = match preference {
            AttachPreference::Auto => &[AttachMode::Native, AttachMode::Generic],
            AttachPreference::Native => &[AttachMode::Native],
            AttachPreference::Generic => &[AttachMode::Generic],
        };
        self.interface = interface;
        // An interface that has a program already refuses another.
        let (mode, hook) = match self.attach_anew(interface, candidates, pin_dir) {
            Ok(attached) => attached,
            Err(refused) => self.take_over(interface, candidates, pin_dir)?.ok_or(refused)?,
        };
        self.program = Some(hook);
        self.mode = Some(mode);
        let own = pin_path(pin_dir, self.side, interface, mode);
        self.pin(&own)?;
        for other in pinned_directories(pin_dir, self.side).into_iter().filter(|directory| *directory != own)
        {
            // An interface that is gone, or was configured before.
            remove_pins(self.side, &other)?;
        }
        Ok(mode)
    }

    /// Attaches the second line behind the attached program. The kernel takes its time for it: it waits until no processor
    /// uses what stood there before (RCU).
    pub(crate) fn stand_guard(&mut self, pin_dir: &Path) -> Result<(), SteerError> {
        if let Some(mode) = self.mode {
            self.guard = Some(self.attach_guard(&pin_path(pin_dir, self.side, self.interface, mode))?);
        }
        Ok(())
    }

    /// Attaches the second line as on a kernel older than 6.6.
    pub fn without_links(mut self) -> Self {
        self.may_link = false;
        self
    }

    /// Tells what somebody else took away since it was attached.
    pub fn loss(&self) -> Loss {
        if self.mode.is_none() {
            return Loss::default();
        }
        let (program, guard) = program_names(self.side);
        let runs = |hook: &Hook| self.number_of(program).is_some_and(|it| hook.runs(it, self.interface));
        let guards = |hook: &Guard| self.number_of(guard).is_some_and(|it| hook.runs(it, self.interface));
        Loss {
            program: !self.program.as_ref().is_some_and(runs),
            guard: !self.guard.as_ref().is_some_and(guards),
            pins: !self.program.as_ref().is_none_or(Hook::is_pinned)
                || !self.guard.as_ref().is_none_or(Guard::is_pinned),
        }
    }

    /// Pins again what is attached and lost its pins, so that whoever comes next finds it.
    ///
    /// # Errors
    /// When the pins' directory is not on a bpffs.
    pub fn pin_hooks(&mut self) -> Result<(), SteerError> {
        if let Some(unpinned) = self.program.take_if(|hook| !hook.is_pinned()) {
            self.program = Some(unpinned.pin_again()?);
        }
        if let Some(unpinned) = self.guard.take_if(|guard| !guard.is_pinned()) {
            self.guard = Some(unpinned.pin_again()?);
        }
        Ok(())
    }

    /// Returns the kernel's number of a program of the object.
    fn number_of(&self, name: &str) -> Option<u32> {
        let info = match self.ebpf.program(name)? {
            Program::Xdp(program) => program.info(),
            Program::SchedClassifier(program) => program.info(),
            _ => return None,
        };
        info.ok().map(|info| info.id())
    }

    /// Attaches and pins again what somebody else took away. The sockets stay.
    ///
    /// # Errors
    /// When another program is in the way, or the kernel refuses.
    pub fn make_good(&mut self, pin_dir: &Path) -> Result<(), SteerError> {
        let (loss, interface) = (self.loss(), self.interface);
        let Some(mode) = self.mode else { return Ok(()) };
        let own = pin_path(pin_dir, self.side, interface, mode);
        if loss.guard {
            // First: it also stands where somebody else's program is in the way.
            self.guard = Some(self.attach_guard(&own)?);
        }
        if loss.program {
            // Its link may be pinned no more, but it is held, and somebody may have put another program into it.
            self.program = None;
            remove_if_there(&own.join(LINK_PIN))
                .map_err(|source| SteerError::Pin { path: own.join(LINK_PIN), source })?;
            self.program = Some(self.attach_anew(interface, &[mode], pin_dir)?.1);
        }
        self.pin_hooks()?;
        self.pin(&own)
    }

    /// Puts into the maps what a new snapshot steers to workers, and takes out what it no longer lets pass.
    /// To be done before workers learn of the snapshot.
    ///
    /// # Errors
    /// When a map is full.
    pub fn open(&mut self, next: &Snapshot) -> Result<(), SteerError> {
        self.entries.open(&mut self.ebpf, next)
    }

    /// Takes out of the maps what a snapshot no longer steers to workers, and puts in what it lets pass. To be
    /// done after every worker has adopted the snapshot.
    ///
    /// # Errors
    /// When a map is full.
    pub fn close(&mut self, adopted: &Snapshot) -> Result<(), SteerError> {
        self.entries.close(&mut self.ebpf, adopted)
    }

    /// Returns how many frames met each row of the decision table.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn report(&self) -> Result<SteerReport, SteerError> {
        let counts = self.counts()?;
        let own = ROWS.iter().zip(counts).filter(|((side, _), _)| *side == self.side);
        let verdicts = own.map(|((_, name), count)| (*name, count)).collect();
        Ok(SteerReport { side: self.side, mode: self.mode.unwrap_or(AttachMode::Generic), verdicts })
    }

    /// Counts on from where an earlier program of the same side ended.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn count_on(&mut self, earlier: &Self) -> Result<(), SteerError> {
        self.earlier = earlier.counts()?;
        self.earlier_refused = (0..SHARES - 1).map(|number| earlier.refused_by(number)).collect();
        Ok(())
    }

    /// Returns what the worker of a queue tells this program about its rx ring.
    pub fn turnstile(&self, queue: u32) -> Turnstile {
        Turnstile::new(Arc::clone(&self.rings), queue)
    }

    /// Returns how many frames of a tenant were dropped because it had its share of a queue. Of more tenants than are told
    /// apart some have no count of their own.
    pub fn refused(&self, tenant: TenantId) -> u64 {
        let number = u32::from(tenant.0);
        if number < SHARES - 1 { self.refused_by(number) } else { 0 }
    }

    fn refused_by(&self, number: u32) -> u64 {
        let here: u64 = (0..self.queues).map(|queue| self.shares.refused(queue, number)).sum();
        here + self.earlier_refused.get(number as usize).copied().unwrap_or(0)
    }

    fn counts(&self) -> Result<[u64; ROWS.len()], SteerError> {
        let map_error = |source| SteerError::Map { map: "verdicts", source };
        let map = self.ebpf.map("verdicts").expect("the object has this map");
        let counters: PerCpuArray<_, u64> = PerCpuArray::try_from(map).map_err(map_error)?;
        let mut counts = self.earlier;
        for (row, count) in (0..).zip(&mut counts) {
            *count += counters.get(&row, 0).map_err(map_error)?.iter().sum::<u64>();
        }
        Ok(counts)
    }

    /// Runs the program in the kernel on a frame that comes from nowhere; returns its XDP action.
    ///
    /// # Errors
    /// When the kernel cannot run it.
    pub fn test_run(&mut self, frame: &[u8]) -> Result<u32, ProgramError> {
        let mut output = [0; 2048];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut output),
            repeat: 1,
            ..Default::default()
        };
        Ok(program_of(&mut self.ebpf, self.side).test_run(options)?.return_value)
    }

    /// Runs the second line in the kernel on a frame that comes from nowhere; tells whether it drops it.
    ///
    /// # Errors
    /// When the kernel cannot run it.
    pub fn test_run_guard(&mut self, frame: &[u8]) -> Result<bool, ProgramError> {
        let options = TestRunOptions { data_in: Some(frame), repeat: 1, ..Default::default() };
        let verdict = guard_of(&mut self.ebpf, self.side).test_run(options)?.return_value;
        Ok(verdict == TC_ACT_SHOT)
    }

    /// Replaces the program in the link that was pinned for this interface, if there is one. The interface may have had
    /// another index then: one that moves to another network namespace and back takes its program along.
    fn take_over(
        &mut self,
        interface: u32,
        modes: &[AttachMode],
        pin_dir: &Path,
    ) -> Result<Option<(AttachMode, Hook)>, SteerError> {
        let link_error = |source| SteerError::Link { interface, source };
        for directory in pinned_directories(pin_dir, self.side) {
            let path = directory.join(LINK_PIN);
            let (Some(mode), true) = (mode_of(&directory), path.exists()) else { continue };
            let link = FdLink::from(PinnedLink::from_pin(&path).map_err(link_error)?);
            if interface_of(&link) != Some(interface) {
                continue;
            }
            if !modes.contains(&mode) {
                return Err(SteerError::OtherMode { interface, mode: mode.name() });
            }
            let link = XdpLink::try_from(link).map_err(link_error)?;
            let program = program_of(&mut self.ebpf, self.side);
            let refused = |source| attach_error(interface, mode.name(), source);
            let id = program.attach_to_link(link).map_err(refused)?;
            let link = FdLink::try_from(program.take_link(id).map_err(refused)?).map_err(link_error)?;
            let own = pin_path(pin_dir, self.side, interface, mode);
            let hook = match own == directory {
                true => Hook::hold(link, path)?,
                false => Hook::pin(link, own.join(LINK_PIN))?,
            };
            return Ok(Some((mode, hook)));
        }
        Ok(None)
    }

    fn attach_anew(
        &mut self,
        interface: u32,
        modes: &[AttachMode],
        pin_dir: &Path,
    ) -> Result<(AttachMode, Hook), SteerError> {
        let mut refused = None;
        for mode in modes {
            let (flag, name) = match mode {
                AttachMode::Native => (XdpMode::Driver, mode.name()),
                AttachMode::Generic => (XdpMode::Skb, mode.name()),
            };
            let program = program_of(&mut self.ebpf, self.side);
            match program.attach_to_if_index(interface, flag) {
                Ok(id) => {
                    let link =
                        program.take_link(id).map_err(|source| attach_error(interface, name, source))?;
                    let link =
                        FdLink::try_from(link).map_err(|source| SteerError::Link { interface, source })?;
                    let own = pin_path(pin_dir, self.side, interface, *mode);
                    return Ok((*mode, Hook::pin(link, own.join(LINK_PIN))?));
                }
                Err(error) => refused = Some(attach_error(interface, name, error)),
            }
        }
        Err(refused.expect("at least one mode was tried"))
    }

    fn attach_guard(&mut self, directory: &Path) -> Result<Guard, SteerError> {
        let (pin, may_link) = (directory.join(GUARD_PIN), self.may_link);
        Guard::attach(guard_of(&mut self.ebpf, self.side), self.interface, pin, may_link)
    }

    /// Pins program and maps beside the link, in place of those of an earlier process.
    fn pin(&mut self, directory: &Path) -> Result<(), SteerError> {
        let replace = |name: &str| {
            let path = directory.join(name);
            match remove_if_there(&path) {
                Ok(()) => Ok(path),
                Err(source) => Err(SteerError::Pin { path, source }),
            }
        };
        let path = replace("program")?;
        program_of(&mut self.ebpf, self.side)
            .pin(&path)
            .map_err(|error| SteerError::Pin { path, source: io::Error::other(error) })?;
        for (name, map) in self.ebpf.maps() {
            let path = replace(name)?;
            let pinned = match map {
                Map::XskMap(data) | Map::HashMap(data) | Map::LpmTrie(data) | Map::PerCpuArray(data) => {
                    data.pin(&path)
                }
                _ => continue,
            };
            pinned.map_err(|error| SteerError::Pin { path, source: io::Error::other(error) })?;
        }
        Ok(())
    }
}

/// Removes all pins below `pin_dir`, which detaches the programs; tells whether there were any.
///
/// # Errors
/// When a pin cannot be removed.
pub fn remove_all_pins(pin_dir: &Path) -> Result<bool, SteerError> {
    let mut found = false;
    for side in Side::BOTH {
        for directory in pinned_directories(pin_dir, side) {
            remove_pins(side, &directory)?;
            found = true;
        }
    }
    if found {
        // It stays when somebody else keeps something in it.
        let _ = fs::remove_dir(pin_dir);
    }
    Ok(found)
}

fn program_of(ebpf: &mut Ebpf, side: Side) -> &mut Xdp {
    let program = ebpf.program_mut(program_names(side).0).expect("the object has a program for each side");
    program.try_into().expect("it is an XDP program")
}

fn guard_of(ebpf: &mut Ebpf, side: Side) -> &mut SchedClassifier {
    let program = ebpf.program_mut(program_names(side).1).expect("the object has a program for each side");
    program.try_into().expect("it is a classifier")
}

/// Returns the names of a side's XDP program and second line.
fn program_names(side: Side) -> (&'static str, &'static str) {
    match side {
        Side::Inside => ("steer_inside", "guard_inside"),
        Side::Outside => ("steer_outside", "guard_outside"),
    }
}

fn attach_error(interface: u32, mode: &'static str, source: ProgramError) -> SteerError {
    SteerError::Attach { interface, mode, source: Box::new(source) }
}

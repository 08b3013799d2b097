//! The XDP program of one side: loads, attaches and pins it, and keeps its maps in step with the snapshot.
//!
//! Link, program and maps are pinned in `PIN_DIR/SIDE-IFINDEX-MODE/` and outlive the process. A later process of the same
//! build takes them over as they are. Another loads a program of its own with maps already filled, and replaces the
//! old one in the same link: there is no moment without a program.
//!
//! Behind it stands a second line, a classifier with the same maps: whatever becomes of the XDP program, the kernel does
//! not get what the program would keep from it.

mod error;
mod guard;
mod hook;
mod loss;
mod maps;
mod object;
mod pins;
/// What the programs decide.
mod rows;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use aya::EbpfLoader;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, TestRun, TestRunOptions};
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
use object::Object;
use pins::{mode_of, pin_path, pinned_directories, remove_pins};
pub use rows::ROWS;

const _: () = assert!(RING_FRAMES == 2048, "as `RING_FRAMES` of `bpf/steer.bpf.c`");

/// Verdict of a classifier that drops (`linux/pkt_cls.h`).
const TC_ACT_SHOT: u32 = 2;

/// Pins of the two programs' links.
const LINK_PIN: &str = "link";
const GUARD_PIN: &str = "guard";

/// An attached XDP program, and the second line behind it.
#[derive(Debug)]
pub struct Steering {
    object: Object,
    mode: Option<AttachMode>,
    /// Index of the interface.
    interface: u32,
    program: Option<Hook>,
    guard: Option<Guard>,
    /// Whether the second line may be attached by a link, which kernels older than 6.6 do not know.
    may_link: bool,
    entries: Entries,
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
        let object = Object::load(loader, side, queues)?;
        let mut steering = Self::of(object, Entries::default())?;
        steering.open(first)?;
        steering.close(first)?;
        Ok(steering)
    }

    /// Takes over what an earlier process attached and pinned, if it is just what would be loaded: programs go on to run, and
    /// the kernel is spared to verify and replace them. Only while no worker has a socket of the interface.
    ///
    /// # Errors
    /// When a map cannot be read or changed.
    pub fn inherit(
        side: Side,
        queues: u32,
        interface: u32,
        preference: AttachPreference,
        pin_dir: &Path,
        first: &Snapshot,
    ) -> Result<Option<Self>, SteerError> {
        let found = preference.modes().iter().find_map(|mode| {
            let own = pin_path(pin_dir, side, interface, *mode);
            let object = Object::pinned(side, queues, &own)?;
            let program = Hook::pinned(own.join(LINK_PIN))?;
            let runs = program.runs(object.numbers()?.0, interface);
            runs.then_some((*mode, own, object, program))
        });
        let Some((mode, own, object, program)) = found else { return Ok(None) };
        let entries = Entries::read(&object.maps)?;
        let mut steering = Self::of(object, entries)?;
        (steering.mode, steering.interface, steering.program) = (Some(mode), interface, Some(program));
        let guard = Guard::pinned(own.join(GUARD_PIN));
        steering.guard = guard.filter(|guard| steering.runs_guard(guard));
        steering.rings.clear();
        steering.shares.clear();
        steering.object.maps.forget_verdicts()?;
        steering.open(first)?;
        steering.close(first)?;
        remove_others(pin_dir, side, &own)?;
        Ok(Some(steering))
    }

    /// Tells whether [`Steering::inherit`] may find something.
    pub(crate) fn may_inherit(side: Side, pin_dir: &Path) -> bool {
        pinned_directories(pin_dir, side).iter().any(|directory| Object::may_be_pinned(directory))
    }

    fn of(object: Object, entries: Entries) -> Result<Self, SteerError> {
        let queues = object.queues;
        let rings = object.maps.share("rings", |map| SharedArray::of_rings(map, queues))?;
        let shares = object.maps.share("shares", |map| SharedArray::of_shares(map, queues))?;
        Ok(Self {
            object,
            mode: None,
            interface: 0,
            program: None,
            guard: None,
            may_link: true,
            entries,
            rings: Arc::new(rings),
            shares,
            earlier: [0; ROWS.len()],
            earlier_refused: Vec::new(),
        })
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
        let candidates = preference.modes();
        if let (Some(mode), Some(_)) = (self.mode, &self.program)
            && self.interface == interface
            && candidates.contains(&mode)
        {
            return Ok(mode); // it was taken over
        }
        self.interface = interface;
        // An interface that has a program already refuses another.
        let (mode, hook) = match self.attach_anew(interface, candidates, pin_dir) {
            Ok(attached) => attached,
            Err(refused) => self.take_over(interface, candidates, pin_dir)?.ok_or(refused)?,
        };
        self.program = Some(hook);
        self.mode = Some(mode);
        let own = pin_path(pin_dir, self.object.side, interface, mode);
        self.object.pin(&own)?;
        remove_others(pin_dir, self.object.side, &own)?;
        Ok(mode)
    }

    /// Attaches the second line behind the attached program. The kernel takes its time for it: it waits until no processor
    /// uses what stood there before (RCU).
    pub(crate) fn stand_guard(&mut self, pin_dir: &Path) -> Result<(), SteerError> {
        if let (Some(mode), None) = (self.mode, &self.guard) {
            self.guard =
                Some(self.attach_guard(&pin_path(pin_dir, self.object.side, self.interface, mode))?);
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
        Loss {
            program: !self.program.as_ref().is_some_and(|hook| self.runs_program(hook)),
            guard: !self.guard.as_ref().is_some_and(|guard| self.runs_guard(guard)),
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

    fn runs_program(&self, hook: &Hook) -> bool {
        self.object.numbers().is_some_and(|(program, _)| hook.runs(program, self.interface))
    }

    fn runs_guard(&self, guard: &Guard) -> bool {
        self.object.numbers().is_some_and(|(_, program)| guard.runs(program, self.interface))
    }

    /// Attaches and pins again what somebody else took away. The sockets stay.
    ///
    /// # Errors
    /// When another program is in the way, or the kernel refuses.
    pub fn make_good(&mut self, pin_dir: &Path) -> Result<(), SteerError> {
        let (loss, interface) = (self.loss(), self.interface);
        let Some(mode) = self.mode else { return Ok(()) };
        let own = pin_path(pin_dir, self.object.side, interface, mode);
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
        self.object.pin(&own)
    }

    /// Puts into the maps what a new snapshot steers to workers, and takes out what it no longer lets pass.
    /// To be done before workers learn of the snapshot.
    ///
    /// # Errors
    /// When a map is full.
    pub fn open(&mut self, next: &Snapshot) -> Result<(), SteerError> {
        self.entries.open(&mut self.object.maps, next)
    }

    /// Takes out of the maps what a snapshot no longer steers to workers, and puts in what it lets pass. To be
    /// done after every worker has adopted the snapshot.
    ///
    /// # Errors
    /// When a map is full.
    pub fn close(&mut self, adopted: &Snapshot) -> Result<(), SteerError> {
        self.entries.close(&mut self.object.maps, adopted)
    }

    /// Returns how many frames met each row of the decision table.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn report(&self) -> Result<SteerReport, SteerError> {
        let counts = self.counts()?;
        let own = ROWS.iter().zip(counts).filter(|((side, _), _)| *side == self.object.side);
        let verdicts = own.map(|((_, name), count)| (*name, count)).collect();
        Ok(SteerReport { side: self.object.side, mode: self.mode.unwrap_or(AttachMode::Generic), verdicts })
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
        let here: u64 = (0..self.object.queues).map(|queue| self.shares.refused(queue, number)).sum();
        here + self.earlier_refused.get(number as usize).copied().unwrap_or(0)
    }

    fn counts(&self) -> Result<[u64; ROWS.len()], SteerError> {
        let mut counts = self.object.maps.verdicts()?;
        counts.iter_mut().zip(self.earlier).for_each(|(count, earlier)| *count += earlier);
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
        Ok(self.object.xdp().test_run(options)?.return_value)
    }

    /// Runs the second line in the kernel on a frame that comes from nowhere; tells whether it drops it.
    ///
    /// # Errors
    /// When the kernel cannot run it.
    pub fn test_run_guard(&mut self, frame: &[u8]) -> Result<bool, ProgramError> {
        let options = TestRunOptions { data_in: Some(frame), repeat: 1, ..Default::default() };
        let verdict = self.object.guard().test_run(options)?.return_value;
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
        for directory in pinned_directories(pin_dir, self.object.side) {
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
            let program = self.object.xdp();
            let refused = |source| attach_error(interface, mode.name(), source);
            let id = program.attach_to_link(link).map_err(refused)?;
            let link = FdLink::try_from(program.take_link(id).map_err(refused)?).map_err(link_error)?;
            let own = pin_path(pin_dir, self.object.side, interface, mode);
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
            let program = self.object.xdp();
            match program.attach_to_if_index(interface, flag) {
                Ok(id) => {
                    let link =
                        program.take_link(id).map_err(|source| attach_error(interface, name, source))?;
                    let link =
                        FdLink::try_from(link).map_err(|source| SteerError::Link { interface, source })?;
                    let own = pin_path(pin_dir, self.object.side, interface, *mode);
                    return Ok((*mode, Hook::pin(link, own.join(LINK_PIN))?));
                }
                Err(error) => refused = Some(attach_error(interface, name, error)),
            }
        }
        Err(refused.expect("at least one mode was tried"))
    }

    fn attach_guard(&mut self, directory: &Path) -> Result<Guard, SteerError> {
        let (pin, may_link) = (directory.join(GUARD_PIN), self.may_link);
        Guard::attach(self.object.guard(), self.interface, pin, may_link)
    }
}

/// Removes the pins of a side for interfaces that are gone or were configured before.
fn remove_others(pin_dir: &Path, side: Side, own: &Path) -> Result<(), SteerError> {
    let others = pinned_directories(pin_dir, side).into_iter().filter(|directory| directory != own);
    others.into_iter().try_for_each(|other| remove_pins(side, &other))
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

fn attach_error(interface: u32, mode: &'static str, source: ProgramError) -> SteerError {
    SteerError::Attach { interface, mode, source: Box::new(source) }
}

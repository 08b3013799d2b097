//! The programs of one side and their maps: loaded, or taken over from an earlier process of the same build, which pinned
//! them.

use std::fmt::Display;
use std::io;
use std::path::Path;

use aya::Ebpf;
use aya::programs::{Program, SchedClassifier, Xdp};
use aya_obj::programs::XdpAttachType;

use super::hook::remove_if_there;
use super::maps::Maps;
use super::pins::names_in;
use super::{Loader, SteerError};
use crate::io::turnstile::SHARES;
use crate::snapshot::Side;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));

/// Pin of the XDP program.
const PROGRAM_PIN: &str = "program";
/// What the pin of the second line's program begins with. What follows tells of which object all pins beside it are
/// ([`pin_of_this_build`]).
const GUARD_PROGRAM_PIN: &str = "guard-program-";

/// Programs and maps of one side.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) side: Side,
    pub(super) queues: u32,
    programs: Programs,
    pub(super) maps: Maps,
}

#[derive(Debug)]
enum Programs {
    Loaded(Box<Ebpf>),
    Pinned(Box<(Xdp, SchedClassifier)>),
}

impl Object {
    /// Loads them for an interface with `queues` queues.
    ///
    /// # Errors
    /// When the kernel refuses a program or a map.
    pub(super) fn load(loader: &mut Loader, side: Side, queues: u32) -> Result<Self, SteerError> {
        let mut ebpf = loader
            .map_max_entries("xsks_map", queues)
            .map_max_entries("rings", queues)
            .map_max_entries("shares", queues * SHARES)
            .load(OBJECT)
            .map_err(|error| SteerError::Load(Box::new(error)))?;
        let maps = Maps::take(&mut ebpf);
        let mut object = Self { side, queues, programs: Programs::Loaded(Box::new(ebpf)), maps };
        object.xdp().load().map_err(|source| SteerError::Attach {
            interface: 0,
            mode: "no",
            source: Box::new(source),
        })?;
        object
            .guard()
            .load()
            .map_err(|source| SteerError::Guard { interface: 0, source: Box::new(source) })?;
        Ok(object)
    }

    /// Takes over what is pinned in a directory; none if it is not all there, or not what [`Object::load`] would load.
    pub(super) fn pinned(side: Side, queues: u32, directory: &Path) -> Option<Self> {
        let guard = SchedClassifier::from_pin(directory.join(pin_of_this_build(queues))).ok()?;
        let xdp = Xdp::from_pin(directory.join(PROGRAM_PIN), XdpAttachType::Interface).ok()?;
        let maps = Maps::pinned(directory).ok()?;
        Some(Self { side, queues, programs: Programs::Pinned(Box::new((xdp, guard))), maps })
    }

    /// Tells whether something that [`Object::pinned`] may take over is in a directory.
    pub(super) fn may_be_pinned(directory: &Path) -> bool {
        let begin = pin_of_this_build("");
        names_in(directory).iter().any(|name| name.starts_with(begin.as_str()))
    }

    /// Pins programs and maps, in place of those of an earlier process.
    ///
    /// # Errors
    /// When a pin cannot be made or removed.
    pub(super) fn pin(&mut self, directory: &Path) -> Result<(), SteerError> {
        // The pin that tells of which object all are goes first and comes last: a process may be killed in between.
        for name in names_in(directory).iter().filter(|name| name.starts_with(GUARD_PROGRAM_PIN)) {
            remove(&directory.join(name))?;
        }
        pin(&directory.join(PROGRAM_PIN), |path| self.xdp().pin(path))?;
        for (name, map) in self.maps.all() {
            pin(&directory.join(name), |path| map.pin(path))?;
        }
        let name = pin_of_this_build(self.queues);
        pin(&directory.join(name), |path| self.guard().pin(path))
    }

    /// Returns the XDP program.
    pub(super) fn xdp(&mut self) -> &mut Xdp {
        match &mut self.programs {
            Programs::Loaded(ebpf) => {
                let program = ebpf.program_mut(names(self.side).0).expect("the object has it");
                program.try_into().expect("it is an XDP program")
            }
            Programs::Pinned(programs) => &mut programs.0,
        }
    }

    /// Returns the program of the second line.
    pub(super) fn guard(&mut self) -> &mut SchedClassifier {
        match &mut self.programs {
            Programs::Loaded(ebpf) => {
                let program = ebpf.program_mut(names(self.side).1).expect("the object has it");
                program.try_into().expect("it is a classifier")
            }
            Programs::Pinned(programs) => &mut programs.1,
        }
    }

    /// Returns the kernel's numbers of the XDP program and of the second line's.
    pub(super) fn numbers(&self) -> Option<(u32, u32)> {
        let (xdp, guard) = match &self.programs {
            Programs::Loaded(ebpf) => {
                let (xdp, guard) = names(self.side);
                let (Program::Xdp(xdp), Program::SchedClassifier(guard)) =
                    (ebpf.program(xdp)?, ebpf.program(guard)?)
                else {
                    return None;
                };
                (xdp, guard)
            }
            Programs::Pinned(programs) => (&programs.0, &programs.1),
        };
        Some((xdp.info().ok()?.id(), guard.info().ok()?.id()))
    }
}

/// Returns the names of a side's XDP program and second line.
pub(super) fn names(side: Side) -> (&'static str, &'static str) {
    match side {
        Side::Inside => ("steer_inside", "guard_inside"),
        Side::Outside => ("steer_outside", "guard_outside"),
    }
}

/// Returns the name of the pin, which ends with the number of queues.
fn pin_of_this_build(queues: impl Display) -> String {
    format!("{GUARD_PROGRAM_PIN}{:08x}-{queues}", crc32fast::hash(OBJECT))
}

/// Pins something in place of what is pinned there.
fn pin<E>(path: &Path, pin: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), SteerError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    remove(path)?;
    pin(path).map_err(|error| SteerError::Pin { path: path.to_owned(), source: io::Error::other(error) })
}

fn remove(path: &Path) -> Result<(), SteerError> {
    remove_if_there(path).map_err(|source| SteerError::Pin { path: path.to_owned(), source })
}

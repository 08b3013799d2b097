//! The XDP program of one side: loads, attaches and pins it, and keeps its maps in step with the snapshot.
//!
//! Link, program and maps are pinned in `PIN_DIR/SIDE-IFINDEX-MODE/` and outlive the process. A later process loads
//! a program of its own with maps already filled, and replaces the old one in the same link: there is no moment
//! without a program.

mod maps;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapError, PerCpuArray};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use thiserror::Error;

use crate::dataplane::{AttachMode, AttachPreference, SteerReport};
use crate::snapshot::{Side, Snapshot};
use maps::Entries;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));

/// Rows of the decision table, in the order of `enum row` in `bpf/steer.bpf.c`.
const ROWS: [(Side, &str); 16] = [
    (Side::Inside, "arp_passed"),
    (Side::Inside, "gateway_address_passed"),
    (Side::Inside, "tenant_to_worker"),
    (Side::Inside, "tenant_without_worker_dropped"),
    (Side::Inside, "tenant_not_ipv4_dropped"),
    (Side::Inside, "leak_to_worker"),
    (Side::Inside, "leak_without_worker_dropped"),
    (Side::Inside, "leak_tagged_dropped"),
    (Side::Inside, "egress_address_dropped"),
    (Side::Inside, "many_tags_dropped"),
    (Side::Inside, "rest_passed"),
    (Side::Outside, "egress_to_worker"),
    (Side::Outside, "egress_without_worker_dropped"),
    (Side::Outside, "egress_tagged_dropped"),
    (Side::Outside, "many_tags_dropped"),
    (Side::Outside, "rest_passed"),
];

/// Why the XDP program is not in place.
#[derive(Debug, Error)]
pub enum SteerError {
    /// The object file was refused.
    #[error("the XDP program cannot be loaded; CAP_BPF and CAP_NET_ADMIN are needed")]
    Load(#[source] Box<EbpfError>),
    /// The kernel refused the program.
    #[error("the XDP program cannot be verified or attached to interface {interface} in {mode} mode")]
    Attach {
        /// Index of the interface.
        interface: u32,
        /// Mode that was tried last.
        mode: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// The program of an earlier process is attached in a mode that is not wanted now.
    #[error(
        "an earlier XDP program is attached to interface {interface} in {mode} mode; set xdp.mode to \"{mode}\" or \"auto\", \
         or run `spillway detach` first"
    )]
    OtherMode {
        /// Index of the interface.
        interface: u32,
        /// Mode that it is attached in.
        mode: &'static str,
    },
    /// A link is not one of an XDP program.
    #[error(
        "the XDP link of interface {interface} cannot be pinned; another XDP program may be attached without a link"
    )]
    Link {
        /// Index of the interface.
        interface: u32,
        /// What is wrong with it.
        #[source]
        source: LinkError,
    },
    /// A pin could not be made or removed.
    #[error("{}: the pin cannot be made or removed; is a bpffs mounted there?", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A map could not be changed.
    #[error("XDP map {map} cannot be changed")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: MapError,
    },
}

/// An attached XDP program.
#[derive(Debug)]
pub struct Steering {
    side: Side,
    ebpf: Ebpf,
    mode: Option<AttachMode>,
    entries: Entries,
    /// What programs counted that this one took the place of, by row.
    earlier: [u64; ROWS.len()],
}

impl Steering {
    /// Loads the program of one side with its maps filled, for an interface with `queues` queues, without
    /// attaching it.
    ///
    /// # Errors
    /// When the kernel refuses the program or a map.
    pub fn load(side: Side, queues: u32, first: &Snapshot) -> Result<Self, SteerError> {
        let mut loader = EbpfLoader::new();
        let mut ebpf = loader
            .map_max_entries("xsks_map", queues)
            .load(OBJECT)
            .map_err(|error| SteerError::Load(Box::new(error)))?;
        program_of(&mut ebpf, side).load().map_err(|source| SteerError::Attach {
            interface: 0,
            mode: "no",
            source: Box::new(source),
        })?;
        let mut steering =
            Self { side, ebpf, mode: None, entries: Entries::default(), earlier: [0; ROWS.len()] };
        steering.open(first)?;
        steering.close(first)?;
        Ok(steering)
    }

    /// Attaches the program to an interface and pins it; the program of an earlier process is replaced in
    /// its link.
    ///
    /// # Errors
    /// When the interface takes no XDP program of the preferred mode, or `pin_dir` is not on a bpffs.
    pub fn attach(
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
        // An interface that has a program already refuses another.
        let mode = match self.attach_anew(interface, candidates, pin_dir) {
            Ok(mode) => mode,
            Err(refused) => self.take_over(interface, candidates, pin_dir)?.ok_or(refused)?,
        };
        self.mode = Some(mode);
        let own = pin_path(pin_dir, self.side, interface, mode);
        self.pin(&own)?;
        for other in pinned_directories(pin_dir, self.side).into_iter().filter(|directory| *directory != own)
        {
            // An interface that is gone, or was configured before.
            remove_pins(&other).map_err(|source| SteerError::Pin { path: other, source })?;
        }
        Ok(mode)
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
        Ok(())
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

    /// Replaces the program in the link that was pinned for this interface, if there is one. The interface may have had
    /// another index then: one that moves to another network namespace and back takes its program along.
    fn take_over(
        &mut self,
        interface: u32,
        modes: &[AttachMode],
        pin_dir: &Path,
    ) -> Result<Option<AttachMode>, SteerError> {
        let link_error = |source| SteerError::Link { interface, source };
        for directory in pinned_directories(pin_dir, self.side) {
            let path = directory.join("link");
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
            let link = program.take_link(id).map_err(refused)?;
            let own = pin_path(pin_dir, self.side, interface, mode);
            if own != directory {
                self.pin_link(link, interface, &own)?;
            }
            return Ok(Some(mode));
        }
        Ok(None)
    }

    /// Pins a link in a directory, in place of one whose interface is another.
    fn pin_link(&self, link: XdpLink, interface: u32, directory: &Path) -> Result<(), SteerError> {
        let pin_error = |path: &Path, source| SteerError::Pin { path: path.to_owned(), source };
        let link = FdLink::try_from(link).map_err(|source| SteerError::Link { interface, source })?;
        fs::create_dir_all(directory).map_err(|source| pin_error(directory, source))?;
        let path = directory.join("link");
        if path.exists() {
            fs::remove_file(&path).map_err(|source| pin_error(&path, source))?;
        }
        link.pin(&path).map_err(|error| pin_error(&path, io::Error::other(error))).map(drop)
    }

    fn attach_anew(
        &mut self,
        interface: u32,
        modes: &[AttachMode],
        pin_dir: &Path,
    ) -> Result<AttachMode, SteerError> {
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
                    self.pin_link(link, interface, &pin_path(pin_dir, self.side, interface, *mode))?;
                    return Ok(*mode);
                }
                Err(error) => refused = Some(attach_error(interface, name, error)),
            }
        }
        Err(refused.expect("at least one mode was tried"))
    }

    /// Pins program and maps beside the link, in place of those of an earlier process.
    fn pin(&mut self, directory: &Path) -> Result<(), SteerError> {
        let replace = |name: &str| {
            let path = directory.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(SteerError::Pin { path, source })
                }
                Ok(()) | Err(_) => Ok(path),
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
            remove_pins(&directory).map_err(|source| SteerError::Pin { path: directory, source })?;
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
    let name = match side {
        Side::Inside => "steer_inside",
        Side::Outside => "steer_outside",
    };
    let program = ebpf.program_mut(name).expect("the object has a program for each side");
    program.try_into().expect("it is an XDP program")
}

/// Returns the index of the interface that a link is attached to now, which the kernel tells beside the link's number for
/// each descriptor of this process.
fn interface_of(link: &FdLink) -> Option<u32> {
    let number = link.info().ok()?.id();
    let value = |text: &str, key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|value| value.trim_start_matches(':').trim().parse::<u32>().ok())
    };
    let descriptors = fs::read_dir("/proc/self/fdinfo").ok()?;
    let texts = descriptors.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    texts.filter(|text| value(text, "link_id") == Some(number)).find_map(|text| value(&text, "ifindex"))
}

fn attach_error(interface: u32, mode: &'static str, source: ProgramError) -> SteerError {
    SteerError::Attach { interface, mode, source: Box::new(source) }
}

fn pin_path(pin_dir: &Path, side: Side, interface: u32, mode: AttachMode) -> PathBuf {
    pin_dir.join(format!("{}-{interface}-{}", side.name(), mode.name()))
}

/// Returns the mode that a directory of pins is named after.
fn mode_of(directory: &Path) -> Option<AttachMode> {
    let name = directory.file_name()?.to_string_lossy().into_owned();
    [AttachMode::Native, AttachMode::Generic]
        .into_iter()
        .find(|mode| name.ends_with(&format!("-{}", mode.name())))
}

/// Returns the directories of earlier pins of a side.
fn pinned_directories(pin_dir: &Path, side: Side) -> Vec<PathBuf> {
    let prefix = format!("{}-", side.name());
    let Ok(entries) = fs::read_dir(pin_dir) else { return Vec::new() };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .collect()
}

fn remove_pins(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(directory)
}

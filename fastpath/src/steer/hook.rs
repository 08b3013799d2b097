//! A program's place at an interface: a link that is pinned, so that it outlives the process, and held open, so that it
//! outlives its pin as long as the process lives.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aya::programs::links::{FdLink, PinnedLink};

use super::SteerError;

/// A pinned link that is held open.
#[derive(Debug)]
pub(super) struct Hook {
    link: FdLink,
    pin: PathBuf,
    number: u32,
    /// Where the kernel told of it last: of a descriptor of this process, not always the same, as a link that is taken over
    /// has two for a while.
    place: Mutex<PathBuf>,
}

/// What the kernel tells of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    link: u32,
    program: u32,
    /// Zero when somebody detached it, or the interface is gone.
    interface: u32,
}

impl Hook {
    /// Pins a link, in place of what is pinned there.
    ///
    /// # Errors
    /// When the directory is not on a bpffs.
    pub(super) fn pin(link: FdLink, pin: PathBuf) -> Result<Self, SteerError> {
        let error = |source| SteerError::Pin { path: pin.clone(), source };
        // Never without a pin: a process that is killed in between leaves the old one or the new one.
        let new = pin.with_file_name(format!("{}-new", name_of(&pin)));
        fs::create_dir_all(pin.parent().unwrap_or(Path::new("/"))).map_err(error)?;
        remove_if_there(&new).map_err(error)?;
        let pinned = link.pin(&new).map_err(|refused| error(io::Error::other(refused)))?;
        fs::rename(&new, &pin).map_err(error)?;
        Self::hold(pinned.into(), pin)
    }

    /// Holds what an earlier process pinned, if there is such a link.
    pub(super) fn pinned(pin: PathBuf) -> Option<Self> {
        let link = PinnedLink::from_pin(&pin).ok()?;
        Self::hold(link.into(), pin).ok()
    }

    /// Holds a link that is pinned already.
    ///
    /// # Errors
    /// When the kernel does not tell of it.
    pub(super) fn hold(link: FdLink, pin: PathBuf) -> Result<Self, SteerError> {
        let told = link.info().ok().and_then(|info| find(info.id()));
        match told {
            Some((told, place)) => Ok(Self { link, pin, number: told.link, place: Mutex::new(place) }),
            None => Err(SteerError::Pin { path: pin, source: io::ErrorKind::NotFound.into() }),
        }
    }

    /// Tells whether the link still runs a program at an interface.
    pub(super) fn runs(&self, program: u32, interface: u32) -> bool {
        self.told() == Some(Told { link: self.number, program, interface })
    }

    fn told(&self) -> Option<Told> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let told = read(&place).filter(|told| told.link == self.number);
        told.or_else(|| {
            let (told, found) = find(self.number)?;
            *place = found;
            Some(told)
        })
    }

    /// Tells whether it would outlive the process.
    pub(super) fn is_pinned(&self) -> bool {
        self.pin.exists()
    }

    /// Pins it again.
    ///
    /// # Errors
    /// As [`Hook::pin`].
    pub(super) fn pin_again(self) -> Result<Self, SteerError> {
        Self::pin(self.link, self.pin)
    }
}

/// Returns the index of the interface that a link is attached to now.
pub(super) fn interface_of(link: &FdLink) -> Option<u32> {
    Some(find(link.info().ok()?.id())?.0.interface)
}

/// Removes a file, if there is one.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Finds what the kernel tells of a link, and where: among the descriptors of this process.
fn find(link: u32) -> Option<(Told, PathBuf)> {
    let descriptors = fs::read_dir("/proc/self/fdinfo").ok()?;
    let mut paths = descriptors.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find_map(|path| Some((read(&path).filter(|told| told.link == link)?, path)))
}

fn read(place: &Path) -> Option<Told> {
    let text = fs::read_to_string(place).ok()?;
    let value = |key| value(&text, key);
    Some(Told { link: value("link_id")?, program: value("prog_id")?, interface: value("ifindex")? })
}

fn value(text: &str, key: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|value| value.trim_start_matches(':').trim().parse().ok())
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

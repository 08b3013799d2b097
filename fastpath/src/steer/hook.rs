//! A program's place at an interface: a link that is pinned, so that it outlives the process, and held open, so that it
//! outlives its pin as long as the process lives.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;

use super::SteerError;

/// A pinned link that is held open.
#[derive(Debug)]
pub(super) struct Hook {
    link: FdLink,
    pin: PathBuf,
    /// Where the kernel tells what the link is attached to.
    told: PathBuf,
}

/// What the kernel tells of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
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

    /// Holds a link that is pinned already.
    ///
    /// # Errors
    /// When the kernel does not tell of it.
    pub(super) fn hold(link: FdLink, pin: PathBuf) -> Result<Self, SteerError> {
        match place_of(&link) {
            Some(told) => Ok(Self { link, pin, told }),
            None => Err(SteerError::Pin { path: pin, source: io::ErrorKind::NotFound.into() }),
        }
    }

    /// Tells whether the link still runs a program at an interface.
    pub(super) fn runs(&self, program: u32, interface: u32) -> bool {
        read(&self.told).is_some_and(|told| told == Told { program, interface })
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
    Some(read(&place_of(link)?)?.interface)
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

/// Finds where the kernel tells of a link: among the descriptors of this process, by the link's number.
fn place_of(link: &FdLink) -> Option<PathBuf> {
    let number = link.info().ok()?.id();
    let descriptors = fs::read_dir("/proc/self/fdinfo").ok()?;
    let paths = descriptors.filter_map(|entry| Some(entry.ok()?.path()));
    let mut texts = paths.filter_map(|path| Some((fs::read_to_string(&path).ok()?, path)));
    texts.find(|(text, _)| value(text, "link_id") == Some(number)).map(|(_, path)| path)
}

fn read(told: &Path) -> Option<Told> {
    let text = fs::read_to_string(told).ok()?;
    Some(Told { program: value(&text, "prog_id")?, interface: value(&text, "ifindex")? })
}

fn value(text: &str, key: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|value| value.trim_start_matches(':').trim().parse().ok())
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

//! The place of the second line at an interface: a pinned link (TCX), or on kernels older than 6.6 a filter of the
//! interface's `clsact` queueing discipline, which stays by itself.

use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcHandle, qdisc_add_clsact,
    qdisc_detach_program,
};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use nix::net::if_::if_indextoname;
use tracing::warn;

use super::SteerError;
use super::hook::Hook;

/// Where the filter of an old kernel is, so that a later process finds it: before all others.
const FILTER: NlOptions = NlOptions { priority: 1, handle: TcHandle::new(0, 0x53), classid: None };

/// An attached second line.
#[derive(Debug)]
pub(super) enum Guard {
    /// By a link.
    Link(Hook),
    /// By a filter, of which nobody looks whether it is still there.
    Filter,
    /// The kernel knows neither.
    Nowhere,
}

impl Guard {
    /// Attaches it before all other classifiers, in the place of that of an earlier process, which stands until then.
    ///
    /// # Errors
    /// When the kernel refuses, or the pin's directory is not on a bpffs.
    pub(super) fn attach(
        program: &mut SchedClassifier,
        interface: u32,
        pin: PathBuf,
        may_link: bool,
    ) -> Result<Self, SteerError> {
        let guard_error = |source| SteerError::Guard { interface, source: Box::new(source) };
        let name = name_of(interface).map_err(|error| guard_error(ProgramError::IOError(error)))?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let attached = match may_link {
            true => program.attach_with_options(&name, TcAttachType::Ingress, options),
            false => Err(ProgramError::IOError(io::ErrorKind::Unsupported.into())),
        };
        match attached {
            Ok(id) => {
                let link = program.take_link(id).map_err(guard_error)?;
                let link = FdLink::try_from(link).map_err(|source| SteerError::Link { interface, source })?;
                Ok(Self::Link(Hook::pin(link, pin)?))
            }
            Err(error) if may_link && !is_unknown(&error) => Err(guard_error(error)),
            Err(_) => match attach_filter(program, &name) {
                Ok(()) => Ok(Self::Filter),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    warn!(error, interface = name, "the kernel has no place for a second line behind XDP");
                    Ok(Self::Nowhere)
                }
            },
        }
    }

    /// Holds the link that an earlier process pinned, if there is one.
    pub(super) fn pinned(pin: PathBuf) -> Option<Self> {
        Hook::pinned(pin).map(Self::Link)
    }

    /// Tells whether it still runs a program at an interface, as far as that can be known.
    pub(super) fn runs(&self, program: u32, interface: u32) -> bool {
        match self {
            Self::Link(hook) => hook.runs(program, interface),
            Self::Filter | Self::Nowhere => true,
        }
    }

    /// Tells whether it would outlive the process.
    pub(super) fn is_pinned(&self) -> bool {
        match self {
            Self::Link(hook) => hook.is_pinned(),
            Self::Filter | Self::Nowhere => true,
        }
    }

    /// Pins it again.
    ///
    /// # Errors
    /// When the pin's directory is not on a bpffs.
    pub(super) fn pin_again(self) -> Result<Self, SteerError> {
        match self {
            Self::Link(hook) => Ok(Self::Link(hook.pin_again()?)),
            Self::Filter | Self::Nowhere => Ok(self),
        }
    }
}

/// Removes the filter of a program from an interface, if both are there.
pub(super) fn remove_filter(program: &str, interface: u32) {
    if let Ok(name) = name_of(interface) {
        // There is none on a kernel that has links.
        let _ = qdisc_detach_program(&name, TcAttachType::Ingress, program);
    }
}

fn attach_filter(program: &mut SchedClassifier, name: &str) -> Result<(), ProgramError> {
    // It is there already on many hosts; if it cannot be made, the filter cannot either.
    let _ = qdisc_add_clsact(name);
    let options = TcAttachOptions::Netlink(FILTER);
    let id = match program.attach_with_options(name, TcAttachType::Ingress, options) {
        Ok(id) => id,
        Err(_) => replace_filter(program, name)?,
    };
    // Dropping it would remove the filter.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

fn replace_filter(program: &mut SchedClassifier, name: &str) -> Result<SchedClassifierLinkId, ProgramError> {
    let NlOptions { priority, handle, classid } = FILTER;
    let there = SchedClassifierLink::attached(name, TcAttachType::Ingress, priority, handle, classid);
    program.attach_to_link(there.map_err(ProgramError::IOError)?)
}

fn name_of(interface: u32) -> io::Result<String> {
    Ok(if_indextoname(interface)?.to_string_lossy().into_owned())
}

/// Tells whether the kernel does not know how to attach it.
fn is_unknown(error: &ProgramError) -> bool {
    let ProgramError::SyscallError(error) = error else { return false };
    error.io_error.raw_os_error() == Some(libc::EINVAL)
}

/// Returns the interface that a directory of pins is named after.
pub(super) fn interface_in(directory: &Path) -> Option<u32> {
    directory.file_name()?.to_str()?.split('-').nth(1)?.parse().ok()
}

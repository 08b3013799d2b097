//! What can be asked of an AF_XDP socket beside its rings: statistics, mode, and whether it still has its interface.

#![allow(unsafe_code, reason = "socket options are reached by system calls only")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// What the kernel counts for one socket (`XDP_STATISTICS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XskStatistics {
    /// Frames dropped because they are larger than a frame of the area, or could not be copied.
    pub rx_dropped: u64,
    /// Frames dropped because the rx ring was full.
    pub rx_ring_full: u64,
    /// Frames dropped because the fill ring was empty.
    pub fill_ring_empty: u64,
    /// Descriptors that the kernel refused.
    pub invalid_descriptors: u64,
}

/// A second handle on a port's socket, for whoever reads its statistics.
#[derive(Debug)]
pub struct XskProbe {
    socket: OwnedFd,
    is_dead: AtomicBool,
}

impl XskProbe {
    /// Makes one for a socket.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub(super) fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { socket: socket.try_clone_to_owned()?, is_dead: AtomicBool::new(false) })
    }

    /// Reads what the kernel counts for the socket.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn statistics(&self) -> io::Result<XskStatistics> {
        // SAFETY: the structure is plain integers, for which zero is a value.
        let empty: libc::xdp_statistics = unsafe { std::mem::zeroed() };
        let statistics = get_option(self.socket.as_fd(), libc::SOL_XDP, libc::XDP_STATISTICS, empty)?;
        Ok(XskStatistics {
            rx_dropped: statistics.rx_dropped,
            rx_ring_full: statistics.rx_ring_full,
            fill_ring_empty: statistics.rx_fill_ring_empty_descs,
            invalid_descriptors: statistics.rx_invalid_descs + statistics.tx_invalid_descs,
        })
    }

    /// Tells whether the kernel took the interface from the socket, because it was removed or went to another network
    /// namespace. There is no way back.
    pub fn is_dead(&self) -> bool {
        // The kernel tells once.
        let error = get_option(self.socket.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR, 0);
        if error.is_ok_and(|error| error == libc::ENETDOWN) {
            self.is_dead.store(true, Ordering::Relaxed);
        }
        self.is_dead.load(Ordering::Relaxed)
    }

    /// Tells whether the kernel reads and writes frames in place.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn is_zero_copy(&self) -> io::Result<bool> {
        let options = libc::xdp_options { flags: 0 };
        let options = get_option(self.socket.as_fd(), libc::SOL_XDP, libc::XDP_OPTIONS, options)?;
        Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }
}

/// Returns the AF_XDP sockets among the descriptors of the process.
pub(super) fn sockets_of_process() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok())
        .filter(|descriptor| {
            // SAFETY: asking for the domain of a descriptor that is closed meanwhile fails, no more.
            let descriptor = unsafe { BorrowedFd::borrow_raw(*descriptor) };
            get_option(descriptor, libc::SOL_SOCKET, libc::SO_DOMAIN, 0)
                .is_ok_and(|domain| domain == libc::AF_XDP)
        })
        .collect()
}

/// Returns the AF_XDP socket that was not among `before`.
pub(super) fn find_new_socket(before: &[RawFd]) -> Option<RawFd> {
    sockets_of_process().into_iter().find(|descriptor| !before.contains(descriptor))
}

fn get_option<T: Copy>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    mut value: T,
) -> io::Result<T> {
    let mut len = option_bytes::<T>();
    // SAFETY: the kernel writes at most `len` bytes, the size of `value`, which is plain integers.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, std::ptr::from_mut(&mut value).cast(), &raw mut len)
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Returns the size of an option, as the kernel takes it.
pub(super) fn option_bytes<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("socket options are small")
}

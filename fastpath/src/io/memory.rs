//! Memory in large pages where the kernel has some, taken before somebody waits for it.

#![allow(unsafe_code, reason = "the kernel is asked by address")]

use std::ops::Range;
use std::thread;

use crate::placement::run_as_usual;

/// `MADV_POPULATE_WRITE` of `linux/mman.h`, Linux 5.14.
const MADV_POPULATE_WRITE: libc::c_int = 23;

/// `MADV_COLLAPSE` of `linux/mman.h`, Linux 6.1.
const MADV_COLLAPSE: libc::c_int = 25;

const SMALL_PAGE: usize = 4096;
const LARGE_PAGE: usize = 2 << 20;

/// Threads that take memory at the same time, at most.
const MOST_THREADS: usize = 4;
/// Less than this is not worth another thread.
const LEAST_SHARE: usize = 4 * LARGE_PAGE;

/// A stretch of memory that the kernel was asked to back with pages of 2 MiB, so that a look-up in it does not wait for the
/// page table too. A kernel that has none to give changes nothing, and that is no error.
#[derive(Debug)]
pub struct Stretch {
    start: usize,
    bytes: usize,
}

impl Stretch {
    /// Asks for such pages wherever memory is touched for the first time.
    pub fn of(memory: Range<*const u8>) -> Self {
        let start = memory.start.addr().next_multiple_of(SMALL_PAGE);
        let bytes = memory.end.addr().saturating_sub(start) / SMALL_PAGE * SMALL_PAGE;
        let stretch = Self { start, bytes };
        stretch.advise(libc::MADV_HUGEPAGE);
        stretch
    }

    /// Takes the memory now, by some threads at the same time: to clear it takes a millisecond for some megabytes, and much
    /// longer in a virtual machine whose host has to find it first.
    ///
    /// Whoever has the memory may use it meanwhile, and even give it back.
    pub fn take(&self) {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let shares = cores.min(MOST_THREADS).min(self.bytes / LEAST_SHARE).max(1);
        let share = self.bytes.div_ceil(shares).next_multiple_of(LARGE_PAGE);
        let part = |at| Self { start: self.start + at, bytes: share.min(self.bytes - at) };
        thread::scope(|scope| {
            for at in (0..self.bytes).step_by(share.max(LARGE_PAGE)).skip(1) {
                scope.spawn(move || part(at).advise(MADV_POPULATE_WRITE));
            }
            part(0).advise(MADV_POPULATE_WRITE);
        });
        self.advise(MADV_COLLAPSE);
    }

    fn advise(&self, advice: libc::c_int) {
        let start = std::ptr::without_provenance_mut(self.start);
        // SAFETY: none of the advice above changes what memory holds or who may use it, whatever is mapped there.
        unsafe { libc::madvise(start, self.bytes, advice) };
    }
}

/// Takes memory on a thread of its own, behind everybody who has something to do.
pub fn take_meanwhile(stretches: Vec<Stretch>) {
    let take = move || {
        if let Err(error) = run_as_usual(0) {
            tracing::debug!(%error, "the tables' memory is taken before others have their turn");
        }
        stretches.iter().for_each(Stretch::take);
    };
    // Without a thread for it memory is taken as it is used.
    if let Err(error) = thread::Builder::new().name("memory".to_owned()).spawn(take) {
        tracing::debug!(%error, "no thread takes the tables' memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the pages of some memory that are there.
    fn resident(memory: &Range<*const u8>) -> usize {
        let start = memory.start.map_addr(|address| address.next_multiple_of(SMALL_PAGE));
        let bytes = (memory.end.addr() - start.addr()) / SMALL_PAGE * SMALL_PAGE;
        let mut pages = vec![0_u8; bytes / SMALL_PAGE];
        // SAFETY: the kernel writes a byte for each page, and there is room for so many.
        let told = unsafe { libc::mincore(start.cast_mut().cast(), bytes, pages.as_mut_ptr()) };
        assert_eq!(told, 0, "{}", std::io::Error::last_os_error());
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    #[test]
    fn all_of_a_stretch_is_taken_whatever_its_length() {
        for bytes in [0, 1, SMALL_PAGE, 3 * LARGE_PAGE + 5, 2 * LEAST_SHARE + 7 * SMALL_PAGE + 1] {
            let memory: Vec<u8> = Vec::with_capacity(bytes);
            let range = memory.as_ptr()..memory.as_ptr().wrapping_add(bytes);
            let stretch = Stretch::of(range.clone());
            stretch.take();
            if bytes > 2 * SMALL_PAGE {
                assert_eq!(resident(&range), stretch.bytes / SMALL_PAGE, "{bytes}");
            }
        }
    }

    #[test]
    fn what_is_taken_meanwhile_keeps_what_was_written() {
        let mut memory: Vec<u8> = Vec::with_capacity(4 * LARGE_PAGE);
        let range = memory.as_ptr()..memory.as_ptr().wrapping_add(memory.capacity());
        take_meanwhile(vec![Stretch::of(range.clone())]);
        memory.extend((0..=u8::MAX).cycle().take(2 * LARGE_PAGE));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while resident(&range) < 4 * LARGE_PAGE / SMALL_PAGE - 1 {
            assert!(std::time::Instant::now() < deadline, "{} pages", resident(&range));
            thread::yield_now();
        }
        assert!(memory.iter().copied().eq((0..=u8::MAX).cycle().take(2 * LARGE_PAGE)));
    }
}

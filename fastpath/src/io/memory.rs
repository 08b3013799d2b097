//! Memory that is there from the start, in large pages where the kernel has some.

#![allow(unsafe_code, reason = "the kernel is asked by address")]

use std::ops::Range;

/// `MADV_POPULATE_WRITE` of `linux/mman.h`, Linux 5.14.
const MADV_POPULATE_WRITE: libc::c_int = 23;

/// `MADV_COLLAPSE` of `linux/mman.h`, Linux 6.1.
const MADV_COLLAPSE: libc::c_int = 25;

/// Asks the kernel to back memory with pages of 2 MiB, so that a look-up in it does not wait for the page table too, and
/// to do so now, so that nobody waits for a page later. A kernel that has none to give changes nothing, and that is no error.
pub fn take_huge_pages(memory: Range<*const u8>) {
    let bytes = memory.end.addr() - memory.start.addr();
    let page = 4096;
    let start = memory.start.map_addr(|address| address.next_multiple_of(page));
    let Some(bytes) = bytes.checked_sub(start.addr() - memory.start.addr()) else { return };
    for advice in [libc::MADV_HUGEPAGE, MADV_POPULATE_WRITE, MADV_COLLAPSE] {
        // SAFETY: none of this changes what the memory holds or who may use it.
        unsafe { libc::madvise(start.cast_mut().cast(), bytes / page * page, advice) };
    }
}

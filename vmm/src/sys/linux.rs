//! What Linux has its own way.

use std::io;

use rustix::mm::{Advice, madvise};

/// Asks for huge pages (madvise(2), MADV_HUGEPAGE), as QEMU does for its guests: loading a kernel takes hundreds of page faults
/// less, and the guest fewer TLB misses. A host without them says no, which changes nothing.
pub(crate) fn prefer_huge_pages(start: *mut u8, len: usize) {
    // SAFETY: the advice changes how memory is given out, not what is in it; a range that is no mapping is an error.
    if let Err(error) = unsafe { madvise(start.cast(), len, Advice::LinuxHugepage) } {
        log::debug!("no huge pages for the guest's RAM: {error}");
    }
}

/// Makes `len` bytes of private anonymous memory at `start` zero by giving its pages back (madvise(2), MADV_DONTNEED: the next
/// access sees a new zero page).
///
/// # Safety
/// `start` and `len` are whole pages of such a mapping, to which no reference exists.
pub(crate) unsafe fn discard(start: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise; the contents may vanish.
    unsafe { madvise(start.cast(), len, Advice::LinuxDontNeed) }.map_err(io::Error::from)
}

/// The kernel's number for the calling thread.
pub(crate) fn thread_id() -> u64 {
    // SAFETY: the call takes nothing and cannot fail (gettid(2)).
    let id = unsafe { libc::gettid() };
    u64::try_from(id).unwrap_or(0)
}

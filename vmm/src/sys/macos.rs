//! What macOS has its own way.

use std::io;

/// Nothing: anonymous memory has one page size here.
pub(crate) fn prefer_huge_pages(_start: *mut u8, _len: usize) {}

/// Makes `len` bytes of private anonymous memory at `start` zero. By writing: `madvise` promises nothing about what is read
/// afterwards, and a new mapping in the old one's place would not be the one that the hypervisor has given to the guest.
///
/// # Safety
/// `start` and `len` are a writable mapping, to which no reference exists.
pub(crate) unsafe fn discard(start: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::write_bytes(start, 0, len) };
    Ok(())
}

/// The kernel's number for the calling thread.
pub(crate) fn thread_id() -> u64 {
    let mut id = 0;
    // SAFETY: 0 stands for the calling thread (pthread_threadid_np(3)), whose number is written to a variable of ours.
    unsafe { libc::pthread_threadid_np(0, &raw mut id) };
    id
}

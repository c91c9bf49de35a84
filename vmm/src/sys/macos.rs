//! What macOS has its own way.

use std::fs::File;
use std::io;
use std::path::Path;

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

/// The same for a shared mapping of a file. By writing, too.
///
/// # Safety
/// As for [`discard`].
pub(crate) unsafe fn discard_shared(start: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { discard(start, len) }
}

/// None: the back ends of vhost-user devices, which it is for, exist for Linux only.
pub(crate) fn shared_memory(_path: Option<&Path>, _len: u64) -> io::Result<File> {
    let why = "sharing it with vhost-user back ends works on Linux only; here, leave it private and share folders by 9p";
    Err(io::Error::new(io::ErrorKind::Unsupported, why))
}

/// The kernel's number for the calling thread.
pub(crate) fn thread_id() -> u64 {
    let mut id = 0;
    // SAFETY: 0 stands for the calling thread (pthread_threadid_np(3)), whose number is written to a variable of ours.
    unsafe { libc::pthread_threadid_np(0, &raw mut id) };
    id
}

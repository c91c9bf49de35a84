//! What Linux has its own way.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
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

/// The same for a shared mapping of a file: its pages go out of the file, for everybody (madvise(2), MADV_REMOVE; MADV_DONTNEED would
/// leave them there).
///
/// # Safety
/// `start` and `len` are whole pages of such a mapping, writable, to which no reference exists.
pub(crate) unsafe fn discard_shared(start: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise; the contents may vanish.
    unsafe { madvise(start.cast(), len, Advice::LinuxRemove) }.map_err(io::Error::from)
}

/// `len` bytes of memory in a file, for other processes to map: in the file `path`, which is made or grows if it must, in a nameless one in
/// the directory `path`, or in one that is nowhere (memfd_create(2)).
///
/// Nobody who is handed the last kind can cut it short, which would make an access to what is gone fatal (SIGBUS). Files on disk have no
/// such seals: whoever names one keeps others away from it.
pub(crate) fn shared_memory(path: Option<&Path>, len: u64) -> io::Result<File> {
    let Some(path) = path else {
        let file = File::from(memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.set_len(len)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        return Ok(file);
    };
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    if path.is_dir() {
        options.custom_flags(libc::O_TMPFILE);
    } else {
        options.create(true).truncate(false);
    }
    let file = options.open(path).map_err(named)?;
    if file.metadata().map_err(named)?.len() < len {
        file.set_len(len).map_err(named)?;
    }
    Ok(file)
}

/// The kernel's number for the calling thread.
pub(crate) fn thread_id() -> u64 {
    // SAFETY: the call takes nothing and cannot fail (gettid(2)).
    let id = unsafe { libc::gettid() };
    u64::try_from(id).unwrap_or(0)
}

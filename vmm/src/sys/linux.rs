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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use hvrun_arch::aarch64::layout::Window;
    use hvrun_arch::{GuestMemory, RamDiscard};
    use hvrun_devices::virtio::balloon::HostPages;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;
    use crate::ram::{self, MemoryBacking};

    const BASE: u64 = 0x4000_0000;
    const SIZE: u64 = 4 << 20;
    /// Where the tests write.
    const PLACE: u64 = 0x12_3000;

    /// RAM whose pages around [`PLACE`] are full of ones.
    fn used(backing: &MemoryBacking) -> GuestMemory {
        let memory = ram::map(Window::new(BASE, SIZE), backing).unwrap();
        memory.write_slice(&[1; 0x4000], GuestAddress(BASE + PLACE)).unwrap();
        memory
    }

    fn with_file<R>(memory: &GuestMemory, look: impl FnOnce(&File) -> R) -> R {
        look(memory.iter().next().unwrap().file_offset().unwrap().file())
    }

    fn byte(memory: &GuestMemory, at: u64) -> u8 {
        memory.read_obj(GuestAddress(BASE + at)).unwrap()
    }

    #[test]
    fn shared_memory_is_what_its_file_has() {
        let memory = used(&MemoryBacking::Shared);
        let mut bytes = [0; 4];
        with_file(&memory, |file| file.read_exact_at(&mut bytes, PLACE)).unwrap();
        assert_eq!(bytes, [1; 4]);
        with_file(&memory, |file| file.write_all_at(&[7], PLACE + 1)).unwrap();
        assert_eq!(byte(&memory, PLACE + 1), 7);
    }

    #[test]
    fn shared_memory_is_2_mib_aligned() {
        let memories = [0; 4].map(|_| ram::map(Window::new(BASE, SIZE), &MemoryBacking::Shared).unwrap());
        let place = |memory: &GuestMemory| memory.iter().next().unwrap().as_ptr() as usize;
        assert_eq!(memories.each_ref().map(|memory| place(memory) % (2 << 20)), [0; 4]);
    }

    #[test]
    fn discarded_shared_memory_is_zero_and_its_file_empty() {
        let memory = used(&MemoryBacking::Shared);
        assert_ne!(with_file(&memory, |file| file.metadata().unwrap().blocks()), 0);
        ram::discard(&memory).unwrap();
        let metadata = with_file(&memory, |file| file.metadata().unwrap());
        assert_eq!((metadata.len(), metadata.blocks()), (SIZE, 0));
        assert_eq!(byte(&memory, PLACE), 0);
    }

    #[test]
    fn the_balloon_gives_shared_pages_back() {
        let memory = ram::map(Window::new(BASE, SIZE), &MemoryBacking::Shared).unwrap();
        memory.write_slice(&[1; SIZE as usize], GuestAddress(BASE)).unwrap();
        let before = with_file(&memory, |file| file.metadata().unwrap().blocks());
        // SAFETY: the memory is a shared mapping of its file, which nobody holds references into.
        let pages = unsafe { HostPages::new(memory.clone()) };
        // As large as a huge page of the host's, should it use them.
        pages.discard(BASE, 2 << 20).unwrap();
        let after = with_file(&memory, |file| file.metadata().unwrap().blocks());
        assert_eq!(before - after, (2 << 20) / 512);
        assert_eq!((byte(&memory, 0), byte(&memory, 2 << 20)), (0, 1));
    }

    #[test]
    fn shared_memory_cannot_be_cut_short() {
        let memory = used(&MemoryBacking::Shared);
        let error = with_file(&memory, |file| file.set_len(0)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn shared_memory_in_a_directory_has_no_name() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let memory = used(&MemoryBacking::SharedFile(dir.path().into()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        ram::discard(&memory).unwrap();
        assert_eq!(byte(&memory, PLACE), 0);
    }

    #[test]
    fn shared_memory_in_a_file_is_as_large_as_it_must_be() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("ram");
        drop(used(&MemoryBacking::SharedFile(path.clone())));
        assert_eq!(std::fs::metadata(path).unwrap().len(), SIZE);
    }

    #[test]
    fn shared_memory_that_cannot_be_had_is_refused_with_its_place() {
        let backing = MemoryBacking::SharedFile("/nowhere/ram".into());
        let error = ram::map(Window::new(BASE, SIZE), &backing).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(error.to_string().contains("4M") && cause.contains("/nowhere/ram"), "{error}: {cause}");
    }
}

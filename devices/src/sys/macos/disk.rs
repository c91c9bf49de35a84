//! Disk images on macOS: F_NOCACHE, F_PUNCHHOLE, F_FULLFSYNC, sizes of block devices, and `flock`.

use std::ffi::{c_int, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::FlockOperation;

/// APFS frees whole blocks only, and refuses anything else.
pub(crate) const HOLE_ALIGNMENT: u64 = 4096;

/// A disk has a character device beside its block device (`/dev/rdisk4`), which is quicker. A terminal is told apart by its
/// having no size.
pub(crate) const CHARACTER_DISKS: bool = true;

/// Makes `file` bypass the page cache. Returns what buffers, offsets and lengths must be multiples of: (memory, offset). F_NOCACHE
/// asks for nothing.
pub(crate) fn make_direct(file: &File) -> io::Result<(usize, u64)> {
    // SAFETY: F_NOCACHE takes an integer; the descriptor is open for as long as `file` is borrowed.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_NOCACHE, 1) })?;
    Ok((1, 1))
}

/// Waits until what was written has left the host, and with `full` until it is on the medium. (`File::sync_data` is always the
/// latter here.)
pub(crate) fn sync_data(file: &File, full: bool) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: both take an open descriptor only.
    check(unsafe { if full { libc::fcntl(fd, libc::F_FULLFSYNC) } else { libc::fsync(fd) } })
}

/// DKIOCGETBLOCKSIZE (sys/disk.h): `_IOR('d', 24, uint32_t)`.
const DKIOCGETBLOCKSIZE: c_ulong = 0x4004_6418;
/// DKIOCGETBLOCKCOUNT (sys/disk.h): `_IOR('d', 25, uint64_t)`.
const DKIOCGETBLOCKCOUNT: c_ulong = 0x4008_6419;

/// Bytes of a block device.
pub(crate) fn device_size(file: &File) -> io::Result<u64> {
    let mut blocks = 0u64;
    // SAFETY: DKIOCGETBLOCKCOUNT writes a u64 through its argument, which lives until the call returns.
    check(unsafe { libc::ioctl(file.as_raw_fd(), DKIOCGETBLOCKCOUNT, &raw mut blocks) })?;
    Ok(blocks.saturating_mul(device_block_size(file)?.into()))
}

/// The block size in which a block device must be addressed.
pub(crate) fn device_block_size(file: &File) -> io::Result<u32> {
    let mut size = 0u32;
    // SAFETY: DKIOCGETBLOCKSIZE writes a u32 through its argument, which lives until the call returns.
    check(unsafe { libc::ioctl(file.as_raw_fd(), DKIOCGETBLOCKSIZE, &raw mut size) })?;
    Ok(size)
}

/// Frees the range; it reads as zeros afterwards. The file keeps its length.
pub(crate) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let (Ok(fp_offset), Ok(fp_length)) = (offset.try_into(), len.try_into()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let hole = libc::fpunchhole_t { fp_flags: 0, reserved: 0, fp_offset, fp_length };
    // SAFETY: F_PUNCHHOLE reads an `fpunchhole_t`, which lives until the call returns.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_PUNCHHOLE, &raw const hole) })
}

/// Makes the range read as zeros, and keeps room for it: there is no such call here.
pub(crate) fn zero_range(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Locks an image: any number of readers, or one writer. `Ok(false)`: somebody else has it.
pub(crate) fn lock_image(file: &File, writing: bool) -> io::Result<bool> {
    let operation = if writing {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

//! Disk images on Linux: O_DIRECT, `fallocate`, sizes of block devices, and locks that QEMU understands.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;

/// Holes may begin and end anywhere: what is not a whole block is zeroed.
pub(crate) const HOLE_ALIGNMENT: u64 = 1;

/// Only block devices are disks; character devices are something else.
pub(crate) const CHARACTER_DISKS: bool = false;

/// Makes `file` bypass the page cache. Returns what buffers, offsets and lengths must be multiples of: (memory, offset).
pub(crate) fn make_direct(file: &File) -> io::Result<(usize, u64)> {
    let fd = file.as_raw_fd();
    // SAFETY: F_GETFL and F_SETFL take and return integers; `fd` is open for as long as `file` is borrowed.
    let done = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        if flags < 0 { flags } else { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_DIRECT) }
    };
    check(done)?;
    Ok(direct_alignment(file))
}

/// What the file system says about direct I/O (statx(2), STATX_DIOALIGN, Linux 6.1), or what is always enough.
fn direct_alignment(file: &File) -> (usize, u64) {
    /// No file system wants more.
    const SAFE: (usize, u64) = (4096, 4096);
    // SAFETY: `statx` is plain data, for which zeros are a value.
    let mut stat: libc::statx = unsafe { zeroed() };
    // SAFETY: the path is an empty string with its NUL, AT_EMPTY_PATH makes the open `fd` the file, `stat` is of the type that
    // the call fills in.
    let result = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut stat)
    };
    let (memory, offset) = (stat.stx_dio_mem_align, stat.stx_dio_offset_align);
    let told = result == 0 && stat.stx_mask & libc::STATX_DIOALIGN != 0;
    if told && memory.is_power_of_two() && offset.is_power_of_two() {
        (memory as usize, u64::from(offset.max(512)))
    } else {
        SAFE
    }
}

/// Waits until what was written is on storage. Linux knows no difference between that and the medium.
pub(crate) fn sync_data(file: &File, _full: bool) -> io::Result<()> {
    // SAFETY: takes an open descriptor only.
    check(unsafe { libc::fdatasync(file.as_raw_fd()) })
}

/// BLKGETSIZE64 (linux/fs.h): bytes of a block device. `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: u64 = 0x8008_1272;
/// BLKSSZGET (linux/fs.h): logical block size. `_IO(0x12, 104)`.
const BLKSSZGET: u64 = 0x1268;

/// Bytes of a block device.
pub(crate) fn device_size(file: &File) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes a u64 through its argument, which lives until the call returns.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64 as _, &raw mut size) })?;
    Ok(size)
}

/// The block size in which a block device must be addressed.
pub(crate) fn device_block_size(file: &File) -> io::Result<u32> {
    let mut size: c_int = 0;
    // SAFETY: BLKSSZGET writes an int through its argument, which lives until the call returns.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET as _, &raw mut size) })?;
    Ok(u32::try_from(size).unwrap_or(512))
}

/// Frees the range; it reads as zeros afterwards. The file keeps its length.
pub(crate) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
}

/// Makes the range read as zeros, and keeps room for it. The file keeps its length.
pub(crate) fn zero_range(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
}

fn fallocate(file: &File, mode: c_int, offset: u64, len: u64) -> io::Result<()> {
    let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    loop {
        // SAFETY: takes an open descriptor and integers.
        match check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// QEMU's convention (block/file-posix.c): a shared lock on byte 100 + n says "I use permission n", one on byte 200 + n
/// "nobody else may". They belong to the open file, so they go with it, whatever kills the process.
const PERM_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;
/// Permissions: 0 consistent read, 1 write, 3 resize.
const READ_PERMS: [i64; 1] = [0];
const WRITE_PERMS: [i64; 3] = [0, 1, 3];
/// Neither a reader nor a writer lets others write or resize.
const UNSHARED: [i64; 2] = [1, 3];

/// Locks an image: any number of readers, or one writer, QEMU's included. `Ok(false)`: somebody else has it.
pub(crate) fn lock_image(file: &File, writing: bool) -> io::Result<bool> {
    let perms: &[i64] = if writing { &WRITE_PERMS } else { &READ_PERMS };
    // First say what we do, then look whether others mind: of two that come at once, at least one sees the other.
    for byte in perms.iter().map(|perm| PERM_BASE + perm).chain(UNSHARED.map(|perm| UNSHARED_BASE + perm)) {
        let mut lock = byte_lock(libc::F_RDLCK, byte);
        // SAFETY: F_OFD_SETLK reads a `flock`, which lives until the call returns.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) })?;
    }
    for byte in perms.iter().map(|perm| UNSHARED_BASE + perm).chain(UNSHARED.map(|perm| PERM_BASE + perm)) {
        if somebody_locks(file, byte)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn somebody_locks(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = byte_lock(libc::F_WRLCK, byte);
    // SAFETY: F_OFD_GETLK reads and writes a `flock`, which lives until the call returns.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

fn byte_lock(kind: c_int, byte: i64) -> libc::flock {
    // SAFETY: `flock` is plain data, for which zeros are a value; OFD locks want `l_pid` to be 0.
    let mut lock: libc::flock = unsafe { zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte;
    lock.l_len = 1;
    lock
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

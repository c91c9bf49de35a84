//! What the 9P server needs from macOS: no `O_PATH`, no `openat2`, extended attributes only by path or descriptor.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::{Errno, Result};

use super::{Attr, FsInfo, Target, darwin};

pub(crate) use darwin::wire_errno;

/// Whether Nix makes `~nix~case~hack~` names on this host.
pub(crate) const NIX_CASE_HACK: bool = true;

/// Flags of open(2) for those of Tlopen that concern the host.
pub(crate) fn open_flags(dotl: u32) -> OFlags {
    OFlags::from_bits_retain(darwin::open_flags(dotl))
}

/// How to open a directory only to reach what is in it. There is no `O_PATH`, so it must be readable.
pub(crate) fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// macOS has no call that opens several components safely: the server goes component by component.
pub(crate) fn open_beneath(_root: BorrowedFd<'_>, _path: &CStr) -> Result<OwnedFd> {
    Err(Errno::NOSYS)
}

/// A descriptor that keeps the entry's file reachable after its name is gone.
pub(crate) fn open_place(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    // O_SYMLINK opens a link itself; FIFOs do not block with O_NONBLOCK.
    let symlink = OFlags::from_bits_retain(libc::O_SYMLINK as u32);
    rustix::fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | symlink,
        Mode::empty(),
    )
}

/// There is no way to open the file behind a descriptor anew with other rights.
pub(crate) fn reopen(file: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
    if flags.intersects(OFlags::WRONLY | OFlags::RDWR) { Err(Errno::NOENT) } else { rustix::io::dup(file) }
}

/// Attributes of a file or directory entry.
pub(crate) fn stat(target: Target<'_>) -> Result<Attr> {
    let stat = host_stat(target)?;
    let (major, minor) = darwin::split_device(stat.st_rdev as u32);
    Ok(Attr {
        dev: u64::from(stat.st_dev as u32),
        ino: stat.st_ino,
        mode: u32::from(stat.st_mode),
        nlink: u64::from(stat.st_nlink),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: super::encode_device(major, minor),
        size: stat.st_size as u64,
        blksize: stat.st_blksize as u64,
        blocks: stat.st_blocks as u64,
        atime: (stat.st_atime as u64, stat.st_atime_nsec as u64),
        mtime: (stat.st_mtime as u64, stat.st_mtime_nsec as u64),
        ctime: (stat.st_ctime as u64, stat.st_ctime_nsec as u64),
    })
}

fn host_stat(target: Target<'_>) -> Result<rustix::fs::Stat> {
    match target {
        Target::Entry(dir, name) => rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW),
        Target::Open(file) => rustix::fs::fstat(file),
    }
}

/// When a file was made.
pub(crate) fn birth_time(target: Target<'_>) -> Option<(u64, u64)> {
    let stat = host_stat(target).ok()?;
    Some((stat.st_birthtime as u64, stat.st_birthtime_nsec as u64))
}

/// What the file system of a file has room for. `statfs`, because the counters of `statvfs` have 32 bits.
pub(crate) fn fs_info(file: BorrowedFd<'_>) -> Result<FsInfo> {
    let stat = rustix::fs::fstatfs(file)?;
    let vfs = rustix::fs::fstatvfs(file)?;
    Ok(FsInfo {
        block_size: stat.f_bsize,
        blocks: stat.f_blocks,
        free: stat.f_bfree,
        available: stat.f_bavail,
        files: stat.f_files,
        files_free: stat.f_ffree,
        id: vfs.f_fsid,
    })
}

/// Sets the permissions of a file, of a symbolic link itself if it is one.
pub(crate) fn chmod(target: Target<'_>, mode: u32) -> Result<()> {
    let mode = Mode::from_raw_mode(mode as u16);
    match target {
        Target::Entry(dir, name) => rustix::fs::chmodat(dir, name, mode, AtFlags::SYMLINK_NOFOLLOW),
        Target::Open(file) => rustix::fs::fchmod(file, mode),
    }
}

/// Makes a FIFO; other types need root and a call that macOS has only by path.
pub(crate) fn make_node(dir: BorrowedFd<'_>, name: &CStr, mode: u32, _device: u64) -> Result<()> {
    match FileType::from_raw_mode(mode as u16) {
        FileType::Fifo => {
            // SAFETY: the name ends in a zero byte and outlives the call, which touches no other memory of ours.
            let result =
                unsafe { libc::mkfifoat(dir.as_raw_fd(), name.as_ptr(), mode as libc::mode_t & 0o7777) };
            if result == 0 { Ok(()) } else { Err(last_error()) }
        }
        FileType::RegularFile => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode as u16 & 0o7777)).map(drop)
        }
        _ => Err(Errno::PERM),
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Makes a hard link. Of a symbolic link none is made: macOS would follow it, out of the share perhaps.
pub(crate) fn link(from: Target<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let Target::Entry(old_dir, old_name) = from else { return Err(Errno::NOENT) };
    if FileType::from_raw_mode(host_stat(from)?.st_mode) == FileType::Symlink {
        return Err(Errno::PERM);
    }
    rustix::fs::linkat(old_dir, old_name, dir, name, AtFlags::empty())
}

/// Writes a file to the drive, though not through the drive's cache: that is F_FULLFSYNC, a hundred times slower.
pub(crate) fn sync(file: BorrowedFd<'_>, _data_only: bool) -> Result<()> {
    rustix::fs::fsync(file)
}

/// Whether a guest may know of an extended attribute.
pub(crate) fn xattr_is_visible(name: &[u8], _trusted: bool) -> bool {
    darwin::xattr_is_visible(name)
}

/// Runs `call` with a descriptor of the target.
fn with_file<T>(target: Target<'_>, call: impl FnOnce(BorrowedFd<'_>) -> Result<T>) -> Result<T> {
    match target {
        Target::Entry(dir, name) => call(open_place(dir, name)?.as_fd()),
        Target::Open(file) => call(file),
    }
}

fn check_xattr_name(name: &CStr) -> Result<()> {
    if name.count_bytes() > darwin::XATTR_NAME_MAX { Err(Errno::RANGE) } else { Ok(()) }
}

/// Reads the value of an extended attribute, ERANGE if it is longer than `value`.
pub(crate) fn get_xattr(target: Target<'_>, name: &CStr, value: &mut [u8]) -> Result<usize> {
    check_xattr_name(name)?;
    with_file(target, |file| rustix::fs::fgetxattr(file, name, value))
}

/// Reads the names of all extended attributes, each ended by a zero byte; ERANGE if they do not fit.
pub(crate) fn list_xattrs(target: Target<'_>, names: &mut [u8]) -> Result<usize> {
    with_file(target, |file| rustix::fs::flistxattr(file, names))
}

/// Sets an extended attribute; `flags` are those of the wire. A file that its owner made read-only needs no detour:
/// attributes are set through a descriptor that was opened for reading.
pub(crate) fn set_xattr(target: Target<'_>, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
    check_xattr_name(name)?;
    let flags = XattrFlags::from_bits_retain(darwin::xattr_flags(flags));
    with_file(target, |file| rustix::fs::fsetxattr(file, name, value, flags))
}

/// Removes an extended attribute.
pub(crate) fn remove_xattr(target: Target<'_>, name: &CStr) -> Result<()> {
    check_xattr_name(name)?;
    with_file(target, |file| rustix::fs::fremovexattr(file, name))
}

/// Whether the file system of an open file answers over a network, or by way of another program: then even a name may take as long
/// as somebody else likes.
pub(crate) fn is_remote(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_flags & libc::MNT_LOCAL as u32 == 0)
}

/// Whether reading never waits for a disk: a file in memory lies on a RAM disk here, which looks like any other.
pub(crate) fn is_in_memory(_file: BorrowedFd<'_>) -> bool {
    false
}

/// There is no read here that does not wait.
///
/// # Safety
/// Nothing is asked of the caller.
pub(crate) unsafe fn preadv_cached(_: BorrowedFd<'_>, _: &[libc::iovec], _: libc::off_t) -> Result<usize> {
    Err(Errno::OPNOTSUPP)
}

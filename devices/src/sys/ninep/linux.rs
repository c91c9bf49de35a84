//! What the 9P server needs from Linux. Extended attributes and modes of directory entries go through `/proc/self/fd`,
//! because Linux before 6.6 and 6.13 has no calls for them that take a directory and a name.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags, XattrFlags};
use rustix::io::{Errno, Result};

use super::{Attr, FsInfo, Target};
use crate::backend::ninep::dotl;

/// Whether Nix makes `~nix~case~hack~` names on this host.
pub(crate) const NIX_CASE_HACK: bool = false;

/// The number that a guest knows a host's error by: the same.
pub(crate) fn wire_errno(raw: i32) -> u32 {
    raw.unsigned_abs()
}

/// Flags of open(2) for those of Tlopen that concern the host: direct access, access times, close-on-exec and terminals
/// are the server's business.
pub(crate) fn open_flags(dotl: u32) -> OFlags {
    const TABLE: [(u32, OFlags); 5] = [
        (dotl::TRUNC, OFlags::TRUNC),
        (dotl::APPEND, OFlags::APPEND),
        (dotl::DSYNC, OFlags::DSYNC),
        (dotl::DIRECTORY, OFlags::DIRECTORY),
        (dotl::SYNC, OFlags::SYNC),
    ];
    let access = OFlags::from_bits_truncate(dotl & dotl::ACCMODE);
    TABLE.iter().filter(|(wire, _)| dotl & wire != 0).fold(access, |flags, (_, host)| flags | *host)
}

/// How to open a directory only to reach what is in it.
pub(crate) fn directory_flags() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Opens the directory at `path`, several components long, beneath `root` and without following any link. ENOSYS where
/// the kernel (before 5.6) or a sandbox does not let us.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, path, directory_flags(), Mode::empty(), resolve) {
        // Containers refuse calls they do not know with EPERM; EAGAIN: something was renamed meanwhile.
        Err(Errno::PERM | Errno::AGAIN | Errno::NOSYS) => Err(Errno::NOSYS),
        other => other,
    }
}

/// Whether the file system of an open file answers over a network, or by way of another program: then even a name may take as long
/// as somebody else likes.
pub(crate) fn is_remote(file: BorrowedFd<'_>) -> bool {
    /// Those of statfs(2): NFS, SMB (three clients), FUSE, 9P, Ceph, AFS (two clients), Coda, NCP, OCFS2, GFS2, Lustre, VirtualBox.
    const REMOTE: [u32; 15] = [
        0x6969,
        0x517b,
        0xfe53_4d42,
        0xff53_4d42,
        0x6573_5546,
        0x0102_1997,
        0x00c3_6400,
        0x5346_414f,
        0x6b41_4653,
        0x7375_7245,
        0x564c,
        0x7461_636f,
        0x0116_1970,
        0x0bd0_0bd0,
        0x786f_4256,
    ];
    file_system(file).is_some_and(|magic| REMOTE.contains(&magic))
}

/// Whether the file system of an open file has nothing but memory behind it, so that reading never waits for a disk. (What of it is
/// swapped out is as slow as guest memory that is swapped out.) Linux' RWF_NOWAIT does not know these.
pub(crate) fn is_in_memory(file: BorrowedFd<'_>) -> bool {
    /// TMPFS_MAGIC and RAMFS_MAGIC (statfs(2)).
    const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];
    file_system(file).is_some_and(|magic| IN_MEMORY.contains(&magic))
}

/// The magic number of a file's file system: 32 bits, whatever the type that an architecture has for it.
fn file_system(file: BorrowedFd<'_>) -> Option<u32> {
    rustix::fs::fstatfs(file).ok().map(|stat| stat.f_type as u32)
}

/// preadv(2) of what is in the page cache alone: AGAIN if nothing is, OPNOTSUPP if the file system cannot tell.
///
/// # Safety
/// As for preadv(2): each range is memory that may be overwritten.
pub(crate) unsafe fn preadv_cached(
    file: BorrowedFd<'_>,
    ranges: &[libc::iovec],
    offset: libc::off_t,
) -> Result<usize> {
    let count = libc::c_int::try_from(ranges.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the caller's promise.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), ranges.as_ptr(), count, offset, libc::RWF_NOWAIT) };
    let failed = || Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
    usize::try_from(read).map_err(|_| failed())
}

/// A descriptor that keeps the entry's file reachable after its name is gone.
pub(crate) fn open_place(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens the file behind a descriptor of [`open_place`] anew.
pub(crate) fn reopen(file: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
    // The last component is a link of procfs and must be followed.
    rustix::fs::openat(
        CWD,
        ProcPath::of(file, None)?.as_c_str(),
        flags.difference(OFlags::NOFOLLOW),
        Mode::empty(),
    )
}

/// Attributes of a file or directory entry.
pub(crate) fn stat(target: Target<'_>) -> Result<Attr> {
    let stat = match target {
        Target::Entry(dir, name) => rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?,
        Target::Open(file) => rustix::fs::fstat(file)?,
    };
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Ok(Attr {
        dev: stat.st_dev,
        ino: stat.st_ino,
        mode: stat.st_mode,
        nlink: widen(stat.st_nlink),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: super::encode_device(major, minor),
        size: stat.st_size as u64,
        blksize: stat.st_blksize as u64,
        blocks: stat.st_blocks as u64,
        atime: (stat.st_atime as u64, stat.st_atime_nsec),
        mtime: (stat.st_mtime as u64, stat.st_mtime_nsec),
        ctime: (stat.st_ctime as u64, stat.st_ctime_nsec),
    })
}

/// `st_nlink` has 32 bits on arm64 and 64 on x86-64.
fn widen(links: impl Into<u64>) -> u64 {
    links.into()
}

/// When a file was made, where the file system knows.
pub(crate) fn birth_time(target: Target<'_>) -> Option<(u64, u64)> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let statx = match target {
        Target::Entry(dir, name) => rustix::fs::statx(dir, name, flags, StatxFlags::BTIME),
        Target::Open(file) => rustix::fs::statx(file, c"", flags | AtFlags::EMPTY_PATH, StatxFlags::BTIME),
    };
    let statx = statx.ok().filter(|s| s.stx_mask & StatxFlags::BTIME.bits() != 0)?;
    Some((statx.stx_btime.tv_sec as u64, u64::from(statx.stx_btime.tv_nsec)))
}

/// What the file system of a file has room for.
pub(crate) fn fs_info(file: BorrowedFd<'_>) -> Result<FsInfo> {
    // fstatfs takes descriptors that only stand for a place, too.
    let stat = rustix::fs::fstatfs(file)?;
    let vfs = rustix::fs::fstatvfs(file)?;
    Ok(FsInfo {
        block_size: u32::try_from(stat.f_bsize).unwrap_or(4096),
        blocks: stat.f_blocks,
        free: stat.f_bfree,
        available: stat.f_bavail,
        files: stat.f_files,
        files_free: stat.f_ffree,
        id: vfs.f_fsid,
    })
}

/// Sets the permissions of a file; those of a symbolic link cannot be set (EOPNOTSUPP).
pub(crate) fn chmod(target: Target<'_>, mode: u32) -> Result<()> {
    match target {
        Target::Entry(dir, name) => match fchmodat2(dir, name, mode) {
            // Before Linux 6.6, and EPERM from sandboxes that do not know the call. The detour says EPERM if it is meant.
            Err(Errno::NOSYS | Errno::PERM) => chmod(Target::Open(open_place(dir, name)?.as_fd()), mode),
            other => other,
        },
        Target::Open(file) => {
            let mode = Mode::from_raw_mode(mode);
            match rustix::fs::fchmod(file, mode) {
                Err(Errno::BADF) if FileType::from_raw_mode(stat(target)?.mode) == FileType::Symlink => {
                    Err(Errno::OPNOTSUPP)
                }
                Err(Errno::BADF) => {
                    rustix::fs::chmodat(CWD, ProcPath::of(file, None)?.as_c_str(), mode, AtFlags::empty())
                }
                other => other,
            }
        }
    }
}

fn fchmodat2(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    /// The same number on every architecture (`asm-generic/unistd.h`).
    const SYS_FCHMODAT2: libc::c_long = 452;
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the call reads the name, which ends in a zero byte and outlives the call, and touches no other memory.
    let result = unsafe { libc::syscall(SYS_FCHMODAT2, dir.as_raw_fd(), name.as_ptr(), mode, flags) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Makes a file of any type that has no contents. `device` is encoded as on the wire.
pub(crate) fn make_node(dir: BorrowedFd<'_>, name: &CStr, mode: u32, device: u64) -> Result<()> {
    let (major, minor) = decode_device(device);
    let kind = FileType::from_raw_mode(mode);
    rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode), rustix::fs::makedev(major, minor))
}

/// The inverse of [`encode_device`](super::encode_device) for what fits it: major and minor.
fn decode_device(device: u64) -> (u32, u32) {
    let major = (device >> 8) & 0xfff;
    let minor = (device & 0xff) | ((device >> 12) & 0xf_ff00);
    (major as u32, minor as u32)
}

/// Makes a hard link, of a symbolic link itself if it is one.
pub(crate) fn link(from: Target<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    match from {
        Target::Entry(old_dir, old_name) => {
            rustix::fs::linkat(old_dir, old_name, dir, name, AtFlags::empty())
        }
        Target::Open(file) => {
            rustix::fs::linkat(CWD, ProcPath::of(file, None)?.as_c_str(), dir, name, AtFlags::SYMLINK_FOLLOW)
        }
    }
}

/// Writes a file's contents, and its attributes unless `data_only`, to the disk.
pub(crate) fn sync(file: BorrowedFd<'_>, data_only: bool) -> Result<()> {
    if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
}

/// Whether a guest may know of an extended attribute: all of them if it is trusted with owners, else those of users.
pub(crate) fn xattr_is_visible(name: &[u8], trusted: bool) -> bool {
    trusted || name.starts_with(b"user.")
}

/// Reads the value of an extended attribute, ERANGE if it is longer than `value`.
pub(crate) fn get_xattr(target: Target<'_>, name: &CStr, value: &mut [u8]) -> Result<usize> {
    match target {
        Target::Entry(dir, entry) => {
            rustix::fs::lgetxattr(ProcPath::of(dir, Some(entry))?.as_c_str(), name, value)
        }
        Target::Open(file) => match rustix::fs::fgetxattr(file, name, &mut *value) {
            Err(Errno::BADF) => rustix::fs::getxattr(ProcPath::of(file, None)?.as_c_str(), name, value),
            other => other,
        },
    }
}

/// Reads the names of all extended attributes, each ended by a zero byte; ERANGE if they do not fit.
pub(crate) fn list_xattrs(target: Target<'_>, names: &mut [u8]) -> Result<usize> {
    match target {
        Target::Entry(dir, entry) => {
            rustix::fs::llistxattr(ProcPath::of(dir, Some(entry))?.as_c_str(), names)
        }
        Target::Open(file) => match rustix::fs::flistxattr(file, &mut *names) {
            Err(Errno::BADF) => rustix::fs::listxattr(ProcPath::of(file, None)?.as_c_str(), names),
            other => other,
        },
    }
}

/// Sets an extended attribute; `flags` are those of the wire.
pub(crate) fn set_xattr(target: Target<'_>, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
    let flags = XattrFlags::from_bits_truncate(flags);
    match target {
        Target::Entry(dir, entry) => {
            rustix::fs::lsetxattr(ProcPath::of(dir, Some(entry))?.as_c_str(), name, value, flags)
        }
        Target::Open(file) => match rustix::fs::fsetxattr(file, name, value, flags) {
            Err(Errno::BADF) => {
                rustix::fs::setxattr(ProcPath::of(file, None)?.as_c_str(), name, value, flags)
            }
            other => other,
        },
    }
}

/// Removes an extended attribute.
pub(crate) fn remove_xattr(target: Target<'_>, name: &CStr) -> Result<()> {
    match target {
        Target::Entry(dir, entry) => {
            rustix::fs::lremovexattr(ProcPath::of(dir, Some(entry))?.as_c_str(), name)
        }
        Target::Open(file) => match rustix::fs::fremovexattr(file, name) {
            Err(Errno::BADF) => rustix::fs::removexattr(ProcPath::of(file, None)?.as_c_str(), name),
            other => other,
        },
    }
}

/// `/proc/self/fd/N` or `/proc/self/fd/N/NAME`, built without allocating.
struct ProcPath {
    bytes: [MaybeUninit<u8>; Self::CAPACITY],
    length: usize,
}

impl ProcPath {
    const CAPACITY: usize = 320;

    fn of(fd: BorrowedFd<'_>, entry: Option<&CStr>) -> Result<Self> {
        let mut path = Self { bytes: [MaybeUninit::uninit(); Self::CAPACITY], length: 0 };
        path.push(b"/proc/self/fd/")?;
        let mut digits = [0_u8; 10];
        let mut number = fd.as_raw_fd().unsigned_abs();
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        path.push(&digits[start..])?;
        if let Some(entry) = entry {
            path.push(b"/")?;
            path.push(entry.to_bytes())?;
        }
        path.push(b"\0")?;
        Ok(path)
    }

    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let room = self.bytes.get_mut(self.length..self.length + bytes.len()).ok_or(Errno::NAMETOOLONG)?;
        room.write_copy_of_slice(bytes);
        self.length += bytes.len();
        Ok(())
    }

    fn as_c_str(&self) -> &CStr {
        // SAFETY: the first `length` bytes were written by `push`, which keeps `length` within the array.
        let bytes = unsafe { self.bytes[..self.length].assume_init_ref() };
        CStr::from_bytes_until_nul(bytes).unwrap_or(c"/proc/self/fd")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_encoding() {
        assert_eq!(decode_device(super::super::encode_device(259, 0x1_2345)), (259, 0x1_2345));
    }

    #[test]
    fn a_descriptor_is_named_by_its_number() -> Result<()> {
        let dir = rustix::fs::openat(CWD, c"/", directory_flags(), Mode::empty())?;
        let expected = format!("/proc/self/fd/{}/name", dir.as_raw_fd());
        assert_eq!(ProcPath::of(dir.as_fd(), Some(c"name"))?.as_c_str().to_bytes(), expected.as_bytes());
        Ok(())
    }
}

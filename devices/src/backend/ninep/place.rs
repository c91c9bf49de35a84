//! Where a file is: a name in an open directory, or a descriptor. What can be done there without following a link.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::casehack::HackIndex;
use super::proto::{NAME_MAX, Outcome, errno, fail, mode};
use crate::sys::ninep::{self as host, Attr, Target};

/// A name of at most 255 bytes with a zero byte after it, as the host's calls want it.
///
/// Holding one that was [set](Name::set) means: no zero byte within, no `/`, not empty. It may be `.`.
#[derive(Clone)]
pub(super) struct Name {
    bytes: [u8; NAME_MAX + 1],
    length: u8,
}

impl Name {
    /// A name yet to be set; `.` until then.
    pub fn new() -> Self {
        let mut bytes = [0; NAME_MAX + 1];
        bytes[0] = b'.';
        Self { bytes, length: 1 }
    }

    /// The name in `bytes`.
    pub fn of(bytes: &[u8]) -> Outcome<Self> {
        let mut name = Self::new();
        name.set(bytes)?;
        Ok(name)
    }

    /// Becomes the name in `bytes`.
    pub fn set(&mut self, bytes: &[u8]) -> Outcome<()> {
        if bytes.len() > NAME_MAX {
            return fail(errno::ENAMETOOLONG);
        }
        if bytes.is_empty() || bytes.contains(&0) || bytes.contains(&b'/') {
            return fail(errno::EINVAL);
        }
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        self.bytes[bytes.len()] = 0;
        self.length = bytes.len() as u8;
        Ok(())
    }

    /// The name without the zero byte.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The name as the host's calls want it.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c".")
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// An open directory within the share, kept to reach what is in it.
#[derive(Debug)]
pub(super) struct DirHandle {
    fd: OwnedFd,
    pub dev: u64,
    pub ino: u64,
    /// Names that the case hack changes in here, once somebody asked.
    pub hacked: Mutex<Option<Arc<HackIndex>>>,
}

impl DirHandle {
    /// Takes a descriptor of a directory.
    pub fn new(fd: OwnedFd) -> Outcome<Self> {
        let attr = host::stat(Target::Open(fd.as_fd()))?;
        Ok(Self { fd, dev: attr.dev, ino: attr.ino, hacked: Mutex::new(None) })
    }

    /// Whether the host has removed the directory in the meantime.
    pub fn is_removed(&self) -> bool {
        host::stat(Target::Open(self.fd.as_fd())).map_or(true, |attr| attr.nlink == 0)
    }

    /// The attributes of an entry.
    pub fn stat(&self, name: &Name) -> Outcome<Attr> {
        Ok(host::stat(Target::Entry(self.fd.as_fd(), name.as_c_str()))?)
    }

    /// The entry as a target of changes.
    pub fn target<'a>(&'a self, name: &'a Name) -> Target<'a> {
        Target::Entry(self.fd.as_fd(), name.as_c_str())
    }
}

impl AsFd for DirHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Where a file is.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "boxing the name would allocate for every request")]
pub(super) enum Place {
    /// At a name in a directory; the root of the share is `.` in itself.
    At(Arc<DirHandle>, Name),
    /// Behind a descriptor that only stands for it, because its name is gone.
    Removed(Arc<OwnedFd>),
}

impl Place {
    /// The file as a target of changes.
    pub fn target(&self) -> Target<'_> {
        match self {
            Self::At(dir, name) => dir.target(name),
            Self::Removed(file) => Target::Open(file.as_fd()),
        }
    }

    /// The host's attributes of it.
    pub fn stat(&self) -> Outcome<Attr> {
        Ok(host::stat(self.target())?)
    }

    /// Opens it, whatever it is, unless it is a symbolic link. Never blocks and never becomes a controlling terminal.
    fn open_any(&self, flags: OFlags) -> Outcome<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match self {
            Self::At(dir, name) => {
                Ok(rustix::fs::openat(dir.as_fd(), name.as_c_str(), flags, Mode::empty())?)
            }
            Self::Removed(file) => Ok(host::reopen(file.as_fd(), flags)?),
        }
    }

    /// Opens a regular file or a directory. FIFOs, sockets and devices are refused with ENXIO, before they are opened as
    /// far as that can be known, and in any case before anything is read from them.
    pub fn open(&self, flags: OFlags) -> Outcome<(OwnedFd, Attr)> {
        check_openable(&self.stat()?)?;
        let file = self.open_any(flags)?;
        let attr = host::stat(Target::Open(file.as_fd()))?;
        check_openable(&attr)?;
        Ok((file, attr))
    }

    /// Reads a symbolic link of the host into `target`, as far as it fits, and returns what was read.
    pub fn read_link<'a>(&self, target: &'a mut [std::mem::MaybeUninit<u8>]) -> Outcome<&'a [u8]> {
        let (read, _) = match self {
            Self::At(dir, name) => rustix::fs::readlinkat_raw(dir.as_fd(), name.as_c_str(), target)?,
            Self::Removed(file) => rustix::fs::readlinkat_raw(file.as_fd(), c"", target)?,
        };
        Ok(read)
    }

    /// Sets the times of access and modification, of a link itself if it is one.
    pub fn set_times(&self, times: &rustix::fs::Timestamps) -> Outcome<()> {
        match self {
            Self::At(dir, name) => {
                Ok(rustix::fs::utimensat(dir.as_fd(), name.as_c_str(), times, AtFlags::SYMLINK_NOFOLLOW)?)
            }
            Self::Removed(file) => {
                let file = host::reopen(file.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC)?;
                Ok(rustix::fs::futimens(file, times)?)
            }
        }
    }

    /// Sets owner and group, of a link itself if it is one.
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Outcome<()> {
        let (uid, gid) = owners(uid, gid);
        match self {
            Self::At(dir, name) => {
                Ok(rustix::fs::chownat(dir.as_fd(), name.as_c_str(), uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
            }
            Self::Removed(file) => match rustix::fs::fchown(file, uid, gid) {
                // A descriptor that only stands for a place cannot be used for this.
                Err(Errno::BADF) => {
                    let file =
                        host::reopen(file.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC)?;
                    Ok(rustix::fs::fchown(file, uid, gid)?)
                }
                other => Ok(other?),
            },
        }
    }
}

/// Reads the entries of a directory, also through a descriptor that only stands for it.
pub(super) fn entries(dir: impl AsFd) -> Outcome<rustix::fs::Dir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::Dir::new(rustix::fs::openat(dir, c".", flags, Mode::empty())?)?)
}

/// Owner and group for the host's calls; all ones means "leave it".
pub(super) fn owners(
    uid: Option<u32>,
    gid: Option<u32>,
) -> (Option<rustix::fs::Uid>, Option<rustix::fs::Gid>) {
    (
        uid.filter(|uid| *uid != !0).map(rustix::fs::Uid::from_raw),
        gid.filter(|gid| *gid != !0).map(rustix::fs::Gid::from_raw),
    )
}

/// Only regular files and directories are ever opened.
fn check_openable(attr: &Attr) -> Outcome<()> {
    match attr.mode & mode::FORMAT {
        mode::REGULAR | mode::DIRECTORY => Ok(()),
        mode::SYMLINK => fail(errno::ELOOP),
        _ => fail(errno::ENXIO),
    }
}

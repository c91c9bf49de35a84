//! A shared directory: its root, its tree of names, and the way from a node to a descriptor.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::config::{CaseHack, Resolution, SecurityModel, ShareConfig, ShareError};
use super::mapped;
use super::place::{DirHandle, Name, Place};
use super::proto::{Outcome, WireError, errno, fail, mode};
use super::tree::{Located, NodeId, Tree, Whereabouts};
use crate::sys::ninep::{self as host, Attr, Target};
use crate::util::lock;

/// A directory of the host that is served to any number of [`Session`](super::Session)s, which see each other's changes at
/// once. Holds one descriptor for its root and some for directories that are in use.
#[derive(Debug)]
pub struct Share {
    pub(super) config: ShareConfig,
    pub(super) root: Arc<DirHandle>,
    pub(super) squash: bool,
    pub(super) case_hack: bool,
    /// Whether names and attributes, too, may take long. Known of the root's file system, which is all of the share but for what is
    /// mounted below it.
    pub(super) remote: bool,
    /// Whether what is on the root's device is in memory.
    in_memory: bool,
    /// Whether this process is root, for whom the kernel does not clear set-user-id bits.
    pub(super) is_root: bool,
    /// Other devices than the root's that were seen.
    pub(super) devices: Mutex<Vec<u64>>,
    tree: Mutex<Tree>,
    /// Held for writing while names change in the tree and on the host, for reading while a name is used.
    names: RwLock<()>,
}

impl Share {
    /// Opens the directory, and raises the limit of open files of this process as far as it goes.
    ///
    /// # Errors
    ///
    /// A [`ShareError`] that says what is wrong with the directory and what would work.
    pub fn open(config: &ShareConfig) -> Result<Arc<Self>, ShareError> {
        let (path, tag) = (config.path.clone(), config.tag.clone());
        if tag.is_empty() || tag.len() > ShareConfig::MAX_TAG {
            return Err(ShareError::Tag { path, tag });
        }
        let Ok(c_path) = CString::new(config.path.as_os_str().as_bytes()) else {
            return Err(ShareError::ZeroByte { path, tag });
        };
        // The share's own path may well be a symbolic link: it is the user's, not the guest's.
        let flags = host::directory_flags().difference(OFlags::NOFOLLOW);
        let opened = rustix::fs::open(&c_path, flags, Mode::empty())
            // Enough to be entered is not enough to be listed: say so now.
            .and_then(|fd| {
                rustix::fs::openat(
                    &fd,
                    c".",
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .map(|_| fd)
            });
        let fd = match opened {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Err(ShareError::NotFound { path, tag }),
            Err(Errno::NOTDIR) => return Err(ShareError::NotADirectory { path, tag }),
            Err(Errno::ACCESS | Errno::PERM) => return Err(ShareError::PermissionDenied { path, tag }),
            Err(error) => return Err(ShareError::Open { path, tag, source: error.into() }),
        };
        let root = DirHandle::new(fd).map_err(|error| ShareError::Open {
            path: path.clone(),
            tag: tag.clone(),
            source: io::Error::from_raw_os_error(error.0.cast_signed()),
        })?;
        if config.security == SecurityModel::MappedXattr && !keeps_xattrs(&root) {
            return Err(ShareError::NoXattrs { path });
        }
        crate::sys::raise_descriptor_limit();
        let root = Arc::new(root);
        Ok(Arc::new(Self {
            squash: config.squashes_to_root(),
            case_hack: match config.case_hack {
                CaseHack::Auto => host::NIX_CASE_HACK,
                CaseHack::On => true,
                CaseHack::Off => false,
            },
            remote: host::is_remote(root.as_fd()),
            in_memory: host::is_in_memory(root.as_fd()),
            is_root: rustix::process::geteuid().is_root(),
            devices: Mutex::new(Vec::new()),
            tree: Mutex::new(Tree::new(root.clone(), config.limits.nodes, config.limits.directories)),
            names: RwLock::new(()),
            root,
            config: config.clone(),
        }))
    }

    /// What was shared and how.
    pub fn config(&self) -> &ShareConfig {
        &self.config
    }

    /// The tree of names. Never held while the host is called.
    pub(super) fn tree(&self) -> std::sync::MutexGuard<'_, Tree> {
        lock(&self.tree)
    }

    /// Lets go of a reference to a node. What that closes is closed when the tree is free again: the host may have a whole file to
    /// free.
    pub(super) fn release(&self, node: NodeId) {
        let gone = self.tree().release(node);
        drop(gone);
    }

    /// Whether reading a file never waits for a disk.
    pub(super) fn is_in_memory(&self, attr: &Attr) -> bool {
        self.in_memory && attr.dev == self.root.dev
    }

    /// Names do not change while this is held. Not to be taken twice by one thread.
    pub(super) fn names(&self) -> RwLockReadGuard<'_, ()> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, if nobody is changing names.
    pub(super) fn try_names(&self) -> Option<RwLockReadGuard<'_, ()>> {
        match self.names.try_read() {
            Ok(names) => Some(names),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// This thread alone changes or uses names while this is held.
    pub(super) fn change_names(&self) -> RwLockWriteGuard<'_, ()> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// EROFS if nothing may be changed in here.
    pub(super) fn check_writable(&self) -> Outcome<()> {
        if self.config.readonly { fail(errno::EROFS) } else { Ok(()) }
    }

    /// The directory that a node is, to reach what is in it.
    pub(super) fn directory(&self, node: NodeId) -> Outcome<Arc<DirHandle>> {
        let located = self.tree().locate(node)?;
        match located {
            Located::Open(directory) => Ok(directory),
            Located::Below(from, path) => {
                let directory = Arc::new(DirHandle::new(self.open_path(&from, &path)?)?);
                self.tree().keep(node, &directory);
                Ok(directory)
            }
        }
    }

    /// Opens a directory below another by a path of the tree's names, following nothing.
    fn open_path(&self, from: &DirHandle, path: &[u8]) -> Outcome<OwnedFd> {
        /// The host takes paths of less than 4096 bytes with the zero byte (`PATH_MAX` of Linux; macOS is not asked).
        const PATH_MAX: usize = 4095;
        if self.config.resolution == Resolution::Auto && path.contains(&b'/') {
            let mut current: Option<OwnedFd> = None;
            let mut rest = path;
            loop {
                let (head, tail) = split_path(rest, PATH_MAX);
                let head = CString::new(head).map_err(|_| WireError(errno::EINVAL))?;
                let start = current.as_ref().map_or(from.as_fd(), |fd| fd.as_fd());
                match host::open_beneath(start, &head) {
                    Ok(opened) if tail.is_empty() => return Ok(opened),
                    Ok(opened) => current = Some(opened),
                    Err(Errno::NOSYS) => break,
                    Err(error) => return Err(error.into()),
                }
                rest = tail;
            }
        }
        let mut current: Option<OwnedFd> = None;
        for component in path.split(|byte| *byte == b'/') {
            let name = Name::of(component)?;
            let start = current.as_ref().map_or(from.as_fd(), |fd| fd.as_fd());
            current =
                Some(rustix::fs::openat(start, name.as_c_str(), host::directory_flags(), Mode::empty())?);
        }
        current.ok_or(WireError(errno::ENOENT))
    }

    /// Where the file of a node is now.
    pub(super) fn place(&self, node: NodeId) -> Outcome<Place> {
        let mut name = Name::new();
        let whereabouts = self.tree().whereabouts(node, &mut name)?;
        match whereabouts {
            Whereabouts::Removed(file) => Ok(Place::Removed(file)),
            Whereabouts::In(parent) => Ok(Place::At(self.directory(parent)?, name)),
        }
    }

    /// Does something where a node is. If it is not found there because the host has meanwhile removed or replaced a
    /// directory whose descriptor was kept, looks for it once more from the root.
    pub(super) fn at<T>(&self, node: NodeId, act: impl Fn(&Place) -> Outcome<T>) -> Outcome<T> {
        let place = self.place(node);
        let outcome = match &place {
            Ok(place) => act(place),
            Err(error) => Err(*error),
        };
        match (&outcome, &place) {
            (Err(WireError(errno::ENOENT)), Ok(Place::At(dir, _))) if self.is_stale(dir) => {
                self.tree().forget_chain(node);
                act(&self.place(node)?)
            }
            _ => outcome,
        }
    }

    /// Does something in the directory that a node is, as [`at`](Self::at) does.
    pub(super) fn inside<T>(&self, node: NodeId, act: impl Fn(&Arc<DirHandle>) -> Outcome<T>) -> Outcome<T> {
        let dir = self.directory(node)?;
        match act(&dir) {
            Err(WireError(errno::ENOENT)) if self.is_stale(&dir) => {
                self.tree().forget_chain(node);
                act(&self.directory(node)?)
            }
            outcome => outcome,
        }
    }

    fn is_stale(&self, dir: &DirHandle) -> bool {
        (dir.dev, dir.ino) != (self.root.dev, self.root.ino) && dir.is_removed()
    }
}

/// Cuts a path after as many whole components as fit.
fn split_path(path: &[u8], max: usize) -> (&[u8], &[u8]) {
    if path.len() <= max {
        return (path, &[]);
    }
    match path[..=max].iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (path, &[]),
    }
}

/// Whether the file system of a directory keeps extended attributes of users: asking for one that is not there says so.
fn keeps_xattrs(dir: &DirHandle) -> bool {
    let dot = Name::new();
    match host::get_xattr(Target::Entry(dir.as_fd(), dot.as_c_str()), c"user.virtfs.mode", &mut [0; 8]) {
        Ok(_) => true,
        Err(error) => WireError::from(error).0 != errno::EOPNOTSUPP,
    }
}

/// What a file is to be made as.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewFile {
    /// Type and permissions.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// As on the wire.
    pub rdev: u64,
}

impl NewFile {
    /// Permissions to make it with on the host.
    pub fn host_permissions(&self, security: SecurityModel) -> u32 {
        match (security.is_mapped(), self.mode & mode::FORMAT) {
            (true, mode::DIRECTORY) => mapped::DIRECTORY_MODE,
            (true, _) => mapped::FILE_MODE,
            (false, _) => self.mode & mode::PERMISSIONS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_are_cut_between_components() {
        assert_eq!(split_path(b"aaa/bbb/ccc", 8), (&b"aaa/bbb"[..], &b"ccc"[..]));
    }

    #[test]
    fn a_path_that_fits_is_not_cut() {
        assert_eq!(split_path(b"aaa/bbb", 7), (&b"aaa/bbb"[..], &b""[..]));
    }
}

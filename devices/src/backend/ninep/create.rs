//! Making, linking, renaming and removing entries of a directory, by security model.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::config::SecurityModel;
use super::mapped::{self, Credentials};
use super::place::{DirHandle, Name, Place, owners};
use super::proto::{NO_UID, Outcome, WireError, errno, fail, mode};
use super::share::{NewFile, Share};
use super::tree::NodeId;
use crate::sys::ninep::{self as host, Attr, Target};

/// Permissions as the host's calls take them; the type of the number differs between hosts.
fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate((mode & mode::PERMISSIONS) as rustix::fs::RawMode)
}

/// What has just lost its name, to be closed when others may use names again: the host may have a large file to free then.
pub(super) type Gone = Option<Arc<OwnedFd>>;

/// What the host frees of a file in passing, in bytes: some ten microseconds of work.
const LARGE: u64 = 4 << 20;

/// Whether freeing a file may take the host long.
pub(super) fn is_large(attr: &Attr) -> bool {
    attr.mode & mode::FORMAT == mode::REGULAR && attr.blocks.saturating_mul(512) > LARGE
}

impl Share {
    /// Refuses names that the guest cannot have.
    fn new_name(&self, dir: &DirHandle, name: &[u8]) -> Outcome<Name> {
        match self.real_name(dir, name) {
            Err(WireError(errno::ENOENT)) => fail(errno::EINVAL),
            other => other,
        }
    }

    /// Opens a regular file in a directory for Tlcreate, made if it is not there. Without `exclusive` one that is there is
    /// opened as it is.
    pub(super) fn create_file(
        &self,
        dir: &Arc<DirHandle>,
        name: &[u8],
        flags: OFlags,
        exclusive: bool,
        new: NewFile,
    ) -> Outcome<(OwnedFd, Attr, Name)> {
        let name = self.new_name(dir, name)?;
        let safe = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let make = flags | safe | OFlags::CREATE | OFlags::EXCL;
        let mode = permissions(new.host_permissions(self.config.security));
        match rustix::fs::openat(dir.as_fd(), name.as_c_str(), make, mode) {
            Ok(file) => {
                if let Err(error) = self.dress(dir, &name, Target::Open(file.as_fd()), new) {
                    rustix::fs::unlinkat(dir.as_fd(), name.as_c_str(), AtFlags::empty()).ok();
                    return Err(error);
                }
                let attr = host::stat(Target::Open(file.as_fd()))?;
                Ok((file, attr, name))
            }
            Err(Errno::EXIST) if !exclusive => {
                let place = Place::At(dir.clone(), name.clone());
                let (file, attr) = place.open(flags)?;
                if attr.mode & mode::FORMAT == mode::DIRECTORY {
                    return fail(errno::EISDIR);
                }
                Ok((file, attr, name))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a directory.
    pub(super) fn make_directory(&self, dir: &Arc<DirHandle>, name: &[u8], new: NewFile) -> Outcome<Attr> {
        let name = self.new_name(dir, name)?;
        let mode = permissions(new.host_permissions(self.config.security));
        rustix::fs::mkdirat(dir.as_fd(), name.as_c_str(), mode)?;
        self.dress_or_remove(dir, name, new, AtFlags::REMOVEDIR)
    }

    /// Makes a symbolic link; in a mapped share a file that says so.
    pub(super) fn make_symlink(
        &self,
        dir: &Arc<DirHandle>,
        name: &[u8],
        target: &[u8],
        new: NewFile,
    ) -> Outcome<Attr> {
        let name = self.new_name(dir, name)?;
        if self.config.security.is_mapped() {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file =
                rustix::fs::openat(dir.as_fd(), name.as_c_str(), flags, permissions(mapped::FILE_MODE))?;
            let written = rustix::io::write(&file, target).map_err(WireError::from);
            if written != Ok(target.len()) {
                rustix::fs::unlinkat(dir.as_fd(), name.as_c_str(), AtFlags::empty()).ok();
                written?;
                return fail(errno::ENOSPC);
            }
        } else {
            rustix::fs::symlinkat(target, dir.as_fd(), name.as_c_str())?;
        }
        self.dress_or_remove(dir, name, new, AtFlags::empty())
    }

    /// Makes a FIFO, socket, device or empty file.
    pub(super) fn make_node(&self, dir: &Arc<DirHandle>, name: &[u8], new: NewFile) -> Outcome<Attr> {
        let name = self.new_name(dir, name)?;
        let format = match new.mode & mode::FORMAT {
            0 | mode::REGULAR => mode::REGULAR,
            other @ (mode::FIFO | mode::SOCKET | mode::CHARACTER | mode::BLOCK) => other,
            _ => return fail(errno::EINVAL),
        };
        let is_device = matches!(format, mode::CHARACTER | mode::BLOCK);
        // A guest of a share `none` is not to leave devices behind on the host. 0:0 is none, it is overlayfs' whiteout.
        if is_device && self.config.security == SecurityModel::None && new.rdev != 0 {
            return fail(errno::EPERM);
        }
        let new = NewFile { mode: format | (new.mode & mode::PERMISSIONS), ..new };
        let host_format = if self.config.security.is_mapped() { mode::REGULAR } else { format };
        let host_mode = host_format | new.host_permissions(self.config.security);
        host::make_node(dir.as_fd(), name.as_c_str(), host_mode, new.rdev)?;
        self.dress_or_remove(dir, name, new, AtFlags::empty())
    }

    fn dress_or_remove(
        &self,
        dir: &Arc<DirHandle>,
        name: Name,
        new: NewFile,
        removal: AtFlags,
    ) -> Outcome<Attr> {
        let place = Place::At(dir.clone(), name);
        let Place::At(dir, name) = &place else { return fail(errno::EIO) };
        let dressed = self.dress(dir, name, dir.target(name), new);
        dressed.and_then(|()| self.attr(&place)).inspect_err(|_| {
            rustix::fs::unlinkat(dir.as_fd(), name.as_c_str(), removal).ok();
        })
    }

    /// Gives a file that was just made its owner and permissions.
    fn dress(&self, dir: &DirHandle, name: &Name, target: Target<'_>, new: NewFile) -> Outcome<()> {
        let (uid, gid) =
            (Some(new.uid).filter(|uid| *uid != NO_UID), Some(new.gid).filter(|gid| *gid != NO_UID));
        let rdev = matches!(new.mode & mode::FORMAT, mode::CHARACTER | mode::BLOCK).then_some(new.rdev);
        let kept = Credentials { uid, gid, mode: Some(new.mode), rdev };
        match self.config.security {
            SecurityModel::MappedXattr => return mapped::write_xattrs(target, &kept),
            SecurityModel::MappedFile => return mapped::write_file(dir, name, &kept),
            SecurityModel::Passthrough => chown_entry(dir, name, uid, gid)?,
            SecurityModel::None if self.squash => {}
            // As far as the host lets us.
            SecurityModel::None => chown_entry(dir, name, uid, gid).or(Ok::<_, WireError>(()))?,
        }
        if new.mode & mode::FORMAT == mode::SYMLINK {
            return Ok(());
        }
        // The umask of this process is not the guest's business, and a change of owner clears bits.
        let wanted = new.mode & mode::PERMISSIONS;
        if host::stat(target)?.mode & mode::PERMISSIONS != wanted {
            host::chmod(target, wanted)?;
        }
        Ok(())
    }

    /// Makes another name of a file.
    pub(super) fn make_link(&self, from: &Place, dir: &Arc<DirHandle>, name: &[u8]) -> Outcome<()> {
        let name = self.new_name(dir, name)?;
        host::link(from.target(), dir.as_fd(), name.as_c_str())?;
        match (self.config.security, from) {
            (SecurityModel::MappedFile, Place::At(old_dir, old_name)) => {
                mapped::carry_file((old_dir, old_name), (dir, &name), true)
            }
            _ => Ok(()),
        }
    }

    /// Removes an entry. Fids on it keep a descriptor. The caller holds [`change_names`](Self::change_names).
    pub(super) fn remove_entry(&self, parent: NodeId, name: &[u8], directory: bool) -> Outcome<Gone> {
        let dir = self.directory(parent)?;
        let name = self.real_name(&dir, name)?;
        let kept = self.hold(parent, &dir, &name);
        let mapped_file = self.config.security == SecurityModel::MappedFile;
        if mapped_file && directory {
            mapped::prepare_rmdir(&dir, &name)?;
        }
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match rustix::fs::unlinkat(dir.as_fd(), name.as_c_str(), flags) {
            // What macOS says of a directory.
            Err(Errno::PERM) if !directory && is_directory(&dir, &name) => return fail(errno::EISDIR),
            Err(Errno::EXIST) if directory => return fail(errno::ENOTEMPTY),
            other => other?,
        }
        self.tree().remove(parent, name.as_bytes(), kept.clone());
        if mapped_file {
            mapped::remove_file(&dir, &name)?;
        }
        Ok(kept)
    }

    /// A descriptor of an entry that is about to lose its name, if any fid is on it or it is large.
    fn hold(&self, parent: NodeId, dir: &DirHandle, name: &Name) -> Gone {
        let is_used = self.tree().find(parent, name.as_bytes()).is_some();
        if !is_used && !dir.stat(name).is_ok_and(|attr| is_large(&attr)) {
            return None;
        }
        host::open_place(dir.as_fd(), name.as_c_str()).ok().map(Arc::new)
    }

    /// Renames an entry, also into another directory, over what is there. The caller holds
    /// [`change_names`](Self::change_names).
    pub(super) fn rename_entry(&self, from: (NodeId, &[u8]), to: (NodeId, &[u8])) -> Outcome<Gone> {
        let (old_dir, new_dir) = (self.directory(from.0)?, self.directory(to.0)?);
        let old_name = self.real_name(&old_dir, from.1)?;
        let new_name = self.new_name(&new_dir, to.1)?;
        let replaced = self.hold(to.0, &new_dir, &new_name);
        let mapped_file = self.config.security == SecurityModel::MappedFile;
        if mapped_file && is_directory(&new_dir, &new_name) && is_directory(&old_dir, &old_name) {
            mapped::prepare_rmdir(&new_dir, &new_name)?;
        }
        if self.is_same_file(&old_dir, &old_name, &new_dir, &new_name) {
            // Two names of one file: POSIX says to do nothing, and so does the host, so the tree must not change either.
            return Ok(None);
        }
        match rustix::fs::renameat(old_dir.as_fd(), old_name.as_c_str(), new_dir.as_fd(), new_name.as_c_str())
        {
            Err(Errno::EXIST) => return fail(errno::ENOTEMPTY),
            other => other?,
        }
        let renamed = (from.0, old_name.as_bytes());
        self.tree().rename(renamed, (to.0, new_name.as_bytes()), replaced.clone())?;
        if mapped_file {
            mapped::carry_file((&old_dir, &old_name), (&new_dir, &new_name), false)?;
        }
        Ok(replaced)
    }

    /// Whether two different names are hard links of one file.
    fn is_same_file(
        &self,
        old_dir: &DirHandle,
        old_name: &Name,
        new_dir: &DirHandle,
        new_name: &Name,
    ) -> bool {
        let same_directory = (old_dir.dev, old_dir.ino) == (new_dir.dev, new_dir.ino);
        // A host that ignores case is asked to change it.
        if same_directory && old_name.as_bytes().eq_ignore_ascii_case(new_name.as_bytes()) {
            return old_name.as_bytes() == new_name.as_bytes() && old_dir.stat(old_name).is_ok();
        }
        match (old_dir.stat(old_name), new_dir.stat(new_name)) {
            (Ok(old), Ok(new)) => (old.dev, old.ino) == (new.dev, new.ino) && old.nlink > 1,
            _ => false,
        }
    }
}

fn is_directory(dir: &DirHandle, name: &Name) -> bool {
    dir.stat(name).is_ok_and(|attr| attr.mode & mode::FORMAT == mode::DIRECTORY)
}

fn chown_entry(dir: &DirHandle, name: &Name, uid: Option<u32>, gid: Option<u32>) -> Outcome<()> {
    let (uid, gid) = owners(uid, gid);
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    Ok(rustix::fs::chownat(dir.as_fd(), name.as_c_str(), uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
}

//! What a guest sees of a file's attributes, and how it may change them, by security model.

use std::os::fd::AsFd;

use rustix::fs::{OFlags, Timestamps};

use super::config::{Multidevs, SecurityModel};
use super::fid::OpenFile;
use super::mapped::{self, Credentials};
use super::place::{Place, owners};
use super::proto::{Outcome, Qid, WireError, errno, fail, mode, qt};
use super::share::Share;
use crate::sys::ninep::{self as host, Attr, Target};
use crate::util::lock;

impl Share {
    /// The attributes of a file as the guest sees them.
    pub(super) fn attr(&self, place: &Place) -> Outcome<Attr> {
        let mut attr = place.stat()?;
        let kept = match (self.config.security, place) {
            (SecurityModel::MappedXattr, _) if mapped::may_be_mapped(&attr) => {
                mapped::read_xattrs(place.target())?
            }
            (SecurityModel::MappedFile, Place::At(dir, name)) => mapped::read_file(dir, name)?,
            _ => Credentials::default(),
        };
        kept.apply(&mut attr);
        self.finish_attr(&mut attr)?;
        Ok(attr)
    }

    /// The attributes of an opened file. `place` is where it was opened; its name may be gone.
    pub(super) fn attr_of_open(
        &self,
        file: &OpenFile,
        place: impl FnOnce() -> Outcome<Place>,
    ) -> Outcome<Attr> {
        let target = Target::Open(file.fd.as_fd());
        let mut attr = host::stat(target)?;
        let kept = match self.config.security {
            SecurityModel::MappedXattr => mapped::read_xattrs(target)?,
            SecurityModel::MappedFile => match place() {
                Ok(Place::At(dir, name)) => mapped::read_file(&dir, &name)?,
                _ => Credentials::default(),
            },
            SecurityModel::None | SecurityModel::Passthrough => Credentials::default(),
        };
        kept.apply(&mut attr);
        self.finish_attr(&mut attr)?;
        Ok(attr)
    }

    fn finish_attr(&self, attr: &mut Attr) -> Outcome<()> {
        if self.squash {
            attr.uid = 0;
            attr.gid = 0;
        }
        self.check_device(attr.dev)
    }

    /// What clients know this file by.
    pub(super) fn qid(&self, attr: &Attr) -> Qid {
        let kind = match attr.mode & mode::FORMAT {
            mode::DIRECTORY => qt::DIR,
            mode::SYMLINK => qt::SYMLINK,
            _ => qt::FILE,
        };
        // Changes whenever the contents do. 0 would tell Linux not to cache the file.
        let (seconds, nanoseconds) = attr.mtime;
        let mixed = seconds.wrapping_mul(1_000_000_007) ^ nanoseconds ^ attr.size.rotate_left(32);
        let version = (mixed ^ (mixed >> 32)) as u32;
        Qid { kind, version: version.max(1), path: self.qid_path(attr.dev, attr.ino) }
    }

    /// Makes one number of device and inode. Files of the root's own file system keep their inode number.
    pub(super) fn qid_path(&self, dev: u64, ino: u64) -> u64 {
        if dev == self.root.dev {
            return ino;
        }
        let mut devices = lock(&self.devices);
        let position = devices.iter().position(|known| *known == dev).unwrap_or_else(|| {
            if devices.is_empty() && self.config.multidevs == Multidevs::Warn {
                log::warn!(
                    "9p: share '{}' holds other file systems; their files get inode numbers of our own",
                    self.config.tag
                );
            }
            devices.push(dev);
            devices.len() - 1
        });
        mix_device(position as u64 + 1, ino)
    }

    fn check_device(&self, dev: u64) -> Outcome<()> {
        if self.config.multidevs == Multidevs::Forbid && dev != self.root.dev {
            fail(errno::ENODEV)
        } else {
            Ok(())
        }
    }

    /// Sets permissions. `file` is the descriptor of an opened file, which still works when its name is gone.
    pub(super) fn chmod(
        &self,
        place: Outcome<Place>,
        file: Option<&OpenFile>,
        permissions: u32,
    ) -> Outcome<()> {
        let permissions = permissions & mode::PERMISSIONS;
        if self.config.security.is_mapped() {
            let current = match file {
                Some(file) => self.attr_of_open(file, || place.clone())?,
                None => self.attr(place.as_ref().map_err(|e| *e)?)?,
            };
            let mode = (current.mode & mode::FORMAT) | permissions;
            return self.keep(place, file, &Credentials { mode: Some(mode), ..Credentials::default() });
        }
        let changed = match file {
            Some(file) => host::chmod(Target::Open(file.fd.as_fd()), permissions),
            None => host::chmod(place?.target(), permissions),
        };
        match changed.map_err(WireError::from) {
            // The guest believes itself root and the file its own: see ShareConfig::squash_to_root.
            Err(WireError(errno::EPERM)) if self.squash => Ok(()),
            other => other,
        }
    }

    /// Sets owner and group.
    pub(super) fn chown(
        &self,
        place: Outcome<Place>,
        file: Option<&OpenFile>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Outcome<()> {
        if self.config.security.is_mapped() {
            let nothing = uid.is_none() && gid.is_none();
            return if nothing {
                Ok(())
            } else {
                self.keep(place, file, &Credentials { uid, gid, ..Credentials::default() })
            };
        }
        if self.squash {
            // It shows as root's whatever the host says; do not make it another user's behind the guest's back.
            return place.map(drop);
        }
        let changed = match file {
            Some(file) => {
                let (uid, gid) = owners(uid, gid);
                rustix::fs::fchown(&file.fd, uid, gid).map_err(WireError::from)
            }
            None => place?.chown(uid, gid),
        };
        match changed {
            Err(WireError(errno::EPERM)) if self.config.security == SecurityModel::None => Ok(()),
            other => other,
        }
    }

    /// Keeps attributes beside the file, as the mapped security models do.
    fn keep(&self, place: Outcome<Place>, file: Option<&OpenFile>, kept: &Credentials) -> Outcome<()> {
        match (self.config.security, file, place) {
            (SecurityModel::MappedXattr, Some(file), _) => {
                mapped::write_xattrs(Target::Open(file.fd.as_fd()), kept)
            }
            (SecurityModel::MappedXattr, None, place) => mapped::write_xattrs(place?.target(), kept),
            (_, _, Ok(Place::At(dir, name))) => mapped::write_file(&dir, &name, kept),
            (_, None, Err(error)) => Err(error),
            // Its name is gone, and with it the file that kept its attributes: nobody can see them any more.
            _ => Ok(()),
        }
    }

    /// Sets the length.
    pub(super) fn truncate(&self, place: Outcome<Place>, file: Option<&OpenFile>, size: u64) -> Outcome<()> {
        if let Some(file) = file {
            match rustix::fs::ftruncate(&file.fd, size) {
                // Opened for reading only: Linux asks whether the file may be written, not the fid.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::BADF) => {}
                other => {
                    other?;
                    return self.clear_suid(&file.fd, file.clears_suid);
                }
            }
        }
        let (opened, attr) = place?.open(OFlags::WRONLY)?;
        if attr.mode & mode::FORMAT != mode::REGULAR {
            return fail(errno::EISDIR);
        }
        rustix::fs::ftruncate(&opened, size)?;
        self.clear_suid(&opened, self.clears_suid())
    }

    /// Sets the times of access and modification.
    pub(super) fn set_times(
        &self,
        place: Outcome<Place>,
        file: Option<&OpenFile>,
        times: &Timestamps,
    ) -> Outcome<()> {
        match file {
            Some(file) => Ok(rustix::fs::futimens(&file.fd, times)?),
            None => place?.set_times(times),
        }
    }

    /// Whether set-user-id bits must be cleared here because the host does not do it: it spares root, and it does not see
    /// the bits that are kept beside a file.
    pub(super) fn clears_suid(&self) -> bool {
        self.is_root || self.config.security == SecurityModel::MappedXattr
    }

    /// Takes set-user-id and set-group-id from a file that is written, as the kernel does for whoever is not root
    /// (CVE-2023-1386 is about a server that does not).
    pub(super) fn clear_suid(&self, file: &impl AsFd, needed: bool) -> Outcome<()> {
        if !needed {
            return Ok(());
        }
        let target = Target::Open(file.as_fd());
        let mut attr = host::stat(target)?;
        if let Some(left) = without_suid(attr.mode) {
            host::chmod(target, left & mode::PERMISSIONS)?;
        }
        if self.config.security == SecurityModel::MappedXattr {
            mapped::read_xattrs(target)?.apply(&mut attr);
            if let Some(left) = without_suid(attr.mode) {
                mapped::write_xattrs(target, &Credentials { mode: Some(left), ..Credentials::default() })?;
            }
        }
        Ok(())
    }
}

/// The mode without the bits that a write takes away; `None` if it has none of them. Set-group-id without the group's
/// execute bit means something else (mandatory locking) and stays.
fn without_suid(mode: u32) -> Option<u32> {
    let mut bits = mode & mode::SETUID;
    if mode & mode::GROUP_EXECUTE != 0 {
        bits |= mode & mode::SETGID;
    }
    (bits != 0).then_some(mode & !bits)
}

/// Makes an inode number for a file on the share's `device`th other file system.
fn mix_device(device: u64, ino: u64) -> u64 {
    /// File systems rarely use more than 48 bits of inode numbers, so the device goes above them.
    const INODE_BITS: u32 = 48;
    if ino >> INODE_BITS == 0 && device >> (64 - INODE_BITS) == 0 {
        return (device << INODE_BITS) | ino;
    }
    // Too large to put side by side: mix both, as 64-bit hashes do (splitmix64).
    let mut mixed = ino ^ device.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_takes_suid_and_sgid_away() {
        assert_eq!(without_suid(0o106_755), Some(0o100_755));
    }

    #[test]
    fn sgid_without_group_execute_stays() {
        assert_eq!(without_suid(0o102_644), None);
    }

    #[test]
    fn the_same_inode_on_two_devices_has_two_numbers() {
        assert_ne!(mix_device(1, 42), mix_device(2, 42));
    }

    #[test]
    fn a_huge_inode_number_is_still_mixed_with_its_device() {
        assert_ne!(mix_device(1, u64::MAX - 1), mix_device(2, u64::MAX - 1));
    }
}

//! Attributes that are kept beside a file: in extended attributes (`mapped-xattr`) or in files below `.virtfs_metadata`
//! (`mapped-file`). The formats are those of QEMU's `local` file system driver, so that either can read the other's.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::place::{DirHandle, Name, entries};
use super::proto::{Outcome, WireError, errno, fail, mode};
use crate::sys::ninep::{self as host, Attr, Target};

/// Extended attributes of this prefix belong to the server.
pub(super) const XATTR_PREFIX: &[u8] = b"user.virtfs.";
const XATTR_UID: &CStr = c"user.virtfs.uid";
const XATTR_GID: &CStr = c"user.virtfs.gid";
const XATTR_MODE: &CStr = c"user.virtfs.mode";
const XATTR_RDEV: &CStr = c"user.virtfs.rdev";

/// The directory, in each directory, with a file for each entry.
const METADATA: &CStr = c".virtfs_metadata";
/// The file for the root of the share, which is in no directory of the share.
const METADATA_ROOT: &CStr = c".virtfs_metadata_root";
/// More than four lines of numbers.
const METADATA_MAX: usize = 512;

/// Permissions on the host of whatever is kept in a mapped share: only this user needs any.
pub(super) const FILE_MODE: u32 = 0o600;
/// The same for directories.
pub(super) const DIRECTORY_MODE: u32 = 0o700;

/// Attributes kept beside a file. What is absent is as the host says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Credentials {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// With the file's type.
    pub mode: Option<u32>,
    /// As on the wire, which is how Linux encodes it.
    pub rdev: Option<u64>,
}

impl Credentials {
    /// Puts these over the host's attributes. A directory stays one and nothing else becomes one, whatever is kept.
    pub fn apply(&self, attr: &mut Attr) {
        attr.uid = self.uid.unwrap_or(attr.uid);
        attr.gid = self.gid.unwrap_or(attr.gid);
        attr.rdev = self.rdev.unwrap_or(attr.rdev);
        if let Some(kept) = self.mode {
            let host = attr.mode & mode::FORMAT;
            let format = match kept & mode::FORMAT {
                0 | mode::DIRECTORY => host,
                _ if host != mode::REGULAR => host,
                other => other,
            };
            attr.mode = format | (kept & mode::PERMISSIONS);
        }
    }

    /// These, and what they do not say from `older`.
    fn over(self, older: Self) -> Self {
        Self {
            uid: self.uid.or(older.uid),
            gid: self.gid.or(older.gid),
            mode: self.mode.or(older.mode),
            rdev: self.rdev.or(older.rdev),
        }
    }

    /// From the lines of a metadata file; lines that say nothing known are passed over.
    fn parse(text: &[u8]) -> Self {
        let mut found = Self::default();
        for line in text.split(|byte| *byte == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else { continue };
            let Some((key, value)) = line.split_once('=') else { continue };
            // QEMU prints them as signed 32-bit numbers, so an owner of 2^31 and above is negative.
            let Ok(value) = value.trim().parse::<i64>() else { continue };
            match key {
                "virtfs.uid" => found.uid = Some(value as u32),
                "virtfs.gid" => found.gid = Some(value as u32),
                "virtfs.mode" => found.mode = Some(value as u32),
                "virtfs.rdev" => found.rdev = Some(value as u64),
                _ => {}
            }
        }
        found
    }

    fn print(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: Option<i64>| {
            if let Some(value) = value {
                text.push_str(&format!("virtfs.{key}={value}\n"));
            }
        };
        line("uid", self.uid.map(|uid| i64::from(uid as i32)));
        line("gid", self.gid.map(|gid| i64::from(gid as i32)));
        line("mode", self.mode.map(i64::from));
        line("rdev", self.rdev.map(|rdev| rdev as i64));
        text
    }
}

/// Whether attributes can be kept in this file's extended attributes: only regular files and directories have any of
/// users.
pub(super) fn may_be_mapped(attr: &Attr) -> bool {
    matches!(attr.mode & mode::FORMAT, mode::REGULAR | mode::DIRECTORY)
}

/// What the extended attributes of a file keep.
pub(super) fn read_xattrs(target: Target<'_>) -> Outcome<Credentials> {
    let mut unsupported = false;
    let mut number = |name: &CStr| -> Outcome<Option<u64>> {
        let mut bytes = [0_u8; 8];
        if unsupported {
            return Ok(None);
        }
        match host::get_xattr(target, name, &mut bytes) {
            Ok(4 | 8) => Ok(Some(u64::from_le_bytes(bytes))),
            // Of no length QEMU ever wrote: somebody else's.
            Ok(_) | Err(Errno::RANGE) => Ok(None),
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {
                unsupported = true;
                Ok(None)
            }
            Err(error) if WireError::from(error).0 == errno::ENODATA => Ok(None),
            Err(error) => Err(error.into()),
        }
    };
    Ok(Credentials {
        uid: number(XATTR_UID)?.map(|uid| uid as u32),
        gid: number(XATTR_GID)?.map(|gid| gid as u32),
        mode: number(XATTR_MODE)?.map(|mode| mode as u32),
        rdev: number(XATTR_RDEV)?,
    })
}

/// Keeps attributes in the extended attributes of a file.
pub(super) fn write_xattrs(target: Target<'_>, kept: &Credentials) -> Outcome<()> {
    let small = |name, value: Option<u32>| match value {
        Some(value) => host::set_xattr(target, name, &value.to_le_bytes(), 0),
        None => Ok(()),
    };
    small(XATTR_UID, kept.uid)?;
    small(XATTR_GID, kept.gid)?;
    small(XATTR_MODE, kept.mode)?;
    if let Some(rdev) = kept.rdev {
        host::set_xattr(target, XATTR_RDEV, &rdev.to_le_bytes(), 0)?;
    }
    Ok(())
}

/// Whether a name is the server's own in a mapped-file share. Generous, because a host's file system may take names for
/// the same that differ in case or in characters nobody sees.
pub(super) fn is_metadata_name(name: &[u8]) -> bool {
    if name.is_ascii() {
        return [METADATA, METADATA_ROOT].iter().any(|own| own.to_bytes().eq_ignore_ascii_case(name));
    }
    let Ok(name) = std::str::from_utf8(name) else { return false };
    let visible = |c: &char| !matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}');
    let folded: String = name.chars().filter(visible).flat_map(char::to_uppercase).collect();
    [METADATA, METADATA_ROOT].iter().any(|own| own.to_bytes().eq_ignore_ascii_case(folded.as_bytes()))
}

/// The metadata directory of a directory, if there is one.
fn metadata_of(dir: &DirHandle) -> Outcome<Option<OwnedFd>> {
    match rustix::fs::openat(dir.as_fd(), METADATA, host::directory_flags(), Mode::empty()) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What the metadata file of an entry keeps.
pub(super) fn read_file(dir: &DirHandle, name: &Name) -> Outcome<Credentials> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = if name.as_bytes() == b"." {
        rustix::fs::openat(dir.as_fd(), METADATA_ROOT, flags, Mode::empty())
    } else {
        let Some(metadata) = metadata_of(dir)? else { return Ok(Credentials::default()) };
        rustix::fs::openat(metadata, name.as_c_str(), flags, Mode::empty())
    };
    let file = match opened {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(Credentials::default()),
        Err(error) => return Err(error.into()),
    };
    if host::stat(Target::Open(file.as_fd()))?.mode & mode::FORMAT != mode::REGULAR {
        return fail(errno::EIO);
    }
    let mut text = [0; METADATA_MAX];
    let length = rustix::io::pread(&file, &mut text, 0)?;
    Ok(Credentials::parse(&text[..length]))
}

/// Keeps attributes in the metadata file of an entry, over those it keeps already.
pub(super) fn write_file(dir: &DirHandle, name: &Name, kept: &Credentials) -> Outcome<()> {
    let text = kept.over(read_file(dir, name)?).print();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let file = if name.as_bytes() == b"." {
        rustix::fs::openat(dir.as_fd(), METADATA_ROOT, flags, mode)?
    } else {
        match rustix::fs::mkdirat(dir.as_fd(), METADATA, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let Some(metadata) = metadata_of(dir)? else { return fail(errno::EIO) };
        rustix::fs::openat(metadata, name.as_c_str(), flags, mode)?
    };
    // Written over, then cut: a reader in between never finds an empty file.
    if rustix::io::pwrite(&file, text.as_bytes(), 0)? != text.len() {
        return fail(errno::ENOSPC);
    }
    Ok(rustix::fs::ftruncate(&file, text.len() as u64)?)
}

/// Forgets what was kept for an entry that is gone.
pub(super) fn remove_file(dir: &DirHandle, name: &Name) -> Outcome<()> {
    let Some(metadata) = metadata_of(dir)? else { return Ok(()) };
    match rustix::fs::unlinkat(metadata, name.as_c_str(), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Before a directory is removed: takes its own metadata directory away if nothing else is in it.
pub(super) fn prepare_rmdir(dir: &DirHandle, name: &Name) -> Outcome<()> {
    let inside = rustix::fs::openat(dir.as_fd(), name.as_c_str(), host::directory_flags(), Mode::empty())?;
    let mut found = entries(&inside)?;
    let others = found.any(|entry| {
        !entry.is_ok_and(|entry| [c".", c"..", METADATA].iter().any(|own| entry.file_name() == *own))
    });
    if others {
        return fail(errno::ENOTEMPTY);
    }
    let metadata = match rustix::fs::openat(&inside, METADATA, host::directory_flags(), Mode::empty()) {
        Ok(metadata) => metadata,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for entry in entries(&metadata)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            rustix::fs::unlinkat(&metadata, entry.file_name(), AtFlags::empty())?;
        }
    }
    Ok(rustix::fs::unlinkat(&inside, METADATA, AtFlags::REMOVEDIR)?)
}

/// An entry was renamed or, with `keep_old`, linked: what is kept for it goes along.
pub(super) fn carry_file(from: (&DirHandle, &Name), to: (&DirHandle, &Name), keep_old: bool) -> Outcome<()> {
    let kept = read_file(from.0, from.1)?;
    remove_file(to.0, to.1)?;
    if kept != Credentials::default() {
        write_file(to.0, to.1, &kept)?;
    }
    if keep_old { Ok(()) } else { remove_file(from.0, from.1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_files_are_read_as_qemu_writes_them() {
        let text = b"virtfs.uid=1000\nvirtfs.gid=100\nvirtfs.mode=33188\nvirtfs.rdev=0\n";
        let expected = Credentials { uid: Some(1000), gid: Some(100), mode: Some(0o100_644), rdev: Some(0) };
        assert_eq!(Credentials::parse(text), expected);
    }

    #[test]
    fn metadata_survives_being_written_and_read() {
        let kept =
            Credentials { uid: Some(u32::MAX - 1), gid: None, mode: Some(0o020_666), rdev: Some(0x103) };
        assert_eq!(Credentials::parse(kept.print().as_bytes()), kept);
    }

    #[test]
    fn a_directory_stays_one_whatever_is_kept() {
        let mut attr = Attr { mode: 0o040_700, ..Attr::default() };
        Credentials { mode: Some(0o100_755), ..Credentials::default() }.apply(&mut attr);
        assert_eq!(attr.mode, 0o040_755);
    }

    #[test]
    fn a_regular_file_may_be_kept_as_a_device() {
        let mut attr = Attr { mode: 0o100_600, ..Attr::default() };
        Credentials { mode: Some(0o060_660), rdev: Some(0x801), ..Credentials::default() }.apply(&mut attr);
        assert_eq!((attr.mode, attr.rdev), (0o060_660, 0x801));
    }

    #[test]
    fn metadata_names_are_known_in_any_case() {
        assert!(is_metadata_name(b".VirtFS_metadata") && is_metadata_name(b".virtfs_METADATA_root"));
    }

    #[test]
    fn metadata_names_are_known_with_characters_that_fold_or_vanish() {
        assert!(
            is_metadata_name(".virtf\u{17f}_metadata".as_bytes())
                && is_metadata_name(".virtfs\u{200c}_metadata".as_bytes())
        );
    }

    #[test]
    fn other_hidden_names_are_the_guests() {
        assert!(!is_metadata_name(b".virtfs_metadata2") && !is_metadata_name(b".git"));
    }
}

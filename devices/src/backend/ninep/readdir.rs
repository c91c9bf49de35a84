//! Reading of directories: a snapshot of the names for each opened directory, in which a cookie is a position.
//!
//! A snapshot, because hosts differ in what their cookies survive: those of macOS not even a file being made. It is taken
//! when reading starts at the beginning and kept until the fid goes or starts anew, so every cookie that was given out
//! stays good. An entry takes 16 bytes and its name; `Limits::listing_bytes` bounds those of a session together.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use super::casehack::HackIndex;
use super::config::SecurityModel;
use super::iov::Scatter;
use super::mapped;
use super::place::{Name, entries};
use super::proto::{Outcome, QID_SIZE, dt, errno, fail, mode, qt};
use super::share::Share;
use super::xattr::{Budget, Reservation};
use crate::sys::ninep::{self as host, Target};
use crate::util::lock;

/// Bytes of an entry before its name: `qid[13] offset[8] type[1] name_length[2]`.
const ENTRY_HEADER: usize = QID_SIZE + 8 + 1 + 2;
/// Bytes that are set aside at a time while a directory is read.
const STEP: u64 = 64 << 10;

/// A directory that a client opened.
#[derive(Debug)]
pub(super) struct OpenDir {
    pub fd: OwnedFd,
    pub dev: u64,
    /// Whether it is the root of the share, whose `..` is itself.
    pub is_root: bool,
    pub ino: u64,
    pub listing: Mutex<Option<Listing>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    ino: u64,
    /// Where its name ends within all names; it begins where the one before ends.
    name_end: u32,
    kind: u8,
}

/// All entries of a directory at one time.
#[derive(Debug, Default)]
pub(super) struct Listing {
    names: Vec<u8>,
    entries: Vec<Entry>,
    _reserved: Vec<Reservation>,
}

impl Listing {
    fn name(&self, at: usize) -> &[u8] {
        let start =
            at.checked_sub(1).and_then(|before| self.entries.get(before)).map_or(0, |e| e.name_end as usize);
        let end = self.entries.get(at).map_or(start, |entry| entry.name_end as usize);
        self.names.get(start..end).unwrap_or_default()
    }

    fn push(&mut self, ino: u64, kind: u8, name: &[u8]) -> Outcome<()> {
        self.names.extend_from_slice(name);
        let Ok(name_end) = u32::try_from(self.names.len()) else { return fail(errno::ENOMEM) };
        self.entries.push(Entry { ino, name_end, kind });
        Ok(())
    }
}

impl Share {
    /// Reads all entries of a directory.
    fn list(&self, dir: &OpenDir, budget: &Arc<Budget>) -> Outcome<Listing> {
        let mut listing = Listing::default();
        let mut set_aside = 0;
        for entry in entries(&dir.fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if self.config.security == SecurityModel::MappedFile && mapped::is_metadata_name(name) {
                continue;
            }
            let used =
                (listing.names.len() + (listing.entries.len() + 1) * size_of::<Entry>() + name.len()) as u64;
            if used > set_aside {
                listing._reserved.push(budget.reserve(STEP)?);
                set_aside += STEP;
            }
            // The number of the directory above the share is none of the guest's business.
            let ino = if dir.is_root && name == b".." { dir.ino } else { entry.ino() };
            listing.push(ino, self.entry_kind(dir, &entry)?, name)?;
        }
        if self.case_hack {
            listing = present(listing)?;
        }
        Ok(listing)
    }

    /// The type of an entry, `DT_UNKNOWN` where it is kept beside the file.
    fn entry_kind(&self, dir: &OpenDir, entry: &rustix::fs::DirEntry) -> Outcome<u8> {
        use rustix::fs::FileType;
        let kind = match entry.file_type() {
            FileType::RegularFile if self.config.security.is_mapped() => dt::UNKNOWN,
            FileType::Unknown => {
                let stat = host::stat(Target::Entry(dir.fd.as_fd(), entry.file_name()));
                stat.map_or(dt::UNKNOWN, |attr| kind_of_mode(attr.mode))
            }
            other => kind_of_mode(other.as_raw_mode()),
        };
        Ok(kind)
    }

    /// Writes as many entries from position `cookie` on as fit into `count` bytes at `skip`; returns their bytes. Only whole
    /// entries; EINVAL if there is one and not even it fits, because nothing at all would mean the end.
    pub(super) fn read_dir(
        &self,
        dir: &OpenDir,
        cookie: u64,
        count: usize,
        output: Scatter<'_>,
        skip: usize,
        budget: &Arc<Budget>,
    ) -> Outcome<usize> {
        let mut kept = lock(&dir.listing);
        if cookie == 0 {
            *kept = None;
        }
        let listing = match kept.as_ref() {
            Some(listing) => listing,
            None => kept.insert(self.list(dir, budget)?),
        };
        let mut done = 0;
        let mut at = usize::try_from(cookie).unwrap_or(usize::MAX);
        while let Some(entry) = listing.entries.get(at) {
            let name = listing.name(at);
            let length = ENTRY_HEADER + name.len();
            if length > count - done {
                return if done == 0 { fail(errno::EINVAL) } else { Ok(done) };
            }
            let mut bytes = [0_u8; ENTRY_HEADER + super::proto::NAME_MAX];
            let Some(encoded) = bytes.get_mut(..length) else { return fail(errno::EIO) };
            encoded[0] = qid_kind(entry.kind);
            encoded[5..13].copy_from_slice(&self.qid_path(dir.dev, entry.ino).to_le_bytes());
            encoded[13..21].copy_from_slice(&(at as u64 + 1).to_le_bytes());
            encoded[21] = entry.kind;
            encoded[22..24].copy_from_slice(&(name.len() as u16).to_le_bytes());
            encoded[24..].copy_from_slice(name);
            output.write_at(skip + done, encoded);
            done += length;
            at += 1;
        }
        Ok(done)
    }

    /// The host's name of what a guest calls `name` in a directory; ENOENT for the server's own names.
    pub(super) fn real_name(&self, dir: &super::place::DirHandle, name: &[u8]) -> Outcome<Name> {
        let mut real = Name::of(name)?;
        if self.config.security == SecurityModel::MappedFile && mapped::is_metadata_name(name) {
            return fail(errno::ENOENT);
        }
        if self.case_hack {
            dir.undo_case_hack(&mut real)?;
        }
        Ok(real)
    }
}

/// Puts the names in place that Nix meant.
fn present(listing: Listing) -> Outcome<Listing> {
    let names = (0..listing.entries.len()).map(|at| listing.name(at));
    let index = HackIndex::of(names);
    let mut presented = Listing { _reserved: Vec::new(), ..Listing::default() };
    for (at, entry) in listing.entries.iter().enumerate() {
        presented.push(entry.ino, entry.kind, index.presented(listing.name(at)))?;
    }
    presented._reserved = listing._reserved;
    Ok(presented)
}

/// Hosts differ in how many bits a mode has.
fn kind_of_mode(mode: impl Into<u32>) -> u8 {
    // DT_* are the format bits of a mode, moved down (`IFTODT`).
    ((mode.into() & mode::FORMAT) >> 12) as u8
}

fn qid_kind(kind: u8) -> u8 {
    match kind {
        dt::DIR => qt::DIR,
        dt::LNK => qt::SYMLINK,
        _ => qt::FILE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_entries_are_those_of_modes() {
        assert_eq!(
            (kind_of_mode(mode::DIRECTORY), kind_of_mode(mode::REGULAR), kind_of_mode(mode::SYMLINK)),
            (4, 8, 10)
        );
    }
}

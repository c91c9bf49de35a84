//! The names that Nix gives to files that differ from another only in case, on hosts whose file systems cannot tell them
//! apart: `Foo~nix~case~hack~1` stands for `Foo`. Presented to the guest as what they stand for, and found by it.
//!
//! Where two entries would be presented under one name, an entry that has the name itself wins, then the lowest number;
//! the others are presented as they are.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::place::{DirHandle, Name, entries};
use super::proto::Outcome;
use crate::sys::ninep::{self as host, Target};
use crate::util::lock;

const MARK: &[u8] = b"~nix~case~hack~";
/// A directory changed more recently than this may change again without a new time stamp.
const STAMP_GRANULARITY: Duration = Duration::from_millis(100);

/// Splits `Foo~nix~case~hack~1` into `Foo` and 1.
fn split(name: &[u8]) -> Option<(&[u8], u64)> {
    let at = name.windows(MARK.len()).position(|window| window == MARK).filter(|at| *at > 0)?;
    let (meant, rest) = name.split_at(at);
    let digits = rest.get(MARK.len()..).filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let number = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (meant != b"." && meant != b"..").then_some((meant, number))
}

/// The entries of one directory that are presented under another name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HackIndex {
    real_by_meant: HashMap<Vec<u8>, Vec<u8>>,
    /// Of the directory when it was read: its times, unless they were too young to tell.
    stamp: Option<((u64, u64), (u64, u64))>,
}

impl HackIndex {
    /// The index for a directory with these entries.
    pub fn of<'a>(names: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        let mut hacked: Vec<_> =
            names.clone().filter_map(|name| split(name).map(|(meant, n)| (meant, n, name))).collect();
        if hacked.is_empty() {
            return Self::default();
        }
        let plain: HashSet<&[u8]> = names.collect();
        hacked.sort_unstable();
        let mut index = Self::default();
        for (meant, _, name) in hacked {
            if !plain.contains(meant) && !index.real_by_meant.contains_key(meant) {
                index.real_by_meant.insert(meant.to_vec(), name.to_vec());
            }
        }
        index
    }

    /// The name on the host of the entry presented as `name`, if it is another.
    pub fn real<'a>(&'a self, name: &[u8]) -> Option<&'a [u8]> {
        self.real_by_meant.get(name).map(Vec::as_slice)
    }

    /// The name that the entry `name` of the host is presented under.
    pub fn presented<'a>(&self, name: &'a [u8]) -> &'a [u8] {
        match split(name) {
            Some((meant, _)) if self.real(meant) == Some(name) => meant,
            _ => name,
        }
    }
}

impl DirHandle {
    /// The index of this directory, read anew if the directory has changed.
    fn hack_index(&self) -> Outcome<Arc<HackIndex>> {
        let attr = host::stat(Target::Open(self.as_fd()))?;
        let stamp = (attr.mtime, attr.ctime);
        let mut kept = lock(&self.hacked);
        if let Some(index) = kept.as_ref().filter(|index| index.stamp == Some(stamp)) {
            return Ok(index.clone());
        }
        let mut names = Vec::new();
        for entry in entries(self)? {
            let entry = entry?;
            names.push(entry.file_name().to_bytes().to_vec());
        }
        let mut index = HackIndex::of(names.iter().map(Vec::as_slice));
        let changed = SystemTime::UNIX_EPOCH
            + Duration::new(attr.ctime.0.min(1 << 40), attr.ctime.1.min(999_999_999) as u32);
        let settled = SystemTime::now().duration_since(changed).is_ok_and(|age| age > STAMP_GRANULARITY);
        index.stamp = settled.then_some(stamp);
        let index = Arc::new(index);
        *kept = Some(index.clone());
        Ok(index)
    }

    /// Turns a name that the guest knows into the host's.
    pub fn undo_case_hack(&self, name: &mut Name) -> Outcome<()> {
        let index = self.hack_index()?;
        match index.real(name.as_bytes()) {
            Some(real) => name.set(real),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(names: &[&'static str]) -> HackIndex {
        HackIndex::of(names.iter().map(|name| name.as_bytes()))
    }

    #[test]
    fn a_hacked_name_is_presented_as_nix_meant_it() {
        let index = index(&["foo", "Foo~nix~case~hack~1"]);
        assert_eq!(index.presented(b"Foo~nix~case~hack~1"), b"Foo");
    }

    #[test]
    fn the_name_that_nix_meant_leads_to_the_hacked_entry() {
        let index = index(&["foo", "Foo~nix~case~hack~1"]);
        assert_eq!(index.real(b"Foo"), Some(&b"Foo~nix~case~hack~1"[..]));
    }

    #[test]
    fn an_entry_with_the_name_itself_wins() {
        let index = index(&["Foo", "Foo~nix~case~hack~1"]);
        let presented = index.presented(b"Foo~nix~case~hack~1");
        assert_eq!((index.real(b"Foo"), presented), (None, &b"Foo~nix~case~hack~1"[..]));
    }

    #[test]
    fn of_two_hacked_entries_the_lower_number_wins() {
        let index = index(&["x~nix~case~hack~10", "x~nix~case~hack~9"]);
        assert_eq!(index.real(b"x"), Some(&b"x~nix~case~hack~9"[..]));
    }

    #[test]
    fn a_mark_without_a_number_is_an_ordinary_name() {
        assert_eq!(split(b"Foo~nix~case~hack~"), None);
    }

    #[test]
    fn a_mark_alone_or_after_dots_is_an_ordinary_name() {
        assert_eq!((split(b"~nix~case~hack~1"), split(b"..~nix~case~hack~1")), (None, None));
    }
}

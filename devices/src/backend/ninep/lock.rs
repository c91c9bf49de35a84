//! Byte range locks (Tlock, Tgetlock) with the semantics of POSIX, in one table for the whole process, so that guests that
//! share a directory see each other's, also through different shares. The host's own programs do not see them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{LazyLock, Mutex};

use super::proto::{Outcome, errno, fail, lock as wire};
use crate::util::lock;

/// Which file: device and inode.
pub(super) type FileKey = (u64, u64);

/// Who holds a lock: a process of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub session: u64,
    pub process: u32,
    /// Hash of the client's name for itself, because several clients may come over one session.
    pub client: u64,
}

impl Owner {
    pub fn new(session: u64, process: u32, client: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        client.hash(&mut hasher);
        Self { session, process, client: hasher.finish() }
    }
}

/// A locked range, from `start` to `end` inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub owner: Owner,
    /// The fid it was locked through, with which it goes.
    pub fid: u32,
    pub exclusive: bool,
    pub start: u64,
    pub end: u64,
}

impl Range {
    /// A range as it is on the wire: a length of 0 is up to the end of any file.
    pub fn new(owner: Owner, fid: u32, exclusive: bool, start: u64, length: u64) -> Outcome<Self> {
        let end = match length {
            0 => u64::MAX,
            _ => match start.checked_add(length - 1) {
                Some(end) => end,
                None => return fail(errno::EINVAL),
            },
        };
        Ok(Self { owner, fid, exclusive, start, end })
    }

    /// As Tgetlock gives it: 0 for all that follows.
    pub fn length(&self) -> u64 {
        if self.end == u64::MAX { 0 } else { self.end - self.start + 1 }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    fn conflicts(&self, other: &Self) -> bool {
        self.owner != other.owner && (self.exclusive || other.exclusive) && self.overlaps(other)
    }
}

/// All locks on all files.
#[derive(Debug, Default)]
struct Table {
    files: HashMap<FileKey, Vec<Range>>,
    per_session: HashMap<u64, u32>,
}

static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);

impl Table {
    /// Takes `range` out of what its owner has locked, which may split a lock in two.
    fn cut(&mut self, file: FileKey, range: &Range) {
        let Some(ranges) = self.files.get_mut(&file) else { return };
        let mut pieces = Vec::new();
        let before = ranges.len();
        ranges.retain(|held| {
            if held.owner != range.owner || !held.overlaps(range) {
                return true;
            }
            if held.start < range.start {
                pieces.push(Range { end: range.start - 1, ..*held });
            }
            if held.end > range.end {
                pieces.push(Range { start: range.end + 1, ..*held });
            }
            false
        });
        let removed = before - ranges.len();
        ranges.extend_from_slice(&pieces);
        let empty = ranges.is_empty();
        self.count(range.owner.session, pieces.len() as i64 - removed as i64);
        if empty {
            self.files.remove(&file);
        }
    }

    /// Adds a lock, joined with those of the same owner, fid and kind that touch it, so that locking byte by byte does not
    /// use up the table.
    fn add(&mut self, file: FileKey, mut range: Range) {
        let ranges = self.files.entry(file).or_default();
        let before = ranges.len();
        ranges.retain(|held| {
            let alike =
                held.owner == range.owner && held.fid == range.fid && held.exclusive == range.exclusive;
            let touches =
                held.start <= range.end.saturating_add(1) && range.start <= held.end.saturating_add(1);
            if alike && touches {
                range.start = range.start.min(held.start);
                range.end = range.end.max(held.end);
            }
            !(alike && touches)
        });
        ranges.push(range);
        let change = ranges.len() as i64 - before as i64;
        self.count(range.owner.session, change);
    }

    fn count(&mut self, session: u64, change: i64) {
        let count = self.per_session.entry(session).or_default();
        *count = u32::try_from(i64::from(*count) + change).unwrap_or(0);
        if *count == 0 {
            self.per_session.remove(&session);
        }
    }

    fn release(&mut self, session: u64, matching: impl Fn(&FileKey, &Range) -> bool) {
        let mut removed = 0;
        self.files.retain(|file, ranges| {
            let before = ranges.len();
            ranges.retain(|range| range.owner.session != session || !matching(file, range));
            removed += (before - ranges.len()) as i64;
            !ranges.is_empty()
        });
        self.count(session, -removed);
    }
}

/// Locks a range, unless someone else's lock is in the way: then it says so and the client tries again later, whether or
/// not it asked to be blocked.
pub(super) fn acquire(file: FileKey, range: Range, limit: u32) -> Outcome<u8> {
    let mut table = lock(&TABLE);
    if table.files.get(&file).is_some_and(|ranges| ranges.iter().any(|held| range.conflicts(held))) {
        return Ok(wire::BLOCKED);
    }
    // Cutting may add one more piece than it removes.
    let used = table.per_session.get(&range.owner.session).copied().unwrap_or(0);
    if used.saturating_add(2) > limit {
        return fail(errno::ENOLCK);
    }
    table.cut(file, &range);
    table.add(file, range);
    Ok(wire::SUCCESS)
}

/// Unlocks a range of an owner.
pub(super) fn release(file: FileKey, range: &Range) {
    lock(&TABLE).cut(file, range);
}

/// The lock that would be in the way of `range`.
pub(super) fn conflict(file: FileKey, range: &Range) -> Option<Range> {
    lock(&TABLE).files.get(&file)?.iter().find(|held| range.conflicts(held)).copied()
}

/// Unlocks what was locked through a fid of a session.
pub(super) fn release_fid(session: u64, fid: u32) {
    let mut table = lock(&TABLE);
    if table.per_session.contains_key(&session) {
        table.release(session, |_, range| range.fid == fid);
    }
}

/// Unlocks all that a session has locked.
pub(super) fn release_session(session: u64) {
    let mut table = lock(&TABLE);
    if table.per_session.contains_key(&session) {
        table.release(session, |_, _| true);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A file that no other test uses.
    fn file() -> FileKey {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        (u64::MAX, NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Sessions of these tests count down from the top, those of the server up.
    fn owner(process: u32) -> Owner {
        Owner { session: u64::MAX, process, client: 0 }
    }

    fn range(process: u32, exclusive: bool, start: u64, length: u64) -> Outcome<Range> {
        Range::new(owner(process), 1, exclusive, start, length)
    }

    #[test]
    fn two_readers_share_a_range() -> Result<(), super::super::proto::WireError> {
        let file = file();
        acquire(file, range(1, false, 0, 10)?, 100)?;
        assert_eq!(acquire(file, range(2, false, 5, 10)?, 100)?, wire::SUCCESS);
        Ok(())
    }

    #[test]
    fn a_writer_blocks_another() -> Result<(), super::super::proto::WireError> {
        let file = file();
        acquire(file, range(1, true, 0, 0)?, 100)?;
        assert_eq!(acquire(file, range(2, true, 1 << 40, 1)?, 100)?, wire::BLOCKED);
        Ok(())
    }

    #[test]
    fn unlocking_the_middle_leaves_both_ends() -> Result<(), super::super::proto::WireError> {
        let file = file();
        acquire(file, range(1, true, 0, 30)?, 100)?;
        release(file, &range(1, true, 10, 10)?);
        let blocked =
            |start| conflict(file, &Range { start, end: start, ..range(2, true, 0, 1).unwrap_or(DUMMY) });
        assert_eq!(
            (blocked(9).is_some(), blocked(10), blocked(19), blocked(20).is_some()),
            (true, None, None, true)
        );
        Ok(())
    }

    const DUMMY: Range = Range {
        owner: Owner { session: 0, process: 0, client: 0 },
        fid: 0,
        exclusive: true,
        start: 0,
        end: 0,
    };

    #[test]
    fn neighbouring_locks_become_one() -> Result<(), super::super::proto::WireError> {
        let file = file();
        for start in 0..50 {
            acquire(file, range(1, true, start, 1)?, 100)?;
        }
        let held = conflict(file, &range(2, true, 0, 0)?);
        assert_eq!(held.map(|held| (held.start, held.length())), Some((0, 50)));
        Ok(())
    }

    #[test]
    fn a_length_past_the_last_offset_is_invalid() {
        assert_eq!(range(1, true, u64::MAX, 2), fail(errno::EINVAL));
    }

    #[test]
    fn a_session_cannot_lock_more_ranges_than_its_limit() -> Result<(), super::super::proto::WireError> {
        let session = Owner { session: u64::MAX - 1, process: 1, client: 0 };
        let file = file();
        let outcomes: Vec<_> =
            (0..10).map(|n| acquire(file, Range::new(session, 1, true, n * 10, 1)?, 5)).collect();
        release_session(session.session);
        assert_eq!(outcomes.last(), Some(&fail(errno::ENOLCK)));
        Ok(())
    }
}

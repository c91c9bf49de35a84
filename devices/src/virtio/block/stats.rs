//! What a disk has done so far: numbers, for those who watch. Nothing depends on them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What requests ask a backend for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Data from the disk.
    Read,
    /// Data to the disk, zeros among them.
    Write,
    /// That what was written lasts.
    Flush,
    /// That a range be given back.
    Discard,
}

/// The numbers of one kind of [`Operation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OperationStats {
    /// How many were done.
    pub operations: u64,
    /// How many bytes they moved.
    pub bytes: u64,
    /// How many have failed.
    pub failed: u64,
    /// How long they took together, in nanoseconds.
    pub nanoseconds: u64,
}

/// What a disk has done since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockStats {
    /// Reads.
    pub reads: OperationStats,
    /// Writes.
    pub writes: OperationStats,
    /// Flushes.
    pub flushes: OperationStats,
    /// Discards.
    pub discards: OperationStats,
    /// The byte behind the last one that was ever written.
    pub highest_write: u64,
}

#[derive(Debug, Default)]
struct Counter {
    operations: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Counter {
    fn get(&self) -> OperationStats {
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        OperationStats {
            operations: get(&self.operations),
            bytes: get(&self.bytes),
            failed: get(&self.failed),
            nanoseconds: get(&self.nanoseconds),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Counters {
    reads: Counter,
    writes: Counter,
    flushes: Counter,
    discards: Counter,
    highest_write: AtomicU64,
}

impl Counters {
    fn of(&self, operation: Operation) -> &Counter {
        match operation {
            Operation::Read => &self.reads,
            Operation::Write => &self.writes,
            Operation::Flush => &self.flushes,
            Operation::Discard => &self.discards,
        }
    }

    /// An operation on `len` bytes at `offset` that began at `start` is done.
    pub(super) fn done(&self, operation: Operation, (offset, len): (u64, u64), start: Instant) {
        let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let counter = self.of(operation);
        counter.operations.fetch_add(1, Ordering::Relaxed);
        counter.bytes.fetch_add(len, Ordering::Relaxed);
        counter.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        if operation == Operation::Write {
            self.highest_write.fetch_max(offset.saturating_add(len), Ordering::Relaxed);
        }
    }

    /// One has failed.
    pub(super) fn failed(&self, operation: Operation) {
        self.of(operation).failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> BlockStats {
        BlockStats {
            reads: self.reads.get(),
            writes: self.writes.get(),
            flushes: self.flushes.get(),
            discards: self.discards.get(),
            highest_write: self.highest_write.load(Ordering::Relaxed),
        }
    }
}

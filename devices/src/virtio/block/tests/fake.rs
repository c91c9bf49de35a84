//! A backend that remembers what it was asked, fails when told to, and holds requests back until told to go on.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use vm_memory::{Bytes, VolatileSlice};

use crate::backend::disk::{BlockBackend, ErrorPolicy, SECTOR};
use crate::util::lock;

/// What the backend was asked: offsets and lengths in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Write(u64, u64),
    Flush,
    Discard(u64, u64),
    Zero(u64, u64, bool),
}

/// A disk whose every byte is its sector's number at first.
#[derive(Debug)]
pub(super) struct Fake {
    data: Mutex<Vec<u8>>,
    ops: Mutex<Vec<Op>>,
    pub(super) fail: AtomicBool,
    /// What becomes of that.
    pub(super) policy: Mutex<ErrorPolicy>,
    pub(super) panic: AtomicBool,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    /// The offsets at which reads are held back; `None` for all.
    held: Option<Vec<u64>>,
    closed: bool,
    /// Reads that are waiting.
    waiting: usize,
}

impl Fake {
    pub(super) fn new(sectors: usize) -> Arc<Fake> {
        Arc::new(Fake {
            data: Mutex::new((0..sectors).flat_map(|sector| [sector as u8; SECTOR as usize]).collect()),
            ops: Mutex::default(),
            fail: AtomicBool::new(false),
            policy: Mutex::default(),
            panic: AtomicBool::new(false),
            gate: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    pub(super) fn ops(&self) -> Vec<Op> {
        lock(&self.ops).clone()
    }

    pub(super) fn sector(&self, sector: usize) -> Vec<u8> {
        lock(&self.data)[sector * 512..][..512].to_vec()
    }

    /// Holds reads at `sectors` back; `None` means all.
    pub(super) fn hold(&self, sectors: Option<&[u64]>) {
        let held = sectors.map(|list| list.iter().map(|sector| sector * SECTOR).collect());
        *lock(&self.gate) = Gate { held, closed: true, waiting: 0 };
    }

    /// Lets go of them.
    pub(super) fn release(&self) {
        lock(&self.gate).closed = false;
        self.changed.notify_all();
    }

    /// How many are held back.
    pub(super) fn waiting(&self) -> usize {
        lock(&self.gate).waiting
    }

    fn step(&self, op: Op) -> io::Result<()> {
        if self.fail.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        lock(&self.ops).push(op);
        Ok(())
    }
}

impl BlockBackend for Fake {
    fn name(&self) -> &str {
        "disk fake"
    }

    fn capacity(&self) -> u64 {
        lock(&self.data).len() as u64
    }

    fn error_policy(&self, _read: bool) -> ErrorPolicy {
        *lock(&self.policy)
    }

    fn can_discard(&self) -> bool {
        true
    }

    fn read(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        assert!(!self.panic.load(Ordering::SeqCst), "a backend may be wrong, too");
        if self.fail.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut gate = lock(&self.gate);
        if gate.closed && gate.held.as_ref().is_none_or(|held| held.contains(&offset)) {
            gate.waiting += 1;
            while gate.closed {
                gate = self.changed.wait(gate).unwrap();
            }
            gate.waiting -= 1;
        }
        drop(gate);
        let data = lock(&self.data);
        let mut at = offset as usize;
        for buffer in buffers {
            buffer.write_slice(&data[at..at + buffer.len()], 0).unwrap();
            at += buffer.len();
        }
        Ok(())
    }

    fn write(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        let len = buffers.iter().map(VolatileSlice::len).sum::<usize>();
        self.step(Op::Write(offset, len as u64))?;
        let mut data = lock(&self.data);
        let mut at = offset as usize;
        for buffer in buffers {
            buffer.read_slice(&mut data[at..at + buffer.len()], 0).unwrap();
            at += buffer.len();
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.step(Op::Flush)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.step(Op::Discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.step(Op::Zero(offset, len, unmap))
    }
}

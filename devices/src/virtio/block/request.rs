//! One request of a block driver (virtio 1.2, 5.2.6): what it asks for, whether it may, and its status byte. Blocks as long as the
//! backend does; knows no queue.

use std::fmt;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Bytes, VolatileSlice};

use super::halt::{Halt, IoStatus};
use super::stats::{Counters, Operation};
use crate::backend::disk::{BlockBackend, ErrorAction, SECTOR};
use crate::util::LogLimit;
use crate::virtio::chain::{Chain, ChainReader};

/// The most sectors that one segment of a discard or write-zeroes request may have: 1 GiB.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// The most segments of such a request.
pub(super) const MAX_DISCARD_SEGMENTS: u32 = 16;
/// Length of `struct virtio_blk_discard_write_zeroes`.
const SEGMENT_LEN: usize = 16;
/// Length of the head of a request: type, reserved, sector.
const HEAD_LEN: usize = 16;

/// Why a request is not done. The driver sees one of two statuses; what the host said is in the log already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// VIRTIO_BLK_S_IOERR.
    Error,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported,
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Refusal::Error
    }
}

/// An error of the host that a request has met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoError {
    /// What could not be done.
    pub operation: Operation,
    /// What becomes of the request.
    pub action: ErrorAction,
    /// The host has no space left.
    pub no_space: bool,
    /// What the host said.
    pub reason: String,
}

/// Who hears of errors.
type Listener = Box<dyn Fn(IoError) + Send + Sync>;

/// What requests are made to: the backend, and how the driver wants it.
pub(super) struct Unit {
    pub(super) backend: Arc<dyn BlockBackend>,
    pub(super) halt: Halt,
    pub(super) counters: Counters,
    pub(super) listener: OnceLock<Listener>,
    serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    writeback: AtomicBool,
    odd: LogLimit,
}

/// A chain taken apart, its data not looked at yet.
pub(super) struct Request {
    kind: u32,
    sector: u64,
}

impl Request {
    /// Reads the head. `None`: there is none.
    pub(super) fn parse(chain: &Chain<'_>) -> Option<Request> {
        let mut head = [0; HEAD_LEN];
        chain.reader().read_exact(&mut head).ok()?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = head;
        Some(Request { kind: u32::from_le_bytes([a, b, c, d]), sector: u64::from_le_bytes(sector) })
    }

    /// Whether it is of a kind that makes the host's storage work, so that others had better not wait for it.
    pub(super) fn is_slow(&self) -> bool {
        matches!(self.kind, VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES)
    }

    /// Whether it is of the kind that comes most and that the host may run several of at once.
    pub(super) fn is_parallel(&self, unit: &Unit) -> bool {
        self.kind == VIRTIO_BLK_T_IN || (self.kind == VIRTIO_BLK_T_OUT && unit.backend.writes_in_parallel())
    }
}

/// Buffers of a request, reused from one to the next.
pub(super) type Scratch<'m> = Vec<VolatileSlice<'m>>;

impl Unit {
    pub(super) fn new(backend: Arc<dyn BlockBackend>, serial: &[u8]) -> Self {
        let mut padded = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in padded.iter_mut().zip(serial) {
            *to = *from;
        }
        Unit {
            backend,
            halt: Halt::default(),
            counters: Counters::default(),
            listener: OnceLock::new(),
            serial: padded,
            writeback: AtomicBool::new(true),
            odd: LogLimit::default(),
        }
    }

    /// Whether writes may wait in the cache until a flush.
    pub(super) fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    pub(super) fn set_writeback(&self, on: bool) {
        self.writeback.store(on, Ordering::Relaxed);
    }

    /// Does what the chain asks for, and writes its status. Returns how many bytes of the chain have been written, in a row from the
    /// first one.
    pub(super) fn serve<'m>(
        &self,
        request: Option<Request>,
        chain: &Chain<'m>,
        scratch: &mut Scratch<'m>,
    ) -> u32 {
        let Some(data_len) = chain.writable_len().checked_sub(1) else {
            self.log_odd("has no room for its status");
            return 0;
        };
        let result = match request {
            Some(request) => {
                let call = || self.perform(&request, chain, data_len, scratch);
                catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(Refusal::Error))
            }
            None => {
                self.log_odd("is shorter than its head");
                Err(Refusal::Error)
            }
        };
        let status = match result {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(Refusal::Error) => VIRTIO_BLK_S_IOERR,
            Err(Refusal::Unsupported) => VIRTIO_BLK_S_UNSUPP,
        };
        if let Some(last) = chain.writable().last() {
            // The slice is not empty, as the chain has no empty ones.
            let _ = last.write(&[status as u8], last.len() - 1);
        }
        // After an error the data before the status has not been written, at least not all of it.
        if result.is_ok() || data_len == 0 { u32::try_from(data_len + 1).unwrap_or(u32::MAX) } else { 0 }
    }

    fn perform<'m>(
        &self,
        request: &Request,
        chain: &Chain<'m>,
        data_len: usize,
        scratch: &mut Scratch<'m>,
    ) -> Result<(), Refusal> {
        match request.kind {
            VIRTIO_BLK_T_IN => {
                let offset = self.range(request.sector, data_len)?;
                take(chain.writable(), 0, data_len, scratch)?;
                self.attempt(Operation::Read, (offset, data_len as u64), || {
                    self.backend.read(scratch, offset)
                })
            }
            VIRTIO_BLK_T_OUT => {
                let len = chain.readable_len().saturating_sub(HEAD_LEN);
                self.must_be_writable()?;
                let offset = self.range(request.sector, len)?;
                take(chain.readable(), HEAD_LEN, len, scratch)?;
                self.attempt(Operation::Write, (offset, len as u64), || self.backend.write(scratch, offset))?;
                self.written()
            }
            VIRTIO_BLK_T_FLUSH => self.flush(),
            VIRTIO_BLK_T_GET_ID => {
                let len = data_len.min(self.serial.len());
                take(chain.writable(), 0, data_len, scratch)?;
                let mut rest = self.serial.get(..len).unwrap_or_default();
                for slice in scratch.iter() {
                    let count = slice.write(rest, 0).unwrap_or(0);
                    rest = rest.get(count..).unwrap_or_default();
                    if rest.is_empty() {
                        break;
                    }
                }
                Ok(())
            }
            VIRTIO_BLK_T_DISCARD if self.backend.can_discard() => self.ranges(chain, true),
            VIRTIO_BLK_T_WRITE_ZEROES => self.ranges(chain, false),
            _ => Err(Refusal::Unsupported),
        }
    }

    /// Discards, or writes zeros to, the segments of the request. All are checked before anything is done.
    fn ranges(&self, chain: &Chain<'_>, discard: bool) -> Result<(), Refusal> {
        self.must_be_writable()?;
        let mut reader = chain.reader();
        reader.read_exact(&mut [0; HEAD_LEN])?;
        let len = reader.remaining();
        if len == 0 || !len.is_multiple_of(SEGMENT_LEN) || len / SEGMENT_LEN > MAX_DISCARD_SEGMENTS as usize {
            return Err(Refusal::Error);
        }
        let mut ranges = [(0, 0, false); MAX_DISCARD_SEGMENTS as usize];
        let ranges = ranges.get_mut(..len / SEGMENT_LEN).unwrap_or_default();
        for range in ranges.iter_mut() {
            *range = self.segment(&mut reader, discard)?;
        }
        for (offset, len, unmap) in ranges.iter().copied().filter(|range| range.1 > 0) {
            if discard {
                self.attempt(Operation::Discard, (offset, len), || self.backend.discard(offset, len))?;
            } else {
                let zero = || self.backend.write_zeroes(offset, len, unmap);
                self.attempt(Operation::Write, (offset, len), zero)?;
            }
        }
        self.written()
    }

    /// Reads and checks one `struct virtio_blk_discard_write_zeroes`: offset and length in bytes, and whether it may be unmapped.
    fn segment(&self, reader: &mut ChainReader<'_, '_>, discard: bool) -> Result<(u64, u64, bool), Refusal> {
        let mut segment = [0; SEGMENT_LEN];
        reader.read_exact(&mut segment)?;
        let (sector, rest) = segment.split_at(8);
        let (sectors, flags) = rest.split_at(4);
        let sector = u64::from_le_bytes(sector.try_into().unwrap_or_default());
        let sectors = u32::from_le_bytes(sectors.try_into().unwrap_or_default());
        let flags = u32::from_le_bytes(flags.try_into().unwrap_or_default());
        let known = if discard { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
        if flags & !known != 0 {
            return Err(Refusal::Unsupported);
        }
        if sectors > MAX_DISCARD_SECTORS {
            return Err(Refusal::Error);
        }
        let len = u64::from(sectors) * SECTOR;
        let offset = self.byte_range(sector, len)?;
        Ok((offset, len, flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0))
    }

    /// Where data of `len` bytes at `sector` begins, if it is whole sectors within the disk.
    fn range(&self, sector: u64, len: usize) -> Result<u64, Refusal> {
        let len = len as u64;
        if !len.is_multiple_of(SECTOR) {
            self.log_odd("moves a part of a sector");
            return Err(Refusal::Error);
        }
        self.byte_range(sector, len)
    }

    fn byte_range(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        let offset = sector.checked_mul(SECTOR).ok_or(Refusal::Error)?;
        let end = offset.checked_add(len).ok_or(Refusal::Error)?;
        if end > self.backend.capacity() {
            self.log_odd("goes beyond the disk's end");
            return Err(Refusal::Error);
        }
        Ok(offset)
    }

    fn must_be_writable(&self) -> Result<(), Refusal> {
        if self.backend.is_read_only() {
            self.log_odd("writes to a read-only disk");
            return Err(Refusal::Error);
        }
        Ok(())
    }

    /// Something was written: without a cache that may hold it, it has to last now.
    fn written(&self) -> Result<(), Refusal> {
        if self.writeback() { Ok(()) } else { self.flush() }
    }

    fn flush(&self) -> Result<(), Refusal> {
        self.attempt(Operation::Flush, (0, 0), || self.backend.flush())
    }

    /// Does `call`, an operation on that offset and length, and applies the backend's policy to an error of the host. Where that is
    /// to stop the machine, the request waits here until the machine goes on, and is tried again.
    fn attempt(
        &self,
        operation: Operation,
        range: (u64, u64),
        call: impl Fn() -> io::Result<()>,
    ) -> Result<(), Refusal> {
        let start = Instant::now();
        loop {
            let seen = self.halt.retries();
            let Err(error) = call() else {
                self.counters.done(operation, range, start);
                return Ok(());
            };
            self.counters.failed(operation);
            let policy = self.backend.error_policy(operation == Operation::Read);
            let action = match (policy.action(&error), self.listener.get()) {
                // Nobody stops the machine, so nobody would resume it.
                (ErrorAction::Stop, None) => ErrorAction::Report,
                (action, _) => action,
            };
            let no_space = error.kind() == io::ErrorKind::StorageFull;
            if action == ErrorAction::Stop {
                self.halt.set_status(if no_space { IoStatus::NoSpace } else { IoStatus::Failed });
            }
            if let Some(listener) = self.listener.get() {
                listener(IoError { operation, action, no_space, reason: error.to_string() });
            }
            match action {
                ErrorAction::Ignore => return Ok(()),
                ErrorAction::Stop if self.halt.wait(seen) => {}
                ErrorAction::Stop | ErrorAction::Report => return Err(Refusal::Error),
            }
        }
    }

    fn log_odd(&self, what: &str) {
        if log::log_enabled!(log::Level::Debug)
            && let Some(suppressed) = self.odd.allow()
        {
            log::debug!("{}: a request {what}; it is refused{suppressed}", self.backend.name());
        }
    }
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unit")
            .field("backend", &self.backend)
            .field("halt", &self.halt)
            .finish_non_exhaustive()
    }
}

/// Puts `len` bytes of `from`, behind the first `skip`, into `to`.
fn take<'m>(
    from: &[VolatileSlice<'m>],
    mut skip: usize,
    mut len: usize,
    to: &mut Vec<VolatileSlice<'m>>,
) -> Result<(), Refusal> {
    to.clear();
    for slice in from {
        if len == 0 {
            break;
        }
        if skip >= slice.len() {
            skip -= slice.len();
            continue;
        }
        let count = (slice.len() - skip).min(len);
        to.push(slice.subslice(skip, count).map_err(|_| Refusal::Error)?);
        skip = 0;
        len -= count;
    }
    if len == 0 { Ok(()) } else { Err(Refusal::Error) }
}

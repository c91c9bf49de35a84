//! One file or block device of the host that holds an image: reads and writes at an offset, zeroes, frees and syncs it, whatever
//! the host wants aligned. It knows no image format.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::storage::drivers::CommonStorageHelper;
use libc::iovec;

use super::buffers::{AlignedBuffer, Iovecs};
use super::config::{CacheMode, DiskConfig, SyncMode};
use super::error::DiskError;
use crate::sys::disk as host;

/// How much is bounced or zeroed at a time.
const CHUNK: u64 = 1 << 20;

/// How a file is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileOptions {
    /// To be written, too.
    pub(crate) write: bool,
    /// What stands between us and the storage.
    pub(crate) cache: CacheMode,
    /// What a sync means.
    pub(crate) sync: SyncMode,
    /// Whether others are to be kept from it.
    pub(crate) lock: bool,
}

impl FileOptions {
    /// As `config` has it.
    pub(crate) fn of(config: &DiskConfig) -> Self {
        FileOptions { write: !config.readonly, cache: config.cache, sync: config.sync, lock: config.lock }
    }

    /// The same for a file that is only read.
    pub(crate) fn read_only(self) -> Self {
        FileOptions { write: false, ..self }
    }
}

/// What the host does to a range, given by offset and length.
type RangeCall = fn(&File, u64, u64) -> io::Result<()>;

/// Which file it is, whatever its names.
pub(crate) type FileId = (u64, u64);

/// What direct I/O must be aligned to.
#[derive(Debug, Clone, Copy)]
struct Alignment {
    memory: usize,
    offset: u64,
}

/// An open image file. All calls may come from several threads at once.
pub(crate) struct HostFile {
    file: File,
    path: PathBuf,
    id: FileId,
    is_device: bool,
    block_size: u32,
    /// Bytes, as far as we know: what we wrote has grown it.
    size: AtomicU64,
    direct: Option<Alignment>,
    /// Held for writing while a part of a block is read, changed and written back; for reading by every other direct write.
    blocks: RwLock<()>,
    options: FileOptions,
    sync_failed: AtomicBool,
    no_holes: AtomicBool,
    no_zeroing: AtomicBool,
    /// What imago keeps with a storage object.
    pub(super) imago: CommonStorageHelper,
}

impl HostFile {
    /// Opens `path`, and locks it if that is asked for.
    pub(crate) fn open(path: &Path, options: FileOptions) -> Result<Self, DiskError> {
        let at = || path.to_owned();
        // Looking first keeps us from opening what should not be opened: a tape rewinds, a FIFO waits for a writer.
        check_type(path, &fs::metadata(path).map_err(|source| open_error(path, options, source))?)?;
        let mut how = OpenOptions::new();
        how.read(true).write(options.write).custom_flags(libc::O_NONBLOCK);
        let file = how.open(path).map_err(|source| open_error(path, options, source))?;
        let meta = file.metadata().map_err(|source| DiskError::Open { path: at(), source })?;
        check_type(path, &meta)?;
        if options.lock {
            lock(path, &file, options.write)?;
        }
        let is_device = !meta.is_file();
        let (size, block_size) = if is_device {
            let size = host::device_size(&file).map_err(|source| DiskError::Read { path: at(), source })?;
            (size, host::device_block_size(&file).unwrap_or(512))
        } else {
            (meta.len(), 512)
        };
        let direct = match options.cache {
            CacheMode::None => {
                let (memory, offset) =
                    host::make_direct(&file).map_err(|source| DiskError::NoDirect { path: at(), source })?;
                let offset = if is_device { offset.max(block_size.into()) } else { offset };
                (memory > 1 || offset > 1).then_some(Alignment { memory, offset })
            }
            CacheMode::Writeback | CacheMode::Unsafe => None,
        };
        let block_size = direct.map_or(block_size, |direct| block_size.max(direct.offset.min(4096) as u32));
        Ok(HostFile {
            file,
            path: at(),
            id: (meta.dev(), meta.ino()),
            is_device,
            block_size,
            size: AtomicU64::new(size),
            direct,
            blocks: RwLock::new(()),
            options,
            sync_failed: AtomicBool::new(false),
            no_holes: AtomicBool::new(false),
            no_zeroing: AtomicBool::new(false),
            imago: CommonStorageHelper::default(),
        })
    }

    /// Its path, as it was asked for.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Which file it is.
    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Whether it is a block device, which cannot grow.
    pub(crate) fn is_device(&self) -> bool {
        self.is_device
    }

    /// The block size with which requests need no detour: 512 or more.
    pub(crate) fn block_size(&self) -> u32 {
        self.block_size.max(512)
    }

    /// Fills the buffers with what is at `offset`; zeros beyond the end.
    pub(crate) fn read(&self, mut buffers: Iovecs<'_>, mut offset: u64) -> io::Result<()> {
        let Some(align) = self.direct else {
            while !buffers.next().is_empty() {
                let count = self.preadv(buffers.next(), offset)?;
                if count == 0 {
                    buffers.zero_rest();
                    return Ok(());
                }
                buffers.advance(count);
                offset = add(offset, count as u64)?;
            }
            return Ok(());
        };
        if offset.is_multiple_of(align.offset) && buffers.is_aligned(align.memory, align.offset) {
            while !buffers.next().is_empty() {
                let count = self.preadv(buffers.next(), offset)?;
                buffers.advance(count);
                offset = add(offset, count as u64)?;
                if count == 0 || offset >= self.size() {
                    buffers.zero_rest();
                    return Ok(());
                }
                if !offset.is_multiple_of(align.offset) {
                    break;
                }
            }
        }
        self.read_bounced(buffers, offset, align)
    }

    fn read_bounced(&self, mut buffers: Iovecs<'_>, mut offset: u64, align: Alignment) -> io::Result<()> {
        let mut left = buffers.len();
        if left == 0 {
            return Ok(());
        }
        let mut bounce = self.bounce(left, align);
        while left > 0 {
            let start = offset - offset % align.offset;
            let skip = (offset - start) as usize;
            let room = bounce.bytes().len();
            let count = (room - skip).min(usize::try_from(left).unwrap_or(usize::MAX));
            let padded = (skip + count).next_multiple_of(align.offset as usize).min(room);
            self.pread_padded(&mut bounce.bytes()[..padded], start)?;
            buffers.copy_in(&bounce.bytes()[skip..skip + count]);
            left -= count as u64;
            offset = add(offset, count as u64)?;
        }
        Ok(())
    }

    /// Memory for up to [`CHUNK`] bytes of a request of `len`, and what aligning adds to them at both ends.
    fn bounce(&self, len: u64, align: Alignment) -> AlignedBuffer {
        let block = align.offset as usize;
        let len = len.min(CHUNK) as usize;
        AlignedBuffer::new(len.next_multiple_of(block) + block, align.memory.max(block))
    }

    /// Fills aligned memory from an aligned offset; zeros beyond the end.
    fn pread_padded(&self, mut to: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !to.is_empty() {
            let buffer = [iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() }];
            let count = self.preadv(&buffer, offset)?.min(to.len());
            offset = add(offset, count as u64)?;
            to = &mut to[count..];
            if count == 0 || offset >= self.size() {
                to.fill(0);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Writes the buffers to `offset`. A file grows as needed.
    pub(crate) fn write(&self, buffers: Iovecs<'_>, offset: u64) -> io::Result<()> {
        let end = add(offset, buffers.len())?;
        let result = match self.direct {
            None => self.write_all(buffers, offset),
            Some(align) => {
                if offset.is_multiple_of(align.offset) && buffers.is_aligned(align.memory, align.offset) {
                    let _shared = self.shared_blocks();
                    self.write_all(buffers, offset)
                } else {
                    self.write_bounced(buffers, offset, align)
                }
            }
        };
        if result.is_ok() {
            self.size.fetch_max(end, Ordering::Relaxed);
        }
        result
    }

    fn write_all(&self, mut buffers: Iovecs<'_>, mut offset: u64) -> io::Result<()> {
        while !buffers.next().is_empty() {
            let count = self.pwritev(buffers.next(), offset)?;
            if count == 0 && buffers.len() > 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            buffers.advance(count);
            offset = add(offset, count as u64)?;
        }
        Ok(())
    }

    fn write_bounced(&self, mut buffers: Iovecs<'_>, mut offset: u64, align: Alignment) -> io::Result<()> {
        let mut left = buffers.len();
        if left == 0 {
            return Ok(());
        }
        let whole = offset.is_multiple_of(align.offset) && left.is_multiple_of(align.offset);
        let (_shared, _exclusive) =
            if whole { (Some(self.shared_blocks()), None) } else { (None, Some(self.own_blocks())) };
        let mut bounce = self.bounce(left, align);
        while left > 0 {
            let start = offset - offset % align.offset;
            let skip = (offset - start) as usize;
            let room = bounce.bytes().len();
            let count = (room - skip).min(usize::try_from(left).unwrap_or(usize::MAX));
            let padded = (skip + count).next_multiple_of(align.offset as usize).min(room);
            if skip != 0 || padded != count {
                self.pread_padded(&mut bounce.bytes()[..padded], start)?;
            }
            buffers.copy_out(&mut bounce.bytes()[skip..skip + count]);
            let mut from: &[u8] = &bounce.bytes()[..padded];
            let mut at = start;
            while !from.is_empty() {
                let buffer = [iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() }];
                let written = self.pwritev(&buffer, at)?.min(from.len());
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                at = add(at, written as u64)?;
                from = &from[written..];
            }
            left -= count as u64;
            offset = add(offset, count as u64)?;
            // Whole blocks went to the file's end; it becomes no longer than the request made it.
            let end = self.size().max(offset);
            if at > end && !self.is_device {
                self.file.set_len(end)?;
            }
        }
        Ok(())
    }

    /// Makes a range read as zeros: frees it if `unmap`, otherwise keeps room for it. A file grows as needed.
    pub(crate) fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let end = add(offset, len)?;
        let (known_bad, call): (_, RangeCall) =
            if unmap { (&self.no_holes, host::punch_hole) } else { (&self.no_zeroing, host::zero_range) };
        let done = self.on_whole_blocks(offset, end, known_bad, call)?;
        let (inner_start, inner_end) = done.unwrap_or((end, end));
        self.write_literal_zeroes(offset, inner_start)?;
        self.write_literal_zeroes(inner_end, end)?;
        if !self.is_device && end > self.size() {
            let _exclusive = self.own_blocks();
            if end > self.size() {
                self.file.set_len(end)?;
                self.size.store(end, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Gives a range back to the host. A hint: what cannot be freed stays.
    pub(crate) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = add(offset, len)?;
        self.on_whole_blocks(offset, end, &self.no_holes, host::punch_hole).map(drop)
    }

    /// Calls `call` with the whole blocks from `offset` to `end`, and says which range that was; `None` if there are none or the
    /// host cannot do it, which `known_bad` remembers.
    fn on_whole_blocks(
        &self,
        offset: u64,
        end: u64,
        known_bad: &AtomicBool,
        call: RangeCall,
    ) -> io::Result<Option<(u64, u64)>> {
        if known_bad.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let device_block = if self.is_device { u64::from(self.block_size) } else { 1 };
        let block = host::HOLE_ALIGNMENT.max(device_block);
        let start = offset.checked_next_multiple_of(block).unwrap_or(u64::MAX);
        let end = end - end % block;
        if start >= end {
            return Ok(None);
        }
        match call(&self.file, start, end - start) {
            Ok(()) => Ok(Some((start, end))),
            Err(error) if is_unsupported(&error) => {
                known_bad.store(true, Ordering::Relaxed);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn write_literal_zeroes(&self, mut offset: u64, end: u64) -> io::Result<()> {
        if offset >= end {
            return Ok(());
        }
        let mut zeros = AlignedBuffer::new((end - offset).min(CHUNK) as usize, 4096);
        while offset < end {
            let count = (end - offset).min(zeros.bytes().len() as u64) as usize;
            let part = &mut zeros.bytes()[..count];
            let list = [iovec { iov_base: part.as_mut_ptr().cast(), iov_len: count }];
            // SAFETY: the buffer is `part`, which outlives the call and which nobody else has.
            self.write(unsafe { Iovecs::from_raw(&list) }, offset)?;
            offset += count as u64;
        }
        Ok(())
    }

    /// Waits until everything that was written is on storage, as far as the options ask for that.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if self.options.cache == CacheMode::Unsafe || !self.options.write {
            return Ok(());
        }
        // A failed sync may have dropped what it could not write, and a later one would then succeed without it.
        if self.sync_failed.load(Ordering::SeqCst) {
            return Err(io::Error::other("an earlier flush has failed, so what it was to keep may be lost"));
        }
        let result = host::sync_data(&self.file, self.options.sync == SyncMode::Full);
        if result.is_err() {
            self.sync_failed.store(true, Ordering::SeqCst);
        }
        result
    }

    /// Changes its length.
    pub(crate) fn set_len(&self, size: u64) -> io::Result<()> {
        if self.is_device {
            return if size <= self.size() { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) };
        }
        let _exclusive = self.own_blocks();
        self.file.set_len(size)?;
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    /// Asks the host for its length, which somebody else may have changed.
    pub(crate) fn refresh_size(&self) -> io::Result<u64> {
        let size = if self.is_device { host::device_size(&self.file)? } else { self.file.metadata()?.len() };
        self.size.store(size, Ordering::Relaxed);
        Ok(size)
    }

    /// Reads the first bytes, as many as there are up to `most`.
    pub(crate) fn read_head(&self, most: u64) -> io::Result<Vec<u8>> {
        let len = self.size().min(most);
        let mut head = vec![0u8; usize::try_from(len).map_err(io::Error::other)?];
        self.read_into(&mut head, 0)?;
        Ok(head)
    }

    /// Fills `bytes` with what is at `offset`; behind the end, that is zeros.
    pub(crate) fn read_into(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let list = [iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
        // SAFETY: the buffer is `bytes`, which outlives the call and which nobody else has.
        self.read(unsafe { Iovecs::from_raw(&list) }, offset)
    }

    /// Whether there is data at `offset` or a hole, and how many bytes of that, at most `max`. Where the host does not say, all is data.
    pub(crate) fn data_at(&self, offset: u64, max: u64) -> io::Result<(bool, u64)> {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;
        if self.is_device {
            return Ok((true, max));
        }
        let end = add(offset, max)?;
        // Nothing else depends on where the file's own position is.
        let data = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data.min(end),
            // No data behind it.
            Err(Errno::NXIO) => end,
            Err(_) => return Ok((true, max)),
        };
        if data > offset {
            return Ok((false, data - offset));
        }
        let hole = seek(&self.file, SeekFrom::Hole(offset)).map_or(end, |hole| hole.min(end));
        // What ends within a sector ends with it: a disk has whole ones.
        let length = (hole - offset).next_multiple_of(super::SECTOR).min(max);
        Ok((true, if length == 0 { max } else { length }))
    }

    fn shared_blocks(&self) -> RwLockReadGuard<'_, ()> {
        self.blocks.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn own_blocks(&self) -> RwLockWriteGuard<'_, ()> {
        self.blocks.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn preadv(&self, buffers: &[iovec], offset: u64) -> io::Result<usize> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        retry(|| {
            // SAFETY: the buffers are memory that may be written for the time of the call; there are at most IOV_MAX.
            unsafe { libc::preadv(self.file.as_raw_fd(), buffers.as_ptr(), buffers.len() as i32, offset) }
        })
    }

    fn pwritev(&self, buffers: &[iovec], offset: u64) -> io::Result<usize> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        retry(|| {
            // SAFETY: the buffers are memory that may be read for the time of the call; there are at most IOV_MAX.
            unsafe { libc::pwritev(self.file.as_raw_fd(), buffers.as_ptr(), buffers.len() as i32, offset) }
        })
    }
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn add(offset: u64, len: u64) -> io::Result<u64> {
    offset.checked_add(len).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn is_unsupported(error: &io::Error) -> bool {
    // ENODEV and ENOTTY come from file systems that never heard of it.
    const UNSUPPORTED: [i32; 4] = [libc::EOPNOTSUPP, libc::ENOTSUP, libc::ENODEV, libc::ENOTTY];
    error.kind() == io::ErrorKind::Unsupported
        || error.raw_os_error().is_some_and(|code| UNSUPPORTED.contains(&code))
}

fn check_type(path: &Path, meta: &fs::Metadata) -> Result<(), DiskError> {
    let kind = meta.file_type();
    if kind.is_dir() {
        return Err(DiskError::Directory(path.to_owned()));
    }
    if kind.is_file() || kind.is_block_device() || (host::CHARACTER_DISKS && kind.is_char_device()) {
        Ok(())
    } else {
        Err(DiskError::NotAFile(path.to_owned()))
    }
}

fn open_error(path: &Path, options: FileOptions, source: io::Error) -> DiskError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => DiskError::Missing(path),
        io::ErrorKind::IsADirectory => DiskError::Directory(path),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if options.write => {
            DiskError::NotWritable { path, source }
        }
        _ => DiskError::Open { path, source },
    }
}

fn lock(path: &Path, file: &File, writing: bool) -> Result<(), DiskError> {
    match host::lock_image(file, writing) {
        Ok(true) => Ok(()),
        Ok(false) => Err(DiskError::Locked { path: path.to_owned(), writing }),
        Err(error) if is_unsupported(&error) || error.raw_os_error() == Some(libc::ENOLCK) => {
            log::debug!("disk {}: its file system has no locks ({error}); going on without", path.display());
            Ok(())
        }
        Err(source) => Err(DiskError::Lock { path: path.to_owned(), source }),
    }
}

impl fmt::Debug for HostFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostFile")
            .field("path", &self.path)
            .field("size", &self.size())
            .field("options", &self.options)
            .field("direct", &self.direct)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for HostFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

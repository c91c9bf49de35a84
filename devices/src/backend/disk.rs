//! Disk images on the host: raw and qcow2, files and block devices. What stands behind a block device of the guest; it knows no
//! virtio and no request queue.
//!
//! [`Disk::open`] checks everything that can be checked before the machine starts. Afterwards all calls may come from any number of
//! threads at once, block as long as the host does, and move data between guest memory and the file without a copy.

mod buffers;
mod chain;
mod config;
mod error;
mod file;
mod header;
pub mod image;
mod qcow2;
mod raw;
mod refcounts;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::VolatileSlice;

pub use config::{
    CacheMode, DiskConfig, DiskConfigError, ErrorAction, ErrorPolicy, ImageFormat, MAX_QUEUES, MAX_SERIAL,
    SyncMode,
};
pub use error::{DiskError, Qcow2Error};

use crate::util::LogLimit;
use chain::Image;

/// The unit in which a guest addresses its disk, whatever the host needs (virtio 1.2, 5.2.6).
pub const SECTOR: u64 = 512;

/// What a block device of the guest needs of the host. [`Disk`] is it for images; a program may bring its own.
///
/// Calls come from several threads at once and may block. Offsets and lengths are in bytes; the caller has checked that they lie
/// within [`capacity`](BlockBackend::capacity).
pub trait BlockBackend: Send + Sync + fmt::Debug {
    /// For log lines.
    fn name(&self) -> &str;

    /// Bytes, a multiple of [`SECTOR`].
    fn capacity(&self) -> u64;

    /// Whether it may only be read.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Whether [`discard`](BlockBackend::discard) has an effect.
    fn can_discard(&self) -> bool {
        false
    }

    /// The block size with which requests cost least: a power of 2, at least [`SECTOR`].
    fn block_size(&self) -> u32 {
        SECTOR as u32
    }

    /// Whether several writes at once get more done than one after the other. Where the host lets one writer at a time into a
    /// file, as it does with the page cache, more threads only wait for each other.
    fn writes_in_parallel(&self) -> bool {
        true
    }

    /// What becomes of a request that cannot be done: of a read, or of any other.
    fn error_policy(&self, read: bool) -> ErrorPolicy {
        let _ = read;
        ErrorPolicy::Report
    }

    /// Fills all of `buffers` with what is at `offset`.
    ///
    /// # Errors
    /// What the host says.
    fn read(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()>;

    /// Writes all of `buffers` to `offset`.
    ///
    /// # Errors
    /// What the host says.
    fn write(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()>;

    /// Makes everything that was written last.
    ///
    /// # Errors
    /// What the host says.
    fn flush(&self) -> io::Result<()>;

    /// Gives a range back. What it reads as afterwards is not defined.
    ///
    /// # Errors
    /// What the host says.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes a range read as zeros; with `unmap` it may be given back, too.
    ///
    /// # Errors
    /// What the host says.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;

    /// Changes the capacity to `size` bytes, a multiple of [`SECTOR`].
    ///
    /// # Errors
    /// What the host says, or that it cannot.
    fn resize(&self, size: u64) -> io::Result<()> {
        let _ = size;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// What a disk can be asked to do.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
            Operation::Discard => "discard",
            Operation::WriteZeroes => "write zeros",
        }
    }
}

/// An open disk image.
///
/// ```
/// use hvrun_devices::backend::disk::{BlockBackend, Disk, DiskConfig};
///
/// let dir = tempfile::tempdir().unwrap();
/// let path = dir.path().join("data.img");
/// std::fs::write(&path, [7u8; 4096]).unwrap();
///
/// let disk = Disk::open(&DiskConfig::new(&path)).unwrap();
/// let mut sector = [0u8; 512];
/// disk.read_bytes(&mut sector, 512).unwrap();
/// assert_eq!((disk.capacity(), sector), (4096, [7; 512]));
/// ```
pub struct Disk {
    config: DiskConfig,
    name: String,
    image: Image,
    errors: LogLimit,
    /// The operations, as bits, whose last one has failed and is in the log.
    failing: AtomicU8,
}

impl Disk {
    /// Opens the image that `config` describes, and the images behind it.
    ///
    /// # Errors
    /// See [`DiskError`]: each names the file, what is wrong with it and what would work.
    pub fn open(config: &DiskConfig) -> Result<Arc<Self>, DiskError> {
        config.validate()?;
        let image = chain::open(config)?;
        let file_name = config.path.file_name().unwrap_or(config.path.as_os_str());
        let name = format!("disk {}", file_name.to_string_lossy());
        let disk = Disk {
            config: config.clone(),
            name,
            image,
            errors: LogLimit::default(),
            failing: AtomicU8::new(0),
        };
        log::debug!("{}: {} bytes, {}", disk.name, disk.capacity(), disk.format());
        Ok(Arc::new(disk))
    }

    /// What it was opened with.
    pub fn config(&self) -> &DiskConfig {
        &self.config
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.config.path
    }

    /// Its format, found out if it was not given.
    pub fn format(&self) -> ImageFormat {
        match self.image {
            Image::Raw(_) => ImageFormat::Raw,
            Image::Qcow2(_) => ImageFormat::Qcow2,
        }
    }

    /// Reads into `buffer`, for those who have no guest.
    ///
    /// # Errors
    /// What the host says.
    pub fn read_bytes(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(&[VolatileSlice::from(buffer)], offset)
    }

    /// Writes `bytes`, for those who have no guest.
    ///
    /// # Errors
    /// What the host says.
    pub fn write_bytes(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut copy = bytes.to_vec();
        self.write(&[VolatileSlice::from(&mut copy[..])], offset)
    }

    /// Says in the log what the host said to `operation` and what becomes of that by `policy`: once, until one of its kind succeeds.
    fn settle(&self, operation: Operation, policy: ErrorPolicy, result: io::Result<()>) -> io::Result<()> {
        let bit = 1 << operation as u8;
        let Err(error) = result else {
            if self.failing.load(Ordering::Relaxed) & bit != 0 {
                self.failing.fetch_and(!bit, Ordering::Relaxed);
            }
            return Ok(());
        };
        let known = self.failing.fetch_or(bit, Ordering::Relaxed) & bit != 0;
        if let Some(suppressed) = (!known).then(|| self.errors.allow()).flatten() {
            let does = match policy.action(&error) {
                ErrorAction::Report => "the guest sees an I/O error",
                ErrorAction::Ignore => "ignored, as asked for",
                ErrorAction::Stop => "the machine is paused; resume it to try again",
            };
            let what = operation.name();
            log::error!(
                "{}: cannot {what}: {error}; {does} (said once, until it works again){suppressed}",
                self.name
            );
        }
        Err(error)
    }

    fn read_only(&self) -> io::Result<()> {
        if self.config.readonly { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }
}

impl BlockBackend for Disk {
    fn name(&self) -> &str {
        &self.name
    }

    fn capacity(&self) -> u64 {
        match &self.image {
            Image::Raw(image) => image.capacity(),
            Image::Qcow2(image) => image.capacity(),
        }
    }

    fn is_read_only(&self) -> bool {
        self.config.readonly
    }

    fn can_discard(&self) -> bool {
        self.config.discard && !self.config.readonly
    }

    fn block_size(&self) -> u32 {
        match &self.image {
            Image::Raw(image) => image.file().block_size(),
            Image::Qcow2(image) => image.block_size(),
        }
    }

    fn writes_in_parallel(&self) -> bool {
        self.config.cache == CacheMode::None
    }

    fn error_policy(&self, read: bool) -> ErrorPolicy {
        if read { self.config.rerror } else { self.config.werror }
    }

    fn read(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        let result = match &self.image {
            Image::Raw(image) => image.read(buffers, offset),
            Image::Qcow2(image) => image.read(buffers, offset),
        };
        if result.is_err() && self.config.rerror == ErrorPolicy::Ignore {
            buffers::zero(buffers);
        }
        self.settle(Operation::Read, self.config.rerror, result)
    }

    fn write(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.read_only()?;
        let result = match &self.image {
            Image::Raw(image) => image.write(buffers, offset),
            Image::Qcow2(image) => image.write(buffers, offset),
        };
        self.settle(Operation::Write, self.config.werror, result)
    }

    fn flush(&self) -> io::Result<()> {
        let result = match &self.image {
            Image::Raw(image) => image.flush(),
            Image::Qcow2(image) => image.flush(),
        };
        self.settle(Operation::Flush, self.config.werror, result)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.read_only()?;
        if !self.config.discard {
            return Ok(());
        }
        let result = match &self.image {
            Image::Raw(image) => image.discard(offset, len),
            Image::Qcow2(image) => image.discard(offset, len),
        };
        self.settle(Operation::Discard, self.config.werror, result)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.read_only()?;
        let unmap = unmap && self.config.discard;
        let result = match &self.image {
            Image::Raw(image) => image.write_zeroes(offset, len, unmap),
            Image::Qcow2(image) => image.write_zeroes(offset, len, unmap),
        };
        self.settle(Operation::WriteZeroes, self.config.werror, result)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.read_only()?;
        if !size.is_multiple_of(SECTOR) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match &self.image {
            Image::Raw(image) => image.resize(size),
            Image::Qcow2(image) => image.resize(size),
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("config", &self.config)
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        log::debug!("{}: closed", self.name);
    }
}

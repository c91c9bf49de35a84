//! qcow2 images: imago's driver over our own files, so that caching, syncing and locking are the same as for raw images.
//! Its several threads run in parallel; what would pull a cluster away from under another request runs alone.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::format::PreallocateMode as FormatPreallocate;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{FormatAccess, Storage};
use vm_memory::VolatileSlice;

use super::SECTOR;
use super::buffers::{AlignedBuffer, Iovecs};
use super::config::CacheMode;
use super::file::HostFile;

/// An image, its backing images behind it.
pub(super) type Access = FormatAccess<HostFile>;

/// A qcow2 image.
pub(super) struct Qcow2Image {
    /// Reading and writing share it: imago orders them. What frees clusters has it alone, as imago demands.
    access: RwLock<Option<Access>>,
    path: PathBuf,
    writable: bool,
    cache: CacheMode,
    block_size: u32,
    /// The driver has failed in a way that leaves its tables in doubt: nothing reaches the image any more.
    broken: AtomicBool,
}

impl Qcow2Image {
    pub(super) fn new(
        access: Access,
        path: PathBuf,
        writable: bool,
        cache: CacheMode,
        block_size: u32,
    ) -> Self {
        Qcow2Image {
            access: RwLock::new(Some(access)),
            path,
            writable,
            cache,
            block_size,
            broken: AtomicBool::new(false),
        }
    }

    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(super) fn capacity(&self) -> u64 {
        let size = self.shared().as_ref().map_or(0, Access::size);
        size - size % SECTOR
    }

    pub(super) fn read(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.with(|access| {
            let (vector, _guard) = IoVectorMut::from_volatile_slice(buffers);
            access.readv(vector, offset)
        })
    }

    pub(super) fn write(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.with(|access| {
            let (vector, _guard) = IoVector::from_volatile_slice(buffers);
            access.writev(vector, offset)
        })
    }

    /// Writes the image's tables to the file, and unless the cache mode says otherwise waits until they are on storage.
    pub(super) fn flush(&self) -> io::Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.with(|access| {
            access.flush()?;
            if self.cache == CacheMode::Unsafe { Ok(()) } else { access.sync() }
        })
    }

    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.with_alone(|access| match access.discard_to_any(offset, len) {
            // Version 2 has no clusters of zeros.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        })
    }

    pub(super) fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let result = if unmap {
            self.with_alone(|access| access.discard_to_zero(offset, len))
        } else {
            self.with(|access| access.write_zeroes(offset, len))
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.write_literal_zeroes(offset, len)
            }
            result => result,
        }
    }

    fn write_literal_zeroes(&self, mut offset: u64, len: u64) -> io::Result<()> {
        let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        let mut zeros = AlignedBuffer::new(len.min(1 << 20) as usize, 4096);
        while offset < end {
            let count = (end - offset).min(zeros.bytes().len() as u64) as usize;
            let part: &[u8] = &zeros.bytes()[..count];
            self.with(|access| access.write(part, offset))?;
            offset += count as u64;
        }
        Ok(())
    }

    pub(super) fn resize(&self, size: u64) -> io::Result<()> {
        self.with_alone(|access| access.resize(size, FormatPreallocate::None))
    }

    fn shared(&self) -> RwLockReadGuard<'_, Option<Access>> {
        self.access.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, Option<Access>> {
        self.access.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn with<T>(&self, call: impl FnOnce(&Access) -> io::Result<T>) -> io::Result<T> {
        let access = self.shared();
        self.guarded(|| call(access.as_ref().ok_or_else(closed)?))
    }

    pub(super) fn with_alone<T>(&self, call: impl FnOnce(&mut Access) -> io::Result<T>) -> io::Result<T> {
        let mut access = self.alone();
        self.guarded(|| call(access.as_mut().ok_or_else(closed)?))
    }

    /// Runs the driver. Should an image drive it into a panic, the disk fails and the machine goes on.
    fn guarded<T>(&self, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("the image driver has failed before"));
        }
        catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
            self.broken.store(true, Ordering::SeqCst);
            Err(io::Error::other("the image driver has failed; the image may be damaged"))
        })
    }
}

fn closed() -> io::Error {
    io::Error::other("the image is closed")
}

impl Drop for Qcow2Image {
    fn drop(&mut self) {
        let access = self.alone().take();
        if self.broken.load(Ordering::SeqCst) {
            // Dropping it would write tables that are in doubt.
            std::mem::forget(access);
            return;
        }
        if let Some(access) = access {
            let result = self.guarded(|| access.flush());
            match result {
                Ok(()) => {}
                Err(error) if self.writable => {
                    log::error!("disk {}: its tables could not be written: {error}", self.path.display());
                }
                Err(_) => {}
            }
            if self.broken.load(Ordering::SeqCst) {
                std::mem::forget(access);
            }
        }
    }
}

impl fmt::Debug for Qcow2Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qcow2Image")
            .field("path", &self.path)
            .field("writable", &self.writable)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

/// What imago sees of our files. Alignment is [`HostFile`]'s own affair, so there is none to keep here.
impl Storage for HostFile {
    fn size(&self) -> io::Result<u64> {
        Ok(HostFile::size(self))
    }

    fn get_filename(&self) -> Option<PathBuf> {
        Some(self.path().to_owned())
    }

    unsafe fn pure_readv(&self, buffers: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: the vector borrows its buffers, and is borrowed until the call returns.
        self.read(unsafe { Iovecs::from_raw(buffers.as_iovec()) }, offset)
    }

    unsafe fn pure_writev(&self, buffers: IoVector<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: the vector borrows its buffers, and is borrowed until the call returns. They are only read.
        self.write(unsafe { Iovecs::from_raw(buffers.as_iovec()) }, offset)
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        HostFile::write_zeroes(self, offset, length, true)
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        HostFile::write_zeroes(self, offset, length, false)
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        HostFile::discard(self, offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        HostFile::sync(self)
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.imago
    }

    fn resize(&self, new_size: u64, mode: PreallocateMode) -> io::Result<()> {
        match mode {
            PreallocateMode::None | PreallocateMode::Zero => self.set_len(new_size),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

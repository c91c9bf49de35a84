//! Raw images: the file's bytes are the disk's. One request, one system call; nothing in between.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::VolatileSlice;

use super::SECTOR;
use super::buffers::Iovecs;
use super::file::HostFile;
use super::header::{Looks, PROBE_LEN, probe};

/// A raw image.
#[derive(Debug)]
pub(super) struct RawImage {
    file: HostFile,
    /// Bytes of the disk: the file's, up to the next sector. What is beyond the file reads as zeros.
    capacity: AtomicU64,
    /// That it is raw was found out by its first bytes, so those must never say anything else.
    probed: bool,
}

impl RawImage {
    pub(super) fn new(file: HostFile, probed: bool) -> Self {
        let size = file.size();
        // A device's last bytes cannot be completed; a file's can.
        let capacity = if file.is_device() {
            size - size % SECTOR
        } else {
            size.checked_next_multiple_of(SECTOR).unwrap_or(size - size % SECTOR)
        };
        RawImage { file, capacity: AtomicU64::new(capacity), probed }
    }

    pub(super) fn file(&self) -> &HostFile {
        &self.file
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    pub(super) fn read(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.file.read(Iovecs::new(buffers), offset)
    }

    pub(super) fn write(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        if self.probed && offset < PROBE_LEN as u64 {
            return self.write_probed(buffers, offset);
        }
        self.file.write(Iovecs::new(buffers), offset)
    }

    /// A guest that wrote another format's first bytes here would have the next run open that format, with whatever backing files
    /// it names. So the first sector is copied, looked at, and written as it was seen.
    fn write_probed(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        let mut sector = [0u8; PROBE_LEN];
        let mut head = Iovecs::new(buffers);
        let count = head.len().min(PROBE_LEN as u64 - offset) as usize;
        let start = offset as usize;
        if count < PROBE_LEN {
            self.file.read(Iovecs::new(&[VolatileSlice::from(&mut sector[..])]), 0)?;
        }
        head.copy_out(&mut sector[start..start + count]);
        if probe(&sector) != Looks::Raw {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the guest writes the first bytes of another image format to a disk whose format was not given; \
                 with format=raw it may",
            ));
        }
        let first = &mut sector[start..start + count];
        self.file.write(Iovecs::new(&[VolatileSlice::from(first)]), offset)?;
        if head.len() == 0 { Ok(()) } else { self.file.write(head, offset + count as u64) }
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync()
    }

    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.discard(offset, len)
    }

    pub(super) fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.file.write_zeroes(offset, len, unmap)
    }

    pub(super) fn resize(&self, size: u64) -> io::Result<()> {
        if self.file.is_device() {
            self.file.refresh_size()?;
        }
        self.file.set_len(size)?;
        self.capacity.store(size, Ordering::Release);
        Ok(())
    }
}

//! One descriptor chain: a request that the driver has put together out of buffers in guest memory, checked and resolved.
//! Not the ring it came from.

use std::io;

use vm_memory::{ByteValued, Bytes, VolatileSlice};

/// A descriptor chain, resolved to host memory. Reused from request to request, so that serving one allocates nothing.
///
/// A chain that [`Virtqueue::pop`](super::Virtqueue::pop) has filled is known to
/// - end within the queue's size, without a loop,
/// - lie within guest RAM, all of it,
/// - have all its readable buffers before its writable ones (virtio 1.2, 2.7.4.2).
///
/// Its *contents* remain the guest's, who may change them at any time: read each field once.
#[derive(Debug, Default)]
pub struct Chain<'m> {
    pub(super) head: u16,
    pub(super) readable: Vec<VolatileSlice<'m>>,
    pub(super) writable: Vec<VolatileSlice<'m>>,
}

impl<'m> Chain<'m> {
    /// An empty one, to be filled.
    pub fn new() -> Self {
        Chain::default()
    }

    /// The same buffers, emptied, for a memory that lives longer or shorter. Collecting nothing into a vector of the same size and
    /// alignment keeps the allocation.
    fn recycle<'n>(self) -> Chain<'n> {
        #[expect(
            clippy::unnecessary_filter_map,
            reason = "a filter would keep the lifetime, which is what changes"
        )]
        let empty = |slices: Vec<VolatileSlice<'m>>| slices.into_iter().filter_map(|_| None).collect();
        Chain { head: 0, readable: empty(self.readable), writable: empty(self.writable) }
    }

    /// The index of its first descriptor, by which it is given back.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The buffers that the driver has filled for the device.
    pub fn readable(&self) -> &[VolatileSlice<'m>] {
        &self.readable
    }

    /// The buffers that the device may fill.
    pub fn writable(&self) -> &[VolatileSlice<'m>] {
        &self.writable
    }

    /// Bytes in the readable buffers.
    pub fn readable_len(&self) -> usize {
        total(&self.readable)
    }

    /// Bytes in the writable buffers.
    pub fn writable_len(&self) -> usize {
        total(&self.writable)
    }

    /// Reads the readable buffers from their beginning.
    pub fn reader(&self) -> ChainReader<'_, 'm> {
        ChainReader { slices: &self.readable, skip: 0 }
    }

    /// Writes the writable buffers from their beginning.
    pub fn writer(&self) -> ChainWriter<'_, 'm> {
        ChainWriter { slices: &self.writable, skip: 0, written: 0 }
    }
}

/// The buffers of a [`Chain`] between two requests, for a device that serves on whatever thread rings: kept, they need not be
/// allocated again.
#[derive(Debug, Default)]
pub struct SpareChain(Chain<'static>);

// SAFETY: what keeps a `Chain` on its thread is the pointers in its slices, and there are none: `take` leaves an empty chain here,
// and `put` empties the one it keeps.
unsafe impl Send for SpareChain {}

impl SpareChain {
    /// An empty chain, with the buffers kept here if there are any.
    pub fn take<'m>(&mut self) -> Chain<'m> {
        std::mem::take(&mut self.0).recycle()
    }

    /// Keeps the buffers of `chain`.
    pub fn put(&mut self, chain: Chain<'_>) {
        self.0 = chain.recycle();
    }
}

/// The length of `slices` together. Cannot overflow: a chain has at most 2^32 bytes.
fn total(slices: &[VolatileSlice<'_>]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

/// Reads a chain's readable buffers one after the other.
#[derive(Debug, Clone, Copy)]
pub struct ChainReader<'c, 'm> {
    slices: &'c [VolatileSlice<'m>],
    /// Bytes of the first slice that are behind us.
    skip: usize,
}

impl ChainReader<'_, '_> {
    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        total(self.slices) - self.skip
    }

    /// Reads a value, or fails if fewer bytes are left.
    pub fn read_obj<T: ByteValued + Default>(&mut self) -> io::Result<T> {
        let mut value = T::default();
        io::Read::read_exact(self, value.as_mut_slice())?;
        Ok(value)
    }
}

impl io::Read for ChainReader<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(slice) = self.slices.first() {
            if done == buf.len() {
                break;
            }
            let count = slice.read(&mut buf[done..], self.skip).unwrap_or(0);
            done += count;
            self.skip += count;
            if self.skip >= slice.len() {
                self.slices = &self.slices[1..];
                self.skip = 0;
            }
        }
        Ok(done)
    }
}

/// Writes a chain's writable buffers one after the other.
#[derive(Debug)]
pub struct ChainWriter<'c, 'm> {
    slices: &'c [VolatileSlice<'m>],
    skip: usize,
    written: u32,
}

impl ChainWriter<'_, '_> {
    /// Bytes of room that are left.
    pub fn remaining(&self) -> usize {
        total(self.slices) - self.skip
    }

    /// Bytes written so far: what [`Virtqueue::push`](super::Virtqueue::push) wants to know.
    pub fn written(&self) -> u32 {
        self.written
    }

    /// Writes a value, or fails if there is no room for it.
    pub fn write_obj<T: ByteValued>(&mut self, value: T) -> io::Result<()> {
        io::Write::write_all(self, value.as_slice())
    }
}

impl io::Write for ChainWriter<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(slice) = self.slices.first() {
            if done == buf.len() {
                break;
            }
            let count = slice.write(&buf[done..], self.skip).unwrap_or(0);
            done += count;
            self.skip += count;
            if self.skip >= slice.len() {
                self.slices = &self.slices[1..];
                self.skip = 0;
            }
        }
        // A chain has at most 2^32 - 1 bytes.
        self.written = self.written.saturating_add(done as u32);
        Ok(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! Lists of buffers: guest memory as the host's `iovec`s, parts of them, and aligned memory to bounce through.
//! It does no I/O.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

use libc::iovec;
use vm_memory::VolatileSlice;

/// The most buffers that one system call takes (IOV_MAX on Linux and macOS).
pub(crate) const MAX_IOVECS: usize = 1024;

/// Buffers for one system call after the other, shortened from the front as bytes are moved.
///
/// A value of it proves that each buffer is memory of the process that stays mapped while the value lives, and that nobody holds
/// a Rust reference to: guest memory, or memory that is borrowed for as long. Its *contents* may change at any time.
pub(crate) struct Iovecs<'a> {
    all: Vec<iovec>,
    /// Buffers that are behind us.
    done: usize,
    memory: PhantomData<VolatileSlice<'a>>,
}

impl<'a> Iovecs<'a> {
    /// The buffers `slices`.
    pub(crate) fn new(slices: &[VolatileSlice<'a>]) -> Self {
        let buffer = |slice: &VolatileSlice<'a>| iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        };
        Iovecs { all: slices.iter().map(buffer).collect(), done: 0, memory: PhantomData }
    }

    /// The buffers `list`.
    ///
    /// # Safety
    /// They are what the type promises, for as long as the result lives.
    pub(crate) unsafe fn from_raw(list: &[iovec]) -> Self {
        Iovecs { all: list.to_vec(), done: 0, memory: PhantomData }
    }

    /// The next buffers for a system call.
    pub(crate) fn next(&self) -> &[iovec] {
        let rest = self.all.get(self.done..).unwrap_or_default();
        &rest[..rest.len().min(MAX_IOVECS)]
    }

    /// Bytes that are left.
    pub(crate) fn len(&self) -> u64 {
        self.all.iter().skip(self.done).map(|buffer| buffer.iov_len as u64).sum()
    }

    /// Whether every buffer begins at a multiple of `memory`, and is a multiple of `length` long.
    pub(crate) fn is_aligned(&self, memory: usize, length: u64) -> bool {
        self.all.iter().skip(self.done).all(|buffer| {
            (buffer.iov_base as usize).is_multiple_of(memory)
                && (buffer.iov_len as u64).is_multiple_of(length)
        })
    }

    /// `count` bytes are done.
    pub(crate) fn advance(&mut self, mut count: usize) {
        while let Some(buffer) = self.all.get_mut(self.done) {
            if count < buffer.iov_len {
                // SAFETY: `count` is less than the buffer's length, so the result lies within it.
                buffer.iov_base = unsafe { buffer.iov_base.cast::<u8>().add(count) }.cast();
                buffer.iov_len -= count;
                return;
            }
            count -= buffer.iov_len;
            self.done += 1;
        }
    }

    /// Moves the first bytes of the buffers into `to`, as many as it has.
    pub(crate) fn copy_out(&mut self, mut to: &mut [u8]) {
        while let Some(buffer) = self.all.get(self.done) {
            let count = buffer.iov_len.min(to.len());
            // SAFETY: the buffer has `count` bytes and is not `to`, which is ours alone.
            unsafe { buffer.iov_base.cast::<u8>().copy_to_nonoverlapping(to.as_mut_ptr(), count) };
            to = &mut to[count..];
            self.advance(count);
            if to.is_empty() {
                return;
            }
        }
    }

    /// Moves `from` into the first bytes of the buffers.
    pub(crate) fn copy_in(&mut self, mut from: &[u8]) {
        while let Some(buffer) = self.all.get(self.done) {
            let count = buffer.iov_len.min(from.len());
            // SAFETY: the buffer has `count` bytes and is not `from`, which is borrowed and not guest memory.
            unsafe { buffer.iov_base.cast::<u8>().copy_from_nonoverlapping(from.as_ptr(), count) };
            from = &from[count..];
            self.advance(count);
            if from.is_empty() {
                return;
            }
        }
    }

    /// Fills what is left with zeros.
    pub(crate) fn zero_rest(&mut self) {
        for buffer in self.all.iter().skip(self.done) {
            // SAFETY: the buffer has `iov_len` bytes.
            unsafe { buffer.iov_base.cast::<u8>().write_bytes(0, buffer.iov_len) };
        }
        self.done = self.all.len();
    }
}

/// Fills the buffers with zeros.
pub(crate) fn zero(slices: &[VolatileSlice<'_>]) {
    Iovecs::new(slices).zero_rest();
}

/// Memory at a multiple of some alignment, zeroed at first.
pub(crate) struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory, as a Vec does.
unsafe impl Send for AlignedBuffer {}

impl AlignedBuffer {
    /// `len` bytes (at least one) at a multiple of `align`, a power of 2.
    pub(crate) fn new(len: usize, align: usize) -> Self {
        let layout = Layout::from_size_align(len.max(1), align.max(1)).unwrap_or(Layout::new::<[u64; 512]>());
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) });
        AlignedBuffer { start: start.unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }

    /// Its bytes.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `start` is `layout.size()` bytes of initialised memory that only this value knows.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and not used any more.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl fmt::Debug for Iovecs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iovecs")
            .field("buffers", &(self.all.len() - self.done))
            .field("bytes", &self.len())
            .finish()
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuffer").field("layout", &self.layout).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advancing_stops_within_a_buffer() {
        let (mut a, mut b) = ([1u8, 2, 3], [4u8, 5, 6]);
        let mut list = Iovecs::new(&[VolatileSlice::from(&mut a[..]), VolatileSlice::from(&mut b[..])]);
        list.advance(4);
        let mut rest = [0; 2];
        list.copy_out(&mut rest);
        assert_eq!(rest, [5, 6]);
        assert_eq!(list.len(), 0);
    }

    #[test]
    fn bytes_are_spread_over_the_buffers() {
        let (mut a, mut b) = ([0u8; 3], [9u8; 3]);
        let mut list = Iovecs::new(&[VolatileSlice::from(&mut a[..]), VolatileSlice::from(&mut b[..])]);
        list.copy_in(&[1, 2, 3, 4]);
        list.zero_rest();
        assert_eq!((a, b), ([1, 2, 3], [4, 0, 0]));
    }

    #[test]
    fn a_buffer_of_odd_length_is_not_aligned() {
        let mut memory = AlignedBuffer::new(1024, 512);
        let (first, second) = memory.bytes().split_at_mut(512);
        assert!(Iovecs::new(&[VolatileSlice::from(&mut *first)]).is_aligned(512, 512));
        assert!(!Iovecs::new(&[VolatileSlice::from(&mut second[..510])]).is_aligned(512, 512));
        assert!(!Iovecs::new(&[VolatileSlice::from(&mut second[1..])]).is_aligned(512, 1));
    }
}

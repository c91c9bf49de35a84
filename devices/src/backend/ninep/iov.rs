//! Reading and writing of messages that lie scattered in guest memory. Knows nothing of 9P.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use vm_memory::VolatileSlice;
use vm_memory::volatile_memory::{PtrGuard, PtrGuardMut};

use crate::sys::ninep as host;

/// Ranges per call to the host. More of them take more calls; 64 pages are 256 KiB.
const BATCH: usize = 64;

/// A list of memory ranges, seen as one run of bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scatter<'a>(pub &'a [VolatileSlice<'a>]);

impl<'a> Scatter<'a> {
    /// Bytes in all ranges.
    pub fn len(&self) -> usize {
        self.0.iter().fold(0, |sum: usize, slice| sum.saturating_add(slice.len()))
    }

    /// The ranges from byte `skip` on, `count` bytes at most.
    fn parts(&self, mut skip: usize, mut count: usize) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.0.iter().filter_map(move |slice| {
            if skip >= slice.len() {
                skip -= slice.len();
                return None;
            }
            let length = count.min(slice.len() - skip);
            let part = slice.subslice(skip, length).ok().filter(|part| !part.is_empty())?;
            skip = 0;
            count -= length;
            Some(part)
        })
    }

    /// Copies bytes from position `skip` on out of the ranges; returns how many there were.
    pub fn read_at(&self, skip: usize, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for part in self.parts(skip, bytes.len()) {
            done += part.copy_to(&mut bytes[done..]);
        }
        done
    }

    /// Copies bytes into the ranges from position `skip` on; returns how many had room.
    pub fn write_at(&self, skip: usize, bytes: &[u8]) -> usize {
        let mut done = 0;
        for part in self.parts(skip, bytes.len()) {
            part.copy_from(&bytes[done..done + part.len()]);
            done += part.len();
        }
        done
    }

    /// Reads up to `count` bytes of a file straight into the ranges from position `skip` on. Less than asked for only at
    /// the end of the file, or when the host fails after a part.
    pub fn fill_from_file(
        &self,
        skip: usize,
        count: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<usize, Errno> {
        self.transfer::<PtrGuardMut>(skip, count, offset, |ranges, offset| {
            // SAFETY: each range is memory that a live guard stands for; it is the guest's or the caller's to be
            // overwritten, and Rust holds no reference into it.
            retry(|| unsafe { libc::preadv(file.as_raw_fd(), ranges.as_ptr(), ranges.len() as i32, offset) })
        })
    }

    /// Like [`fill_from_file`](Self::fill_from_file), but only with what the host has in memory: less than asked for may also
    /// mean that the rest is not there. AGAIN or OPNOTSUPP if none is, or the host cannot tell.
    pub fn fill_from_cache(
        &self,
        skip: usize,
        count: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<usize, Errno> {
        self.transfer::<PtrGuardMut>(skip, count, offset, |ranges, offset| {
            // SAFETY: as in `fill_from_file`.
            unsafe { host::preadv_cached(file, ranges, offset) }
        })
    }

    /// Writes up to `count` bytes from position `skip` on straight from the ranges into a file.
    pub fn drain_to_file(
        &self,
        skip: usize,
        count: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<usize, Errno> {
        self.transfer::<PtrGuard>(skip, count, offset, |ranges, offset| {
            // SAFETY: each range is memory that a live guard stands for; the call only reads it.
            retry(|| unsafe { libc::pwritev(file.as_raw_fd(), ranges.as_ptr(), ranges.len() as i32, offset) })
        })
    }

    fn transfer<G: Guard>(
        &self,
        skip: usize,
        count: usize,
        offset: u64,
        call: impl Fn(&[libc::iovec], libc::off_t) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        let mut parts = self.parts(skip, count);
        let mut done = 0_usize;
        loop {
            let mut guards = [const { None::<G> }; BATCH];
            let mut ranges = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
            let mut used = 0;
            let mut wanted = 0;
            while let Some(part) = if used < BATCH { parts.next() } else { None } {
                let guard = guards[used].insert(G::of(&part));
                ranges[used] = libc::iovec { iov_base: guard.base(), iov_len: part.len() };
                wanted += part.len();
                used += 1;
            }
            if used == 0 {
                return Ok(done);
            }
            let position =
                offset.checked_add(done as u64).and_then(|offset| libc::off_t::try_from(offset).ok());
            let moved = match position.ok_or(Errno::INVAL).and_then(|at| call(&ranges[..used], at)) {
                Ok(moved) => moved,
                Err(error) if done == 0 => return Err(error),
                Err(_) => return Ok(done),
            };
            done += moved;
            if moved < wanted {
                return Ok(done);
            }
        }
    }
}

/// Repeats a call that a signal interrupted.
fn retry(call: impl Fn() -> isize) -> Result<usize, Errno> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        match Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO) {
            Errno::INTR => {}
            error => return Err(error),
        }
    }
}

/// Keeps a range of memory in place while the host uses it.
trait Guard {
    fn of(part: &VolatileSlice<'_>) -> Self;
    fn base(&self) -> *mut libc::c_void;
}

impl Guard for PtrGuard {
    fn of(part: &VolatileSlice<'_>) -> Self {
        part.ptr_guard()
    }

    fn base(&self) -> *mut libc::c_void {
        self.as_ptr().cast_mut().cast()
    }
}

impl Guard for PtrGuardMut {
    fn of(part: &VolatileSlice<'_>) -> Self {
        part.ptr_guard_mut()
    }

    fn base(&self) -> *mut libc::c_void {
        self.as_ptr().cast()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// Splits `bytes` into ranges of `size` bytes.
    fn scattered(bytes: &mut [u8], size: usize) -> Vec<VolatileSlice<'_>> {
        bytes.chunks_mut(size).map(VolatileSlice::from).collect()
    }

    #[test]
    fn bytes_are_read_across_ranges() {
        let mut memory = *b"abcdefgh";
        let mut found = [0; 4];
        let ranges = scattered(&mut memory, 3);
        let count = Scatter(&ranges).read_at(2, &mut found);
        assert_eq!((count, &found), (4, b"cdef"));
    }

    #[test]
    fn writing_stops_at_the_end_of_the_ranges() {
        let mut memory = *b"abcdefgh";
        let ranges = scattered(&mut memory, 3);
        let count = Scatter(&ranges).write_at(6, b"123");
        assert_eq!((count, memory), (2, *b"abcdef12"));
    }

    #[test]
    fn a_file_goes_into_more_ranges_than_one_call_takes() -> std::io::Result<()> {
        let contents: Vec<u8> = (0..1000).map(|n| n as u8).collect();
        let file = tempfile::tempfile()?;
        std::io::Write::write_all(&mut &file, &contents)?;
        let mut memory = vec![0; 1200];
        let ranges = scattered(&mut memory, 5);
        let count = Scatter(&ranges).fill_from_file(11, 1100, file.as_fd(), 0)?;
        assert_eq!((count, &memory[11..1011]), (1000, &contents[..]));
        Ok(())
    }

    #[test]
    fn ranges_go_into_a_file_at_an_offset() -> std::io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let mut memory = *b"..hello..";
        let ranges = scattered(&mut memory, 2);
        Scatter(&ranges).drain_to_file(2, 5, file.as_file().as_fd(), 3)?;
        assert_eq!(std::fs::read(file.path())?, b"\0\0\0hello");
        Ok(())
    }

    #[test]
    fn an_offset_beyond_what_files_have_is_invalid() -> std::io::Result<()> {
        let file = tempfile::tempfile()?;
        let mut memory = [0; 4];
        let ranges = scattered(&mut memory, 4);
        assert_eq!(Scatter(&ranges).fill_from_file(0, 4, file.as_fd(), u64::MAX), Err(Errno::INVAL));
        Ok(())
    }
}

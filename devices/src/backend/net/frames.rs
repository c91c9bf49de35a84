//! Moving single frames between the guest's memory and descriptors, and between it and buffers. It knows no protocol.

use std::io::Error;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use vm_memory::VolatileSlice;
use vm_memory::volatile_memory::{PtrGuard, PtrGuardMut};

use super::{FrameInfo, RxRing, TxFrame};
use crate::sys::SEND_NO_SIGNAL;

/// Longest frame that anybody sends: the largest IP packet behind an Ethernet header with an 802.1Q tag.
pub(super) const MAX_FRAME: usize = 65_535 + super::ETHERNET_HEADER + 4;

/// Ranges of memory per call to the host. A frame in more of them goes through a buffer.
const RANGES: usize = 64;

/// Appends the frame's bytes to `buffer`.
pub(super) fn gather(frame: &TxFrame<'_, '_>, buffer: &mut Vec<u8>) {
    let mut at = buffer.len();
    buffer.resize(at.saturating_add(frame.len), 0);
    for slice in frame.slices {
        let Some(room) = buffer.get_mut(at..) else { return };
        at += slice.copy_to(room);
    }
    buffer.truncate(at);
}

/// Copies `bytes` into the room that `slices` are; says how many had room.
pub(super) fn scatter(bytes: &[u8], slices: &[VolatileSlice<'_>]) -> usize {
    let mut done = 0;
    for slice in slices {
        let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) else { break };
        let count = rest.len().min(slice.len());
        slice.copy_from(&rest[..count]);
        done += count;
    }
    done
}

/// Sends a frame as one datagram.
pub(super) fn send(fd: BorrowedFd<'_>, frame: &TxFrame<'_, '_>) -> Result<usize, Errno> {
    transfer_out(&[], frame, |ranges| {
        let message = message(ranges);
        // SAFETY: the message lists ranges of memory that live guards stand for; the call only reads them. The descriptor is
        // open for as long as it is borrowed.
        unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, SEND_NO_SIGNAL.bits() as i32) }
    })
}

/// Writes `header` and a frame with one call.
pub(super) fn write(fd: BorrowedFd<'_>, header: &[u8], frame: &TxFrame<'_, '_>) -> Result<usize, Errno> {
    transfer_out(header, frame, |ranges| {
        // SAFETY: the ranges are memory that `header` and live guards stand for; the call only reads them.
        unsafe { libc::writev(fd.as_raw_fd(), ranges.as_ptr(), ranges.len() as i32) }
    })
}

/// Frames that are taken in a row before others get their turn.
pub(super) const BATCH: usize = 512;

/// Puts what `receive` gives into `ring`, until it says [`Errno::AGAIN`] or another error, which is returned. `Ok(None)` is a frame that
/// nobody gets. Returns whether there was no room for more.
pub(super) fn receive_all(
    ring: &mut dyn RxRing,
    max: usize,
    mut receive: impl FnMut(&[VolatileSlice<'_>]) -> Result<Option<(usize, FrameInfo)>, Errno>,
) -> Result<bool, Errno> {
    for _ in 0..BATCH {
        let mut failed = None;
        let room = ring.put(max, &mut |slices| {
            receive(slices).unwrap_or_else(|error| {
                failed = Some(error);
                None
            })
        });
        match failed {
            None if room => {}
            None => return Ok(true),
            Some(Errno::AGAIN) => return Ok(false),
            Some(error) => return Err(error),
        }
    }
    Ok(false)
}

/// What has come with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    /// Bytes that were stored.
    pub len: usize,
    /// There was more, which is lost.
    pub truncated: bool,
}

/// Receives one datagram of at most `max` bytes into `slices`.
pub(super) fn receive(
    fd: BorrowedFd<'_>,
    slices: &[VolatileSlice<'_>],
    max: usize,
) -> Result<Received, Errno> {
    let mut truncated = false;
    let len = transfer_in(&mut [], slices, max, |ranges| {
        let mut message = message(ranges);
        // SAFETY: the message lists ranges of memory that live guards stand for; they are the guest's or the caller's to be
        // overwritten, and Rust holds no reference into them.
        let count = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, 0) };
        truncated = message.msg_flags & libc::MSG_TRUNC != 0;
        count
    })?;
    Ok(Received { len, truncated })
}

/// Reads `header` and at most `max` bytes of a frame with one call; the length is that of both.
pub(super) fn read(
    fd: BorrowedFd<'_>,
    header: &mut [u8],
    slices: &[VolatileSlice<'_>],
    max: usize,
) -> Result<usize, Errno> {
    transfer_in(header, slices, max, |ranges| {
        // SAFETY: the ranges are `header`, which is borrowed for this alone, and memory that live guards stand for, which is the
        // guest's or the caller's to be overwritten and into which Rust holds no reference.
        unsafe { libc::readv(fd.as_raw_fd(), ranges.as_ptr(), ranges.len() as i32) }
    })
}

fn transfer_out(
    header: &[u8],
    frame: &TxFrame<'_, '_>,
    call: impl FnMut(&[libc::iovec]) -> isize,
) -> Result<usize, Errno> {
    if frame.slices.len() < RANGES {
        let guards: [_; RANGES] =
            std::array::from_fn(|index| frame.slices.get(index).map(VolatileSlice::ptr_guard));
        let mut ranges = Ranges::default();
        ranges.push(header.as_ptr().cast_mut(), header.len());
        for guard in guards.iter().flatten() {
            ranges.push(PtrGuard::as_ptr(guard).cast_mut(), guard.len());
        }
        return retry(ranges.used(), call);
    }
    let mut buffer = Vec::with_capacity(frame.len.min(MAX_FRAME));
    gather(frame, &mut buffer);
    let mut ranges = Ranges::default();
    ranges.push(header.as_ptr().cast_mut(), header.len());
    ranges.push(buffer.as_ptr().cast_mut(), buffer.len());
    retry(ranges.used(), call)
}

fn transfer_in(
    header: &mut [u8],
    slices: &[VolatileSlice<'_>],
    max: usize,
    call: impl FnMut(&[libc::iovec]) -> isize,
) -> Result<usize, Errno> {
    let mut ranges = Ranges::default();
    ranges.push(header.as_mut_ptr(), header.len());
    if slices.len() < RANGES {
        let guards: [_; RANGES] =
            std::array::from_fn(|index| slices.get(index).map(VolatileSlice::ptr_guard_mut));
        let mut left = max;
        for guard in guards.iter().flatten() {
            let len = guard.len().min(left);
            ranges.push(PtrGuardMut::as_ptr(guard), len);
            left -= len;
        }
        return retry(ranges.used(), call);
    }
    let mut buffer = vec![0; max];
    ranges.push(buffer.as_mut_ptr(), buffer.len());
    let count = retry(ranges.used(), call)?;
    let frame = count.saturating_sub(header.len()).min(buffer.len());
    let stored = scatter(&buffer[..frame], slices);
    Ok(count.min(header.len()) + stored)
}

/// A list for the host of places in memory.
struct Ranges {
    list: [libc::iovec; RANGES + 1],
    count: usize,
}

impl Default for Ranges {
    fn default() -> Self {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Ranges { list: [none; RANGES + 1], count: 0 }
    }
}

impl Ranges {
    fn push(&mut self, base: *mut u8, len: usize) {
        if let Some(range) = self.list.get_mut(self.count).filter(|_| len > 0) {
            *range = libc::iovec { iov_base: base.cast(), iov_len: len };
            self.count += 1;
        }
    }

    fn used(&self) -> &[libc::iovec] {
        &self.list[..self.count]
    }
}

fn message(ranges: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: a msghdr is integers and pointers, for which zero is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = ranges.as_ptr().cast_mut();
    // The type differs by host; there are few.
    message.msg_iovlen = ranges.len() as _;
    message
}

/// Repeats a call that a signal interrupted.
fn retry(ranges: &[libc::iovec], mut call: impl FnMut(&[libc::iovec]) -> isize) -> Result<usize, Errno> {
    loop {
        if let Ok(count) = usize::try_from(call(ranges)) {
            return Ok(count);
        }
        match Errno::from_io_error(&Error::last_os_error()).unwrap_or(Errno::IO) {
            Errno::INTR => {}
            error => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::backend::net::FrameInfo;

    /// `bytes` in pieces of `size` bytes.
    fn pieces(bytes: &mut [u8], size: usize) -> Vec<VolatileSlice<'_>> {
        bytes.chunks_mut(size).map(VolatileSlice::from).collect()
    }

    fn round_trip(piece: usize) -> Vec<u8> {
        let (one, two) = UnixDatagram::pair().unwrap();
        let mut sent: Vec<u8> = (0..1514u32).map(|n| n as u8).collect();
        let mut got = vec![0; 1600];
        let slices = pieces(&mut sent, piece);
        let frame = TxFrame { slices: &slices, len: 1514, info: FrameInfo::default() };
        assert_eq!(send(one.as_fd(), &frame), Ok(1514));
        let received = receive(two.as_fd(), &pieces(&mut got, piece), 1518);
        assert_eq!(received, Ok(Received { len: 1514, truncated: false }));
        got.truncate(1514);
        got
    }

    #[test]
    fn a_frame_in_a_few_pieces_passes_unchanged() {
        assert!(round_trip(100).into_iter().eq((0..1514u32).map(|n| n as u8)));
    }

    #[test]
    fn a_frame_in_hundreds_of_pieces_passes_unchanged() {
        assert!(round_trip(3).into_iter().eq((0..1514u32).map(|n| n as u8)));
    }

    #[test]
    fn a_datagram_that_is_too_long_is_marked() {
        let (one, two) = UnixDatagram::pair().unwrap();
        one.send(&[7; 2000]).unwrap();
        let mut got = vec![0; 4000];
        let received = receive(two.as_fd(), &pieces(&mut got, 1000), 1518);
        assert_eq!(received, Ok(Received { len: 1518, truncated: true }));
        assert_eq!(got[1518], 0, "nothing is written behind the limit");
    }

    #[test]
    fn a_frame_that_is_longer_than_its_slices_is_cut_to_them() {
        let mut bytes = [5; 20];
        let slices = pieces(&mut bytes, 8);
        let mut buffer = vec![1];
        gather(&TxFrame { slices: &slices, len: 30, info: FrameInfo::default() }, &mut buffer);
        assert_eq!(buffer.len(), 21);
    }
}

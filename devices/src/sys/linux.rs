//! What Linux has its own way.

#[path = "linux/disk.rs"]
pub(crate) mod disk;
#[path = "linux/net.rs"]
pub(crate) mod net;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, write};

/// Longest path of a unix socket in bytes: `sun_path` has 108, one for the final NUL (unix(7)).
pub(crate) const UNIX_PATH_MAX: usize = 107;

/// Most descriptors a process should ask for.
pub(crate) const MOST_DESCRIPTORS: u64 = 1 << 20;

/// Sending to a socket whose other end has gone shall be an error and no signal (send(2), MSG_NOSIGNAL).
pub(crate) const SEND_NO_SIGNAL: rustix::net::SendFlags = rustix::net::SendFlags::NOSIGNAL;

/// A doorbell between threads, and between the kernel and a thread: an eventfd. Signals add up to one until somebody waits.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// A quiet one.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // Blocking, so that a wait is one system call.
        Ok(Event(eventfd(0, EventfdFlags::CLOEXEC)?))
    }

    /// Wakes the one who waits, or will.
    pub fn signal(&self) {
        // Only a counter at its end would make it block, after 2^64 - 2 signals that nobody waited for.
        let _ = write(&self.0, &1u64.to_ne_bytes());
    }

    /// Waits for a signal and takes all there are.
    ///
    /// # Errors
    /// What the host says; none is known.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            match read(&self.0, &mut [0u8; 8]) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An [`Event`] whose other end another process has: an eventfd that never blocks anybody.
#[derive(Debug)]
pub(crate) struct PeerEvent(OwnedFd);

impl PeerEvent {
    /// A quiet one.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(PeerEvent(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes the one who waits, or will.
    pub(crate) fn signal(&self) {
        // It fails when the counter is at its end, and then the other one has been woken often enough.
        let _ = write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes all signals there are, and says whether there were any.
    pub(crate) fn take(&self) -> bool {
        loop {
            match read(&self.0, &mut [0u8; 8]) {
                Err(Errno::INTR) => {}
                result => return result.is_ok(),
            }
        }
    }
}

impl AsFd for PeerEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How often this thread has given up its CPU to wait for something (getrusage(2), RUSAGE_THREAD, `ru_nvcsw`). Having lost the CPU
/// to another thread does not count, and neither does a request that only takes its time.
pub(crate) fn thread_waits() -> Option<u64> {
    // SAFETY: `rusage` is plain data, for which zeros are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills in the `rusage` that it is given.
    let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    (result == 0).then(|| u64::try_from(usage.ru_nvcsw).ok()).flatten()
}

/// Makes `len` bytes of private anonymous memory at `start` zero by giving its pages back (madvise(2), MADV_DONTNEED: the next
/// access sees a new zero page).
///
/// # Safety
/// `start` and `len` are whole pages of such a mapping, to which no reference exists.
pub(crate) unsafe fn discard(start: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise; the contents may vanish.
    unsafe { rustix::mm::madvise(start.cast(), len, rustix::mm::Advice::LinuxDontNeed) }
        .map_err(io::Error::from)
}

/// The same for a shared mapping of a file: its pages go out of the file, for everybody (madvise(2), MADV_REMOVE).
///
/// # Safety
/// `start` and `len` are whole pages of such a mapping, writable, to which no reference exists.
pub(crate) unsafe fn discard_shared(start: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: the caller's promise; the contents may vanish.
    unsafe { rustix::mm::madvise(start.cast(), len, rustix::mm::Advice::LinuxRemove) }
        .map_err(io::Error::from)
}

//! What macOS has its own way.

#[path = "macos/disk.rs"]
pub(crate) mod disk;
#[path = "macos/net.rs"]
pub(crate) mod net;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, read, write};
use rustix::pipe::pipe;

/// Longest path of a unix socket in bytes: `sun_path` has 104, one for the final NUL (unix(4)).
pub(crate) const UNIX_PATH_MAX: usize = 103;

/// Most descriptors a process may ask for without privileges (`OPEN_MAX`).
pub(crate) const MOST_DESCRIPTORS: u64 = 10_240;

/// Sending to a socket whose other end has gone is an error already: the standard library sets SO_NOSIGPIPE on its sockets.
pub(crate) const SEND_NO_SIGNAL: rustix::net::SendFlags = rustix::net::SendFlags::empty();

/// A doorbell between threads: a pipe that holds at most one byte. Signals add up to one until somebody waits.
#[derive(Debug)]
pub struct Event {
    receiver: OwnedFd,
    sender: OwnedFd,
    pending: AtomicBool,
}

impl Event {
    /// A quiet one.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let (receiver, sender) = pipe()?;
        for fd in [&receiver, &sender] {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
        }
        Ok(Event { receiver, sender, pending: AtomicBool::new(false) })
    }

    /// Wakes the one who waits, or will.
    pub fn signal(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) {
            let _ = write(&self.sender, &[1]);
        }
    }

    /// Waits for a signal and takes all there are.
    ///
    /// # Errors
    /// What the host says; none is known.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            match read(&self.receiver, &mut [0u8; 1]) {
                Ok(_) => {
                    // A swap, so that what was published before a signal that found it set is seen after this.
                    self.pending.swap(false, Ordering::SeqCst);
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

/// A doorbell between processes, as the back ends of vhost-user devices have it: an eventfd, which there is none of here.
#[derive(Debug)]
pub(crate) enum PeerEvent {}

impl PeerEvent {
    /// Says that there is none.
    pub(crate) fn new() -> io::Result<Self> {
        let why = "vhost-user back ends work on Linux only; here, share folders by 9p";
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    }

    /// Wakes the one who waits, or will.
    pub(crate) fn signal(&self) {
        match *self {}
    }

    /// Takes all signals there are, and says whether there were any.
    pub(crate) fn take(&self) -> bool {
        match *self {}
    }
}

impl AsFd for PeerEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match *self {}
    }
}

/// How often this thread has given up its CPU to wait for something: not counted here, but for all threads of a process together.
pub(crate) fn thread_waits() -> Option<u64> {
    None
}

/// Makes `len` bytes of private anonymous memory at `start` zero by putting new memory in its place: `madvise` promises nothing about
/// what is read afterwards.
///
/// # Safety
/// `start` and `len` are whole pages of such a mapping, to which no reference exists, and which no hypervisor has been given: it would
/// keep the old pages.
pub(crate) unsafe fn discard(start: *mut u8, len: usize) -> io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the caller's promise; what is replaced is only the caller's.
    unsafe { mmap_anonymous(start.cast(), len, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
    Ok(())
}

/// The same for a shared mapping of a file: nothing here gives its pages back and keeps it shared.
///
/// # Safety
/// As for [`discard`].
pub(crate) unsafe fn discard_shared(_start: *mut u8, _len: usize) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

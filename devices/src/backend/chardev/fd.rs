//! Reading, writing and waiting on plain descriptors whose flags belong to somebody else.
//!
//! Works in blocking and in non-blocking mode and changes neither.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::stream::Source;

/// Waits until one of `fds` is ready or `timeout` has passed (`None`: for ever). A signal counts as nothing ready.
pub(super) fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match rustix::event::poll(fds, timeout.as_ref()) {
        Ok(_) => Ok(()),
        Err(Errno::INTR) => {
            for fd in fds {
                fd.clear_revents();
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Input from one descriptor: a terminal, a pipe, a file, `/dev/null`.
#[derive(Debug)]
pub(super) struct FdSource {
    /// `None` after the end.
    fd: Option<OwnedFd>,
}

impl FdSource {
    pub(super) fn new(fd: OwnedFd) -> Self {
        FdSource { fd: Some(fd) }
    }
}

impl Source for FdSource {
    fn interest(&self, has_room: bool) -> Vec<PollFd<'_>> {
        let fd = self.fd.as_ref().filter(|_| has_room);
        fd.map(|fd| PollFd::new(fd, PollFlags::IN)).into_iter().collect()
    }

    /// Whatever `poll` said, trying to read tells the truth: macOS answers NVAL for devices that it can read well.
    fn read(&mut self, _ready: &[PollFlags], buf: &mut [u8]) -> io::Result<usize> {
        let Some(fd) = &self.fd else { return Ok(0) };
        match rustix::io::read(fd, buf) {
            Ok(0) => self.fd = None,
            Ok(count) => return Ok(count),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // A terminal whose other end is gone: its way to say that this is the end.
            Err(Errno::IO) => self.fd = None,
            Err(error) => {
                self.fd = None;
                return Err(error.into());
            }
        }
        Ok(0)
    }
}

/// Output into one descriptor.
#[derive(Debug)]
pub(super) struct FdSink(pub(super) OwnedFd);

impl io::Write for FdSink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.0, data) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                // Somebody who shares the descriptor has made it non-blocking.
                Err(Errno::AGAIN) => {
                    poll(&mut [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::OUT)], None)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

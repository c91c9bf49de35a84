//! A character device on a new pseudo-terminal: another program opens its slave, as it would open a serial port.
//!
//! Output while nobody has it open vanishes. The terminal starts in raw mode; what a program makes of it afterwards is its own.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::fd::poll;
use super::output::Direct;
use super::stream::{Parts, Source, Stream};
use super::{ChardevError, Peer};

/// How often to look whether somebody has opened the slave: no descriptor announces it.
const RECHECK: Duration = Duration::from_millis(50);

impl Stream {
    /// Makes a pseudo-terminal, which [`CharBackend::terminal`](super::CharBackend::terminal) names and a log line, too.
    pub fn pty() -> Result<Stream, ChardevError> {
        let (master, path) = open().map_err(ChardevError::Pty)?;
        log::warn!("a guest's port waits on the pseudo-terminal {}", path.display());
        let line = Line { master: Arc::new(master), open: Arc::default(), closing: Arc::default() };
        let closing = line.closing.clone();
        Stream::start(Parts {
            name: format!("pty:{}", path.display()),
            source: Some(Box::new(PtySource { line: line.clone(), peer: Peer::NOBODY, pollable: true })),
            sink: Box::new(line.clone()),
            direct: Some(Box::new(line)),
            filter: None,
            terminal: Some(path),
            interrupt: Some(Box::new(move || closing.store(true, Ordering::SeqCst))),
        })
    }
}

/// A master in non-blocking mode, whose slave is raw and closed, and the slave's path.
fn open() -> io::Result<(OwnedFd, PathBuf)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    fcntl_setfd(&master, FdFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = PathBuf::from(OsString::from_vec(ptsname(&master, Vec::new())?.into_bytes()));
    // Once opened and closed again, its master reports a hang-up until somebody else opens it.
    let slave = rustix::fs::open(&path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    let mut mode = tcgetattr(&slave)?;
    mode.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &mode)?;
    ioctl_fionbio(&master, true)?;
    Ok((master, path))
}

/// The master, shared by both threads and the short way out.
#[derive(Debug, Clone)]
struct Line {
    /// Non-blocking; its open file is nobody else's.
    master: Arc<OwnedFd>,
    /// Somebody has the slave open.
    open: Arc<AtomicBool>,
    /// The stream is being dropped.
    closing: Arc<AtomicBool>,
}

impl Line {
    fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// Whether the slave is closed at this moment.
    fn hung_up(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&*self.master, PollFlags::IN)];
        poll(&mut fds, Some(Duration::ZERO))?;
        Ok(fds[0].revents().contains(PollFlags::HUP))
    }
}

impl Direct for Line {
    fn try_write(&self, data: &[u8]) -> usize {
        if !self.is_open() {
            return data.len();
        }
        match rustix::io::write(&*self.master, data) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => data.len(),
        }
    }
}

impl Write for Line {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        while !data.is_empty() {
            match self.try_write(data) {
                0 => {}
                count => return Ok(count),
            }
            let mut fds = [PollFd::new(&*self.master, PollFlags::OUT)];
            poll(&mut fds, Some(RECHECK))?;
            let hung_up = fds[0].revents().contains(PollFlags::HUP);
            if hung_up || self.closing.load(Ordering::SeqCst) {
                break;
            }
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct PtySource {
    line: Line,
    peer: Peer,
    /// Cleared if the host cannot wait for terminals: they are looked at now and then instead.
    pollable: bool,
}

impl PtySource {
    fn set_open(&mut self, open: bool) {
        self.line.open.store(open, Ordering::SeqCst);
        self.peer = if open { self.peer.joined() } else { self.peer.left() };
    }
}

impl Source for PtySource {
    fn interest(&self, has_room: bool) -> Vec<PollFd<'_>> {
        if has_room && self.pollable && self.line.is_open() {
            vec![PollFd::new(&*self.line.master, PollFlags::IN)]
        } else {
            Vec::new()
        }
    }

    fn read(&mut self, ready: &[PollFlags], buf: &mut [u8]) -> io::Result<usize> {
        if !self.line.is_open() {
            if self.line.hung_up()? {
                return Ok(0);
            }
            self.set_open(true);
        }
        if buf.is_empty() {
            return Ok(0);
        }
        let flags = ready.first().copied().unwrap_or(PollFlags::empty());
        match rustix::io::read(&*self.line.master, &mut *buf) {
            Ok(0) | Err(Errno::IO) => self.set_open(false),
            Ok(count) => return Ok(count),
            Err(Errno::AGAIN) if flags.contains(PollFlags::HUP) => self.set_open(false),
            Err(Errno::AGAIN) if flags.contains(PollFlags::NVAL) => self.pollable = false,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => {
                self.set_open(false);
                return Err(error.into());
            }
        }
        Ok(0)
    }

    fn peer(&self) -> Peer {
        self.peer
    }

    fn recheck(&self) -> Option<Duration> {
        (!self.pollable || !self.line.is_open()).then_some(RECHECK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_terminal_is_raw_and_nobody_has_it_open() {
        let (master, path) = open().unwrap();
        let line = Line { master: Arc::new(master), open: Arc::default(), closing: Arc::default() };
        assert!(line.hung_up().unwrap());
        let slave = rustix::fs::open(&path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        assert!(!line.hung_up().unwrap());
        assert!(!tcgetattr(&slave).unwrap().local_modes.contains(rustix::termios::LocalModes::ECHO));
    }
}

//! The serial port on a unix socket that listens: one client at a time, and another may come when it has gone.
//!
//! Output while nobody is connected vanishes. The socket's file goes away with the stream.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags};

use super::ChardevError;
use super::stream::{Parts, Source, Stream};
use crate::sys::UNIX_PATH_MAX;
use crate::util::lock;

impl Stream {
    /// Listens at `path`. A socket file that a dead process left behind is replaced; anything else there is left alone.
    pub fn unix(path: &Path) -> Result<Stream, ChardevError> {
        let listener = bind(path)?;
        let failed = |source| ChardevError::Socket { path: path.to_owned(), source };
        listener.set_nonblocking(true).map_err(failed)?;
        let file = SocketFile::of(path).map_err(failed)?;
        let client = Client::default();
        let current = client.clone();
        Stream::start(Parts {
            name: format!("unix:{}", path.display()),
            source: Some(Box::new(UnixSource { listener, peer: Peer::None, client: client.clone() })),
            sink: Box::new(UnixSink(client)),
            filter: None,
            // Owns the file too, so that it is removed when the stream is dropped.
            interrupt: Some(Box::new(move || {
                let _ = &file;
                current.disconnect();
            })),
        })
    }
}

/// Binds `path`, after moving a stale socket out of the way.
fn bind(path: &Path) -> Result<UnixListener, ChardevError> {
    let len = path.as_os_str().as_bytes().len();
    if len > UNIX_PATH_MAX {
        return Err(ChardevError::PathTooLong { path: path.to_owned(), len, max: UNIX_PATH_MAX });
    }
    let failed = |source| ChardevError::Socket { path: path.to_owned(), source };
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        result => return result.map_err(failed),
    }
    if !fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
        return Err(ChardevError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        // Nobody has it open any more.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(failed(error)),
        // Connected, or its queue of callers is full.
        _ => return Err(ChardevError::InUse { path: path.to_owned() }),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(error)),
        _ => UnixListener::bind(path).map_err(failed),
    }
}

/// The socket's file, removed on drop unless somebody has put another in its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        // Absolute, because the process may change its directory.
        Ok(SocketFile { path: std::path::absolute(path)?, identity: Self::identity(path)? })
    }

    fn identity(path: &Path) -> io::Result<(u64, u64)> {
        let metadata = fs::symlink_metadata(path)?;
        Ok((metadata.dev(), metadata.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if Self::identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The client that output goes to, shared between the threads.
#[derive(Debug, Clone, Default)]
struct Client(Arc<Mutex<Option<Arc<UnixStream>>>>);

impl Client {
    fn current(&self) -> Option<Arc<UnixStream>> {
        lock(&self.0).clone()
    }

    fn connect(&self, stream: Arc<UnixStream>) {
        *lock(&self.0) = Some(stream);
    }

    /// Hangs up; a write that is blocked returns.
    fn disconnect(&self) {
        if let Some(stream) = lock(&self.0).take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Forgets `stream` if it still is the client.
    fn forget(&self, stream: &Arc<UnixStream>) {
        let mut current = lock(&self.0);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, stream)) {
            *current = None;
        }
    }
}

#[derive(Debug)]
enum Peer {
    None,
    Connected(Arc<UnixStream>),
    /// It sends no more but may still read, like `echo | nc -U`. It stays until it hangs up or another client comes.
    HalfClosed(Arc<UnixStream>),
}

#[derive(Debug)]
struct UnixSource {
    listener: UnixListener,
    peer: Peer,
    client: Client,
}

impl UnixSource {
    fn accept(&mut self) -> io::Result<()> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                // Some systems hand the listener's mode down.
                stream.set_nonblocking(false)?;
                let stream = Arc::new(stream);
                self.client.disconnect();
                self.client.connect(stream.clone());
                self.peer = Peer::Connected(stream);
                Ok(())
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => Ok(()),
                _ => Err(error),
            },
        }
    }
}

impl Source for UnixSource {
    fn interest(&self, has_room: bool) -> Vec<PollFd<'_>> {
        let listener = PollFd::new(&self.listener, PollFlags::IN);
        match &self.peer {
            Peer::None => vec![listener],
            Peer::Connected(stream) if has_room => vec![PollFd::new(&**stream, PollFlags::IN)],
            Peer::Connected(_) => Vec::new(),
            // A hang-up is reported without being asked for.
            Peer::HalfClosed(stream) => vec![listener, PollFd::new(&**stream, PollFlags::empty())],
        }
    }

    fn read(&mut self, ready: &[PollFlags], buf: &mut [u8]) -> io::Result<usize> {
        let is_ready = |index: usize| ready.get(index).is_some_and(|flags| !flags.is_empty());
        match &self.peer {
            Peer::None => self.accept().map(|()| 0),
            Peer::Connected(stream) => {
                let stream = stream.clone();
                match (&*stream).read(buf) {
                    Ok(0) => self.peer = Peer::HalfClosed(stream),
                    Ok(count) => return Ok(count),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Err(_) => {
                        self.client.disconnect();
                        self.peer = Peer::None;
                    }
                }
                Ok(0)
            }
            Peer::HalfClosed(_) if is_ready(1) => {
                self.client.disconnect();
                self.peer = Peer::None;
                Ok(0)
            }
            Peer::HalfClosed(_) => self.accept().map(|()| 0),
        }
    }
}

/// Writes to whoever is connected; drops what nobody is there to read.
#[derive(Debug)]
struct UnixSink(Client);

impl Write for UnixSink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let Some(stream) = self.0.current() else { return Ok(data.len()) };
        match (&*stream).write(data) {
            Ok(count) => Ok(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            Err(_) => {
                self.0.forget(&stream);
                Ok(data.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

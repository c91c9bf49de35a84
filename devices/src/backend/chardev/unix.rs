//! A character device on a unix socket: one that listens, for one client at a time, or one that connects to another program's.
//!
//! Output while nobody is connected vanishes. The file of a socket that listens goes away with the stream. The connections are
//! our own open files, so they may be non-blocking.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_send_buffer_size, socket_send_buffer_size};

use super::fd::poll;
use super::output::Direct;
use super::stream::{Parts, Source, Stream};
use super::{ChardevError, Peer};
use crate::backend::socket_file::{BindError, SocketFile, check_length};
use crate::sys::SEND_NO_SIGNAL;
use crate::util::lock;

/// Bytes that a connection's own buffer shall take at least: what a guest can write ahead of a slow reader without waiting.
const SEND_BUFFER: usize = 256 * 1024;

impl Stream {
    /// Listens at `path`. A socket file that a dead process left behind is replaced; anything else there is left alone.
    pub fn unix(path: &Path) -> Result<Stream, ChardevError> {
        let (listener, file) = listen(path)?;
        listener.set_nonblocking(true).map_err(|error| socket_error(path, error))?;
        Stream::on_sockets(&format!("unix:{}", path.display()), Some((listener, file)), None, None)
    }

    /// Like [`Stream::unix`], but returns only when the first client is there.
    pub fn unix_wait(path: &Path) -> Result<Stream, ChardevError> {
        let (listener, file) = listen(path)?;
        log::info!("waiting for a client on {}", path.display());
        let failed = |error| socket_error(path, error);
        let (first, _) = listener.accept().map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Stream::on_sockets(&format!("unix:{}", path.display()), Some((listener, file)), Some(first), None)
    }

    /// Connects to `path`, where another program listens. When that one hangs up, output vanishes from then on.
    pub fn unix_connect(path: &Path) -> Result<Stream, ChardevError> {
        check_length(path).map_err(|source| connect_error(path, source))?;
        let stream = UnixStream::connect(path).map_err(|error| connect_error(path, error))?;
        Stream::on_sockets(&format!("unix-connect:{}", path.display()), None, Some(stream), None)
    }

    /// Connects to `path` as soon as another program listens there, and again when that one has hung up; an attempt is made every
    /// `pause`. Output in between vanishes.
    pub fn unix_reconnect(path: &Path, pause: Duration) -> Result<Stream, ChardevError> {
        check_length(path).map_err(|source| connect_error(path, source))?;
        let first = UnixStream::connect(path).ok();
        // Absolute, because the process may change its directory.
        let path = std::path::absolute(path).map_err(|error| connect_error(path, error))?;
        let name = format!("unix-connect:{}", path.display());
        let again = Reconnect { path, pause, next: Instant::now() + pause };
        Stream::on_sockets(&name, None, first, Some(again))
    }

    /// Talks to whoever holds the other end of `socket`, which is put into non-blocking mode. `name` is for log lines.
    pub fn socket(name: &str, socket: UnixStream) -> Result<Stream, ChardevError> {
        Stream::on_sockets(name, None, Some(socket), None)
    }

    fn on_sockets(
        name: &str,
        server: Option<(UnixListener, SocketFile)>,
        first: Option<UnixStream>,
        reconnect: Option<Reconnect>,
    ) -> Result<Stream, ChardevError> {
        let (listener, file) = server.unzip();
        let client = Client::default();
        let mut source = UnixSource {
            name: name.to_owned(),
            listener,
            connection: Connection::None,
            client: client.clone(),
            peer: Peer::NOBODY,
            reconnect,
        };
        if let Some(stream) = first {
            let failed = |source| ChardevError::Start { name: name.to_owned(), source };
            source.connect(stream).map_err(failed)?;
        }
        let current = client.clone();
        Stream::start(Parts {
            name: name.to_owned(),
            source: Some(Box::new(source)),
            sink: Box::new(client.clone()),
            direct: Some(Box::new(client)),
            filter: None,
            terminal: None,
            // Owns the file too, so that it is removed when the stream is dropped.
            interrupt: Some(Box::new(move || {
                let _ = &file;
                current.disconnect();
            })),
        })
    }
}

fn listen(path: &Path) -> Result<(UnixListener, SocketFile), ChardevError> {
    SocketFile::listen(path).map_err(|source| socket_error(path, source))
}

fn socket_error(path: &Path, source: impl Into<BindError>) -> ChardevError {
    ChardevError::Socket { path: path.to_owned(), source: source.into() }
}

fn connect_error(path: &Path, source: impl Into<BindError>) -> ChardevError {
    ChardevError::Connect { path: path.to_owned(), source: source.into() }
}

/// Whom output goes to, shared between the threads.
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

impl Direct for Client {
    fn try_write(&self, data: &[u8]) -> usize {
        let Some(stream) = self.current() else { return data.len() };
        match rustix::net::send(&*stream, data, SEND_NO_SIGNAL) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => 0,
            // It has hung up; the source will notice, after it has read what that one sent before.
            Err(_) => {
                self.forget(&stream);
                data.len()
            }
        }
    }
}

/// Writes to whoever is connected; drops what nobody is there to read.
impl Write for Client {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        while let Some(stream) = self.current().filter(|_| !data.is_empty()) {
            match self.try_write(data) {
                0 => poll(&mut [PollFd::new(&*stream, PollFlags::OUT)], None)?,
                count => return Ok(count),
            }
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
enum Connection {
    None,
    Open(Arc<UnixStream>),
    /// It sends no more but may still read, like `echo | nc -U`. It stays until it hangs up or another client comes.
    HalfClosed(Arc<UnixStream>),
}

#[derive(Debug)]
struct UnixSource {
    name: String,
    /// Where further clients come from, if any can come.
    listener: Option<UnixListener>,
    connection: Connection,
    client: Client,
    peer: Peer,
    /// How to find another peer, if that is our part.
    reconnect: Option<Reconnect>,
}

/// Connecting again and again.
#[derive(Debug)]
struct Reconnect {
    path: PathBuf,
    pause: Duration,
    /// When to try next.
    next: Instant,
}

impl UnixSource {
    /// Talks to `stream` from now on.
    fn connect(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        // The host decides; with less there is only more waiting.
        if socket_send_buffer_size(&stream).is_ok_and(|size| size < SEND_BUFFER) {
            let _ = set_socket_send_buffer_size(&stream, SEND_BUFFER);
        }
        let stream = Arc::new(stream);
        self.client.disconnect();
        self.client.connect(stream.clone());
        self.connection = Connection::Open(stream);
        self.peer = self.peer.joined();
        Ok(())
    }

    fn disconnect(&mut self) {
        self.client.disconnect();
        self.connection = Connection::None;
        self.peer = self.peer.left();
        if let Some(again) = &mut self.reconnect {
            again.next = Instant::now() + again.pause;
        } else if self.listener.is_none() {
            log::warn!(
                "character device {}: the other end has hung up; output vanishes from now on",
                self.name
            );
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let Some(listener) = &self.listener else { return self.try_again() };
        match listener.accept() {
            Ok((stream, _)) => self.connect(stream),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Connects again, if it is time. (Connecting to a unix socket waits only while the listener's queue is full.)
    fn try_again(&mut self) -> io::Result<()> {
        let Some(again) = &mut self.reconnect else { return Ok(()) };
        let now = Instant::now();
        if now < again.next {
            return Ok(());
        }
        again.next = now + again.pause;
        match UnixStream::connect(&again.path) {
            Ok(stream) => self.connect(stream),
            Err(_) => Ok(()),
        }
    }
}

impl Source for UnixSource {
    fn interest(&self, has_room: bool) -> Vec<PollFd<'_>> {
        let listener = self.listener.iter().map(|listener| PollFd::new(listener, PollFlags::IN));
        match &self.connection {
            Connection::None => listener.collect(),
            Connection::Open(stream) if has_room => vec![PollFd::new(&**stream, PollFlags::IN)],
            Connection::Open(_) => Vec::new(),
            // A hang-up is reported without being asked for.
            Connection::HalfClosed(stream) => {
                std::iter::once(PollFd::new(&**stream, PollFlags::empty())).chain(listener).collect()
            }
        }
    }

    fn read(&mut self, ready: &[PollFlags], buf: &mut [u8]) -> io::Result<usize> {
        match &self.connection {
            Connection::None => self.accept()?,
            Connection::Open(stream) => {
                let stream = stream.clone();
                match (&*stream).read(buf) {
                    Ok(0) => self.connection = Connection::HalfClosed(stream),
                    Ok(count) => return Ok(count),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Err(_) => self.disconnect(),
                }
            }
            Connection::HalfClosed(_) if ready.first().is_some_and(|flags| !flags.is_empty()) => {
                self.disconnect();
            }
            Connection::HalfClosed(_) => self.accept()?,
        }
        Ok(0)
    }

    fn peer(&self) -> Peer {
        self.peer
    }

    fn recheck(&self) -> Option<Duration> {
        match (&self.connection, &self.reconnect) {
            (Connection::None, Some(again)) => Some(again.next.saturating_duration_since(Instant::now())),
            _ => None,
        }
    }
}

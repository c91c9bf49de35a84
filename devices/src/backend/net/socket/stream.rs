//! Frames on a stream, each behind its length. One that listens serves one peer at a time; one that connects may try again.
//!
//! Frames of the guest are gathered and leave with few calls; when the peer does not take them, the guest waits. What comes is read in
//! large pieces, and only while the guest has room.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_recv_buffer_size, set_socket_send_buffer_size, set_tcp_nodelay, socket_error,
    socket_recv_buffer_size, socket_send_buffer_size,
};
use rustix::net::{AddressFamily, SocketAddrUnix};

use super::super::frames::{MAX_FRAME, gather, scatter};
use super::super::{ETHERNET_HEADER, FrameInfo, Interest, NetBackend, Offloads, RxRing, Transmit, TxFrame};
use super::{SocketAddress, SocketError, adopt};
use crate::backend::socket_file::{SocketFile, check_length};
use crate::sys::{SEND_NO_SIGNAL, wire};
use crate::util::LogLimit;

/// Bytes of the length before each frame, big-endian (QEMU, net/stream.c).
const LENGTH: usize = 4;

/// Bytes of frames that are gathered before they leave.
const GATHER: usize = 64 * 1024;

/// Bytes that wait for the peer at most; the guest waits with the rest.
const PENDING: usize = 256 * 1024;

/// Room for what is read: the longest frame and a good piece of the next ones.
const READ: usize = 192 * 1024;

/// Reads that one call makes at most; the descriptor stays ready if there is more.
const READS: usize = 16;

/// What the kernel shall hold for a unix stream; macOS starts with 8 KiB.
const SOCKET_BUFFER: usize = 256 * 1024;

/// How long the first connection may take, for each address of the peer.
const PATIENCE: Duration = Duration::from_secs(10);

/// When to write again after macOS had no buffer, which no event ends.
const RETRY: Duration = Duration::from_millis(1);

/// A stream socket.
pub struct Stream {
    name: String,
    role: Role,
    peer: Peer,
    retry: Option<Instant>,
    /// Peers that come and go.
    limit: LogLimit,
}

/// Where peers come from.
enum Role {
    Server(Listener),
    /// Connects again, to one address after the other.
    Client {
        addresses: VecDeque<Address>,
        every: Duration,
        due: Option<Instant>,
    },
    /// There is one connection and no other.
    Once {
        end: Option<String>,
    },
}

enum Listener {
    Unix { listener: UnixListener, _file: SocketFile },
    Inet(TcpListener),
}

/// A place to connect to.
#[derive(Clone)]
enum Address {
    Unix(SocketAddrUnix),
    Inet(SocketAddr),
}

enum Peer {
    None,
    Connecting(OwnedFd),
    Connected(Connection),
}

impl Stream {
    /// Listens at `address`. Without a peer the link is down.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn listen(address: &SocketAddress) -> Result<Stream, SocketError> {
        let listen = |source| SocketError::Listen { address: address.clone(), source };
        let listener = match address {
            SocketAddress::Unix(path) => {
                let bound = SocketFile::listen(path);
                let (listener, file) =
                    bound.map_err(|source| SocketError::Bind { path: path.clone(), source })?;
                listener.set_nonblocking(true).map_err(listen)?;
                Listener::Unix { listener, _file: file }
            }
            SocketAddress::Inet { host, port } => {
                let addresses = resolve(address, host, *port)?;
                let listener = TcpListener::bind(addresses.as_slice()).map_err(listen)?;
                listener.set_nonblocking(true).map_err(listen)?;
                Listener::Inet(listener)
            }
        };
        Ok(Stream::new(format!("stream:{address},server"), Role::Server(listener), Peer::None))
    }

    /// Connects to `address`. With `reconnect`, in seconds, it need not be there yet, and may come and go; without, its end is the
    /// end of the link.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn connect(address: &SocketAddress, reconnect: Option<u32>) -> Result<Stream, SocketError> {
        let name = format!("stream:{address}");
        let Some(seconds) = reconnect else {
            let socket = connect_once(address)?;
            return Stream::adopt(socket, &name);
        };
        let addresses = match address {
            SocketAddress::Unix(path) => VecDeque::from([Address::Unix(unix_address(path)?)]),
            SocketAddress::Inet { host, port } => {
                resolve(address, host, *port)?.into_iter().map(Address::Inet).collect()
            }
        };
        let every = Duration::from_secs(seconds.into());
        let role = Role::Client { addresses, every, due: Some(Instant::now()) };
        let mut stream = Stream::new(name, role, Peer::None);
        stream.reconnect(Instant::now());
        Ok(stream)
    }

    /// Over a connected stream socket, half of a socket pair for example. `name` is for messages.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn adopt(socket: OwnedFd, name: &str) -> Result<Stream, SocketError> {
        let connection = Connection::new(adopt(socket, name)?);
        Ok(Stream::new(name.to_owned(), Role::Once { end: None }, Peer::Connected(connection)))
    }

    fn new(name: String, role: Role, peer: Peer) -> Stream {
        Stream { name, role, peer, retry: None, limit: LogLimit::new() }
    }

    /// The port of a TCP server, for one that has asked for port 0.
    pub fn port(&self) -> Option<u16> {
        match &self.role {
            Role::Server(Listener::Inet(listener)) => Some(listener.local_addr().ok()?.port()),
            _ => None,
        }
    }

    /// A peer that waits to be served.
    fn accept(&mut self) {
        let (Peer::None, Role::Server(listener)) = (&self.peer, &self.role) else { return };
        let socket = match listener {
            Listener::Unix { listener, .. } => listener.accept().map(|(socket, _)| OwnedFd::from(socket)),
            Listener::Inet(listener) => listener.accept().map(|(socket, _)| OwnedFd::from(socket)),
        };
        match socket.map_err(|error| error.kind()) {
            Ok(socket) => self.welcome(socket),
            Err(ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
            Err(kind) => log::debug!("network {}: no peer could be accepted: {kind}", self.name),
        }
    }

    fn welcome(&mut self, socket: OwnedFd) {
        match adopt(socket, &self.name) {
            Ok(socket) => {
                log::info!("network {}: the peer is there", self.name);
                self.peer = Peer::Connected(Connection::new(socket));
            }
            Err(error) => log::warn!("network {}: {error}", self.name),
        }
    }

    /// Connects again if that is due, or finds out what became of an attempt.
    fn reconnect(&mut self, now: Instant) {
        let Role::Client { addresses, every, due } = &mut self.role else { return };
        let again = Some(now + *every);
        match std::mem::replace(&mut self.peer, Peer::None) {
            Peer::Connecting(socket) => match is_connected(&socket) {
                None => self.peer = Peer::Connecting(socket),
                Some(true) => self.welcome(socket),
                Some(false) => *due = again,
            },
            Peer::None if due.is_some_and(|due| due <= now) => {
                // The next time it is another address's turn.
                addresses.rotate_left(1);
                *due = None;
                match addresses.back().map(start_connecting) {
                    Some(Ok((socket, true))) => self.welcome(socket),
                    Some(Ok((socket, false))) => self.peer = Peer::Connecting(socket),
                    Some(Err(error)) => {
                        log::debug!("network {}: nobody answers: {error}", self.name);
                        *due = again;
                    }
                    None => {}
                }
            }
            peer => self.peer = peer,
        }
    }

    /// The connection is over.
    fn lose(&mut self, why: &Lost) {
        self.peer = Peer::None;
        match &mut self.role {
            Role::Server(_) => self.warn(format_args!("{why}; the guest's link is down until another comes")),
            Role::Client { every, due, .. } => {
                let every = *every;
                *due = Some(Instant::now() + every);
                self.warn(format_args!("{why}; the guest's link is down, trying again every {every:?}"));
            }
            Role::Once { end } => *end = Some(format!("network {}: {why}", self.name)),
        }
    }

    fn warn(&self, what: fmt::Arguments<'_>) {
        if let Some(suppressed) = self.limit.allow() {
            log::warn!("network {}: {what}{suppressed}", self.name);
        }
    }

    fn end(&self) -> io::Result<()> {
        match &self.role {
            Role::Once { end: Some(end) } => Err(io::Error::new(ErrorKind::ConnectionReset, end.clone())),
            _ => Ok(()),
        }
    }

    /// Sends what is gathered, as far as the peer takes it.
    fn push(&mut self) {
        let Peer::Connected(connection) = &mut self.peer else { return };
        match connection.push() {
            Ok(silently) => self.retry = silently.then(|| Instant::now() + RETRY),
            Err(lost) => self.lose(&lost),
        }
    }
}

impl NetBackend for Stream {
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn descriptors(&self, _write: bool) -> Vec<(BorrowedFd<'_>, Interest)> {
        match (&self.peer, &self.role) {
            (Peer::Connected(connection), _) => {
                // While only time says when there is room, being writable says nothing.
                let write = connection.pending() > 0 && self.retry.is_none();
                let interest = match (connection.blocked, write) {
                    (true, false) => return Vec::new(),
                    (true, true) => Interest::Write,
                    (false, false) => Interest::Read,
                    (false, true) => Interest::Both,
                };
                vec![(connection.socket.as_fd(), interest)]
            }
            (Peer::Connecting(socket), _) => vec![(socket.as_fd(), Interest::Write)],
            (Peer::None, Role::Server(Listener::Unix { listener, .. })) => {
                vec![(listener.as_fd(), Interest::Read)]
            }
            (Peer::None, Role::Server(Listener::Inet(listener))) => vec![(listener.as_fd(), Interest::Read)],
            (Peer::None, _) => Vec::new(),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let due = match (&self.peer, &self.role) {
            (Peer::None, Role::Client { due, .. }) => *due,
            _ => None,
        };
        [due, self.retry].into_iter().flatten().min()
    }

    fn service(&mut self, now: Instant) -> io::Result<()> {
        self.retry = None;
        self.accept();
        self.reconnect(now);
        self.push();
        self.end()
    }

    fn transmit(&mut self, frame: &TxFrame<'_, '_>) -> Transmit {
        let Peer::Connected(connection) = &mut self.peer else { return Transmit::Done };
        if frame.len > MAX_FRAME || frame.len < ETHERNET_HEADER {
            return Transmit::Done;
        }
        if connection.pending() + LENGTH + frame.len > PENDING {
            self.push();
            let Peer::Connected(connection) = &self.peer else { return Transmit::Done };
            if connection.pending() + LENGTH + frame.len > PENDING {
                return Transmit::Busy;
            }
        }
        let Peer::Connected(connection) = &mut self.peer else { return Transmit::Done };
        connection.add(frame);
        if connection.pending() >= GATHER && !connection.full {
            self.push();
        }
        Transmit::Done
    }

    fn flush(&mut self) {
        // What the kernel has refused waits for it.
        if matches!(&self.peer, Peer::Connected(connection) if !connection.full) {
            self.push();
        }
    }

    fn receive(&mut self, ring: &mut dyn RxRing) -> io::Result<()> {
        let Peer::Connected(connection) = &mut self.peer else { return self.end() };
        match connection.receive(ring) {
            Ok(()) => Ok(()),
            Err(lost) => {
                self.lose(&lost);
                self.end()
            }
        }
    }

    fn link(&self) -> bool {
        matches!(self.peer, Peer::Connected(_))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("name", &self.name).field("link", &self.link()).finish_non_exhaustive()
    }
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the peer has closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Broke(Errno),
    #[error(
        "the peer announced a frame of {0} bytes, at most {MAX_FRAME} are possible; it does not speak the 'stream' format"
    )]
    Length(u32),
}

/// A peer.
struct Connection {
    socket: OwnedFd,
    /// Frames behind their lengths, of which the first `sent` bytes have left.
    out: Vec<u8>,
    sent: usize,
    /// The kernel takes no more now.
    full: bool,
    /// What was read and not handed out lies between `start` and `end`.
    input: Vec<u8>,
    start: usize,
    end: usize,
    /// The guest had no room for a frame that is there.
    blocked: bool,
}

impl Connection {
    fn new(socket: OwnedFd) -> Self {
        // Fails for what is not TCP.
        let _ = set_tcp_nodelay(&socket, true);
        if socket_send_buffer_size(&socket).is_ok_and(|size| size < SOCKET_BUFFER) {
            let _ = set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
        }
        if socket_recv_buffer_size(&socket).is_ok_and(|size| size < SOCKET_BUFFER) {
            let _ = set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
        }
        Connection {
            socket,
            out: Vec::new(),
            sent: 0,
            full: false,
            input: vec![0; READ],
            start: 0,
            end: 0,
            blocked: false,
        }
    }

    fn pending(&self) -> usize {
        self.out.len() - self.sent
    }

    fn add(&mut self, frame: &TxFrame<'_, '_>) {
        let length = self.out.len();
        self.out.extend([0; LENGTH]);
        gather(frame, &mut self.out);
        // At most MAX_FRAME.
        let len = (self.out.len() - length - LENGTH) as u32;
        if let Some(place) = self.out.get_mut(length..length + LENGTH) {
            place.copy_from_slice(&len.to_be_bytes());
        }
    }

    /// Sends what is pending. Says whether it stopped for want of a buffer, which no event ends.
    fn push(&mut self) -> Result<bool, Lost> {
        self.full = false;
        let mut silently = false;
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match rustix::net::send(&self.socket, rest, SEND_NO_SIGNAL) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(error @ (Errno::AGAIN | Errno::NOBUFS)) => {
                    self.full = true;
                    silently = error == Errno::NOBUFS;
                    break;
                }
                Err(Errno::PIPE) => return Err(Lost::Closed),
                Err(error) => return Err(Lost::Broke(error)),
            }
        }
        if self.pending() == 0 {
            self.out.clear();
            self.sent = 0;
        } else if self.sent >= PENDING {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(silently)
    }

    fn receive(&mut self, ring: &mut dyn RxRing) -> Result<(), Lost> {
        self.blocked = false;
        for _ in 0..READS {
            if !self.hand_out(ring)? {
                self.blocked = true;
                return Ok(());
            }
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let Some(room) = self.input.get_mut(self.end..) else { return Ok(()) };
            match rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut *room)) {
                Ok(0) => return Err(Lost::Closed),
                Ok(count) => self.end += count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(Lost::Broke(error)),
            }
        }
        self.blocked = !self.hand_out(ring)?;
        Ok(())
    }

    /// Puts every whole frame that was read into `ring`. `false`: it is full. An error only once those before it are handed out.
    fn hand_out(&mut self, ring: &mut dyn RxRing) -> Result<bool, Lost> {
        while let Some((length, rest)) =
            self.input.get(self.start..self.end).and_then(|input| input.split_first_chunk::<LENGTH>())
        {
            let length = u32::from_be_bytes(*length);
            let len = length as usize;
            if len > MAX_FRAME {
                return Err(Lost::Length(length));
            }
            let Some(frame) = rest.get(..len) else { break };
            if len >= ETHERNET_HEADER {
                let room = ring.put(len, &mut |slices| Some((scatter(frame, slices), FrameInfo::default())));
                if !room {
                    return Ok(false);
                }
            } else {
                log::debug!("network: a frame of {len} bytes is too short and dropped");
            }
            self.start += LENGTH + len;
        }
        Ok(true)
    }
}

fn resolve(address: &SocketAddress, host: &str, port: u16) -> Result<Vec<SocketAddr>, SocketError> {
    SocketAddress::resolve(host, port)
        .map_err(|source| SocketError::Resolve { address: address.clone(), source })
}

fn unix_address(path: &Path) -> Result<SocketAddrUnix, SocketError> {
    let failed = |source| SocketError::Bind { path: path.to_owned(), source };
    check_length(path).map_err(failed)?;
    // Absolute, because the process may change its directory.
    let path = std::path::absolute(path).map_err(|error| failed(error.into()))?;
    check_length(&path).map_err(failed)?;
    SocketAddrUnix::new(path.as_path()).map_err(|error| failed(io::Error::from(error).into()))
}

/// The first and only connection; blocks until there is one.
fn connect_once(address: &SocketAddress) -> Result<OwnedFd, SocketError> {
    let failed = |source| SocketError::Connect { address: address.clone(), source };
    match address {
        SocketAddress::Unix(path) => {
            check_length(path).map_err(|source| SocketError::Bind { path: path.clone(), source })?;
            Ok(UnixStream::connect(path).map_err(failed)?.into())
        }
        SocketAddress::Inet { host, port } => {
            let host = if host.is_empty() { "localhost" } else { host };
            let mut last = ErrorKind::AddrNotAvailable.into();
            for address in resolve(address, host, *port)? {
                match TcpStream::connect_timeout(&address, PATIENCE) {
                    Ok(stream) => return Ok(stream.into()),
                    Err(error) => last = error,
                }
            }
            Err(failed(last))
        }
    }
}

/// Begins to connect; says whether that is done already.
fn start_connecting(address: &Address) -> io::Result<(OwnedFd, bool)> {
    let (socket, connected) = match address {
        Address::Unix(address) => {
            let socket = wire::stream_socket(AddressFamily::UNIX)?;
            let connected = rustix::net::connect(&socket, address);
            (socket, connected)
        }
        Address::Inet(address) => {
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = wire::stream_socket(family)?;
            let connected = rustix::net::connect(&socket, address);
            (socket, connected)
        }
    };
    match connected {
        Ok(()) => Ok((socket, true)),
        Err(Errno::INPROGRESS | Errno::INTR) => Ok((socket, false)),
        // EAGAIN of a unix socket: its queue of callers is full.
        Err(error) => Err(error.into()),
    }
}

/// What became of an attempt; `None` if nothing yet.
fn is_connected(socket: &OwnedFd) -> Option<bool> {
    if !matches!(socket_error(socket), Ok(Ok(()))) {
        return Some(false);
    }
    match rustix::net::getpeername(socket) {
        Ok(_) => Some(true),
        Err(Errno::NOTCONN) => None,
        Err(_) => Some(false),
    }
}

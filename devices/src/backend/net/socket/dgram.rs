//! Frames as datagrams: between two paths, two UDP ports, or over a socket that somebody else has connected.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use super::super::datagram::Datagrams;
use super::super::frames::MAX_FRAME;
use super::super::{Interest, NetBackend, Offloads, RxRing, Transmit, TxFrame};
use super::{SocketAddress, SocketError, adopt};
use crate::backend::socket_file::{SocketFile, check_length};

/// How often a unix peer is looked for that is not there.
const RETRY: Duration = Duration::from_millis(200);

/// A datagram socket.
pub struct Dgram {
    name: String,
    data: Datagrams,
    /// Removes our own path.
    _file: Option<SocketFile>,
    peer: Peer,
}

#[derive(Debug)]
enum Peer {
    /// UDP: nobody can tell whether it is there.
    Unknown,
    /// A unix socket of that path, which we are connected to, or look for from some time on.
    Path { path: PathBuf, look: Option<Instant> },
    /// The other end of a pair; once it is gone, it is gone.
    Pair { gone: bool },
}

impl Dgram {
    /// A socket at `local` (UDP: anywhere, if there is none) whose peer is `remote`.
    ///
    /// # Errors
    /// See [`SocketError`]. The peer need not be there.
    pub fn open(local: Option<&SocketAddress>, remote: &SocketAddress) -> Result<Dgram, SocketError> {
        match (local, remote) {
            (Some(SocketAddress::Unix(local)), SocketAddress::Unix(remote)) => Dgram::unix(local, remote),
            (None, SocketAddress::Inet { host, port }) => Dgram::udp(None, remote, host, *port),
            (Some(local @ SocketAddress::Inet { .. }), SocketAddress::Inet { host, port }) => {
                Dgram::udp(Some(local), remote, host, *port)
            }
            (None, SocketAddress::Unix(path)) => {
                let source =
                    io::Error::new(ErrorKind::InvalidInput, "it needs a local address to be answered at");
                Err(SocketError::Setup { name: path.display().to_string(), source })
            }
            (Some(local), remote) => Err(SocketError::Mixed { local: local.clone(), remote: remote.clone() }),
        }
    }

    /// Over a connected datagram socket, half of a socket pair for example. `name` is for messages.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn adopt(socket: OwnedFd, name: &str) -> Result<Dgram, SocketError> {
        let socket = adopt(socket, name)?;
        Ok(Dgram {
            name: name.to_owned(),
            data: Datagrams::new(socket, MAX_FRAME),
            _file: None,
            peer: Peer::Pair { gone: false },
        })
    }

    fn unix(local: &PathBuf, remote: &PathBuf) -> Result<Dgram, SocketError> {
        let failed = |path: &PathBuf| {
            let path = path.clone();
            |source| SocketError::Bind { path, source }
        };
        check_length(remote).map_err(failed(remote))?;
        let (socket, file) = SocketFile::datagram(local).map_err(failed(local))?;
        let name = format!("{} to {}", local.display(), remote.display());
        let path = std::path::absolute(remote)
            .map_err(|source| SocketError::Setup { name: name.clone(), source })?;
        let mut dgram = Dgram {
            data: Datagrams::new(adopt(socket.into(), &name)?, MAX_FRAME),
            name,
            _file: Some(file),
            peer: Peer::Path { path, look: Some(Instant::now()) },
        };
        dgram.look(Instant::now());
        Ok(dgram)
    }

    fn udp(
        local: Option<&SocketAddress>,
        remote: &SocketAddress,
        host: &str,
        port: u16,
    ) -> Result<Dgram, SocketError> {
        let resolved = |address: &SocketAddress, host: &str, port| {
            SocketAddress::resolve(host, port)
                .map_err(|source| SocketError::Resolve { address: address.clone(), source })
        };
        let host = if host.is_empty() { "localhost" } else { host };
        let peers = resolved(remote, host, port)?;
        let own = match local {
            Some(address @ SocketAddress::Inet { host, port }) => resolved(address, host, *port)?,
            _ => Vec::new(),
        };
        let fits =
            |peer: &&SocketAddr| own.is_empty() || own.iter().any(|own| own.is_ipv4() == peer.is_ipv4());
        let peer =
            *peers.iter().find(fits).or(peers.first()).unwrap_or(&SocketAddr::from(([127, 0, 0, 1], port)));
        if peer.ip().is_multicast() {
            return Err(SocketError::Multicast(remote.clone()));
        }
        let any: SocketAddr = if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let own = own.iter().find(|own| own.is_ipv4() == peer.is_ipv4()).or(own.first()).unwrap_or(&any);
        let listen = |source| SocketError::Listen { address: local.unwrap_or(remote).clone(), source };
        let socket = UdpSocket::bind(own).map_err(listen)?;
        socket.connect(peer).map_err(|source| SocketError::Connect { address: remote.clone(), source })?;
        let name = remote.to_string();
        Ok(Dgram {
            data: Datagrams::new(adopt(socket.into(), &name)?, MAX_FRAME),
            name,
            _file: None,
            peer: Peer::Unknown,
        })
    }

    /// Looks for the peer, if that is due.
    fn look(&mut self, now: Instant) {
        let Peer::Path { path, look } = &mut self.peer else { return };
        if look.is_none_or(|due| due > now) {
            return;
        }
        let connected = SocketAddrUnix::new(path.as_path())
            .and_then(|address| rustix::net::connect(self.data.socket(), &address));
        *look = match connected {
            Ok(()) => None,
            Err(error) => {
                log::debug!("network {}: the peer is not there: {error}", self.name);
                Some(now + RETRY)
            }
        };
    }

    /// The peer was not there to take a frame.
    fn missed(&mut self, error: Errno) {
        match &mut self.peer {
            // The answer to an earlier datagram; the next one may arrive.
            Peer::Unknown => {}
            Peer::Path { look, .. } => *look = Some(Instant::now()),
            Peer::Pair { gone } => *gone = true,
        }
        log::debug!("network {}: a frame is lost: {error}", self.name);
    }

    fn gone(&self) -> bool {
        matches!(self.peer, Peer::Pair { gone: true })
    }
}

impl NetBackend for Dgram {
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn descriptors(&self, write: bool) -> Vec<(BorrowedFd<'_>, Interest)> {
        let write = write && self.data.retry().is_none();
        let interest = match (self.gone(), self.data.blocked(), write) {
            (true, ..) | (_, true, false) => return Vec::new(),
            (_, false, false) => Interest::Read,
            (_, false, true) => Interest::Both,
            (_, true, true) => Interest::Write,
        };
        vec![(self.data.socket(), interest)]
    }

    fn deadline(&self) -> Option<Instant> {
        let look = match &self.peer {
            Peer::Path { look, .. } => *look,
            // So that the end is noticed at once.
            Peer::Pair { gone: true } => return None,
            _ => None,
        };
        [self.data.retry(), look].into_iter().flatten().min()
    }

    fn service(&mut self, now: Instant) -> io::Result<()> {
        self.data.service();
        self.look(now);
        if self.gone() {
            let text = format!("the peer of the datagram socket {} is gone", self.name);
            return Err(io::Error::new(ErrorKind::ConnectionReset, text));
        }
        Ok(())
    }

    fn transmit(&mut self, frame: &TxFrame<'_, '_>) -> Transmit {
        if !self.link() {
            return Transmit::Done;
        }
        match self.data.transmit(frame) {
            Ok(result) => result,
            Err(error) => {
                self.missed(error);
                // A peer that was restarted has a new socket behind the old path.
                self.look(Instant::now());
                if !matches!(self.peer, Peer::Path { look: None, .. }) {
                    return Transmit::Done;
                }
                self.data.transmit(frame).unwrap_or(Transmit::Done)
            }
        }
    }

    fn receive(&mut self, ring: &mut dyn RxRing) -> io::Result<()> {
        self.data.receive(ring).map_err(io::Error::from)
    }

    fn link(&self) -> bool {
        match &self.peer {
            Peer::Unknown => true,
            Peer::Path { look, .. } => look.is_none(),
            Peer::Pair { gone } => !gone,
        }
    }
}

impl fmt::Debug for Dgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dgram").field("name", &self.name).field("peer", &self.peer).finish_non_exhaustive()
    }
}

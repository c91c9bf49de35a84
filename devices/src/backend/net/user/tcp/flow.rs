//! One connection: smoltcp's socket towards the guest, a socket of the host, and bytes going both ways between their buffers.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use super::host;
use crate::sys::SEND_NO_SIGNAL;

/// How long a guest that says nothing keeps what was sent to it waiting: what Linux gives a peer (tcp(7), tcp_retries2).
const GIVE_UP: Duration = Duration::from_secs(924);

/// Both ends of a connection as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) guest: SocketAddr,
    pub(super) peer: SocketAddr,
}

/// How far a connection is.
#[derive(Debug)]
pub(super) enum Stage {
    /// The host's socket is on its way; the guest's SYN waits.
    Connecting(Vec<u8>),
    /// The host has a client; nobody knows yet where on the link the guest is.
    Resolving,
    /// smoltcp has a socket.
    Open(SocketHandle),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) key: Key,
    pub(super) host: OwnedFd,
    pub(super) stage: Stage,
    pub(super) set: SocketSet<'static>,
    /// The guest's segment size, if it takes larger packets with that in them.
    pub(super) segment: Option<u16>,
    /// Which class of buffers it has.
    pub(super) class: Option<usize>,
    /// Counted among those that the guest has not acknowledged.
    pub(super) embryonic: bool,
    /// When the guest got its answer, or its SYN.
    pub(super) since: Instant,
    pub(super) begun: Instant,
    pub(super) queued: bool,
    /// The earliest timer that is set for it.
    pub(super) armed: Option<Instant>,
    /// The guest owes an acknowledgement, and has said nothing since then. smoltcp's own time limit would also end connections on
    /// which nobody has anything to say.
    silent: Option<Instant>,
    readable: bool,
    writable: bool,
    /// The host's peer sends no more, or its socket has failed: reading tells.
    ended: bool,
    host_eof: bool,
    host_shut: bool,
}

impl Flow {
    pub(super) fn new(key: Key, host: OwnedFd, stage: Stage, now: Instant) -> Self {
        Flow {
            key,
            host,
            stage,
            set: SocketSet::new(Vec::with_capacity(1)),
            segment: None,
            class: None,
            embryonic: false,
            since: now,
            begun: now,
            queued: false,
            armed: None,
            silent: None,
            // Whoever watches it hears when there is something.
            readable: false,
            writable: true,
            ended: false,
            host_eof: false,
            host_shut: false,
        }
    }

    /// Gives it a socket of smoltcp's.
    pub(super) fn open(&mut self, socket: Socket<'static>) -> &mut Socket<'static> {
        let handle = self.set.add(socket);
        self.stage = Stage::Open(handle);
        self.set.get_mut(handle)
    }

    /// Takes its socket away, which can then serve another connection.
    pub(super) fn take_socket(&mut self) -> Option<Socket<'static>> {
        let Stage::Open(handle) = std::mem::replace(&mut self.stage, Stage::Resolving) else { return None };
        let smoltcp::socket::Socket::Tcp(mut socket) = self.set.remove(handle);
        socket.abort();
        Some(socket)
    }

    fn socket(&mut self) -> Option<&mut Socket<'static>> {
        match self.stage {
            Stage::Open(handle) => Some(self.set.get_mut(handle)),
            _ => None,
        }
    }

    /// smoltcp's state; `Listen` while there is none.
    pub(super) fn state(&mut self) -> State {
        self.socket().map_or(State::Listen, |socket| socket.state())
    }

    /// Has the guest be sent a reset.
    pub(super) fn abort(&mut self) {
        if let Some(socket) = self.socket() {
            socket.abort();
        }
        self.host_eof = true;
    }

    /// Remembers what the host says about its socket.
    pub(super) fn event(&mut self, readable: bool, writable: bool, ended: bool) {
        self.readable |= readable;
        self.writable |= writable;
        self.ended |= ended;
        // After its end only a failure can still come.
        if ended && self.host_eof && host::failure(&self.host).is_err() {
            self.abort();
        }
    }

    /// The guest has said something.
    pub(super) fn heard(&mut self, now: Instant) {
        self.silent = self.silent.map(|_| now);
    }

    /// Whether the guest has left what was sent to it unanswered for so long that it must be gone.
    pub(super) fn is_deserted(&mut self, now: Instant) -> bool {
        let Some(socket) = self.socket() else { return false };
        let owes = socket.send_queue() > 0
            || matches!(socket.state(), State::FinWait1 | State::Closing | State::LastAck);
        self.silent = owes.then(|| self.silent.unwrap_or(now));
        self.silent.is_some_and(|since| now.saturating_duration_since(since) >= GIVE_UP)
    }

    /// Moves bytes both ways as far as buffers and sockets allow. Of the guest's urgent bytes the host hears as of any others.
    pub(super) fn exchange(&mut self) {
        let Stage::Open(handle) = self.stage else { return };
        let socket = self.set.get_mut::<Socket>(handle);
        while self.readable && !self.host_eof && socket.can_send() {
            let host = &self.host;
            let read = socket.send(|room| match rustix::io::read(host, &mut *room) {
                Ok(len) => (len, Ok(len)),
                Err(error) => (0, Err(error)),
            });
            match read {
                Ok(Ok(0)) => {
                    self.host_eof = true;
                    socket.close();
                }
                // A short read says nothing: it also stops before an urgent byte (tcp(7)).
                Ok(Ok(_)) => {}
                Ok(Err(Errno::AGAIN)) => self.readable = false,
                Ok(Err(Errno::INTR)) => {}
                Ok(Err(_)) => {
                    self.host_eof = true;
                    socket.abort();
                }
                Err(_) => break,
            }
        }
        while self.writable && socket.can_recv() {
            let host = &self.host;
            let sent = socket.recv(|data| match rustix::net::send(host, data, SEND_NO_SIGNAL) {
                Ok(len) => (len, Ok(len < data.len())),
                Err(error) => (0, Err(error)),
            });
            match sent {
                Ok(Ok(short)) => self.writable = !short,
                Ok(Err(Errno::AGAIN | Errno::NOBUFS)) => self.writable = false,
                Ok(Err(Errno::INTR)) => {}
                Ok(Err(_)) => {
                    self.host_eof = true;
                    socket.abort();
                    // What is left is still there, and goes nowhere.
                    self.writable = false;
                    break;
                }
                Err(_) => break,
            }
        }
        let guest_done =
            matches!(socket.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        if guest_done && !self.host_shut && !socket.can_recv() {
            self.host_shut = true;
            // Where both have ended it is closed as a whole.
            if !(self.host_eof && socket.state() == State::TimeWait) {
                let _ = shutdown(&self.host, Shutdown::Write);
            }
        }
    }

    /// Whether nothing is left to do. The link loses nothing, so nobody needs to wait for a repeated FIN.
    pub(super) fn is_over(&mut self) -> bool {
        let (host_eof, host_shut) = (self.host_eof, self.host_shut);
        let Some(socket) = self.socket() else { return false };
        match socket.state() {
            State::Closed if socket.remote_endpoint().is_none() => {
                // Both ended properly, or the guest broke it off, which the host's peer shall learn.
                if !(host_eof && host_shut) {
                    host::reset_on_close(&self.host);
                }
                true
            }
            // The guest has taken back a SYN that had been answered: smoltcp would wait for another.
            State::Listen => {
                host::reset_on_close(&self.host);
                true
            }
            State::TimeWait => host_eof && host_shut,
            _ => false,
        }
    }

    /// Whether the guest has had `time` to answer a SYN and has not.
    pub(super) fn is_stale(&mut self, now: Instant, time: Duration) -> bool {
        now.saturating_duration_since(self.since) >= time
            && matches!(self.state(), State::SynReceived | State::SynSent)
    }
}

/// A socket of smoltcp's with buffers of `size` bytes.
pub(super) fn socket(size: usize) -> Socket<'static> {
    // Zeroed memory of the allocator's: pages that are never reached cost nothing.
    let buffer = || SocketBuffer::new(vec![0u8; size]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket
}

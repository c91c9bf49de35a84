//! The host's end of a connection: reaching a server, a unix socket or a command, without ever waiting for it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, sockopt};

use super::super::config::GuestTarget;
use crate::sys::net::stream_socket;

/// A connection that is there, or on its way.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) socket: OwnedFd,
    pub(super) connected: bool,
    pub(super) child: Option<Child>,
}

/// Begins to connect to `address`.
pub(super) fn connect(address: SocketAddr) -> Result<Begun, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = stream_socket(family).map_err(|error| errno(&error))?;
    prepare(&socket);
    let connected = begun(rustix::net::connect(&socket, &address))?;
    // On loopback the handshake is over by now, most times, though the call said that it was on its way: no news to wait for.
    let connected = connected || address.ip().is_loopback() && has_peer(&socket);
    Ok(Begun { socket, connected, child: None })
}

/// What is small goes at once: the guest's own TCP has gathered already. Urgent bytes stay where they are in the stream, which is all
/// that the guest gets to know of them (RFC 6093, 6: nothing should rely on more).
pub(super) fn prepare(socket: &OwnedFd) {
    let _ = sockopt::set_tcp_nodelay(socket, true);
    let _ = sockopt::set_socket_oobinline(socket, true);
}

fn begun(result: Result<(), Errno>) -> Result<bool, Errno> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::INPROGRESS | Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Begins to connect to what a guestfwd names.
pub(super) fn reach(target: &GuestTarget) -> Result<Begun, Errno> {
    match target {
        GuestTarget::Tcp(address) => connect(*address),
        GuestTarget::Unix(path) => unix(path),
        GuestTarget::Cmd(command) => start(command).map_err(|error| errno(&error)),
    }
}

fn unix(path: &Path) -> Result<Begun, Errno> {
    let socket = stream_socket(AddressFamily::UNIX).map_err(|error| errno(&error))?;
    let connected = begun(rustix::net::connect(&socket, &SocketAddrUnix::new(path)?))?;
    Ok(Begun { socket, connected, child: None })
}

fn start(command: &str) -> io::Result<Begun> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let output = theirs.try_clone()?;
    let child = Command::new("sh")
        .arg("-c")
        .arg(command)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::from(OwnedFd::from(output)))
        .spawn()?;
    Ok(Begun { socket: ours.into(), connected: true, child: Some(child) })
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Whether a connection on its way has arrived, has failed, or is still on its way.
pub(super) fn arrived(socket: &OwnedFd) -> Result<bool, Errno> {
    if has_peer(socket) {
        return Ok(true);
    }
    failure(socket)?;
    Ok(false)
}

fn has_peer(socket: &OwnedFd) -> bool {
    rustix::net::getpeername(socket).is_ok()
}

/// What has gone wrong with a connection since this was asked last.
pub(super) fn failure(socket: &OwnedFd) -> Result<(), Errno> {
    sockopt::socket_error(socket)?
}

/// Has the kernel send a reset when the socket is closed.
pub(super) fn reset_on_close(socket: &OwnedFd) {
    let _ = sockopt::set_socket_linger(socket, Some(std::time::Duration::ZERO));
}

//! Sockets of macOS, which has no tap devices.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType, socket, sockopt};

use super::UnixLayout;
use crate::backend::net::Offloads;

/// What this host's `sockaddr_un` looks like.
pub(crate) const UNIX_LAYOUT: UnixLayout = UnixLayout::MACOS;

/// A stream socket that does not block, not even to connect, and never sends SIGPIPE.
pub(crate) fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let socket = socket(family, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    sockopt::set_socket_nosigpipe(&socket, true)?;
    Ok(socket)
}

/// There is none.
pub(crate) fn open_tun() -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

/// None of a kind that could be used.
pub(crate) fn interface_exists(_name: &str) -> bool {
    false
}

/// There are none.
pub(crate) fn attach_tap(_fd: BorrowedFd<'_>, _name: &str) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// There are none.
pub(crate) fn set_tap_offloads(_fd: BorrowedFd<'_>, _offloads: Offloads) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

//! Sockets and tap devices of Linux.

use std::ffi::c_int;
use std::fs::OpenOptions;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::UnixLayout;
use crate::backend::net::Offloads;

/// What this host's `sockaddr_un` looks like.
pub(crate) const UNIX_LAYOUT: UnixLayout = UnixLayout::LINUX;

/// Length of `struct virtio_net_hdr` without `num_buffers` (linux/virtio_net.h).
static VNET_HEADER: c_int = 10;

/// A stream socket that does not block, not even to connect.
pub(crate) fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

/// The device that tap interfaces are had from (tuntap.rst), non-blocking.
pub(crate) fn open_tun() -> io::Result<OwnedFd> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    Ok(file.into())
}

/// Whether there is a network interface of that name. Asked by a socket, because /sys may show another network namespace.
pub(crate) fn interface_exists(name: &str) -> bool {
    mtu(name).is_ok()
}

/// Attaches `fd`, from [`open_tun`], to the tap interface `name`, which is made if it is not there. Afterwards reading and writing
/// moves frames, each behind a `struct virtio_net_hdr` of 10 bytes. Returns the interface's MTU.
pub(crate) fn attach_tap(fd: BorrowedFd<'_>, name: &str) -> io::Result<usize> {
    let mut request = named(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is; the descriptor is open for as long as it is borrowed.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const VNET_HEADER) })?;
    mtu(name)
}

/// Tells the kernel which unfinished frames the reader of a tap device understands.
pub(crate) fn set_tap_offloads(fd: BorrowedFd<'_>, offloads: Offloads) -> io::Result<()> {
    let mut flags = 0;
    if offloads.checksum {
        flags |= libc::TUN_F_CSUM;
        flags |= if offloads.tso4 { libc::TUN_F_TSO4 } else { 0 };
        flags |= if offloads.tso6 { libc::TUN_F_TSO6 } else { 0 };
    }
    // SAFETY: TUNSETOFFLOAD takes its argument by value; the descriptor is open for as long as it is borrowed.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

fn mtu(name: &str) -> io::Result<usize> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = named(name);
    // SAFETY: SIOCGIFMTU reads and writes one ifreq; the socket is open. After success ifru_mtu is what was written.
    let mtu = unsafe {
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request))?;
        request.ifr_ifru.ifru_mtu
    };
    Ok(usize::try_from(mtu).unwrap_or(0))
}

/// A request about the interface `name`, whose length the caller has checked; what is too long is cut.
fn named(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is integers and arrays of them, for which zero is valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(room)) {
        *to = from as libc::c_char;
    }
    request
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

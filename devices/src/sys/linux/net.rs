//! Sockets of the user-mode network as Linux has them, and waiting for thousands of them behind one descriptor: epoll(7).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{Timespec, epoll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use crate::sys::net::Ready;

/// A ping socket hands over ICMP messages without the IP header before them (icmp(7)).
pub(crate) const PING_HAS_IP_HEADER: bool = false;

/// Many descriptors, each reported once per change, behind one that is readable while there are reports. What is closed is
/// forgotten.
#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl Watch {
    /// Watches nothing yet.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Watch(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Watches `fd` for both directions until it is closed.
    pub(crate) fn add(&self, fd: impl AsFd, key: u64) -> io::Result<()> {
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(key), flags)?)
    }

    /// Takes what has changed since the last time; does not wait. `false`: there may be more.
    pub(crate) fn take(&self, ready: &mut Vec<Ready>) -> io::Result<bool> {
        const BATCH: usize = 256;
        let mut events: Vec<epoll::Event> = Vec::with_capacity(BATCH);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut events), Some(&now)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        ready.extend(events.iter().map(|event| {
            let flags = event.flags;
            let ended =
                flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            Ready {
                key: event.data.u64(),
                readable: ended || flags.contains(epoll::EventFlags::IN),
                writable: flags
                    .intersects(epoll::EventFlags::OUT | epoll::EventFlags::HUP | epoll::EventFlags::ERR),
                ended,
            }
        }));
        Ok(events.len() < BATCH)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A stream socket that never blocks.
pub(crate) fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?)
}

/// A socket for echo requests that needs no privilege, where the host allows it (`net.ipv4.ping_group_range`). It never blocks.
pub(crate) fn ping_socket(v6: bool) -> io::Result<OwnedFd> {
    let (family, protocol) =
        if v6 { (AddressFamily::INET6, ipproto::ICMPV6) } else { (AddressFamily::INET, ipproto::ICMP) };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(family, SocketType::DGRAM, flags, Some(protocol))?)
}

/// What to try when `/etc/resolv.conf` names no server.
pub(crate) fn resolver_listing() -> Option<String> {
    None
}

//! Sockets of the user-mode network as macOS has them, and waiting for thousands of them behind one descriptor: kqueue(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use rustix::event::kqueue::{Event, EventFilter, EventFlags, kevent, kqueue};
use rustix::net::{AddressFamily, Protocol, SocketType, ipproto, socket};

use crate::sys::net::Ready;

/// A ping socket hands over IPv4's ICMP messages with the IP header before them (icmp(4)).
pub(crate) const PING_HAS_IP_HEADER: bool = true;

/// Many descriptors, each reported once per change, behind one that is readable while there are reports. What is closed is
/// forgotten.
#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl Watch {
    /// Watches nothing yet.
    pub(crate) fn new() -> io::Result<Self> {
        let queue = kqueue()?;
        rustix::io::fcntl_setfd(&queue, rustix::io::FdFlags::CLOEXEC)?;
        Ok(Watch(queue))
    }

    /// Watches `fd` for both directions until it is closed.
    pub(crate) fn add(&self, fd: impl AsFd, key: u64) -> io::Result<()> {
        let raw = fd.as_fd().as_raw_fd();
        // The key travels in the pointer that the kernel hands back; nobody follows it.
        let tag = std::ptr::without_provenance_mut(key as usize);
        let flags = EventFlags::ADD | EventFlags::CLEAR;
        let changes =
            [Event::new(EventFilter::Read(raw), flags, tag), Event::new(EventFilter::Write(raw), flags, tag)];
        let mut none: Vec<Event> = Vec::new();
        // SAFETY: the descriptor is open, being borrowed, and the kernel forgets it when it is closed.
        unsafe { kevent(&self.0, &changes, &mut none, Some(Duration::ZERO)) }?;
        Ok(())
    }

    /// Takes what has changed since the last time; does not wait. `false`: there may be more.
    pub(crate) fn take(&self, ready: &mut Vec<Ready>) -> io::Result<bool> {
        const BATCH: usize = 256;
        let mut events: Vec<Event> = Vec::with_capacity(BATCH);
        let room = rustix::buffer::spare_capacity(&mut events);
        // SAFETY: no change is asked for, so no descriptor's lifetime is at stake.
        match unsafe { kevent(&self.0, &[], room, Some(Duration::ZERO)) } {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        ready.extend(events.iter().map(|event| {
            let ended = event.flags().contains(EventFlags::EOF);
            let reading = matches!(event.filter(), EventFilter::Read(_));
            Ready {
                key: event.udata().addr() as u64,
                readable: reading || ended,
                writable: !reading || ended,
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

fn prepared(family: AddressFamily, kind: SocketType, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let fd = socket(family, kind, protocol)?;
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    rustix::net::sockopt::set_socket_nosigpipe(&fd, true)?;
    Ok(fd)
}

/// A stream socket that never blocks.
pub(crate) fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    prepared(family, SocketType::STREAM, None)
}

/// A socket for echo requests that needs no privilege (icmp(4)). It never blocks.
pub(crate) fn ping_socket(v6: bool) -> io::Result<OwnedFd> {
    let (family, protocol) =
        if v6 { (AddressFamily::INET6, ipproto::ICMPV6) } else { (AddressFamily::INET, ipproto::ICMP) };
    prepared(family, SocketType::DGRAM, Some(protocol))
}

/// What to try when `/etc/resolv.conf` names no server: the configuration that the system's own resolver uses, whose lines
/// `nameserver[0] : 192.0.2.1` are read as well.
pub(crate) fn resolver_listing() -> Option<String> {
    let output = Command::new("/usr/sbin/scutil").arg("--dns").output().ok()?;
    String::from_utf8(output.stdout).ok()
}

//! A connected datagram socket on which every datagram is a frame: what VDE and `socket:dgram` have in common. It knows neither.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_recv_buffer_size, set_socket_send_buffer_size, socket_recv_buffer_size,
    socket_send_buffer_size,
};

use super::frames::{self, Received};
use super::{ETHERNET_HEADER, FrameInfo, RxRing, Transmit, TxFrame};

/// What the kernel shall hold for us: macOS starts with 4 KiB, which is two frames. The host may give less.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What the kernel shall hold of ours.
const SEND_BUFFER: usize = 1 << 20;

/// How often the processor is given away before a frame waits: macOS says ENOBUFS when the peer's buffer is full, and has no event
/// that says when that is over.
const YIELDS: u32 = 16;

/// How long a frame waits that was refused so.
const RETRY: Duration = Duration::from_micros(500);

/// The socket.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: OwnedFd,
    /// Longest frame.
    max: usize,
    /// When to offer a frame again that no event will announce room for.
    retry: Option<Instant>,
    /// The guest had no room for a frame that is there.
    blocked: bool,
}

/// What became of an attempt to send.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    Done,
    /// Becoming writable says when there is room.
    Full,
    /// Nothing says when there is room.
    FullSilently,
    /// This frame is lost.
    Lost,
    /// The peer is not there.
    Gone,
}

impl Datagrams {
    /// `socket` shall be non-blocking.
    pub(super) fn new(socket: OwnedFd, max: usize) -> Self {
        if socket_recv_buffer_size(&socket).is_ok_and(|size| size < RECEIVE_BUFFER) {
            let _ = set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER);
        }
        if socket_send_buffer_size(&socket).is_ok_and(|size| size < SEND_BUFFER) {
            let _ = set_socket_send_buffer_size(&socket, SEND_BUFFER);
        }
        Datagrams { socket, max, retry: None, blocked: false }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Frames wait that the guest has no room for, so that being readable is no news.
    pub(super) fn blocked(&self) -> bool {
        self.blocked
    }

    /// When to offer a refused frame again although the socket has not become writable.
    pub(super) fn retry(&self) -> Option<Instant> {
        self.retry
    }

    /// The refused frame is going to be offered again.
    pub(super) fn service(&mut self) {
        self.retry = None;
    }

    /// Sends a frame; an error says that the peer is not there (and the frame is lost).
    pub(super) fn transmit(&mut self, frame: &TxFrame<'_, '_>) -> Result<Transmit, Errno> {
        if frame.len > self.max {
            log::debug!("network: a frame of {} bytes is too long for {} and lost", frame.len, self.max);
            return Ok(Transmit::Done);
        }
        for _ in 0..YIELDS {
            let result = frames::send(self.socket.as_fd(), frame);
            match classify(result) {
                Sent::Done | Sent::Lost => return Ok(Transmit::Done),
                Sent::Full => return Ok(Transmit::Busy),
                Sent::FullSilently => std::thread::yield_now(),
                Sent::Gone => return Err(result.err().unwrap_or(Errno::NOTCONN)),
            }
        }
        self.retry = Some(Instant::now() + RETRY);
        Ok(Transmit::Busy)
    }

    /// Puts what has come into `ring`.
    pub(super) fn receive(&mut self, ring: &mut dyn RxRing) -> Result<(), Errno> {
        let (socket, max) = (self.socket.as_fd(), self.max);
        self.blocked = false;
        self.blocked = frames::receive_all(ring, max, |slices| match frames::receive(socket, slices, max) {
            Ok(received) => Ok(usable(received).map(|len| (len, FrameInfo::default()))),
            Err(error) if is_passing(error) => Ok(None),
            Err(error) => Err(error),
        })?;
        Ok(())
    }

    /// Takes one frame into `buffer`, which it replaces. `false`: there is none.
    pub(super) fn take(&mut self, buffer: &mut Vec<u8>) -> Result<bool, Errno> {
        self.blocked = false;
        for _ in 0..frames::BATCH {
            buffer.clear();
            buffer.resize(self.max, 0);
            let received = {
                let slices = [vm_memory::VolatileSlice::from(buffer.as_mut_slice())];
                frames::receive(self.socket.as_fd(), &slices, self.max)
            };
            match received {
                Ok(received) => {
                    if let Some(len) = usable(received) {
                        buffer.truncate(len);
                        return Ok(true);
                    }
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) if is_passing(error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// The frame's length, if it is one.
fn usable(received: Received) -> Option<usize> {
    if received.truncated || received.len < ETHERNET_HEADER {
        log::debug!(
            "network: a datagram of {} bytes{} is no frame",
            received.len,
            if received.truncated { " and more" } else { "" }
        );
        return None;
    }
    Some(received.len)
}

/// Reports about frames that were sent, which say nothing about those that come.
fn is_passing(error: Errno) -> bool {
    matches!(
        error,
        Errno::CONNREFUSED | Errno::CONNRESET | Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::NOBUFS
    )
}

fn classify(result: Result<usize, Errno>) -> Sent {
    match result {
        Ok(_) => Sent::Done,
        Err(Errno::AGAIN) => Sent::Full,
        Err(Errno::NOBUFS) => Sent::FullSilently,
        Err(
            Errno::CONNREFUSED
            | Errno::CONNRESET
            | Errno::NOTCONN
            | Errno::DESTADDRREQ
            | Errno::PIPE
            | Errno::NOENT,
        ) => Sent::Gone,
        Err(error) => {
            log::debug!("network: a frame is lost: {error}");
            Sent::Lost
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::super::testing::{Ring, frame, send};
    use super::*;

    fn pair() -> (Datagrams, UnixDatagram) {
        let (one, two) = UnixDatagram::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        two.set_nonblocking(true).unwrap();
        (Datagrams::new(one.into(), 1518), two)
    }

    fn receive(datagrams: &mut Datagrams, ring: &mut Ring) {
        datagrams.receive(ring).unwrap();
    }

    #[test]
    fn short_and_empty_datagrams_are_dropped_and_the_next_frame_arrives() {
        let (mut datagrams, peer) = pair();
        let mut ring = Ring::new(8);
        for bytes in [&[][..], &[1], &[1; 13], &frame(7, 60)] {
            peer.send(bytes).unwrap();
        }
        receive(&mut datagrams, &mut ring);
        assert_eq!(ring.frames(), [frame(7, 60)]);
    }

    #[test]
    fn a_huge_datagram_is_dropped_and_the_next_frame_arrives() {
        let (mut datagrams, peer) = pair();
        let mut ring = Ring::new(8);
        peer.send(&frame(1, 60_000)).unwrap();
        peer.send(&frame(2, 1519)).unwrap();
        peer.send(&frame(3, 1518)).unwrap();
        receive(&mut datagrams, &mut ring);
        assert_eq!(ring.frames(), [frame(3, 1518)]);
    }

    #[test]
    fn frames_wait_in_the_socket_while_the_guest_has_no_room() {
        let (mut datagrams, peer) = pair();
        for n in 0..4 {
            peer.send(&frame(n, 100)).unwrap();
        }
        let mut ring = Ring::new(2);
        receive(&mut datagrams, &mut ring);
        assert!(datagrams.blocked());
        let mut more = Ring::new(8);
        receive(&mut datagrams, &mut more);
        assert_eq!((ring.frames().len(), more.frames()), (2, vec![frame(2, 100), frame(3, 100)]));
        assert!(!datagrams.blocked());
    }

    #[test]
    fn a_full_peer_makes_it_busy_and_no_frame_is_lost_or_doubled() {
        let (mut datagrams, peer) = pair();
        let mut sent = 0u8;
        while sent < 255 && send(|tx| datagrams.transmit(tx).unwrap(), &frame(sent, 1000)) == Transmit::Done {
            sent += 1;
        }
        let mut got = 0;
        let mut buffer = [0; 2000];
        while let Ok(len) = peer.recv(&mut buffer) {
            assert_eq!(buffer[..len], frame(got, 1000));
            got += 1;
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn enobufs_is_waited_for_without_an_event() {
        assert_eq!(classify(Err(Errno::NOBUFS)), Sent::FullSilently);
        assert_eq!(classify(Err(Errno::AGAIN)), Sent::Full);
    }

    #[test]
    fn a_frame_longer_than_the_wire_takes_is_lost() {
        let (mut datagrams, peer) = pair();
        assert_eq!(send(|tx| datagrams.transmit(tx).unwrap(), &frame(1, 1519)), Transmit::Done);
        assert!(peer.recv(&mut [0; 2000]).is_err());
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error() {
        let (mut datagrams, peer) = pair();
        drop(peer);
        let result = send(|tx| datagrams.transmit(tx), &frame(1, 60));
        assert!(result.is_err());
    }
}

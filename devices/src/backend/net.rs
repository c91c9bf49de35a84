//! What stands behind a network card on the host: a switch, another program's socket, a tap device, or a NAT of our own. It moves
//! Ethernet frames (without the frame check sequence) and knows no virtqueue.
//!
//! A card has one thread, which owns its backend: it sleeps until the guest rings, one of the backend's descriptors is ready or its
//! deadline has come, then moves frames both ways until neither side has more or can take more. So a backend needs no locks, and a
//! frame no hop between threads.

pub mod socket;
pub mod switch;
pub mod tap;
pub mod user;
pub mod vde;

mod datagram;
mod frames;
#[cfg(test)]
mod testing;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use vm_memory::VolatileSlice;

/// Length of an Ethernet header (IEEE 802.3, 3.1.1, without a tag).
pub const ETHERNET_HEADER: usize = 14;

/// What a side understands besides plain, complete frames of at most MTU size: what `struct virtio_net_hdr` can say
/// (virtio 1.2, 5.1.6.2). Whatever one side does not understand is done before it is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Frames whose transport checksum is still to be computed.
    pub checksum: bool,
    /// TCP over IPv4, still to be cut into segments.
    pub tso4: bool,
    /// TCP over IPv6, still to be cut into segments.
    pub tso6: bool,
}

/// What is still to be done to a frame before it goes onto a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameInfo {
    /// The transport checksum: of everything from `start`, to be stored at `start + offset`, where the pseudo-header's is already.
    pub checksum: Option<PartialChecksum>,
    /// To be cut into segments.
    pub segmentation: Option<Segmentation>,
    /// Whoever hands the frame over has found its checksums right, or knows that it never left this machine's memory.
    pub checksum_valid: bool,
}

/// See [`FrameInfo::checksum`]; offsets in bytes from the frame's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where the transport header begins.
    pub start: u16,
    /// Where in it the checksum lies.
    pub offset: u16,
}

/// How a frame is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// Over which protocol TCP is.
    pub kind: SegmentationKind,
    /// Bytes of payload in each segment.
    pub size: u16,
    /// Length of all headers together.
    pub headers: u16,
}

/// See [`Segmentation::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentationKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

/// A frame that the guest sends: scattered over its memory, which it may change at any time.
#[derive(Debug, Clone, Copy)]
pub struct TxFrame<'f, 'm> {
    /// The frame's bytes, one slice after the other.
    pub slices: &'f [VolatileSlice<'m>],
    /// Their length together.
    pub len: usize,
    /// What is still to be done to it; only what [`NetBackend::offloads`] has.
    pub info: FrameInfo,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transmit {
    /// It has left, or is lost as frames can be.
    Done,
    /// There is no room: it is to be offered again when [`NetBackend::service`] has been called.
    Busy,
}

/// What was put into the room for a frame, if anything: how long it is, and what is still to be done to it.
pub type Filled = Option<(usize, FrameInfo)>;

/// Room for frames in the guest's memory.
pub trait RxRing {
    /// Hands `fill` the room for one frame of at most `max` bytes, and never less than that; it writes the frame from the beginning
    /// and says how long it is and what is still to be done to it, or `None` if there is none after all. `false`: the guest has no
    /// room for a frame now (`fill` was not called), or the card wants to look after something else first; either way the backend
    /// keeps the frame, and [`NetBackend::receive`] is called again when there is room.
    fn put(&mut self, max: usize, fill: &mut dyn FnMut(&[VolatileSlice<'_>]) -> Filled) -> bool;
}

/// The host's end of a network card. All calls come from the card's thread, in no particular order.
pub trait NetBackend: Send + fmt::Debug {
    /// What it understands of the guest's frames.
    fn offloads(&self) -> Offloads;

    /// What frames it may hand to a guest that understands `guest`. Called before the first frame, and again after a reset.
    fn set_guest_offloads(&mut self, guest: Offloads) {
        let _ = guest;
    }

    /// Descriptors that wake the card: whenever one is ready, [`NetBackend::service`] is called. `write` says whether a frame was
    /// refused with [`Transmit::Busy`], so that becoming writable counts. A backend that can do nothing with a readable descriptor
    /// while the guest has no room leaves it out then: one that stays ready although it was served is looked at less and less often.
    /// Asked before each sleep; a few, or one that stands for many (epoll, kqueue), are best.
    fn descriptors(&self, write: bool) -> Vec<(BorrowedFd<'_>, Interest)>;

    /// When to call [`NetBackend::service`] even if no descriptor is ready.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// A descriptor is ready, or the deadline has come. Must not block.
    ///
    /// # Errors
    /// The other end is gone: the card's link goes down, and the message is logged once. From then on no frames are moved, but
    /// descriptors and deadline count as before: a backend that has some left may try again, and is back when this succeeds.
    fn service(&mut self, now: Instant) -> io::Result<()>;

    /// Takes a frame from the guest. Must not block.
    fn transmit(&mut self, frame: &TxFrame<'_, '_>) -> Transmit;

    /// Takes it that the guest has no more frames for now: what was gathered may go.
    fn flush(&mut self) {}

    /// Puts frames into `ring` until it is full or there are none. Must not block. Called after every [`NetBackend::service`] and
    /// [`NetBackend::flush`], also when no descriptor was ready, and with a ring that takes nothing while the guest has no driver.
    ///
    /// # Errors
    /// As for [`NetBackend::service`].
    fn receive(&mut self, ring: &mut dyn RxRing) -> io::Result<()>;

    /// Everything it needs is there: a peer that a stream is connected to, a switch.
    fn link(&self) -> bool {
        true
    }
}

/// What makes a descriptor ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// There is something to read.
    Read,
    /// There is room to write.
    Write,
    /// Either.
    Both,
}

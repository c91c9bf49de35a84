//! A card on a tap interface of the host (Linux): the host's own network stack, a bridge or a router is the peer.
//!
//! Frames pass between the guest's memory and the kernel with one call each and no copy of ours, behind a `struct virtio_net_hdr`
//! that carries what is still to be done to them, so that checksums and segmentation are left to whoever needs them. It
//! configures no interface: addresses, bridges and being up are the administrator's affair.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::time::Instant;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{
    ETHERNET_HEADER, FrameInfo, Interest, NetBackend, Offloads, PartialChecksum, RxRing, Segmentation,
    SegmentationKind, Transmit, TxFrame, frames,
};
use crate::options::{OptionError, OptionList};
use crate::sys::wire;

/// Longest name of an interface (`IFNAMSIZ`, with its NUL, is 16).
const MAX_NAME: usize = 15;

/// Length of `struct virtio_net_hdr` without `num_buffers` (linux/virtio_net.h), which every tap device can have.
const HEADER: usize = 10;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` (virtio 1.2, 5.1.6).
const F_NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`.
const F_DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_NONE`.
const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
const GSO_TCPV6: u8 = 4;

/// Bytes of an 802.1Q tag, by which a frame may be longer than header and MTU.
const TAG: usize = 4;

/// Which interface: the value of `--net tap:IF[,create]`. Data only; [`Tap::open`] makes it real.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TapConfig {
    /// The interface's name.
    pub interface: String,
    /// Make it if it is not there, which takes privileges; it goes away with the machine and is down at first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub create: bool,
}

impl TapConfig {
    /// An interface that is there.
    pub fn new(interface: impl Into<String>) -> Self {
        TapConfig { interface: interface.into(), create: false }
    }
}

impl FromStr for TapConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut options = OptionList::parse(text)?;
        let interface = options.first("the tap interface's name")?;
        let create = options.switch("create")?.unwrap_or(false);
        options.finish()?;
        Ok(TapConfig { interface, create })
    }
}

impl fmt::Display for TapConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.interface.replace(',', ",,"), if self.create { ",create" } else { "" })
    }
}

/// Why a tap interface could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The host is not Linux.
    #[error(
        "tap interface {0:?}: this host has no tap devices, only Linux has; the networks 'user', 'vde' and 'socket' work here"
    )]
    Unsupported(String),
    /// No interface can have that name.
    #[error("{0:?} cannot be the name of a network interface: 1 to 15 bytes without '/' and spaces can")]
    Name(String),
    /// The device file of all taps cannot be opened.
    #[error(
        "tap interface {interface:?}: /dev/net/tun cannot be opened; the kernel module 'tun' has to be loaded"
    )]
    DeviceFile {
        /// The interface.
        interface: String,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// There is no such interface.
    #[error(
        "there is no network interface {0:?}; 'ip tuntap add dev {0} mode tap user $USER' and 'ip link set {0} up', as root, make one"
    )]
    NoInterface(String),
    /// It belongs to somebody else.
    #[error(
        "this user may not use tap interface {0:?}; 'ip tuntap add dev {0} mode tap user $USER', as root, makes one for a user"
    )]
    Permission(String),
    /// Another program is attached to it.
    #[error("tap interface {0:?} is in use by another program; each card needs one of its own")]
    Busy(String),
    /// It is no tap interface with one queue.
    #[error("network interface {0:?} is no tap interface, or one that was made with 'multi_queue'")]
    NotATap(String),
    /// Any other failure.
    #[error("tap interface {interface:?} cannot be used")]
    Host {
        /// The interface.
        interface: String,
        /// What the host says.
        #[source]
        source: io::Error,
    },
}

/// A tap interface.
#[derive(Debug)]
pub struct Tap {
    name: String,
    fd: OwnedFd,
    mtu: usize,
    /// What the guest understands.
    guest: Offloads,
    /// The guest had no room for a frame that may be there.
    blocked: bool,
    gone: bool,
}

impl Tap {
    /// Attaches to the interface.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(config: &TapConfig) -> Result<Tap, TapError> {
        let name = config.interface.clone();
        if !is_name(&name) {
            return Err(TapError::Name(name));
        }
        let fd = match wire::open_tun() {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                return Err(TapError::Unsupported(name));
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(TapError::Permission(name));
            }
            Err(source) => return Err(TapError::DeviceFile { interface: name, source }),
        };
        // Not proof against somebody who removes it now, but against a mistyped name.
        if !config.create && !wire::interface_exists(&name) {
            return Err(TapError::NoInterface(name));
        }
        let mtu = wire::attach_tap(fd.as_fd(), &name).map_err(|error| refused(&name, error))?;
        let tap = Tap { name, fd, mtu, guest: Offloads::default(), blocked: false, gone: false };
        // It may have been left with another program's.
        wire::set_tap_offloads(tap.fd.as_fd(), tap.guest)
            .map_err(|source| TapError::Host { interface: tap.name.clone(), source })?;
        Ok(tap)
    }

    /// The interface's MTU when it was opened.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// Longest frame that may come.
    fn max_frame(&self) -> usize {
        if self.guest.tso4 || self.guest.tso6 {
            return frames::MAX_FRAME;
        }
        // The MTU may be raised later; what is longer than the usual is then cut and dropped.
        (self.mtu.max(1500) + ETHERNET_HEADER + TAG).min(frames::MAX_FRAME)
    }

    fn fail(&mut self, error: Errno) -> io::Error {
        self.gone = true;
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("tap interface {} is gone: {error}", self.name))
    }
}

impl NetBackend for Tap {
    fn offloads(&self) -> Offloads {
        Offloads { checksum: true, tso4: true, tso6: true }
    }

    fn set_guest_offloads(&mut self, guest: Offloads) {
        // Segments need checksums.
        let guest = if guest.checksum { guest } else { Offloads::default() };
        match wire::set_tap_offloads(self.fd.as_fd(), guest) {
            Ok(()) => self.guest = guest,
            Err(error) => {
                log::warn!("tap interface {}: frames come without offloads: {error}", self.name);
                self.guest = Offloads::default();
                let _ = wire::set_tap_offloads(self.fd.as_fd(), self.guest);
            }
        }
    }

    fn descriptors(&self, write: bool) -> Vec<(BorrowedFd<'_>, Interest)> {
        let interest = match (self.gone, self.blocked, write) {
            (true, ..) | (_, true, false) => return Vec::new(),
            (_, false, false) => Interest::Read,
            (_, false, true) => Interest::Both,
            (_, true, true) => Interest::Write,
        };
        vec![(self.fd.as_fd(), interest)]
    }

    fn service(&mut self, _now: Instant) -> io::Result<()> {
        if self.gone { Err(self.fail(Errno::NXIO)) } else { Ok(()) }
    }

    fn transmit(&mut self, frame: &TxFrame<'_, '_>) -> Transmit {
        if self.gone || frame.len > frames::MAX_FRAME {
            return Transmit::Done;
        }
        match frames::write(self.fd.as_fd(), &encode(frame.info), frame) {
            Ok(_) => Transmit::Done,
            Err(Errno::AGAIN | Errno::NOBUFS) => Transmit::Busy,
            // EIO: the interface is down. EINVAL: the kernel does not believe the header. Frames get lost so.
            Err(error) => {
                log::debug!("tap interface {}: a frame is lost: {error}", self.name);
                Transmit::Done
            }
        }
    }

    fn receive(&mut self, ring: &mut dyn RxRing) -> io::Result<()> {
        self.blocked = false;
        if self.gone {
            return Ok(());
        }
        let (fd, max, guest) = (self.fd.as_fd(), self.max_frame(), self.guest);
        let received = frames::receive_all(ring, max, |slices| {
            let mut header = [0; HEADER];
            let len = frames::read(fd, &mut header, slices, max)?;
            Ok(len.checked_sub(HEADER).and_then(|len| usable(len, decode(header), guest)))
        });
        self.blocked = received.map_err(|error| self.fail(error))?;
        Ok(())
    }

    fn link(&self) -> bool {
        !self.gone
    }
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| !c.is_whitespace() && c != '/' && c != '%' && c != '\0';
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(fits) && name != "." && name != ".."
}

fn refused(name: &str, error: io::Error) -> TapError {
    let name = name.to_owned();
    match Errno::from_io_error(&error) {
        Some(Errno::PERM | Errno::ACCESS) => TapError::Permission(name),
        Some(Errno::BUSY) => TapError::Busy(name),
        Some(Errno::INVAL) => TapError::NotATap(name),
        _ => TapError::Host { interface: name, source: error },
    }
}

/// A frame that the guest understands, with what it has to know. What was queued before the kernel was told of the guest's
/// abilities may be neither.
fn usable(len: usize, info: Option<FrameInfo>, guest: Offloads) -> Option<(usize, FrameInfo)> {
    let info = info?;
    let segments = match info.segmentation.map(|segmentation| segmentation.kind) {
        None => true,
        Some(SegmentationKind::Tcp4) => guest.tso4,
        Some(SegmentationKind::Tcp6) => guest.tso6,
    };
    let understood = segments && (guest.checksum || info.checksum.is_none());
    (understood && len >= ETHERNET_HEADER).then_some((len, info))
}

/// `struct virtio_net_hdr` for the kernel, in the host's byte order.
fn encode(info: FrameInfo) -> [u8; HEADER] {
    let mut flags = if info.checksum_valid { F_DATA_VALID } else { 0 };
    let (mut start, mut offset) = (0, 0);
    if let Some(checksum) = info.checksum {
        flags = F_NEEDS_CSUM;
        (start, offset) = (checksum.start, checksum.offset);
    }
    let (gso, headers, size) = match info.segmentation {
        None => (GSO_NONE, 0, 0),
        Some(segmentation) => {
            let kind = match segmentation.kind {
                SegmentationKind::Tcp4 => GSO_TCPV4,
                SegmentationKind::Tcp6 => GSO_TCPV6,
            };
            (kind, segmentation.headers, segmentation.size)
        }
    };
    let mut header = [0; HEADER];
    header[0] = flags;
    header[1] = gso;
    for (index, word) in [headers, size, start, offset].into_iter().enumerate() {
        header[2 + 2 * index..4 + 2 * index].copy_from_slice(&word.to_ne_bytes());
    }
    header
}

/// What the kernel says about a frame; `None` if it is nothing that a guest could be told.
fn decode(header: [u8; HEADER]) -> Option<FrameInfo> {
    let word = |index: usize| u16::from_ne_bytes([header[2 + 2 * index], header[3 + 2 * index]]);
    let (flags, gso) = (header[0], header[1]);
    let kind = match gso {
        GSO_NONE => None,
        GSO_TCPV4 => Some(SegmentationKind::Tcp4),
        GSO_TCPV6 => Some(SegmentationKind::Tcp6),
        _ => return None,
    };
    Some(FrameInfo {
        checksum: (flags & F_NEEDS_CSUM != 0).then(|| PartialChecksum { start: word(2), offset: word(3) }),
        segmentation: kind.map(|kind| Segmentation { kind, size: word(1), headers: word(0) }),
        checksum_valid: flags & F_DATA_VALID != 0,
    })
}

#[cfg(test)]
mod tests;

//! smoltcp's side of a connection: one interface without link layer that takes and gives one packet at a time. Each connection has
//! a socket set of its own, so a packet costs the same with one connection as with thousands.

use std::net::IpAddr;
use std::time::Instant;

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant as Time;
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv4Packet, Ipv6Packet};

use super::super::link::Link;
use super::super::packet::{IPV4_HEADER, IPV6_HEADER, TCP, be16, pseudo_header, put16, transport_checksum};
use crate::backend::net::{ETHERNET_HEADER, FrameInfo, PartialChecksum, Segmentation, SegmentationKind};

/// The longest packet that IP's length field can say.
const MAX_PACKET: usize = 65535;
/// Where in a TCP header the data offset and the checksum lie (RFC 9293, 3.1).
const DATA_OFFSET: usize = 12;
const CHECKSUM: usize = 16;
/// A TCP header without options.
pub(super) const TCP_HEADER: usize = 20;

/// Room for the packet that the interface makes, behind room for its Ethernet header.
#[derive(Debug)]
struct Scratch {
    bytes: Vec<u8>,
    len: Option<usize>,
}

/// The interface, and the packet that it has just made.
pub(super) struct Stack {
    interface: Interface,
    scratch: Scratch,
    epoch: Instant,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").finish_non_exhaustive()
    }
}

impl Stack {
    pub(super) fn new(link: &Link, seed: u64) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut scratch = Scratch { bytes: vec![0; ETHERNET_HEADER + MAX_PACKET], len: None };
        let mut wire = Wire { input: None, output: &mut scratch };
        let mut interface = Interface::new(config, &mut wire, Time::ZERO);
        interface.set_any_ip(true);
        interface.update_ip_addrs(|addresses| {
            // Two fit into what smoltcp keeps by default.
            let _ = addresses.push(IpCidr::new(link.plan.router.into(), 32));
            let _ = addresses.push(IpCidr::new(super::super::plan::ROUTER6.into(), 128));
        });
        Stack { interface, scratch, epoch: link.now }
    }

    pub(super) fn time(&self, now: Instant) -> Time {
        let micros = now.saturating_duration_since(self.epoch).as_micros();
        // Not zero, which smoltcp uses for "at once".
        Time::from_micros(i64::try_from(micros).unwrap_or(i64::MAX).saturating_add(1))
    }

    pub(super) fn context(&mut self) -> &mut smoltcp::iface::Context {
        self.interface.context()
    }

    /// Hands a packet to the socket in `set`. Whether there is an answer for [`Stack::finish`].
    pub(super) fn input(&mut self, now: Instant, set: &mut SocketSet<'_>, packet: &[u8]) -> bool {
        let now = self.time(now);
        self.scratch.len = None;
        let mut wire = Wire { input: Some(packet), output: &mut self.scratch };
        let result = self.interface.poll_ingress_single(now, &mut wire, set);
        result != PollIngressSingleResult::None && self.scratch.len.is_some()
    }

    /// Has the socket in `set` make its next packet, if it has one to send.
    pub(super) fn output(&mut self, now: Instant, set: &mut SocketSet<'_>) -> bool {
        let now = self.time(now);
        self.scratch.len = None;
        let mut wire = Wire { input: None, output: &mut self.scratch };
        let _ = self.interface.poll_egress(now, &mut wire, set);
        self.scratch.len.is_some()
    }

    /// When the socket in `set` wants to be asked again.
    pub(super) fn poll_at(&mut self, now: Instant, set: &SocketSet<'_>) -> Option<Instant> {
        let time = self.time(now);
        let at = self.interface.poll_at(time, set)?;
        let delay = u64::try_from(at.total_micros().saturating_sub(time.total_micros())).unwrap_or(0);
        Some(now + std::time::Duration::from_micros(delay))
    }

    /// Makes a frame of the packet that was made last: its Ethernet header, its checksum, and into segments of which size it is to
    /// be cut.
    pub(super) fn finish(&mut self, link: &Link, segment: Option<u16>) -> Option<(&[u8], FrameInfo)> {
        let len = self.scratch.len.take()?;
        let frame = self.scratch.bytes.get_mut(..ETHERNET_HEADER + len)?;
        let (ethernet, packet) = frame.split_at_mut(ETHERNET_HEADER);
        let (source, destination, header): (IpAddr, IpAddr, usize) = match packet.first()? >> 4 {
            4 => {
                let ip = Ipv4Packet::new_checked(&*packet).ok()?;
                (ip.src_addr().into(), ip.dst_addr().into(), IPV4_HEADER)
            }
            _ => {
                let ip = Ipv6Packet::new_checked(&*packet).ok()?;
                (ip.src_addr().into(), ip.dst_addr().into(), IPV6_HEADER)
            }
        };
        ethernet.copy_from_slice(&link.ethernet_to(destination).emit());
        let tcp = packet.get_mut(header..)?;
        if !link.guest.checksum {
            put16(tcp, CHECKSUM, 0);
            let sum = transport_checksum(source, destination, TCP, tcp);
            put16(tcp, CHECKSUM, sum);
            let info = FrameInfo { checksum_valid: true, ..FrameInfo::default() };
            return Some((frame, info));
        }
        put16(tcp, CHECKSUM, pseudo_header(source, destination, TCP, tcp.len()));
        let tcp_header = header_len(tcp)?;
        let start = u16::try_from(ETHERNET_HEADER + header).ok()?;
        let headers = start + u16::try_from(tcp_header).ok()?;
        let payload = len.saturating_sub(header + tcp_header);
        let kind = if source.is_ipv4() { SegmentationKind::Tcp4 } else { SegmentationKind::Tcp6 };
        let segmentation = segment.filter(|size| payload > usize::from(*size)).map(|size| Segmentation {
            kind,
            size,
            headers,
        });
        let checksum = Some(PartialChecksum { start, offset: u16::try_from(CHECKSUM).ok()? });
        Some((frame, FrameInfo { checksum, segmentation, checksum_valid: true }))
    }
}

/// A TCP header's flags and its maximum segment size, if it says one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flags {
    pub(super) syn: bool,
    pub(super) ack: bool,
    pub(super) rst: bool,
}

impl Flags {
    pub(super) fn of(segment: &[u8]) -> Option<Self> {
        let flags = be16(segment, DATA_OFFSET)?;
        Some(Flags { rst: flags & 4 != 0, syn: flags & 2 != 0, ack: flags & 0x10 != 0 })
    }
}

/// Length of a TCP header, as it says.
pub(super) fn header_len(segment: &[u8]) -> Option<usize> {
    Some(usize::from(segment.get(DATA_OFFSET)? >> 4) * 4).filter(|len| *len >= TCP_HEADER)
}

/// Replaces the maximum segment size in a SYN by the largest there is, so that smoltcp makes packets as large as IP allows, and
/// gives what the guest had said: the size to cut them to.
pub(super) fn lift_segment_size(segment: &mut [u8]) -> Option<u16> {
    let header = header_len(segment)?;
    let mut at = TCP_HEADER;
    // Option kinds (RFC 9293, 3.2): 0 ends the list, 1 is padding, 2 the maximum segment size.
    while at < header {
        match *segment.get(at)? {
            0 => return None,
            1 => at += 1,
            2 => {
                let size = be16(segment, at + 2)?;
                if size == 0 || at + 4 > header {
                    return None;
                }
                put16(segment, at + 2, u16::MAX);
                return Some(size);
            }
            _ => at += usize::from(*segment.get(at + 1)?).max(2),
        }
    }
    None
}

/// The interface's device for one packet in and one out.
struct Wire<'a> {
    input: Option<&'a [u8]>,
    output: &'a mut Scratch,
}

struct Input<'a>(&'a [u8]);
struct Output<'a>(&'a mut Scratch);

impl RxToken for Input<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Output<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        match self.0.bytes.get_mut(ETHERNET_HEADER..ETHERNET_HEADER + len) {
            Some(room) => {
                self.0.len = Some(len);
                f(room)
            }
            // Never so: the interface keeps to its MTU.
            None => f(&mut vec![0; len]),
        }
    }
}

impl Device for Wire<'_> {
    type RxToken<'t>
        = Input<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Output<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Time) -> Option<(Input<'_>, Output<'_>)> {
        Some((Input(self.input.take()?), Output(self.output)))
    }

    fn transmit(&mut self, _: Time) -> Option<Output<'_>> {
        self.output.len.is_none().then_some(Output(self.output))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MAX_PACKET;
        // Checked before and computed after, where the guest does not do it.
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities
    }
}

//! Packets as bytes: taking Ethernet and IP apart with every length checked, and putting them together with checksums either
//! computed or left to the guest. It knows no connections.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, checksum};

use super::plan::Mac;
use crate::backend::net::{ETHERNET_HEADER, FrameInfo, PartialChecksum};

/// EtherTypes (IEEE 802 numbers).
pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;
/// IP protocol numbers (IANA).
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// Lengths of headers without options (RFC 791, 3.1; RFC 8200, 3; RFC 768).
pub(super) const IPV4_HEADER: usize = 20;
pub(super) const IPV6_HEADER: usize = 40;
pub(super) const UDP_HEADER: usize = 8;
/// Length of IPv6's fragment header (RFC 8200, 4.5).
const FRAGMENT_HEADER: usize = 8;
/// More extension headers than any honest packet has.
const MAX_EXTENSIONS: usize = 8;

/// Two bytes of `bytes`, big-endian.
pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Writes two bytes, if they are there.
pub(super) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at.saturating_add(2)) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// An Ethernet frame's header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ethernet {
    pub(super) destination: Mac,
    pub(super) source: Mac,
    pub(super) ethertype: u16,
}

impl Ethernet {
    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        let (header, _) = frame.split_first_chunk::<ETHERNET_HEADER>()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
        Some(Ethernet {
            destination: [d0, d1, d2, d3, d4, d5],
            source: [s0, s1, s2, s3, s4, s5],
            ethertype: u16::from_be_bytes([t0, t1]),
        })
    }

    pub(super) fn emit(&self) -> [u8; ETHERNET_HEADER] {
        let mut bytes = [0; ETHERNET_HEADER];
        bytes[..6].copy_from_slice(&self.destination);
        bytes[6..12].copy_from_slice(&self.source);
        bytes[12..].copy_from_slice(&self.ethertype.to_be_bytes());
        bytes
    }
}

/// A piece of a packet that was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fragment {
    pub(super) id: u32,
    pub(super) offset: usize,
    pub(super) more: bool,
}

/// An IP packet's header, with lengths that lie within the packet: `header <= len <=` the slice it was parsed from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ip {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) hop_limit: u8,
    /// Where the payload begins, after extension headers.
    pub(super) header: usize,
    /// Where it ends.
    pub(super) len: usize,
    pub(super) fragment: Option<Fragment>,
}

impl Ip {
    /// Whether nothing lies between the fixed header and the payload that TCP would stumble over.
    pub(super) fn is_plain(&self) -> bool {
        self.fragment.is_none() && (self.source.is_ipv4() || self.header == IPV6_HEADER)
    }

    pub(super) fn parse4(packet: &[u8]) -> Option<Self> {
        let ip = Ipv4Packet::new_checked(packet).ok()?;
        if ip.version() != 4 || usize::from(ip.header_len()) < IPV4_HEADER || !ip.verify_checksum() {
            return None;
        }
        let offset = usize::from(ip.frag_offset());
        let fragment = (ip.more_frags() || offset != 0).then(|| Fragment {
            id: u32::from(ip.ident()),
            offset,
            more: ip.more_frags(),
        });
        Some(Ip {
            source: IpAddr::V4(ip.src_addr()),
            destination: IpAddr::V4(ip.dst_addr()),
            protocol: ip.next_header().into(),
            hop_limit: ip.hop_limit(),
            header: usize::from(ip.header_len()),
            len: usize::from(ip.total_len()),
            fragment,
        })
    }

    pub(super) fn parse6(packet: &[u8]) -> Option<Self> {
        let ip = Ipv6Packet::new_checked(packet).ok()?;
        if ip.version() != 6 {
            return None;
        }
        let len = ip.total_len();
        let mut parsed = Ip {
            source: IpAddr::V6(ip.src_addr()),
            destination: IpAddr::V6(ip.dst_addr()),
            protocol: ip.next_header().into(),
            hop_limit: ip.hop_limit(),
            header: IPV6_HEADER,
            len,
            fragment: None,
        };
        let packet = packet.get(..len)?;
        for _ in 0..MAX_EXTENSIONS {
            let rest = packet.get(parsed.header..)?;
            let size = match parsed.protocol {
                HOP_BY_HOP | DESTINATION | ROUTING => (usize::from(*rest.get(1)?) + 1) * 8,
                FRAGMENT => {
                    let word = be16(rest, 2)?;
                    let id = u32::from_be_bytes(rest.get(4..FRAGMENT_HEADER)?.try_into().ok()?);
                    parsed.fragment =
                        Some(Fragment { id, offset: usize::from(word & !7), more: word & 1 != 0 });
                    FRAGMENT_HEADER
                }
                _ => return Some(parsed),
            };
            parsed.protocol = *rest.first()?;
            parsed.header = parsed.header.checked_add(size).filter(|end| *end <= len)?;
            // What follows a fragment header may be the middle of something.
            if parsed.fragment.is_some() {
                return Some(parsed);
            }
        }
        None
    }

    /// The packet's payload.
    pub(super) fn payload<'p>(&self, packet: &'p [u8]) -> &'p [u8] {
        packet.get(self.header..self.len).unwrap_or(&[])
    }
}

/// A packet put together: header and payload, without Ethernet. `None` if that is too long for IP.
pub(super) fn ip_packet(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: &[u8],
    fragment: Option<Fragment>,
) -> Option<Vec<u8>> {
    let hop_limit = if protocol == ICMPV6 { 255 } else { 64 };
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = u16::try_from(IPV4_HEADER.checked_add(payload.len())?).ok()?;
            let mut bytes = vec![0; IPV4_HEADER];
            bytes.reserve(payload.len());
            let mut ip = Ipv4Packet::new_unchecked(&mut bytes);
            ip.set_version(4);
            ip.set_header_len(20);
            ip.set_total_len(total);
            ip.set_hop_limit(hop_limit);
            ip.set_next_header(protocol.into());
            if let Some(fragment) = fragment {
                ip.set_ident(u16::try_from(fragment.id & 0xffff).unwrap_or(0));
                ip.set_more_frags(fragment.more);
                ip.set_frag_offset(u16::try_from(fragment.offset).ok()?);
            } else {
                ip.set_dont_frag(true);
            }
            ip.set_src_addr(source);
            ip.set_dst_addr(destination);
            ip.fill_checksum();
            bytes.extend_from_slice(payload);
            Some(bytes)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let extra = if fragment.is_some() { FRAGMENT_HEADER } else { 0 };
            let len = u16::try_from(payload.len().checked_add(extra)?).ok()?;
            let mut bytes = vec![0; IPV6_HEADER];
            bytes.reserve(payload.len() + extra);
            let mut ip = Ipv6Packet::new_unchecked(&mut bytes);
            ip.set_version(6);
            ip.set_payload_len(len);
            ip.set_next_header(if fragment.is_some() { FRAGMENT.into() } else { protocol.into() });
            ip.set_hop_limit(hop_limit);
            ip.set_src_addr(source);
            ip.set_dst_addr(destination);
            if let Some(fragment) = fragment {
                let word = u16::try_from(fragment.offset).ok()? & !7 | u16::from(fragment.more);
                bytes.extend_from_slice(&[protocol, 0]);
                bytes.extend_from_slice(&word.to_be_bytes());
                bytes.extend_from_slice(&fragment.id.to_be_bytes());
            }
            bytes.extend_from_slice(payload);
            Some(bytes)
        }
        _ => None,
    }
}

/// The sum over TCP's and UDP's pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1), not complemented.
pub(super) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u16 {
    let (source, destination) = (IpAddress::from(source), IpAddress::from(destination));
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    checksum::pseudo_header(&source, &destination, IpProtocol::from(protocol), len)
}

/// The checksum over `segment`, whose own field is zero, and its pseudo-header; also ICMPv6's.
pub(super) fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let pseudo = pseudo_header(source, destination, protocol, segment.len());
    !checksum::combine(&[pseudo, checksum::data(segment)])
}

/// Whether `segment`'s checksum is right.
pub(super) fn checksum_holds(ip: &Ip, segment: &[u8]) -> bool {
    let pseudo = pseudo_header(ip.source, ip.destination, ip.protocol, segment.len());
    match ip.protocol {
        ICMP => checksum::data(segment) == 0xffff,
        // None was computed (RFC 768); IPv6 has no such thing (RFC 8200, 8.1).
        UDP if ip.source.is_ipv4() && be16(segment, 6) == Some(0) => true,
        TCP | UDP | ICMPV6 => checksum::combine(&[pseudo, checksum::data(segment)]) == 0xffff,
        _ => true,
    }
}

/// A frame for the guest.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) bytes: Vec<u8>,
    pub(super) info: FrameInfo,
}

/// Frames that wait for room in the guest's ring. There are never many: what streams and sockets hold stays there until there is
/// room, so this is for answers and for what was made while the ring filled up.
#[derive(Debug, Default)]
pub(super) struct Frames {
    queue: VecDeque<Frame>,
    bytes: usize,
}

impl Frames {
    /// Most frames and bytes that wait. A guest that asks and never makes room gets no more answers.
    const MAX_FRAMES: usize = 1024;
    const MAX_BYTES: usize = 4 << 20;

    /// Nothing more should be fetched from sockets.
    pub(super) fn is_busy(&self) -> bool {
        self.queue.len() >= 64 || self.bytes >= 256 * 1024
    }

    pub(super) fn push(&mut self, frame: Frame) {
        let bytes = self.bytes.saturating_add(frame.bytes.len());
        if self.queue.len() < Self::MAX_FRAMES && bytes <= Self::MAX_BYTES {
            self.bytes = bytes;
            self.queue.push_back(frame);
        }
    }

    pub(super) fn front(&self) -> Option<&Frame> {
        self.queue.front()
    }

    pub(super) fn pop(&mut self) {
        if let Some(frame) = self.queue.pop_front() {
            self.bytes = self.bytes.saturating_sub(frame.bytes.len());
        }
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.bytes = 0;
    }
}

/// A UDP datagram without its checksum, or `None` if it is too long.
pub(super) fn udp_segment(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(UDP_HEADER.checked_add(payload.len())?).ok()?;
    let mut segment = Vec::with_capacity(usize::from(len));
    segment.extend_from_slice(&source.port().to_be_bytes());
    segment.extend_from_slice(&destination.port().to_be_bytes());
    segment.extend_from_slice(&len.to_be_bytes());
    segment.extend_from_slice(&[0, 0]);
    segment.extend_from_slice(payload);
    Some(segment)
}

/// What a frame says whose transport checksum, at `offset` of what follows `ip_header` bytes, is left to the guest.
pub(super) fn partial(ip_header: usize, offset: u16) -> FrameInfo {
    let start = u16::try_from(ETHERNET_HEADER + ip_header).unwrap_or(u16::MAX);
    FrameInfo { checksum: Some(PartialChecksum { start, offset }), segmentation: None, checksum_valid: true }
}

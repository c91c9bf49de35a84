//! What a network card's hardware does to a frame before it leaves: checksums, and cutting TCP into segments. Pure functions over
//! bytes, for backends that only take complete frames; they know no ring and no guest.
//!
//! A frame and what is said about it are allegations of the guest: everything is checked against the frame's own bytes.

use std::ops::Range;

use crate::backend::net::{ETHERNET_HEADER, PartialChecksum, Segmentation, SegmentationKind};

/// Most bytes of headers in front of a segment's payload: Ethernet with two tags, IPv6 with options, or IPv4 with all of them, and TCP
/// with all of them.
pub const MAX_HEADERS: usize = 256;
/// Least payload of a segment: the smallest that Linux ever sends (TCP_MIN_GSO_SIZE). Less would make many frames out of one.
pub const MIN_SEGMENT: u16 = 8;

/// EtherTypes (IEEE 802 numbers): IPv4, IPv6, and the tags of 802.1Q and 802.1ad.
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
/// Length of a tag.
const TAG: usize = 4;
/// Protocol number of TCP.
const PROTOCOL_TCP: u8 = 6;
/// Length of an IPv6 header (RFC 8200, 3), and of an IPv4 header without options (RFC 791, 3.1).
const IPV6_HEADER: usize = 40;
const IPV4_HEADER: usize = 20;
/// Length of a TCP header without options, and where its fields are (RFC 9293, 3.1).
const TCP_HEADER: usize = 20;
const TCP_SEQUENCE: usize = 4;
const TCP_DATA_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// Why a frame cannot be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// It ends within its headers, or they are longer than any.
    #[error("it ends within its headers")]
    Truncated,
    /// It is not what it was said to be: another protocol, a fragment, other header lengths.
    #[error("its headers are not what was said of it")]
    Headers,
    /// Segments of a size that nobody wants.
    #[error("segments of {0} bytes")]
    Size(u16),
}

/// The ones' complement sum of `bytes` as 16-bit big-endian words (RFC 1071), added to `initial`. Not folded: sums of pieces can be
/// added as long as all of them but the last have an even length.
pub fn sum(bytes: &[u8], initial: u64) -> u64 {
    // Words of four bytes are summed as they come and folded at the end, which gives the same (RFC 1071, 2 (C)).
    let (words, rest) = bytes.as_chunks::<4>();
    let total: u64 = words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    initial + total + u64::from(u32::from_be_bytes(last))
}

/// The checksum of a [`sum`].
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The sum over the pseudo-header of TCP or UDP (RFC 9293, 3.1; RFC 8200, 8.1): addresses as they lie in the IP header, next to
/// each other.
pub fn pseudo_header(addresses: &[u8], protocol: u8, len: usize) -> u64 {
    sum(addresses, u64::from(protocol) + len as u64)
}

/// Computes the checksum that `partial` describes and puts it into its place. `false`: it lies outside of the frame.
pub fn complete_checksum(frame: &mut [u8], partial: PartialChecksum) -> bool {
    let start = usize::from(partial.start);
    let Some(covered) = frame.get(start..) else { return false };
    // The place holds the pseudo-header's sum already, which so becomes part of this one.
    let checksum = match fold(sum(covered, 0)) {
        // Zero means "no checksum" in UDP, and the other zero of ones' complement is as good (RFC 768).
        0 => 0xffff,
        checksum => checksum,
    };
    let at = start + usize::from(partial.offset);
    match frame.get_mut(at..at + 2) {
        Some(place) => {
            place.copy_from_slice(&checksum.to_be_bytes());
            true
        }
        None => false,
    }
}

/// Cuts one TCP frame into frames of a segment each. The frame's bytes stay with the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmenter {
    kind: SegmentationKind,
    /// Where the IP header begins.
    network: usize,
    /// Where the TCP header begins.
    transport: usize,
    /// Where the payload begins.
    payload: usize,
    /// Length of the frame.
    len: usize,
    /// Payload of each segment.
    size: usize,
    /// How many segments have been cut.
    index: usize,
}

impl Segmenter {
    /// For cutting `frame` as `segmentation` says.
    ///
    /// # Errors
    /// The frame is something else than what `segmentation` says.
    pub fn new(frame: &[u8], segmentation: Segmentation) -> Result<Self, SegmentError> {
        if segmentation.size < MIN_SEGMENT {
            return Err(SegmentError::Size(segmentation.size));
        }
        let (network, transport) = locate(frame, segmentation.kind)?;
        let payload = transport + tcp_header_len(frame.get(transport..).unwrap_or_default())?;
        if payload != usize::from(segmentation.headers) {
            return Err(SegmentError::Headers);
        }
        if payload > frame.len() || payload > MAX_HEADERS {
            return Err(SegmentError::Truncated);
        }
        let size = usize::from(segmentation.size);
        Ok(Segmenter {
            kind: segmentation.kind,
            network,
            transport,
            payload,
            len: frame.len(),
            size,
            index: 0,
        })
    }

    /// How many frames there are in all: one even without payload.
    pub fn count(&self) -> usize {
        (self.len - self.payload).div_ceil(self.size).max(1)
    }

    /// Whether all frames have been cut.
    pub fn is_done(&self) -> bool {
        self.index >= self.count()
    }

    /// The next frame of `frame`, the same bytes as ever: its headers, written into `headers`, and which bytes follow them. `None`
    /// when all are done. The same again until [`Segmenter::advance`].
    pub fn segment<'h>(
        &self,
        frame: &[u8],
        headers: &'h mut [u8; MAX_HEADERS],
    ) -> Option<(&'h mut [u8], Range<usize>)> {
        if self.is_done() {
            return None;
        }
        let start = self.payload + self.index * self.size;
        let range = start..self.len.min(start + self.size);
        let data = frame.get(range.clone())?;
        let head = headers.get_mut(..self.payload)?;
        head.copy_from_slice(frame.get(..self.payload)?);
        self.write_network_header(head.get_mut(self.network..)?, data.len())?;
        self.write_transport_header(head, data)?;
        Some((head, range))
    }

    /// Goes on to the next frame.
    pub fn advance(&mut self) {
        self.index += 1;
    }

    /// The IP header of a segment with `data` bytes of payload.
    fn write_network_header(&self, header: &mut [u8], data: usize) -> Option<()> {
        // A range within a frame of at most 64 KiB and a little: `locate` has seen that the lengths fit.
        let ip_len = u16::try_from(self.payload - self.network + data).ok()?;
        match self.kind {
            SegmentationKind::Tcp4 => {
                let first = u16::from_be_bytes(*header.get(4..)?.first_chunk()?);
                let id = first.wrapping_add(self.index as u16);
                header.get_mut(2..4)?.copy_from_slice(&ip_len.to_be_bytes());
                header.get_mut(4..6)?.copy_from_slice(&id.to_be_bytes());
                header.get_mut(10..12)?.fill(0);
                let own = header.get_mut(..self.transport - self.network)?;
                let checksum = fold(sum(own, 0));
                own.get_mut(10..12)?.copy_from_slice(&checksum.to_be_bytes());
            }
            SegmentationKind::Tcp6 => {
                let payload_len = ip_len - IPV6_HEADER as u16;
                header.get_mut(4..6)?.copy_from_slice(&payload_len.to_be_bytes());
            }
        }
        Some(())
    }

    /// The TCP header in `head`, which are all headers, of a segment with the payload `data`.
    fn write_transport_header(&self, head: &mut [u8], data: &[u8]) -> Option<()> {
        let (network, tcp) = head.split_at_mut_checked(self.transport)?;
        let network = network.get(self.network..)?;
        let addresses = match self.kind {
            SegmentationKind::Tcp4 => network.get(12..20)?,
            SegmentationKind::Tcp6 => network.get(8..40)?,
        };
        let first = u32::from_be_bytes(*tcp.get(TCP_SEQUENCE..)?.first_chunk()?);
        let sequence = first.wrapping_add((self.index * self.size) as u32);
        tcp.get_mut(TCP_SEQUENCE..TCP_SEQUENCE + 4)?.copy_from_slice(&sequence.to_be_bytes());
        let flags = tcp.get_mut(TCP_FLAGS)?;
        if self.index + 1 < self.count() {
            *flags &= !(TCP_FIN | TCP_PSH);
        }
        if self.index > 0 {
            // Says once that the window was reduced (RFC 3168, 6.1.2).
            *flags &= !TCP_CWR;
        }
        tcp.get_mut(TCP_CHECKSUM..TCP_CHECKSUM + 2)?.fill(0);
        // The header's length is a multiple of 4, so the payload begins at an even place.
        let total = sum(tcp, pseudo_header(addresses, PROTOCOL_TCP, tcp.len() + data.len()));
        let checksum = fold(sum(data, total));
        tcp.get_mut(TCP_CHECKSUM..TCP_CHECKSUM + 2)?.copy_from_slice(&checksum.to_be_bytes());
        Some(())
    }
}

/// Where a frame's IP and TCP headers begin, if it is TCP over `kind`'s protocol and no fragment.
fn locate(frame: &[u8], kind: SegmentationKind) -> Result<(usize, usize), SegmentError> {
    let mut network = ETHERNET_HEADER;
    let mut ethertype = read_u16(frame, network - 2)?;
    for _ in 0..2 {
        if ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ {
            network += TAG;
            ethertype = read_u16(frame, network - 2)?;
        }
    }
    let header = frame.get(network..).ok_or(SegmentError::Truncated)?;
    let first = *header.first().ok_or(SegmentError::Truncated)?;
    match (kind, ethertype, first >> 4) {
        (SegmentationKind::Tcp4, ETHERTYPE_IPV4, 4) => {
            let len = usize::from(first & 0xf) * 4;
            let fixed: &[u8; IPV4_HEADER] = header.first_chunk().ok_or(SegmentError::Truncated)?;
            // More fragments, or a fragment's offset (RFC 791, 3.1).
            let fragment = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0;
            if len < IPV4_HEADER || fragment || fixed[9] != PROTOCOL_TCP {
                return Err(SegmentError::Headers);
            }
            Ok((network, network + len))
        }
        (SegmentationKind::Tcp6, ETHERTYPE_IPV6, 6) => Ok((network, network + ipv6_headers(header)?)),
        _ => Err(SegmentError::Headers),
    }
}

/// Length of the IPv6 header at the beginning of `packet` with its extensions, if TCP follows them (RFC 8200, 4).
fn ipv6_headers(packet: &[u8]) -> Result<usize, SegmentError> {
    const HOP_BY_HOP: u8 = 0;
    const DESTINATION: u8 = 60;
    let mut next = *packet.get(6).ok_or(SegmentError::Truncated)?;
    let mut len = IPV6_HEADER;
    while len < MAX_HEADERS {
        match next {
            PROTOCOL_TCP => return Ok(len),
            // Not a routing header, with which the checksum's destination is another one; and no fragment.
            HOP_BY_HOP | DESTINATION => {
                let extension = packet.get(len..).and_then(|rest| rest.first_chunk::<2>());
                let [following, words] = *extension.ok_or(SegmentError::Truncated)?;
                next = following;
                len += 8 + usize::from(words) * 8;
            }
            _ => return Err(SegmentError::Headers),
        }
    }
    Err(SegmentError::Truncated)
}

/// Length of the TCP header at the beginning of `segment`.
fn tcp_header_len(segment: &[u8]) -> Result<usize, SegmentError> {
    let len = usize::from(*segment.get(TCP_DATA_OFFSET).ok_or(SegmentError::Truncated)? >> 4) * 4;
    if len < TCP_HEADER { Err(SegmentError::Headers) } else { Ok(len) }
}

fn read_u16(bytes: &[u8], at: usize) -> Result<u16, SegmentError> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(SegmentError::Truncated)?;
    Ok(u16::from_be_bytes(*word))
}

#[cfg(test)]
mod tests;

//! What precedes each frame in a ring, `struct virtio_net_hdr` (virtio 1.2, 5.1.6): read as an allegation, written as a promise. Not
//! the frame itself.

use vm_memory::{Bytes, VolatileSlice};

use super::segment::{MAX_HEADERS, MIN_SEGMENT};
use super::{F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, F_HOST_TSO4, F_HOST_TSO6};
use crate::backend::net::{
    ETHERNET_HEADER, FrameInfo, Offloads, PartialChecksum, Segmentation, SegmentationKind,
};

/// Length of `struct virtio_net_hdr` with VERSION_1: flags, gso_type, and hdr_len, gso_size, csum_start, csum_offset, num_buffers of
/// 16 bits each.
pub(super) const HEADER: usize = 12;
/// Longest frame: an IP packet of 64 KiB behind an Ethernet header with two tags.
pub(super) const MAX_FRAME: usize = 65535 + ETHERNET_HEADER + 8;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum is to be computed.
const NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_F_DATA_VALID: the checksum is right.
const DATA_VALID: u8 = 2;
/// VIRTIO_NET_HDR_GSO_NONE, _TCPV4 and _TCPV6.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// Where a TCP header has its own length in words, in the upper half of a byte, and its checksum (RFC 9293, 3.1).
const TCP_DATA_OFFSET: usize = 12;
const TCP_CHECKSUM: u16 = 16;
const TCP_HEADER: usize = 20;

/// Why a frame of the guest is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("a chain of {0} bytes has no room for a header and a frame")]
    Short(usize),
    #[error("a frame of {0} bytes, which is more than {MAX_FRAME}")]
    Long(usize),
    #[error("a checksum at {start}+{offset} in a frame of {len} bytes")]
    Checksum { start: u16, offset: u16, len: usize },
    #[error("offload type {0:#x}, which was not negotiated")]
    GsoType(u8),
    #[error("segments of {0} bytes")]
    GsoSize(u16),
    #[error("a TCP frame whose headers are not those of TCP")]
    Tcp,
    #[error("a checksum offload that was not negotiated")]
    Unasked,
}

/// What a driver that has negotiated `features` understands.
pub(super) fn guest_offloads(features: u64) -> Offloads {
    let checksum = features & F_GUEST_CSUM != 0;
    Offloads {
        checksum,
        tso4: checksum && features & F_GUEST_TSO4 != 0,
        tso6: checksum && features & F_GUEST_TSO6 != 0,
    }
}

/// What the driver's header says is to be done to its frame `slices` of `len` bytes, if that can be.
pub(super) fn parse(
    header: &[u8; HEADER],
    slices: &[VolatileSlice<'_>],
    len: usize,
    features: u64,
) -> Result<FrameInfo, HeaderError> {
    if len < ETHERNET_HEADER {
        return Err(HeaderError::Short(len + HEADER));
    }
    if len > MAX_FRAME {
        return Err(HeaderError::Long(len));
    }
    let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (flags, gso_type) = (header[0], header[1]);
    let (gso_size, start, offset) = (field(4), field(6), field(8));
    let mut info = FrameInfo::default();
    if flags & NEEDS_CSUM != 0 {
        if features & F_CSUM == 0 {
            return Err(HeaderError::Unasked);
        }
        let end = usize::from(start) + usize::from(offset) + 2;
        if usize::from(start) < ETHERNET_HEADER || end > len {
            return Err(HeaderError::Checksum { start, offset, len });
        }
        info.checksum = Some(PartialChecksum { start, offset });
    }
    let kind = match gso_type {
        GSO_NONE => return Ok(info),
        GSO_TCPV4 if features & F_HOST_TSO4 != 0 => SegmentationKind::Tcp4,
        GSO_TCPV6 if features & F_HOST_TSO6 != 0 => SegmentationKind::Tcp6,
        _ => return Err(HeaderError::GsoType(gso_type)),
    };
    if gso_size < MIN_SEGMENT {
        return Err(HeaderError::GsoSize(gso_size));
    }
    // A driver must ask for the checksum, too (5.1.6.2.1), so it has said where TCP begins. hdr_len is only a hint.
    if info.checksum.is_none() || offset != TCP_CHECKSUM {
        return Err(HeaderError::Tcp);
    }
    let words = byte_at(slices, usize::from(start) + TCP_DATA_OFFSET).ok_or(HeaderError::Tcp)? >> 4;
    let tcp = usize::from(words) * 4;
    let headers = usize::from(start) + tcp;
    if tcp < TCP_HEADER || headers > len || headers > MAX_HEADERS {
        return Err(HeaderError::Tcp);
    }
    info.segmentation = Some(Segmentation { kind, size: gso_size, headers: headers as u16 });
    Ok(info)
}

/// The header of a frame for a driver that understands `guest`, in `buffers` buffers. `None`: it would not understand this one.
pub(super) fn build(info: &FrameInfo, guest: Offloads, buffers: u16) -> Option<[u8; HEADER]> {
    let mut header = [0; HEADER];
    if let Some(checksum) = info.checksum {
        if !guest.checksum {
            return None;
        }
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&checksum.start.to_le_bytes());
        header[8..10].copy_from_slice(&checksum.offset.to_le_bytes());
    } else if info.checksum_valid && guest.checksum {
        header[0] = DATA_VALID;
    }
    if let Some(segmentation) = info.segmentation {
        header[1] = match segmentation.kind {
            SegmentationKind::Tcp4 if guest.tso4 => GSO_TCPV4,
            SegmentationKind::Tcp6 if guest.tso6 => GSO_TCPV6,
            _ => return None,
        };
        header[2..4].copy_from_slice(&segmentation.headers.to_le_bytes());
        header[4..6].copy_from_slice(&segmentation.size.to_le_bytes());
    }
    header[10..12].copy_from_slice(&buffers.to_le_bytes());
    Some(header)
}

/// What is left of `slices` behind their first `skip` bytes, added to `rest`.
pub(super) fn skip<'m>(slices: &[VolatileSlice<'m>], mut skip: usize, rest: &mut Vec<VolatileSlice<'m>>) {
    for slice in slices {
        if skip >= slice.len() {
            skip -= slice.len();
        } else if let Ok(part) = slice.offset(skip) {
            rest.push(part);
            skip = 0;
        }
    }
}

/// Copies the beginning of `slices` into `bytes`. Says how many bytes there were.
pub(super) fn copy_out(slices: &[VolatileSlice<'_>], bytes: &mut [u8]) -> usize {
    let mut done = 0;
    for slice in slices {
        let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) else { break };
        done += slice.copy_to(rest);
    }
    done
}

/// Copies `bytes` to the beginning of `slices`. Says how many found room.
pub(super) fn copy_in(slices: &[VolatileSlice<'_>], bytes: &[u8]) -> usize {
    let mut done = 0;
    for slice in slices {
        let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) else { break };
        done += slice.write(rest, 0).unwrap_or(0);
    }
    done
}

fn byte_at(slices: &[VolatileSlice<'_>], mut at: usize) -> Option<u8> {
    for slice in slices {
        if at < slice.len() {
            return slice.read_obj(at).ok();
        }
        at -= slice.len();
    }
    None
}

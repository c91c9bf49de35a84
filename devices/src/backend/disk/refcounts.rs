//! A look at a qcow2 image's refcounts before anything is written to it (QEMU's docs/interop/qcow2.txt, "Host cluster management"): the
//! header's own cluster is in use in every image, and who does not see that would give it away. It changes nothing.

use std::io;

use super::error::Qcow2Error;
use super::file::HostFile;
use super::header::Qcow2Header;

/// The bits of a refcount table's entry that are the block's offset.
const OFFSET: u64 = !0x1ff;

/// Checks that the refcount table names its first block and that this one counts the first cluster.
///
/// Not only for the header's sake: imago, which looks for a free cluster before the part of the file that a missing block would count,
/// does not end when there is no such part.
///
/// # Errors
/// What the host says; inside, what is wrong with the image.
pub(super) fn check(file: &HostFile, header: &Qcow2Header) -> io::Result<Result<(), Qcow2Error>> {
    let block = u64::from_be_bytes(read(file, header.reftable_offset)?) & OFFSET;
    let cluster = 1 << header.cluster_bits;
    let inside = block.checked_add(cluster).is_some_and(|end| end <= file.size());
    if block == 0 || !block.is_multiple_of(cluster) || !inside {
        return Ok(Err(Qcow2Error::Field { field: "first refcount block offset", value: block }));
    }
    // Widths below a byte begin at the lowest bit, others are big-endian.
    let first: [u8; 8] = read(file, block)?;
    let width = 1_u32 << header.refcount_order;
    let count = match width {
        0..8 => u64::from(first[0]) & ((1 << width) - 1),
        _ => u64::from_be_bytes(first) >> (64 - width.min(64)),
    };
    if count == 0 {
        return Ok(Err(Qcow2Error::Field { field: "refcount of its own header", value: count }));
    }
    Ok(Ok(()))
}

fn read<const N: usize>(file: &HostFile, offset: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_into(&mut bytes, offset)?;
    Ok(bytes)
}

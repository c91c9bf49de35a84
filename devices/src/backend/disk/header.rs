//! The qcow2 header (QEMU's docs/interop/qcow2.txt), read and checked before anything else looks at the image: what imago
//! trusts it to be within bounds is within bounds afterwards. It also knows the first bytes of other formats.

use super::error::Qcow2Error;

/// "QFI\xfb", the first bytes of every qcow2 image.
pub(crate) const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
/// How many bytes at the beginning of a file say which format it has.
pub(crate) const PROBE_LEN: usize = 512;
/// The longest header that is ever read: one cluster of the largest size.
pub(crate) const MAX_HEADER: u64 = 1 << MAX_CLUSTER_BITS;

const MIN_CLUSTER_BITS: u32 = 9;
/// QEMU's limit: 2 MiB.
const MAX_CLUSTER_BITS: u32 = 21;
/// QEMU's limit on the active L1 table: 32 MiB.
const MAX_L1_BYTES: u64 = 32 << 20;
/// QEMU's limit on the refcount table: 8 MiB.
const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// QEMU's limit on internal snapshots.
const MAX_SNAPSHOTS: u32 = 65536;
/// The longest name of a backing file, in bytes.
const MAX_BACKING_NAME: u32 = 1023;
/// Length of a version 2 header, and of the shortest version 3 header.
const V2_LEN: usize = 72;
const V3_LEN: usize = 104;
/// Version 2 has refcounts of 16 bits.
const V2_REFCOUNT_ORDER: u32 = 4;
/// Header extension types: end of the list, and the backing file's format.
const EXT_END: u32 = 0;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;

/// Incompatible feature bits.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// What a checked header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Qcow2Header {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// Where the refcount table is.
    pub reftable_offset: u64,
    /// log2 of a refcount's width in bits.
    pub refcount_order: u32,
    /// The backing file's name, as written.
    pub backing_file: Option<String>,
    /// The backing file's format, as written.
    pub backing_format: Option<String>,
}

/// What the first [`PROBE_LEN`] bytes of a file look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Looks {
    /// Nothing known: a raw image.
    Raw,
    /// A qcow2 image.
    Qcow2,
    /// Another format that QEMU would probe.
    Other(&'static str),
}

/// Formats that somebody probes, by their first bytes: offset, bytes, name.
const MAGICS: [(usize, &[u8], &str); 7] = [
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0, b"QED\0", "QED"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "VDI"),
];

/// What `first` bytes look like to somebody who probes. A qcow image of version 1 counts as something else.
pub(crate) fn probe(first: &[u8]) -> Looks {
    if first.starts_with(&QCOW2_MAGIC) {
        return if be32(first, 4) == Some(1) { Looks::Other("qcow") } else { Looks::Qcow2 };
    }
    let matches = |(offset, magic, _): &&(usize, &[u8], &str)| {
        first.get(*offset..).is_some_and(|rest| rest.starts_with(magic))
    };
    MAGICS.iter().find(matches).map_or(Looks::Raw, |found| Looks::Other(found.2))
}

impl Qcow2Header {
    /// Reads and checks the header. `bytes` is the beginning of the file, as much as there is up to [`MAX_HEADER`]; `file_size`
    /// the file's length.
    pub fn parse(bytes: &[u8], file_size: u64) -> Result<Self, Qcow2Error> {
        let magic = bytes.get(..4).and_then(|b| <[u8; 4]>::try_from(b).ok()).unwrap_or_default();
        if magic != QCOW2_MAGIC {
            return Err(Qcow2Error::Magic(magic));
        }
        let version = field32(bytes, 4)?;
        if version != 2 && version != 3 {
            return Err(Qcow2Error::Version(version));
        }
        let least = if version == 2 { V2_LEN } else { V3_LEN };
        if bytes.len() < least {
            return Err(Qcow2Error::Truncated("header"));
        }
        let cluster_bits = field32(bytes, 20)?;
        if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
            return Err(wrong("cluster size exponent", cluster_bits));
        }
        if field32(bytes, 32)? != 0 {
            return Err(Qcow2Error::Encrypted);
        }
        let header_len = if version == 3 { check_v3(bytes, cluster_bits)? } else { V2_LEN as u32 };
        let refcount_order = if version == 3 { field32(bytes, 96)? } else { V2_REFCOUNT_ORDER };
        let size = field64(bytes, 24)?;
        check_tables(bytes, size, cluster_bits, file_size)?;
        let backing_file = backing_name(bytes, cluster_bits)?;
        let backing_format = backing_format(bytes, header_len, cluster_bits)?;
        Ok(Qcow2Header {
            version,
            cluster_bits,
            size,
            reftable_offset: field64(bytes, 48)?,
            refcount_order,
            backing_file,
            backing_format,
        })
    }
}

/// Checks what version 3 has added; returns the header's length.
fn check_v3(bytes: &[u8], cluster_bits: u32) -> Result<u32, Qcow2Error> {
    let features = field64(bytes, 72)?;
    if features & CORRUPT != 0 {
        return Err(Qcow2Error::Corrupt);
    }
    if features & DATA_FILE != 0 {
        return Err(Qcow2Error::DataFile);
    }
    if features & EXTENDED_L2 != 0 {
        return Err(Qcow2Error::ExtendedL2);
    }
    if features & COMPRESSION != 0 {
        return Err(match bytes.get(V3_LEN) {
            Some(1) => Qcow2Error::Zstd,
            other => Qcow2Error::Compression(other.copied().unwrap_or(0)),
        });
    }
    if features & DIRTY != 0 {
        return Err(Qcow2Error::Dirty);
    }
    if features != 0 {
        return Err(Qcow2Error::Features(features));
    }
    let refcount_order = field32(bytes, 96)?;
    if refcount_order > 6 {
        return Err(wrong("refcount width exponent", refcount_order));
    }
    let header_len = field32(bytes, 100)?;
    if header_len < V3_LEN as u32 || !header_len.is_multiple_of(8) || header_len > 1 << cluster_bits {
        return Err(wrong("header length", header_len));
    }
    Ok(header_len)
}

/// Checks that the L1 table and the refcount table are of sane size, covered by the file, and enough for the disk.
fn check_tables(bytes: &[u8], size: u64, cluster_bits: u32, file_size: u64) -> Result<(), Qcow2Error> {
    let l1_entries = u64::from(field32(bytes, 36)?);
    let l1_offset = field64(bytes, 40)?;
    let l1_bytes = l1_entries * 8;
    if l1_bytes > MAX_L1_BYTES {
        return Err(wrong("L1 table size", field32(bytes, 36)?));
    }
    // An L1 entry covers a cluster full of L2 entries, of 8 bytes each, of a cluster each.
    let covered_bits = cluster_bits + cluster_bits - 3;
    let needed = (size >> covered_bits) + u64::from(size & ((1 << covered_bits) - 1) != 0);
    if needed > l1_entries {
        return Err(Qcow2Error::Field { field: "disk size", value: size });
    }
    table("L1 table", l1_offset, l1_bytes, cluster_bits, file_size)?;
    let reftable_offset = field64(bytes, 48)?;
    let reftable_clusters = field32(bytes, 56)?;
    let reftable_bytes = u64::from(reftable_clusters) << cluster_bits;
    if reftable_bytes == 0 || reftable_bytes > MAX_REFTABLE_BYTES {
        return Err(wrong("refcount table size", reftable_clusters));
    }
    table("refcount table", reftable_offset, reftable_bytes, cluster_bits, file_size)?;
    let snapshots = field32(bytes, 60)?;
    if snapshots > MAX_SNAPSHOTS {
        return Err(wrong("number of snapshots", snapshots));
    }
    Ok(())
}

/// Checks that a table begins at a cluster behind the header and ends within the file.
fn table(
    name: &'static str,
    offset: u64,
    len: u64,
    cluster_bits: u32,
    file_size: u64,
) -> Result<(), Qcow2Error> {
    if len == 0 {
        return Ok(());
    }
    if offset == 0 || offset & ((1 << cluster_bits) - 1) != 0 {
        return Err(Qcow2Error::Field { field: table_offset(name), value: offset });
    }
    match offset.checked_add(len) {
        Some(end) if end <= file_size => Ok(()),
        Some(_) if offset < 1 << 56 => Err(Qcow2Error::Truncated(name)),
        _ => Err(Qcow2Error::Field { field: table_offset(name), value: offset }),
    }
}

fn table_offset(name: &'static str) -> &'static str {
    if name == "L1 table" { "L1 table offset" } else { "refcount table offset" }
}

fn backing_name(bytes: &[u8], cluster_bits: u32) -> Result<Option<String>, Qcow2Error> {
    let offset = field64(bytes, 8)?;
    let len = field32(bytes, 16)?;
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    if len > MAX_BACKING_NAME {
        return Err(wrong("backing file name length", len));
    }
    let end = offset.checked_add(u64::from(len)).filter(|end| *end < 1 << cluster_bits);
    let Some(end) = end else {
        return Err(Qcow2Error::Field { field: "backing file name offset", value: offset });
    };
    let name = bytes.get(offset as usize..end as usize).ok_or(Qcow2Error::Truncated("backing file name"))?;
    if name.contains(&0) {
        return Err(Qcow2Error::Text("backing file name"));
    }
    String::from_utf8(name.to_vec()).map(Some).map_err(|_| Qcow2Error::Text("backing file name"))
}

/// Walks the header extensions. Their number is bounded by the cluster they lie in; in version 2, where old images have none, they end
/// at the latest where the backing file's name begins, as QEMU has it.
fn backing_format(bytes: &[u8], header_len: u32, cluster_bits: u32) -> Result<Option<String>, Qcow2Error> {
    let mut end = (1usize << cluster_bits).min(bytes.len());
    let name_at = field64(bytes, 8)?;
    if header_len == V2_LEN as u32 && name_at != 0 {
        end = end.min(usize::try_from(name_at).unwrap_or(end));
    }
    let mut at = header_len as usize;
    let mut format = None;
    loop {
        if header_len == V2_LEN as u32 && at >= end {
            return Ok(format);
        }
        // A file that ends right behind its header has no extensions; imago reads zeros there too.
        let kind = be32(bytes, at).unwrap_or(EXT_END);
        let len = be32(bytes, at.saturating_add(4)).unwrap_or(0) as usize;
        if kind == EXT_END {
            return Ok(format);
        }
        let data = at + 8;
        let Some(data_end) = data.checked_add(len).filter(|data_end| *data_end <= end) else {
            return Err(Qcow2Error::Field { field: "header extension length", value: len as u64 });
        };
        if kind == EXT_BACKING_FORMAT {
            let text = bytes.get(data..data_end).unwrap_or_default();
            let text = std::str::from_utf8(text).map_err(|_| Qcow2Error::Text("backing file format"))?;
            format = Some(text.trim_end_matches('\0').to_owned());
        }
        at = data + len.next_multiple_of(8);
    }
}

fn wrong(field: &'static str, value: u32) -> Qcow2Error {
    Qcow2Error::Field { field, value: value.into() }
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let end = at.checked_add(4)?;
    Some(u32::from_be_bytes(bytes.get(at..end)?.try_into().ok()?))
}

fn field32(bytes: &[u8], at: usize) -> Result<u32, Qcow2Error> {
    be32(bytes, at).ok_or(Qcow2Error::Truncated("header"))
}

fn field64(bytes: &[u8], at: usize) -> Result<u64, Qcow2Error> {
    let high = field32(bytes, at)?;
    let low = field32(bytes, at + 4)?;
    Ok(u64::from(high) << 32 | u64::from(low))
}

#[cfg(test)]
mod tests;

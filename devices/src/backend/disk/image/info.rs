//! What can be said about an image without opening what it names. Images that cannot be used have this, too: damaged, encrypted,
//! of features that we do not have.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::super::file::{FileOptions, HostFile};
use super::super::header::{Looks, PROBE_LEN, QCOW2_MAGIC, probe};
use super::super::{CacheMode, DiskError, ImageFormat, Qcow2Error, SyncMode};
use super::SECTOR;
use super::writer::EXT_BACKING_FORMAT;

/// `st_blocks` counts these, whatever the file system has.
const STAT_BLOCK: u64 = 512;
/// Bytes of a header of version 2, and of the least of version 3.
const V2_LEN: usize = 72;
const V3_LEN: usize = 104;
/// A header cluster is never longer.
const MAX_HEADER: u64 = 2 << 20;

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its format.
    pub format: ImageFormat,
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// Bytes that the file takes on the host.
    pub actual_size: u64,
    /// What only qcow2 has.
    pub qcow2: Option<Qcow2Info>,
}

/// What a qcow2 header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Info {
    /// 2 or 3.
    pub version: u32,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// The backing file's name.
    pub backing: Option<String>,
    /// The backing file's format.
    pub backing_format: Option<String>,
    /// Width of refcounts.
    pub refcount_bits: u64,
    /// Whether refcounts may be written late.
    pub lazy_refcounts: bool,
    /// Whether somebody found it damaged.
    pub corrupt: bool,
    /// Whether it was not closed properly.
    pub dirty: bool,
    /// Whether it has subclusters.
    pub extended_l2: bool,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// How clusters are compressed: `zlib` or `zstd`, or a number.
    pub compression: String,
    /// How many internal snapshots it has.
    pub snapshots: u32,
}

/// Looks at the image at `path`. `format` is found out if not given; without `lock`, somebody else may write to it meanwhile.
///
/// # Errors
/// See [`DiskError`].
pub fn info(path: &Path, format: Option<ImageFormat>, lock: bool) -> Result<ImageInfo, DiskError> {
    let options = FileOptions { write: false, cache: CacheMode::Writeback, sync: SyncMode::Fsync, lock };
    let file = HostFile::open(path, options)?;
    let failed = |source: io::Error| DiskError::Read { path: path.to_owned(), source };
    let format = match format {
        Some(format) => format,
        None => match probe(&file.read_head(PROBE_LEN as u64).map_err(failed)?) {
            Looks::Raw => ImageFormat::Raw,
            Looks::Qcow2 => ImageFormat::Qcow2,
            Looks::Other(format) => {
                return Err(DiskError::UnsupportedFormat { path: path.to_owned(), format });
            }
        },
    };
    let actual_size = fs::metadata(path).map_err(failed)?.blocks() * STAT_BLOCK;
    let (virtual_size, qcow2) = match format {
        ImageFormat::Raw => (file.size().checked_next_multiple_of(SECTOR).unwrap_or(file.size()), None),
        ImageFormat::Qcow2 => {
            let head = file.read_head(MAX_HEADER).map_err(failed)?;
            let wrong = |reason| DiskError::Qcow2 { path: path.to_owned(), reason };
            let (size, info) = parse(&head).map_err(wrong)?;
            (size, Some(info))
        }
    };
    Ok(ImageInfo { format, virtual_size, actual_size, qcow2 })
}

/// Reads a header for what it says, not for whether it can be used: (bytes of the disk, the rest).
fn parse(head: &[u8]) -> Result<(u64, Qcow2Info), Qcow2Error> {
    if !head.starts_with(&QCOW2_MAGIC) {
        let mut magic = [0; 4];
        let count = head.len().min(4);
        magic[..count].copy_from_slice(&head[..count]);
        return Err(Qcow2Error::Magic(magic));
    }
    let version = be32(head, 4);
    if version != 2 && version != 3 {
        return Err(Qcow2Error::Version(version));
    }
    let v3 = version == 3;
    if head.len() < if v3 { V3_LEN } else { V2_LEN } {
        return Err(Qcow2Error::Truncated("header"));
    }
    let cluster_bits = be32(head, 20);
    if !(9..=21).contains(&cluster_bits) {
        return Err(Qcow2Error::Field { field: "cluster size exponent", value: cluster_bits.into() });
    }
    let (incompatible, compatible) = if v3 { (be64(head, 72), be64(head, 80)) } else { (0, 0) };
    let refcount_order = if v3 { be32(head, 96).min(6) } else { 4 };
    let header_len = if v3 { be32(head, 100) as usize } else { V2_LEN };
    let compression = if incompatible & 8 != 0 && header_len > V3_LEN { head.get(V3_LEN) } else { None };
    let info = Qcow2Info {
        version,
        cluster_size: 1 << cluster_bits,
        backing: backing_name(head)?,
        backing_format: extensions(head, header_len)
            .find(|ext| ext.0 == EXT_BACKING_FORMAT)
            .map(|ext| String::from_utf8_lossy(ext.1).trim_end_matches('\0').to_owned()),
        refcount_bits: 1 << refcount_order,
        lazy_refcounts: compatible & 1 != 0,
        corrupt: incompatible & 2 != 0,
        dirty: incompatible & 1 != 0,
        extended_l2: incompatible & 16 != 0,
        encrypted: be32(head, 32) != 0,
        compression: match compression {
            None | Some(0) => "zlib".to_owned(),
            Some(1) => "zstd".to_owned(),
            Some(other) => other.to_string(),
        },
        snapshots: be32(head, 60),
    };
    Ok((be64(head, 24), info))
}

fn backing_name(head: &[u8]) -> Result<Option<String>, Qcow2Error> {
    let (at, len) = (be64(head, 8), be32(head, 16));
    if at == 0 || len == 0 {
        return Ok(None);
    }
    let range = usize::try_from(at).ok().and_then(|at| Some(at..at.checked_add(len as usize)?));
    let bytes = range.and_then(|range| head.get(range)).ok_or(Qcow2Error::Truncated("backing file name"))?;
    Ok(Some(String::from_utf8_lossy(bytes).into_owned()))
}

/// The header's extensions, type and content, up to where the backing file's name begins.
pub(super) fn extensions(head: &[u8], header_len: usize) -> impl Iterator<Item = (u32, &[u8])> {
    let cluster_bits = be32(head, 20).min(21);
    let name_at = be64(head, 8);
    let end = if name_at == 0 { 1 << cluster_bits } else { name_at.min(1 << cluster_bits) };
    let mut rest = head.get(header_len..head.len().min(end as usize)).unwrap_or_default();
    std::iter::from_fn(move || {
        let (kind, len) = (be32(rest, 0), be32(rest, 4) as usize);
        if kind == 0 {
            return None;
        }
        let content = rest.get(8..)?.get(..len)?;
        rest = rest.get(8 + len.next_multiple_of(8)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// The big-endian number at `at`; 0 behind the end.
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    field.map_or(0, |field| u32::from_be_bytes(*field))
}

/// The big-endian number at `at`; 0 behind the end.
pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    field.map_or(0, |field| u64::from_be_bytes(*field))
}

/// The first cluster of an open image, as much of it as there is.
pub(super) fn read_first_cluster(file: &File) -> io::Result<Vec<u8>> {
    use std::io::Read;
    use std::os::unix::fs::FileExt;
    let mut start = [0; 32];
    file.read_exact_at(&mut start, 0)?;
    let cluster = 1_u64 << be32(&start, 20).min(21);
    let mut head = Vec::new();
    // Its own position is nobody's, so it is where it was when it was opened.
    file.take(cluster).read_to_end(&mut head)?;
    Ok(head)
}

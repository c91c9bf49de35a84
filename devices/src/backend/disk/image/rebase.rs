//! Gives an image another backing file by name only: the header says so, the data is as it was.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::file::{FileOptions, HostFile};
use super::super::{CacheMode, SyncMode};
use super::ImageError;
use super::info::{be32, extensions, info, read_first_cluster};
use super::writer::{EXT_BACKING_FORMAT, append_backing};
use crate::backend::disk::ImageFormat;

/// Bytes of a header of version 2.
const V2_LEN: usize = 72;
/// The longest name.
const MAX_NAME: usize = 1023;

/// Makes `backing` with its format the backing file of the qcow2 image at `path`, or takes away what it has. Whether the disk still
/// reads the same is the caller's affair.
///
/// # Errors
/// What the host says, or that the image cannot have it.
pub fn rebase_unsafe(path: &Path, backing: Option<(&str, &str)>) -> Result<(), ImageError> {
    // Locked until the end.
    let options = FileOptions { write: true, cache: CacheMode::Writeback, sync: SyncMode::Fsync, lock: true };
    let locked = HostFile::open(path, options)?;
    info(path, Some(ImageFormat::Qcow2), false)?;
    let file =
        OpenOptions::new().read(true).write(true).open(path).map_err(ImageError::io(path, "opened"))?;
    let old = read_first_cluster(&file).map_err(ImageError::io(path, "read"))?;
    let cluster = 1_usize << be32(&old, 20).min(21);
    let header_len = if be32(&old, 4) >= 3 { be32(&old, 100) as usize } else { V2_LEN };
    let mut new = old.get(..header_len).map(<[u8]>::to_vec).unwrap_or_default();
    if new.len() < V2_LEN || header_len > cluster {
        return Err(ImageError::unsuitable(path, format!("its header's length is {header_len}")));
    }
    let mut kept = Vec::new();
    for (kind, content) in extensions(&old, header_len).filter(|ext| ext.0 != EXT_BACKING_FORMAT) {
        kept.extend(kind.to_be_bytes());
        kept.extend((content.len() as u32).to_be_bytes());
        kept.extend(content);
        kept.resize(kept.len().next_multiple_of(8), 0);
    }
    append_backing(&mut new, backing.map(|b| b.0), backing.map(|b| b.1), &kept);
    if new.len() >= cluster || backing.is_some_and(|b| b.0.len() > MAX_NAME) {
        return Err(ImageError::unsuitable(path, "the backing file's name is too long for its header"));
    }
    // The rest of the cluster is nobody's: the next header extension would be looked for there.
    new.resize(cluster.min(old.len().max(new.len())), 0);
    file.write_all_at(&new, 0).map_err(ImageError::io(path, "written"))?;
    locked.sync().map_err(ImageError::io(path, "synced"))
}

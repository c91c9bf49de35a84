//! Writes what an image has into its backing image, and empties it.

use std::path::Path;

use super::super::chain::{Image, backing_path};
use super::super::file::{FileOptions, HostFile};
use super::super::{BlockBackend, CacheMode, Disk, DiskConfig, DiskError, ImageFormat, SyncMode};
use super::info::info;
use super::{ExtentKind, ImageError, backing_format};

/// How much is copied at a time.
const CHUNK: u64 = 2 << 20;

/// Commits the image at `path` to its backing image; with `empty`, it has nothing of its own afterwards. If it fails, the image is
/// as it was, and its backing image has a part of the data, which the image hides.
///
/// # Errors
/// What the host says, or that there is nothing to commit to.
pub fn commit(
    path: &Path,
    format: Option<ImageFormat>,
    empty: bool,
    cache: CacheMode,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), ImageError> {
    let none = || ImageError::unsuitable(path, "Image does not have a backing file");
    let facts = info(path, format, true)?;
    let qcow2 = facts.qcow2.ok_or_else(none)?;
    let name = qcow2.backing.ok_or_else(none)?;
    let behind = backing_path(path, &name)
        .ok_or_else(|| DiskError::BackingProtocol { path: path.to_owned(), name: name.clone() })?;
    let named = qcow2.backing_format.as_deref().map(|named| {
        backing_format(named)
            .ok_or_else(|| DiskError::BackingFormat { path: path.to_owned(), format: named.to_owned() })
    });
    let backing_format = named.transpose()?;

    // Locked until the end, but not by opening it as a disk: that would lock the backing image, too, in the way of its writer.
    let options = FileOptions { write: true, cache, sync: SyncMode::Fsync, lock: true };
    let _locked = HostFile::open(path, options)?;
    let mut config = DiskConfig::new(path);
    config.format = format;
    config.lock = false;
    let front = Disk::open(&config)?;
    let mut config = DiskConfig::new(&behind);
    config.format = backing_format.or(Some(ImageFormat::Raw));
    config.cache = cache;
    let back = Disk::open(&config)?;
    if back.capacity() < front.capacity() {
        back.resize(front.capacity()).map_err(ImageError::io(&behind, "resized"))?;
    }
    copy_own(&front, &back, progress)?;
    back.flush().map_err(ImageError::io(&behind, "written"))?;
    drop(back);
    if empty {
        let Image::Qcow2(image) = &front.image else { return Err(none()) };
        let emptied = image.with_alone(|access| access.discard_to_backing(0, access.size()));
        emptied.and_then(|()| front.flush()).map_err(ImageError::io(path, "emptied"))?;
    }
    Ok(())
}

/// Copies what the first image of `front`'s chain has itself.
fn copy_own(front: &Disk, back: &Disk, progress: &mut dyn FnMut(u64, u64)) -> Result<(), ImageError> {
    let size = front.capacity();
    let mut buffer = vec![0; CHUNK as usize];
    let mut offset = 0;
    progress(0, size);
    while offset < size {
        let extent =
            front.extent(offset, CHUNK.min(size - offset)).map_err(ImageError::io(front.path(), "read"))?;
        let own = extent.depth == 0 && extent.present;
        match extent.kind {
            _ if !own => {}
            ExtentKind::Zero { .. } => back
                .write_zeroes(offset, extent.length, true)
                .map_err(ImageError::io(back.path(), "written"))?,
            _ => {
                let part = &mut buffer[..extent.length as usize];
                front.read_bytes(part, offset).map_err(ImageError::io(front.path(), "read"))?;
                back.write_bytes(part, offset).map_err(ImageError::io(back.path(), "written"))?;
            }
        }
        offset += extent.length;
        progress(offset, size);
    }
    Ok(())
}

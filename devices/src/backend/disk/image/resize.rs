//! Makes a disk longer or shorter.

use std::path::Path;

use super::super::{BlockBackend, CacheMode, Disk, ImageFormat};
use super::create::Layout;
use super::info::info;
use super::{ImageError, SECTOR};

/// Checks that the image at `path` can have `size` bytes.
///
/// # Errors
/// That its clusters are too small for that, or what is wrong with it.
pub fn check_resizable(path: &Path, format: Option<ImageFormat>, size: u64) -> Result<(), ImageError> {
    let info = info(path, format, true)?;
    let Some(qcow2) = info.qcow2 else { return Ok(()) };
    if qcow2.snapshots > 0 && size < info.virtual_size {
        return Err(ImageError::unsuitable(path, "Can't shrink an image which has snapshots"));
    }
    let layout = Layout { cluster_bits: qcow2.cluster_size.trailing_zeros(), ..Layout::new(size) };
    if layout.fits() { Ok(()) } else { Err(ImageError::TooLarge { path: path.to_owned(), size }) }
}

/// Makes the disk `size` bytes long, rounded up to whole sectors. What is new reads as zeros, what is beyond the new end is lost.
///
/// # Errors
/// What the host says.
pub fn resize(disk: &Disk, size: u64) -> Result<(), ImageError> {
    let failed = || ImageError::io(disk.path(), "resized");
    let size = size.checked_next_multiple_of(SECTOR).unwrap_or(size);
    disk.resize(size).map_err(failed())?;
    if disk.config().cache == CacheMode::Unsafe { Ok(()) } else { disk.flush().map_err(failed()) }
}

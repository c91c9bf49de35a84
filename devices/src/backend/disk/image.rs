//! Images as files: made, copied, resized, examined and checked, for a program such as `qemu-img`. Nothing here runs beside a guest;
//! what does is in the modules around it.
//!
//! What is made anew is made beside its name and renamed at the end, so that a full disk leaves the old file as it was.

mod check;
mod commit;
mod convert;
mod create;
mod deflate;
mod extent;
mod info;
mod measure;
mod rebase;
mod refcounts;
mod resize;
mod target;
mod writer;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use check::{CheckReport, Finding, Repair, check};
pub use commit::commit;
pub use convert::{ConvertOptions, convert, copy_into};
pub use create::{Layout, NewImage};
pub use extent::{Extent, ExtentKind};
pub use info::{ImageInfo, Qcow2Info, info};
pub use measure::{Measure, measure};
pub use rebase::rebase_unsafe;
pub use resize::{check_resizable, resize};
pub use target::remove_unfinished;

use super::chain;
use super::{Disk, DiskConfig, DiskError, ImageFormat};

/// Sizes are rounded up to this.
const SECTOR: u64 = super::SECTOR;

/// Why something could not be done with an image. Each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// An image could not be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The host refuses.
    #[error("{}: it cannot be {what}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the host says.
        source: io::Error,
    },
    /// A disk for which these clusters are too small.
    #[error("{}: The image size {size} is too large (try using a larger cluster size)", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes asked for.
        size: u64,
    },
    /// What cannot be done with this image.
    #[error("{}: {why}", path.display())]
    Unsuitable {
        /// The file.
        path: PathBuf,
        /// Why, and what would work.
        why: String,
    },
}

impl ImageError {
    fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> ImageError {
        let path = path.to_owned();
        move |source| ImageError::Io { path, what, source }
    }

    fn unsuitable(path: &Path, why: impl Into<String>) -> ImageError {
        ImageError::Unsuitable { path: path.to_owned(), why: why.into() }
    }
}

/// Opens an image to be read. `format` is found out if not given; without `lock`, somebody else may write to it meanwhile.
///
/// # Errors
/// See [`DiskError`].
pub fn open(path: &Path, format: Option<ImageFormat>, lock: bool) -> Result<Arc<Disk>, DiskError> {
    let mut config = DiskConfig::new(path);
    config.format = format;
    config.lock = lock;
    config.readonly = true;
    Disk::open(&config)
}

/// Opens an image to be written.
///
/// # Errors
/// See [`DiskError`].
pub fn open_writable(
    path: &Path,
    format: Option<ImageFormat>,
    cache: super::CacheMode,
) -> Result<Arc<Disk>, DiskError> {
    let mut config = DiskConfig::new(path);
    config.format = format;
    config.cache = cache;
    Disk::open(&config)
}

/// Where the backing image that `front` names as `name` lies; `None` if the name is none of a file.
pub fn backing_path(front: &Path, name: &str) -> Option<PathBuf> {
    chain::backing_path(front, name)
}

/// The format of a backing image that a header names, if it is one that we read.
pub fn backing_format(name: &str) -> Option<ImageFormat> {
    match name {
        "qcow2" => Some(ImageFormat::Qcow2),
        "raw" | "file" | "host_device" => Some(ImageFormat::Raw),
        _ => None,
    }
}

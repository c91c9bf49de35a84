//! How much room an image would take.

use std::path::Path;

use super::super::{BlockBackend, Disk, ImageFormat};
use super::create::Layout;
use super::refcounts::{REFCOUNT_ORDER, clusters_for};
use super::{ImageError, SECTOR};

/// Bytes of an image's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    /// With the data that there is now.
    pub required: u64,
    /// With all of the disk written.
    pub fully_allocated: u64,
}

/// Measures an image of `format` with `layout`, made of `source` or empty.
///
/// # Errors
/// That the source cannot be read, or that there can be no such image.
pub fn measure(source: Option<&Disk>, format: ImageFormat, layout: &Layout) -> Result<Measure, ImageError> {
    let size = layout.size.checked_next_multiple_of(SECTOR).unwrap_or(layout.size);
    if format == ImageFormat::Raw {
        return Ok(Measure { required: size, fully_allocated: size });
    }
    let at = source.map_or(Path::new("image"), Disk::path);
    if !layout.fits() || size > i64::MAX as u64 {
        return Err(ImageError::TooLarge { path: at.to_owned(), size });
    }
    let cluster = layout.cluster_size();
    let clusters = size.div_ceil(cluster);
    // Tables are made of whole clusters, with 8 bytes for each cluster that they name.
    let l2 = (clusters * 8).div_ceil(cluster);
    let l1 = (l2 * 8).div_ceil(cluster);
    let used = 1 + l1 + l2 + clusters;
    let (table, blocks) = clusters_for(used, layout.cluster_bits, REFCOUNT_ORDER);
    let fully_allocated = (used + table + blocks) * cluster;
    let data = match source {
        Some(disk) => data_clusters(disk, cluster)?,
        None => 0,
    };
    Ok(Measure { required: fully_allocated - clusters * cluster + data * cluster, fully_allocated })
}

/// How many clusters are not all zeros, as far as that is known without reading them.
fn data_clusters(disk: &Disk, cluster: u64) -> Result<u64, ImageError> {
    let size = disk.capacity();
    let (mut offset, mut count, mut counted) = (0, 0, 0);
    while offset < size {
        let extent = disk.extent(offset, size - offset).map_err(ImageError::io(disk.path(), "read"))?;
        let end = offset + extent.length;
        if !extent.is_zero() {
            let first = (offset / cluster).max(counted);
            counted = end.div_ceil(cluster);
            count += counted - first.min(counted);
        }
        offset = end;
    }
    Ok(count)
}

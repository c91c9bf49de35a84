//! New images without anything in them.

use std::path::PathBuf;

use super::super::ImageFormat;
use super::target::Target;
use super::writer::Qcow2Writer;
use super::{ImageError, SECTOR};

/// QEMU's limit on the L1 table: 32 MiB.
const MAX_L1_BYTES: u64 = 32 << 20;
/// The longest name of a backing file, in bytes.
const MAX_BACKING_NAME: usize = 1023;

/// An image of more clusters than these is not preallocated: its counts would not fit into memory.
const MAX_PREALLOCATED: u64 = 1 << 27;

/// How a new qcow2 image is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the disk.
    pub size: u64,
    /// Base 2 logarithm of the cluster size: 9 to 21.
    pub cluster_bits: u32,
    /// 2 or 3.
    pub version: u32,
    /// The backing file's name, as the header shall have it.
    pub backing: Option<String>,
    /// The backing file's format.
    pub backing_format: Option<String>,
    /// Whether refcounts may be written late. Version 3 only.
    pub lazy_refcounts: bool,
}

impl Layout {
    /// A disk of `size` bytes, everything else as it is by default.
    pub fn new(size: u64) -> Self {
        Layout {
            size,
            cluster_bits: 16,
            version: 3,
            backing: None,
            backing_format: None,
            lazy_refcounts: false,
        }
    }

    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// How many L2 tables it takes.
    pub(super) fn l1_entries(&self) -> u64 {
        self.size.div_ceil(1 << (self.cluster_bits + self.cluster_bits - 3))
    }

    /// Whether the L1 table is no longer than readers accept.
    pub(super) fn fits(&self) -> bool {
        self.l1_entries() * 8 <= MAX_L1_BYTES
    }
}

/// An image that is to be made.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// Its file. What has this name now is replaced when the image is whole.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Its size, and for qcow2 all else.
    pub layout: Layout,
    /// Whether every cluster of a qcow2 image gets its place at once.
    pub preallocate: bool,
}

impl NewImage {
    /// Makes the image.
    ///
    /// # Errors
    /// What the host says, or that such an image cannot be.
    pub fn create(&self) -> Result<(), ImageError> {
        self.check()?;
        let target = Target::new(&self.path)?;
        let failed = || ImageError::io(&self.path, "written");
        let layout = self.rounded();
        match self.format {
            ImageFormat::Raw => self.reserve(&target, layout.size)?,
            ImageFormat::Qcow2 => {
                let mut writer = Qcow2Writer::new(target.file(), &layout);
                if self.preallocate {
                    writer.preallocate().map_err(failed())?;
                }
                let len = writer.finish().map_err(failed())?;
                self.reserve(&target, len)?;
            }
        }
        target.finish(false).map_err(failed())
    }

    /// The layout with its size in whole sectors.
    pub(super) fn rounded(&self) -> Layout {
        let size = self.layout.size.checked_next_multiple_of(SECTOR).unwrap_or(self.layout.size);
        Layout { size, ..self.layout.clone() }
    }

    /// Makes the file `len` bytes long; a device must have them.
    pub(super) fn reserve(&self, target: &Target, len: u64) -> Result<(), ImageError> {
        match target.device_size() {
            Some(room) if room < len => Err(ImageError::unsuitable(
                &self.path,
                format!("the device has {room} bytes, {len} are needed"),
            )),
            Some(_) => Ok(()),
            None => target.file().set_len(len).map_err(ImageError::io(&self.path, "made that long")),
        }
    }

    pub(super) fn check(&self) -> Result<(), ImageError> {
        if self.layout.size > i64::MAX as u64 {
            return Err(ImageError::TooLarge { path: self.path.clone(), size: self.layout.size });
        }
        if self.format == ImageFormat::Raw {
            return Ok(());
        }
        if !(9..=21).contains(&self.layout.cluster_bits) {
            return Err(ImageError::unsuitable(
                &self.path,
                "Cluster size must be a power of two between 512 and 2048k",
            ));
        }
        if !self.layout.fits() {
            return Err(ImageError::TooLarge { path: self.path.clone(), size: self.layout.size });
        }
        if self.layout.lazy_refcounts && self.layout.version < 3 {
            return Err(ImageError::unsuitable(
                &self.path,
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            ));
        }
        let name = self.layout.backing.as_deref().unwrap_or_default();
        let format = self.layout.backing_format.as_deref().unwrap_or_default();
        // Header, extensions and name are in the first cluster.
        if name.len() > MAX_BACKING_NAME
            || (name.len() + format.len() + 144) as u64 > self.layout.cluster_size()
        {
            return Err(ImageError::unsuitable(
                &self.path,
                format!("the backing file's name has {} bytes, which is too long", name.len()),
            ));
        }
        if self.preallocate && self.layout.size >> self.layout.cluster_bits > MAX_PREALLOCATED {
            let most = MAX_PREALLOCATED << self.layout.cluster_bits;
            return Err(ImageError::unsuitable(
                &self.path,
                format!("preallocation=metadata is for at most {most} bytes with clusters of this size"),
            ));
        }
        if self.preallocate && self.layout.backing.is_some() {
            return Err(ImageError::unsuitable(
                &self.path,
                "preallocation=metadata does not go with a backing file, whose data it would hide",
            ));
        }
        Ok(())
    }
}

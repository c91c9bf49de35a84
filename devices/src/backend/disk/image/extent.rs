//! Where the bytes of a disk are: what `map` shows, and what a copy need not read.

use std::io;
use std::path::PathBuf;

use imago::ShallowMapping;
use imago::format::Format;

use super::super::chain::Image;
use super::super::file::HostFile;
use super::super::qcow2::{Access, Qcow2Image};
use super::super::{BlockBackend, Disk};

/// What is known about a part of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes in a file.
    Data {
        /// The file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
    },
    /// Compressed bytes.
    Compressed,
    /// Zeros.
    Zero {
        /// Where a raw image's file has a hole for them.
        hole: Option<(PathBuf, u64)>,
    },
}

/// A part of a disk that is stored in one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Which image of the chain has it: 0 is the first.
    pub depth: usize,
    /// Whether that image says something about it.
    pub present: bool,
    /// How it is stored.
    pub kind: ExtentKind,
}

impl Extent {
    /// Whether it reads as zeros without being looked at.
    pub fn is_zero(&self) -> bool {
        matches!(self.kind, ExtentKind::Zero { .. })
    }
}

impl Disk {
    /// How the bytes from `start` on are stored, at most `max` of them.
    ///
    /// # Errors
    /// What the host says, or that `start` is beyond the disk's end.
    pub fn extent(&self, start: u64, max: u64) -> io::Result<Extent> {
        let max = max.min(self.capacity().saturating_sub(start));
        if max == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match &self.image {
            Image::Raw(image) => image.file().extent(start, start, max, 0),
            Image::Qcow2(image) => image.extent(start, max),
        }
    }
}

impl Qcow2Image {
    fn extent(&self, start: u64, max: u64) -> io::Result<Extent> {
        self.with(|access| chain_extent(access, start, max))
    }
}

fn chain_extent(access: &Access, start: u64, max: u64) -> io::Result<Extent> {
    let (mut layer, mut at, mut length, mut depth) = (access, start, max, 0);
    loop {
        let (mapping, count) = layer.get_shallow_mapping(at, length)?;
        let zero = |present| ExtentKind::Zero { hole: None }.at(start, count, depth, present);
        return match mapping {
            ShallowMapping::Raw { storage, offset, .. } if matches!(layer.inner().format(), Format::Raw) => {
                storage.extent(start, offset, count, depth)
            }
            ShallowMapping::Raw { storage, offset, .. } => {
                let kind = ExtentKind::Data { file: storage.path().to_owned(), offset };
                Ok(kind.at(start, count, depth, true))
            }
            ShallowMapping::Indirect { layer: behind, offset, .. } => {
                (layer, at, length) = (behind, offset, count);
                depth += 1;
                continue;
            }
            ShallowMapping::Zero { explicit, .. } => Ok(zero(explicit)),
            ShallowMapping::Special { .. } => Ok(ExtentKind::Compressed.at(start, count, depth, true)),
            // Behind the end of a shorter backing image there are zeros, which are the front image's.
            ShallowMapping::Eof { .. } if depth > 0 => {
                Ok(ExtentKind::Zero { hole: None }.at(start, length, depth - 1, false))
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        };
    }
}

impl ExtentKind {
    fn at(self, start: u64, length: u64, depth: usize, present: bool) -> Extent {
        Extent { start, length, depth, present, kind: self }
    }
}

impl HostFile {
    /// What the file has at `offset`, where the disk's byte `start` is.
    fn extent(&self, start: u64, offset: u64, max: u64, depth: usize) -> io::Result<Extent> {
        let (data, length) = self.data_at(offset, max)?;
        let place = self.path().to_owned();
        let kind = if data {
            ExtentKind::Data { file: place, offset }
        } else {
            ExtentKind::Zero { hole: Some((place, offset)) }
        };
        Ok(kind.at(start, length, depth, true))
    }
}

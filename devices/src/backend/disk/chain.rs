//! Opens an image and the images behind it.
//!
//! What is trusted: the command line, and the header of an image that it names (a guest cannot write there). What is not: the
//! contents of a raw file, which a guest may have written. So no format is ever taken from a backing file's contents: it is the one
//! that the header of the image in front names, and where a header names none, the file is raw if it looks raw and refused
//! otherwise. The first image may be probed, and if that finds nothing, [`super::raw`] sees to it that the guest cannot change
//! what a later probe finds. Names with a protocol (`json:`, `nbd:` ...) are never followed.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatDriverBuilder};

use super::config::{DiskConfig, ImageFormat};
use super::error::DiskError;
use super::file::{FileId, FileOptions, HostFile};
use super::header::{Looks, MAX_HEADER, PROBE_LEN, Qcow2Header, probe};
use super::qcow2::{Access, Qcow2Image};
use super::raw::RawImage;
use super::refcounts;

/// The most images that are behind one another, the first included.
pub(super) const MAX_DEPTH: usize = 32;

/// An open image of either kind.
#[derive(Debug)]
pub(super) enum Image {
    Raw(RawImage),
    Qcow2(Qcow2Image),
}

/// Opens what `config` describes.
pub(super) fn open(config: &DiskConfig) -> Result<Image, DiskError> {
    let file = HostFile::open(&config.path, FileOptions::of(config))?;
    let format = match config.format {
        Some(format) => format,
        None => match looks(&file)? {
            Looks::Raw => ImageFormat::Raw,
            Looks::Qcow2 => ImageFormat::Qcow2,
            Looks::Other(format) => {
                return Err(DiskError::UnsupportedFormat { path: config.path.clone(), format });
            }
        },
    };
    match format {
        ImageFormat::Raw => {
            let probed = config.format.is_none() && !config.readonly;
            if probed {
                log::warn!(
                    "disk {}: no format is given, and it looks raw; the guest may not write another format's first bytes to it \
                     (format=raw lifts that)",
                    config.path.display()
                );
            }
            Ok(Image::Raw(RawImage::new(file, probed)))
        }
        ImageFormat::Qcow2 => {
            let block_size = file.block_size();
            let mut chain = Chain { config, ids: Vec::new() };
            let access = chain.qcow2(file, FileOptions::of(config))?;
            let path = config.path.clone();
            Ok(Image::Qcow2(Qcow2Image::new(access, path, !config.readonly, config.cache, block_size)))
        }
    }
}

fn looks(file: &HostFile) -> Result<Looks, DiskError> {
    let head = file.read_head(PROBE_LEN as u64).map_err(|source| read_error(file, source))?;
    Ok(probe(&head))
}

fn read_error(file: &HostFile, source: io::Error) -> DiskError {
    DiskError::Read { path: file.path().to_owned(), source }
}

/// The images opened so far.
struct Chain<'a> {
    config: &'a DiskConfig,
    ids: Vec<FileId>,
}

impl Chain<'_> {
    /// Opens the qcow2 image in `file` and everything behind it.
    fn qcow2(&mut self, file: HostFile, options: FileOptions) -> Result<Access, DiskError> {
        let path = file.path().to_owned();
        self.enter(&file)?;
        let head = file.read_head(MAX_HEADER).map_err(|source| read_error(&file, source))?;
        let header = Qcow2Header::parse(&head, file.size())
            .map_err(|reason| DiskError::Qcow2 { path: path.clone(), reason })?;
        drop(head);
        if options.write {
            let checked = refcounts::check(&file, &header).map_err(|source| read_error(&file, source))?;
            checked.map_err(|reason| DiskError::Qcow2 { path: path.clone(), reason })?;
        }
        let backing = match &header.backing_file {
            None => None,
            Some(name) => Some(self.backing(&path, name, header.backing_format.as_deref(), options)?),
        };
        // Everything is opened by us; the gate refuses whatever imago would open by itself.
        let build = || {
            let builder = Qcow2::<HostFile>::builder(file).write(options.write);
            builder.backing(backing).data_file(None).open(DenyImplicitOpenGate::default())
        };
        match catch_unwind(AssertUnwindSafe(build)) {
            Ok(Ok(image)) => Ok(Access::new(image)),
            Ok(Err(source)) => Err(DiskError::Damaged { path, source }),
            Err(_) => Err(DiskError::Damaged { path, source: io::Error::other("its tables make no sense") }),
        }
    }

    fn enter(&mut self, file: &HostFile) -> Result<(), DiskError> {
        if self.ids.contains(&file.id()) {
            return Err(DiskError::BackingLoop(file.path().to_owned()));
        }
        self.ids.push(file.id());
        if self.ids.len() > MAX_DEPTH {
            return Err(DiskError::BackingDepth { path: file.path().to_owned(), depth: self.ids.len() });
        }
        Ok(())
    }

    /// Opens the backing image `name` of the image at `front`.
    fn backing(
        &mut self,
        front: &Path,
        name: &str,
        format: Option<&str>,
        options: FileOptions,
    ) -> Result<Access, DiskError> {
        let at = || front.to_owned();
        if !self.config.backing {
            return Err(DiskError::BackingForbidden { path: at(), name: name.to_owned() });
        }
        let path = backing_path(front, name)
            .ok_or_else(|| DiskError::BackingProtocol { path: at(), name: name.to_owned() })?;
        let wrap = |source| DiskError::Backing { path: front.to_owned(), source: Box::new(source) };
        let options = options.read_only();
        // Our own locks would get into each other's way where a chain is a loop; found here, it is named as what it is.
        self.refuse_loop(&path).map_err(wrap)?;
        let file = HostFile::open(&path, options).map_err(wrap)?;
        match format {
            Some("qcow2") => self.qcow2(file, options).map_err(wrap),
            Some("raw" | "file" | "host_device") => self.raw(file).map_err(wrap),
            Some(other) => Err(DiskError::BackingFormat { path: at(), format: other.to_owned() }),
            None => match looks(&file).map_err(wrap)? {
                Looks::Raw => self.raw(file).map_err(wrap),
                Looks::Qcow2 => Err(DiskError::BackingUnknown { path: at(), backing: path, found: "qcow2" }),
                Looks::Other(found) => Err(DiskError::BackingUnknown { path: at(), backing: path, found }),
            },
        }
    }

    fn refuse_loop(&self, path: &Path) -> Result<(), DiskError> {
        use std::os::unix::fs::MetadataExt;
        match std::fs::metadata(path) {
            Ok(meta) if self.ids.contains(&(meta.dev(), meta.ino())) => {
                Err(DiskError::BackingLoop(path.to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn raw(&mut self, file: HostFile) -> Result<Access, DiskError> {
        self.enter(&file)?;
        let path = file.path().to_owned();
        let image = Raw::builder(file).write(false).open(DenyImplicitOpenGate::default());
        image.map(Access::new).map_err(|source| DiskError::Open { path, source })
    }
}

/// Where the backing image `name` of the image at `front` lies: beside it, unless the name says where. `None` if it is not a file.
pub(super) fn backing_path(front: &Path, name: &str) -> Option<PathBuf> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    let before_slash = name.split('/').next().unwrap_or_default();
    if let Some((protocol, _)) = before_slash.split_once(':') {
        let like_one = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        if !protocol.is_empty() && protocol.chars().all(like_one) {
            return None;
        }
    }
    Some(front.parent().unwrap_or(Path::new("")).join(name))
}

//! A file that is being made: written beside its name, and given the name when it is whole. It knows no format.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, PoisonError};

use super::super::file::{FileOptions, HostFile};
use super::super::{CacheMode, SyncMode};
use super::ImageError;

/// How many symbolic links are followed to a file that is yet to be made.
const MAX_LINKS: usize = 40;

/// Files that exist and have no name of their own yet.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes the files that are being made at this moment: for a program that a signal ends.
pub fn remove_unfinished() {
    for path in UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // A file that is gone or cannot go is nothing to be helped here.
        let _ = fs::remove_file(path);
    }
}

/// A file that is being made. Dropped before [`Target::finish`], it is gone, and what was there before is as it was.
#[derive(Debug)]
pub(super) struct Target {
    file: File,
    path: PathBuf,
    /// The name it has meanwhile; none where it is written in place.
    part: Option<PathBuf>,
    /// What it replaces, locked against others.
    old: Option<HostFile>,
}

impl Target {
    /// Begins to make `path`.
    pub(super) fn new(path: &Path) -> Result<Self, ImageError> {
        let real = follow(path);
        let exists = fs::metadata(&real).is_ok();
        let options =
            FileOptions { write: true, cache: CacheMode::Unsafe, sync: SyncMode::Fsync, lock: true };
        let old = if exists { Some(HostFile::open(&real, options)?) } else { None };
        if old.as_ref().is_some_and(HostFile::is_device) {
            return Self::in_place(path, real, old);
        }
        match create_part(&real) {
            Ok((file, part)) => {
                let target = Target { file, path: real, part: Some(part), old };
                target.adopt_permissions().map_err(ImageError::io(path, "created"))?;
                Ok(target)
            }
            // Where nothing may be created, what is there may still be written.
            Err(error) if exists && is_forbidden(&error) => Self::in_place(path, real, old),
            Err(error) => Err(ImageError::io(path, "created")(error)),
        }
    }

    fn in_place(path: &Path, real: PathBuf, old: Option<HostFile>) -> Result<Self, ImageError> {
        let file =
            OpenOptions::new().read(true).write(true).open(&real).map_err(ImageError::io(path, "opened"))?;
        if !old.as_ref().is_some_and(HostFile::is_device) {
            file.set_len(0).map_err(ImageError::io(path, "emptied"))?;
        }
        Ok(Target { file, path: real, part: None, old })
    }

    fn adopt_permissions(&self) -> io::Result<()> {
        if self.old.is_none() {
            return Ok(());
        }
        let meta = fs::metadata(&self.path)?;
        self.file.set_permissions(Permissions::from_mode(meta.permissions().mode() & 0o7777))
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Bytes of the device that it is, if it is one: it can hold no more, and holds what it held before.
    pub(super) fn device_size(&self) -> Option<u64> {
        self.old.as_ref().filter(|old| old.is_device()).map(HostFile::size)
    }

    /// Gives it its name.
    pub(super) fn finish(mut self, sync: bool) -> io::Result<()> {
        if sync {
            self.file.sync_all()?;
        }
        if let Some(part) = &self.part {
            fs::rename(part, &self.path)?;
            forget(part);
            self.part = None;
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            let _ = fs::remove_file(part);
            forget(part);
        }
    }
}

fn forget(part: &Path) {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).retain(|path| path != part);
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// The file behind symbolic links, which stay what they are.
fn follow(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(to) => path = path.parent().unwrap_or(Path::new("")).join(to),
            Err(_) => break,
        }
    }
    path
}

/// Creates a file beside `path` that nobody else has.
fn create_part(path: &Path) -> io::Result<(File, PathBuf)> {
    if path.file_name().is_none() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut number = 0_u32;
    loop {
        let part = folder.join(format!(".hvrun-{}-{number}.part", process::id()));
        // Known before it exists, so that no signal comes in between.
        let mut unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        match OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(&part) {
            Ok(file) => {
                unfinished.push(part.clone());
                return Ok((file, part));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < u32::MAX => number += 1,
            Err(error) => return Err(error),
        }
    }
}

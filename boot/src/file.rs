//! A file whose bytes go into guest memory, read again at every load. Not for pipes: they can be read only once.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use hvrun_arch::GuestMemory;
use hvrun_arch::aarch64::layout::Window;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, ReadVolatile, VolatileMemoryError};

use crate::BootError;

/// Most bytes one read asks for: macOS refuses more than `INT_MAX`, Linux cuts at 2 GiB less a page.
const READ_CHUNK: usize = 1 << 30;

/// What a file is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The kernel.
    Kernel,
    /// The initrd.
    Initrd,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Kernel => "kernel",
            Role::Initrd => "initrd",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a file cannot be used, whatever is in it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is nothing at the path.
    #[error("the {role} {path:?} does not exist")]
    Missing {
        /// What it should have been.
        role: Role,
        /// The path asked for.
        path: PathBuf,
    },
    /// The path names a directory.
    #[error("the {role} {path:?} is a directory; name the file in it")]
    Directory {
        /// What it should have been.
        role: Role,
        /// The path asked for.
        path: PathBuf,
    },
    /// The path names a device, a pipe or a socket.
    #[error(
        "the {role} {path:?} is {kind}; it must be a regular file, because every guest reset reads it again"
    )]
    NotRegular {
        /// What it should have been.
        role: Role,
        /// The path asked for.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The file has no bytes.
    #[error("the {role} {path:?} is empty")]
    Empty {
        /// What it should have been.
        role: Role,
        /// The path asked for.
        path: PathBuf,
    },
    /// The host's operating system refused to open or read the file.
    #[error("cannot read the {role} {path:?}: {reason}")]
    Unreadable {
        /// What it should have been.
        role: Role,
        /// The path asked for.
        path: PathBuf,
        /// What the operating system answered.
        reason: io::Error,
    },
    /// The file became shorter after it was opened.
    #[error("the {role} {path:?} had {expected} bytes when it was opened and has become shorter since")]
    Shrunk {
        /// What it is.
        role: Role,
        /// The path it was opened by.
        path: PathBuf,
        /// Its length when it was opened.
        expected: u64,
    },
}

/// An open regular file with bytes in it.
#[derive(Debug)]
pub(crate) struct SourceFile {
    role: Role,
    path: PathBuf,
    file: File,
    /// Held while a load moves the file's offset; everything else reads at explicit offsets.
    offset: Mutex<()>,
    len: u64,
}

impl SourceFile {
    /// Opens the file at `path`.
    pub(crate) fn open(role: Role, path: &Path) -> Result<Self, FileError> {
        let unreadable = |reason: io::Error| match reason.kind() {
            io::ErrorKind::NotFound => FileError::Missing { role, path: path.to_owned() },
            _ => FileError::Unreadable { role, path: path.to_owned(), reason },
        };
        // Looked at before it is opened, because opening a pipe without a writer would wait for one.
        check_kind(role, path, &std::fs::metadata(path).map_err(unreadable)?)?;
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        check_kind(role, path, &metadata)?;
        if metadata.len() == 0 {
            return Err(FileError::Empty { role, path: path.to_owned() });
        }
        Ok(SourceFile { role, path: path.to_owned(), file, offset: Mutex::new(()), len: metadata.len() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The first `max` bytes, or all if the file is shorter.
    pub(crate) fn head(&self, max: usize) -> Result<Vec<u8>, FileError> {
        let mut head = Vec::new();
        let mut range = self.range(0, self.len.min(max as u64));
        range.read_to_end(&mut head).map_err(|reason| self.unreadable(reason))?;
        Ok(head)
    }

    /// A reader of `len` bytes from `start`, which ends early if the file does.
    pub(crate) fn range(&self, start: u64, len: u64) -> FileRange<'_> {
        FileRange { file: &self.file, pos: start, end: start.saturating_add(len) }
    }

    /// Reads the file's first `window.size` bytes into guest memory, without a copy in between.
    pub(crate) fn copy_to(&self, memory: &GuestMemory, window: Window) -> Result<(), BootError> {
        let _lock = self.offset.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0)).map_err(|reason| self.unreadable(reason))?;
        let refused = |reason: String| BootError::Memory { what: self.role.name(), window, reason };
        let len = usize::try_from(window.size).map_err(|error| refused(error.to_string()))?;
        for slice in memory.get_slices(GuestAddress(window.base), len) {
            let slice = slice.map_err(|error| refused(error.to_string()))?;
            let mut done = 0;
            while done < slice.len() {
                let chunk = READ_CHUNK.min(slice.len() - done);
                let mut part = slice.subslice(done, chunk).map_err(|error| refused(error.to_string()))?;
                file.read_exact_volatile(&mut part).map_err(|error| self.read_failed(error))?;
                done += chunk;
            }
        }
        Ok(())
    }

    fn read_failed(&self, error: VolatileMemoryError) -> FileError {
        match error {
            VolatileMemoryError::IOError(reason) if reason.kind() == io::ErrorKind::UnexpectedEof => {
                FileError::Shrunk { role: self.role, path: self.path.clone(), expected: self.len }
            }
            VolatileMemoryError::IOError(reason) => self.unreadable(reason),
            other => self.unreadable(io::Error::other(other.to_string())),
        }
    }

    fn unreadable(&self, reason: io::Error) -> FileError {
        FileError::Unreadable { role: self.role, path: self.path.clone(), reason }
    }
}

/// Part of a file, read with explicit offsets.
#[derive(Debug, Clone)]
pub(crate) struct FileRange<'a> {
    file: &'a File,
    pos: u64,
    end: u64,
}

impl FileRange<'_> {
    /// How many bytes have not been read yet.
    pub(crate) fn left(&self) -> u64 {
        self.end.saturating_sub(self.pos)
    }

    /// Gives back the last `bytes` bytes, which were read ahead.
    pub(crate) fn rewind(&mut self, bytes: u64) {
        self.pos = self.pos.saturating_sub(bytes);
    }
}

impl Read for FileRange<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left()).unwrap_or(usize::MAX).min(buf.len());
        let got = self.file.read_at(&mut buf[..want], self.pos)?;
        self.pos += got as u64;
        Ok(got)
    }
}

/// Writes `data` at `offset` inside `window` of guest memory.
pub(crate) fn write_to(
    memory: &GuestMemory,
    window: Window,
    offset: u64,
    data: &[u8],
    what: &'static str,
) -> Result<(), BootError> {
    memory
        .write_slice(data, GuestAddress(window.base.wrapping_add(offset)))
        .map_err(|error| BootError::Memory { what, window, reason: error.to_string() })
}

fn check_kind(role: Role, path: &Path, metadata: &std::fs::Metadata) -> Result<(), FileError> {
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(());
    }
    if kind.is_dir() {
        return Err(FileError::Directory { role, path: path.to_owned() });
    }
    let kind = if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(FileError::NotRegular { role, path: path.to_owned(), kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> String {
        SourceFile::open(Role::Initrd, path).expect_err("must not open").to_string()
    }

    #[test]
    fn missing_file_is_named() {
        let message = open(Path::new("/nowhere/initrd"));
        assert_eq!(message, "the initrd \"/nowhere/initrd\" does not exist");
    }

    #[test]
    fn directory_is_refused_as_such() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(dir.path()).contains("is a directory"));
    }

    #[test]
    fn empty_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(open(file.path()).ends_with("is empty"));
    }

    #[test]
    fn device_is_refused_as_such() {
        assert!(open(Path::new("/dev/null")).contains("is a device; it must be a regular file"));
    }

    #[test]
    fn refusal_of_the_operating_system_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let below_a_file = file.path().join("initrd");
        let message = open(&below_a_file);
        assert!(message.starts_with("cannot read the initrd"), "{message}");
        assert!(message.contains("Not a directory"), "{message}");
    }

    #[test]
    fn file_that_shrank_after_opening_is_reported() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8192).unwrap();
        let source = SourceFile::open(Role::Initrd, file.path()).unwrap();
        file.as_file().set_len(100).unwrap();
        let memory = crate::testing::memory(1 << 20);

        let window = Window::new(crate::testing::RAM_BASE, source.len());
        let message = source.copy_to(&memory, window).unwrap_err().to_string();

        assert!(message.contains("had 8192 bytes"), "{message}");
    }

    #[test]
    fn copy_spans_memory_regions() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..8192u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let source = SourceFile::open(Role::Initrd, file.path()).unwrap();
        let memory = GuestMemory::from_ranges(&[
            (GuestAddress(0x4000_0000), 0x1000),
            (GuestAddress(0x4000_1000), 0x1000),
        ])
        .unwrap();

        source.copy_to(&memory, Window::new(0x4000_0000, 8192)).unwrap();

        let mut read = vec![0; 8192];
        memory.read_slice(&mut read, GuestAddress(0x4000_0000)).unwrap();
        assert_eq!(read, bytes);
    }

    #[test]
    fn copy_outside_memory_names_the_range() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(0x3000).unwrap();
        let source = SourceFile::open(Role::Initrd, file.path()).unwrap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0x4000_0000), 0x1000)]).unwrap();

        let message = source.copy_to(&memory, Window::new(0x4000_0000, 0x3000)).unwrap_err().to_string();

        assert!(
            message.starts_with("guest memory from 0x40000000 to 0x40003000 cannot take the initrd"),
            "{message}"
        );
    }
}

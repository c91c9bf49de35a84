//! Sockets that have a file: binding them where a dead process left one behind, and removing the file again.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::sys::UNIX_PATH_MAX;

/// Why a path cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// No socket address can hold the path.
    #[error("its path has {len} bytes, a socket's can have at most {max}; a shorter directory would do")]
    TooLong {
        /// Its length.
        len: usize,
        /// The longest possible.
        max: usize,
    },
    /// Another kind of file.
    #[error("something that is not a socket is there already; it has to be removed, or another path used")]
    NotASocket,
    /// Somebody has it open.
    #[error("another process uses it; it has to be ended, or another path used")]
    InUse,
    /// The host says no.
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// Refuses a path that no socket address can hold.
pub(crate) fn check_length(path: &Path) -> Result<(), BindError> {
    let len = path.as_os_str().as_bytes().len();
    if len > UNIX_PATH_MAX {
        return Err(BindError::TooLong { len, max: UNIX_PATH_MAX });
    }
    Ok(())
}

/// A socket's file, removed on drop unless somebody has put another in its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// A stream socket that listens at `path`.
    pub(crate) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
        bind(path, |path| UnixListener::bind(path), |path| UnixStream::connect(path).map(drop))
    }

    /// A datagram socket at `path`.
    pub(crate) fn datagram(path: &Path) -> Result<(UnixDatagram, SocketFile), BindError> {
        bind(path, |path| UnixDatagram::bind(path), |path| UnixDatagram::unbound()?.connect(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn identity(path: &Path) -> io::Result<(u64, u64)> {
        let metadata = fs::symlink_metadata(path)?;
        Ok((metadata.dev(), metadata.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if Self::identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind<T>(
    path: &Path,
    bind: impl Fn(&Path) -> io::Result<T>,
    connect: impl Fn(&Path) -> io::Result<()>,
) -> Result<(T, SocketFile), BindError> {
    check_length(path)?;
    let socket = match bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            remove_stale(path, connect)?;
            bind(path)?
        }
        result => result?,
    };
    // Absolute, because the process may change its directory.
    let file = SocketFile { path: std::path::absolute(path)?, identity: SocketFile::identity(path)? };
    Ok((socket, file))
}

/// Moves a socket out of the way that nobody has open.
fn remove_stale(path: &Path, connect: impl Fn(&Path) -> io::Result<()>) -> Result<(), BindError> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(BindError::NotASocket);
    }
    match connect(path).map_err(|error| error.kind()) {
        Err(ErrorKind::ConnectionRefused) => match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        },
        Err(ErrorKind::NotFound) => Ok(()),
        // Connected, of another type, not ours to connect to, or its queue of callers is full: alive, as far as one can tell.
        _ => Err(BindError::InUse),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        (dir, path)
    }

    #[test]
    fn the_file_goes_with_its_owner() {
        let (_dir, path) = place();
        let bound = SocketFile::datagram(&path).unwrap();
        assert!(path.exists());
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_datagram_socket_is_replaced() {
        let (_dir, path) = place();
        drop(UnixDatagram::bind(&path).unwrap());
        assert!(SocketFile::datagram(&path).is_ok());
    }

    #[test]
    fn a_stale_listening_socket_is_replaced() {
        let (_dir, path) = place();
        drop(UnixListener::bind(&path).unwrap());
        assert!(SocketFile::listen(&path).is_ok());
    }

    #[test]
    fn a_socket_in_use_is_left_alone() {
        let (_dir, path) = place();
        let _used = UnixDatagram::bind(&path).unwrap();
        assert!(matches!(SocketFile::datagram(&path), Err(BindError::InUse)));
        assert!(path.exists());
    }

    #[test]
    fn a_plain_file_is_left_alone() {
        let (_dir, path) = place();
        fs::write(&path, "x").unwrap();
        assert!(matches!(SocketFile::listen(&path), Err(BindError::NotASocket)));
        assert!(path.exists());
    }

    #[test]
    fn the_successors_file_is_left_alone() {
        let (_dir, path) = place();
        let old = SocketFile::datagram(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _new = SocketFile::datagram(&path).unwrap();
        drop(old);
        assert!(path.exists());
    }

    #[test]
    fn a_path_that_is_too_long_is_refused_with_both_lengths() {
        let error = SocketFile::datagram(Path::new(&"x".repeat(200))).unwrap_err().to_string();
        assert!(error.contains("200") && error.contains(&UNIX_PATH_MAX.to_string()), "{error}");
    }
}

//! What the 9P server needs from the host and each host gives in its own way: error numbers, directory descriptors,
//! extended attributes, device numbers. Not the server, and no path is followed in here that the server did not check.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

#[cfg(any(target_os = "macos", test))]
pub(crate) mod darwin;

#[cfg(target_os = "linux")]
#[path = "ninep/linux.rs"]
mod host;
#[cfg(target_os = "macos")]
#[path = "ninep/macos.rs"]
mod host;

pub(crate) use host::*;

/// A file to be changed: an entry of a directory, which is never followed if it is a symbolic link, or an open descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// The entry of that name in a directory.
    Entry(BorrowedFd<'a>, &'a CStr),
    /// The file behind a descriptor, which may be one that only stands for a place (`O_PATH`).
    Open(BorrowedFd<'a>),
}

/// Attributes of a file, the same on every host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attr {
    /// The device it is on, as the host numbers devices.
    pub dev: u64,
    /// Its inode on that device.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The device it is, if it is one, as Linux encodes device numbers.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// Good size of an access in bytes.
    pub blksize: u64,
    /// Units of 512 bytes allocated.
    pub blocks: u64,
    /// Last access, seconds and nanoseconds.
    pub atime: (u64, u64),
    /// Last change of the contents.
    pub mtime: (u64, u64),
    /// Last change of the inode.
    pub ctime: (u64, u64),
}

/// What statfs says, the same on every host.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FsInfo {
    pub block_size: u32,
    pub blocks: u64,
    pub free: u64,
    pub available: u64,
    pub files: u64,
    pub files_free: u64,
    pub id: u64,
}

/// Encodes a device number as Linux does on the wire (`new_encode_dev`): 12 bits major, 20 bits minor.
pub(crate) fn encode_device(major: u32, minor: u32) -> u64 {
    u64::from(minor & 0xff) | (u64::from(major) << 8) | (u64::from(minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_device_number_is_encoded_as_major_and_minor_bytes() {
        assert_eq!(encode_device(8, 1), 0x801);
    }
}

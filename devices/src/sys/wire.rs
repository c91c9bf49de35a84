//! What the network backends need from the host and each host gives in its own way: the layout of `sockaddr_un` in bytes, sockets
//! that never block, tap devices. Not the backends.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

#[cfg(target_os = "linux")]
#[path = "wire/linux.rs"]
mod host;
#[cfg(target_os = "macos")]
#[path = "wire/macos.rs"]
mod host;

pub(crate) use host::{UNIX_LAYOUT, attach_tap, interface_exists, open_tun, set_tap_offloads, stream_socket};

/// AF_UNIX, the same number on Linux and macOS.
const AF_UNIX: u8 = 1;

/// How `struct sockaddr_un` lies in memory, for protocols that carry one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnixLayout {
    /// It begins with its length and the family in 8 bits each; without, with the family in 16 bits of the host's byte order.
    has_length: bool,
    /// Bytes of `sun_path`, including the final NUL.
    path: usize,
}

impl UnixLayout {
    /// unix(7): 110 bytes.
    #[cfg(any(target_os = "linux", test))]
    const LINUX: UnixLayout = UnixLayout { has_length: false, path: 108 };
    /// unix(4): 106 bytes.
    #[cfg(any(target_os = "macos", test))]
    const MACOS: UnixLayout = UnixLayout { has_length: true, path: 104 };

    /// Bytes of the whole structure.
    pub(crate) const fn size(self) -> usize {
        2 + self.path
    }

    /// The structure for a socket at `path`; `None` if the path is too long for it, is empty, or has a NUL.
    pub(crate) fn encode(self, path: &Path) -> Option<Vec<u8>> {
        let path = path.as_os_str().as_bytes();
        if path.is_empty() || path.len() >= self.path || path.contains(&0) {
            return None;
        }
        let mut bytes = Vec::with_capacity(self.size());
        if self.has_length {
            bytes.push(u8::try_from(self.size()).unwrap_or(u8::MAX));
            bytes.push(AF_UNIX);
        } else {
            bytes.extend(u16::from(AF_UNIX).to_ne_bytes());
        }
        bytes.extend(path);
        bytes.resize(self.size(), 0);
        Some(bytes)
    }

    /// The path in a structure that a peer has sent; `None` if it is none of that family, has no path or no end of the path.
    /// `sun_len` is ignored: the kernel sets it, and programs leave it 0.
    pub(crate) fn decode(self, bytes: &[u8]) -> Option<PathBuf> {
        let (head, path) = bytes.get(..self.size())?.split_first_chunk::<2>()?;
        let family = if self.has_length { u16::from(head[1]) } else { u16::from_ne_bytes(*head) };
        let end = path.iter().position(|&byte| byte == 0)?;
        let path = path.get(..end)?;
        (family == u16::from(AF_UNIX) && !path.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linux_address_has_110_bytes_with_a_16_bit_family() {
        let bytes = UnixLayout::LINUX.encode(Path::new("/a")).unwrap();
        assert_eq!(bytes.len(), 110);
        assert_eq!(bytes[..5], [1u16.to_ne_bytes()[0], 1u16.to_ne_bytes()[1], b'/', b'a', 0]);
    }

    #[test]
    fn a_macos_address_has_106_bytes_that_begin_with_its_length() {
        let bytes = UnixLayout::MACOS.encode(Path::new("/a")).unwrap();
        assert_eq!(bytes.len(), 106);
        assert_eq!(bytes[..5], [106, 1, b'/', b'a', 0]);
    }

    #[test]
    fn the_longest_path_leaves_one_byte_for_the_nul() {
        let path = |len: usize| PathBuf::from("x".repeat(len));
        for (layout, longest) in [(UnixLayout::LINUX, 107), (UnixLayout::MACOS, 103)] {
            assert!(layout.encode(&path(longest)).is_some(), "{layout:?}");
            assert_eq!(layout.encode(&path(longest + 1)), None, "{layout:?}");
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_again() {
        let path = Path::new("/tmp/vde1.ctl/001.1234");
        for layout in [UnixLayout::LINUX, UnixLayout::MACOS] {
            assert_eq!(layout.decode(&layout.encode(path).unwrap()).as_deref(), Some(path), "{layout:?}");
        }
    }

    #[test]
    fn a_macos_address_with_length_zero_is_understood() {
        let mut bytes = UnixLayout::MACOS.encode(Path::new("/a")).unwrap();
        bytes[0] = 0;
        assert_eq!(UnixLayout::MACOS.decode(&bytes), Some("/a".into()));
    }

    #[test]
    fn an_address_of_another_family_is_refused() {
        let mut bytes = UnixLayout::LINUX.encode(Path::new("/a")).unwrap();
        bytes[..2].copy_from_slice(&2u16.to_ne_bytes());
        assert_eq!(UnixLayout::LINUX.decode(&bytes), None);
    }

    #[test]
    fn an_address_whose_path_has_no_end_is_refused() {
        let mut bytes = UnixLayout::LINUX.encode(Path::new("/a")).unwrap();
        bytes[2..].fill(b'x');
        assert_eq!(UnixLayout::LINUX.decode(&bytes), None);
    }

    #[test]
    fn an_address_cut_short_or_without_a_path_is_refused() {
        let bytes = UnixLayout::LINUX.encode(Path::new("/a")).unwrap();
        assert_eq!(UnixLayout::LINUX.decode(&bytes[..109]), None);
        assert_eq!(UnixLayout::MACOS.decode(&[0, 1]), None);
        assert_eq!(
            UnixLayout::MACOS.decode(&{
                let mut none = [0; 106];
                none[1] = 1;
                none
            }),
            None
        );
    }

    #[test]
    fn the_layout_of_this_host_is_that_of_its_c_library() {
        assert_eq!(UNIX_LAYOUT.size(), size_of::<libc::sockaddr_un>());
    }
}

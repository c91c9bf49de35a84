//! The 9P2000.L protocol: message types, flags, and reading and writing of its plain fields. Knows no file.
//!
//! Sources: Linux `include/net/9p/9p.h`, and the protocol description of diod (`protocol.md`). All integers are
//! little-endian; a string is `len[2]` and that many bytes.

/// Smallest msize that is agreed to: below it not even a name of 255 bytes and its headers would fit comfortably.
pub const MIN_MSIZE: u32 = 4096;
/// Largest msize that is agreed to, in bytes.
pub const MAX_MSIZE: u32 = 1 << 20;
/// `size[4] type[1] tag[2]`, with which every message begins.
pub const HEADER_SIZE: usize = 7;
/// Bytes of an Rread before its data: the header and `count[4]`.
pub(super) const RREAD_HEADER: usize = HEADER_SIZE + 4;
/// Bytes of a Tread: the header and `fid[4] offset[8] count[4]`.
pub(super) const TREAD_SIZE: usize = HEADER_SIZE + 16;
/// Bytes of a Twrite before its data: the header and `fid[4] offset[8] count[4]`.
pub(super) const TWRITE_HEADER: usize = HEADER_SIZE + 16;
/// What a client sets aside of msize for the header of a read or write (`P9_IOHDRSZ`).
pub(super) const IO_HEADER: u32 = 24;
/// Bytes of a qid: `type[1] version[4] path[8]`.
pub(super) const QID_SIZE: usize = 13;
/// Longest name of a directory entry in bytes (`NAME_MAX`).
pub(super) const NAME_MAX: usize = 255;
/// Longest target of a symbolic link in bytes, without a final zero (`PATH_MAX` - 1).
pub(super) const LINK_MAX: usize = 4095;
/// Most components of one Twalk (`P9_MAXWELEM`).
pub(super) const MAX_WALK: usize = 16;
/// The only version this server speaks.
pub(super) const VERSION: &[u8] = b"9P2000.L";
/// What Rversion says to a client that asks for another one.
pub(super) const VERSION_UNKNOWN: &[u8] = b"unknown";
/// File system type that statfs reports (`V9FS_MAGIC`).
pub(super) const V9FS_MAGIC: u32 = 0x0102_1997;
/// "No fid" (`P9_NOFID`).
pub(super) const NO_FID: u32 = !0;
/// "No uid" (`P9_NONUNAME`).
pub(super) const NO_UID: u32 = !0;

/// Message types. A reply is its request's number plus one.
pub(super) mod op {
    pub const RLERROR: u8 = 7;
    pub const TSTATFS: u8 = 8;
    pub const TLOPEN: u8 = 12;
    pub const TLCREATE: u8 = 14;
    pub const TSYMLINK: u8 = 16;
    pub const TMKNOD: u8 = 18;
    pub const TRENAME: u8 = 20;
    pub const TREADLINK: u8 = 22;
    pub const TGETATTR: u8 = 24;
    pub const TSETATTR: u8 = 26;
    pub const TXATTRWALK: u8 = 30;
    pub const TXATTRCREATE: u8 = 32;
    pub const TREADDIR: u8 = 40;
    pub const TFSYNC: u8 = 50;
    pub const TLOCK: u8 = 52;
    pub const TGETLOCK: u8 = 54;
    pub const TLINK: u8 = 70;
    pub const TMKDIR: u8 = 72;
    pub const TRENAMEAT: u8 = 74;
    pub const TUNLINKAT: u8 = 76;
    pub const TVERSION: u8 = 100;
    pub const TAUTH: u8 = 102;
    pub const TATTACH: u8 = 104;
    pub const TFLUSH: u8 = 108;
    pub const TWALK: u8 = 110;
    pub const TREAD: u8 = 116;
    pub const TWRITE: u8 = 118;
    pub const TCLUNK: u8 = 120;
    pub const TREMOVE: u8 = 122;
}

/// Types of a qid (`P9_QT*`).
pub(super) mod qt {
    pub const DIR: u8 = 0x80;
    pub const SYMLINK: u8 = 0x02;
    pub const FILE: u8 = 0x00;
}

/// Bits of Tgetattr's mask and Rgetattr's `valid` (`P9_STATS_*`).
pub(super) mod getattr {
    pub const BASIC: u64 = 0x0000_07ff;
    pub const BTIME: u64 = 0x0000_0800;
}

/// Bits of Tsetattr's `valid` (`P9_ATTR_*`).
pub(super) mod setattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const CTIME: u32 = 1 << 6;
    pub const ATIME_SET: u32 = 1 << 7;
    pub const MTIME_SET: u32 = 1 << 8;
}

/// Flags of Tlopen and Tlcreate (`P9_DOTL_*`), the same for every architecture.
pub(crate) mod dotl {
    pub const ACCMODE: u32 = 0o3;
    #[cfg(test)]
    pub const WRONLY: u32 = 0o1;
    pub const RDWR: u32 = 0o2;
    pub const EXCL: u32 = 0o200;
    pub const TRUNC: u32 = 0o1000;
    pub const APPEND: u32 = 0o2000;
    pub const DSYNC: u32 = 0o10000;
    pub const DIRECTORY: u32 = 0o200000;
    pub const SYNC: u32 = 0o4000000;
    #[cfg(test)]
    pub const CREATE: u32 = 0o100;
    #[cfg(test)]
    pub const DIRECT: u32 = 0o40000;
    #[cfg(test)]
    pub const NOATIME: u32 = 0o1000000;
}

/// Flag of Tunlinkat: remove a directory (`P9_DOTL_AT_REMOVEDIR`).
pub(super) const AT_REMOVEDIR: u32 = 0x200;

/// Flags of Txattrcreate: those of Linux' setxattr(2).
pub(crate) mod xattr_flag {
    pub const CREATE: u32 = 1;
    pub const REPLACE: u32 = 2;
}

/// File types within a mode (`S_IFMT`), the same numbers on Linux and macOS and on the wire.
pub(super) mod mode {
    pub const FORMAT: u32 = 0o170000;
    pub const FIFO: u32 = 0o010000;
    pub const CHARACTER: u32 = 0o020000;
    pub const DIRECTORY: u32 = 0o040000;
    pub const BLOCK: u32 = 0o060000;
    pub const REGULAR: u32 = 0o100000;
    pub const SYMLINK: u32 = 0o120000;
    pub const SOCKET: u32 = 0o140000;
    pub const SETUID: u32 = 0o4000;
    pub const SETGID: u32 = 0o2000;
    pub const GROUP_EXECUTE: u32 = 0o010;
    pub const PERMISSIONS: u32 = 0o7777;
}

/// Types of directory entries (`DT_*`), the same numbers on Linux and macOS and on the wire.
pub(super) mod dt {
    pub const UNKNOWN: u8 = 0;
    pub const DIR: u8 = 4;
    pub const LNK: u8 = 10;
}

/// Lock types and answers of Tlock and Tgetlock (`P9_LOCK_*`).
pub(super) mod lock {
    pub const READ: u8 = 0;
    pub const WRITE: u8 = 1;
    pub const UNLOCK: u8 = 2;
    pub const SUCCESS: u8 = 0;
    pub const BLOCKED: u8 = 1;
}

/// Errors as they are on the wire: Linux' numbers, whatever the host is.
pub(crate) mod errno {
    pub const EPERM: u32 = 1;
    pub const ENOENT: u32 = 2;
    pub const EIO: u32 = 5;
    pub const ENXIO: u32 = 6;
    pub const EBADF: u32 = 9;
    pub const ENOMEM: u32 = 12;
    pub const EACCES: u32 = 13;
    pub const EBUSY: u32 = 16;
    #[cfg(test)]
    pub const EEXIST: u32 = 17;
    pub const ENODEV: u32 = 19;
    pub const ENOTDIR: u32 = 20;
    pub const EISDIR: u32 = 21;
    pub const EINVAL: u32 = 22;
    pub const ENFILE: u32 = 23;
    pub const EMFILE: u32 = 24;
    pub const ENOSPC: u32 = 28;
    pub const EROFS: u32 = 30;
    pub const ENAMETOOLONG: u32 = 36;
    pub const ENOLCK: u32 = 37;
    pub const ENOTEMPTY: u32 = 39;
    pub const ELOOP: u32 = 40;
    pub const ENODATA: u32 = 61;
    pub const EPROTO: u32 = 71;
    pub const EMSGSIZE: u32 = 90;
    pub const EOPNOTSUPP: u32 = 95;
}

/// An error as it goes into Rlerror: always a number of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WireError(pub u32);

impl From<rustix::io::Errno> for WireError {
    fn from(error: rustix::io::Errno) -> Self {
        Self(crate::sys::ninep::wire_errno(error.raw_os_error()))
    }
}

/// What an operation gives: a value, or the number for Rlerror.
pub(super) type Outcome<T> = Result<T, WireError>;

/// Fails an operation with one of [`errno`].
pub(super) fn fail<T>(number: u32) -> Outcome<T> {
    Err(WireError(number))
}

/// How long a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Names and attributes: a few microseconds on any local file system.
    Quick,
    /// Moves data, waits for a disk or for another request.
    MayBlock,
}

/// Says from the first bytes of a request how long it may take. Right for any bytes: what is no request is refused quickly.
pub fn request_kind(header: &[u8; HEADER_SIZE]) -> RequestKind {
    match header[4] {
        op::TREAD
        | op::TWRITE
        | op::TFSYNC
        | op::TREADDIR
        | op::TFLUSH
        | op::TREMOVE
        | op::TUNLINKAT
        | op::TVERSION => RequestKind::MayBlock,
        _ => RequestKind::Quick,
    }
}

/// Reads the fields of a message one after the other. Running out of bytes is EPROTO, never a panic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Outcome<&'a [u8]> {
        let Some((head, rest)) = self.0.split_at_checked(count) else { return fail(errno::EPROTO) };
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let Some((head, rest)) = self.0.split_first_chunk::<N>() else { return fail(errno::EPROTO) };
        self.0 = rest;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Outcome<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub fn u16(&mut self) -> Outcome<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Outcome<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Outcome<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Any string.
    pub fn string(&mut self) -> Outcome<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    /// A string without zero bytes of at most `max` bytes; a longer one is ENAMETOOLONG, also if the message is cut short.
    fn bounded(&mut self, max: usize) -> Outcome<&'a [u8]> {
        let length = usize::from(self.u16()?);
        if length > max {
            return fail(errno::ENAMETOOLONG);
        }
        let bytes = self.take(length)?;
        if bytes.contains(&0) { fail(errno::EINVAL) } else { Ok(bytes) }
    }

    /// One component of a path: not empty, no `/`, no zero byte, at most 255 bytes. May be `.` or `..`.
    pub fn component(&mut self) -> Outcome<&'a [u8]> {
        let name = self.bounded(NAME_MAX)?;
        if name.is_empty() || name.contains(&b'/') { fail(errno::ENOENT) } else { Ok(name) }
    }

    /// The name of an entry to be made, removed or renamed: a component other than `.` and `..`.
    pub fn entry(&mut self) -> Outcome<&'a [u8]> {
        let name = self.component()?;
        match name {
            b"." => fail(errno::EINVAL),
            b".." => fail(errno::ENOTEMPTY),
            _ => Ok(name),
        }
    }

    /// The target of a symbolic link, which may be anything that fits.
    pub fn link_target(&mut self) -> Outcome<&'a [u8]> {
        let target = self.bounded(LINK_MAX)?;
        if target.is_empty() { fail(errno::ENOENT) } else { Ok(target) }
    }

    /// The name of an extended attribute, possibly empty.
    pub fn xattr_name(&mut self) -> Outcome<&'a [u8]> {
        self.bounded(NAME_MAX)
    }
}

/// A qid: what a client knows a file by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Qid {
    pub kind: u8,
    pub version: u32,
    pub path: u64,
}

/// A small reply while it is put together: everything but the payload of reads. Fits all of them by construction, and
/// drops what would not fit instead of panicking.
pub(super) struct Reply {
    bytes: [u8; Self::CAPACITY],
    length: usize,
}

impl Reply {
    /// Rwalk with 16 qids is the longest at 217 bytes; Rgetattr has 160; a lock's client id is at most 255 bytes.
    const CAPACITY: usize = 320;

    /// A reply to the request `tag` of type `request`, without a size yet.
    pub fn new(request: u8, tag: u16) -> Self {
        let mut reply = Self { bytes: [0; Self::CAPACITY], length: 4 };
        reply.u8(request.wrapping_add(1)).u16(tag);
        reply
    }

    /// Starts anew as Rlerror.
    pub fn error(tag: u16, error: WireError) -> Self {
        let mut reply = Self::new(op::RLERROR - 1, tag);
        reply.u32(error.0);
        reply
    }

    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        if let Some(room) = self.bytes.get_mut(self.length..self.length + bytes.len()) {
            room.copy_from_slice(bytes);
            self.length += bytes.len();
        }
        self
    }

    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    /// A string of at most 255 bytes; the rest is cut off.
    pub fn string(&mut self, value: &[u8]) -> &mut Self {
        let value = value.get(..NAME_MAX).unwrap_or(value);
        self.u16(value.len() as u16).put(value)
    }

    pub fn qid(&mut self, qid: &Qid) -> &mut Self {
        self.u8(qid.kind).u32(qid.version).u64(qid.path)
    }

    /// How many bytes it has so far.
    pub fn len(&self) -> usize {
        self.length
    }

    /// The finished message, followed by `payload` bytes that are already where they belong.
    pub fn finish(&mut self, payload: usize) -> &[u8] {
        let size = (self.length + payload) as u32;
        self.bytes[..4].copy_from_slice(&size.to_le_bytes());
        &self.bytes[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_that_runs_past_the_message_is_refused() {
        assert_eq!(Fields(b"\x05\0abcd").string(), fail(errno::EPROTO));
    }

    #[test]
    fn a_name_of_256_bytes_is_too_long() {
        assert_eq!(Fields(&[0, 1]).component(), fail(errno::ENAMETOOLONG));
    }

    #[test]
    fn a_name_with_a_slash_names_nothing() {
        assert_eq!(Fields(b"\x03\0a/b").component(), fail(errno::ENOENT));
    }

    #[test]
    fn a_name_with_a_zero_byte_is_invalid() {
        assert_eq!(Fields(b"\x03\0a\0b").component(), fail(errno::EINVAL));
    }

    #[test]
    fn a_reply_never_outgrows_its_buffer() {
        let mut reply = Reply::new(op::TWALK, 1);
        for _ in 0..100 {
            reply.u64(0);
        }
        assert!(reply.len() <= Reply::CAPACITY);
    }

    #[test]
    fn fsync_may_block_and_getattr_is_quick() {
        let kind = |op| request_kind(&[7, 0, 0, 0, op, 0, 0]);
        assert_eq!((kind(op::TFSYNC), kind(op::TGETATTR)), (RequestKind::MayBlock, RequestKind::Quick));
    }
}

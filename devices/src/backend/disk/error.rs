//! Why a disk could not be opened, in words for the person who asked for it.

use std::io;
use std::path::PathBuf;

use super::config::DiskConfigError;

/// Why a disk could not be opened. Each message names the file, what is wrong with it and what would work.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The options are not valid.
    #[error(transparent)]
    Config(#[from] DiskConfigError),
    /// There is no such file.
    #[error("disk {}: there is no such file; a new image is made with 'qemu-img create'", .0.display())]
    Missing(PathBuf),
    /// A directory.
    #[error("disk {}: it is a directory; a disk is an image file or a block device", .0.display())]
    Directory(PathBuf),
    /// A pipe, a socket, a terminal.
    #[error("disk {}: it is neither a file nor a block device", .0.display())]
    NotAFile(PathBuf),
    /// The file may be read, but not written.
    #[error("disk {}: it may not be written; add 'ro' to open it read-only", path.display())]
    NotWritable {
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// The file cannot be opened.
    #[error("disk {}: it cannot be opened", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// The file can be opened but not read.
    #[error("disk {}: it cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// Somebody writes to it, or reads it while we want to write.
    #[error(
        "disk {}: another process uses it{}; close that one, or say lock=off if it only ever reads",
        path.display(),
        if *writing { "" } else { " and may write to it" }
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// Whether we wanted to write.
        writing: bool,
    },
    /// The file cannot be locked at all.
    #[error("disk {}: it cannot be locked; lock=off does without", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// The page cache cannot be bypassed.
    #[error("disk {}: its file system has no direct I/O; use cache=writeback", path.display())]
    NoDirect {
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// An image of a format that only others read.
    #[error(
        "disk {}: it looks like a {format} image, which is not supported; convert it with 'qemu-img convert -O qcow2', \
         or say format=raw if these bytes are the disk's own",
        path.display()
    )]
    UnsupportedFormat {
        /// The file.
        path: PathBuf,
        /// Its name.
        format: &'static str,
    },
    /// A qcow2 image that is damaged, or uses what is not supported.
    #[error("disk {}: {reason}", path.display())]
    Qcow2 {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: Qcow2Error,
    },
    /// The image's own tables could not be opened.
    #[error("disk {}: it is a damaged qcow2 image", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What imago says.
        source: io::Error,
    },
    /// The backing image could not be opened.
    #[error("disk {}: its backing image cannot be used", path.display())]
    Backing {
        /// The image that names it.
        path: PathBuf,
        /// What is wrong with the other one.
        source: Box<DiskError>,
    },
    /// The image names a backing image, and that was not wanted.
    #[error("disk {}: it names the backing image '{name}', which backing=off forbids", path.display())]
    BackingForbidden {
        /// The image.
        path: PathBuf,
        /// The name in its header.
        name: String,
    },
    /// The backing image is no file.
    #[error("disk {}: its backing image '{name}' is not a file name; only files are supported", path.display())]
    BackingProtocol {
        /// The image.
        path: PathBuf,
        /// The name in its header.
        name: String,
    },
    /// The backing image has a format that we do not read.
    #[error("disk {}: its backing image has the format '{format}'; raw and qcow2 are supported", path.display())]
    BackingFormat {
        /// The image.
        path: PathBuf,
        /// The format in its header.
        format: String,
    },
    /// The header does not say what the backing image is, and guessing would trust what a guest may have written.
    #[error(
        "disk {}: it does not say which format its backing image {} has, which looks like {found}; \
         if that is so, say it with 'qemu-img rebase -u -b {} -F {found} {}'",
        path.display(), backing.display(), backing.display(), path.display()
    )]
    BackingUnknown {
        /// The image.
        path: PathBuf,
        /// The backing image.
        backing: PathBuf,
        /// What its first bytes look like.
        found: &'static str,
    },
    /// A backing image that is behind itself.
    #[error("disk {}: its chain of backing images comes back to it", .0.display())]
    BackingLoop(PathBuf),
    /// A chain that never ends.
    #[error("disk {}: it is the {depth}th image of its chain, and {max} is the most", path.display(), max = super::chain::MAX_DEPTH)]
    BackingDepth {
        /// The image at which we gave up.
        path: PathBuf,
        /// How many images are before it, and it.
        depth: usize,
    },
}

/// What is wrong with a qcow2 header, or in it and not supported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Qcow2Error {
    /// Not a qcow2 image at all.
    #[error("it is not a qcow2 image: its first bytes are {0:02x?}")]
    Magic([u8; 4]),
    /// The file ends within its header or a table that the header names.
    #[error("it is a damaged qcow2 image: the file ends before its {0} does")]
    Truncated(&'static str),
    /// A version from the past or the future.
    #[error("it is a qcow2 image of version {0}; 2 and 3 are supported")]
    Version(u32),
    /// A field that cannot be.
    #[error("it is a damaged qcow2 image: its {field} is {value:#x}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// A name that is no UTF-8.
    #[error("it is a damaged qcow2 image: its {0} is not text")]
    Text(&'static str),
    /// Refcounts may be wrong.
    #[error("it is a qcow2 image that was not closed properly; repair it with 'qemu-img check -r all'")]
    Dirty,
    /// Somebody found it damaged.
    #[error("it is a qcow2 image that is marked as corrupt; repair it with 'qemu-img check -r all'")]
    Corrupt,
    /// Encrypted by QEMU.
    #[error("it is an encrypted qcow2 image, which is not supported; convert it with 'qemu-img convert'")]
    Encrypted,
    /// Guest data in another file.
    #[error(
        "it is a qcow2 image with an external data file, which is not supported; convert it with 'qemu-img convert -O qcow2'"
    )]
    DataFile,
    /// Compressed with something that we cannot decompress.
    #[error(
        "it is a qcow2 image compressed with zstd, which is not supported; convert it with \
         'qemu-img convert -O qcow2 -o compression_type=zlib'"
    )]
    Zstd,
    /// Compressed with something that nobody knows.
    #[error("it is a qcow2 image with compression type {0}, which is not supported")]
    Compression(u8),
    /// Subclusters.
    #[error(
        "it is a qcow2 image with extended L2 entries, which is not supported; convert it with \
         'qemu-img convert -O qcow2 -o extended_l2=off'"
    )]
    ExtendedL2,
    /// Something newer than this program.
    #[error("it is a qcow2 image with unknown incompatible features: {0:#x}")]
    Features(u64),
}

//! The arm64 kernel `Image`, plain or packed (gzip, zstd, EFI zboot): what its header says and how it gets into guest
//! memory. Works on any host; knows nothing of other kernel formats but their names ([`WrongImage`]).
//!
//! Source: Linux Documentation/arch/arm64/booting.rst, "Call the kernel image"; drivers/firmware/efi/libstub/zboot-header.S.

mod identify;
mod packing;
mod pe;

use std::fmt;
use std::path::{Path, PathBuf};

use hvrun_arch::GuestMemory;
use hvrun_arch::aarch64::layout::Window;

pub use identify::WrongImage;
pub use packing::{Codec, Packing};

use crate::BootError;
use crate::file::{FileError, Role, SourceFile, write_to};
use identify::identify;
use packing::{Container, Decoder, unpack_head};

/// Length of the `Image` header.
const HEADER_LEN: usize = 64;
/// Where the header's magic number is.
const MAGIC_OFFSET: usize = 56;
/// The header's magic number.
const MAGIC: &[u8; 4] = b"ARM\x64";
/// How much of the beginning is looked at: the header, a bzImage's magic at 0x202, and the PE section table.
const HEAD_LEN: usize = 4096;
/// `text_offset` of kernels before 3.17, whose header does not say `image_size`.
const LEGACY_TEXT_OFFSET: u64 = 0x8_0000;
/// Room for the BSS of a kernel whose header does not say `image_size`. Theirs were below 1 MiB.
const LEGACY_BSS: u64 = 16 << 20;
/// Largest packed kernel without `image_size`; without it, only unpacking tells how large it is.
const LEGACY_MAX: u64 = 256 << 20;
/// What may follow the image proper in a packed kernel, as a signature does.
const TRAILER_MAX: u64 = 1 << 20;
/// How much is unpacked at a time.
const CHUNK: usize = 256 << 10;

/// Why a kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Its file cannot be used at all.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is something else.
    #[error(
        "the kernel {path:?} is {}{what}; what boots here is a little-endian arm64 Linux Image, plain, packed with gzip \
         or zstd, or as EFI zboot", packing.holding()
    )]
    Wrong {
        /// The path asked for.
        path: PathBuf,
        /// How it is packed.
        packing: Packing,
        /// What it is.
        what: WrongImage,
    },
    /// Its end is missing.
    #[error(
        "the kernel {path:?} ({packing}) is truncated: {has} bytes are there, its header describes {needs}"
    )]
    Truncated {
        /// The path asked for.
        path: PathBuf,
        /// How it is packed.
        packing: Packing,
        /// How many bytes are there.
        has: u64,
        /// How many there should be at least.
        needs: u64,
    },
    /// An EFI zboot image that is packed in a way that is not understood.
    #[error("the kernel {path:?} is an EFI zboot image packed with {codec:?}; gzip and zstd are understood")]
    Codec {
        /// The path asked for.
        path: PathBuf,
        /// The name of the compression.
        codec: String,
    },
    /// It cannot be unpacked.
    #[error("the kernel {path:?} cannot be unpacked, its {codec} data is damaged: {reason}")]
    Damaged {
        /// The path asked for.
        path: PathBuf,
        /// The compression.
        codec: Codec,
        /// What is wrong.
        reason: String,
    },
    /// There is more in it than a kernel.
    #[error(
        "the kernel {path:?} ({packing}) is damaged: it unpacks to more than the {limit} bytes it may have"
    )]
    Overlong {
        /// The path asked for.
        path: PathBuf,
        /// How it is packed.
        packing: Packing,
        /// Most bytes it may have.
        limit: u64,
    },
}

/// The page size that a kernel says it was built for. Every backend offers 4 KiB; not every host CPU has the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB.
    Kib4,
    /// 16 KiB.
    Kib16,
    /// 64 KiB.
    Kib64,
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageSize::Kib4 => "4 KiB",
            PageSize::Kib16 => "16 KiB",
            PageSize::Kib64 => "64 KiB",
        })
    }
}

/// The header's fields that matter, as written; all are little-endian whatever the kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    text_offset: u64,
    image_size: u64,
    flags: u64,
}

impl Header {
    /// Kernel endianness: 1 is big.
    const FLAG_BIG_ENDIAN: u64 = 1;
    /// Kernel page size: bits 1-2.
    const FLAG_PAGE_SIZE_SHIFT: u32 = 1;
    /// Kernel physical placement: 1 is anywhere, 0 is as close to the base of DRAM as possible.
    const FLAG_ANYWHERE: u64 = 1 << 3;

    /// The header of what begins with `head`, if it is an arm64 `Image`.
    fn parse(head: &[u8]) -> Option<Header> {
        if head.get(MAGIC_OFFSET..HEADER_LEN - 4)? != MAGIC {
            return None;
        }
        Some(Header { text_offset: le64(head, 8)?, image_size: le64(head, 16)?, flags: le64(head, 24)? })
    }

    fn big_endian(self) -> bool {
        self.flags & Self::FLAG_BIG_ENDIAN != 0
    }

    fn page_size(self) -> Option<PageSize> {
        match (self.flags >> Self::FLAG_PAGE_SIZE_SHIFT) & 3 {
            1 => Some(PageSize::Kib4),
            2 => Some(PageSize::Kib16),
            3 => Some(PageSize::Kib64),
            _ => None,
        }
    }
}

/// A kernel whose file is open and whose header has been read and found good.
#[derive(Debug)]
pub struct Kernel {
    source: SourceFile,
    container: Container,
    header: Header,
    /// How many bytes the unpacked image has at least, by its PE section table.
    least: u64,
    /// How many bytes the unpacked image has, if that could be told without unpacking it.
    unpacked: Option<u64>,
}

impl Kernel {
    /// Opens the kernel at `path` and reads its header, unpacking no more than that.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, KernelError> {
        let source = SourceFile::open(Role::Kernel, path.as_ref())?;
        let raw_head = source.head(HEAD_LEN)?;
        let container = Container::detect(&source, &raw_head)?;
        let (packing, path) = (container.packing, source.path().to_owned());
        let head = match packing.codec() {
            None => raw_head,
            Some(_) => unpack_head(&source, container, HEAD_LEN)?,
        };
        let header = match Header::parse(&head) {
            Some(header) if header.big_endian() => {
                return Err(KernelError::Wrong { path, packing, what: WrongImage::BigEndian });
            }
            Some(header) => header,
            None => return Err(KernelError::Wrong { path, packing, what: identify(&head) }),
        };
        if head.len() < HEADER_LEN {
            return Err(KernelError::Truncated {
                path,
                packing,
                has: head.len() as u64,
                needs: HEADER_LEN as u64,
            });
        }
        // The header's own instructions branch over it: without one behind it nothing can run.
        let least = pe::end_of_sections(&head).unwrap_or(0).max(HEADER_LEN as u64 + 4);
        let unpacked = match packing.codec() {
            None => Some(source.len()),
            // Placement must know the size, and for so old a kernel only its last byte tells.
            Some(_) if header.image_size == 0 => Some(unpacked_len(&source, container)?),
            Some(_) => None,
        };
        let kernel = Kernel { source, container, header, least, unpacked };
        if let Some(has) = unpacked {
            kernel.check_length(has)?;
        }
        Ok(kernel)
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// How it is packed.
    pub fn packing(&self) -> Packing {
        self.container.packing
    }

    /// How far behind a 2 MiB boundary it wants to lie, in bytes.
    pub fn text_offset(&self) -> u64 {
        if self.header.image_size == 0 { LEGACY_TEXT_OFFSET } else { self.header.text_offset }
    }

    /// How many bytes of memory are the kernel's from its first byte on, its BSS included.
    pub fn footprint(&self) -> u64 {
        match self.header.image_size {
            0 => self.unpacked.unwrap_or(LEGACY_MAX).saturating_add(LEGACY_BSS),
            size => size,
        }
    }

    /// The page size it was built for, if it says.
    pub fn page_size(&self) -> Option<PageSize> {
        self.header.page_size()
    }

    /// Whether it may lie anywhere in RAM; otherwise it loses the memory below it.
    pub fn runs_anywhere(&self) -> bool {
        self.header.flags & Header::FLAG_ANYWHERE != 0
    }

    /// Puts the image at the beginning of `window`, which is [`footprint`](Self::footprint) long. The BSS is not written.
    pub(crate) fn copy_to(&self, memory: &GuestMemory, window: Window) -> Result<(), BootError> {
        if self.packing().codec().is_some() {
            return self.unpack_to(memory, window);
        }
        // What lies behind image_size (a signature, say) is not the kernel's and has no place.
        let size = self.source.len().min(window.size);
        self.source.copy_to(memory, Window::new(window.base, size))
    }

    fn unpack_to(&self, memory: &GuestMemory, window: Window) -> Result<(), BootError> {
        let mut decoder = Decoder::new(&self.source, self.container)?;
        let limit = window.size.saturating_add(TRAILER_MAX);
        let mut chunk = vec![0; CHUNK];
        let mut total = 0;
        loop {
            let len = decoder.fill(&mut chunk)?;
            if len == 0 {
                return Ok(self.check_length(total)?);
            }
            let room = window.size.saturating_sub(total);
            let keep = usize::try_from(room).unwrap_or(usize::MAX).min(len);
            if keep > 0 {
                write_to(memory, window, total, &chunk[..keep], "kernel")?;
            }
            total += len as u64;
            if total > limit {
                return Err(overlong(&self.source, self.container, limit).into());
            }
        }
    }

    /// Whether the unpacked length covers all that must come from the file (the BSS need not).
    fn check_length(&self, has: u64) -> Result<(), KernelError> {
        if has >= self.least {
            return Ok(());
        }
        let path = self.path().to_owned();
        Err(KernelError::Truncated { path, packing: self.packing(), has, needs: self.least })
    }
}

impl fmt::Display for Kernel {
    /// One line for a log: how it is packed, how large it is, its page size.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}), {} bytes with its BSS", self.packing(), self.footprint())?;
        match self.page_size() {
            Some(size) => write!(f, ", {size} pages"),
            None => f.write_str(", page size not stated"),
        }
    }
}

/// How many bytes it unpacks to, at most [`LEGACY_MAX`].
fn unpacked_len(source: &SourceFile, container: Container) -> Result<u64, KernelError> {
    let mut decoder = Decoder::new(source, container)?;
    let mut chunk = vec![0; CHUNK];
    let mut total = 0;
    loop {
        match decoder.fill(&mut chunk)? {
            0 => return Ok(total),
            len => total += len as u64,
        }
        if total > LEGACY_MAX {
            return Err(overlong(source, container, LEGACY_MAX));
        }
    }
}

fn overlong(source: &SourceFile, container: Container, limit: u64) -> KernelError {
    KernelError::Overlong { path: source.path().to_owned(), packing: container.packing, limit }
}

/// The little-endian 16-bit number at `at`.
fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|number| u16::from_le_bytes(*number))
}

/// The little-endian 32-bit number at `at`.
fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|number| u32::from_le_bytes(*number))
}

/// The little-endian 64-bit number at `at`.
fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|number| u64::from_le_bytes(*number))
}

#[cfg(test)]
mod tests;

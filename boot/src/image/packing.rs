//! How a kernel is packed, and unpacking it bit by bit. Not an archive tool: a damaged stream is an error, what follows a
//! whole one is ignored, and memory use is bounded by the window sizes of the formats.

use std::error::Error;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::bufread::GzDecoder;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::{KernelError, le32};
use crate::file::{FileRange, SourceFile};

/// A compression that kernels come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Codec {
    /// How the format's data begins.
    fn magic(self) -> &'static [u8] {
        match self {
            Codec::Gzip => b"\x1f\x8b",
            Codec::Zstd => b"\x28\xb5\x2f\xfd",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Codec::Gzip => "gzip",
            Codec::Zstd => "zstd",
        })
    }
}

/// How a kernel is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all: the file is the image.
    Plain,
    /// The file is one compressed stream.
    Packed(Codec),
    /// An EFI program that unpacks the image it carries.
    Zboot(Codec),
}

impl Packing {
    /// The compression, if there is one.
    pub fn codec(self) -> Option<Codec> {
        match self {
            Packing::Plain => None,
            Packing::Packed(codec) | Packing::Zboot(codec) => Some(codec),
        }
    }

    /// How to begin a sentence about what is inside.
    pub(super) fn holding(self) -> String {
        match self {
            Packing::Plain => String::new(),
            Packing::Packed(codec) => format!("{codec} data, and what it holds is "),
            Packing::Zboot(codec) => format!("an EFI zboot image ({codec}), and what it holds is "),
        }
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Packing::Plain => f.write_str("plain"),
            Packing::Packed(codec) => codec.fmt(f),
            Packing::Zboot(codec) => write!(f, "EFI zboot, {codec}"),
        }
    }
}

/// Where the image is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) packing: Packing,
    offset: u64,
    len: u64,
}

impl Container {
    /// Finds out how `source`, which begins with `head`, is packed.
    pub(super) fn detect(source: &SourceFile, head: &[u8]) -> Result<Self, KernelError> {
        let whole = |packing| Container { packing, offset: 0, len: source.len() };
        if head.starts_with(b"MZ") && head.get(4..8) == Some(b"zimg") {
            return Self::zboot(source, head);
        }
        for codec in [Codec::Gzip, Codec::Zstd] {
            if head.starts_with(codec.magic()) {
                return Ok(whole(Packing::Packed(codec)));
            }
        }
        Ok(whole(Packing::Plain))
    }

    /// The EFI zboot header: payload offset at 8, payload size at 12, name of the compression at 24 (zboot-header.S).
    fn zboot(source: &SourceFile, head: &[u8]) -> Result<Self, KernelError> {
        const NAME: std::ops::Range<usize> = 24..56;
        let path = source.path().to_owned();
        let (Some(offset), Some(len), Some(name)) = (le32(head, 8), le32(head, 12), head.get(NAME)) else {
            let (has, needs) = (head.len() as u64, NAME.end as u64);
            return Err(KernelError::Truncated { path, packing: Packing::Plain, has, needs });
        };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let codec = match name {
            b"gzip" => Codec::Gzip,
            b"zstd" | b"zstd22" => Codec::Zstd,
            _ => return Err(KernelError::Codec { path, codec: String::from_utf8_lossy(name).into_owned() }),
        };
        let (packing, offset, len) = (Packing::Zboot(codec), u64::from(offset), u64::from(len));
        if offset + len > source.len() {
            return Err(KernelError::Truncated { path, packing, has: source.len(), needs: offset + len });
        }
        Ok(Container { packing, offset, len })
    }
}

/// Compressed bytes on their way out of the file.
type Source<'a> = BufReader<FileRange<'a>>;

/// One member (gzip) or frame (zstd).
enum Stream<'a> {
    Gzip(Box<GzDecoder<Source<'a>>>),
    Zstd(Source<'a>, Box<FrameDecoder>),
    End,
}

/// Unpacks all members or frames of a container one after the other.
pub(super) struct Decoder<'a> {
    path: &'a Path,
    codec: Codec,
    stream: Stream<'a>,
}

impl<'a> Decoder<'a> {
    /// Begins to unpack. A container that is not packed has nothing to unpack and ends at once.
    pub(super) fn new(source: &'a SourceFile, container: Container) -> Result<Self, KernelError> {
        let codec = container.packing.codec();
        let mut decoder =
            Decoder { path: source.path(), codec: codec.unwrap_or(Codec::Gzip), stream: Stream::End };
        if codec.is_some() {
            decoder.begin(source.range(container.offset, container.len))?;
        }
        Ok(decoder)
    }

    /// Unpacks until `buf` is full or there is no more, and says how many bytes are in `buf`.
    pub(super) fn fill(&mut self, buf: &mut [u8]) -> Result<usize, KernelError> {
        let mut filled = 0;
        while filled < buf.len() {
            let result = match &mut self.stream {
                Stream::Gzip(gzip) => gzip.read(&mut buf[filled..]),
                Stream::Zstd(source, decoder) => read_zstd(source, decoder, &mut buf[filled..]),
                Stream::End => break,
            };
            match result {
                Ok(0) => self.next_stream()?,
                Ok(len) => filled += len,
                Err(error) => return Err(self.damaged(&error)),
            }
        }
        Ok(filled)
    }

    fn begin(&mut self, range: FileRange<'a>) -> Result<(), KernelError> {
        let mut source = BufReader::new(range);
        self.stream = match self.codec {
            Codec::Gzip => Stream::Gzip(Box::new(GzDecoder::new(source))),
            Codec::Zstd => {
                let mut decoder = FrameDecoder::new();
                decoder.init(&mut source).map_err(|error| self.damaged(&error))?;
                Stream::Zstd(source, Box::new(decoder))
            }
        };
        Ok(())
    }

    /// Goes on behind the stream that has ended: another one may follow, and everything else is ignored.
    fn next_stream(&mut self) -> Result<(), KernelError> {
        let source = match std::mem::replace(&mut self.stream, Stream::End) {
            Stream::Gzip(gzip) => gzip.into_inner(),
            Stream::Zstd(source, decoder) => {
                let stored = decoder.get_checksum_from_data();
                if stored.is_some() && stored != decoder.get_calculated_checksum() {
                    return Err(self.damage("its checksum does not match".to_owned()));
                }
                source
            }
            Stream::End => return Ok(()),
        };
        let read_ahead = source.buffer().len() as u64;
        let mut rest = source.into_inner();
        rest.rewind(read_ahead);
        let magic = self.codec.magic();
        let mut next = vec![0; magic.len()];
        if rest.clone().read_exact(&mut next).is_ok() && next == magic {
            self.begin(rest)?;
        }
        Ok(())
    }

    fn damaged(&self, error: &(dyn Error + 'static)) -> KernelError {
        self.damage(match ends_early(error) {
            true => format!("it ends too early ({error})"),
            false => error.to_string(),
        })
    }

    fn damage(&self, reason: String) -> KernelError {
        KernelError::Damaged { path: self.path.to_owned(), codec: self.codec, reason }
    }
}

/// Whether a decoder gave up for want of input.
fn ends_early(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

/// The unpacked bytes at the beginning, `len` if there are so many, without unpacking much more than that.
pub(super) fn unpack_head(
    source: &SourceFile,
    container: Container,
    len: usize,
) -> Result<Vec<u8>, KernelError> {
    if container.packing.codec() == Some(Codec::Zstd)
        && let Ok(mut head) = zstd_first_block(source.range(container.offset, container.len))
        && head.len() >= len
    {
        head.truncate(len);
        return Ok(head);
    }
    let mut decoder = Decoder::new(source, container)?;
    let mut head = vec![0; len];
    let filled = decoder.fill(&mut head)?;
    head.truncate(filled);
    Ok(head)
}

/// What the first block of a zstd frame holds. The decoder lets go of nothing before a whole window (128 MiB, as kernels
/// are packed) is full or the frame has ended; so the frame is ended behind its first block.
fn zstd_first_block(range: FileRange<'_>) -> io::Result<Vec<u8>> {
    /// Bit 0 of a block header (RFC 8878, 3.1.1.2.1).
    const LAST_BLOCK: u8 = 1;
    /// Largest block (RFC 8878, 3.1.1.2.4).
    const BLOCK_MAX: u64 = 128 << 10;
    let mut source = BufReader::new(range);
    let mut decoder = FrameDecoder::new();
    decoder.init(&mut source).map_err(io::Error::other)?;
    let mut header = [0; 3];
    source.read_exact(&mut header)?;
    header[0] |= LAST_BLOCK;
    decoder
        .decode_blocks(header.as_slice().chain(source), BlockDecodingStrategy::UptoBlocks(1))
        .map_err(io::Error::other)?;
    let mut block = Vec::new();
    decoder.take(BLOCK_MAX).read_to_end(&mut block)?;
    Ok(block)
}

/// Unpacks as much as `buf` takes, at least one byte unless the frame has ended.
fn read_zstd(source: &mut Source<'_>, decoder: &mut FrameDecoder, buf: &mut [u8]) -> io::Result<usize> {
    while decoder.can_collect() == 0 && !decoder.is_finished() {
        decoder
            .decode_blocks(&mut *source, BlockDecodingStrategy::UptoBlocks(1))
            .map_err(io::Error::other)?;
    }
    decoder.read(buf)
}

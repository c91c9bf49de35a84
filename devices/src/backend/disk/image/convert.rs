//! Copies a disk into a new image, or into one that is there. Holes and zeros of the source take no room in the copy.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::{BlockBackend, Disk, ImageFormat};
use super::ImageError;
use super::create::NewImage;
use super::target::Target;
use super::writer::{Qcow2Writer, is_zero};

/// How much is looked at at a time: a multiple of every cluster size.
const WINDOW: u64 = 2 << 20;
/// In a raw copy, as many zeros as this at a multiple of this become a hole.
const HOLE: usize = 4096;

/// How a copy is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConvertOptions {
    /// qcow2: compress the clusters.
    pub compress: bool,
    /// Wait until the copy is on storage before it gets its name.
    pub sync: bool,
}

/// Where a window of the source goes.
trait Sink {
    /// Takes `bytes` at `offset`.
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes a range read as zeros.
    fn zeros(&mut self, offset: u64, len: u64) -> io::Result<()>;
}

/// Makes `image` with what is in `source`, whose size it has if that is larger than the layout's. `progress` hears how many bytes
/// of how many are done.
///
/// # Errors
/// What the host says, or that such an image cannot be. The old file of that name is then as it was.
pub fn convert(
    source: &Disk,
    image: &NewImage,
    options: ConvertOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), ImageError> {
    image.check()?;
    let target = Target::new(&image.path)?;
    let layout = image.rounded();
    match image.format {
        ImageFormat::Raw => {
            image.reserve(&target, layout.size)?;
            let mut sink = RawSink { target: &target };
            copy(source, &image.path, &mut sink, progress)?;
        }
        ImageFormat::Qcow2 => {
            let mut sink = Qcow2Sink {
                writer: Qcow2Writer::new(target.file(), &layout),
                compress: options.compress.then_some(layout.cluster_size() as usize),
            };
            copy(source, &image.path, &mut sink, progress)?;
            let len = sink.writer.finish().map_err(ImageError::io(&image.path, "written"))?;
            image.reserve(&target, len)?;
        }
    }
    target.finish(options.sync).map_err(ImageError::io(&image.path, "written"))
}

/// Writes what is in `source` to `target`, a disk that is at least as large; with `blank`, it is known to be all zeros.
///
/// # Errors
/// What the host says. The target then has a part of it.
pub fn copy_into(
    source: &Disk,
    target: &Disk,
    blank: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), ImageError> {
    if target.capacity() < source.capacity() {
        return Err(ImageError::unsuitable(
            target.path(),
            format!(
                "output file is smaller than input file: it has {} bytes of {}",
                target.capacity(),
                source.capacity()
            ),
        ));
    }
    copy(source, target.path(), &mut DiskSink { target, blank }, progress)?;
    target.flush().map_err(ImageError::io(target.path(), "written"))
}

fn copy(
    source: &Disk,
    target: &Path,
    sink: &mut dyn Sink,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), ImageError> {
    let size = source.capacity();
    let mut buffer = vec![0; WINDOW as usize];
    let mut offset = 0;
    progress(0, size);
    while offset < size {
        let extent = source.extent(offset, size - offset).map_err(ImageError::io(source.path(), "read"))?;
        let whole = extent.length - extent.length % WINDOW;
        let len = if extent.is_zero() && (whole > 0 || extent.length == size - offset) {
            let len = if extent.length == size - offset { extent.length } else { whole };
            sink.zeros(offset, len).map_err(ImageError::io(target, "written"))?;
            len
        } else {
            let window = &mut buffer[..WINDOW.min(size - offset) as usize];
            fill(source, window, offset).map_err(ImageError::io(source.path(), "read"))?;
            sink.data(offset, window).map_err(ImageError::io(target, "written"))?;
            window.len() as u64
        };
        offset += len;
        progress(offset, size);
    }
    Ok(())
}

/// Reads a window, except for what is zeros anyway.
fn fill(source: &Disk, window: &mut [u8], start: u64) -> io::Result<()> {
    let mut done = 0;
    while done < window.len() {
        let at = start + done as u64;
        let extent = source.extent(at, (window.len() - done) as u64)?;
        let end = done + extent.length as usize;
        if extent.is_zero() {
            window[done..end].fill(0);
        } else {
            source.read_bytes(&mut window[done..end], at)?;
        }
        done = end;
    }
    Ok(())
}

/// Calls `each` with every run of blocks of `block` bytes that are all zeros, or all not.
fn runs<'a>(
    bytes: &'a [u8],
    block: usize,
    mut each: impl FnMut(usize, &'a [u8], bool) -> io::Result<()>,
) -> io::Result<()> {
    let mut start = 0;
    let mut rest = bytes;
    while !rest.is_empty() {
        let zero = is_zero(&rest[..block.min(rest.len())]);
        let blocks = rest.chunks(block).take_while(|chunk| is_zero(chunk) == zero);
        let (run, after) = rest.split_at(blocks.map(<[u8]>::len).sum());
        each(start, run, zero)?;
        start += run.len();
        rest = after;
    }
    Ok(())
}

/// A new raw image, long enough already.
struct RawSink<'a> {
    target: &'a Target,
}

impl Sink for RawSink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // A device has old bytes where a new file has none.
        let old = self.target.device_size().is_some();
        runs(bytes, HOLE, |start, run, zero| {
            if zero && !old { Ok(()) } else { self.target.file().write_all_at(run, offset + start as u64) }
        })
    }

    fn zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        if self.target.device_size().is_none() {
            return Ok(());
        }
        let zeros = vec![0; WINDOW as usize];
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let count = WINDOW.min(end - at);
            self.target.file().write_all_at(&zeros[..count as usize], at)?;
            at += count;
        }
        Ok(())
    }
}

/// A new qcow2 image.
struct Qcow2Sink<'a> {
    writer: Qcow2Writer<'a>,
    /// The cluster size, if clusters are to be compressed.
    compress: Option<usize>,
}

impl Sink for Qcow2Sink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let Some(cluster) = self.compress else { return self.writer.write(offset, bytes) };
        let mut at = offset;
        for bytes in bytes.chunks(cluster) {
            self.writer.write_compressed(at, bytes)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    fn zeros(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

/// An image that was there before.
struct DiskSink<'a> {
    target: &'a Disk,
    blank: bool,
}

impl Sink for DiskSink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        runs(bytes, 1 << 16, |start, run, zero| {
            let at = offset + start as u64;
            if zero { self.zeros(at, run.len() as u64) } else { self.target.write_bytes(run, at) }
        })
    }

    fn zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        if self.blank { Ok(()) } else { self.target.write_zeroes(offset, len, true) }
    }
}

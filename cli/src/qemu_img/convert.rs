//! `qemu-img convert`.

use std::path::{Path, PathBuf};

use hvrun_vmm::disk::image::{self, ConvertOptions, NewImage};
use hvrun_vmm::disk::{BlockBackend, CacheMode, Disk, ImageFormat};

use super::create;
use super::fail::{Fail, Result};
use super::options::{self, CreateOptions};
use super::print;
use super::progress::Progress;
use super::words::Words;

pub fn run(words: &Words) -> Result<u8> {
    let named = words.value("O").unwrap_or("raw");
    let format = options::format(named, |name| Fail::new(format!("Unknown file format {name}")))?;
    if options::wants_help(words.values("o")) {
        return print(&options::help(format));
    }
    let (from, to) = match &words.rest[..] {
        [from, to] => (from, to),
        [] | [_] => return Err(Fail::new("Must specify image file name")),
        _ => {
            return Err(Fail::new(
                "Concatenating several images is not supported; give one source and one target",
            ));
        }
    };
    let wanted = options::parse(words.values("o"), format, to)?;
    let compress = words.has("c");
    if compress && format == ImageFormat::Raw {
        return Err(Fail::new("Compression not supported for this file format"));
    }
    if wanted.backing_file.is_some() || wanted.backing_format.is_some() {
        return Err(Fail::new("a converted image has all data itself; backing_file is for create"));
    }
    if wanted.size.is_some() || wanted.preallocate {
        return Err(Fail::new(
            "size and preallocation=metadata are not supported for convert; use resize afterwards",
        ));
    }
    let source_format = options::source_format(words.value("f"), from)?;
    let source = image::open(Path::new(from), source_format, !words.has("U"))?;
    let mut progress = Progress::new(words.has("p") && !words.has("q"));
    let mut update = |done, total| progress.update(done, total);
    if words.has("n") {
        into_existing(words, &source, Path::new(to), format, &mut update)?;
    } else {
        if words.has("target-is-zero") {
            return Err(Fail::new("--target-is-zero requires use of -n flag"));
        }
        let image = NewImage {
            path: PathBuf::from(to),
            format,
            layout: layout(&wanted, source.capacity()),
            preallocate: false,
        };
        let sync = wants_sync(words)?;
        image::convert(&source, &image, ConvertOptions { compress, sync }, &mut update)?;
    }
    progress.finish();
    Ok(0)
}

fn layout(wanted: &CreateOptions, size: u64) -> image::Layout {
    create::layout(wanted, size)
}

fn into_existing(
    words: &Words,
    source: &Disk,
    to: &Path,
    format: ImageFormat,
    update: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    if words.has("c") {
        return Err(Fail::new("-c needs a new image; it does not go with -n"));
    }
    let cache = if wants_sync(words)? { CacheMode::Writeback } else { CacheMode::Unsafe };
    let target = image::open_writable(to, Some(format), cache)?;
    image::copy_into(source, &target, words.has("target-is-zero"), update)?;
    Ok(())
}

/// Whether `-t` asks for data to be on storage at the end. By default it need not be.
pub fn wants_sync(words: &Words) -> Result<bool> {
    match words.value("t") {
        None | Some("unsafe") => Ok(false),
        Some("none" | "writeback" | "writethrough" | "directsync") => Ok(true),
        Some(_) => Err(Fail::new(
            "Invalid cache option: it can be none, writeback, writethrough, directsync, unsafe",
        )),
    }
}

//! `qemu-img create`.

use std::path::{Path, PathBuf};

use hvrun_vmm::disk::ImageFormat;
use hvrun_vmm::disk::image::{self, Layout, NewImage};

use super::fail::{Fail, Result};
use super::options::{self, CreateOptions};
use super::print;
use super::size;
use super::words::Words;

/// QEMU's size of a cluster.
const CLUSTER_SIZE: u64 = 65536;

pub fn run(words: &Words) -> Result<u8> {
    let named = words.value("f").unwrap_or("raw");
    if options::wants_help(words.values("o")) {
        return print(&options::help(options::format(named, |name| {
            Fail::new(format!("Unknown file format {name}"))
        })?));
    }
    let (path, size_text) = match &words.rest[..] {
        [] => return Err(Fail::usage("Expecting image file name")),
        [path] => (path, None),
        [path, size] => (path, Some(size)),
        [_, _, other, ..] => return Err(Fail::usage(format!("Unexpected argument: {other}"))),
    };
    let format = options::format(named, |name| Fail::new(format!("{path}: Unknown file format {name}")))?;
    let mut wanted = options::parse(words.values("o"), format, path)?;
    if let Some(text) = size_text {
        wanted.size = Some(size::parse(text).map_err(size::SizeError::image_size)?);
    }
    if let Some(backing) = words.value("b") {
        wanted.backing_file = Some(backing.to_owned());
    }
    if let Some(format) = words.value("F") {
        wanted.backing_format = Some(format.to_owned());
    }
    if format == ImageFormat::Raw && wanted.backing_file.is_some() {
        return Err(Fail::new(format!("{path}: Backing file not supported for file format 'raw'")));
    }
    let unsafe_backing = words.has("u");
    let size = match check_backing(path, &wanted, unsafe_backing)? {
        _ if wanted.size.is_some() => wanted.size,
        size => size,
    };
    let size = size.ok_or_else(|| Fail::new(format!("{path}: Image creation needs a size parameter")))?;
    let image = NewImage {
        path: PathBuf::from(path),
        format,
        layout: layout(&wanted, size),
        preallocate: wanted.preallocate,
    };
    if !words.has("q") {
        print(&announcement(path, format, &wanted, size))?;
    }
    image.create()?;
    Ok(0)
}

/// What `-o` says of a layout.
pub fn layout(wanted: &CreateOptions, size: u64) -> Layout {
    let mut layout = Layout::new(size);
    layout.cluster_bits = wanted.cluster_size.unwrap_or(CLUSTER_SIZE).trailing_zeros();
    layout.version = if matches!(wanted.compat.as_deref(), Some("0.10" | "v2")) { 2 } else { 3 };
    layout.backing.clone_from(&wanted.backing_file);
    layout.backing_format.clone_from(&wanted.backing_format);
    layout.lazy_refcounts = wanted.lazy_refcounts;
    layout
}

/// Looks at the backing image, whose size the new one has if none is given.
fn check_backing(path: &str, wanted: &CreateOptions, unsafe_backing: bool) -> Result<Option<u64>> {
    let Some(name) = wanted.backing_file.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let behind = image::backing_path(Path::new(path), name)
        .ok_or_else(|| Fail::new(format!("{path}: the backing file '{name}' is not a file name")))?;
    let Some(format) = wanted.backing_format.as_deref() else {
        let found = image::info(&behind, None, false).ok();
        let found = found.map(|info| format!("\nDetected format of {}.", info.format)).unwrap_or_default();
        return Err(Fail::new(format!("{path}: Backing file specified without backing format{found}")));
    };
    let format = image::backing_format(format).ok_or_else(|| {
        Fail::new(format!("{path}: Unknown backing file format '{format}' (raw and qcow2 are supported)"))
    })?;
    if unsafe_backing {
        return Ok(None);
    }
    // Opened as the new image will have it opened: with what is behind it.
    match image::open(&behind, Some(format), false) {
        Ok(_) => {}
        Err(error) if !behind.exists() => {
            drop(error);
            return Err(Fail::new(format!(
                "{path}: Could not open '{}': No such file or directory\nCould not open backing image.",
                behind.display()
            )));
        }
        Err(error) => return Err(error.into()),
    }
    let same = behind
        .canonicalize()
        .ok()
        .is_some_and(|behind| Path::new(path).canonicalize().is_ok_and(|p| p == behind));
    if same {
        return Err(Fail::new(format!(
            "{path}: Error: Trying to create an image with the same filename as the backing file"
        )));
    }
    Ok(Some(image::info(&behind, Some(format), false)?.virtual_size))
}

/// The line that QEMU prints.
fn announcement(path: &str, format: ImageFormat, wanted: &CreateOptions, size: u64) -> String {
    if format == ImageFormat::Raw {
        return format!("Formatting '{path}', fmt=raw size={size}\n");
    }
    let optional =
        |name: &str, value: Option<&str>| value.map_or(String::new(), |value| format!(" {name}={value}"));
    format!(
        "Formatting '{path}', fmt=qcow2 cluster_size={} extended_l2=off{} compression_type=zlib size={size}{}{}{} \
         lazy_refcounts={} refcount_bits=16\n",
        wanted.cluster_size.unwrap_or(CLUSTER_SIZE),
        optional("preallocation", wanted.preallocate.then_some("metadata")),
        optional("compat", wanted.compat.as_deref()),
        optional("backing_file", wanted.backing_file.as_deref()),
        optional("backing_fmt", wanted.backing_format.as_deref()),
        if wanted.lazy_refcounts { "on" } else { "off" },
    )
}

//! `qemu-img resize`.

use std::path::Path;

use hvrun_vmm::disk::image;
use hvrun_vmm::disk::{CacheMode, ImageFormat};

use super::fail::{Fail, Result, say};
use super::options;
use super::print;
use super::size::{self, SizeError};
use super::words::Words;

/// What the last word says.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    To(u64),
    Grow(u64),
    Shrink(u64),
}

pub fn run(words: &Words) -> Result<u8> {
    if words.value("preallocation").is_some_and(|mode| mode != "off") {
        return Err(Fail::new("only --preallocation=off is supported"));
    }
    let [path, text] = &words.rest[..] else { return Err(Fail::usage("Not enough arguments")) };
    let change = parse(text)?;
    let given = options::source_format(words.value("f"), path)?;
    let file = Path::new(path);
    let info = image::info(file, given, true)?;
    let old = info.virtual_size;
    let new = match change {
        Change::To(size) => Some(size),
        Change::Grow(by) => old.checked_add(by).filter(|size| *size <= i64::MAX as u64),
        Change::Shrink(by) => match old.checked_sub(by) {
            Some(0) | None => return Err(Fail::new("New image size must be positive")),
            size => size,
        },
    };
    let new = new.ok_or_else(|| SizeError::TooLarge.image_size())?;
    if new < old && !words.has("shrink") {
        say("Use the --shrink option to perform a shrink operation.");
        return Err(Fail::new(
            "warning: Shrinking an image will delete all data beyond the shrunken image's end. \
             Before performing such an operation, make sure there is no important data there.",
        ));
    }
    if given.is_none() {
        warn_probed(path, info.format);
    }
    image::check_resizable(file, Some(info.format), new)?;
    let disk = image::open_writable(file, Some(info.format), CacheMode::Writeback)?;
    image::resize(&disk, new)?;
    if words.has("q") { Ok(0) } else { print("Image resized.\n") }
}

/// QEMU's warning about a raw image that is written to and might be something else.
pub fn warn_probed(path: &str, format: ImageFormat) {
    use std::io::Write;
    if format == ImageFormat::Raw {
        let _ = writeln!(
            std::io::stderr().lock(),
            "WARNING: Image format was not specified for '{path}' and probing guessed raw.\n\
             \x20        Specify the 'raw' format explicitly ('-f raw') if that is what it is."
        );
    }
}

fn parse(text: &str) -> Result<Change> {
    let read = |text| {
        size::parse(text).map_err(|_| {
            Fail::new(
                "Parameter 'size' expects a non-negative number below 2^63\n\
                 Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
                 and exabytes, respectively.",
            )
        })
    };
    if let Some(by) = text.strip_prefix('+') {
        return Ok(Change::Grow(read(by)?));
    }
    match text.strip_prefix('-') {
        Some(by) => Ok(Change::Shrink(read(by)?)),
        None => Ok(Change::To(read(text)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_makes_it_relative() {
        assert_eq!(parse("10G"), Ok(Change::To(10 << 30)));
        assert_eq!(parse("+32M"), Ok(Change::Grow(32 << 20)));
        assert_eq!(parse("-1k"), Ok(Change::Shrink(1024)));
        assert!(parse("++1").is_err() && parse("").is_err());
    }
}

//! `qemu-img commit` and `qemu-img rebase`: an image and the one behind it.

use std::path::Path;

use hvrun_vmm::disk::image;
use hvrun_vmm::disk::{CacheMode, ImageFormat};

use super::convert::wants_sync;
use super::fail::{Fail, Result};
use super::options;
use super::print;
use super::progress::Progress;
use super::words::Words;

pub fn run(words: &Words) -> Result<u8> {
    let path = words.only()?;
    let file = Path::new(path);
    let format = options::source_format(words.value("f"), path)?;
    if let Some(base) = words.value("b") {
        let info = image::info(file, format, true)?;
        let name = info.qcow2.and_then(|qcow2| qcow2.backing);
        if name.as_deref() != Some(base) {
            return Err(Fail::new(format!(
                "-b {base}: an image is committed to its own backing file ({}); commit the ones in between first",
                name.as_deref().unwrap_or("it has none")
            )));
        }
    }
    let cache = if words.value("t").is_none() || wants_sync(words)? {
        CacheMode::Writeback
    } else {
        CacheMode::Unsafe
    };
    let mut progress = Progress::new(words.has("p") && !words.has("q"));
    image::commit(file, format, !words.has("d"), cache, &mut |done, total| progress.update(done, total))?;
    progress.finish();
    if words.has("q") { Ok(0) } else { print("Image committed.\n") }
}

pub fn rebase(words: &Words) -> Result<u8> {
    let path = words.only()?;
    let Some(backing) = words.value("b") else {
        return Err(Fail::usage("rebase needs the new backing file: -b FILE, or -b \"\" for none"));
    };
    if !words.has("u") {
        return Err(Fail::new(
            "rebase copies no data: with -u it changes the name of the backing file and nothing else \
             (to have all data in one image, use 'convert')",
        ));
    }
    let file = Path::new(path);
    let format = options::source_format(words.value("f"), path)?;
    if image::info(file, format, true)?.format != ImageFormat::Qcow2 {
        return Err(Fail::new(format!(
            "Could not change the backing file of '{path}': a raw image has none"
        )));
    }
    if backing.is_empty() {
        image::rebase_unsafe(file, None)?;
        return Ok(0);
    }
    let Some(named) = words.value("F") else {
        return Err(Fail::new(format!(
            "Could not change the backing file to '{backing}': backing format must be specified"
        )));
    };
    if image::backing_format(named).is_none() {
        return Err(Fail::new(format!("Invalid format name: '{named}' (raw and qcow2 are supported)")));
    }
    image::rebase_unsafe(file, Some((backing, named)))?;
    Ok(0)
}

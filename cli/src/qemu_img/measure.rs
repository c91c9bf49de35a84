//! `qemu-img measure`.

use std::path::Path;

use hvrun_vmm::disk::image::{self, Measure};
use hvrun_vmm::disk::{BlockBackend, ImageFormat};
use serde_json::{Map, Value, json};

use super::create::layout;
use super::fail::{Fail, Result};
use super::options;
use super::size::{self, SizeError};
use super::words::Words;
use super::{print, print_json};

pub fn run(words: &Words) -> Result<u8> {
    let json = words.wants_json()?;
    let named = words.value("O").unwrap_or("raw");
    let format = options::format(named, |name| Fail::new(format!("Unknown file format {name}")))?;
    if options::wants_help(words.values("o")) {
        return print(&options::help(format));
    }
    let wanted = options::parse(words.values("o"), format, "measure")?;
    let size = words.value("size").map(size::parse).transpose().map_err(SizeError::image_size)?;
    let source = match (&words.rest[..], size) {
        ([path], None) => {
            let given = options::source_format(words.value("f"), path)?;
            Some(image::open(Path::new(path), given, !words.has("U"))?)
        }
        ([], Some(_)) => None,
        ([], None) => return Err(Fail::usage("Either --size N or one filename must be specified.")),
        (_, Some(_)) => return Err(Fail::usage("--size N cannot be used together with a filename.")),
        _ => return Err(Fail::usage("At most one filename argument is allowed.")),
    };
    let size = source.as_ref().map_or(size.unwrap_or(0), |disk| disk.capacity());
    let Measure { mut required, fully_allocated } =
        image::measure(source.as_deref(), format, &layout(&wanted, size))?;
    if wanted.preallocate {
        required = fully_allocated;
    }
    let bitmaps = source.is_some() && format == ImageFormat::Qcow2;
    if json {
        let mut map = Map::new();
        if bitmaps {
            map.insert("bitmaps".to_owned(), json!(0));
        }
        map.insert("required".to_owned(), json!(required));
        map.insert("fully-allocated".to_owned(), json!(fully_allocated));
        return print_json(&Value::Object(map));
    }
    let bitmaps = if bitmaps { "bitmaps size: 0\n" } else { "" };
    print(&format!("required size: {required}\nfully allocated size: {fully_allocated}\n{bitmaps}"))
}

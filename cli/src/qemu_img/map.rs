//! `qemu-img map`.

use std::path::Path;

use hvrun_vmm::disk::BlockBackend;
use hvrun_vmm::disk::image::{self, Extent, ExtentKind};

use super::fail::{Fail, Result};
use super::options;
use super::print;
use super::size;
use super::words::Words;

pub fn run(words: &Words) -> Result<u8> {
    let json = words.wants_json()?;
    let path = words.only()?;
    let number = |key: &str| {
        let value = words.value(&key[..1]).map(size::parse).transpose();
        value.map_err(|_| Fail::new(format!("--{key} must be a number of bytes")))
    };
    let start = number("start-offset")?.unwrap_or(0);
    let format = options::source_format(words.value("f"), path)?;
    let disk = image::open(Path::new(path), format, !words.has("U"))?;
    let end =
        number("max-length")?.map_or(disk.capacity(), |len| start.saturating_add(len).min(disk.capacity()));
    let failed = |error| Fail::new(format!("Could not read file metadata: {error}"));
    print(if json { "[" } else { "Offset          Length          Mapped to       File\n" })?;
    let mut waiting: Option<Extent> = None;
    let mut at = start;
    while at < end {
        let extent = disk.extent(at, end - at).map_err(failed)?;
        at += extent.length;
        match &mut waiting {
            Some(before) if joins(before, &extent) => before.length += extent.length,
            _ => {
                if let Some(before) = waiting.replace(extent) {
                    show(&before, json, false)?;
                }
            }
        }
    }
    match waiting {
        Some(last) => show(&last, json, true)?,
        None if json => drop(print("]\n")?),
        None => {}
    }
    Ok(0)
}

/// Whether `next` is more of the same.
fn joins(before: &Extent, next: &Extent) -> bool {
    let same = before.depth == next.depth && before.present == next.present;
    same && match (&before.kind, &next.kind) {
        (ExtentKind::Data { file, offset }, ExtentKind::Data { file: next_file, offset: next }) => {
            file == next_file && offset + before.length == *next
        }
        (ExtentKind::Zero { hole: None }, ExtentKind::Zero { hole: None }) => true,
        (ExtentKind::Zero { hole: Some((file, at)) }, ExtentKind::Zero { hole: Some((next_file, next)) }) => {
            file == next_file && at + before.length == *next
        }
        (ExtentKind::Compressed, ExtentKind::Compressed) => true,
        _ => false,
    }
}

fn show(extent: &Extent, json: bool, last: bool) -> Result<()> {
    let text = if json { json_line(extent, last) } else { human_line(extent)? };
    print(&text).map(drop)
}

fn json_line(extent: &Extent, last: bool) -> String {
    let place = match &extent.kind {
        ExtentKind::Data { offset, .. } | ExtentKind::Zero { hole: Some((_, offset)) } => {
            format!(", \"offset\": {offset}")
        }
        _ => String::new(),
    };
    let zero = extent.is_zero();
    format!(
        "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {zero}, \"data\": {}, \
         \"compressed\": {}{place}}}{}\n",
        extent.start,
        extent.length,
        extent.depth,
        extent.present,
        !zero,
        extent.kind == ExtentKind::Compressed,
        if last { "]" } else { "," },
    )
}

fn human_line(extent: &Extent) -> Result<String> {
    match &extent.kind {
        ExtentKind::Data { file, offset } => {
            let (start, length) = (hex(extent.start), hex(extent.length));
            Ok(format!("{start:<15} {length:<15} {:<15} {}\n", hex(*offset), file.display()))
        }
        ExtentKind::Compressed => {
            Err(Fail::new("File contains external, encrypted or compressed clusters; use --output=json"))
        }
        ExtentKind::Zero { .. } => Ok(String::new()),
    }
}

/// As C's `%#x` has it, where zero has no prefix.
fn hex(value: u64) -> String {
    if value == 0 { "0".to_owned() } else { format!("{value:#x}") }
}

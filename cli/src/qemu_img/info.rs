//! `qemu-img info`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use hvrun_vmm::disk::ImageFormat;
use hvrun_vmm::disk::image::{self, ImageInfo, Qcow2Info};
use serde_json::{Map, Value, json};

use super::fail::{Fail, Result};
use super::options;
use super::size::human;
use super::words::Words;
use super::{print, print_json};

/// The most images of a chain.
const MAX_CHAIN: usize = 32;

/// An image of a chain.
struct Entry {
    path: PathBuf,
    info: ImageInfo,
}

impl Entry {
    fn qcow2(&self) -> Option<&Qcow2Info> {
        self.info.qcow2.as_ref()
    }

    /// The backing file's name, and where it is.
    fn backing(&self) -> Option<(&str, String)> {
        let name = self.qcow2()?.backing.as_deref()?;
        let path = image::backing_path(&self.path, name);
        Some((name, path.map_or(name.to_owned(), |path| path.display().to_string())))
    }
}

pub fn run(words: &Words) -> Result<u8> {
    let json = words.wants_json()?;
    let path = words.only()?;
    let lock = !words.has("U");
    let format = options::source_format(words.value("f"), path)?;
    let mut chain = vec![Entry { path: path.into(), info: image::info(Path::new(path), format, lock)? }];
    let whole = words.has("backing-chain");
    while let Some((name, _)) = chain.last().filter(|_| whole).and_then(Entry::backing) {
        let next = chain.last().map(|entry| follow(entry, name, lock)).transpose()?;
        if chain.len() >= MAX_CHAIN {
            return Err(Fail::new(format!(
                "'{path}': its backing chain has more than {MAX_CHAIN} images, or comes back"
            )));
        }
        chain.extend(next);
    }
    if json {
        let mut values: Vec<Value> = chain.iter().map(value).collect();
        return print_json(&if whole { Value::Array(values) } else { values.swap_remove(0) });
    }
    let texts: Vec<String> = chain.iter().map(text).collect();
    print(&texts.join("\n"))
}

fn follow(front: &Entry, name: &str, lock: bool) -> Result<Entry> {
    let path = image::backing_path(&front.path, name)
        .ok_or_else(|| Fail::new(format!("Could not open '{name}': it is not a file name")))?;
    let format = front.qcow2().and_then(|info| info.backing_format.as_deref());
    let format = options::source_format(format, &path.display().to_string())?;
    // No word about its format is none about what a guest wrote into it.
    let format = format.or(Some(ImageFormat::Raw).filter(|_| image::info(&path, None, lock).is_err()));
    Ok(Entry { info: image::info(&path, format, lock)?, path })
}

fn text(entry: &Entry) -> String {
    let info = &entry.info;
    let mut text = format!(
        "image: {}\nfile format: {}\nvirtual size: {} ({} bytes)\ndisk size: {}\n",
        entry.path.display(),
        info.format,
        human(info.virtual_size),
        info.virtual_size,
        human(info.actual_size),
    );
    let Some(qcow2) = entry.qcow2() else { return text };
    // Writing into a string cannot fail.
    let mut line = |what: String| {
        let _ = writeln!(text, "{what}");
    };
    if qcow2.encrypted {
        line("encrypted: yes".to_owned());
    }
    line(format!("cluster_size: {}", qcow2.cluster_size));
    if qcow2.dirty {
        line("cleanly shut down: no".to_owned());
    }
    if let Some((name, path)) = entry.backing() {
        let actual = if path == name { String::new() } else { format!(" (actual path: {path})") };
        line(format!("backing file: {name}{actual}"));
        if let Some(format) = &qcow2.backing_format {
            line(format!("backing file format: {format}"));
        }
    }
    if qcow2.snapshots > 0 {
        line(format!("internal snapshots: {}", qcow2.snapshots));
    }
    line("Format specific information:".to_owned());
    line(format!("    compat: {}", compat(qcow2)));
    line(format!("    compression type: {}", qcow2.compression));
    if qcow2.version >= 3 {
        line(format!("    lazy refcounts: {}", qcow2.lazy_refcounts));
    }
    line(format!("    refcount bits: {}", qcow2.refcount_bits));
    if qcow2.version >= 3 {
        line(format!("    corrupt: {}", qcow2.corrupt));
        line(format!("    extended l2: {}", qcow2.extended_l2));
    }
    text
}

fn compat(info: &Qcow2Info) -> &'static str {
    if info.version >= 3 { "1.1" } else { "0.10" }
}

fn value(entry: &Entry) -> Value {
    let info = &entry.info;
    let mut map = Map::new();
    if let Some(format) = entry.qcow2().and_then(|qcow2| qcow2.backing_format.as_ref()) {
        map.insert("backing-filename-format".to_owned(), json!(format));
    }
    map.insert("virtual-size".to_owned(), json!(info.virtual_size));
    map.insert("filename".to_owned(), json!(entry.path.display().to_string()));
    if let Some(qcow2) = entry.qcow2() {
        map.insert("cluster-size".to_owned(), json!(qcow2.cluster_size));
    }
    map.insert("format".to_owned(), json!(info.format.to_string()));
    map.insert("actual-size".to_owned(), json!(info.actual_size));
    if let Some(qcow2) = entry.qcow2() {
        if qcow2.encrypted {
            map.insert("encrypted".to_owned(), json!(true));
        }
        map.insert("format-specific".to_owned(), specific(qcow2));
    }
    if let Some((name, path)) = entry.backing() {
        map.insert("full-backing-filename".to_owned(), json!(path));
        map.insert("backing-filename".to_owned(), json!(name));
    }
    map.insert("dirty-flag".to_owned(), json!(entry.qcow2().is_some_and(|qcow2| qcow2.dirty)));
    Value::Object(map)
}

fn specific(info: &Qcow2Info) -> Value {
    let mut data = Map::new();
    data.insert("compat".to_owned(), json!(compat(info)));
    data.insert("compression-type".to_owned(), json!(info.compression));
    if info.version >= 3 {
        data.insert("lazy-refcounts".to_owned(), json!(info.lazy_refcounts));
    }
    data.insert("refcount-bits".to_owned(), json!(info.refcount_bits));
    if info.version >= 3 {
        data.insert("corrupt".to_owned(), json!(info.corrupt));
        data.insert("extended-l2".to_owned(), json!(info.extended_l2));
    }
    json!({ "type": "qcow2", "data": data })
}

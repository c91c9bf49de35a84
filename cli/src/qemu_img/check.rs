//! `qemu-img check`.

use std::path::Path;

use hvrun_vmm::disk::ImageFormat;
use hvrun_vmm::disk::image::{self, CheckReport, Repair};
use serde_json::{Map, json};

use super::fail::{Fail, Result, say};
use super::options;
use super::words::Words;
use super::{print, print_json};

/// Exit codes beyond 0 and 1: damaged, only leaks, no checks for the format.
const EXIT_CORRUPT: u8 = 2;
const EXIT_LEAKS: u8 = 3;
const EXIT_UNSUPPORTED: u8 = 63;
/// So many findings are shown; all are counted.
const MAX_SHOWN: u64 = 10_000;

pub fn run(words: &Words) -> Result<u8> {
    let json = words.wants_json()?;
    let repair = match words.value("r") {
        None => Repair::No,
        Some("leaks") => Repair::Leaks,
        Some("all") => Repair::All,
        Some(other) => {
            return Err(Fail::usage(format!("-r expects option value leaks or all, not {other}")));
        }
    };
    let path = words.only()?;
    let lock = !words.has("U");
    let file = Path::new(path);
    let info = image::info(file, options::source_format(words.value("f"), path)?, lock)?;
    if info.format != ImageFormat::Qcow2 {
        return Err(Fail::with_code("This image format does not support checks", EXIT_UNSUPPORTED));
    }
    let mut shown = 0;
    let mut show = |finding: &image::Finding| {
        shown += 1;
        if shown <= MAX_SHOWN {
            say_plainly(&finding.to_string());
        }
    };
    let mut report = image::check(file, repair, lock, &mut show)?;
    let (corruptions_fixed, leaks_fixed) = (report.corruptions_fixed, report.leaks_fixed);
    if corruptions_fixed + leaks_fixed > 0 {
        if !json {
            print(&format!(
                "The following inconsistencies were found and repaired:\n\n    {leaks_fixed} leaked clusters\n    \
                 {corruptions_fixed} corruptions\n\nDouble checking the fixed image now...\n"
            ))?;
        }
        report = image::check(file, Repair::No, lock, &mut |_| {})?;
        (report.corruptions_fixed, report.leaks_fixed) = (corruptions_fixed, leaks_fixed);
    }
    if json {
        print_json(&value(path, &report))?;
    } else if !words.has("q") {
        print(&text(&report))?;
    }
    Ok(match (report.corruptions, report.leaks) {
        (0, 0) => 0,
        (0, _) => EXIT_LEAKS,
        _ => EXIT_CORRUPT,
    })
}

fn say_plainly(line: &str) {
    use std::io::Write;
    if writeln!(std::io::stderr().lock(), "{line}").is_err() {
        say(line);
    }
}

fn text(report: &CheckReport) -> String {
    let mut text = String::new();
    if report.corruptions == 0 && report.leaks == 0 {
        text += "No errors were found on the image.\n";
    }
    if report.corruptions > 0 {
        text += &format!(
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.\n",
            report.corruptions
        );
    }
    if report.leaks > 0 {
        text += &format!(
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n",
            report.leaks
        );
    }
    if report.total_clusters > 0 && report.allocated_clusters > 0 {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        text += &format!(
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            report.allocated_clusters,
            report.total_clusters,
            percent(report.allocated_clusters, report.total_clusters),
            percent(report.fragmented_clusters, report.allocated_clusters),
            percent(report.compressed_clusters, report.allocated_clusters),
        );
    }
    text + &format!("Image end offset: {}\n", report.end_offset)
}

fn value(path: &str, report: &CheckReport) -> serde_json::Value {
    let mut map = Map::new();
    map.insert("image-end-offset".to_owned(), json!(report.end_offset));
    map.insert("total-clusters".to_owned(), json!(report.total_clusters));
    map.insert("check-errors".to_owned(), json!(0));
    // As QEMU has it: what is zero is not there.
    for (name, count) in [
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("corruptions-fixed", report.corruptions_fixed),
        ("leaks-fixed", report.leaks_fixed),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
    ] {
        if count > 0 {
            map.insert(name.to_owned(), json!(count));
        }
    }
    map.insert("filename".to_owned(), json!(path));
    map.insert("format".to_owned(), json!("qcow2"));
    map.into()
}

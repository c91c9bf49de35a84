//! `info block` and `info blockstats`.

use hvrun_devices::backend::disk::CacheMode;
use hvrun_devices::virtio::block::IoStatus;

use super::super::super::target::Target;
use super::super::super::{hotplug, names};
use super::add;
use crate::running::BlockNames;

/// The disks, or the one called `which`.
pub(super) fn devices(target: &dyn Target, which: Option<&str>) -> String {
    let mut text = String::new();
    let (disks, waiting) = (target.disks(), hotplug::waiting(target));
    let qdevs = names::qdevs(&disks).into_iter().map(Some).chain(std::iter::repeat(None));
    for (disk, qdev) in disks.iter().chain(&waiting).zip(qdevs) {
        let BlockNames { drive, node } = &disk.names;
        if which.is_some_and(|which| which != drive && which != node) {
            continue;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        let readonly = if disk.config.readonly { ", read-only" } else { "" };
        let name = match drive.as_str() {
            "" => node.clone(),
            drive => format!("{drive} ({node})"),
        };
        let path = disk.config.path.display();
        add(&mut text, format_args!("{name}: {path} ({}{readonly})", disk.format));
        if let Some(qdev) = qdev {
            add(&mut text, format_args!("    Attached to:      {qdev}"));
        }
        if disk.status != IoStatus::Ok {
            add(&mut text, format_args!("    I/O status:       {}", names::io_status(disk.status)));
        }
        let cache = match disk.config.cache {
            CacheMode::Writeback => "writeback",
            CacheMode::None => "writeback, direct",
            CacheMode::Unsafe => "writeback, ignore flushes",
        };
        add(&mut text, format_args!("    Cache mode:       {cache}"));
    }
    match (text.is_empty(), which) {
        (true, Some(name)) => format!("Error: Device '{name}' not found\n"),
        _ => text,
    }
}

/// What the disks have done.
pub(super) fn stats(target: &dyn Target, _: Option<&str>) -> String {
    let mut text = String::new();
    for disk in target.disks() {
        let (reads, writes, flushes) = (disk.stats.reads, disk.stats.writes, disk.stats.flushes);
        add(
            &mut text,
            format_args!(
                "{}: rd_bytes={} wr_bytes={} rd_operations={} wr_operations={} flush_operations={} wr_total_time_ns={} rd_total_time_ns={} \
                 flush_total_time_ns={} rd_merged=0 wr_merged=0",
                disk.names.drive,
                reads.bytes,
                writes.bytes,
                reads.operations,
                writes.operations,
                flushes.operations,
                writes.nanoseconds,
                reads.nanoseconds,
                flushes.nanoseconds,
            ),
        );
    }
    text
}

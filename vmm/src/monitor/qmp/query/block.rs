//! Disks and what they have done.

use std::os::unix::fs::MetadataExt;

use hvrun_devices::backend::disk::{CacheMode, ErrorPolicy};
use hvrun_devices::virtio::block::BlockStats;
use serde_json::{Value, json};

use super::super::super::target::{DiskFacts, Target};
use super::super::super::{hotplug, names};

/// Unit of the sizes in `st_blocks`, whatever the file system's blocks are (POSIX, sys/stat.h).
const STAT_BLOCK: u64 = 512;

/// BlockDeviceInfo.
fn inserted(disk: &DiskFacts) -> Value {
    let path = disk.config.path.display().to_string();
    let mut image =
        json!({ "filename": path, "format": disk.format, "virtual-size": disk.size, "dirty-flag": false });
    // Of an image that is still there by that name.
    if let (Ok(file), Some(image)) = (std::fs::metadata(&disk.config.path), image.as_object_mut()) {
        image.insert("actual-size".to_owned(), json!(file.blocks().saturating_mul(STAT_BLOCK)));
    }
    let cache = json!({
        "writeback": true,
        "direct": disk.config.cache == CacheMode::None,
        "no-flush": disk.config.cache == CacheMode::Unsafe,
    });
    json!({
        "file": path,
        "node-name": disk.names.node,
        "ro": disk.config.readonly,
        "drv": disk.format,
        "backing_file_depth": 0,
        "encrypted": false,
        "detect_zeroes": "off",
        "bps": 0, "bps_rd": 0, "bps_wr": 0,
        "iops": 0, "iops_rd": 0, "iops_wr": 0,
        "image": image,
        "cache": cache,
        "write_threshold": 0,
    })
}

/// Whether errors of `disk` can stop the machine: only then it has a status.
pub(in super::super) fn has_status(disk: &DiskFacts) -> bool {
    let stops = |policy| matches!(policy, ErrorPolicy::Stop | ErrorPolicy::Enospc);
    stops(disk.config.werror) || stops(disk.config.rerror)
}

pub(in super::super) fn devices(target: &dyn Target) -> Value {
    let disks = target.disks();
    let device = |(disk, qdev): (&DiskFacts, String)| {
        let mut device = json!({
            "device": disk.names.drive,
            "qdev": qdev,
            "type": "unknown",
            "removable": false,
            "locked": false,
            "inserted": inserted(disk),
        });
        if let (true, Some(device)) = (has_status(disk), device.as_object_mut()) {
            device.insert("io-status".to_owned(), json!(names::io_status(disk.status)));
        }
        device
    };
    let mut all: Vec<Value> = disks.iter().zip(names::qdevs(&disks)).map(device).collect();
    let drives = hotplug::waiting(target).into_iter().filter(|disk| !disk.names.drive.is_empty());
    all.extend(drives.map(|disk| {
        json!({
            "device": disk.names.drive,
            "type": "unknown",
            "removable": false,
            "locked": false,
            "inserted": inserted(&disk),
        })
    }));
    Value::Array(all)
}

pub(in super::super) fn nodes(target: &dyn Target) -> Value {
    Value::Array(target.disks().iter().chain(&hotplug::waiting(target)).map(inserted).collect())
}

/// BlockDeviceStats. What is not counted here is 0.
fn counters(stats: &BlockStats) -> Value {
    let BlockStats { reads, writes, flushes, discards, highest_write } = stats;
    json!({
        "rd_bytes": reads.bytes, "wr_bytes": writes.bytes, "zone_append_bytes": 0, "unmap_bytes": discards.bytes,
        "rd_operations": reads.operations, "wr_operations": writes.operations, "zone_append_operations": 0,
        "flush_operations": flushes.operations, "unmap_operations": discards.operations,
        "rd_total_time_ns": reads.nanoseconds, "wr_total_time_ns": writes.nanoseconds,
        "zone_append_total_time_ns": 0,
        "flush_total_time_ns": flushes.nanoseconds, "unmap_total_time_ns": discards.nanoseconds,
        "wr_highest_offset": highest_write,
        "rd_merged": 0, "wr_merged": 0, "zone_append_merged": 0, "unmap_merged": 0,
        "failed_rd_operations": reads.failed, "failed_wr_operations": writes.failed,
        "failed_zone_append_operations": 0,
        "failed_flush_operations": flushes.failed, "failed_unmap_operations": discards.failed,
        "invalid_rd_operations": 0, "invalid_wr_operations": 0, "invalid_zone_append_operations": 0,
        "invalid_flush_operations": 0, "invalid_unmap_operations": 0,
        "account_invalid": false, "account_failed": true,
        "timed_stats": [],
    })
}

pub(in super::super) fn stats(target: &dyn Target) -> Value {
    let disks = target.disks();
    let stats = |(disk, qdev): (&DiskFacts, String)| {
        json!({
            "device": disk.names.drive,
            "qdev": qdev,
            "node-name": disk.names.node,
            "stats": counters(&disk.stats),
        })
    };
    Value::Array(disks.iter().zip(names::qdevs(&disks)).map(stats).collect())
}

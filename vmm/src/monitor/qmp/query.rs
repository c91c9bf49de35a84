//! What the `query-` commands show, by QEMU's schema. Where the schema has no optional member for something, there is what is true of
//! every machine here.

use hvrun_arch::Accel;
use hvrun_devices::backend::disk::{CacheMode, DiskConfig};
use serde_json::{Value, json};

use super::super::target::{PciDevice, Target};
use super::super::{hmp, hotplug};
use crate::running::RunState;

pub(super) fn status(target: &dyn Target) -> Value {
    let state = target.run_state();
    let name = match state {
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Prelaunch => "prelaunch",
        RunState::Shutdown => "shutdown",
    };
    json!({ "status": name, "running": state == RunState::Running })
}

pub(super) fn name(_: &dyn Target) -> Value {
    json!({})
}

pub(super) fn uuid(_: &dyn Target) -> Value {
    json!({ "UUID": "00000000-0000-0000-0000-000000000000" })
}

pub(super) fn target(_: &dyn Target) -> Value {
    json!({ "arch": "aarch64" })
}

pub(super) fn kvm(target: &dyn Target) -> Value {
    json!({ "enabled": target.accel() == Accel::Kvm, "present": target.accel() == Accel::Kvm })
}

pub(super) fn memory_size_summary(target: &dyn Target) -> Value {
    json!({ "base-memory": target.config().memory.bytes(), "plugged-memory": 0 })
}

pub(super) fn cpus_fast(target: &dyn Target) -> Value {
    let cpu = |(index, thread): (usize, u64)| {
        json!({
            "cpu-index": index,
            "qom-path": format!("/machine/unattached/device[{index}]"),
            "thread-id": thread,
            "props": { "core-id": index, "thread-id": 0, "socket-id": 0, "cluster-id": 0 },
            "target": "aarch64",
        })
    };
    Value::Array(target.cpu_threads().into_iter().enumerate().map(cpu).collect())
}

pub(super) fn chardev(target: &dyn Target) -> Value {
    let one = |(label, filename): (String, String)| json!({ "label": label, "filename": filename, "frontend-open": true });
    Value::Array(hmp::chardevs(target).into_iter().map(one).collect())
}

/// What is in a disk.
fn inserted(disk: &DiskConfig, format: &str, size: u64) -> Value {
    let path = disk.path.display().to_string();
    let image = json!({ "filename": path, "format": format, "virtual-size": size });
    let cache = json!({
        "writeback": true,
        "direct": disk.cache == CacheMode::None,
        "no-flush": disk.cache == CacheMode::Unsafe,
    });
    json!({
        "file": path,
        "ro": disk.readonly,
        "drv": format,
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

pub(super) fn block(target: &dyn Target) -> Value {
    let mut all = Vec::new();
    for (index, (disk, facts)) in target.config().disks.iter().zip(target.disks()).enumerate() {
        all.push(json!({
            "device": format!("virtio{index}"),
            "type": "unknown",
            "removable": false,
            "locked": false,
            "io-status": "ok",
            "inserted": inserted(disk, facts.format, facts.size),
        }));
    }
    all.extend(hotplug::blocks(target, inserted));
    Value::Array(all)
}

fn pci_device(device: &PciDevice) -> Value {
    let class = hmp::class(device);
    let (vendor, id) = hmp::ids(device);
    let mut class_info = json!({ "class": class });
    if let (Some(object), Some(name)) = (class_info.as_object_mut(), hmp::class_name(class)) {
        object.insert("desc".to_owned(), Value::String(name.to_owned()));
    }
    json!({
        "bus": device.bus,
        "slot": device.slot,
        "function": 0,
        "class_info": class_info,
        "id": { "device": id, "vendor": vendor },
        "irq_pin": 1,
        "qdev_id": device.name,
        "regions": [],
    })
}

pub(super) fn pci(target: &dyn Target) -> Value {
    json!([{ "bus": 0, "devices": hotplug::pci(&target.pci(), 0, pci_device) }])
}

//! What the `query-` commands show, by QEMU's schema. Where the schema has no optional member for something, there is what is true of
//! every machine here.

pub(super) mod block;

use hvrun_arch::Accel;
use hvrun_arch::aarch64::layout::MAX_CPUS;
use hvrun_devices::pci::{Bar, BarKind};
use serde_json::{Value, json};

use super::super::target::{PciDevice, Target};
use super::super::{hotplug, names};
use crate::running::RunState;

/// What QEMU calls the machine's RAM.
const RAM_ID: &str = "mach-virt.ram";

pub(super) fn status(target: &dyn Target) -> Value {
    let state = target.run_state();
    let name = match state {
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::IoError => "io-error",
        RunState::Prelaunch => "prelaunch",
        RunState::PoweredOff | RunState::Shutdown => "shutdown",
    };
    json!({ "status": name, "running": state == RunState::Running })
}

pub(super) fn name(target: &dyn Target) -> Value {
    target.config().name.as_ref().map_or_else(|| json!({}), |name| json!({ "name": name }))
}

pub(super) fn uuid(target: &dyn Target) -> Value {
    json!({ "UUID": target.config().uuid.as_deref().unwrap_or(names::NO_UUID) })
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
    Value::Array(names::chardevs(target).into_iter().map(one).collect())
}

pub(super) fn chardev_backends(_: &dyn Target) -> Value {
    Value::Array(["file", "null", "pty", "socket", "stdio"].map(|name| json!({ "name": name })).to_vec())
}

/// Models of CPUs: whichever is named, the guest gets what the accelerator has.
pub(super) fn cpu_definitions(_: &dyn Target) -> Value {
    let model = |name: &str| json!({ "name": name, "typename": format!("{name}-arm-cpu"), "static": false, "deprecated": false });
    Value::Array(["max", "host"].map(model).to_vec())
}

pub(super) fn gic_capabilities(target: &dyn Target) -> Value {
    json!([{ "version": 3, "emulated": true, "kernel": target.accel() == Accel::Kvm }])
}

pub(super) fn machines(_: &dyn Target) -> Value {
    let [major, minor, _] = super::QEMU_VERSION;
    json!([{
        "name": format!("virt-{major}.{minor}"),
        "alias": "virt",
        "is-default": true,
        "cpu-max": MAX_CPUS,
        "hotpluggable-cpus": false,
        "numa-mem-supported": false,
        "deprecated": false,
        "default-cpu-type": "max-arm-cpu",
        "default-ram-id": RAM_ID,
        "acpi": false,
    }])
}

pub(super) fn memdev(target: &dyn Target) -> Value {
    json!([{
        "id": RAM_ID,
        "size": target.config().memory.bytes(),
        "merge": false,
        "dump": true,
        "prealloc": false,
        "share": false,
        "reserve": false,
        "host-nodes": [],
        "policy": "default",
    }])
}

/// The cards, or the one called `name`. They take every frame that is there.
pub(super) fn rx_filters(target: &dyn Target, name: Option<&str>) -> Vec<Value> {
    let cards = target.config().nets.iter().enumerate().zip(target.links());
    let named = cards.map(|((index, net), (mac, _))| (net.id(index), mac));
    let filter = |(id, mac): (String, String)| {
        json!({
            "name": id,
            "promiscuous": true,
            "multicast": "all",
            "unicast": "all",
            "vlan": "all",
            "broadcast-allowed": true,
            "multicast-overflow": false,
            "unicast-overflow": false,
            "main-mac": mac,
            "vlan-table": [],
            "unicast-table": [],
            "multicast-table": [],
        })
    };
    named.filter(|(id, _)| name.is_none_or(|name| name == id)).map(filter).collect()
}

pub(super) fn pci(target: &dyn Target) -> Value {
    let region = |(bar, base): &(Bar, Option<u64>)| {
        json!({
            "bar": bar.index,
            "type": "memory",
            // What QEMU says of one that answers nowhere.
            "address": base.map_or(-1, u64::cast_signed),
            "size": bar.size,
            "prefetch": bar.prefetchable,
            "mem_type_64": bar.kind == BarKind::Memory64,
        })
    };
    let device = |device: &PciDevice| {
        let class = names::class(device);
        let ((vendor, id), (sub_vendor, sub)) = (names::ids(device), names::subsystem(device));
        let (line, pin) = names::interrupt(device);
        let mut class_info = json!({ "class": class });
        if let (Some(object), Some(name)) = (class_info.as_object_mut(), names::class_name(class)) {
            object.insert("desc".to_owned(), Value::String(name.to_owned()));
        }
        let mut value = json!({
            "bus": device.bus,
            "slot": device.slot,
            "function": 0,
            "class_info": class_info,
            "id": { "device": id, "vendor": vendor, "subsystem": sub, "subsystem-vendor": sub_vendor },
            "irq_pin": pin,
            "qdev_id": names::device_id(target, device),
            "regions": device.bars.iter().map(region).collect::<Vec<_>>(),
        });
        if let (true, Some(value)) = (pin > 0, value.as_object_mut()) {
            value.insert("irq".to_owned(), json!(line));
        }
        value
    };
    json!([{ "bus": 0, "devices": hotplug::pci(&target.pci(), 0, &device) }])
}

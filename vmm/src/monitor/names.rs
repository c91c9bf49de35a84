//! What QEMU calls the parts of a machine: paths, drivers, files. Both monitors show them, so that programs that compare the two find them
//! equal.

use hvrun_devices::backend::chardev::ChardevConfig;
use hvrun_devices::virtio::block::IoStatus;

use super::target::{DiskFacts, PciDevice, Target};
use crate::config::{MonitorKind, MonitorPlace};

/// What is said where there is no balloon.
pub(super) const NO_BALLOON: &str = "No balloon device has been activated";
/// Why a machine whose guest has powered off does not go on.
pub(super) const NEEDS_RESET: &str = "Resetting the Virtual Machine is required";
/// QEMU's word for what this machine does not do.
pub(super) const UNSUPPORTED: &str = "this feature or command is not currently supported";

/// The UUID of a machine without one.
pub(super) const NO_UUID: &str = "00000000-0000-0000-0000-000000000000";

/// First device id of virtio devices (virtio 1.2, 4.1.2.1).
const VIRTIO_PCI_ID_BASE: u16 = 0x1040;
const VIRTIO_VENDOR: u16 = 0x1af4;

/// Class and subclass of a function (PCI Local Bus 3.0, 6.2.1).
pub(super) fn class(device: &PciDevice) -> u16 {
    device.u16(0x0a)
}

/// Vendor and device id (PCI Local Bus 3.0, 6.2.1).
pub(super) fn ids(device: &PciDevice) -> (u16, u16) {
    (device.u16(0), device.u16(2))
}

/// Subsystem's vendor and id (PCI Local Bus 3.0, 6.2.4).
pub(super) fn subsystem(device: &PciDevice) -> (u16, u16) {
    (device.u16(0x2c), device.u16(0x2e))
}

/// Interrupt line and pin (PCI Local Bus 3.0, 6.2.4); pin 0 is none, 1 is A.
pub(super) fn interrupt(device: &PciDevice) -> (u8, u8) {
    let [line, pin] = device.u16(0x3c).to_le_bytes();
    (line, pin)
}

/// A bridge from one PCI bus to another (PCI Code and ID Assignment 1.11, 1.7).
pub(super) const BRIDGE: u16 = 0x0604;

/// What QEMU calls a class.
pub(super) fn class_name(class: u16) -> Option<&'static str> {
    Some(match class {
        0x0100 => "SCSI controller",
        0x0180 => "Storage controller",
        0x0200 => "Ethernet controller",
        0x0380 => "Display controller",
        0x0600 => "Host bridge",
        BRIDGE => "PCI bridge",
        0x0780 => "Communication controller",
        0x0900 => "Keyboard",
        _ => return None,
    })
}

/// The word for a virtio device in the names of QEMU's drivers (`virtio-WORD-pci`); none if it is no virtio device.
pub(super) fn virtio_word(device: &PciDevice) -> Option<&'static str> {
    let (vendor, id) = ids(device);
    if vendor != VIRTIO_VENDOR {
        return None;
    }
    // Numbers of virtio 1.2, 5.
    Some(match id.checked_sub(VIRTIO_PCI_ID_BASE)? {
        1 => "net",
        2 => "blk",
        3 => "serial",
        4 => "rng",
        5 => "balloon",
        9 => "9p",
        16 => "gpu",
        18 => "input",
        19 => "vsock",
        26 => "fs",
        _ => "device",
    })
}

/// The disk that a function is, if it is one.
pub(super) fn disk_of<'a>(disks: &'a [DiskFacts], device: &PciDevice) -> Option<&'a DiskFacts> {
    (virtio_word(device) == Some("blk"))
        .then(|| disks.iter().find(|disk| disk.device == device.name))
        .flatten()
}

/// The id that the user has given to a function's device, if any.
pub(super) fn device_id(target: &dyn Target, device: &PciDevice) -> String {
    if class(device) == BRIDGE {
        return device.name.clone();
    }
    let disks = target.disks();
    let disk = disk_of(&disks, device).and_then(|disk| disk.config.device.clone());
    disk.unwrap_or_default()
}

/// The path of each of `disks` among QEMU's objects.
pub(super) fn qdevs(disks: &[DiskFacts]) -> Vec<String> {
    let mut unnamed = 0;
    let path = |disk: &DiskFacts| match &disk.config.device {
        Some(id) => format!("/machine/peripheral/{id}/virtio-backend"),
        None => {
            unnamed += 1;
            format!("/machine/peripheral-anon/device[{}]/virtio-backend", unnamed - 1)
        }
    };
    disks.iter().map(path).collect()
}

/// QEMU's word for a disk's status (BlockDeviceIoStatus in its schema).
pub(super) fn io_status(status: IoStatus) -> &'static str {
    match status {
        IoStatus::Ok => "ok",
        IoStatus::Failed => "failed",
        IoStatus::NoSpace => "nospace",
    }
}

/// QEMU's name of what answers at an address, by ours.
pub(super) fn region(name: &str) -> String {
    match name {
        "PCI I/O ports" => "gpex_ioport_window".to_owned(),
        "PCI host bridge" => "pcie-ecam".to_owned(),
        other => other.to_lowercase(),
    }
}

/// How QEMU describes what is behind a character device.
fn filename(to: &ChardevConfig) -> String {
    match to {
        ChardevConfig::Stdio => "stdio".to_owned(),
        ChardevConfig::File(_) | ChardevConfig::FileAppend(_) => "file".to_owned(),
        ChardevConfig::Unix(path) | ChardevConfig::UnixWait(path) => {
            format!("unix:{},server=on", path.display())
        }
        ChardevConfig::UnixConnect(path) | ChardevConfig::UnixReconnect { path, .. } => {
            format!("unix:{}", path.display())
        }
        ChardevConfig::Pty => "pty".to_owned(),
        ChardevConfig::None => "null".to_owned(),
    }
}

/// Every character device with the name that QEMU gives it, and what it is.
pub(super) fn chardevs(target: &dyn Target) -> Vec<(String, String)> {
    let config = target.config();
    let mut all = vec![("serial0".to_owned(), filename(&config.serial))];
    let consoles = config.consoles.iter().map(|console| &console.to);
    let ports = config.ports.iter().map(|port| &port.to);
    let numbered = |(number, to): (usize, &_)| (format!("virtio-serial{number}"), filename(to));
    all.extend(consoles.chain(ports).enumerate().map(numbered));
    for (number, monitor) in config.monitors.iter().enumerate() {
        let kind = match monitor.kind {
            MonitorKind::Hmp => "hmp",
            MonitorKind::Qmp => "qmp",
        };
        if let MonitorPlace::Own(to) = &monitor.to {
            all.push((format!("compat_monitor{number}-{kind}"), filename(to)));
        }
    }
    all
}

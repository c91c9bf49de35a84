//! `info pci` and `info qtree`.

use hvrun_devices::pci::BarKind;

use super::super::super::names;
use super::super::super::target::{DiskFacts, PciDevice, Target};
use super::add;

/// Where a BAR is that answers nowhere, in QEMU's layouts.
const NOWHERE: u64 = u64::MAX;

fn class(device: &PciDevice) -> String {
    let class = names::class(device);
    names::class_name(class).map_or_else(|| format!("Class {class:04}"), str::to_owned)
}

/// What is on the bus.
pub(super) fn devices(target: &dyn Target, _: Option<&str>) -> String {
    let mut text = String::new();
    for device in target.pci() {
        let ((vendor, id), (sub_vendor, sub)) = (names::ids(&device), names::subsystem(&device));
        add(&mut text, format_args!("  Bus {:2}, device {:3}, function 0:", device.bus, device.slot));
        add(&mut text, format_args!("    {}: PCI device {vendor:04x}:{id:04x}", class(&device)));
        if (sub_vendor, sub) != (0, 0) {
            add(&mut text, format_args!("      PCI subsystem {sub_vendor:04x}:{sub:04x}"));
        }
        let (line, pin) = names::interrupt(&device);
        if let Some(pin) = pin.checked_sub(1) {
            add(&mut text, format_args!("      IRQ {line}, pin {}", char::from(b'A' + pin % 4)));
        }
        for (bar, base) in &device.bars {
            let bits = if bar.kind == BarKind::Memory64 { 64 } else { 32 };
            let prefetchable = if bar.prefetchable { " prefetchable" } else { "" };
            let first = base.unwrap_or(NOWHERE);
            let last = first.wrapping_add(bar.size - 1);
            add(
                &mut text,
                format_args!(
                    "      BAR{}: {bits} bit{prefetchable} memory at {first:#018x} [{last:#010x}].",
                    bar.index
                ),
            );
        }
        add(&mut text, format_args!("      id \"{}\"", names::device_id(target, &device)));
    }
    text
}

/// All devices, on their buses.
pub(super) fn tree(target: &dyn Target, _: Option<&str>) -> String {
    let mut text = "bus: main-system-bus\n  type System\n".to_owned();
    for (name, window) in target.memory_map() {
        add(&mut text, format_args!("  dev: {}, id \"\"", names::region(&name)));
        add(&mut text, format_args!("    mmio {:016x}/{:016x}", window.base, window.size));
    }
    let disks = target.disks();
    add(&mut text, format_args!("  dev: gpex-pcihost, id \"\""));
    add(&mut text, format_args!("    bus: pcie.0\n      type PCIE"));
    let devices = target.pci();
    for device in devices.iter().filter(|device| device.behind.is_none()) {
        function(&mut text, target, &disks, device);
        for card in devices.iter().filter(|card| card.behind == Some(device.slot)) {
            add(&mut text, format_args!("        bus: {}\n          type PCIE", device.name));
            let mut behind = String::new();
            function(&mut behind, target, &disks, card);
            // One step deeper than on the first bus.
            behind.lines().for_each(|line| add(&mut text, format_args!("    {line}")));
        }
    }
    text
}

fn function(text: &mut String, target: &dyn Target, disks: &[DiskFacts], device: &PciDevice) {
    let word = names::virtio_word(device);
    let driver = match word {
        Some(word) => format!("virtio-{word}-pci"),
        None if names::class(device) == names::BRIDGE => "pcie-root-port".to_owned(),
        None => "gpex-root".to_owned(),
    };
    let ((vendor, id), (sub_vendor, sub)) = (names::ids(device), names::subsystem(device));
    add(text, format_args!("      dev: {driver}, id \"{}\"", names::device_id(target, device)));
    add(text, format_args!("        addr = {:02x}.0", device.slot));
    add(
        text,
        format_args!(
            "        class {}, addr {:02x}:{:02x}.0, pci id {vendor:04x}:{id:04x} (sub {sub_vendor:04x}:{sub:04x})",
            class(device),
            device.bus,
            device.slot
        ),
    );
    for (bar, base) in &device.bars {
        let first = base.unwrap_or(NOWHERE);
        let last = first.wrapping_add(bar.size - 1);
        add(text, format_args!("        bar {}: mem at {first:#x} [{last:#x}]", bar.index));
    }
    let Some(word) = word else { return };
    add(text, format_args!("        bus: virtio-bus\n          type virtio-pci-bus"));
    add(text, format_args!("          dev: virtio-{word}-device, id \"\""));
    if let Some(disk) = names::disk_of(disks, device) {
        add(text, format_args!("            drive = \"{}\"", disk.names.drive));
        add(
            text,
            format_args!("            serial = \"{}\"", disk.config.serial.as_deref().unwrap_or_default()),
        );
        add(text, format_args!("            num-queues = {0} ({0:#x})", disk.config.queues));
    }
    // Cards have their id as their name.
    let (nets, links) = (&target.config().nets, target.links());
    let mut cards = nets.iter().enumerate().zip(links);
    if let Some(((index, net), (mac, _))) =
        cards.find(|((index, net), _)| word == "net" && device.name.ends_with(&net.id(*index)))
    {
        let netdev = net.common.netdev.clone().unwrap_or_else(|| net.id(index));
        add(text, format_args!("            mac = \"{mac}\""));
        add(text, format_args!("            netdev = \"{netdev}\""));
    }
}

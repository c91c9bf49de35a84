//! What `info` shows, in QEMU's layouts.

use std::fmt::Write;

use hvrun_arch::Accel;
use hvrun_arch::aarch64::layout::RAM_BASE;

use super::super::target::{PciDevice, Target};
use super::super::{QEMU_VERSION, hotplug};
use crate::config::{MonitorKind, MonitorPlace, Transport};
use crate::running::RunState;

/// A topic of `info`.
pub(super) struct Topic {
    pub(super) name: &'static str,
    pub(super) takes: &'static str,
    about: &'static str,
    pub(super) show: fn(&dyn Target, Option<&str>) -> String,
}

const fn topic(
    name: &'static str,
    takes: &'static str,
    about: &'static str,
    show: fn(&dyn Target, Option<&str>) -> String,
) -> Topic {
    Topic { name, takes, about, show }
}

/// Every topic, by name.
pub(super) static TOPICS: &[Topic] = &[
    topic("block", "", "show the block devices", block),
    topic("chardev", "", "show the character devices", chardev),
    topic("cpus", "", "show infos for each CPU", cpus),
    topic("kvm", "", "show KVM information", kvm),
    topic("mtree", "", "show memory tree", mtree),
    topic("network", "", "show the network state", network),
    topic("pci", "", "show PCI info", pci),
    topic("qtree", "", "show device tree", qtree),
    topic("registers", "[-a]", "show the cpu registers (-a: of all CPUs)", registers),
    topic("status", "", "show the current VM status (running|paused)", status),
    topic("usernet", "", "show user network stack connection states", usernet),
    topic("version", "", "show the version of QEMU", version),
];

/// A line for each topic, or for the one of that name.
pub(super) fn help(name: Option<&str>) -> String {
    let mut text = String::new();
    for topic in TOPICS.iter().filter(|topic| name.is_none_or(|name| topic.name == name)) {
        let blank = if topic.takes.is_empty() { "" } else { " " };
        add(&mut text, format_args!("info {}{blank}{} -- {}", topic.name, topic.takes, topic.about));
    }
    text
}

/// Appends a line.
fn add(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

fn status(target: &dyn Target, _: Option<&str>) -> String {
    let status = match target.run_state() {
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Prelaunch => "paused (prelaunch)",
        RunState::Shutdown => "paused (shutdown)",
    };
    format!("VM status: {status}\n")
}

fn version(_: &dyn Target, _: Option<&str>) -> String {
    let [major, minor, micro] = QEMU_VERSION;
    format!("{major}.{minor}.{micro} (hvrun {})\n", env!("CARGO_PKG_VERSION"))
}

fn kvm(target: &dyn Target, _: Option<&str>) -> String {
    let state = if target.accel() == Accel::Kvm { "enabled" } else { "disabled" };
    format!("kvm support: {state}\n")
}

fn cpus(target: &dyn Target, _: Option<&str>) -> String {
    let mut text = String::new();
    for (cpu, thread) in target.cpu_threads().iter().enumerate() {
        let mark = if cpu == 0 { '*' } else { ' ' };
        add(&mut text, format_args!("{mark} CPU #{cpu}: thread_id={thread}"));
    }
    text
}

fn registers(target: &dyn Target, which: Option<&str>) -> String {
    let cpus = match which {
        None => 1,
        Some("-a") => target.config().cpus,
        Some(_) => return "info registers: it takes -a or nothing\n".to_owned(),
    };
    let mut text = String::new();
    for cpu in 0..cpus {
        let registers = target.registers(cpu).unwrap_or_else(|| "(it does not run)".to_owned());
        add(&mut text, format_args!("\nCPU#{cpu}\n{}", registers.trim_end()));
    }
    text
}

fn network(target: &dyn Target, _: Option<&str>) -> String {
    let config = target.config();
    let model = match config.transport {
        Transport::Pci => "virtio-net-pci",
        Transport::Mmio => "virtio-net-device",
    };
    let mut text = String::new();
    for (index, (net, (mac, up))) in config.nets.iter().zip(target.links()).enumerate() {
        let down = if up { "" } else { ",link=down" };
        let id = net.id(index);
        add(&mut text, format_args!("{id}: index=0,type=nic,model={model},macaddr={mac}{down}"));
        let behind = hotplug::behind(&net.backend);
        let netdev = net.common.netdev.as_deref().unwrap_or(&id);
        add(&mut text, format_args!(" \\ {netdev}: index=0,{behind}"));
    }
    hotplug::network(target, &mut text);
    text
}

fn usernet(target: &dyn Target, _: Option<&str>) -> String {
    let mut text = String::new();
    for (card, forward) in target.forwards() {
        add(&mut text, format_args!("{card}: HOST_FORWARD {forward}"));
    }
    text
}

fn block(target: &dyn Target, _: Option<&str>) -> String {
    let mut text = String::new();
    for (index, (disk, facts)) in target.config().disks.iter().zip(target.disks()).enumerate() {
        let readonly = if facts.readonly { ", read-only" } else { "" };
        let cache = hotplug::cache(disk);
        let path = disk.path.display();
        add(&mut text, format_args!("virtio{index}: {path} ({}{readonly})", facts.format));
        add(&mut text, format_args!("    Cache mode:       {cache}"));
    }
    hotplug::block(target, &mut text);
    text
}

/// Every character device with the name that QEMU gives it, and what it is.
pub(in crate::monitor) fn chardevs(target: &dyn Target) -> Vec<(String, String)> {
    let config = target.config();
    let mut all = vec![("serial0".to_owned(), config.serial.to_string())];
    let consoles = config.consoles.iter().map(|console| &console.to);
    let ports = config.ports.iter().map(|port| &port.to);
    let numbered = |(number, to): (usize, &_)| (format!("virtio-serial{number}"), format!("{to}"));
    all.extend(consoles.chain(ports).enumerate().map(numbered));
    for (number, monitor) in config.monitors.iter().enumerate() {
        let kind = match monitor.kind {
            MonitorKind::Hmp => "hmp",
            MonitorKind::Qmp => "qmp",
        };
        if let MonitorPlace::Own(to) = &monitor.to {
            all.push((format!("compat_monitor{number}-{kind}"), to.to_string()));
        }
    }
    all
}

fn chardev(target: &dyn Target, _: Option<&str>) -> String {
    let mut text = String::new();
    for (label, filename) in chardevs(target) {
        add(&mut text, format_args!("{label}: filename={filename}"));
    }
    text
}

fn mtree(target: &dyn Target, _: Option<&str>) -> String {
    let mut text = "address-space: memory\n".to_owned();
    let mut line = |base: u64, size: u64, what: &str| {
        let last = base.saturating_add(size.saturating_sub(1));
        add(&mut text, format_args!("  {base:016x}-{last:016x} (prio 0, {what}"));
    };
    for (name, window) in target.memory_map() {
        line(window.base, window.size, &format!("i/o): {name}"));
    }
    line(RAM_BASE, target.config().memory.bytes(), "ram): mach-virt.ram");
    text
}

/// Class and subclass of a function (PCI Local Bus 3.0, 6.2.1).
pub(in crate::monitor) fn class(device: &PciDevice) -> u16 {
    device.u16(0x0a)
}

/// Vendor and device id (PCI Local Bus 3.0, 6.2.1).
pub(in crate::monitor) fn ids(device: &PciDevice) -> (u16, u16) {
    (device.u16(0), device.u16(2))
}

/// What QEMU calls a class.
pub(in crate::monitor) fn class_name(class: u16) -> Option<&'static str> {
    Some(match class {
        0x0100 => "SCSI controller",
        0x0200 => "Ethernet controller",
        0x0600 => "Host bridge",
        0x0604 => "PCI bridge",
        _ => return None,
    })
}

fn pci(target: &dyn Target, _: Option<&str>) -> String {
    let mut text = String::new();
    for device in target.pci() {
        let class = class(&device);
        let (vendor, id) = ids(&device);
        let name = class_name(class).map_or_else(|| format!("Class {class:04}"), str::to_owned);
        add(&mut text, format_args!("  Bus {:2}, device {:3}, function 0:", device.bus, device.slot));
        add(&mut text, format_args!("    {name}: PCI device {vendor:04x}:{id:04x}"));
        add(&mut text, format_args!("      id \"{}\"", device.name));
    }
    text
}

fn qtree(target: &dyn Target, _: Option<&str>) -> String {
    let mut text = "bus: main-system-bus\n  type System\n".to_owned();
    for (name, window) in target.memory_map() {
        add(
            &mut text,
            format_args!("  dev: {name}, id \"\"\n    mmio {:016x}/{:016x}", window.base, window.size),
        );
    }
    add(&mut text, format_args!("bus: pcie.0\n  type PCIE"));
    let devices = target.pci();
    for device in devices.iter().filter(|device| device.behind.is_none()) {
        add(&mut text, format_args!("  dev: {}, id \"\"\n    addr = {:02x}.0", device.name, device.slot));
        for card in devices.iter().filter(|card| card.behind == Some(device.slot)) {
            add(&mut text, format_args!("    bus: {}\n      type PCIE", device.name));
            add(
                &mut text,
                format_args!("      dev: {}, id \"\"\n        addr = {:02x}.0", card.name, card.slot),
            );
        }
    }
    text
}

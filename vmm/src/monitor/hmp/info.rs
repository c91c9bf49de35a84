//! What `info` shows, in QEMU's layouts.

mod block;
mod pci;

use std::fmt::Write;

use hvrun_arch::Accel;
use hvrun_arch::aarch64::layout::{RAM_BASE, Window};

use super::super::target::Target;
use super::super::{QEMU_VERSION, hotplug, names};
use crate::config::Transport;
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
    topic("balloon", "", "show balloon information", balloon),
    topic("block", "[device]", "show info of one block device or all block devices", block::devices),
    topic("block-jobs", "", "show progress of ongoing block device operations", |_, _| {
        "No active jobs\n".to_owned()
    }),
    topic("blockstats", "", "show block device statistics", block::stats),
    topic("chardev", "", "show the character devices", chardev),
    topic("cpus", "", "show infos for each CPU", cpus),
    topic("iothreads", "", "show iothreads", |_, _| String::new()),
    topic("kvm", "", "show KVM information", kvm),
    topic("memory-devices", "", "show memory devices", |_, _| String::new()),
    topic("memory_size_summary", "", "show the amount of initially allocated memory in bytes", memory_size),
    topic("mice", "", "show which guest mouse is receiving events", |_, _| {
        "No mouse devices connected\n".to_owned()
    }),
    topic("mtree", "", "show memory tree", mtree),
    topic("name", "", "show the current VM name", name),
    topic("network", "", "show the network state", network),
    topic("pci", "", "show PCI info", pci::devices),
    topic("qtree", "", "show device tree", pci::tree),
    topic("registers", "[-a]", "show the cpu registers (-a: of all CPUs)", registers),
    topic("status", "", "show the current VM status (running|paused)", status),
    topic("usernet", "", "show user network stack connection states", usernet),
    topic("uuid", "", "show the current VM UUID", uuid),
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
        RunState::IoError => "paused (io-error)",
        RunState::Prelaunch => "paused (prelaunch)",
        RunState::PoweredOff | RunState::Shutdown => "paused (shutdown)",
    };
    format!("VM status: {status}\n")
}

fn version(_: &dyn Target, _: Option<&str>) -> String {
    let [major, minor, micro] = QEMU_VERSION;
    format!("{major}.{minor}.{micro} (hvrun {})\n", env!("CARGO_PKG_VERSION"))
}

fn name(target: &dyn Target, _: Option<&str>) -> String {
    target.config().name.as_ref().map(|name| format!("{name}\n")).unwrap_or_default()
}

fn uuid(target: &dyn Target, _: Option<&str>) -> String {
    format!("{}\n", target.config().uuid.as_deref().unwrap_or(names::NO_UUID))
}

fn balloon(target: &dyn Target, _: Option<&str>) -> String {
    match target.balloon() {
        Some(bytes) => format!("balloon: actual={}\n", bytes >> 20),
        None => format!("Error: {}\n", names::NO_BALLOON),
    }
}

fn memory_size(target: &dyn Target, _: Option<&str>) -> String {
    format!("base memory: {}\nplugged memory: 0\n", target.config().memory.bytes())
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

fn chardev(target: &dyn Target, _: Option<&str>) -> String {
    let mut text = String::new();
    for (label, filename) in names::chardevs(target) {
        add(&mut text, format_args!("{label}: filename={filename}"));
    }
    text
}

fn mtree(target: &dyn Target, _: Option<&str>) -> String {
    let ram = (RAM_BASE, target.config().memory.bytes(), "ram): mach-virt.ram".to_owned());
    let device = |(name, window): (String, Window)| {
        (window.base, window.size, format!("i/o): {}", names::region(&name)))
    };
    let mut regions: Vec<_> = target.memory_map().into_iter().map(device).chain([ram]).collect();
    regions.sort();
    let mut text =
        "address-space: memory\n  0000000000000000-ffffffffffffffff (prio 0, i/o): system\n".to_owned();
    for (base, size, what) in regions {
        let last = base.saturating_add(size.saturating_sub(1));
        add(&mut text, format_args!("    {base:016x}-{last:016x} (prio 0, {what}"));
    }
    text
}

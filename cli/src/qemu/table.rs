//! Every option of `qemu-system-aarch64` that is known here, as a table: its argument, its help, and what becomes of it.

use super::nearest::did_you_mean;

/// An option that is honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Id {
    Help,
    Version,
    Paused,
    PrintConfig,
    Readconfig,
    Machine,
    Accel,
    Cpu,
    Smp,
    Memory,
    Object,
    Numa,
    Kernel,
    Initrd,
    Append,
    Drive,
    /// `-hda` to `-hdd`, by the last letter.
    Image,
    Cdrom,
    Device,
    Fsdev,
    Virtfs,
    Netdev,
    Net,
    Nic,
    Chardev,
    Serial,
    Parallel,
    Monitor,
    Qmp,
    QmpPretty,
    Mon,
    Nographic,
    Display,
    Vga,
    Nodefaults,
    NoReboot,
    NoShutdown,
    Action,
    Pidfile,
    Name,
    Uuid,
    Boot,
    Rtc,
    Global,
    Echr,
    Sandbox,
    Vnc,
    Audiodev,
}

/// What becomes of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// It describes the machine, or is checked before it is found to make no difference.
    Honoured(Id),
    /// Accepted: it makes no difference here.
    WithoutEffect,
    /// Refused, with the reason and what would work.
    Refused(&'static str),
}

/// One option.
#[derive(Debug)]
pub struct Spec {
    /// Without the dash.
    pub name: &'static str,
    /// What its argument is called, if it takes one.
    pub argument: Option<&'static str>,
    /// What becomes of it.
    pub treatment: Treatment,
    /// A line of help; none for what is another name of something, or refused.
    pub help: &'static str,
}

const fn on(name: &'static str, argument: &'static str, id: Id, help: &'static str) -> Spec {
    let argument = if argument.is_empty() { None } else { Some(argument) };
    Spec { name, argument, treatment: Treatment::Honoured(id), help }
}

const fn idle(name: &'static str, argument: &'static str) -> Spec {
    let argument = if argument.is_empty() { None } else { Some(argument) };
    Spec { name, argument, treatment: Treatment::WithoutEffect, help: "" }
}

const fn no(name: &'static str, argument: &'static str, why: &'static str) -> Spec {
    let argument = if argument.is_empty() { None } else { Some(argument) };
    Spec { name, argument, treatment: Treatment::Refused(why), help: "" }
}

/// Why there is nothing of a firmware's.
pub const NO_FIRMWARE: &str = "UEFI firmware is not there yet; boot a kernel with -kernel";
const NO_FLASH: &str = "pflash is for UEFI firmware, which is not there yet; boot a kernel with -kernel";
const NO_SNAPSHOT: &str = "snapshots of a machine are not there yet";
const NO_DEBUGGER: &str = "a debugger's server is not there yet";
const NO_REPLAY: &str = "counted instructions are not there; the guest's clock is real time";
const NO_DAEMON: &str = "the process stays where it was started; start it with '&' or from a service manager";
const NO_DISPLAY: &str = "displays are not there yet; the guest's output is on its serial port";
const NO_SOUND: &str = "sound is not there; '-audiodev none,id=ID' is accepted";

/// All options, those of the help text first and in its order.
pub const OPTIONS: &[Spec] = &[
    on("h", "", Id::Help, "print this (also -help)"),
    on("help", "", Id::Help, ""),
    on("version", "", Id::Version, "print the version"),
    on("print-config", "", Id::PrintConfig, "print the machine as JSON and boot nothing (hvrun's own)"),
    on(
        "machine",
        "virt[,key=value...]",
        Id::Machine,
        "the machine: virt, of any version; accel=hvf:kvm:tcg, gic-version=2|3|max|host",
    ),
    on("M", "virt", Id::Machine, ""),
    on("accel", "NAME", Id::Accel, "hvf, kvm or tcg (the software CPU); several options make a list"),
    on("enable-kvm", "", Id::Accel, "accepted; KVM is used where there is one"),
    on("cpu", "NAME", Id::Cpu, "max, host or a model of arm64 CPU; the guest gets what the accelerator has"),
    on("smp", "N", Id::Smp, "number of CPUs: N or cpus=N,sockets=...,cores=...,threads=..."),
    on("m", "SIZE", Id::Memory, "memory in MiB, or with a suffix: 1024, size=4G"),
    on("kernel", "FILE", Id::Kernel, "the kernel, an arm64 Image"),
    on("initrd", "FILE", Id::Initrd, "the initrd"),
    on("append", "STR", Id::Append, "the kernel command line"),
    on(
        "drive",
        "key=value,...",
        Id::Drive,
        "a disk image: file=, if=none|virtio, id=, format=, cache=, werror=, readonly=, serial=, index=",
    ),
    on("hda", "FILE", Id::Image, "an image as a virtio disk (also -hdb, -hdc, -hdd)"),
    on("hdb", "FILE", Id::Image, ""),
    on("hdc", "FILE", Id::Image, ""),
    on("hdd", "FILE", Id::Image, ""),
    on("cdrom", "FILE", Id::Cdrom, "an image as a read-only virtio disk"),
    on("device", "NAME[,key=value...]", Id::Device, "a device; '-device help' names them"),
    on(
        "virtfs",
        "local,key=value,...",
        Id::Virtfs,
        "a shared folder: path=, mount_tag=, security_model=, readonly, multidevs=",
    ),
    on(
        "fsdev",
        "local,key=value,...",
        Id::Fsdev,
        "the same for '-device virtio-9p-pci,fsdev=ID,mount_tag=TAG'",
    ),
    on(
        "netdev",
        "TYPE,id=ID,...",
        Id::Netdev,
        "what is behind a network card; '-netdev help' names the types",
    ),
    on(
        "net",
        "nic|user|none|...",
        Id::Net,
        "a network card (nic,netdev=ID,macaddr=...), or what is behind one",
    ),
    on("nic", "TYPE[,mac=...]", Id::Nic, "a network card and what is behind it in one"),
    on(
        "chardev",
        "TYPE,id=ID,...",
        Id::Chardev,
        "where a console, port or monitor goes; '-chardev help' names the types",
    ),
    on(
        "serial",
        "WHERE",
        Id::Serial,
        "the serial port: stdio, mon:stdio, file:PATH, unix:PATH, pty, none, null, chardev:ID",
    ),
    on("monitor", "WHERE", Id::Monitor, "a monitor for people"),
    on("qmp", "WHERE", Id::Qmp, "a monitor for programs"),
    on("qmp-pretty", "WHERE", Id::QmpPretty, ""),
    on("mon", "chardev=ID,...", Id::Mon, "a monitor on a chardev: mode=readline|control"),
    on(
        "nographic",
        "",
        Id::Nographic,
        "no display; serial port and monitor on stdio if they are nowhere else",
    ),
    on("display", "TYPE", Id::Display, "accepted; there is no display yet"),
    on("vga", "TYPE", Id::Vga, "accepted; there is no display yet"),
    on(
        "object",
        "TYPE,id=ID,...",
        Id::Object,
        "rng-random, rng-builtin, memory-backend-ram|memfd|file|shm, iothread, filter-dump",
    ),
    on("nodefaults", "", Id::Nodefaults, "no network card, serial port or monitor but those that are named"),
    on("no-reboot", "", Id::NoReboot, "end when the guest resets itself"),
    on(
        "no-shutdown",
        "",
        Id::NoShutdown,
        "pause when the guest powers off; a monitor's system_reset and cont boot it again",
    ),
    on("action", "key=value,...", Id::Action, "the same by reboot=shutdown and shutdown=pause"),
    on("pidfile", "FILE", Id::Pidfile, "write the process id into a file, which is removed at the end"),
    on("readconfig", "FILE", Id::Readconfig, "read options from a file"),
    on("name", "NAME", Id::Name, "what monitors call the machine"),
    on("uuid", "UUID", Id::Uuid, "what monitors say its UUID is"),
    on("boot", "key=value,...", Id::Boot, "accepted; a kernel is booted"),
    on("rtc", "key=value,...", Id::Rtc, "accepted; the guest's clock is the host's, in UTC"),
    on("global", "DEVICE.KEY=VALUE", Id::Global, "accepted for devices that are known"),
    on("numa", "node,memdev=ID", Id::Numa, "the memory of the one node: an object"),
    on("parallel", "none", Id::Parallel, ""),
    on("echr", "N", Id::Echr, ""),
    on("sandbox", "off", Id::Sandbox, ""),
    on("vnc", "none", Id::Vnc, ""),
    on("audiodev", "none,id=ID", Id::Audiodev, ""),
    idle("usb", ""),
    idle("usbdevice", "NAME"),
    idle("no-user-config", ""),
    idle("nodefconfig", ""),
    idle("no-acpi", ""),
    idle("no-hpet", ""),
    idle("no-fd-bootchk", ""),
    idle("smbios", "key=value,..."),
    idle("d", "ITEM,..."),
    idle("D", "FILE"),
    idle("L", "DIR"),
    idle("k", "LANGUAGE"),
    idle("msg", "key=value"),
    idle("overcommit", "key=value"),
    idle("mem-prealloc", ""),
    idle("compat", "key=value"),
    idle("full-screen", ""),
    idle("watchdog-action", "ACTION"),
    no("bios", "FILE", NO_FIRMWARE),
    no("pflash", "FILE", NO_FLASH),
    no("dtb", "FILE", "the device tree is the machine's own"),
    no("fw_cfg", "key=value,...", "fw_cfg is not there yet"),
    no("option-rom", "FILE", NO_FIRMWARE),
    no("tpmdev", "TYPE,...", "a TPM is not there yet"),
    no("blockdev", "key=value,...", "use '-drive if=none,id=ID,file=FILE'"),
    no(
        "snapshot",
        "",
        "disks are written to; make an overlay with 'qemu-img create -f qcow2 -b IMAGE -F FORMAT OVERLAY'",
    ),
    no("fda", "FILE", "this machine has no floppy disks; use -drive if=virtio"),
    no("fdb", "FILE", "this machine has no floppy disks; use -drive if=virtio"),
    no("sd", "FILE", "this machine has no SD cards; use -drive if=virtio"),
    no("mtdblock", "FILE", "this machine has no flash disks; use -drive if=virtio"),
    no("mem-path", "PATH", "memory is anonymous; leave it out"),
    on("S", "", Id::Paused, "wait for a monitor's cont before the first instruction"),
    no("loadvm", "TAG", NO_SNAPSHOT),
    no("incoming", "URI", NO_SNAPSHOT),
    no("gdb", "DEVICE", NO_DEBUGGER),
    no("s", "", NO_DEBUGGER),
    no("icount", "N", NO_REPLAY),
    no("daemonize", "", NO_DAEMON),
    no("runas", "USER", "the process keeps its user; start it with 'setpriv' or from a service manager"),
    no("run-with", "key=value", "the process keeps its user and its root; start it from a service manager"),
    no("chroot", "DIR", "the process keeps its root; start it from a service manager"),
    no("spice", "key=value,...", NO_DISPLAY),
    no("curses", "", NO_DISPLAY),
    no("sdl", "", NO_DISPLAY),
    no("audio", "key=value,...", NO_SOUND),
    no("semihosting", "", "semihosting is not there"),
    no("semihosting-config", "key=value,...", "semihosting is not there"),
    no("singlestep", "", "the software CPU cannot be slowed down"),
    no("trace", "key=value,...", "RUST_LOG=debug in the environment says more of what happens"),
    no("plugin", "key=value,...", "plugins of QEMU cannot be loaded"),
    no("set", "GROUP.ID.KEY=VALUE", "write it into the option itself"),
    no("add-fd", "key=value,...", "name files by their paths"),
    no("iscsi", "key=value,...", "disks are files and block devices"),
];

/// The option called `name`.
pub fn find(name: &str) -> Option<&'static Spec> {
    OPTIONS.iter().find(|spec| spec.name == name)
}

/// What ends the message about an option that there is not.
pub fn suggestion(name: &str) -> String {
    let supported = OPTIONS.iter().filter(|spec| !matches!(spec.treatment, Treatment::Refused(_)));
    // One letter is near to everything.
    did_you_mean(name, supported.map(|spec| spec.name).filter(|name| name.len() > 1))
}

/// Column at which help texts begin.
const HELP_COLUMN: usize = 30;

/// The help text of a program called `program`.
pub fn help(program: &str) -> String {
    let mut text = format!(
        "{version}\nUsage: {program} [OPTIONS] [DISK_IMAGE]\n\n\
         Boots an arm64 Linux kernel in a virtual machine, understanding QEMU's options.\n\nOptions:\n",
        version = version_line()
    );
    for spec in OPTIONS.iter().filter(|spec| !spec.help.is_empty()) {
        let start = format!("-{} {}", spec.name, spec.argument.unwrap_or_default());
        if start.len() >= HELP_COLUMN {
            text.push_str(&format!("{start}\n{:HELP_COLUMN$}{}\n", "", spec.help));
        } else {
            text.push_str(&format!("{start:HELP_COLUMN$}{}\n", spec.help));
        }
    }
    let names = |wanted: fn(&Treatment) -> bool| {
        let names: Vec<String> = OPTIONS
            .iter()
            .filter(|spec| wanted(&spec.treatment))
            .map(|spec| format!("-{}", spec.name))
            .collect();
        names.join(" ")
    };
    text.push_str(&format!(
        "\nAccepted, without effect here: {}\nKnown and refused, each with a reason: {}\n",
        names(|treatment| matches!(treatment, Treatment::WithoutEffect)),
        names(|treatment| matches!(treatment, Treatment::Refused(_)))
    ));
    text.push_str(
        "\nOn a terminal, Ctrl-A X ends the machine. RUST_LOG=debug in the environment names every argument that\n\
         makes no difference. Exit codes: 0 the guest powered off (or reset under -no-reboot), 1 an error.\n",
    );
    text
}

/// What `-version` prints. Programs look for "version N.N"; the number is that of the QEMU whose command line is understood.
pub fn version_line() -> String {
    let [major, minor, micro] = hvrun_vmm::QEMU_VERSION;
    format!("QEMU emulator version {major}.{minor}.{micro} (hvrun {})", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_name_is_there_once() {
        let mut names = HashSet::new();
        assert_eq!(OPTIONS.iter().find(|spec| !names.insert(spec.name)).map(|spec| spec.name), None);
    }

    #[test]
    fn help_names_every_option() {
        let help = help("qemu-system-aarch64");
        let missing = OPTIONS.iter().find(|spec| {
            let documented = !spec.help.is_empty() || !matches!(spec.treatment, Treatment::Honoured(_));
            documented && !help.contains(&format!("-{}", spec.name))
        });
        assert!(missing.is_none(), "{missing:?}");
    }

    #[test]
    fn the_version_is_one_that_programs_find() {
        let line = version_line();
        let rest = line.strip_prefix("QEMU emulator version ").unwrap();
        let (number, name) = rest.split_once(' ').unwrap();
        let parts: Result<Vec<u32>, _> = number.split('.').map(str::parse).collect();
        assert_eq!(parts.map(|parts| parts.len()), Ok(3), "{line}");
        assert_eq!(name, format!("(hvrun {})", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn a_misspelt_option_is_answered_with_the_nearest() {
        assert_eq!(suggestion("drvie"), "; did you mean 'drive'?");
        assert_eq!(suggestion("nographics"), "; did you mean 'nographic'?");
    }
}

//! Which devices there are, by QEMU's names.

use crate::qemu::nearest::did_you_mean;

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Block,
    Net,
    /// Carries consoles and ports.
    SerialBus,
    Console,
    Port,
    Rng,
    Balloon,
    Share,
    /// A file system that another process serves.
    VhostUserFs,
    /// Sockets to the host, by another process.
    VhostUserVsock,
    /// A slot for a device that comes and goes.
    RootPort,
    /// Accepted, for the reason given.
    WithoutEffect(&'static str),
    /// Refused, for the reason given.
    Refused(&'static str),
}

/// What a device is plugged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    Pci,
    Mmio,
    Other,
}

/// One device.
#[derive(Debug)]
pub struct Spec {
    /// QEMU's name, without the ending that says which bus it is for if it is a virtio device.
    pub name: &'static str,
    pub kind: Kind,
    /// Whether its name may end in `-pci` and `-device`.
    virtio: bool,
    /// A line of help.
    help: &'static str,
    /// Properties without effect, for a device without effect.
    pub properties: &'static [&'static str],
}

const fn virtio(name: &'static str, kind: Kind, help: &'static str) -> Spec {
    Spec { name, kind, virtio: true, help, properties: &[] }
}

const fn plain(name: &'static str, kind: Kind, help: &'static str) -> Spec {
    Spec { name, kind, virtio: false, help, properties: &[] }
}

const fn idle(name: &'static str, virtio: bool, why: &'static str) -> Spec {
    Spec {
        name,
        kind: Kind::WithoutEffect(why),
        virtio,
        help: "accepted, without effect",
        properties: &IDLE_PROPERTIES,
    }
}

/// What devices without effect may be told.
const IDLE_PROPERTIES: [&str; 21] = [
    "bus",
    "addr",
    "display",
    "xres",
    "yres",
    "edid",
    "max_outputs",
    "blob",
    "hostmem",
    "head",
    "serial",
    "usb_version",
    "pcap",
    "p2",
    "p3",
    "intr",
    "msi",
    "msix",
    "streams",
    "multifunction",
    "io-reserve",
];

const NO_INPUT: &str = "there are no displays and so no input yet";
const NO_DISPLAY: &str = "there are no displays yet";
const NO_USB: &str = "there is no USB";
const NO_USB_DEVICES: &str = "USB is not there; keyboards and tablets are accepted, without effect";
const FLAT_BUS: &str = "all devices are on the first PCI bus";

const DEVICES: &[Spec] = &[
    virtio("virtio-blk", Kind::Block, "a disk: drive=ID, serial=NAME, bootindex=N, num-queues=N"),
    virtio("virtio-net", Kind::Net, "a network card: netdev=ID, mac=ADDRESS, host_mtu=BYTES"),
    virtio("virtio-serial", Kind::SerialBus, "carries consoles and ports"),
    plain("virtconsole", Kind::Console, "a console, hvc0 and so on: chardev=ID, name=NAME"),
    plain("virtserialport", Kind::Port, "a port for programs of the guest: chardev=ID, name=NAME"),
    virtio("virtio-rng", Kind::Rng, "entropy: rng=ID, max-bytes=N, period=MS"),
    virtio(
        "virtio-balloon",
        Kind::Balloon,
        "gives memory back to the host: deflate-on-oom, free-page-reporting",
    ),
    virtio("virtio-9p", Kind::Share, "a shared folder: fsdev=ID, mount_tag=TAG"),
    virtio(
        "vhost-user-fs",
        Kind::VhostUserFs,
        "a folder by virtiofsd, on Linux: chardev=ID, tag=TAG, num-request-queues=N, queue-size=N",
    ),
    virtio("vhost-user-vsock", Kind::VhostUserVsock, "sockets to the host by vhost-device-vsock: chardev=ID"),
    idle("virtio-keyboard", true, NO_INPUT),
    idle("virtio-mouse", true, NO_INPUT),
    idle("virtio-tablet", true, NO_INPUT),
    idle("virtio-gpu", true, NO_DISPLAY),
    idle("virtio-gpu-gl", true, NO_DISPLAY),
    idle("ramfb", false, NO_DISPLAY),
    idle("usb-ehci", false, NO_USB),
    idle("nec-usb-xhci", false, NO_USB),
    idle("qemu-xhci", false, NO_USB),
    idle("usb-kbd", false, NO_USB),
    idle("usb-mouse", false, NO_USB),
    idle("usb-tablet", false, NO_USB),
    plain(
        "pcie-root-port",
        Kind::RootPort,
        "a slot for a disk or a network card, which may come and go: id=ID, chassis=N, slot=N, port=N, addr=N",
    ),
    idle("pcie-pci-bridge", false, FLAT_BUS),
    plain("tpm-tis-device", Kind::Refused("a TPM is not there yet"), ""),
    plain("tpm-tis", Kind::Refused("a TPM is not there yet"), ""),
    plain("vhost-vsock-pci", Kind::Refused("use vhost-user-vsock-pci with vhost-device-vsock"), ""),
    plain("vhost-vsock-device", Kind::Refused("use vhost-user-vsock-device with vhost-device-vsock"), ""),
    plain("vhost-user-blk-pci", Kind::Refused("use virtio-blk-pci"), ""),
    plain("virtio-scsi-pci", Kind::Refused("SCSI is not there; use virtio-blk-pci"), ""),
    plain("scsi-hd", Kind::Refused("SCSI is not there; use virtio-blk-pci"), ""),
    plain("scsi-cd", Kind::Refused("SCSI is not there; use virtio-blk-pci"), ""),
    plain("lsi53c895a", Kind::Refused("SCSI is not there; use virtio-blk-pci"), ""),
    plain("nvme", Kind::Refused("NVMe is not there; use virtio-blk-pci"), ""),
    plain("usb-storage", Kind::Refused("USB is not there; use virtio-blk-pci"), ""),
    plain("usb-mtp", Kind::Refused("USB is not there; share a folder with -virtfs"), ""),
    plain("usb-host", Kind::Refused(NO_USB_DEVICES), ""),
    plain("canokey", Kind::Refused(NO_USB_DEVICES), ""),
    plain("u2f-emulated", Kind::Refused(NO_USB_DEVICES), ""),
    plain("u2f-passthru", Kind::Refused(NO_USB_DEVICES), ""),
    plain("ide-hd", Kind::Refused("IDE is not there; use virtio-blk-pci"), ""),
    plain("e1000", Kind::Refused("use virtio-net-pci"), ""),
    plain("e1000e", Kind::Refused("use virtio-net-pci"), ""),
    plain("rtl8139", Kind::Refused("use virtio-net-pci"), ""),
    plain("i6300esb", Kind::Refused("a watchdog is not there"), ""),
    plain(
        "pvpanic-pci",
        Kind::Refused(
            "it is not there; 'panic=1' on the kernel's command line and -no-reboot end the machine",
        ),
        "",
    ),
];

/// The device called `name`, and the bus that it is for.
pub fn find(name: &str) -> Option<(&'static Spec, Bus)> {
    DEVICES.iter().find_map(|spec| {
        let ending = name.strip_prefix(spec.name)?;
        let bus = match (ending, spec.virtio) {
            // Without an ending it is what this machine has.
            ("" | "-pci" | "-pci-transitional" | "-pci-non-transitional", true) => Bus::Pci,
            ("-device", true) => Bus::Mmio,
            ("", false) => Bus::Other,
            _ => return None,
        };
        // What does nothing is on no bus.
        let idle = matches!(spec.kind, Kind::WithoutEffect(_));
        Some((spec, if idle { Bus::Other } else { bus }))
    })
}

/// Whether the device called `name` may be plugged into a running machine, and what it is.
pub fn hotplug(name: &str) -> Result<Kind, String> {
    match find(name) {
        Some((Spec { kind: kind @ (Kind::Block | Kind::Net), .. }, Bus::Pci)) => Ok(*kind),
        Some(_) => Err(format!(
            "Device '{name}' can't be plugged into a running machine; virtio-blk-pci and virtio-net-pci can"
        )),
        None => Err(format!("'{name}' is not a valid device model name{}", suggestion(name))),
    }
}

/// What ends the message about a device that there is not.
pub fn suggestion(name: &str) -> String {
    let names = supported().flat_map(names);
    let names: Vec<String> = names.collect();
    did_you_mean(name, names.iter().map(String::as_str))
}

fn supported() -> impl Iterator<Item = &'static Spec> {
    DEVICES.iter().filter(|spec| !matches!(spec.kind, Kind::Refused(_)))
}

fn names(spec: &Spec) -> Vec<String> {
    match spec.virtio {
        true => vec![format!("{}-pci", spec.name), format!("{}-device", spec.name)],
        false => vec![spec.name.to_owned()],
    }
}

/// Whether `-global` may name this driver: a device, or one of the parts that all of them have.
pub fn is_known(driver: &str) -> bool {
    const PARTS: [&str; 8] = [
        "virtio-pci",
        "virtio-mmio",
        "virtio-device",
        "pcie-root-port",
        "gpex-pcihost",
        "cfi.pflash01",
        "arm-gicv3",
        "virtio-serial-bus",
    ];
    PARTS.contains(&driver) || find(driver).is_some_and(|(spec, _)| !matches!(spec.kind, Kind::Refused(_)))
}

/// What `-device help` prints.
pub fn help() -> String {
    let mut text = String::from("Devices ('-pci', or '-device' on virtio-mmio):\n");
    for spec in supported() {
        let why = match spec.kind {
            Kind::WithoutEffect(why) => format!("{}: {why}", spec.help),
            _ => spec.help.to_owned(),
        };
        text.push_str(&format!("  {:44} {why}\n", names(spec).join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> Option<(Kind, Bus)> {
        find(name).map(|(spec, bus)| (spec.kind, bus))
    }

    #[test]
    fn a_virtio_device_has_a_name_for_each_bus() {
        assert_eq!(kind("virtio-blk-pci"), Some((Kind::Block, Bus::Pci)));
        assert_eq!(kind("virtio-blk"), Some((Kind::Block, Bus::Pci)));
        assert_eq!(kind("virtio-blk-device"), Some((Kind::Block, Bus::Mmio)));
        assert_eq!(kind("virtconsole"), Some((Kind::Console, Bus::Other)));
        assert_eq!(kind("virtconsole-pci"), None);
    }

    #[test]
    fn a_name_within_another_is_not_taken_for_it() {
        assert!(matches!(kind("virtio-gpu-gl-pci"), Some((Kind::WithoutEffect(_), Bus::Other))));
        assert!(matches!(kind("tpm-tis-device"), Some((Kind::Refused(_), Bus::Other))));
    }

    #[test]
    fn help_names_every_device_that_is_supported() {
        let help = help();
        assert!(supported().all(|spec| names(spec).iter().all(|name| help.contains(name))));
    }

    #[test]
    fn a_misspelt_device_is_answered_with_the_nearest() {
        assert_eq!(suggestion("virtio-blk-pic"), "; did you mean 'virtio-blk-pci'?");
        assert_eq!(suggestion("usb-tablett"), "; did you mean 'usb-tablet'?");
    }
}

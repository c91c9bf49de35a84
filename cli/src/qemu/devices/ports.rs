//! `-device pcie-root-port`: slots for disks and network cards, and what waits for them.

use std::collections::HashSet;

use hvrun_vmm::virtio::net::Mac;
use hvrun_vmm::{CardConfig, DriveConfig, MachineConfig, NetdevConfig, RootPortConfig};

use super::Backends;
use crate::qemu::drives::Interface;
use crate::qemu::opts::{Opts, Refusal};

/// What QEMU calls the first bus.
pub const FIRST_BUS: &str = "pcie.0";

/// A root port.
pub fn root_port(opts: &mut Opts, id: Option<String>) -> Result<RootPortConfig, Refusal> {
    let Some(id) = id else {
        return Err(opts.refuse("id=ID is missing: it is the name of the bus behind the port"));
    };
    match opts.text("bus")? {
        Some(bus) if bus != FIRST_BUS => {
            return Err(opts.refuse(format_args!("bus={bus}: a root port is on {FIRST_BUS}")));
        }
        _ => {}
    }
    let mut port = RootPortConfig::new(id);
    port.chassis = number(opts, "chassis")?;
    port.slot = number(opts, "slot")?;
    port.port = number(opts, "port")?;
    port.addr = address(opts)?;
    opts.only("hotplug", &["on", "yes", "true", "y"])?;
    opts.without_effect(&[
        "multifunction",
        "io-reserve",
        "mem-reserve",
        "pref32-reserve",
        "pref64-reserve",
        "bus-reserve",
        "x-speed",
        "x-width",
        "aer",
        "disable-acs",
        "x-native-hotplug",
        "power_controller_present",
        "acpi-index",
        "romfile",
        "rombar",
    ]);
    Ok(port)
}

fn number<T: TryFrom<u64> + Default>(opts: &mut Opts, key: &'static str) -> Result<T, Refusal> {
    let Some(number) = opts.number(key)? else { return Ok(T::default()) };
    T::try_from(number).map_err(|_| opts.refuse(format_args!("{key}={number}: that is too large")))
}

/// `addr=DEVICE[.FUNCTION]` in hexadecimal digits. There are no further functions, so a port that would be one goes where there is room.
fn address(opts: &mut Opts) -> Result<Option<u8>, Refusal> {
    let Some(text) = opts.text("addr")? else { return Ok(None) };
    let digits = |text: &str| u8::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok();
    let (device, function) = text.split_once('.').unwrap_or((&text, "0"));
    match (digits(device), digits(function)) {
        (Some(device @ 1..=0x1f), Some(0)) => Ok(Some(device)),
        (Some(1..=0x1f), Some(1..=7)) => {
            log::debug!("{}: it is a device of its own, wherever there is room", opts.source());
            Ok(None)
        }
        _ => Err(opts.refuse(format_args!("addr={text}: a device is at 1 to 1f, as in addr=5"))),
    }
}

/// Gives each card in a slot an address of its own, and leaves what no device uses to those that come later.
pub fn finish(ports: &mut [RootPortConfig], backends: &mut Backends, config: &mut MachineConfig) {
    let cards = ports.iter_mut().filter_map(|port| match &mut port.card {
        Some(CardConfig::Net(net)) => Some(&mut net.common),
        _ => None,
    });
    let mut cards: Vec<_> = cards.collect();
    let known = config.nets.iter().filter_map(|net| net.common.mac);
    let mut taken: HashSet<Mac> = known.chain(cards.iter().filter_map(|card| card.mac)).collect();
    for (card, number) in cards.iter_mut().zip(config.nets.len()..) {
        let free = || (0..256).map(Mac::of_card).find(|mac| !taken.contains(mac));
        card.mac = card.mac.or_else(free);
        taken.extend(card.mac);
        card.id.get_or_insert_with(|| format!("virtio-net-pci.{number}"));
    }
    if ports.is_empty() {
        return;
    }
    let spare = backends.drives.spare(|drive| drive.interface == Interface::None);
    config.spare_drives = spare.into_iter().map(|(id, drive)| DriveConfig { id, disk: drive.disk }).collect();
    let spare = backends.netdevs.spare(|_| true);
    config.spare_netdevs = spare.into_iter().map(|(id, backend)| NetdevConfig { id, backend }).collect();
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::qemu::{Action, parse};

    fn config(line: &str) -> Result<MachineConfig, String> {
        let line = format!("-nodefaults {line} -kernel Image");
        match parse("qemu-system-aarch64", line.split_whitespace().map(OsString::from)) {
            Ok(Action::Run { config, .. }) => Ok(config),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err(refusal.to_string()),
        }
    }

    const PORTS: &str = "-device pcie-root-port,id=rp0,chassis=1,slot=2,port=0x10,bus=pcie.0,addr=0x5,multifunction=on -device pcie-root-port,id=rp1,chassis=2,addr=5.1";

    #[test]
    fn a_root_port_has_its_numbers_and_its_place() {
        let config = config(PORTS).unwrap();
        let expected =
            RootPortConfig { chassis: 1, slot: 2, port: 16, addr: Some(5), ..RootPortConfig::new("rp0") };
        assert_eq!(config.root_ports[0], expected);
        assert_eq!(config.root_ports[1], RootPortConfig { chassis: 2, ..RootPortConfig::new("rp1") });
        assert_eq!(config.validate().map_err(|error| error.to_string()), Ok(()));
    }

    #[test]
    fn a_disk_and_a_card_behind_a_port_are_in_its_slot() {
        let config = config(&format!(
            "{PORTS} -drive if=none,id=d,file=/a -device virtio-blk-pci,id=x,drive=d,bus=rp0,serial=s -netdev user,id=n -device virtio-net-pci,netdev=n,bus=rp1"
        ))
        .unwrap();
        assert!(config.disks.is_empty() && config.nets.is_empty());
        let Some(CardConfig::Disk(disk)) = &config.root_ports[0].card else { panic!("{config:?}") };
        assert_eq!((disk.id.as_deref(), disk.disk.serial.as_deref()), (Some("x"), Some("s")));
        let Some(CardConfig::Net(net)) = &config.root_ports[1].card else { panic!("{config:?}") };
        assert_eq!(net.common.mac, Some(Mac::of_card(0)));
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<MachineConfig>(&json).unwrap(), config);
    }

    #[test]
    fn what_no_device_uses_waits_for_one_if_there_is_a_slot() {
        let backends = "-drive if=none,id=d,file=/a -netdev user,id=n";
        let with = config(&format!("{PORTS} {backends}")).unwrap();
        assert_eq!((with.spare_drives[0].id.as_str(), with.spare_netdevs[0].id.as_str()), ("d", "n"));
        let without = config(backends).unwrap();
        assert!(without.spare_drives.is_empty() && without.spare_netdevs.is_empty());
    }

    #[test]
    fn a_bus_that_is_not_there_is_named_with_those_that_are() {
        let disk = "-drive if=none,id=d,file=/a -device virtio-blk-pci,drive=d";
        let error = config(&format!("{PORTS} {disk},bus=rp7")).unwrap_err();
        assert!(error.contains("no bus 'rp7'") && error.contains("pcie.0"), "{error}");
        assert_eq!(config(&format!("{disk},bus=pcie.0")).unwrap().disks.len(), 1);
        let second = "-drive if=none,id=e,file=/b -device virtio-blk-pci,drive=e,bus=rp0";
        let error = config(&format!("{PORTS} {disk},bus=rp0 {second}")).unwrap_err();
        assert!(error.contains("'rp0' has its device"), "{error}");
    }

    #[test]
    fn other_devices_behind_a_port_are_on_the_first_bus() {
        let config = config(&format!("{PORTS} -device virtio-rng-pci,bus=rp0")).unwrap();
        assert!(config.rng.is_some() && config.root_ports[0].card.is_none());
    }

    #[test]
    fn a_root_port_needs_an_id_and_is_on_the_first_bus() {
        assert!(config("-device pcie-root-port").unwrap_err().contains("id=ID is missing"));
        assert!(
            config(&format!("{PORTS} -device pcie-root-port,id=x,bus=rp0")).unwrap_err().contains("bus=rp0")
        );
        assert!(config("-device pcie-root-port,id=x,addr=0x20").unwrap_err().contains("addr=0x20"));
    }
}

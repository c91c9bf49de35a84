//! `-device pcie-root-port`: slots for disks and network cards, and what waits for them.

use std::collections::HashSet;

use hvrun_vmm::{CardConfig, DriveConfig, MachineConfig, NetdevConfig, RootPortConfig};

use super::Backends;
use crate::qemu::drives::Interface;
use crate::qemu::opts::{Opts, Refusal};
use hvrun_vmm::virtio::net::Mac;

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

//! What of a machine may come and go while it runs: root ports with a slot for a card each, and the disks and networks that wait for a
//! card. Plain data, like all of the description.

use std::collections::HashSet;

use hvrun_devices::backend::disk::DiskConfig;
use hvrun_devices::virtio::net::{NetBackendConfig, NetConfig};
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// The most root ports of a machine: one for each bus that the window for configuration space has room for, besides the first.
pub const MAX_ROOT_PORTS: usize = 15;
/// Places for devices on the first bus.
const PLACES: u8 = 31;
/// The largest number of a physical slot (PCI Express Base 5.0, 7.5.3.9: 13 bits).
const MAX_SLOT: u16 = 0x1fff;

/// A PCI Express root port with a slot for a card, which may be plugged in and pulled out while the machine runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootPortConfig {
    /// What the bus behind it is called.
    pub id: String,
    /// Which chassis the slot is in.
    #[serde(default)]
    pub chassis: u8,
    /// The slot's number in the chassis, which the guest sees.
    #[serde(default)]
    pub slot: u16,
    /// The port's own number.
    #[serde(default)]
    pub port: u8,
    /// Its place on the first bus, 1 to 31; the first that is left if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<u8>,
    /// What is in the slot when the machine starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<CardConfig>,
}

impl RootPortConfig {
    /// A port with an empty slot.
    pub fn new(id: impl Into<String>) -> Self {
        RootPortConfig { id: id.into(), chassis: 0, slot: 0, port: 0, addr: None, card: None }
    }
}

/// What is in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CardConfig {
    /// A disk.
    Disk(DiskCardConfig),
    /// A network card.
    Net(NetConfig),
}

impl CardConfig {
    /// What it is called, if anything.
    pub fn id(&self) -> Option<&str> {
        match self {
            CardConfig::Disk(disk) => disk.id.as_deref(),
            CardConfig::Net(net) => net.common.id.as_deref(),
        }
    }
}

/// A disk in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskCardConfig {
    /// What the device is called. One without a name cannot be pulled out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What the image is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drive: Option<String>,
    /// The image.
    pub disk: DiskConfig,
}

/// An image that waits for a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveConfig {
    /// What it is called.
    pub id: String,
    /// The image.
    pub disk: DiskConfig,
}

/// A network that waits for a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetdevConfig {
    /// What it is called.
    pub id: String,
    /// What it is.
    pub backend: NetBackendConfig,
}

/// Checks what can be told without opening anything.
pub(super) fn validate(ports: &[RootPortConfig]) -> Result<(), ConfigError> {
    if ports.len() > MAX_ROOT_PORTS {
        return Err(ConfigError::TooManyRootPorts(ports.len()));
    }
    let (mut ids, mut slots, mut places) = (HashSet::new(), HashSet::new(), HashSet::new());
    for port in ports {
        let wrong = |why: String| Err(ConfigError::RootPort { id: port.id.clone(), why });
        if !ids.insert(port.id.as_str()) {
            return wrong("another one has this id; choose another".to_owned());
        }
        let (chassis, slot) = (port.chassis, port.slot);
        if slot > MAX_SLOT {
            return wrong(format!("slot={slot}: a slot's number is at most {MAX_SLOT}"));
        }
        if !slots.insert((chassis, slot)) {
            return wrong(format!(
                "another one has chassis={chassis} and slot={slot}; choose another of the two"
            ));
        }
        if let Some(addr) = port.addr {
            if !(1..=PLACES).contains(&addr) {
                return wrong(format!("addr={addr:#x}: the bus has places 1 to {PLACES:#x}"));
            }
            if !places.insert(addr) {
                return wrong(format!("another one has addr={addr:#x}; choose another"));
            }
        }
    }
    let cards = ports.iter().filter_map(|port| port.card.as_ref()?.id());
    let twice = cards.into_iter().find(|id| !ids.insert(id));
    twice.map_or(Ok(()), |id| Err(ConfigError::DeviceId(id.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(id: &str, slot: u16) -> RootPortConfig {
        RootPortConfig { slot, ..RootPortConfig::new(id) }
    }

    #[test]
    fn two_ports_with_one_slot_id_or_place_are_refused() {
        assert_eq!(validate(&[port("a", 0), port("b", 1)]), Ok(()));
        assert!(matches!(validate(&[port("a", 0), port("b", 0)]), Err(ConfigError::RootPort { .. })));
        assert!(matches!(validate(&[port("a", 0), port("a", 1)]), Err(ConfigError::RootPort { .. })));
        let at = |id, slot| RootPortConfig { addr: Some(5), ..port(id, slot) };
        assert!(matches!(validate(&[at("a", 0), at("b", 1)]), Err(ConfigError::RootPort { .. })));
    }

    #[test]
    fn a_port_for_which_there_is_no_bus_is_refused() {
        let ports: Vec<_> = (0..16).map(|slot| port(&format!("p{slot}"), slot)).collect();
        assert_eq!(validate(&ports[..15]), Ok(()));
        assert_eq!(validate(&ports), Err(ConfigError::TooManyRootPorts(16)));
    }

    #[test]
    fn a_place_that_the_bus_does_not_have_is_refused() {
        for addr in [0, 32] {
            let port = RootPortConfig { addr: Some(addr), ..port("a", 0) };
            assert!(validate(&[port]).is_err(), "{addr}");
        }
    }
}

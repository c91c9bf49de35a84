//! The host bridge (`pci-host-ecam-generic`): finds the function that a configuration access is for, and keeps each BAR on the
//! [`Bus`] where the guest wants it, as far as that is in a PCI window and free. Not what a function does behind its BARs.

mod slot;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use hvrun_arch::IrqChip;
use hvrun_arch::aarch64::layout::{Layout, PCI_INTX_SPI, Window};
use serde::{Deserialize, Serialize};

use super::config::{Bar, Command, ConfigSpace, ConfigState, Identity};
use super::intx::IntxLines;
use super::{IntxPin, PciFunction};
use crate::bus::{Bus, BusError, MmioDevice};
use crate::util::{LogLimit, lock};
use slot::Slot;

/// How many devices a bus has.
const SLOTS: u8 = 32;

/// Host bridge, as QEMU's `gpex` shows it.
const BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    intx: false,
};

/// Why a function could not be plugged in.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PciError {
    /// All slots are taken.
    #[error("there is no PCI slot left for {0}: the bus has slots 1 to 31")]
    Full(String),
    /// The slot asked for is taken or none.
    #[error(
        "PCI slot {slot} cannot be had for {function}: slots 1 to 31 are there, and each takes one function"
    )]
    Slot {
        /// The function.
        function: String,
        /// The slot asked for.
        slot: u8,
    },
    /// A saved state is of another machine.
    #[error("the saved state has a function in PCI slot {0}, where this machine has none")]
    StateSlot(u8),
}

/// What a snapshot keeps of the bridge. Each function's own state is its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciHostState {
    /// The slots in use.
    pub slots: Vec<SlotState>,
}

/// What a snapshot keeps of one slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// Its number.
    pub slot: u8,
    /// The function's configuration space.
    pub config: ConfigState,
}

/// One PCI bus with up to 31 devices, each with one function.
///
/// [`PciHost::plug`] and [`PciHost::unplug`] may be called while the machine runs.
pub struct PciHost {
    bus: Weak<Bus>,
    windows: [Window; 2],
    intx: Arc<IntxLines>,
    slots: Mutex<BTreeMap<u8, Slot>>,
    odd_bars: LogLimit,
}

impl PciHost {
    /// A bridge with no devices, its ECAM and port I/O windows on `bus`.
    ///
    /// # Errors
    /// Something else is in these windows.
    pub fn new(bus: &Arc<Bus>, chip: &Arc<dyn IrqChip>, layout: &Layout) -> Result<Arc<Self>, BusError> {
        let host = Arc::new(PciHost {
            bus: Arc::downgrade(bus),
            windows: [layout.pci_mmio32, layout.pci_mmio64],
            intx: IntxLines::new(chip, PCI_INTX_SPI),
            slots: Mutex::new(BTreeMap::new()),
            odd_bars: LogLimit::default(),
        });
        lock(&host.slots).insert(0, Slot::new(Arc::new(Bridge), host.intx.pin(0)));
        bus.insert(layout.pci_ecam, host.clone())?;
        bus.insert(layout.pci_pio, Arc::new(NoPorts))?;
        Ok(host)
    }

    /// Plugs `function` into the lowest free slot and gives its number.
    ///
    /// # Errors
    /// No slot is free.
    pub fn plug(&self, function: Arc<dyn PciFunction>) -> Result<u8, PciError> {
        let mut slots = lock(&self.slots);
        let free = (1..SLOTS).find(|slot| !slots.contains_key(slot));
        let slot = free.ok_or_else(|| PciError::Full(function.name().to_owned()))?;
        slots.insert(slot, self.slot(slot, function));
        Ok(slot)
    }

    /// Plugs `function` into `slot`.
    ///
    /// # Errors
    /// There is no such slot, or it is taken.
    pub fn plug_at(&self, slot: u8, function: Arc<dyn PciFunction>) -> Result<(), PciError> {
        let mut slots = lock(&self.slots);
        if !(1..SLOTS).contains(&slot) || slots.contains_key(&slot) {
            return Err(PciError::Slot { function: function.name().to_owned(), slot });
        }
        slots.insert(slot, self.slot(slot, function));
        Ok(())
    }

    fn slot(&self, slot: u8, function: Arc<dyn PciFunction>) -> Slot {
        let pin = self.intx.pin(slot);
        function.plugged(pin.clone());
        Slot::new(function, pin)
    }

    /// Takes the function in `slot` away: its BARs answer no more, and its interrupt pin is low.
    pub fn unplug(&self, slot: u8) -> Option<Arc<dyn PciFunction>> {
        if slot == 0 {
            return None;
        }
        let mut slots = lock(&self.slots);
        let mut removed = slots.remove(&slot)?;
        if let Some(bus) = self.bus.upgrade() {
            removed.unmap_all(&bus);
        }
        removed.pin.set(false);
        self.map_bars(&mut slots);
        Some(removed.function)
    }

    /// Number and name of every slot in use, the bridge's own first.
    pub fn functions(&self) -> Vec<(u8, String)> {
        lock(&self.slots).iter().map(|(slot, at)| (*slot, at.function.name().to_owned())).collect()
    }

    /// The BARs of the function in `slot`, and the address that the guest has given to each, if it answers there.
    pub fn bars(&self, slot: u8) -> Vec<(Bar, Option<u64>)> {
        let slots = lock(&self.slots);
        let Some(config) = slots.get(&slot).map(|at| &at.config) else { return Vec::new() };
        let enabled = config.command().contains(Command::MEMORY);
        let base = |bar: &Bar| Some(config.bar_base(*bar)).filter(|base| enabled && *base != 0);
        config.bars().iter().map(|bar| (*bar, base(bar))).collect()
    }

    /// Brings every BAR to where the guest wants it: first those leave that must, so that two can swap places, then those come
    /// that can.
    fn map_bars(&self, slots: &mut BTreeMap<u8, Slot>) {
        let Some(bus) = self.bus.upgrade() else { return };
        for slot in slots.values_mut() {
            slot.unmap_moved(&bus, &self.windows);
        }
        for slot in slots.values_mut() {
            slot.map_wanted(&bus, &self.windows, &self.odd_bars);
        }
    }

    /// For a snapshot.
    pub fn state(&self) -> PciHostState {
        let slots = lock(&self.slots);
        let state = |(slot, at): (&u8, &Slot)| SlotState { slot: *slot, config: at.config.state() };
        PciHostState { slots: slots.iter().map(state).collect() }
    }

    /// Takes `state`: configuration spaces and with them the BARs' places.
    ///
    /// # Errors
    /// It has a slot that is empty here; nothing is changed then.
    pub fn restore(&self, state: &PciHostState) -> Result<(), PciError> {
        let mut slots = lock(&self.slots);
        if let Some(missing) = state.slots.iter().find(|saved| !slots.contains_key(&saved.slot)) {
            return Err(PciError::StateSlot(missing.slot));
        }
        for saved in &state.slots {
            if let Some(slot) = slots.get_mut(&saved.slot) {
                slot.restore(&saved.config);
            }
        }
        self.map_bars(&mut slots);
        self.intx.force();
        Ok(())
    }
}

/// The slot and register that an offset into the ECAM window means (PCI Express Base 3.0, 7.2.2). `None`: there can be nothing.
fn decode(offset: u64) -> Option<(u8, u16)> {
    let (bus, device, function) = (offset >> 20, offset >> 15 & 0x1f, offset >> 12 & 7);
    // Both fit: they are masked.
    (bus == 0 && function == 0).then_some((device as u8, (offset & 0xfff) as u16))
}

impl MmioDevice for PciHost {
    fn name(&self) -> &str {
        "PCI host bridge"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut slots = lock(&self.slots);
        let slot = decode(offset).and_then(|(slot, register)| Some((slots.get_mut(&slot)?, register)));
        match slot {
            Some((slot, register)) => slot.config_read(register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut slots = lock(&self.slots);
        let slot = decode(offset).and_then(|(slot, register)| Some((slots.get_mut(&slot)?, register)));
        let Some((slot, register)) = slot else { return };
        if slot.config_write(register, data) {
            self.map_bars(&mut slots);
        }
    }

    fn reset(&self) {
        let mut slots = lock(&self.slots);
        let Some(bus) = self.bus.upgrade() else { return };
        for slot in slots.values_mut() {
            slot.reset(&bus);
        }
    }
}

impl fmt::Debug for PciHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciHost").field("functions", &self.functions()).finish_non_exhaustive()
    }
}

/// The bridge's own function, in slot 0. It does nothing.
struct Bridge;

impl PciFunction for Bridge {
    fn name(&self) -> &str {
        "PCI host bridge"
    }

    fn config_space(&self) -> ConfigSpace {
        ConfigSpace::new(BRIDGE)
    }

    fn bar_read(&self, _bar: u8, _offset: u64, _data: &mut [u8]) {}

    fn bar_write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&self) {}
}

/// Port I/O: the window is there because drivers expect one, and nobody answers in it.
struct NoPorts;

impl MmioDevice for NoPorts {
    fn name(&self) -> &str {
        "PCI I/O ports"
    }

    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}

    fn reset(&self) {}
}

#[cfg(test)]
mod tests;
